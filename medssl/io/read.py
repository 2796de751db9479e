"""One door for every kind of scan: the content decides, never the suffix."""

import gzip
import os
import stat
import zlib
from pathlib import Path

from medssl.core.errors import InputError, UsageError, naming
from medssl.core.image import Image
from medssl.io import cfl, nifti, picture
from medssl.io.limits import Limits
from medssl.io.series import read_series
from medssl.io.twix import is_twix

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"


def read(
    path: str | Path,
    series: str | None = None,
    limits: Limits | None = None,
    *,
    allow_gaps: bool = False,
) -> Image:
    """Read a scan: NIfTI, a DICOM file, folder or zip, PNG, JPEG, TIFF, NPY.

    Args:
        path: File or folder.
        series: Which series of a DICOM folder: its number, UID, or text of its description.
        limits: Bounds of what a file may ask for.
        allow_gaps: Read a DICOM series with missing slices as independent slices.

    Returns:
        The image in float32, with everything that its writer needs.

    Raises:
        InputError: Missing, damaged, or not one image; the message says what to do.
        MemoryLimitError: The voxels do not fit.
        UsageError: A series was named where there are none.
    """
    path = Path(path)
    limits = limits or Limits()
    with naming(path):
        kind = kind_of(path)
        if kind == "dicom":
            return read_series(path, series=series, limits=limits, allow_gaps=allow_gaps)
        if series is not None:
            raise UsageError("only DICOM holds several series", "leave --series out")
        return nifti.read(path, limits) if kind == "nifti" else picture.read(path, limits)


def kind_of(path: Path) -> str:
    """`dicom`, `nifti` or `picture`, by the first bytes.

    Raises:
        InputError: There is nothing to read, or nothing that is known here.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise InputError("does not exist", "check the path") from error
    except OSError as error:
        raise InputError(f"cannot be opened ({error.strerror})", "check the path") from error
    if stat.S_ISDIR(mode):
        return "dicom"
    if not stat.S_ISREG(mode):
        raise InputError("is neither a file nor a folder", "give a file or a folder")
    if not os.access(path, os.R_OK):
        raise InputError("must not be read by you", "check its permissions")
    head = _head(path)
    if not head:
        raise InputError("is empty", "copy the file again")
    if head[128:132] == b"DICM":  # first: its preamble may hold the start of a TIFF
        return "dicom"
    if nifti.is_nifti(head):
        return "nifti"
    if picture.kind_of(head):
        return "picture"
    if head.startswith(b"PK\x03\x04") or _is_bare_dicom(head):
        return "dicom"
    if head.startswith((HDF5_MAGIC, cfl.HEADER)) or is_twix(head, path.stat().st_size):
        raise InputError("holds raw k-space, not an image", "reconstruct it: medssl recon")
    raise InputError("is no scan that is known here", "give NIfTI, DICOM, PNG, JPEG, TIFF or NPY")


def _head(path: Path) -> bytes:
    """The first bytes, unzipped when the file is gzipped."""
    try:
        with path.open("rb") as handle:
            head = handle.read(4096)
        if not head.startswith(nifti.GZIP_MAGIC):
            return head
        with gzip.open(path, "rb") as handle:
            return handle.read(4096)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError("its gzip stream is damaged", "copy the file again") from error


def _is_bare_dicom(head: bytes) -> bool:
    """A data set without preamble starts with a tag of group 2 or 8 and a modest length."""
    group = int.from_bytes(head[:2], "little")
    return len(head) > 132 and group in (2, 8) and int.from_bytes(head[2:4], "little") < 0x2000
