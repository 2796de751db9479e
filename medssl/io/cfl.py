"""BART's pair of files: dimensions as text in .hdr, column-major complex64 in .cfl."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medssl.core.errors import InputError, printable
from medssl.io.arrays import Axes

HEADER = b"# Dimensions"
LONGEST_HEADER = 2**20
COPY_AGAIN = "copy or export both files again"
READ, PHASE1, PHASE2, COIL, SLICE, AVERAGE = 0, 1, 2, 3, 13, 14
"""BART's places of the axes used here; any other that is longer than one holds frames."""


def pair(path: Path) -> tuple[Path, Path] | None:
    """Header and data of what the user named: either file or their common stem.

    Returns:
        None when this is no BART pair.

    Raises:
        InputError: Only one of the two is there.
    """
    stem = path.with_suffix("") if path.suffix in (".cfl", ".hdr") else path
    header, data = (stem.with_name(stem.name + end) for end in (".hdr", ".cfl"))
    if path.suffix == ".hdr" or (path.suffix != ".cfl" and not path.exists()):
        if not _is_header(header):
            return None
    elif path != data:
        return None
    for wanted, found in ((header, data), (data, header)):
        if found.is_file() and not wanted.is_file():
            raise InputError(
                f"its {wanted.suffix} file is missing", "put both files side by side", file=path
            )
    return (header, data) if header.is_file() and data.is_file() else None


def read(header: Path, data: Path) -> tuple[NDArray[np.complex64], Axes]:
    """The memory-mapped array and what its axes are.

    Returns:
        Array of all dimensions of the header, read-only; the name of each.

    Raises:
        InputError: The header is damaged, or the sizes of the two files disagree.
    """
    array = read_array(header, data)
    names = {READ: "dim0", PHASE1: "dim1", PHASE2: "dim2", COIL: "coil"}
    names |= {SLICE: "slice", AVERAGE: "average"}
    return array, tuple(names.get(axis, "frame") for axis in range(array.ndim))


def read_array(header: Path, data: Path) -> NDArray[np.complex64]:
    """The memory-mapped array alone.

    Raises:
        InputError: The header is damaged, or the sizes of the two files disagree.
    """
    dims = _dims(header)
    wanted, held = 8, data.stat().st_size
    for n in dims:
        wanted *= n
    if wanted != held:
        size = " x ".join(str(d) for d in _stripped(dims))
        raise InputError(
            f"holds {held} bytes, its header says {printable(size)} = {wanted}",
            COPY_AGAIN,
            file=data,
        )
    return np.memmap(data, np.dtype("<c8"), mode="r", shape=dims, order="F")


def _stripped(dims: tuple[int, ...]) -> tuple[int, ...]:
    """Without the ones at the end."""
    last = max((i for i, d in enumerate(dims) if d != 1), default=0)
    return dims[: last + 1]


def _is_header(path: Path) -> bool:
    try:
        with path.open("rb") as handle:
            return handle.read(len(HEADER)) == HEADER
    except OSError:
        return False


def _dims(header: Path) -> tuple[int, ...]:
    """The line after `# Dimensions`, whatever else the header says."""
    with header.open("rb") as handle:
        text = handle.read(LONGEST_HEADER)
    lines = [line.strip() for line in text.split(b"\n")]
    if HEADER not in lines[:-1]:
        raise InputError("its header has no dimensions", COPY_AGAIN, file=header)
    words = lines[lines.index(HEADER) + 1].split()
    if not 1 <= len(words) <= 16 or not all(w.isdigit() and len(w) < 10 for w in words):
        line = printable(b" ".join(words).decode("latin-1"))
        raise InputError(f"its dimensions are '{line}'", COPY_AGAIN, file=header)
    dims = tuple(int(w) for w in words)
    if 0 in dims:
        raise InputError("has a dimension of 0", COPY_AGAIN, file=header)
    return dims
