"""The scans below a folder, found by what files hold and told apart by what they hash to.

Files that medssl wrote beside its inputs are no scans. Nothing is decoded; bytes are read once, to
hash them.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from medssl.core.errors import InputError, MedsslError, naming
from medssl.core.image import Image
from medssl.io.dicom import Source
from medssl.io.kspace import is_raw
from medssl.io.limits import Limits
from medssl.io.read import kind_of, read
from medssl.io.series import Series, list_readable, read_sources

LARGEST_SIDECAR = 1 << 22
"""Bytes; a longer JSON file is none of ours."""
SUFFIXES = (".nii", ".nii.gz", ".hdr", ".dcm", ".npy", ".png", ".jpg", ".jpeg", ".tif", ".tiff")
"""Of files that were meant as scans, even if they cannot be read."""
HEADER_OF_PAIR = ".hdr"
"""Of BART's raw data, which are found by their other file."""
SECOND_OF_PAIR = (".img", ".img.gz")


@dataclass(frozen=True)
class Found:
    """One scan, or what looked like one."""

    path: Path
    series: Series | None
    """Of a DICOM folder; None for files."""
    id: str
    """SHA-256 of its file, or of the digests of its instances: of a DICOM image as of others."""
    group: str
    """Where it lies below the folder: the first folder that tells patients apart, `""` if none."""
    refusal: MedsslError | None = None
    """Why it cannot be read; None when it may be."""


def find_scans(root: Path, limits: Limits | None = None) -> list[Found]:
    """Every scan below a folder, each content once, in the order of paths.

    Args:
        root: The folder; a lone file is a folder of one.
        limits: Bounds of what it may hold.

    Raises:
        InputError: Missing, not readable, more files than the limits allow.
    """
    limits = limits or Limits()
    if not root.exists():
        raise InputError("does not exist", "check the path", file=root)
    if root.is_file():
        return _once(_file(root, ""))
    found: list[Found] = []
    places = list(_folders(root, limits))
    common = Path(os.path.commonpath([p for p, files in places if files] or [root]))
    covered: Path | None = None  # DICOM folders are read with everything below them
    for place, files in places:
        below = place.relative_to(common).parts if place.is_relative_to(common) else ()
        group = below[0] if below else ""
        inside = covered is not None and place.is_relative_to(covered)
        covered = covered if inside else None
        for path in files:
            kind = _kind(path)
            if kind == "dicom" and path.suffix.lower() != ".zip":
                if covered is None:
                    covered = place
                    found += _series(place, group, limits)
            elif kind == "dicom":
                found += _series(path, group, limits)
            elif kind:
                found += _file(path, group)
    return _once(found)


def find_raw(root: Path, limits: Limits | None = None) -> list[Found]:
    """Every file of raw MR data below a folder, each content once, in the order of paths.

    Args:
        root: The folder; a lone file is a folder of one.
        limits: Bounds of what it may hold.

    Raises:
        InputError: Missing, not readable, more files than the limits allow.
    """
    if not root.exists():
        raise InputError("does not exist", "check the path", file=root)
    if root.is_file():
        return _once(_file(root, "")) if is_raw(root) else []
    places = list(_folders(root, limits or Limits()))
    common = Path(os.path.commonpath([p for p, files in places if files] or [root]))
    found: list[Found] = []
    for place, files in places:
        below = place.relative_to(common).parts if place.is_relative_to(common) else ()
        for path in files:
            if path.suffix != HEADER_OF_PAIR and is_raw(path):
                found += _file(path, below[0] if below else "")
    return _once(found)


def read_found(found: Found, limits: Limits) -> Image:
    """The image of a scan that was found; of a DICOM folder nothing but its series is opened.

    Raises:
        InputError: It is not what it was.
        MemoryLimitError: The voxels do not fit.
    """
    if found.series is None:
        return read(found.path, None, limits)
    return read_sources(found.series.sources, found.path.name, limits)


def _folders(root: Path, limits: Limits) -> Iterator[tuple[Path, list[Path]]]:
    """Folders in the order of bytes, with those of their files that may be scans."""
    seen: set[tuple[int, int]] = set()
    count = 0
    waiting = [root]
    while waiting:
        here = waiting.pop()
        try:
            status = here.stat()
            entries = sorted(os.scandir(here), key=lambda e: os.fsencode(e.name))
        except OSError as error:
            if here == root:
                raise InputError(f"cannot be opened ({error.strerror})", file=root) from error
            continue
        if (status.st_dev, status.st_ino) in seen:  # a link back
            continue
        seen.add((status.st_dev, status.st_ino))
        ours = _made_here([Path(e.path) for e in entries if e.name.endswith(".json")])
        entries = [e for e in entries if not e.name.startswith(".") and e.name not in ours]
        files, below = [], []
        for entry in entries:
            with contextlib.suppress(OSError):  # a link that leads nowhere
                if entry.is_dir():
                    below.append(Path(entry.path))
                elif entry.is_file():
                    files.append(Path(entry.path))
        count += len(files)
        if count > limits.files:
            raise InputError(f"holds more than {limits.files} files", "give a smaller folder")
        yield here, files
        waiting += reversed(below)


def _made_here(sidecars: list[Path]) -> set[str]:
    """Names of the outputs that sidecars of medssl list."""
    names: set[str] = set()
    for path in sidecars:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, IndexError):
            if path.stat().st_size <= LARGEST_SIDECAR:
                record = json.loads(path.read_bytes())
                if record["GeneratedBy"][0]["Name"] == "medssl":
                    names |= set(record["outputs"])
    return names


def _kind(path: Path) -> str:
    """What a file holds; `""` for notes, tables and the like, which nobody took for a scan."""
    try:
        kind = kind_of(path)
    except InputError:
        return "damaged" if path.name.lower().endswith(SUFFIXES) else ""
    second = kind == "nifti" and path.name.lower().endswith(SECOND_OF_PAIR)
    return "" if second else kind


def _file(path: Path, group: str) -> list[Found]:
    """A file that is a scan of its own."""
    try:
        with path.open("rb") as handle:
            return [Found(path, None, hashlib.file_digest(handle, "sha256").hexdigest(), group)]
    except OSError as error:
        refusal = InputError(f"cannot be opened ({error.strerror})", "check it", file=path)
        return [Found(path, None, "", group, refusal)]


def _series(path: Path, group: str, limits: Limits) -> list[Found]:
    """The series of a DICOM folder or zip, and its files that are damaged."""
    try:
        with naming(path):
            table, damaged = list_readable(path, limits)
    except MedsslError as error:
        return [Found(path, None, "", group, error)]
    found = [Found(source.path, None, _digest(source), group, why) for source, why in damaged]
    for one in table:
        refusal = None
        if one.refusal is not None:
            refusal = InputError(one.refusal, "export the series again", file=path)
        found.append(Found(path, one, _joined(one.sources), group, refusal))
    return found


def _digest(damaged: Source) -> str:
    """What a damaged file hashes to; nothing where not even its bytes can be read."""
    try:
        return _joined([damaged])
    except (MedsslError, OSError):
        return ""


def _joined(parts: Iterable[Source]) -> str:
    return hashlib.sha256("\n".join(part.sha256() for part in parts).encode()).hexdigest()


def _once(found: list[Found]) -> list[Found]:
    """Copies of a scan count once."""
    first: dict[str, Found] = {}
    for scan in found:
        first.setdefault(scan.id or str(scan.path), scan)
    return list(first.values())
