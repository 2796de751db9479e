"""Slices of raw scans for a method that learns: what each step sees of them.

A fully sampled slice is measured anew at every step, with another pattern of a bank; a slice that
was undersampled already, or that stands for one, keeps its own. Kinds of scans, such as those with
a truth and those without, have their turns, whatever their numbers.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medssl.config import Raw
from medssl.core.batch import Acquired
from medssl.core.random import stream
from medssl.data.pool import Pool
from medssl.physics.coils import Sense
from medssl.physics.sampling import edge, poisson_disc, random_lines

Mask = NDArray[np.bool_]
BANK = 64
"""Patterns of each size; drawing one takes as long as a tenth of a step."""
LARGEST_CENTRE = 0.3
"""Share of the measured points that the fully sampled centre may take."""
FEWEST_CENTRAL = 6
"""Points along the side of the centre that coil maps need."""
BRIGHT = 0.95
"""Quantile of the zero-filled image that becomes 1."""


@dataclass(frozen=True, eq=False)
class Slice:
    """One slice in memory.

    Args:
        kspace: (coil, H, W) complex64, 0 where nothing was measured.
        coil_maps: (set, coil, H, W) complex64.
        sigma: Of the noise of each real component.
        sampling: (H, W) what was measured; None for all that the protocol covers.
        own: Number of the pattern that a fully sampled slice always has, as if it had been
            measured with it; None draws one at each step, and keeps the truth.
    """

    kspace: Tensor
    coil_maps: Tensor
    sigma: float
    sampling: Mask | None = None
    own: int | None = None

    @property
    def labelled(self) -> bool:
        """Whether there is a truth."""
        return self.sampling is None and self.own is None

    @property
    def size(self) -> tuple[int, ...]:
        """Slices of equal size fit into one batch."""
        return (*self.kspace.shape, len(self.coil_maps))


@dataclass(frozen=True, eq=False)
class Scan:
    """The slices of one scan that are learnt from."""

    slices: tuple[Slice, ...]


class Patterns:
    """A bank of sampling patterns of each size, the same ones for the same words.

    Args:
        raw: What they are like.
        seed: Of the bank.
    """

    def __init__(self, raw: Raw, seed: int) -> None:
        self.raw, self._seed = raw, seed
        self._at = cache(self._drawn)

    def at(self, shape: tuple[int, int], k: int) -> tuple[Mask, Mask]:
        """(H, W) the k-th pattern of a size, and the points that it never measures."""
        return self._at(shape, k % BANK)

    def _drawn(self, shape: tuple[int, int], k: int) -> tuple[Mask, Mask]:
        generator = stream(self._seed, f"pattern/{shape[0]}x{shape[1]}/{k}")
        low, high = self.raw.acceleration
        acceleration = low + (high - low) * float(torch.rand((), generator=generator))
        seed = int(torch.randint(2**31, (), generator=generator))
        kind = self.raw.pattern
        if kind == "both":
            kind = "poisson" if float(torch.rand((), generator=generator)) < 0.5 else "lines"
        centre = centre_of(shape, self.raw)
        if kind == "poisson":
            found = poisson_disc(shape, acceleration, centre, seed)
        else:
            found = random_lines(shape, acceleration, _lines(shape[0], self.raw), seed)
        return found, edge(found)


def centre_of(shape: tuple[int, int], raw: Raw) -> tuple[int, int]:
    """Size of the centre that every pattern measures, and that coil maps may be made from."""
    most = (LARGEST_CENTRE * shape[0] * shape[1] / raw.acceleration[1]) ** 0.5
    side = min(raw.center, max(FEWEST_CENTRAL, int(most)), *shape)
    if raw.pattern == "poisson":
        return side, side
    lines = _lines(shape[0], raw)
    return (lines, side) if raw.pattern == "both" else (lines, min(raw.center, shape[1]))


def _lines(n: int, raw: Raw) -> int:
    """Central lines of patterns of lines."""
    return min(raw.center, max(FEWEST_CENTRAL, int(0.5 * n / raw.acceleration[1])))


def acquired(one: Slice, pattern: tuple[Mask, Mask] | None) -> Acquired:
    """A slice as it is learnt from, a batch of one.

    Args:
        one: The slice.
        pattern: What is measured of a fully sampled one, and what never is; None for one that was
            undersampled.

    The truth is made of what the pattern could ever have measured: its corners are left out.
    """
    if pattern is None:
        assert one.sampling is not None
        pattern = one.sampling, edge(one.sampling)
    sampling, outside = (torch.from_numpy(p)[None, None].float() for p in pattern)
    full, maps = one.kspace[None], one.coil_maps[None]
    if one.sampling is None:
        covered = (full != 0).any(1, keepdim=True).float()
        sampling, outside = sampling * covered, torch.maximum(outside, 1 - covered)
    kspace = full * sampling
    start = torch.linalg.vector_norm(Sense(maps, sampling).adjoint(kspace), dim=1)
    scale = float(np.quantile(start.numpy(), BRIGHT)) or 1.0
    truth = Sense(maps, 1 - outside).adjoint(full) / scale if one.labelled else None
    return Acquired(
        kspace / scale, sampling, maps, sigma=one.sigma / scale, edge=outside, truth=truth
    )


def stacked(parts: Sequence[Acquired]) -> Acquired:
    """Batches of one as one batch; those without a truth take it from all."""
    truths = [p.truth for p in parts if p.truth is not None]
    edges = [p.edge for p in parts if p.edge is not None]
    return Acquired(
        torch.cat([p.kspace for p in parts]),
        torch.cat([p.sampling for p in parts]),
        torch.cat([p.coil_maps for p in parts]),
        sigma=torch.cat([p.level for p in parts]),
        edge=torch.cat(edges) if len(edges) == len(parts) else None,
        truth=torch.cat(truths) if len(truths) == len(parts) else None,
    )


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How batches are drawn."""

    patterns: Patterns
    count: int
    """Slices in a batch."""
    seed: int
    device: torch.device


def turns(step: int, pools: int) -> tuple[int, int]:
    """Which of some pools a step draws from, and its number among the steps that do."""
    return step % pools, step // pools


def batches(
    pools: Sequence[Pool[Scan]], drawing: Drawing, start: int, steps: int
) -> Iterator[Acquired]:
    """The batches of the steps from `start` on, from each pool in turn."""
    for step in range(start, steps):
        which, turn = turns(step, len(pools))
        scans = pools[which].at(turn)
        yield batch(scans, drawing, step, turn, progress=step / steps)


def batch(
    scans: Sequence[Scan], drawing: Drawing, step: int, turn: int, *, progress: float
) -> Acquired:
    """The batch of one step.

    Args:
        scans: What it may draw from. The first slice is of each of them in turn, the others are any
            of its size.
        drawing: How.
        step: Names the chance.
        turn: Number of the step among those that draw from these scans.
        progress: Share of the training that is done.
    """
    generator = stream(drawing.seed, f"slices/{step}")

    def pick(n: int) -> int:
        return int(torch.randint(n, (), generator=generator))

    first = scans[turn % len(scans)]
    lead = first.slices[pick(len(first.slices))]
    alike = [s for scan in scans for s in scan.slices if s.size == lead.size]
    chosen = [lead, *(alike[pick(len(alike))] for _ in range(drawing.count - 1))]
    parts = []
    for one in chosen:
        k = pick(BANK) if one.own is None else one.own
        parts.append(acquired(one, _pattern(one, drawing.patterns, k)))
    return _handed(stacked(parts), drawing, f"loss/{step}", progress)


def fixed_batch(slices: Sequence[Slice], drawing: Drawing) -> Callable[[], Acquired]:
    """A batch to look at and not to learn from: the same one, its chance included, at each call.

    Args:
        slices: Where it comes from; those of the size of the first.
        drawing: How.
    """
    alike = [s for s in slices if s.size == slices[0].size and s.labelled == slices[0].labelled]
    parts = [
        acquired(one, _pattern(one, drawing.patterns, k if one.own is None else one.own))
        for k, one in enumerate(alike)
    ]
    held = _handed(stacked(parts), drawing, "test", 1.0)
    return lambda: dataclasses.replace(held, generator=stream(drawing.seed, "test", drawing.device))


def _pattern(one: Slice, patterns: Patterns, k: int) -> tuple[Mask, Mask] | None:
    if one.sampling is not None:
        return None
    height, width = one.kspace.shape[-2:]
    return patterns.at((height, width), k)


def _handed(made: Acquired, drawing: Drawing, name: str, progress: float) -> Acquired:
    """On the device, with a generator of its own."""

    def moved(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(drawing.device)

    return dataclasses.replace(
        made,
        kspace=made.kspace.to(drawing.device),
        sampling=made.sampling.to(drawing.device),
        coil_maps=made.coil_maps.to(drawing.device),
        sigma=made.level.to(drawing.device),
        edge=moved(made.edge),
        truth=moved(made.truth),
        generator=stream(drawing.seed, name, drawing.device),
        progress=progress,
    )
