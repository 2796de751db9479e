"""SparK in 3D: seen cells as tiles against masked convolutions over whole maps.

`python benchmarks/spark3d.py [--sides 64 96] [--step-sides 64] [--ratio 0.75] [--block 16]
[--threads 1] [--device cuda]`

Both compute the same from the same weights. The encoder is one of five convolutions, 1-32-32-32-64
(stride 2)-64, with instance norms and leaky ReLU, forward and backward. The whole step is that of
the method with the first five stages of ResEnc-L and the decoder of the recipe: loss, backward,
AdamW. Every figure comes from a process of its own: the peak is that of its first call, the time
the mean of the calls that follow. Outputs are compared in single precision, gradients in double: in
single precision a rounding error near the kink of a leaky ReLU changes a gradient more than all
others together, whichever way it is computed.
"""

import dataclasses
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import torch
from _table import arguments, measure, show
from torch import Tensor, nn

from medssl.core.batch import Views
from medssl.core.random import stream
from medssl.nets import resenc
from medssl.nets.norms import InstanceNorm
from medssl.nets.sparse import sparse_view
from medssl.pretrain import spark

CALLS = 2


@dataclasses.dataclass(frozen=True)
class Case:
    """One process."""

    what: str
    side: int
    ratio: float
    block: int
    threads: int
    device: str
    double: bool = False

    @property
    def precision(self) -> torch.dtype:
        """bf16 on a GPU, as one trains there."""
        single = self.device == "cpu" or self.double
        return torch.float32 if single else torch.bfloat16


class Five(nn.Module):
    """The encoder of the protocol."""

    def __init__(self) -> None:
        super().__init__()
        shape = ((1, 32, 1), (32, 32, 1), (32, 32, 1), (32, 64, 2), (64, 64, 1))
        self.layers = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv3d(a, b, 3, stride=s, padding=1),
                    InstanceNorm(b),
                    nn.LeakyReLU(0.01, inplace=True),
                )
                for a, b, s in shape
            )
        )

    def features(self, image: Tensor) -> list[Tensor]:
        return [self.layers(image)]


def scene(case: Case) -> tuple[Tensor, Tensor]:
    """An image of noise and the same number of seen cells whatever the seed."""
    n = case.side // case.block
    order = torch.rand(n**3, generator=stream(0, "cells")).argsort()
    visible = (order < round(n**3 * (1 - case.ratio))).reshape(1, 1, n, n, n)
    image = torch.randn(1, 1, *(case.side,) * 3, generator=stream(0, "image"))
    return _typed(image, case), visible.to(case.device)


def _typed(x: Tensor, case: Case) -> Tensor:
    return x.to(case.device, torch.float64 if case.double else torch.float32)


def amp(case: Case) -> torch.autocast:
    return torch.autocast(case.device, case.precision, enabled=case.precision != torch.float32)


def encoder_step(case: Case, tiles: bool) -> Callable[[], tuple[Tensor, list[Tensor]]]:
    torch.manual_seed(0)
    encoder = Five().to(case.device, torch.float64 if case.double else torch.float32)
    view = sparse_view(encoder, tiles=tiles)
    image, visible = scene(case)
    slope = _typed(torch.randn(1, 64, *(case.side // 2,) * 3, generator=stream(0, "slope")), case)

    def step() -> tuple[Tensor, list[Tensor]]:
        encoder.zero_grad()
        with amp(case):
            found = view.features(image, visible)[0]
        found.backward(slope.to(found.dtype))
        # A bias before an instance norm has no gradient but rounding.
        return found.detach(), [p.grad for p in encoder.parameters() if p.ndim > 1]

    return step


def whole_step(case: Case, tiles: bool) -> Callable[[], tuple[Tensor, list[Tensor]]]:
    torch.manual_seed(0)
    net = resenc.Config(depths=(1, 3, 4, 6, 6), widths=(32, 64, 128, 256, 320))
    block = (case.block,) * 3
    config = spark.Config(net=net, ratio=case.ratio, block=block, decoder_width=160, tiles=tiles)
    method = config.build().to(case.device, torch.float64 if case.double else torch.float32)
    optimiser = torch.optim.AdamW(method.parameters(), lr=0.0)
    image, visible = scene(case)

    def step() -> tuple[Tensor, list[Tensor]]:
        optimiser.zero_grad()
        with amp(case):
            loss = method.loss(Views(image=image, visible=visible))["hidden"]
        loss.backward()
        optimiser.step()
        return loss.detach(), [p.grad for p in method.encoder.parameters() if p.ndim > 1]

    return step


STEPS = {"encoder": encoder_step, "whole step": whole_step}


def cost(case: Case, tiles: bool) -> tuple[float, float]:
    """Seconds and MB of one call."""
    torch.set_num_threads(case.threads)
    step = STEPS[case.what](case, tiles)
    if case.device == "cpu":
        peak = measure(step).peak_mb
        start = time.process_time()
        for _ in range(CALLS):
            step()
        return (time.process_time() - start) / CALLS, peak
    held = torch.cuda.memory_allocated()
    step()
    peak = (torch.cuda.max_memory_allocated() - held) / 1e6
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(10 * CALLS):
        step()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / (10 * CALLS), peak


def differences(case: Case) -> tuple[float, float]:
    """Largest differences of outputs and gradients, over the largest values of each tensor."""
    torch.set_num_threads(case.threads)
    double = dataclasses.replace(case, double=True)
    (a, _), (b, _) = (STEPS[case.what](case, tiles)() for tiles in (False, True))
    (_, p), (_, q) = (STEPS[case.what](double, tiles)() for tiles in (False, True))
    return _far(a, b), max(_far(one, other) for one, other in zip(p, q, strict=True))


def _far(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / a.abs().max()).item()


def alone(call: Callable[..., tuple[float, float]], *given: object) -> tuple[float, float]:
    """In a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(call, *given).result()


def row(case: Case) -> dict[str, object]:
    whole, tiles = alone(cost, case, False), alone(cost, case, True)
    forward, backward = alone(differences, case)
    return {
        "what": case.what,
        "side": case.side,
        "whole maps s": f"{whole[0]:.3g}",
        "tiles s": f"{tiles[0]:.3g}",
        "faster": f"{whole[0] / tiles[0]:.2f}x",
        "whole maps MB": round(whole[1]),
        "tiles MB": round(tiles[1]),
        "memory": f"{tiles[1] / whole[1]:.2f}x",
        "output differs": f"{forward:.1e}",
        "gradients differ": f"{backward:.1e}",
    }


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--sides", type=int, nargs="*", default=[64, 96])
    parser.add_argument("--step-sides", type=int, nargs="*", default=[64])
    parser.add_argument("--ratio", type=float, default=0.75)
    parser.add_argument("--block", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    words = parser.parse_args()
    rest = (words.ratio, words.block, words.threads, words.device)
    cases = [Case("encoder", side, *rest) for side in words.sides]
    cases += [Case("whole step", side, *rest) for side in words.step_sides]
    show(
        "spark3d" if words.device == "cpu" else f"spark3d_{words.device}",
        f"one image of noise, cells of {words.block}^3, {words.ratio:.0%} hidden, "
        f"{words.threads} threads, {words.device}, "
        f"{'fp32' if words.device == 'cpu' else 'bf16'}; means of {CALLS} calls",
        [row(case) for case in cases],
        as_json=words.json,
    )


if __name__ == "__main__":
    main()
