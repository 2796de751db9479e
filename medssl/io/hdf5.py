"""HDF5 opened so that it cannot change, point to other files, or unpack to more than it holds."""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from medssl.core.errors import InputError, printable
from medssl.io.limits import Limits

MOST_ZEROS = 64
"""Bytes of a dataset per byte stored: more than any undersampled scan deflates to."""
COPY_AGAIN = "copy or export the file again"


@contextlib.contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """A file in mode r.

    Raises:
        InputError: Damaged or cut short.
    """
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"its HDF5 is damaged ({printable(error)})", COPY_AGAIN) from error


def dataset(place: h5py.Group, name: str) -> h5py.Dataset | None:
    """A dataset that lies in this very file; None when there is no such name.

    Raises:
        InputError: It points to another file.
    """
    link = place.get(name, getlink=True)
    if link is None:
        return None
    if not isinstance(link, h5py.HardLink):
        raise InputError(f"its {name} is a link", "export the data themselves")
    found = place[name]
    if not isinstance(found, h5py.Dataset):
        return None
    if found.external is not None or found.is_virtual:
        raise InputError(f"its {name} lies in other files", "export the data themselves")
    return found


def complex_array(found: h5py.Dataset, limits: Limits) -> NDArray[np.complexfloating]:
    """All of a complex dataset, memory-mapped where the file allows it.

    Raises:
        InputError: Real numbers, or more than the file can hold.
        MemoryLimitError: It does not fit.
    """
    name = found.name.rpartition("/")[2]
    if found.dtype.kind != "c":
        raise InputError(
            f"its {name} holds {printable(found.dtype)}, k-space is complex", "export complex data"
        )
    n_bytes = check_stored(found)
    offset = found.id.get_offset()
    if found.chunks is None and offset is not None:
        return np.memmap(found.file.filename, found.dtype, "r", offset, found.shape)
    limits.check_pixels(n_bytes)
    return found[()]


def check_stored(found: h5py.Dataset) -> int:
    """Bytes of a dataset in memory.

    Raises:
        InputError: The file holds so little of it that its shape cannot be true.
    """
    n_bytes = math.prod(found.shape) * found.dtype.itemsize
    stored = found.id.get_storage_size()
    zipped = found.chunks is not None and found.id.get_create_plist().get_nfilters() > 0
    if n_bytes == 0 or stored * (MOST_ZEROS if zipped else 1) < n_bytes:
        name = found.name.rpartition("/")[2]
        raise InputError(f"its {name} {found.shape} is stored in {stored} bytes", COPY_AGAIN)
    return n_bytes


def text(found: h5py.Dataset, longest: int = 2**24) -> str:
    """A string, whether it is stored alone or in a list of one.

    Raises:
        InputError: No text, or longer than any header.
    """
    value: Any = found[()] if found.size == 1 else None
    if isinstance(value, np.ndarray):
        value = value.flat[0]
    raw = value.encode() if isinstance(value, str) else value
    if not isinstance(raw, bytes) or len(raw) > longest:
        raise InputError(f"its {found.name.rpartition('/')[2]} is no text", COPY_AGAIN)
    return raw.decode("utf-8", errors="replace")
