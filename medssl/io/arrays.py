"""From an array with named axes to the order of `KSpace`: coil, then space, nothing else."""

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medssl.core.errors import InputError, UsageError, printable
from medssl.io import npy

Axes = tuple[str, ...]
"""One name per axis of an array."""

SPACE = ("dim0", "dim1", "dim2", "ky", "kx", "kz", "slice")
"""In the order in which they are laid out; `dim0`... are axes of a file that has its own order."""
SHOTS = ("shot", "sample")
OTHERS = ("coil", "average", "frame")
WORDS = ("coil", "ky", "kx", "kz", "slice", "shot", "sample", "average", "frame")
"""What a user may name."""
COPY_AGAIN = "copy or export the file again"


def read_npy(path: Path) -> NDArray[np.complexfloating]:
    """A memory-mapped complex array; never a pickle.

    Raises:
        InputError: Damaged, cut short, empty, or real.
    """
    with path.open("rb") as handle:
        shape, fortran, dtype = npy.read_header(handle, COPY_AGAIN)
        start = handle.tell()
    if dtype.kind != "c":
        raise InputError(
            f"holds {printable(dtype)}, k-space is complex", "save it as complex64 with --axes"
        )
    wanted, held = math.prod(shape) * dtype.itemsize, path.stat().st_size - start
    if wanted == 0:
        raise InputError(f"has shape {shape}, which is empty", COPY_AGAIN)
    if held < wanted:
        raise InputError(f"is cut short: {held} of {wanted} bytes", COPY_AGAIN)
    return np.memmap(path, dtype, "r", start, shape, "F" if fortran else "C")


def parse_axes(text: str) -> Axes:
    """Names as a user writes them: `coil,ky,kx`.

    Raises:
        UsageError: An unknown or repeated word, no plane, or shots without samples.
    """
    names = tuple(word.strip().lower() for word in text.split(","))
    for name in names:
        if name not in WORDS:
            raise UsageError(
                f"--axes knows no '{printable(name)}'", f"choose from {','.join(WORDS)}"
            )
    once = [n for n in names if n != "frame"]
    if len(set(once)) < len(once):
        raise UsageError(f"--axes {printable(text)} names an axis twice", "name each once")
    shots = [n for n in names if n in SHOTS]
    plane = [n for n in names if n in ("ky", "kx", "kz")]
    if not (len(plane) >= 2 and not shots) and not (len(shots) == 2 and not plane):
        raise UsageError(
            f"--axes {printable(text)} is no plane", "name two of ky,kx,kz, or shot and sample"
        )
    return names


def apply_axes(array: NDArray[np.complexfloating], text: str) -> Axes:
    """The user's names for the axes of an array; axes of length one may be left out.

    Raises:
        UsageError: The number of names does not fit.
    """
    names = parse_axes(text)
    if len(names) == array.ndim:
        return names
    longer = [axis for axis, n in enumerate(array.shape) if n > 1]
    if len(names) != len(longer):
        raise UsageError(
            f"--axes names {len(names)} axes, the array is {_times(array.shape)}",
            "name each axis that is longer than 1",
        )
    given = dict(zip(longer, names, strict=True))
    return tuple(given.get(axis, "frame") for axis in range(array.ndim))


def ordered(
    array: NDArray[np.complexfloating], axes: Axes, frame: int | None
) -> tuple[NDArray[np.complexfloating], Axes]:
    """(coil, *rest) with the names of the rest: a frame chosen, averages averaged.

    The result is a view of `array` unless it has averages.

    Raises:
        InputError: There are several frames and none was chosen, or no second axis is left.
        UsageError: There is no such frame.
    """
    array, axes = _one_frame(array, axes, frame)
    if "average" in axes:
        at = axes.index("average")
        each = np.moveaxis(array, at, 0)
        array = _averaged(each) if len(each) > 1 else each[0]
        axes = axes[:at] + axes[at + 1 :]
    if "coil" not in axes:
        array, axes = array[None], ("coil", *axes)
    words = SHOTS if "shot" in axes else SPACE
    rest = sorted((name for name in axes if name != "coil"), key=words.index)
    may_go = ("dim0", "dim1", "dim2", "slice")
    gone = [n for n in rest if n in may_go and array.shape[axes.index(n)] == 1]
    kept = [n for n in rest if n not in gone]
    data = array.transpose([axes.index(n) for n in (*gone, "coil", *kept)])[(0,) * len(gone)]
    if data.ndim < 3:
        raise InputError(
            f"is {_times(array.shape)}, which has no plane", "k-space needs two axes beside coils"
        )
    return data, tuple(kept)


def frames(array: NDArray[np.complexfloating], axes: Axes) -> int:
    """How many frames an array holds."""
    return math.prod(n for n, name in zip(array.shape, axes, strict=True) if name == "frame")


def _one_frame(
    array: NDArray[np.complexfloating], axes: Axes, frame: int | None
) -> tuple[NDArray[np.complexfloating], Axes]:
    """Without the axes that hold frames; the first of them runs fastest."""
    places = [axis for axis, name in enumerate(axes) if name == "frame"]
    counts = [array.shape[axis] for axis in places]
    index = list(np.unravel_index(which(frame, math.prod(counts)), counts[::-1] or (1,)))[::-1]
    picks: list[slice | int] = [slice(None)] * array.ndim
    for axis, chosen in zip(places, index, strict=False):
        picks[axis] = int(chosen)
    return array[tuple(picks)], tuple(name for name in axes if name != "frame")


def which(frame: int | None, n_frames: int, what: str = "") -> int:
    """The frame to read of `n_frames`.

    Raises:
        InputError: There are several and none was chosen.
        UsageError: There is no such frame.
    """
    if frame is None and n_frames > 1:
        raise InputError(
            f"holds {n_frames} frames{f' ({what})' if what else ''}",
            f"choose one with --frame N, 0 to {n_frames - 1}",
        )
    if frame is not None and not 0 <= frame < n_frames:
        raise UsageError(f"there is no frame {frame}", f"choose from 0 to {n_frames - 1}")
    return frame or 0


def _averaged(each: NDArray[np.complexfloating]) -> NDArray[np.complexfloating]:
    """Mean over the first axis of what was measured."""
    count = np.zeros(each.shape[1:], np.int32)
    total = np.zeros(each.shape[1:], each.dtype)
    for part in each:
        total += part
        count += part != 0
    total /= np.maximum(count, 1)
    return total


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
