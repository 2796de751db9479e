"""The widths of a filter as a NIfTI file: any viewer lays it over the scan, and no bit is lost.

The last axis of the file holds stage after stage the widths along x and y in voxels and in
intensity in image units, float64, which a float32 of any other unit survives.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from numpy.typing import NDArray

from medssl.core.errors import InputError, printable
from medssl.core.geometry import Geometry
from medssl.core.image import Image
from medssl.io import nifti
from medssl.io.limits import Limits
from medssl.io.read import read as read_image

TITLE = "medssl sigma maps"
"""Start of the header's description; the rest says what they steer."""
CHANNELS = 3
"""Widths of each stage."""
FAR = 1e-2
"""Millimetres; maps that lie further off are those of another image."""


@dataclass(frozen=True, kw_only=True)
class Steers:
    """What maps are made for."""

    method: str
    words: str
    """What else decides how they filter."""
    patch: int
    """Side of a patch, voxels."""

    @property
    def title(self) -> str:
        """The header's description."""
        return f"{TITLE}, {self.method}, {self.words}"


def write(
    target: Path, values: NDArray[np.float64], like: Image, steers: Steers, *, overwrite: bool
) -> None:
    """Write maps; the file appears complete or not at all.

    Args:
        target: Ends in `.nii` or `.nii.gz`.
        values: (n_stages, 3, *grid).
        like: The image that they are for; nothing of its header but the geometry is written.
        steers: What they are made for.
        overwrite: Replace an existing file.

    Raises:
        OutputError: The place is taken or not writable.
    """
    grid = values.shape[2:]
    affine = _geometry(grid, like, steers.patch).affine
    header = Nifti1Header() if max(grid) < 2**15 else Nifti2Header()
    header.set_data_dtype(np.dtype("<f8"))
    header.set_data_shape((*(*grid, 1)[:3], values.shape[0] * CHANNELS))
    header.set_sform(affine, code=1)
    header.set_qform(affine, code=1, strip_shears=True)
    header.set_xyzt_units("mm")
    header["vox_offset"], header["magic"] = header.single_vox_offset, header.single_magic
    header["scl_slope"], header["scl_inter"] = 1.0, 0.0
    header["descrip"] = steers.title.encode()
    with nifti.writer(target, overwrite) as sink:
        sink.write(bytes(header.binaryblock) + b"\0" * 4)
        for one in values.reshape(-1, *grid):
            sink.write(one.astype("<f8").tobytes(order="F"))


def read(path: Path, like: Image, steers: Steers, limits: Limits) -> NDArray[np.float64]:
    """(n_stages, 3, *grid) of a file that `write` made; it may have been edited.

    Args:
        path: The file.
        like: The image that they are to be used on.
        steers: What they are to be used for.
        limits: Bounds of what a file may ask for.

    Raises:
        InputError: No maps, of another method, or of another image.
    """
    image = read_image(path, None, limits)
    origin = image.origin
    if not isinstance(origin, nifti.NiftiOrigin):
        raise InputError("holds no sigma maps", "use what --save-sigma-maps wrote", file=path)
    title = nifti.description(origin)
    if title != steers.title:
        found = (
            printable(title.removeprefix(f"{TITLE}, ")) if title.startswith(TITLE) else "no maps"
        )
        raise InputError(
            f"holds {found}, {steers.method} here has {steers.words}",
            "use what --save-sigma-maps wrote with this method, header included",
            file=path,
        )
    raw = origin.stored.astype(np.float64) * image.stored.slope + image.stored.intercept
    values = raw.transpose(0, *range(raw.ndim - 1, 0, -1))
    if len(like.shape) == 2 and values.shape[3:] == (1,):
        values = values[..., 0]
    grid = values.shape[1:]
    if len(values) % CHANNELS or len(grid) != len(like.shape):
        raise InputError(
            f"holds {len(values)} maps of shape {grid}, the image has {like.shape}",
            "use the maps of this very image",
            file=path,
        )
    far = _geometry(grid, like, steers.patch).distance(image.geometry)
    if far > FAR:
        raise InputError(
            f"the sigma maps of shape {grid} lie up to {far:.2f} mm away from the image's grid",
            "use the maps of this very image",
            file=path,
        )
    return values.reshape(-1, CHANNELS, *grid)


def _geometry(grid: tuple[int, ...], like: Image, patch: int) -> Geometry:
    """Where maps lie: each covers so many voxels, and its centre is theirs."""
    steps = [1 if g == n else n if g == 1 else patch for g, n in zip(grid, like.shape, strict=True)]
    steps += [1] * (3 - len(steps))
    coarse = np.diag([*steps, 1.0])
    coarse[:3, 3] = [(s - 1) / 2 for s in steps]
    return Geometry(grid, like.geometry.affine @ coarse)
