"""What the first bytes of a NIfTI file or a picture say: its shape and spacing, no voxels."""

import os
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from medssl.core.errors import InputError
from medssl.io import npy

WINDOW = 32 * 1024
LONGEST_NIFTI = 540
JPEG_WINDOW = 4 * 1024 * 1024
"""Bytes in which the size of a JPEG is looked for; profiles and thumbnails come before it."""
PAGES = 10_000
"""Of a TIFF that are counted."""
COPY_AGAIN = "copy or export the file again"
_GREY, _COLOUR = 1, 3


class Head(NamedTuple):
    """Shape and spacing of a scan that is one file."""

    kind: Literal["nifti", "picture"]
    shape: tuple[int, ...]
    """Along x, y and what else there is; colour is no axis."""
    spacing: tuple[float, ...]
    """Of the first three axes, mm; `()` where it is not said."""
    samples: int
    """Values of a voxel: 3 of a colour."""
    bits: int
    """Of a value; 0 where it is not said."""


def head(path: str | bytes | Path) -> Head | None:
    """Shape and spacing of a NIfTI file or a picture; None when it is neither.

    Raises:
        InputError: It starts like one and is damaged.
        OSError: The file cannot be read.
    """
    with Path(os.fsdecode(path)).open("rb") as handle:
        first = handle.read(WINDOW)
        try:
            found = _head(first, handle)
        except (struct.error, IndexError, ValueError, OverflowError, zlib.error) as error:
            raise InputError("ends inside its header", COPY_AGAIN) from error
    if found is not None and (not found.shape or min(found.shape) < 1):
        raise InputError(f"has shape {found.shape}", COPY_AGAIN)
    return found


def _head(first: bytes, handle: BinaryIO) -> Head | None:
    if first[:2] == b"\x1f\x8b":
        first = zlib.decompressobj(31).decompress(first, LONGEST_NIFTI)
        return _nifti(first)
    if first[:8] == b"\x89PNG\r\n\x1a\n":
        return _png(first)
    if first[:3] == b"\xff\xd8\xff":
        return _jpeg(first + handle.read(JPEG_WINDOW))
    if first[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _tiff(handle)
    if first.startswith(npy.MAGIC):
        shape, _, dtype = npy.read_header(BytesIO(first), COPY_AGAIN)
        if dtype.kind not in "iuf":
            raise InputError("holds no real numbers", "save real numbers")
        return Head("picture", shape[::-1], (), _GREY, 8 * dtype.itemsize)
    return _nifti(first)


def _nifti(block: bytes) -> Head | None:
    size = block[:4]
    order = "<" if size in (b"\x5c\x01\0\0", b"\x1c\x02\0\0") else ">"
    if size in (b"\x5c\x01\0\0", b"\0\0\x01\x5c"):
        magic, form, steps = block[344:347], "hhhhhhhh", "ffff"
        at_form, at_steps, at_type, at_units = 40, 76, 70, 123
        if magic not in (b"n+1", b"ni1"):
            raise InputError("is an Analyze file without orientation", "convert it to NIfTI")
    elif size in (b"\x1c\x02\0\0", b"\0\0\x02\x1c"):
        magic, form, steps = block[4:7], "qqqqqqqq", "dddd"
        at_form, at_steps, at_type, at_units = 16, 104, 12, 500
        if magic not in (b"n+2", b"ni2"):
            raise InputError("has the size of a NIfTI header, but not its mark", COPY_AGAIN)
    else:
        return None
    dims = struct.unpack_from(order + form, block, at_form)
    spacing = struct.unpack_from(order + steps, block, at_steps)
    datatype, bits = struct.unpack_from(order + "hh", block, at_type)
    unit = {1: 1000.0, 3: 0.001}.get(block[at_units] & 7, 1.0)  # metres, micrometres
    if not 1 <= dims[0] <= 7:
        raise InputError(f"has {dims[0]} dimensions", COPY_AGAIN)
    samples = {128: 3, 2304: 4}.get(datatype, 1)
    lengths = tuple(abs(step) * unit for step in spacing[1 : min(dims[0], 3) + 1])
    return Head("nifti", dims[1 : dims[0] + 1], lengths, samples, bits // samples)


def _png(first: bytes) -> Head:
    name, width, height, bits, colour = struct.unpack_from(">4sIIBB", first, 12)
    if name != b"IHDR":
        raise InputError("its PNG header is damaged", COPY_AGAIN)
    return Head("picture", (width, height), (), _COLOUR if colour & 2 else _GREY, bits)


def _jpeg(stream: bytes) -> Head:
    at = 2
    while True:
        while stream[at : at + 2] == b"\xff\xff":  # fill bytes
            at += 1
        mark, code, length = struct.unpack_from(">BBH", stream, at)
        if mark != 0xFF or code in (0xD9, 0xDA):
            raise InputError("its JPEG header is damaged", COPY_AGAIN)
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):
            bits, height, width, samples = struct.unpack_from(">BHHB", stream, at + 4)
            return Head("picture", (width, height), (), samples, bits)
        at += 2 + length


def _tiff(handle: BinaryIO) -> Head:
    """Of the first page; further pages are the third axis."""
    handle.seek(0)
    start = handle.read(16)
    order = "<" if start[:1] == b"I" else ">"
    big = start[2:4] in (b"+\0", b"\0+")
    count, step, entry = ("Q", 8, 20) if big else ("H", 2, 12)
    offset = "Q" if big else "I"
    (at,) = struct.unpack_from(order + offset, start, 8 if big else 4)
    seen: set[int] = set()
    values: dict[int, int] = {}
    while at and at not in seen and len(seen) < PAGES:
        seen.add(at)
        handle.seek(at)
        (n,) = struct.unpack(order + count, handle.read(step))
        if n > 65535:
            raise InputError("its TIFF structure is damaged", COPY_AGAIN)
        block = handle.read(n * entry)
        if len(seen) == 1:
            values = _tiff_values(block, order, entry)
        (at,) = struct.unpack(order + offset, handle.read(struct.calcsize("=" + offset)))
    size = (values.get(256, 0), values.get(257, 0))
    shape = (*size, len(seen)) if len(seen) > 1 else size
    return Head("picture", shape, (), values.get(277, 1), values.get(258, 0))


def _tiff_values(block: bytes, order: str, entry: int) -> dict[int, int]:
    """The short and long numbers of a page by tag, of lists that do not fit 0."""
    values = {}
    for at in range(0, len(block), entry):
        tag, kind = struct.unpack_from(order + "HH", block, at)
        form = "Q" if entry == 20 else "I"
        (many,) = struct.unpack_from(order + form, block, at + 4)
        if kind in (3, 4):
            letter, room = ("H", 2) if kind == 3 else ("I", 4)
            fits = many * room <= entry // 2 - 2
            start = at + (12 if entry == 20 else 8)
            values[tag] = struct.unpack_from(order + letter, block, start)[0] if fits else 0
    return values
