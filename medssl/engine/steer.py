"""What steers a filter from outside: maps of its widths, regions where it is to do more or less.

Maps are kept on the grid they were made on; tiles see their part of them on voxels.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter1d
from torch import Tensor

from medssl.core.errors import InputError, UsageError
from medssl.core.shapes import Tile
from medssl.method import Mapped

LARGEST = 10.0
"""Strength in a region; a filter that is so much wider is slow and leaves nothing."""
MOST_REGIONS = 255
"""That one byte can tell apart."""
CHANNELS = 3
"""Widths of each stage: along x and y in voxels, in intensity."""
BOX = re.compile(r"\d{1,9}:\d{1,9}(,\d{1,9}:\d{1,9}){1,2}")
"""Of voxels."""

Part = tuple[slice, ...]


@dataclass(frozen=True, eq=False)
class SigmaMaps:
    """Widths of the filters of a `Mapped` method over one image.

    Args:
        values: (n_stages, 3, *grid) float32 in the domain of the method. An axis of the grid is as
            long as that of the image, or as its patches, or 1.
        shape: Of the image, (*spatial).
        patch: Side of a patch, voxels.
    """

    values: NDArray[np.float32]
    shape: tuple[int, ...]
    patch: int

    @classmethod
    def given(
        cls, values: NDArray[np.float64], method: Mapped, shape: tuple[int, ...], unit: float
    ) -> "SigmaMaps":
        """Maps from outside, whose widths in intensity are in image units.

        Args:
            values: (n_stages, 3, *grid).
            method: That they are for.
            shape: Of the image.
            unit: Image units in one unit of the domain of the method.

        Raises:
            InputError: They do not fit the image or the method.
        """
        grid, patch = values.shape[2:], method.map_patch
        lawful = [{1, n, -(-n // patch) if axis < 2 else n} for axis, n in enumerate(shape)]
        fits = len(grid) == len(shape) and all(
            g in one for g, one in zip(grid, lawful, strict=True)
        )
        if values.shape[:2] != (method.map_stages, CHANNELS) or not fits:
            wanted = " x ".join("|".join(map(str, sorted(one))) for one in lawful)
            raise InputError(
                f"the sigma maps are {values.shape}, the image {shape} takes "
                f"({method.map_stages}, {CHANNELS}) on {wanted}",
                "use the maps of this very image",
            )
        return cls((values / _units(values, unit)).astype(np.float32), shape, patch)

    def outward(self, unit: float) -> NDArray[np.float64]:
        """(n_stages, 3, *grid), widths in intensity in image units; `given` undoes it exactly."""
        wide = self.values.astype(np.float64)
        return wide * _units(wide, unit)

    def within(self, part: Part) -> Tensor:
        """(1, n_stages, 3, *part) of a part of the image; axes of size 1 stay."""
        values = self.values
        for axis, (s, n) in enumerate(zip(part, self.shape, strict=True), 2):
            grid = values.shape[axis]
            if grid == 1:
                continue
            at = np.arange(s.start, s.stop)
            values = values.take(at if grid == n else at // self.patch, axis=axis)
        return torch.from_numpy(np.ascontiguousarray(values))[None]


class Gathered:
    """The maps of an image, put together from those of its tiles.

    Args:
        method: That predicts them.
        shape: Of the image.
        most: Bytes; larger ones are not kept.
    """

    def __init__(self, method: Mapped, shape: tuple[int, ...], most: int) -> None:
        self._patch, self._shared = method.map_patch, method.map_shared
        self._shape = shape
        self._most = most
        self._values: NDArray[np.float32] | None = None
        self.bytes = 0
        """That the maps take, or would take."""

    def add(self, tile: Tile, maps: Tensor) -> None:
        """Keep the maps (1, n_stages, 3, *grid) of what a tile read, where they are its own."""
        place, source = [slice(None)] * 2, [slice(None)] * 2
        grid = []
        for k, (n, core, read) in enumerate(zip(self._shape, tile.core, tile.read, strict=True)):
            length, held = maps.shape[3 + k], read.stop - read.start
            if length == held and not self._shared:
                grid.append(n)
                place.append(core)
                source.append(tile.inner[k])
            else:  # the same for all, or patches, which are made of whole slices
                grid.append(length)
                place.append(slice(None))
                source.append(slice(None))
        whole = (*maps.shape[1:3], *grid)
        self.bytes = 4 * math.prod(whole)
        if self.bytes > self._most:
            return
        if self._values is None:
            self._values = np.empty(whole, np.float32)
        self._values[tuple(place)] = maps[0].cpu().numpy()[tuple(source)]

    @property
    def maps(self) -> SigmaMaps | None:
        """What was kept."""
        return None if self._values is None else SigmaMaps(self._values, self._shape, self._patch)


@dataclass(frozen=True, eq=False)
class Regions:
    """Regions of interest and the strength of the filter in them.

    Args:
        labels: (*spatial) uint8, 0 outside all regions.
        strengths: By label; the first is 1. 0 keeps a voxel, 1 changes nothing.
    """

    labels: NDArray[np.uint8]
    strengths: tuple[float, ...]

    @classmethod
    def of(
        cls,
        masks: Sequence[NDArray[np.bool_] | Part],
        strengths: Sequence[float],
        shape: tuple[int, ...],
    ) -> "Regions":
        """Regions one after the other; where they overlap, the later one wins.

        Args:
            masks: (*spatial) True inside, or boxes of voxels.
            strengths: One for each.
            shape: Of the image.
        """
        labels = np.zeros(shape, np.uint8)
        for k, mask in enumerate(masks, 1):
            labels[mask] = k
        return cls(labels, (1.0, *strengths))

    @property
    def change(self) -> bool:
        """Whether the filter is another one somewhere; to keep voxels it need not be."""
        return any(f not in (0.0, 1.0) for f in self.strengths)

    def near(self, tile: Tile) -> bool:
        """Whether the filter is another one in what a tile reads."""
        return self.change and bool((self.strength(tile.read) != 1).any())

    def strength(self, part: Part) -> NDArray[np.float32]:
        """(*part) strength of the filter, 1 where voxels are kept."""
        by_label = np.array([f or 1.0 for f in self.strengths], np.float32)
        return by_label[self.labels[part]]

    def allowed(self, mask: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
        """(*spatial) voxels that may change: those of the mask that no region keeps."""
        if 0.0 not in self.strengths:
            return mask
        free = np.array([f != 0 for f in self.strengths])[self.labels]
        return free if mask is None else mask & free

    def touched(self, tile: Tile, reach: Sequence[int]) -> NDArray[np.bool_]:
        """(*core) what a changed filter may change: its regions, and as far as it reaches."""
        wide = self.strength(tile.read) != 1
        if wide.any():
            for axis, r in enumerate(reach):
                wide = maximum_filter1d(wide, 2 * r + 1, axis, mode="constant")
        return wide[tile.inner]

    def as_list(self) -> list[dict[str, Any]]:
        """Plain values for the sidecar."""
        counts = np.bincount(self.labels.reshape(-1), minlength=len(self.strengths))
        pairs = zip(self.strengths[1:], counts[1:], strict=True)
        return [{"strength": f, "voxels": int(n)} for f, n in pairs]


def box(text: str, shape: tuple[int, ...]) -> Part | None:
    """The voxels of `x0:x1,y0:y1[,z0:z1]`, half open; None where the text is no such thing.

    Raises:
        UsageError: It is empty or leaves the image.
    """
    if not BOX.fullmatch(text):
        return None
    pairs = [tuple(map(int, one.split(":"))) for one in text.split(",")]
    named = len(pairs) in (2, len(shape))
    if not named or any(not a < b <= n for (a, b), n in zip(pairs, shape, strict=False)):
        size = " x ".join(map(str, shape))
        raise UsageError(
            f"the region {text} is not a part of an image of {size} voxels",
            "write x0:x1,y0:y1,z0:z1 with x0 < x1, counted from 0",
        )
    return (*(slice(a, b) for a, b in pairs), *(slice(0, n) for n in shape[len(pairs) :]))


def checked_strengths(n_regions: int, strengths: Sequence[float]) -> tuple[float, ...]:
    """One strength for each region.

    Raises:
        UsageError: Too few, too many, negative or too large.
    """
    if len(strengths) == 1:
        strengths = [*strengths] * n_regions
    if len(strengths) != n_regions or n_regions > MOST_REGIONS:
        raise UsageError(
            f"{n_regions} regions have {len(strengths)} strengths",
            "give each --roi its --strength-in-roi",
        )
    for f in strengths:
        if not 0 <= f <= LARGEST:
            raise UsageError(
                f"--strength-in-roi is {f:g}", f"give 0 (keep), 1 (no change), up to {LARGEST:g}"
            )
    return tuple(float(f) for f in strengths)


def _units(values: NDArray[np.float64], unit: float) -> NDArray[np.float64]:
    """What widths are multiplied by on their way out, broadcastable to the maps."""
    factors = np.array([1.0, 1.0, unit])
    return factors.reshape(CHANNELS, *[1] * (values.ndim - 2))
