r"""Where the noise of a magnitude is strong: a map of its standard deviation from one scan.

Parallel imaging makes noise strongest where coils tell voxels apart worst. In calm cells the mean
of :math:`\ln |h|` of the finest diagonal detail h is that of the local :math:`\ln \sigma` up to a
constant; it is smoothed over some 20 voxels and drawn towards the whole scan's mean L where few
cells tell,

.. math:: \ln \sigma(x) = L + \frac{n(x)}{n(x) + v / \tau^2} (L(x) - L), \qquad
          v = \mathrm{Var} \ln |N| = \pi^2 / 8,

:math:`\tau^2` the variance between windows of 16 voxels beyond their sampling error. Where that is
not clearly more than nothing there is no map.
"""

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from medssl.core.shapes import cell_sums

GRID = 8
"""Voxels between the nodes of the map."""
VARIANCE = math.pi**2 / 8
"""Of the logarithm of |N|, N standard normal."""
LEAST_SPREAD = 0.1
"""Relative variation of the noise below which one number serves as well."""
CLEARLY = 4.0
"""Standard deviations by which the variation must exceed its sampling error."""
LEAST_CELLS = 20.0
"""Independent calm cells that a window needs to be heard."""
LEAST_WINDOWS = 8
KERNEL = (0.0625, 0.25, 0.375, 0.25, 0.0625)
"""Of the smoothing between nodes, about 20 voxels wide."""


Slab = tuple[Tensor, Tensor]
"""Finest diagonal detail (cells along each axis), and which of these cells are calm, bool."""


def varies(parts: Iterable[Slab], share: float) -> bool:
    """Whether the strength of noise varies over parts of a scan beyond its sampling error.

    Args:
        parts: Of the scan, anywhere.
        share: Independent cells over cells, which overlap.
    """
    return _spread([_nodes(*part) for part in parts], share) is not None


def relative_map(
    slabs: Sequence[Slab] | Iterator[Slab], shape: tuple[int, ...], share: float
) -> Tensor | None:
    """Local strength of noise relative to its root mean square.

    Args:
        slabs: The scan cut along its first axis, all but the last a multiple of `GRID` long.
        shape: (*spatial) of the map.
        share: Independent cells over cells, which overlap.

    Returns:
        (*spatial), or None where the strength does not vary beyond its sampling error.
    """
    pairs, masks = [], []
    for detail, calm in slabs:
        pairs.append(_nodes(detail, calm))
        masks.append(calm & (detail != 0))
    total, number = (torch.cat(x) for x in zip(*pairs, strict=True))
    found = _spread([(total, number)], share)
    if found is None:
        return None
    mean, between = found
    total, number = _smoothed(total), _smoothed(number)
    reach = math.prod(1 / sum(k * k for k in KERNEL) for side in total.shape if side > 1)
    trust = share * reach * number
    local = (total / number.clamp_min(1e-6) - mean) * trust / (trust + VARIANCE / between)
    fine = tuple(side * GRID if side > 1 else 1 for side in local.shape)
    smooth = interpolate(local[None, None], size=fine, mode="trilinear", align_corners=False)[0, 0]
    cells = (1,) * (3 - len(shape))
    strength = _fitting(smooth, (*shape, *cells)).reshape(shape).exp()
    used = torch.zeros(shape, dtype=torch.bool)
    calm = torch.cat(masks)
    used[tuple(slice(0, side) for side in calm.shape)] = calm
    return strength / strength[used].square().mean().sqrt()


def _nodes(detail: Tensor, calm: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of ln |h| and numbers of calm cells around the nodes, three axes each."""
    calm = calm & (detail != 0)
    log = torch.where(calm, detail.abs().clamp_min(1e-30).log(), 0.0)
    shape = (*detail.shape, *(1 for _ in range(3 - detail.ndim)))
    return cell_sums(log.reshape(shape), GRID), cell_sums(calm.float().reshape(shape), GRID)


def _spread(nodes: list[tuple[Tensor, Tensor]], share: float) -> tuple[float, float] | None:
    """Mean of ln |h| and its variance between windows; None where that is not clear."""
    windows, counted = (
        torch.cat([cell_sums(x, 2).flatten() for x in kind]) for kind in zip(*nodes, strict=True)
    )
    heard = share * counted >= LEAST_CELLS
    if int(heard.sum()) < LEAST_WINDOWS:
        return None
    n = share * counted[heard].double()
    level = (windows[heard] / counted[heard]).double()
    mean = float((n * level).sum() / n.sum())
    excess = float((n * (level - mean).square()).sum()) / VARIANCE - (len(n) - 1)
    if excess < CLEARLY * math.sqrt(2 * (len(n) - 1)):
        return None
    between = VARIANCE * excess / float(n.sum() - n.square().sum() / n.sum())
    return None if between < LEAST_SPREAD**2 else (mean, between)


def _smoothed(x: Tensor) -> Tensor:
    """Means of neighbouring nodes; nothing lies beyond the border."""
    for axis in range(x.ndim):
        n = x.shape[axis]
        if n == 1:
            continue
        result = torch.zeros_like(x)
        for k, weight in zip(range(-2, 3), KERNEL, strict=True):
            first, last = max(0, -k), min(n, n - k)
            if last > first:
                part = x.narrow(axis, first + k, last - first)
                result.narrow(axis, first, last - first).add_(weight * part)
        x = result
    return x


def _fitting(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Cut or extended by its border to a shape."""
    for axis, n in enumerate(shape):
        x = x.index_select(axis, torch.arange(n).clamp_max(x.shape[axis] - 1))
    return x
