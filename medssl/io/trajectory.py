"""Where non-Cartesian samples lie: full or half circles of spokes, or a file that says so."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medssl.core.errors import InputError, UsageError, printable
from medssl.io import arrays, cfl

SPOKES = {"radial-360": 2.0, "radial-180": 1.0}
"""Angle that all spokes together turn by, in units of pi."""
EMPTY = 0.02
"""Share of a projection's energy, noise taken off, that the outer half of the readout may hold
when the readout is oversampled twice: an object that reaches there holds far more."""


MOST_SHOTS = 128
"""Projections that are looked at; more tell no more."""


def spokes(kind: str, n_shots: int, n_samples: int, oversampling: float) -> NDArray[np.float32]:
    """Diametral spokes with DC at sample N // 2, in equal steps of angle.

    Returns:
        (shot, sample, 2) in cycles per field of view: rows, columns. Whether the angle turns left
        or right cannot be known without the scanner, so the image may be its mirror image.
    """
    angle = SPOKES[kind] * np.pi * np.arange(n_shots)[:, None] / n_shots
    radius = (np.arange(n_samples) - n_samples // 2)[None] / oversampling
    return np.stack([radius * np.sin(angle), radius * np.cos(angle)], -1).astype(np.float32)


def read(path: Path) -> NDArray[np.float32]:
    """A trajectory file: .npy (shot, sample, ndim) or BART's (3, sample, shot).

    Returns:
        (shot, sample, ndim) in cycles per field of view. BART's axes are those of the image that
        its own tools make, first the readout's.

    Raises:
        InputError: Damaged, or not in cycles per field of view.
    """
    pair = cfl.pair(path)
    if pair is not None:
        array = np.asarray(cfl.read_array(*pair))
        xyz = array.real.reshape((*array.shape, 1, 1)[:3]) if array.size else array.real
        used = [axis for axis in range(len(xyz)) if np.any(xyz[axis])]
        found = xyz[used].transpose(2, 1, 0)
    else:
        found = _npy(path)
    if found.ndim != 3 or found.shape[-1] not in (2, 3) or not np.isfinite(found).all():
        raise InputError(
            f"a trajectory of shape {found.shape} cannot be read",
            "give (shot, sample, 2 or 3) of finite numbers",
            file=path,
        )
    if np.abs(found).max() <= 1.0:
        raise InputError(
            f"the trajectory reaches {np.abs(found).max():.3g} only",
            "scale it to cycles per field of view, -N/2 to N/2",
            file=path,
        )
    return np.ascontiguousarray(found, np.float32)


def grid(trajectory: NDArray[np.float32]) -> tuple[int, ...]:
    """The image whose k-space the trajectory covers: even, 2 max |k| along each axis."""
    reach = np.abs(trajectory).reshape(-1, trajectory.shape[-1]).max(0)
    return tuple(2 * max(int(np.ceil(r - 0.25)), 1) for r in reach)


def steps_per_cycle(trajectory: NDArray[np.float32]) -> float:
    """Readout oversampling: samples per cycle per field of view, between neighbours on a shot."""
    steps = np.linalg.norm(np.diff(trajectory, axis=1), axis=-1)
    return float(max(1.0, 1.0 / max(float(np.median(steps)), 1e-6)))


def readout_oversampling(data: NDArray[np.complex64]) -> float:
    """2 when the outer half of all projections holds noise alone, else 1.

    The inverse FFT of a spoke is a projection of the object; receivers sample it twice as finely
    as its field of view asks for, and then its outer half is empty.

    Args:
        data: (coil, shot, sample).
    """
    n = data.shape[-1]
    if n % 2:
        return 1.0
    some = np.asarray(data[:, :: max(data.shape[1] // MOST_SHOTS, 1)])
    centred = np.fft.ifftshift(some, axes=-1)
    projections = np.fft.fftshift(np.fft.ifft(centred, axis=-1), axes=-1)
    energy = (np.abs(projections) ** 2).sum((0, 1))
    distance = np.abs(np.arange(n) - n // 2)
    signal = np.maximum(energy - energy[distance > 3 * n / 8].mean(), 0)
    return 2.0 if signal[distance > n / 4].sum() < EMPTY * signal.sum() else 1.0


def of_kind(word: str) -> str | None:
    """The built-in trajectory that a word names.

    Raises:
        UsageError: It looks like one and is not.
    """
    if word in SPOKES:
        return word
    if word.startswith("radial"):
        raise UsageError(f"--trajectory knows no '{printable(word)}'", f"use {', '.join(SPOKES)}")
    return None


def _npy(path: Path) -> NDArray[np.float32]:
    """Real numbers from a .npy file."""
    try:
        found = np.load(path, allow_pickle=False, mmap_mode="r")
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise InputError(
            "cannot be read as a trajectory", "give .npy or BART's .cfl", file=path
        ) from error
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "iuf":
        raise InputError("a trajectory holds real numbers", arrays.COPY_AGAIN, file=path)
    return np.asarray(found, np.float32)
