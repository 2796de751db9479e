"""fastMRI's HDF5: `kspace` (slice, coil, H, W), or (slice, H, W) of one coil, and a header in XML.

The files do not say where the slices lie. H is the readout, twice as long as the image wants;
it is cut after reconstruction, as the data set's own images are.
"""

from dataclasses import dataclass

import h5py
import numpy as np
from numpy.typing import NDArray

from medssl.core.errors import InputError
from medssl.io import hdf5, mrd_header
from medssl.io.limits import Limits


@dataclass(frozen=True)
class FastMri:
    """What a file holds, slices last."""

    data: NDArray[np.complexfloating]
    """(coil, H, W, slice), a view of the file where it can be mapped."""
    sampling: NDArray[np.bool_] | None
    """(1, W, 1); None where no mask is stored."""
    spacing: tuple[float, ...]
    """mm along H, W and slice; 0 where the header does not say."""
    matrix: tuple[int, ...] | None
    """Rows and columns of the image that is wanted."""
    acceleration: float | None


def read(file: h5py.File, limits: Limits) -> FastMri:
    """Read the k-space of a volume.

    Raises:
        InputError: Damaged, or another layout.
        MemoryLimitError: It does not fit.
    """
    found = hdf5.dataset(file, "kspace")
    if found is None or found.ndim not in (3, 4):
        shape = None if found is None else found.shape
        raise InputError(f"its kspace has shape {shape}", "fastMRI has (slice, coil, H, W)")
    data = hdf5.complex_array(found, limits)
    data = data[:, None] if data.ndim == 3 else data
    height, width = data.shape[2:]
    xml = hdf5.dataset(file, "ismrmrd_header")
    header = None if xml is None else mrd_header.parse(hdf5.text(xml))
    spacing = [0.0, 0.0, 0.0]
    matrix = None
    if header is not None and header.encoded_fov is not None:
        spacing = [n / size for n, size in zip(header.encoded_fov, (height, width, 1), strict=True)]
    if header is not None and header.recon is not None:
        rows, columns, _ = header.recon
        matrix = (min(rows, height), min(columns, width))
    return FastMri(
        data.transpose(1, 2, 3, 0),
        _mask(file, width),
        tuple(spacing),
        matrix,
        _acceleration(file) or (None if header is None else header.acceleration),
    )


def _acceleration(file: h5py.File) -> float | None:
    """R of a file that was undersampled on purpose."""
    value = file.attrs.get("acceleration")
    return float(value) if isinstance(value, (int, float, np.number)) and value >= 1 else None


def _mask(file: h5py.File, width: int) -> NDArray[np.bool_] | None:
    """Columns that the file says were sampled."""
    found = hdf5.dataset(file, "mask")
    if found is None:
        return None
    if found.size != width or found.dtype.kind not in "bifu":
        raise InputError(
            f"its mask has shape {found.shape} for {width} columns", "export the file again"
        )
    return np.asarray(found[()]).reshape(1, width, 1) != 0
