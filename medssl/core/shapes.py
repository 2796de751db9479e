"""The legend of axes, and tiles of a grid.

B batch, C channel (value, colour, or volume of a series), then the spatial axes in the order of the
image: i, j, k, which for DICOM and pictures are column, row, slice.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Tile:
    """A part of a grid that is worked on at once."""

    core: tuple[slice, ...]
    """What this tile is responsible for."""
    read: tuple[slice, ...]
    """The core with its halo, cut at the borders of the grid."""

    @property
    def inner(self) -> tuple[slice, ...]:
        """The core, counted from the start of `read`."""
        return tuple(
            slice(c.start - r.start, c.stop - r.start)
            for c, r in zip(self.core, self.read, strict=True)
        )


def tiles(shape: tuple[int, ...], size: tuple[int, ...], halo: tuple[int, ...]) -> Iterator[Tile]:
    """Cut a grid into tiles of at most `size`, each with a halo; the last axis runs slowest."""
    starts = [range(0, n, s) for n, s in zip(shape, size, strict=True)]
    for corner in itertools.product(*reversed(starts)):
        core, read = [], []
        for a, n, s, h in zip(reversed(corner), shape, size, halo, strict=True):
            core.append(slice(a, min(a + s, n)))
            read.append(slice(max(a - h, 0), min(a + s + h, n)))
        yield Tile(tuple(core), tuple(read))


def tile_size(
    shape: tuple[int, ...], halo: tuple[int, ...], most: int, multiple: int = 8
) -> tuple[int, ...]:
    """The tile that wastes least on halos while its voxels, halo included, stay below `most`.

    Sizes are multiples of `multiple`, so that windows on a coarser grid lie alike in every tile.
    Returns the smallest possible tile when nothing stays below `most`.
    """

    def sizes(n: int) -> list[int]:
        parts = range(1, n // multiple + 2)
        return sorted({min(math.ceil(n / k / multiple) * multiple, n) for k in parts})

    def cost(size: tuple[int, ...]) -> tuple[float, int]:
        """Work for each voxel of the grid; among equals the fewest tiles."""
        work, count = 1.0, 1
        for n, s, h in zip(shape, size, halo, strict=True):
            work *= min(s + 2 * h, n) / s
            count *= math.ceil(n / s)
        return work, count

    def held(size: tuple[int, ...]) -> int:
        voxels = 1
        for n, s, h in zip(shape, size, halo, strict=True):
            voxels *= min(s + 2 * h, n)
        return voxels

    candidates = list(itertools.product(*(sizes(n) for n in shape)))
    fitting = [size for size in candidates if held(size) <= most]
    return min(fitting, key=cost) if fitting else min(candidates, key=held)


def cell_sums(values: Tensor, size: int, first: int = 0) -> Tensor:
    """Sums over cells of so many voxels along each axis; a rest at the far end makes its own.

    Args:
        values: (..., *spatial).
        size: Voxels along a cell.
        first: Axis from which on cells are made.
    """
    for axis in range(first, values.ndim):
        n = values.shape[axis]
        if n > 1:
            shape = [*values.shape[:axis], -(-n // size) * size, *values.shape[axis + 1 :]]
            wide = values.new_zeros(shape)
            wide.narrow(axis, 0, n).copy_(values)
            values = wide.unflatten(axis, (-1, size)).sum(axis + 1)
    return values
