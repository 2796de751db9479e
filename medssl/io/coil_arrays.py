"""Coil maps and noise samples that a user brings along."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medssl.core.errors import InputError, UsageError, naming
from medssl.core.kspace import KSpace
from medssl.io import arrays, cfl, npy

COIL = 3
"""BART's axis of coils, the next one is that of map sets."""


def maps(given: str | Path | NDArray[Any], scan: KSpace) -> NDArray[np.complex64]:
    """Coil maps for a scan.

    Args:
        given: (coil, *spatial) or (set, coil, *spatial), as an array, an NPY file or BART's pair,
            whose axes are x, y, z, coil, set.
        scan: Whose coils and grid they must have.

    Returns:
        (set, coil, *spatial) complex64.

    Raises:
        InputError: Not complex, not finite, or of another matrix.
    """
    if isinstance(given, np.ndarray):
        return _fitting(given, scan)
    path = Path(given)
    with naming(path):
        pair = cfl.pair(path)
        if pair is None:
            return _fitting(_array(path), scan)
        found = cfl.read_array(*pair)
        found = found.reshape(found.shape + (1,) * max(0, COIL + 2 - found.ndim))
        if max(found.shape[COIL + 2 :], default=1) > 1:
            raise InputError(f"coil maps of shape {found.shape}", "give x, y, z, coil, set")
        space = [a for a in range(COIL) if found.shape[a] > 1]
        drop = tuple(a for a in range(found.ndim) if a >= COIL + 2)
        laid = found.squeeze(drop).transpose(COIL + 1, COIL, *range(COIL))
        keep = laid.reshape(*laid.shape[:2], *(found.shape[a] for a in space))
        return _fitting(keep, scan)


def noise(given: str | Path | NDArray[Any]) -> NDArray[np.complex64]:
    """(coil, n) samples without signal.

    Raises:
        InputError: Not of this shape, not complex, or not finite.
    """
    if isinstance(given, np.ndarray):
        found = given
    else:
        with naming(Path(given)):
            found = _array(Path(given))
    if found.ndim != 2 or not np.iscomplexobj(found) or not np.isfinite(found).all():
        raise InputError(
            f"a noise scan of shape {found.shape} and type {found.dtype}",
            "give finite complex samples (coil, n)",
        )
    return np.asarray(found, np.complex64)


def _array(path: Path) -> NDArray[Any]:
    if not path.is_file():
        raise InputError("does not exist", "check the path")
    with path.open("rb") as handle:
        if not handle.read(6).startswith(npy.MAGIC):
            raise UsageError("is neither NPY nor BART's .cfl", "convert it")
    return arrays.read_npy(path)


def _fitting(found: NDArray[Any], scan: KSpace) -> NDArray[np.complex64]:
    wanted = (scan.n_coils, *scan.geometry.shape)
    if found.ndim == len(wanted):
        found = found[None]
    if found.shape[1:] != wanted:
        raise InputError(
            f"coil maps of shape {found.shape[1:]} do not fit k-space of shape {wanted}",
            "give maps (coil, *spatial) of the same matrix",
        )
    if not np.iscomplexobj(found) or not np.isfinite(found).all():
        raise InputError("coil maps must be finite complex numbers", "estimate them again")
    return np.asarray(found, np.complex64)
