r"""What of a volume is patient, and the numbers it is normalised with.

In CT everything above -500 HU is patient: half-way between air and water. Elsewhere the threshold
t between a dark and a bright part is the one of least cross-entropy, a fixed point of

.. math:: t = \frac{\mu_1 - \mu_0}{\ln \mu_1 - \ln \mu_0}

for the means of the two parts above the darkest value. Of several fixed points it is the lowest,
so dark tissue stays patient. Where the darkest value is far more frequent than the next (zeros
around a brain, or around the field of view), it is set aside, and t parts the rest only if that
holds air too.

Reference: Li, Tam. An iterative algorithm for minimum cross entropy thresholding. Pattern
Recognition Letters 1998.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medssl.core.boxes import box

AIR = -500.0
"""HU above which something is patient."""
OUTER, MIDDLE = (0.5, 99.5), 50.0
"""Percentiles of the foreground that are kept; beyond the outer ones values are clipped."""
SPIKE = 10
"""The darkest value is the background if it is that much more frequent than the next."""
AIRY = 8.0
"""Bright mean over dark mean from which the dark part is air: noise of a scan whose tissue is 10
standard deviations bright has a mean of 1.25 of them. Tissues differ less."""
DARKEST = 0.01
"""Share of the voxels that the search for the threshold starts from."""
STEPS = 50
"""A threshold that has not settled by then moves between two neighbouring levels."""

_PIECE = 2**20
"""Voxels that are counted at once."""


@dataclass(frozen=True, kw_only=True)
class Foreground:
    """Where the patient is, and what values there are."""

    level: float
    """The value above which a voxel is patient."""
    share: float
    """Of all voxels."""
    box: tuple[tuple[int, int], ...]
    """First voxel and the one after the last, of each axis; the whole volume where none is in."""
    percentiles: tuple[float, float, float]
    """0.5, 50 and 99.5."""
    mean: float
    sd: float
    """Of the values, clipped to the outer percentiles."""


def measure(
    image: NDArray[Any], modality: str, valid: NDArray[np.bool_] | None = None
) -> Foreground:
    """The numbers of a volume.

    Args:
        image: (C, X, Y, Z), finite where valid; of CT in HU. The mean of colours says where the
            patient is.
        modality: DICOM's word. `PICTURE` is foreground everywhere.
        valid: (X, Y, Z), False at padding; None means everywhere.
    """
    grey = image[0] if len(image) == 1 else image.mean(0)
    levels, counts = distribution(grey if valid is None else grey[valid])
    level = background(levels, counts, modality)
    inside = grey > level
    if valid is not None:
        inside &= valid
    if len(image) == 1:  # no voxel need be looked at again
        levels, counts = levels[levels > level], counts[levels > level]
    else:
        levels, counts = distribution(image[:, inside])
    share = float(np.count_nonzero(inside) / inside.size)
    if not share:
        inside = np.ones(grey.shape, np.bool_) if valid is None else valid
        levels, counts = distribution(image[:, inside])
    low, middle, high = percentiles(levels, counts, (OUTER[0], MIDDLE, OUTER[1]))
    clipped, n = np.clip(levels, low, high), counts.sum()
    mean = float((clipped * counts).sum() / n)
    return Foreground(
        level=level,
        share=share,
        box=box_of(inside),
        percentiles=(low, middle, high),
        mean=mean,
        sd=math.sqrt(float(((clipped - mean) ** 2 * counts).sum() / n)),
    )


def background(levels: NDArray[np.float64], counts: NDArray[np.int64], modality: str) -> float:
    """The value above which a voxel is patient, from the distribution of all."""
    if modality == "CT":
        return AIR
    return -math.inf if modality == "PICTURE" else threshold(levels, counts)


def threshold(levels: NDArray[np.float64], counts: NDArray[np.int64]) -> float:
    """The value above which a voxel is bright, of those of a distribution."""
    if len(levels) < 3:
        return float(levels[0])
    height = levels - levels[0]
    spike = counts[0] >= SPIKE * counts[1]
    if spike:
        levels, counts, height = levels[1:], counts[1:], height[1:]
    n, total = np.cumsum(counts), np.cumsum(counts * height)
    last = len(levels) - 2  # the brightest level is never dark
    cut = min(max(int(np.searchsorted(n, DARKEST * n[-1])), 1), last)
    for _ in range(STEPS):
        dark = total[cut] / n[cut]
        bright = (total[-1] - total[cut]) / (n[-1] - n[cut])
        place = (bright - dark) / math.log(bright / dark) if dark > 0 else 0.0
        after = min(max(int(np.searchsorted(height, place, "right")) - 1, 0), last)
        if after == cut:
            break
        cut = after
    if spike and bright < AIRY * dark:
        return float(levels[0] - height[0])
    return float(levels[cut])


def distribution(values: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The levels that occur, ascending, and how often each does; exact."""
    flat = values.reshape(-1)
    if flat.dtype.kind in "iu" and flat.dtype.itemsize <= 2:  # counted, not sorted: far faster
        lowest = int(flat.min())
        counts = np.zeros(int(flat.max()) - lowest + 1, np.int64)
        for start in range(0, flat.size, _PIECE):
            piece = flat[start : start + _PIECE].astype(np.int64) - lowest
            counts += np.bincount(piece, minlength=counts.size)
        levels = np.flatnonzero(counts)
        return (levels + lowest).astype(np.float64), counts[levels]
    found, counts = np.unique(flat, return_counts=True)
    return found.astype(np.float64), counts


def percentiles(
    levels: NDArray[np.float64], counts: NDArray[np.int64], shares: tuple[float, ...]
) -> tuple[float, ...]:
    """Of a distribution, the lowest level that so many percent of the values do not exceed."""
    n = np.cumsum(counts)
    places = np.searchsorted(n, np.asarray(shares) / 100 * n[-1], "left")
    return tuple(float(levels[p]) for p in places)


def box_of(inside: NDArray[np.bool_]) -> tuple[tuple[int, int], ...]:
    """First voxel and the one after the last along each axis, of what is True; not empty."""
    found = box(inside)
    assert found is not None
    return tuple((part.start, part.stop) for part in found)
