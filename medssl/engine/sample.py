"""A few blocks that stand for a whole scan, so that looking closer costs the same at any size."""

import itertools
import math

import numpy as np
from numpy.typing import NDArray

from medssl.core.image import Image
from medssl.method import Restorer

SIGNAL = 0.3
"""Share of a block above the floor from which it shows the patient."""
THINNED = 4
"""Voxels per axis of which one is looked at to tell patient from air."""

Part = tuple[slice, ...]
"""A box of voxels (*spatial)."""


def middle_channel(image: Image) -> int:
    """The volume of a series that is looked at; the first of anything else."""
    return image.data.shape[0] // 2 if image.channels == "time" else 0


def volumes_looked_at(method: Restorer, image: Image) -> slice:
    """All volumes for a joint restorer, else the middle one."""
    middle = middle_channel(image)
    return slice(0, image.data.shape[0]) if method.joint else slice(middle, middle + 1)


def blocks(image: Image, channel: int, *, voxels: int, size: int, floor: float) -> list[Part]:
    """Boxes of equal size, spread evenly over the part of a scan that shows something.

    Args:
        image: The scan.
        channel: Which of its channels.
        voxels: How many to look at in all; an image of no more is one box.
        size: Voxels of one box.
        floor: Image units; what is not brighter is air.

    Returns:
        At least one box.
    """
    if math.prod(image.shape) <= voxels:
        return [tuple(slice(0, n) for n in image.shape)]
    sides = _sides(image.shape, size)
    starts = [_starts(n, side) for n, side in zip(image.shape, sides, strict=True)]
    every = [
        tuple(slice(a, a + side) for a, side in zip(corner, sides, strict=True))
        for corner in itertools.product(*starts)
    ]
    share = np.array([_share(image, channel, part, floor) for part in every])
    good = np.flatnonzero(share >= min(SIGNAL, share.max()))
    count = min(max(voxels // math.prod(sides), 1), len(good))
    picks = ((np.arange(count) + 0.5) * len(good) / count).astype(int)
    return [every[k] for k in good[picks]]


def _sides(shape: tuple[int, ...], size: int) -> tuple[int, ...]:
    """Sides as equal as the image allows; what a thin axis leaves goes to the others."""
    sides = [1] * len(shape)
    left = float(size)
    for done, axis in enumerate(sorted(range(len(shape)), key=lambda k: shape[k])):
        sides[axis] = min(shape[axis], max(1, round(left ** (1 / (len(shape) - done)))))
        left /= sides[axis]
    return tuple(sides)


def _starts(n: int, side: int) -> NDArray[np.int64]:
    """First voxels of boxes that leave no gap, the last one flush with the border."""
    count = -(-n // side)
    return np.linspace(0, n - side, count).round().astype(np.int64)


def _share(image: Image, channel: int, part: Part, floor: float) -> float:
    """How much of a box is measured and brighter than the floor."""
    thin = tuple(slice(s.start, s.stop, THINNED) for s in part)
    seen = image.data[channel][thin] > floor  # NaN is not
    if image.valid is not None:
        seen &= image.valid[channel][thin]
    return float(seen.mean())
