"""A raw scan as a stream of pictures: every slice a problem of two dimensions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medssl.core.errors import InputError
from medssl.core.kspace import KSpace
from medssl.io.mapped import forget
from medssl.physics.fourier import to_image

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Slices:
    """What is measured of each slice.

    Args:
        scan: The raw scan.
        axis: Spatial axis that counts slices; None for a scan of one.
        columns: (coil, slice, measured) of a volume that was transformed along its readout, at
            the points of `plane`; None where slices are taken from the scan itself.
        plane: (H, W) measured points of each slice of such a volume.
    """

    scan: KSpace
    axis: int | None
    columns: NDArray[np.complex64] | None = None
    plane: Mask | None = None

    @classmethod
    def of(cls, scan: KSpace) -> "Slices":
        """Find the axis along which a scan falls apart into slices.

        A volume is transformed along an axis that is measured alike everywhere. Only what was
        measured of it is held in memory.

        Raises:
            InputError: There is no such axis.
        """
        shape = scan.geometry.shape
        apart = [a for a, encoded in enumerate(scan.encoded) if not encoded]
        if scan.trajectory is not None:
            if len(shape) != 2:
                raise InputError(
                    f"samples off the grid of a volume of {shape}", "export one slice of it"
                )
            return cls(scan, None)
        if len(shape) == 2:
            if apart:
                raise InputError(f"only one axis of {shape} is encoded", "check --axes")
            return cls(scan, None)
        if len(apart) == 1:
            return cls(scan, apart[0])
        if apart:
            raise InputError(f"only one axis of {shape} is encoded", "check --axes")
        axis, plane = _readout(np.broadcast_to(scan.sampling, shape))
        return cls(scan, axis, _transformed(scan.data, axis, plane), plane)

    @property
    def n(self) -> int:
        """Number of slices."""
        return 1 if self.axis is None else self.scan.geometry.shape[self.axis]

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of the image of a slice."""
        rest = [n for a, n in enumerate(self.scan.geometry.shape) if a != self.axis]
        return rest[0], rest[1]

    @property
    def volume(self) -> bool:
        """Whether slices come from a transform along the readout."""
        return self.columns is not None

    def kspace(self, which: Sequence[int]) -> Tensor:
        """(B, coil, H, W) complex64, zeros where nothing was measured; (B, coil, shot, sample)."""
        n_coils = self.scan.n_coils
        if self.axis is None:
            found = np.asarray(self.scan.data)[None]
        elif self.columns is None:
            found = np.moveaxis(self.scan.data, 1 + self.axis, 0)[list(which)]
        else:
            assert self.plane is not None
            found = np.zeros((len(which), n_coils, *self.shape), np.complex64)
            found[:, :, self.plane] = np.moveaxis(self.columns[:, list(which)], 1, 0)
        return torch.from_numpy(np.array(found, np.complex64))

    def sampling(self, index: int) -> Mask:
        """(H, W) what was measured of a slice; (shot, sample)."""
        if self.plane is not None:
            return self.plane
        samples = self.scan.data.shape[1:]
        whole = np.broadcast_to(self.scan.sampling, samples)
        return np.array(whole if self.axis is None else np.take(whole, index, self.axis))

    def place(self, pictures: NDArray[np.float32]) -> NDArray[np.float32]:
        """(*spatial) from (slice, H, W), with the matrix that is wanted cut out."""
        volume = pictures[0] if self.axis is None else np.moveaxis(pictures, 0, self.axis)
        if self.scan.matrix is not None:
            for axis, (wanted, n) in enumerate(zip(self.scan.matrix, volume.shape, strict=True)):
                start = n // 2 - wanted // 2
                volume = volume.take(range(start, start + wanted), axis)
        return np.ascontiguousarray(volume, np.float32)


def _readout(sampling: Mask) -> tuple[int, Mask]:
    """The axis along which all columns are measured alike, and the columns that are.

    A readout that misses its start or end (an asymmetric echo) counts, its missing part is zero.
    """
    for axis in range(3):
        plane: Mask = np.any(sampling, axis=axis)
        if bool((sampling.all(axis) == plane).all()):
            return axis, plane
    for axis in range(3):
        plane = np.asarray(sampling.any(axis))
        line = sampling.any(tuple(a for a in range(3) if a != axis))
        same = sampling.sum() == line.sum() * plane.sum()
        runs = int(np.abs(np.diff(line.astype(np.int8), prepend=0, append=0)).sum()) // 2
        if same and runs == 1:
            return axis, plane
    raise InputError(
        "the volume has no axis along which every line is measured alike",
        "transform one axis first, or export slices",
    )


def _transformed(data: NDArray[np.complex64], axis: int, plane: Mask) -> NDArray[np.complex64]:
    """(coil, readout, measured) after the transform along the readout, coil by coil."""
    n = data.shape[1 + axis]
    columns = np.empty((data.shape[0], n, int(plane.sum())), np.complex64)
    for coil in range(data.shape[0]):
        lines = np.moveaxis(data[coil], axis, 0)[:, plane]
        columns[coil] = to_image(torch.from_numpy(np.array(lines, np.complex64)), (0,)).numpy()
        forget(data)
    return columns
