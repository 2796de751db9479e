"""Where the image of raw data lies: directions and positions of a scanner to one affine.

Scanners state the centre of a slice (or slab), its phase, read and slice directions, all in
DICOM's patient axes (left, posterior, superior). With a centred FFT that centre is the voxel
N // 2 of each encoded axis.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medssl.core.errors import InputError
from medssl.core.geometry import LPS_TO_RAS, Geometry

ROW_SIGN = 1.0
"""Sense of growing ky against the stated phase direction. No scanner-made image of the raw files
at hand exists to check it; kept in one place for the day there is one."""
CENTRE_VOXEL = 0.0
"""Voxels between the stated centre and the middle of voxel N // 2; scanners that count the centre
of the field of view instead of that voxel would need 0.5."""

FARTHEST = 2000.0
"""mm from the isocentre; no scanner reaches farther."""
DIRECTION_TOLERANCE = 1e-3
GAP_TOLERANCE = 1e-2
"""mm by which distances of neighbouring slices may differ."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What a raw header says of its slices, in LPS mm.

    Args:
        phase: (3,) unit vector along growing ky.
        read: (3,) along growing kx.
        normal: (3,) of the slice, along growing kz.
        centres: (slice, 3) of the slices, or (1, 3) of a slab.
    """

    phase: NDArray[np.float64]
    read: NDArray[np.float64]
    normal: NDArray[np.float64]
    centres: NDArray[np.float64]

    def problem(self) -> str:
        """Why this cannot be true; empty when it can."""
        directions = np.stack([self.phase, self.read, self.normal])
        with np.errstate(all="ignore"):
            far = np.abs(directions @ directions.T - np.eye(3)).max()
        if not far <= DIRECTION_TOLERANCE:
            return "its directions are not orthogonal unit vectors"
        if not np.linalg.norm(self.centres, axis=-1).max() < FARTHEST:
            return "its position is not within 2 m of the isocentre"
        return ""


@dataclass(frozen=True)
class Placed:
    """The grid of raw data, and in which order its slices lie on it."""

    geometry: Geometry
    nominal: bool
    order: tuple[int, ...]
    """For each slice of the grid, which of the header's slices it is."""
    warnings: tuple[str, ...]


def place(
    shape: Sequence[int],
    spacing: Sequence[float],
    placement: Placement | None,
    *,
    stacked: bool,
    thickness: float = 0.0,
) -> Placed:
    """The grid (ky, kx), (ky, kx, slice) or (ky, kx, kz) of raw data.

    Args:
        shape: Of the grid, two or three axes.
        spacing: (dr, dc) or (dr, dc, dz) in mm; anything but positive numbers makes it nominal.
        placement: None when the header does not say.
        stacked: The third axis counts slices, not partitions of a slab.
        thickness: Of a single slice in mm, for the third column of its affine.

    Raises:
        InputError: The slices of a stack do not lie at equal distances.
    """
    n_slices = shape[2] if stacked and len(shape) == 3 else 1
    in_order = tuple(range(n_slices))
    steps = [float(s) for s in spacing]
    sound = all(np.isfinite(s) and 0 < s < FARTHEST for s in steps)
    problem = "" if placement is None else placement.problem()
    if placement is None or problem or not sound:
        what = problem or ("its field of view is not known" if not sound else "")
        fact = what or "the file does not say where the image lies"
        safe = [s if np.isfinite(s) and 0 < s < FARTHEST else 1.0 for s in steps]
        nominal = Geometry.from_spacing(shape, _with_thickness(safe, thickness))
        return Placed(nominal, True, in_order, (f"{fact}: orientation and position are nominal",))
    centres, order, step = _stack(placement, n_slices, steps, thickness)
    columns = [placement.phase * ROW_SIGN * steps[0], placement.read * steps[1], step]
    middle = [shape[0] // 2, shape[1] // 2, 0]
    if len(shape) == 3 and not stacked:
        middle[2] = shape[2] // 2
    matrix = np.column_stack(columns)
    affine = np.eye(4)
    affine[:3, :3] = matrix
    affine[:3, 3] = centres[order[0]] - matrix @ (
        np.array(middle) - CENTRE_VOXEL * (np.array(middle) > 0)
    )
    return Placed(Geometry(tuple(shape), LPS_TO_RAS @ affine), False, order, ())


def _with_thickness(steps: list[float], thickness: float) -> list[float]:
    """Three voxel sizes; a single slice is as thick as it says, else 1 mm."""
    known = np.isfinite(thickness) and 0 < thickness < FARTHEST
    return steps if len(steps) == 3 else [*steps, thickness if known else 1.0]


def _stack(
    placement: Placement, n_slices: int, steps: list[float], thickness: float
) -> tuple[NDArray[np.float64], tuple[int, ...], NDArray[np.float64]]:
    """Centres, their order along the normal, and the step from one slice to the next."""
    centres = np.asarray(placement.centres, dtype=np.float64)
    if n_slices == 1:
        return (
            centres,
            (0,),
            placement.normal * _with_thickness(steps[:2] + steps[2:], thickness)[2],
        )
    along = centres @ placement.normal
    order = tuple(int(i) for i in np.argsort(along, kind="stable"))
    moves = np.diff(centres[list(order)], axis=0)
    gaps = np.linalg.norm(moves, axis=1)
    off_line = np.abs(moves - np.outer(moves @ placement.normal, placement.normal)).max()
    usual = float(np.sort(gaps)[(len(gaps) - 1) // 2])
    worst = int(np.argmax(np.abs(gaps - usual)))
    if off_line > GAP_TOLERANCE:
        raise InputError(
            f"its slices are shifted by {off_line:.2f} mm against each other",
            "export the stacks one by one",
        )
    if np.ptp(gaps) > GAP_TOLERANCE:
        raise InputError(
            f"slices {worst} and {worst + 1} lie {gaps[worst]:.2f} mm apart, others {usual:.2f} mm",
            "export equally spaced slices",
        )
    if gaps.min() < GAP_TOLERANCE:
        raise InputError("two slices lie at the same place", "export one stack")
    return centres, order, moves.mean(axis=0)
