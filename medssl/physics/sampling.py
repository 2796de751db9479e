"""Which points of k-space are measured: patterns, their parts, and what they say of a scan."""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medssl.core.errors import UsageError

Mask = NDArray[np.bool_]
Parting = Literal["uniform", "gaussian"]
"""Whether points are drawn with equal chance, or more often near DC."""


def central(shape: tuple[int, int], size: tuple[int, int]) -> tuple[slice, slice]:
    """The block of a size around DC."""
    starts = [n // 2 - min(s, n) // 2 for n, s in zip(shape, size, strict=True)]
    return (
        slice(starts[0], starts[0] + min(size[0], shape[0])),
        slice(starts[1], starts[1] + min(size[1], shape[1])),
    )


def radius(shape: tuple[int, int]) -> NDArray[np.float64]:
    """(H, W) distance from DC, 1 at the middle of an edge."""
    axes = [(np.arange(n) - n // 2) / max(n / 2, 1) for n in shape]
    return np.asarray(np.hypot(axes[0][:, None], axes[1][None, :]))


def poisson_disc(
    shape: tuple[int, int],
    acceleration: float,
    center: tuple[int, int] = (24, 24),
    seed: int = 0,
    *,
    crop_corners: bool = True,
) -> Mask:
    """Points that keep a distance which grows with the distance from DC.

    Candidates come in random order; each that is taken blocks a disc around it. The size of the
    discs is searched until the acceleration is met.

    Args:
        shape: (H, W).
        acceleration: Grid points per measured point, the corners counted; met within 2 %.
        center: Size of the fully sampled block around DC.
        seed: Of the order of the candidates.
        crop_corners: Measure nothing outside the inscribed ellipse.

    Raises:
        UsageError: The acceleration cannot be met.
    """
    rng = np.random.default_rng(seed)
    far = radius(shape)
    allowed = far <= 1 if crop_corners else np.ones(shape, bool)
    block = np.zeros(shape, bool)
    block[central(shape, center)] = True
    wanted = shape[0] * shape[1] / acceleration
    if not block.sum() <= wanted <= allowed.sum() * 1.001:
        raise UsageError(
            f"acceleration {acceleration:g} cannot be met on {shape[0]}x{shape[1]} with a centre "
            f"of {center[0]}x{center[1]}",
            "take another acceleration or a smaller centre",
        )
    order = rng.permutation(np.flatnonzero(allowed & ~block))
    low, high = 0.0, max(shape) / 2.0
    best = block
    for _ in range(24):
        size = (low + high) / 2
        found = _taken(order, size * (0.3 + far), block)
        if abs(found.sum() - wanted) < abs(best.sum() - wanted):
            best = found
        if abs(found.sum() - wanted) < 0.005 * wanted:
            break
        low, high = (size, high) if found.sum() > wanted else (low, size)
    spare = best.sum() - round(wanted)
    if spare > 0:  # discs come in steps: the rest is met by taking points away, or adding some
        best = best.copy()
        best.flat[rng.choice(np.flatnonzero(best & ~block), int(spare), replace=False)] = False
    elif spare < 0:
        best = best.copy()
        best.flat[rng.choice(np.flatnonzero(allowed & ~best), int(-spare), replace=False)] = True
    return best


def _taken(order: NDArray[np.int64], reach: NDArray[np.float64], block: Mask) -> Mask:
    """Candidates in turn, each of which blocks the disc of its reach."""
    height, width = block.shape
    blocked, taken = block.copy(), block.copy()
    discs: dict[int, Mask] = {}
    for index in order.tolist():
        y, x = divmod(index, width)
        if blocked[y, x]:
            continue
        taken[y, x] = True
        key = round(4 * float(reach[y, x]))
        if key not in discs:
            r = int(key / 4)
            ys, xs = np.ogrid[-r : r + 1, -r : r + 1]
            discs[key] = ys * ys + xs * xs <= (key / 4) ** 2
        disc = discs[key]
        r = disc.shape[0] // 2
        top, left = max(y - r, 0), max(x - r, 0)
        bottom, right = min(y + r + 1, height), min(x + r + 1, width)
        blocked[top:bottom, left:right] |= disc[
            top - y + r : bottom - y + r, left - x + r : right - x + r
        ]
    return taken


def random_lines(
    shape: tuple[int, int], acceleration: float, n_central: int = 16, seed: int = 0, axis: int = 0
) -> Mask:
    """Whole lines: all central ones, others the rarer the farther from DC.

    Args:
        shape: (H, W).
        acceleration: Lines of the grid per measured line.
        n_central: Lines around DC.
        seed: Of the choice.
        axis: Along which lines are counted.
    """
    rng = np.random.default_rng(seed)
    n = shape[axis]
    lines = np.zeros(n, bool)
    start = n // 2 - n_central // 2
    lines[start : start + n_central] = True
    far = np.abs(np.arange(n) - n // 2) / (n / 2)
    weight = np.where(lines, 0, 1 / (1 + 4 * far) ** 2)
    more = max(round(n / acceleration) - int(lines.sum()), 0)
    lines[rng.choice(n, more, replace=False, p=weight / weight.sum())] = True
    return np.broadcast_to(np.expand_dims(lines, 1 - axis), shape).copy()


def line_axis(sampling: Mask) -> int | None:
    """The axis along which whole lines are measured or not, None for a pattern of points.

    A pattern that lacks nothing, or the same border everywhere, counts as one of points.
    """
    inside = sampling[np.ix_(sampling.any(1), sampling.any(0))]
    if inside.all():
        lines: list[Mask] = [np.any(sampling, axis=1), np.any(sampling, axis=0)]
        sparse = [axis for axis in (0, 1) if not _one_run(lines[axis])]
        return sparse[0] if len(sparse) == 1 else None
    return None


def _one_run(line: NDArray[np.bool_]) -> bool:
    return int(np.abs(np.diff(line.astype(np.int8), prepend=0, append=0)).sum()) <= 2


def calibration_size(sampling: Mask) -> tuple[int, int]:
    """The largest fully sampled block around DC, as (h, w); (0, 0) where DC was not measured.

    Blocks grow evenly around DC; among them the one with the largest shorter side, then the
    largest, is taken.
    """
    height, width = sampling.shape
    y, x = height // 2, width // 2
    if not sampling[y, x]:
        return 0, 0
    missing = np.cumsum(np.cumsum(np.pad(~sampling, ((1, 0), (1, 0))), 0), 1)

    def full(h: int, w: int) -> bool:
        ys, xs = central((height, width), (h, w))
        lost = missing[ys.stop, xs.stop] - missing[ys.start, xs.stop]
        return bool(lost - missing[ys.stop, xs.start] + missing[ys.start, xs.start] == 0)

    best = (1, 1)
    for h in range(1, height + 1):
        if not full(h, 1):
            break
        low, high = 1, width
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if full(h, middle) else (low, middle - 1)
        if (min(h, low), h * low) > (min(best), best[0] * best[1]):
            best = (h, low)
    return best


def reach(sampling: Mask) -> Mask:
    """(H, W) the part of k-space that the protocol covers: the hull of what was measured.

    What lies outside was never meant to be measured (cropped corners, zero-filled borders).
    """
    from skimage.morphology import convex_hull_image

    hull = convex_hull_image(sampling, offset_coordinates=False)  # type: ignore[no-untyped-call]
    return np.asarray(hull, bool) | sampling


def acceleration_inside(sampling: Mask) -> float:
    """R within the part of k-space that the protocol covers."""
    return float(reach(sampling).sum() / sampling.sum())


def edge(sampling: Mask) -> Mask:
    """(H, W) points that the protocol never measures: they count as measured zeros.

    A net that is free to fill them in invents what no scan of the protocol could contradict.
    """
    return ~reach(sampling)


def split(
    sampling: Tensor,
    fraction: float,
    generator: torch.Generator | None,
    *,
    kind: Parting = "uniform",
    keep: tuple[int, int] = (0, 0),
) -> tuple[Tensor, Tensor]:
    """Part the measured points of each problem at random, as SSDU does.

    Args:
        sampling: (..., 1, H, W), {0, 1}.
        fraction: Share of the measured points that come second.
        generator: The source of chance.
        kind: Drawn with equal chance, or with that of a Gaussian about DC whose standard deviation
            is a quarter of each side.
        keep: Central block that always comes first.

    Returns:
        Two patterns without common points, whose sum is `sampling`.
    """
    height, width = sampling.shape[-2:]
    ys, xs = central((height, width), keep)
    free = sampling > 0
    if min(keep) > 0:
        free = free.clone()
        free[..., ys, xs] = False
    chance = torch.rand(sampling.shape, generator=generator, device=sampling.device)
    score = chance.clamp_min(1e-12).log()
    if kind == "gaussian":
        steps = [
            (torch.arange(n, device=sampling.device) - n // 2) / max((n - 1) / 4, 1)
            for n in (height, width)
        ]
        far = steps[0][:, None].square() + steps[1].square()
        # the largest of log(u) / w are a draw with weights w without putting back
        score = score * (far / 2).clamp_max(60).exp()
    score = score.masked_fill(~free, -torch.inf).flatten(-2)
    wanted = (fraction * sampling.sum((-2, -1))).round().long()
    wanted = torch.minimum(wanted, free.sum((-2, -1)))
    rank = score.argsort(-1, descending=True).argsort(-1)
    aside = (rank < wanted[..., None]).unflatten(-1, (height, width)).to(sampling)
    return sampling - aside, aside


def withhold(
    sampling: Mask, fraction: float, seed: int, keep: tuple[int, int] = (8, 8)
) -> tuple[Mask, Mask]:
    """Part the measured points into those to use and those to keep aside.

    Whole lines where whole lines were measured, because the points of one line say too much of
    each other.

    Args:
        sampling: (H, W).
        fraction: Share to keep aside of what may be kept aside.
        seed: Of the choice.
        keep: Central block that is always used.

    Returns:
        Two patterns without common points, whose union is `sampling`.
    """
    rng = np.random.default_rng(seed)
    protected = np.zeros_like(sampling)
    axis = line_axis(sampling)
    if axis is None:
        protected[central(sampling.shape, keep)] = True
        aside = sampling & ~protected & (rng.random(sampling.shape) < fraction)
    else:
        lines: Mask = np.any(sampling, axis=1 - axis)
        n = len(lines)
        run = calibration_size(sampling)[axis]
        free: Mask = lines.copy()
        free[n // 2 - run // 2 : n // 2 - run // 2 + run] = False
        pool = np.flatnonzero(free)
        chosen = np.zeros(n, bool)
        chosen[rng.choice(pool, max(1, round(fraction * lines.sum())) if len(pool) else 0)] = True
        aside = sampling & np.expand_dims(chosen & free, 1 - axis)
    return sampling & ~aside, aside
