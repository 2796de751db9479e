"""Whether two processes with half a batch each do what one does with the whole.

As a module: `differences(cases, folder)`. As a script it is one of the two processes.
"""

import importlib
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import interpolate

from medssl.config import construct
from medssl.core.batch import Sees, Views
from medssl.core.random import stream
from medssl.core.ranks import rank, total, world
from medssl.method import Encoder

BANK = 40
"""Images of the store that clusters are made of."""


@dataclass(frozen=True)
class Case:
    """A method with small numbers, whose loss draws no chance of its own."""

    method: str
    values: dict[str, Any] = field(default_factory=dict)
    batch: int = 8
    size: tuple[int, ...] = (16, 16)
    small_size: tuple[int, ...] = (9, 9)
    progress: tuple[float, ...] = (0.2, 0.6)
    """Of each step."""


@dataclass(frozen=True)
class Difference:
    """Largest differences, over the size of what is compared."""

    loss: float
    gradient: float
    state: float


def built(case: Case) -> Encoder:
    """The method in float64."""
    config = importlib.import_module(f"medssl.pretrain.{case.method}").Config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return construct(config, case.values, case.method).build().double().train()


def phantom_views(sees: Sees, case: Case, step: int = 0) -> Views:
    """A batch (float64) of smooth random images with everything that a method may ask for."""
    generator = stream(step, f"phantom/{case.method}")
    n, axes = case.batch, sees.axes

    def smooth(sides: tuple[int, ...]) -> Tensor:
        coarse = torch.randn(n, 1, *(4,) * axes, generator=generator, dtype=torch.float64)
        mode = "bilinear" if axes == 2 else "trilinear"
        fine = torch.randn(n, 1, *sides, generator=generator, dtype=torch.float64)
        return interpolate(coarse, sides, mode=mode, align_corners=False) + 0.2 * fine

    visible = None
    if sees.block is not None:
        cells = tuple(s // b for s, b in zip(case.size, sees.block, strict=True))
        chance = torch.rand(n, 1, *cells, generator=generator).flatten(1)
        hidden = round(chance.shape[1] * sees.hidden)
        visible = (chance.argsort(1).argsort(1) >= hidden).reshape(n, 1, *cells)
    start = torch.rand(sees.views + sees.small, n, 1, axes, generator=generator) * 20
    boxes = torch.cat([start, torch.full_like(start, 16.0)], 2)
    runs = torch.arange(n) // max(1, sees.neighbours)
    return Views(
        image=smooth(case.size),
        visible=visible,
        views=tuple(smooth(case.size) for _ in range(sees.views)),
        small=tuple(smooth(case.small_size) for _ in range(sees.small)),
        boxes=boxes.double(),
        index=(torch.arange(n) * 3 + step) % BANK,
        patient=runs % max(2, int(runs.max())),
        spacing=torch.ones(n, axes, dtype=torch.float64),
        slice_mm=torch.arange(case.size[-1], dtype=torch.float64).repeat(n, 1),
        generator=generator,
    )


def part(batch: Views) -> Views:
    """What the present rank sees of a batch."""
    n = len(batch.image) // world()
    mine = slice(rank() * n, (rank() + 1) * n)
    found: dict[str, Any] = {}
    for one in fields(batch):
        value = getattr(batch, one.name)
        if isinstance(value, Tensor):
            found[one.name] = value[:, mine] if one.name == "boxes" else value[mine]
        elif isinstance(value, tuple):
            found[one.name] = tuple(v[mine] for v in value)
    return replace(batch, **found)


def outcome(case: Case) -> dict[str, Tensor]:
    """Losses, gradients and the state after some plain steps, as the present rank has them."""
    method = built(case)
    found = {}
    bank = torch.randn(BANK, *_width(method, case), generator=stream(0, "bank")).double()
    for step, progress in enumerate(case.progress):
        batch = replace(part(phantom_views(method.sees, case, step)), progress=progress)
        if method.refresh_every is not None:
            with torch.no_grad():
                method.refresh(bank, torch.arange(BANK), stream(step, "refresh"))
        method.zero_grad()
        loss = torch.stack(list(method.loss(batch).values())).sum()
        loss.backward()
        found[f"loss/{step}"] = total(loss.detach().reshape(1)) / world()
        for name, p in method.named_parameters():
            if p.requires_grad:
                assert p.grad is not None, f"{name} has no gradient"
                p.grad = total(p.grad) / world()
                found[f"gradient/{step}/{name}"] = p.grad.clone()
        with torch.no_grad():
            for p in method.parameters():
                if p.requires_grad:
                    p.sub_(0.05 * p.grad / p.grad.norm().clamp_min(1e-3))
            method.after_step(progress)
    found |= {f"state/{k}": v.double() for k, v in method.state_dict().items()}
    return {k: v.contiguous().clone() for k, v in found.items()}


def differences(cases: dict[str, Case], folder: Path) -> dict[str, Difference]:
    """How far two processes are from one, for each case."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = {name: asdict(case) for name, case in cases.items()}
    (folder / "cases.json").write_text(json.dumps(listed), encoding="utf-8")
    quiet = os.environ | {"OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([sys.executable, "-W", "error", __file__, str(folder), str(k)], env=quiet)
        for k in range(2)
    ]
    alone = {name: outcome(case) for name, case in cases.items()}
    try:
        codes = [one.wait(240) for one in ranks]
    finally:
        for one in ranks:
            one.kill()
    assert codes == [0, 0], f"the processes ended with {codes}"
    found = {}
    for name, expected in alone.items():
        both = [load_file(folder / f"{name}.{k}.safetensors") for k in range(2)]
        worst = {
            kind: max(_apart(one, expected, f"{kind}/") for one in both)
            for kind in ("loss", "gradient", "state")
        }
        found[name] = Difference(**worst)
    return found


def _apart(one: dict[str, Tensor], expected: dict[str, Tensor], prefix: str) -> float:
    """The largest difference of two tensors of a kind, over the size of the tensor."""
    wanted = {k: v for k, v in expected.items() if k.startswith(prefix) and v.numel()}
    assert wanted.keys() <= one.keys()
    largest = max((float(v.abs().max()) for v in wanted.values()), default=0.0)
    floor = 1e-6 * largest + 1e-30
    return max(
        (float((one[k] - v).abs().max() / (v.abs().max() + floor)) for k, v in wanted.items()),
        default=0.0,
    )


def _width(method: Encoder, case: Case) -> tuple[int, ...]:
    """(D,), of the embeddings."""
    with torch.no_grad():
        image = phantom_views(method.sees, case).image
        was = method.training
        width = method.eval().embed(image[:1]).shape[1:]
        method.train(was)
    return tuple(width)


def main(folder: Path, k: int) -> None:
    """One of the two processes."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder.resolve()}/rendezvous", rank=k, world_size=2
    )
    listed = json.loads((folder / "cases.json").read_text(encoding="utf-8"))
    for name, values in listed.items():
        tuples = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        save_file(outcome(Case(**tuples)), folder / f"{name}.{k}.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
