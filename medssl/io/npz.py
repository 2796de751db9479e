"""Cases for detection in NPZ files: a map, its label, and where they lie; never a pickle."""

import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medssl.core.errors import InputError, naming
from medssl.core.geometry import Geometry
from medssl.io import npy
from medssl.io.limits import Limits

MAPS = ("softmax", "prob", "probability", "detection")
"""Names under which a map is looked for."""
AGAIN = "save it again with numpy.savez(file, prob=..., label=...)"


@dataclass(frozen=True, eq=False)
class MapCase:
    """A map with its truth."""

    map: NDArray[np.floating]
    """(*spatial)."""
    label: NDArray[Any]
    """(*spatial), 0 where there is no lesion."""
    spacing: tuple[float, ...] | None
    """mm; None where the file has no `affine`."""


def read_case(path: Path, limits: Limits | None = None) -> MapCase:
    """Read arrays `label`, one of `MAPS` and, where it is there, `affine`.

    Raises:
        InputError: Damaged, an array is missing, or their shapes differ.
        MemoryLimitError: They do not fit.
    """
    limits = limits or Limits()
    with naming(path):
        try:
            with zipfile.ZipFile(path) as archive:
                held = {n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")}
                name = next((m for m in MAPS if m in held), None)
                if name is None or "label" not in held:
                    raise InputError(f"holds no map ({', '.join(MAPS)}) and label", AGAIN)
                image, label = (_array(archive, k, limits) for k in (name, "label"))
                affine = _array(archive, "affine", limits) if "affine" in held else None
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
            raise InputError("is no NPZ file, or it is damaged", AGAIN) from error
        if image.shape != label.shape or image.ndim not in (2, 3):
            raise InputError(
                f"has a map of {image.shape} and a label of {label.shape} voxels",
                "give both on one grid of two or three axes",
            )
        spacing = None if affine is None else Geometry(image.shape, affine).spacing
        floating = image if image.dtype.kind == "f" else image.astype(np.float32)
        return MapCase(floating, label, spacing)


def _array(archive: zipfile.ZipFile, name: str, limits: Limits) -> NDArray[Any]:
    """A member; its header is checked against what is there before anything is allocated."""
    info = archive.getinfo(f"{name}.npy")
    limits.check_pixels(info.file_size)
    with archive.open(info) as handle:
        shape, fortran, dtype = npy.read_header(handle, AGAIN)  # type: ignore[arg-type]
        wanted = math.prod(shape) * dtype.itemsize
        if dtype.kind not in "fiub" or wanted != info.file_size - handle.tell() or not wanted:
            raise InputError(f"{name} is no whole array of numbers", AGAIN)
        flat = np.frombuffer(handle.read(wanted), dtype)
    order = "F" if fortran else "C"
    return flat.reshape(shape, order=order).astype(dtype.newbyteorder("="))  # type: ignore[call-overload]
