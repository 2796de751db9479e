r"""Block matching: similar windows of an image are stacked and shrunk together.

For each reference window the K most similar windows of a guide are found. With c their spectrum, a
cosine transform within windows and a Haar transform H across them, in units of the noise of each
coefficient, pass 1 keeps what stands out and pass 2 shrinks by the spectrum p of a pilot,

.. math:: a_1 = [\,|c| > \tau\,], \quad a_2 = \frac{p^2}{p^2 + 1}, \quad a(0) = 1,

and the windows go back to their places with weights :math:`1 / \sum a^2 s^2` times a Kaiser window.

The transform within a window is the same whichever stack the window joins, so it is done once per
place; stacks gather and scatter rows of coefficients. Reference windows are worked on in boxes.
"""

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from medssl.nets.sliding_dct import LEAST_COEFFICIENT_SIGMA, LEAST_SIGMA
from medssl.nets.workers import each
from medssl.physics.cosine import cosines

CHUNK = {"cpu": 1 << 21, "cuda": 1 << 26}
"""Distances, or coefficients of stacks, that are worked on at a time."""
BETA = 2.0
"""Of the Kaiser window; blocks count less at their corners."""


@dataclass(frozen=True)
class Windows:
    """Which windows are compared with which.

    Args:
        shape: Voxels along three axes; a picture has 1 along the first.
        block: Window size, voxels; at most the shape.
        step: Distance of reference windows; the last one along an axis touches the border.
        search: Reach of the search to either side.
        size: K, most windows in a stack, a power of two.
    """

    shape: tuple[int, ...]
    block: tuple[int, ...]
    step: tuple[int, ...]
    search: tuple[int, ...]
    size: int

    def __post_init__(self) -> None:
        """Refuse what does not fit."""
        if any(len(value) != 3 for value in (self.shape, self.block, self.step, self.search)):
            raise ValueError(f"{self} is not about three axes")
        if any(not 1 <= b <= n for b, n in zip(self.block, self.shape, strict=True)):
            raise ValueError(f"block {self.block} does not fit an image {self.shape}")
        if self.size & (self.size - 1) or not 1 <= self.size <= self.n_offsets:
            raise ValueError(f"size {self.size} is not a power of two up to {self.n_offsets}")

    @property
    def n_offsets(self) -> int:
        """Places that are compared with each reference window, itself included."""
        return math.prod(2 * r + 1 for r in self.search)

    @property
    def count(self) -> tuple[int, ...]:
        """Reference windows along each axis."""
        return tuple(len(self.starts(axis)) for axis in range(3))

    def starts(self, axis: int) -> list[int]:
        """First voxels of the reference windows along an axis."""
        last = self.shape[axis] - self.block[axis]
        regular = list(range(0, last + 1, self.step[axis]))
        return regular if regular[-1] == last else [*regular, last]

    @functools.cached_property
    def offsets(self) -> Tensor:
        """(n_offsets, 3) places relative to the reference, the nearest first, itself the first."""
        every = itertools.product(*(range(-r, r + 1) for r in self.search))
        near = sorted(every, key=lambda o: (sum(k * k for k in o), o))
        return torch.tensor(near)

    @functools.cached_property
    def rank(self) -> Tensor:
        """(n_offsets,) row of `offsets` of each place in the order of the axes."""
        o, (a, b, c) = self.offsets, self.search
        place = ((o[:, 0] + a) * (2 * b + 1) + o[:, 1] + b) * (2 * c + 1) + o[:, 2] + c
        return place.argsort()

    def boxes(self, most: int) -> Iterator["_Box"]:
        """All reference windows in boxes of at most about `most`, on a regular grid each."""
        runs = []
        for axis in range(3):
            starts, step = self.starts(axis), self.step[axis]
            n = len(starts)
            odd = n > 1 and starts[-1] - starts[-2] != step
            runs.append([(0, n - odd), *([(n - 1, n)] if odd else [])])
        sides, left = [1, 1, 1], float(most)
        for done, axis in enumerate(sorted(range(3), key=lambda k: self.count[k])):
            sides[axis] = min(self.count[axis], max(1, int(left ** (1 / (3 - done)))))
            left /= sides[axis]
        for run in itertools.product(*runs):
            cut = [
                [(k, min(k + side, last)) for k in range(first, last, side)]
                for (first, last), side in zip(run, sides, strict=True)
            ]
            for part in itertools.product(*cut):
                yield _Box(self, tuple(part))


@dataclass(frozen=True)
class _Box:
    """Reference windows first .. last - 1 along each axis, evenly spaced."""

    windows: Windows
    span: tuple[tuple[int, int], ...]

    @property
    def index(self) -> tuple[slice, ...]:
        """Where these windows are among all."""
        return tuple(slice(a, b) for a, b in self.span)

    @property
    def count(self) -> tuple[int, ...]:
        return tuple(b - a for a, b in self.span)

    def starts(self, axis: int) -> list[int]:
        """First voxels of these windows."""
        first, last = self.span[axis]
        return self.windows.starts(axis)[first:last]

    def places(self, axis: int) -> tuple[int, int]:
        """Least and largest first voxel of a window that may join, borders of the image kept."""
        w, starts = self.windows, self.starts(axis)
        last = w.shape[axis] - w.block[axis]
        return max(starts[0] - w.search[axis], 0), min(starts[-1] + w.search[axis], last)

    @property
    def reach(self) -> tuple[slice, ...]:
        """Voxels under all windows that may join."""
        low_high = [self.places(axis) for axis in range(3)]
        return tuple(
            slice(a, b + n) for (a, b), n in zip(low_high, self.windows.block, strict=True)
        )


@dataclass(frozen=True)
class Matches:
    """The stacks of an image.

    Args:
        windows: What was compared.
        order: (*count, K) int16, rows of `windows.offsets`, the most similar first.
        size: (*count) uint8, binary logarithm of how many of them are similar enough.
    """

    windows: Windows
    order: Tensor
    size: Tensor


def match(guide: Tensor, windows: Windows, limit: float = math.inf) -> Matches:
    """Find the most similar windows around each reference window.

    Args:
        guide: (*windows.shape) image of unit noise in which windows are compared.
        windows: Which windows.
        limit: Largest mean squared difference of a window that may join.

    Returns:
        The reference itself first; ties go to the nearer place.
    """
    device, n = guide.device, windows.n_offsets
    order = torch.empty((*windows.count, windows.size), dtype=torch.int16, device=device)
    size = torch.empty(windows.count, dtype=torch.uint8, device=device)
    bits = (n - 1).bit_length()
    voxels = math.prod(windows.block)

    def best(box: _Box) -> tuple[_Box, Tensor, Tensor]:
        distance = _distances(guide, box)
        keys = distance.view(torch.int32)
        keys &= -(1 << bits)
        keys |= torch.arange(n, dtype=torch.int32, device=device)[:, None]
        found = keys.T.contiguous().topk(windows.size, largest=False, sorted=True).values
        place = found & ((1 << bits) - 1)
        near = (found - place).view(torch.float32) <= limit * voxels
        near &= (found - place).view(torch.float32).isfinite()
        return box, place, near.sum(1)

    def keep(piece: tuple[_Box, Tensor, Tensor]) -> None:
        box, place, count = piece
        order[box.index] = place.view(*box.count, -1).to(torch.int16)
        log = count.clamp_min(1).float().log2().floor()
        size[box.index] = log.view(box.count).to(torch.uint8)

    each(best, windows.boxes(max(1, CHUNK[_kind(device)] // n)), keep, device)
    return Matches(windows, order, size)


def filtered(
    noisy: Tensor,
    matches: Matches,
    *,
    pilot: Tensor | None = None,
    hard: float = 2.7,
    sigma: Tensor | None = None,
    coefficient_sigma: Tensor | None = None,
) -> Tensor:
    """Shrink the stacks and put them back; not differentiable.

    Args:
        noisy: (*windows.shape).
        matches: From `match`.
        pilot: Estimate of the clean image for the Wiener gain; None thresholds instead.
        hard: tau in standard deviations.
        sigma: Noise standard deviation, image units, read at the middle of each reference window;
            a number or (*windows.shape); None means 1.
        coefficient_sigma: (*block) noise of each coefficient relative to `sigma`; None means white.

    Returns:
        (*windows.shape), the filtered image.
    """
    windows = matches.windows
    stacks = _Stacks(windows, noisy, coefficient_sigma)
    local = None if sigma is None or sigma.numel() == 1 else sigma
    level = 1.0 if sigma is None or local is not None else max(float(sigma), LEAST_SIGMA)
    values, weights = torch.zeros_like(noisy), torch.zeros_like(noisy)

    def work(box: _Box) -> tuple[_Box, Tensor, Tensor]:
        scale = level if local is None else _at_centre(local, box).clamp_min(LEAST_SIGMA)
        return box, *stacks.shrunk(box, noisy, pilot, matches, hard, scale)

    def add(piece: tuple[_Box, Tensor, Tensor]) -> None:
        box, value, weight = piece
        values[box.reach] += value
        weights[box.reach] += weight

    rows = windows.size * math.prod(windows.block)
    each(work, windows.boxes(max(1, CHUNK[_kind(noisy.device)] // rows)), add, noisy.device)
    return values / weights


class _Stacks:
    """The transforms of one image."""

    def __init__(self, windows: Windows, like: Tensor, coefficient_sigma: Tensor | None) -> None:
        self.windows = windows
        b0, b1, b2 = windows.block
        basis = torch.kron(torch.kron(cosines(b0), cosines(b1)), cosines(b2))
        noise = torch.ones(len(basis), dtype=torch.float64)
        if coefficient_sigma is not None:
            noise = coefficient_sigma.double().cpu().reshape(-1)
            noise = noise.clamp_min(LEAST_COEFFICIENT_SIGMA)
        self.power = noise.square().to(like)
        self.forward = (basis / noise[:, None]).T.contiguous().to(like)
        kaiser = functools.reduce(
            torch.kron, [torch.from_numpy(np.kaiser(b, BETA)) for b in windows.block]
        )
        self.kaiser = kaiser.to(like)
        self.backward = ((basis * noise[:, None]) * kaiser).T.contiguous().to(like)
        self.haar = [_haar(1 << k).to(like) for k in range(windows.size.bit_length())]

    def table(self, image: Tensor, box: _Box) -> Tensor:
        """(places, coefficients) of all windows of a box."""
        part = image[box.reach]
        for axis, b in enumerate(self.windows.block):
            part = part.unfold(axis, b, 1)
        return part.reshape(-1, len(self.forward)) @ self.forward

    def shrunk(
        self,
        box: _Box,
        noisy: Tensor,
        pilot: Tensor | None,
        matches: Matches,
        hard: float,
        scale: Tensor | float,
    ) -> tuple[Tensor, Tensor]:
        """Sums over the reach of a box of weighted windows and of their weights."""
        table = self.table(noisy, box)
        guide = None if pilot is None else self.table(pilot, box)
        total, mass = torch.zeros_like(table), table.new_zeros(len(table))
        places = self.places(box, matches)
        sizes = matches.size[box.index].reshape(-1)
        for log in sizes.unique().tolist():
            chosen = sizes == log
            rows = places[chosen, : 1 << log]
            s = scale if isinstance(scale, float) else scale[chosen][:, None, None]
            haar, flat = self.haar[log], rows.reshape(-1)
            c = haar @ table.index_select(0, flat).view(*rows.shape, -1)
            c /= s
            if guide is None:
                gain = (c.abs() > hard).to(c.dtype)
            else:
                gain = haar @ guide.index_select(0, flat).view(*rows.shape, -1)
                gain /= s
                gain.square_()
                gain /= gain + 1
            gain[:, 0, 0] = 1
            c *= gain
            weight = gain.square_().sum(1) @ self.power
            if not isinstance(scale, float):
                weight *= scale[chosen].square()
            weight = weight.reciprocal_()
            back = haar.T @ c
            back *= weight[:, None, None] * s
            _add_rows(total, flat, back.view(len(flat), -1))
            _add_rows(mass, flat, weight[:, None].expand(rows.shape).reshape(-1))
        return self.spread(box, total, mass)

    def places(self, box: _Box, matches: Matches) -> Tensor:
        """(references, K) rows of the table of a box."""
        device = matches.order.device
        extents, positions = [], []
        for axis in range(3):
            low, high = box.places(axis)
            extents.append(high - low + 1)
            positions.append(torch.tensor(box.starts(axis), device=device) - low)
        strides = torch.tensor([extents[1] * extents[2], extents[2], 1])
        own = (
            positions[0][:, None, None] * int(strides[0])
            + positions[1][:, None] * int(strides[1])
            + positions[2]
        )
        shift = (self.windows.offsets * strides).sum(1).to(device)
        order = matches.order[box.index].reshape(-1, self.windows.size).long()
        return own.reshape(-1, 1) + shift[order]

    def spread(self, box: _Box, total: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients and weights of places to sums over voxels."""
        block = self.windows.block
        reach = [s.stop - s.start for s in box.reach]
        grid = [n - b + 1 for n, b in zip(reach, block, strict=True)]
        planes = (self.backward @ total.T).view(*block, *grid)
        value, weight = total.new_zeros(reach), total.new_zeros(reach)
        kaiser, mass = self.kaiser.view(block), mass.view(grid)
        for i, j, k in itertools.product(*map(range, block)):
            part = (slice(i, i + grid[0]), slice(j, j + grid[1]), slice(k, k + grid[2]))
            value[part] += planes[i, j, k]
            weight[part].add_(mass, alpha=float(kaiser[i, j, k]))
        return value, weight


def _distances(guide: Tensor, box: _Box) -> Tensor:
    """(offsets, references) sums of squared differences; infinite beyond the border."""
    windows = box.windows
    starts = [box.starts(axis) for axis in range(3)]
    core_span = [(s[0], s[-1] + b) for s, b in zip(starts, windows.block, strict=True)]
    core = guide[tuple(slice(a, b) for a, b in core_span)]
    room = guide[
        tuple(
            slice(max(a - r, 0), b + r) for (a, b), r in zip(core_span, windows.search, strict=True)
        )
    ]
    lack = [
        (max(r - a, 0), max(b + r - n, 0))
        for (a, b), r, n in zip(core_span, windows.search, windows.shape, strict=True)
    ]
    if any(map(any, lack)):
        room = pad(room[None], [v for pair in reversed(lack) for v in pair])[0]
    # All offsets along the last axis at once: fewer and longer operations.
    result = core.new_empty((len(windows.offsets), *box.count))
    run = 2 * windows.search[2] + 1
    rank = windows.rank.to(guide.device)
    for k, (i, j) in enumerate(itertools.product(*(range(2 * r + 1) for r in windows.search[:2]))):
        rows = room[i : i + core.shape[0], j : j + core.shape[1]]
        square = rows.unfold(2, core.shape[2], 1).permute(2, 0, 1, 3) - core
        square *= square
        for axis in range(3):
            square = _block_sums(square, axis, windows, len(starts[axis]))
        result.index_copy_(0, rank[k * run : (k + 1) * run], square)
    table = windows.offsets.to(guide.device)
    for axis in range(3):
        place = torch.tensor(starts[axis], device=guide.device) + table[:, axis, None]
        beyond = (place < 0) | (place > windows.shape[axis] - windows.block[axis])
        if bool(beyond.any()):
            shape = [len(result), 1, 1, 1]
            shape[axis + 1] = len(starts[axis])
            result.masked_fill_(beyond.view(shape), math.inf)
    return result.view(len(result), -1)


def _block_sums(x: Tensor, axis: int, windows: Windows, count: int) -> Tensor:
    """Sums over windows along an axis of (offsets, *spatial), at the reference windows only."""
    block, step = windows.block[axis], windows.step[axis]
    lead = (slice(None),) * (axis + 1)
    length = (count - 1) * step + 1
    if block == 1:
        return x[(*lead, slice(0, length, step))]
    total = x[(*lead, slice(0, length, step))] + x[(*lead, slice(1, 1 + length, step))]
    for k in range(2, block):
        total += x[(*lead, slice(k, k + length, step))]
    return total


def _at_centre(sigma: Tensor, box: _Box) -> Tensor:
    """(references) values of a map in the middle of each window."""
    for axis, b in enumerate(box.windows.block):
        middle = torch.tensor(box.starts(axis), device=sigma.device) + b // 2
        sigma = sigma.index_select(axis, middle)
    return sigma.reshape(-1)


def _add_rows(total: Tensor, rows: Tensor, values: Tensor) -> None:
    """Add values to rows of a table, in one order whatever the device.

    `index_add_` is in order on a CPU only; `index_put_` sorts on CUDA.
    """
    if total.device.type == "cpu":
        total.index_add_(0, rows, values)
    else:
        total.index_put_((rows,), values, accumulate=True)


@functools.cache
def _haar(n: int) -> Tensor:
    """(n, n) float64 orthonormal Haar basis, the mean first."""
    if n == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    half = _haar(n // 2)
    mean = torch.kron(half, torch.tensor([[1.0, 1.0]], dtype=torch.float64))
    detail = torch.kron(
        torch.eye(n // 2, dtype=torch.float64), torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    )
    return torch.cat([mean, detail]) / math.sqrt(2)


def _kind(device: torch.device) -> str:
    return device.type if device.type in CHUNK else "cuda"
