"""Blosc2 arrays: packed in chunks, so that a crop is read without the rest of its volume."""

import contextlib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medssl.core.errors import InputError, UsageError
from medssl.io import atomic

Codec = Literal["zstd", "lz4"]
CHUNK, BLOCK = 64, 32
"""Sides in voxels of what is found on disk at once, and of what is unpacked at once."""
LEVEL = 5


class PackedArray:
    """A view of an array on disk; indexing it unpacks the blocks that are touched, no others."""

    def __init__(self, path: Path, packed: Any) -> None:
        self._path, self._packed = path, packed

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole array."""
        return tuple(int(n) for n in self._packed.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """As it was written, in the byte order of this machine."""
        return np.dtype(self._packed.dtype)

    def __getitem__(self, part: tuple[slice, ...]) -> NDArray[Any]:
        """The voxels of a box, one slice of step 1 for each axis.

        Raises:
            InputError: The file is damaged there.
        """
        with _refusing(self._path):
            return np.asarray(self._packed[part])


def write_b2nd(
    target: Path, array: NDArray[Any], codec: Codec = "zstd", *, overwrite: bool = False
) -> None:
    """Write an array; it appears under its name complete, or not at all.

    Args:
        target: The file.
        array: (C, *spatial) integers or real numbers of any memory order.
        codec: `zstd` with bitshuffle packs best; `lz4` with shuffle is read about twice as fast.
        overwrite: Whether a file of this name may go.

    Raises:
        InputError: An axis of length 0, or no numbers.
        UsageError: Blosc2 is not installed.
        OutputError: The place is taken, not writable, or full.
    """
    blosc2 = _blosc2()
    if array.size == 0 or array.dtype.kind not in "iuf" or array.dtype.itemsize > 8:
        raise InputError(
            f"an array {array.shape} of {array.dtype} cannot be packed",
            "give integers or real numbers, at least one of them",
        )
    channels, spatial = array.shape[0], array.shape[1:]
    filters = {"zstd": blosc2.Filter.BITSHUFFLE, "lz4": blosc2.Filter.SHUFFLE}
    packed = blosc2.asarray(
        np.ascontiguousarray(array, array.dtype.newbyteorder("=")),
        chunks=(channels, *(min(n, CHUNK) for n in spatial)),
        blocks=(channels, *(min(n, BLOCK) for n in spatial)),
        cparams=blosc2.CParams(
            codec={"zstd": blosc2.Codec.ZSTD, "lz4": blosc2.Codec.LZ4}[codec],
            clevel=LEVEL,
            filters=[filters[codec]],
            nthreads=1,  # processes are the workers, and threads would share their cores
        ),
    )
    with atomic.file(target, overwrite=overwrite) as sink:
        sink.write(packed.to_cframe())


def open_b2nd(path: Path) -> PackedArray:
    """An array on disk, nothing of it unpacked yet.

    Raises:
        InputError: Missing, damaged, or something else than an array of numbers.
        UsageError: Blosc2 is not installed.
    """
    blosc2 = _blosc2()
    with _refusing(path):
        packed = blosc2.open(str(path), mode="r", dparams=blosc2.DParams(nthreads=1))
    if not isinstance(packed, blosc2.NDArray) or np.dtype(packed.dtype).kind not in "iuf":
        raise InputError("holds no array of numbers", "prepare the store again", file=path)
    return PackedArray(path, packed)


def _blosc2() -> Any:
    try:
        return import_module("blosc2")
    except ImportError as error:
        raise UsageError(
            "stores need blosc2, which is not installed", "pip install 'medssl[archive]'"
        ) from error


@contextlib.contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """What Blosc2 says of a file becomes one line."""
    if not path.is_file():
        raise InputError("does not exist", "prepare the store again", file=path)
    try:
        yield
    except (RuntimeError, ValueError, TypeError, KeyError, OSError) as error:
        raise InputError("is damaged", "prepare the store again", file=path) from error
