"""Where voxels lie in the patient: RAS millimetres, float64."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medssl.core.errors import InputError

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""DICOM's patient axes (left, posterior, superior) to RAS. Used by `io` alone."""


@dataclass(frozen=True, eq=False)
class Geometry:
    """The grid of an image.

    Axes are (i, j, k) of NIfTI, which for DICOM and pictures are (column, row, slice).

    Args:
        shape: Voxels along each of two or three spatial axes.
        affine: (4, 4) float64, voxel indices to RAS millimetres.

    Raises:
        InputError: The affine is not finite or not invertible.
    """

    shape: tuple[int, ...]
    affine: NDArray[np.float64]

    def __post_init__(self) -> None:
        """Check, and make the affine read-only."""
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise InputError(
                "the affine is not a finite 4x4 matrix", "repair the header's orientation"
            )
        steps = np.linalg.norm(affine[:3, :3], axis=0)
        volume = abs(float(np.linalg.det(affine[:3, :3])))
        if not volume > 1e-12 * max(float(np.prod(steps)), 1e-300):
            raise InputError(
                f"the affine is singular (steps {steps[0]:g}, {steps[1]:g}, {steps[2]:g} mm)",
                "repair the header's orientation",
            )
        affine.flags.writeable = False
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))

    @classmethod
    def from_spacing(cls, shape: Sequence[int], spacing: Sequence[float]) -> "Geometry":
        """Axis-aligned grid with its first voxel at the origin; spacing in mm."""
        return cls(tuple(shape), np.diag([*spacing, *[1.0] * (3 - len(spacing)), 1.0]))

    @property
    def spacing(self) -> tuple[float, ...]:
        """Distance of neighbouring voxels along each spatial axis, mm."""
        steps = np.linalg.norm(self.affine[:3, :3], axis=0)
        return tuple(float(s) for s in steps[: len(self.shape)])

    @property
    def orientation(self) -> str:
        """Nearest anatomical direction of each axis, as in `RAS` or `LPS`."""
        directions = self.affine[:3, :3] / np.linalg.norm(self.affine[:3, :3], axis=0)
        letters = []
        for axis in range(len(self.shape)):
            world = int(np.argmax(np.abs(directions[:, axis])))
            letters.append(("LR", "PA", "IS")[world][int(directions[world, axis] > 0)])
        return "".join(letters)

    @property
    def shear(self) -> float:
        """Largest deviation of an angle between two axes from 90 degrees, in degrees."""
        directions = self.affine[:3, :3] / np.linalg.norm(self.affine[:3, :3], axis=0)
        cosines = (directions.T @ directions)[np.triu_indices(3, 1)]
        return float(np.degrees(np.abs(np.arcsin(np.clip(cosines, -1, 1))).max()))

    def world(self, index: ArrayLike) -> NDArray[np.float64]:
        """RAS position in mm of voxel indices (..., 3)."""
        position = np.asarray(index, dtype=np.float64)
        return position @ self.affine[:3, :3].T + self.affine[:3, 3]

    def distance(self, other: "Geometry") -> float:
        """Largest distance in mm between equal voxel indices of two grids (at the corners)."""
        reach = [(0, max(n - 1, 0)) for n in (*self.shape, 1, 1)[:3]]
        corners = np.array(np.meshgrid(*reach)).reshape(3, -1).T
        return float(np.linalg.norm(self.world(corners) - other.world(corners), axis=-1).max())

    def same_grid(self, other: "Geometry", tolerance: float = 1e-3) -> bool:
        """Equal shape and voxel positions within `tolerance` mm."""
        return self.shape == other.shape and self.distance(other) <= tolerance
