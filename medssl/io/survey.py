"""One pass over k-space that may not fit into memory: what was measured, and does it look right.

Nothing larger than one coil's slab of `CHUNK` bytes and one boolean grid is ever held.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from medssl.core.errors import InputError
from medssl.io.limits import MIB
from medssl.io.mapped import forget

CHUNK = 16 * MIB
FLAT = 2.0
"""Energy of the central quarter over that of the outer half, per index, below which an axis is no
axis of k-space. An object of any shape has its energy near DC: 1/k^2 for a lone edge gives > 50."""
PEAKED = 20.0
"""The same ratio above which an axis looks like k-space: a row of coils rarely varies that much
and that regularly."""
LESS = 4.0
"""How much less than the coils an axis has to look like k-space for the two to be exchanged."""
FEWEST = 8
"""Positions along an axis below which its centre cannot be told from its edge."""


def examine(
    data: NDArray[np.complex64],
    encoded: Sequence[bool],
    names: Sequence[str],
    sampling: NDArray[np.bool_] | None = None,
) -> NDArray[np.bool_]:
    """Look through data once and refuse what makes no image.

    Args:
        data: (coil, *spatial), may be a memory map.
        encoded: Per spatial axis, whether its DC must lie in the middle.
        names: Of the spatial axes, for messages.
        sampling: Known from counters, broadcastable to (*spatial); None takes what is not zero.

    Returns:
        (*spatial), what was measured.

    Raises:
        InputError: NaN or infinite values, nothing but zeros, axes that are no k-space, or coils
            that were not sampled alike; the message names the coil or the axis.
    """
    shape = data.shape[1:]
    measured = np.zeros(shape, np.bool_)
    sums = [np.zeros(n) for n in data.shape]
    counts = [_look(data[coil], coil, measured, sums) for coil in range(data.shape[0])]
    if not measured.any():
        raise InputError("is zero everywhere", "check the export of the raw data")
    _check_encoding(_per_sample(sums, measured), encoded, names)
    if sampling is not None:
        return np.array(np.broadcast_to(sampling, shape))
    total = int(measured.sum())
    for coil in (c for c, count in enumerate(counts) if 0 < count < total):
        _refuse_hole(data[coil], coil, measured)
    return measured


def _per_sample(
    sums: Sequence[NDArray[np.float64]], measured: NDArray[np.bool_]
) -> list[NDArray[np.float64]]:
    """Mean energy of what was measured, at each index of each axis, coils first."""
    axes = range(measured.ndim)
    counts = [measured.sum(tuple(a for a in axes if a != axis)) for axis in axes]
    counts = [np.full(len(sums[0]), measured.sum()), *counts]
    return [total / np.maximum(count, 1) for total, count in zip(sums, counts, strict=True)]


def _check_encoding(
    energies: Sequence[NDArray[np.float64]], encoded: Sequence[bool], names: Sequence[str]
) -> None:
    """Refuse axes that cannot be k-space, or whose DC is not in the middle."""
    wrong_order = ("wrong axis order or not Cartesian", "give --axes or --trajectory")
    for energy, is_encoded, name in zip(energies[1:], encoded, names, strict=True):
        n = len(energy)
        if not is_encoded:
            continue
        if _looks_exchanged(energies[0], energy):
            raise InputError(
                f"the {len(energies[0])} coils look like k-space, {name} ({n}) does not: "
                f"{wrong_order[0]}",
                wrong_order[1],
            )
        if n < FEWEST:
            continue
        if contrast(energy) < FLAT and contrast(np.fft.fftshift(energy)) < FLAT:
            raise InputError(
                f"the energy of {name} ({n}) is flat, unlike k-space: {wrong_order[0]}",
                wrong_order[1],
            )
        peak = int(np.argmax(energy))
        if not n // 4 <= peak < n - n // 4:
            raise InputError(
                f"the energy of {name} peaks at index {peak} of {n}, not near its centre {n // 2}",
                "fftshift the data so that DC lies in the middle, or give --axes",
            )


def _looks_exchanged(coils: NDArray[np.float64], axis: NDArray[np.float64]) -> bool:
    """Whether coils and an axis changed places: the coils are more, and more like k-space."""
    n = len(coils)
    far = abs(int(np.argmax(coils)) - n // 2)
    like_kspace = n >= FEWEST and far <= n / 8 and contrast(coils) > PEAKED
    return like_kspace and len(axis) < n and contrast(axis) * LESS < contrast(coils)


def contrast(energy: NDArray[np.float64]) -> float:
    """Mean energy of the central quarter of an axis over that of its outer half."""
    n = len(energy)
    distance = np.abs(np.arange(n) - n // 2)
    outer = energy[distance > n / 4]
    centre = energy[distance <= max(n / 8, 1)]
    measured = outer[outer > 0]
    return float(centre[centre > 0].mean() / measured.mean()) if measured.size else float("inf")


def slabs(volume: NDArray[np.complex64]) -> Iterator[tuple[int, NDArray[np.complex64]]]:
    """Pieces of (*spatial) data along its slowest axis in memory, with where they start.

    The memory of a mapped file is given back afterwards.

    Yields:
        Start, and the piece with that axis first.
    """
    slowest = int(np.argmax(np.abs(volume.strides)))
    ordered = np.moveaxis(volume, slowest, 0)
    rows = max(CHUNK // max(ordered[0].size * volume.itemsize, 1), 1)
    for start in range(0, ordered.shape[0], rows):
        yield start, ordered[start : start + rows]
    forget(volume)


def _look(
    volume: NDArray[np.complex64],
    coil: int,
    measured: NDArray[np.bool_],
    sums: list[NDArray[np.float64]],
) -> int:
    """Add one coil to what was measured and to the energies; how many of its points are not 0."""
    count = 0
    slowest = int(np.argmax(np.abs(volume.strides)))
    others = [a for a in range(volume.ndim) if a != slowest]
    seen = np.moveaxis(measured, slowest, 0)
    for start, piece in slabs(volume):
        energy = piece.real.astype(np.float64) ** 2
        energy += piece.imag.astype(np.float64) ** 2
        if not np.isfinite(energy.sum()):
            where = np.argwhere(~np.isfinite(energy))[0]
            index = np.empty(volume.ndim, int)
            index[slowest], index[others] = where[0] + start, where[1:]
            raise InputError(
                f"coil {coil} holds NaN or infinite values, the first at {tuple(index.tolist())}",
                "export the raw data again",
            )
        live = piece != 0
        count += int(np.count_nonzero(live))
        seen[start : start + len(piece)] |= live
        sums[0][coil] += energy.sum()
        sums[1 + slowest][start : start + len(piece)] += energy.sum(tuple(range(1, energy.ndim)))
        for place, axis in enumerate(others, start=1):
            away = tuple(a for a in range(energy.ndim) if a != place)
            sums[1 + axis] += energy.sum(away)
    return count


def _refuse_hole(volume: NDArray[np.complex64], coil: int, measured: NDArray[np.bool_]) -> None:
    """All coils measure at once: a stretch that one live coil lacks was lost in the export.

    A lone zero is a small value that was rounded; two neighbours are not.
    """
    missing = np.zeros(measured.shape, np.bool_)
    slowest = int(np.argmax(np.abs(volume.strides)))
    holes, seen = np.moveaxis(missing, slowest, 0), np.moveaxis(measured, slowest, 0)
    for start, piece in slabs(volume):
        stop = start + len(piece)
        holes[start:stop] = (piece == 0) & seen[start:stop]
    for axis in range(missing.ndim):
        first = np.moveaxis(missing, axis, 0)
        if (first[1:] & first[:-1]).any():
            where = tuple(np.argwhere(missing)[0].tolist())
            raise InputError(
                f"coil {coil} is zero at {int(missing.sum())} places that other coils measured, "
                f"the first at {where}",
                "export the raw data again",
            )
