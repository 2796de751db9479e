"""A pretrained encoder under the names of other tools, with a list of every weight.

Nothing is written unless 95 % of the weights of the target's encoder are there and it computes what
ours computes. Files are safetensors; for loaders that read nothing but pickles the list holds the
line that makes one.
"""

import copy
import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medssl.core.errors import UsageError, WeightsError
from medssl.core.random import stream
from medssl.engine.encoders import LoadedEncoder
from medssl.engine.targets import TARGETS, Target

State = Literal["loaded", "adapted", "missing", "unexpected", "drawn"]
LEAST = 0.95
"""Share of the weights of the target's encoder."""
CLOSE = 1e-5
"""Largest difference of features, over their largest value."""
SMALLEST = 16
"""Voxels along each side of the image that both nets see."""
LEAST_AXES = 3
"""Axes of the weights of the smallest convolution are one more."""


@dataclass(frozen=True, kw_only=True)
class Key:
    """A line of the list."""

    target: str | None
    """Name there; None for a weight that has no place."""
    source: str | None
    """Name in our encoder; None where it has none."""
    shape: tuple[int, ...]
    state: State
    note: str = ""


@dataclass(frozen=True, eq=False)
class Exported:
    """Weights for another tool."""

    tensors: Mapping[str, Tensor]
    further: Mapping[str, Mapping[str, Tensor]]
    """By ending, the same for loaders that want other names."""
    keys: Sequence[Key]
    share: float
    """Of the weights of the target's encoder that are there."""
    difference: float
    """Of features, over their largest value."""
    target: Target

    def counts(self) -> dict[str, int]:
        """Keys of each state."""
        return dict(Counter(key.state for key in self.keys))

    def as_dict(self, file: str) -> dict[str, Any]:
        """Plain values of the list."""
        return {
            "net": dict(self.target.net),
            "load": self.target.load.format(file=file),
            "share_of_encoder": self.share,
            "difference": self.difference,
            **self.target.facts,
            "counts": self.counts(),
            "keys": [dataclasses.asdict(key) for key in self.keys],
        }


def export(loaded: LoadedEncoder, to: str, channels: int | None) -> Exported:
    """Put an encoder into a net of another tool.

    Args:
        loaded: The encoder.
        to: A word of `TARGETS`.
        channels: Of the images that the target takes; None takes those of the encoder.

    Raises:
        UsageError: No such target or channels.
        WeightsError: It does not fit, or computes something else.
    """
    if to not in TARGETS:
        raise UsageError(f"--to is {to!r}", f"give one of {', '.join(TARGETS)}")
    wanted = channels or loaded.channels
    if wanted < 1 or (wanted != loaded.channels and 1 not in (wanted, loaded.channels)):
        raise UsageError(
            f"--channels is {wanted}, the encoder takes {loaded.channels}", "give 1 or its own"
        )
    encoder = loaded.method.encoder.cpu().eval()
    target = TARGETS[to](getattr(encoder, "config", None), wanted)
    tensors, keys = _mapped(encoder.state_dict(), target, loaded.channels, wanted)
    share = _share(tensors, target)
    if share < LEAST:
        kind = getattr(getattr(encoder, "config", None), "net", type(encoder).__name__)
        raise WeightsError(
            f"{share:.0%} of the encoder of {to} is in this {kind}",
            f"pretrain with the net of {to}, see method.net in recipes/pretrain",
        )
    difference = _difference(encoder, target, tensors, loaded.channels, wanted)
    if not difference <= CLOSE:
        raise WeightsError(
            f"{to} would compute other features (relative difference {difference:.1g})",
            "pretrain with its net",
        )
    target = dataclasses.replace(target, facts=dict(target.facts) | _seen(target.facts, loaded))
    return Exported(tensors, target.forms(tensors), keys, share, difference, target)


def _seen(facts: Mapping[str, Any], loaded: LoadedEncoder) -> dict[str, Any]:
    """What the encoder saw, for whoever feeds the target."""
    size = list(loaded.crops.size)
    found: dict[str, Any] = {
        "images": "(x, y) or (x, y, z) in RAS+ at the spacing of the store; nnU-Net has z, y, x",
        "size": size,
        "window_hu": list(loaded.crops.window),
    }
    if "nnssl_adaptation_plan" in facts:
        seen = {"3d_fullres": {"spacing": None, "patch_size": size}}
        found["nnssl_adaptation_plan"] = facts["nnssl_adaptation_plan"] | {
            "pretrain_plan": {"configurations": seen},
            "recommended_downstream_patchsize": size,
        }
    return found


def _mapped(
    state: Mapping[str, Tensor], target: Target, channels: int, wanted: int
) -> tuple[dict[str, Tensor], list[Key]]:
    """Weights under the names of the target, and what became of each."""
    tensors: dict[str, Tensor] = {}
    keys: list[Key] = []
    for source, value in state.items():
        placed = False
        for name in target.names(source):
            shape = target.shapes.get(name)
            if shape is None:
                continue
            fitted, note = _fitted(value, shape, channels, wanted)
            if fitted is None:
                continue
            placed = True
            tensors[name] = fitted
            keys.append(
                Key(
                    target=name,
                    source=source,
                    shape=shape,
                    state="adapted" if note else "loaded",
                    note=note,
                )
            )
        if not placed:
            keys.append(
                Key(target=None, source=source, shape=tuple(value.shape), state="unexpected")
            )
    for name, shape in target.shapes.items():
        if name in tensors:
            continue
        if name in target.fresh:
            tensors[name] = target.fresh[name]
        state_: State = "drawn" if name in target.fresh else "missing"
        keys.append(Key(target=name, source=None, shape=shape, state=state_))
    return tensors, keys


def _fitted(
    value: Tensor, shape: tuple[int, ...], channels: int, wanted: int
) -> tuple[Tensor | None, str]:
    """A weight of the shape of the target, and what was done to it; None where it cannot be."""
    if tuple(value.shape) == shape:
        return value, ""
    stem = (
        value.ndim == len(shape) > 2
        and (value.shape[1], shape[1]) == (channels, wanted)
        and (value.shape[0], *value.shape[2:]) == (shape[0], *shape[2:])
    )
    if not stem:
        return None, ""
    if channels == 1:
        return value.expand(shape).clone() / wanted, f"1 channel repeated, over {wanted}"
    return value.sum(1, keepdim=True), f"{channels} channels summed"


def _share(tensors: Mapping[str, Tensor], target: Target) -> float:
    """Of the numbers of the target's encoder, those that came from ours."""
    sizes = {name: _size(target.shapes[name]) for name in target.encoder}
    total = sum(sizes.values())
    return sum(n for name, n in sizes.items() if name in tensors) / total


def _size(shape: tuple[int, ...]) -> int:
    n = 1
    for side in shape:
        n *= side
    return n


@torch.no_grad()
def _difference(
    encoder: nn.Module,
    target: Target,
    tensors: Mapping[str, Tensor],
    channels: int,
    wanted: int,
) -> float:
    """Of the features of one random image in both nets, over their largest value."""
    axes = next(v.ndim for v in encoder.state_dict().values() if v.ndim > LEAST_AXES) - 2
    side = max(SMALLEST, *target.strides)
    sides = (2 * side, *(side,) * (axes - 1))  # two voxels of the coarsest level, or more
    both = 1 if 1 in (channels, wanted) else channels
    # in double precision, since deep nets enlarge the rounding of their first layers
    image = torch.randn(1, both, *sides, generator=stream(0, "export"), dtype=torch.float64)
    here, there = (image.expand(1, n, *sides) for n in (channels, wanted))
    encoder = copy.deepcopy(encoder).double()
    ours = encoder.features(here)  # type: ignore[operator]
    theirs = target.features(tensors, there)
    if [tuple(a.shape) for a in ours] != [tuple(b.shape) for b in theirs]:
        return float("inf")
    return max(
        float((a - b).abs().max() / a.abs().max().clamp_min(1e-12))
        for a, b in zip(ours, theirs, strict=True)
    )
