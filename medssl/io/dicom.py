"""One DICOM instance, safely: found, walked, and decoded only after every length agrees.

The walker goes over the elements with an explicit stack before anything else sees them, so that
nested sequences, lengths past the end and damaged files end in one line. Pixel bytes are read
frame by frame.
"""

import contextlib
import hashlib
import itertools
import os
import re
import stat
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom import config as pydicom_config
from pydicom.charset import convert_encodings, decode_bytes
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filereader import read_dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID

from medssl.core.errors import InputError, MedsslError, naming, printable
from medssl.io.limits import MIB, Limits

UNDEFINED = 0xFFFFFFFF
PIXEL_DATA = 0x7FE00010
PIXEL_TAGS = frozenset({PIXEL_DATA, 0x7FE00008, 0x7FE00009})
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD

IMPLICIT_LE = "1.2.840.10008.1.2"
EXPLICIT_LE = "1.2.840.10008.1.2.1"
DEFLATED_LE = "1.2.840.10008.1.2.1.99"
EXPLICIT_BE = "1.2.840.10008.1.2.2"
NATIVE = frozenset({IMPLICIT_LE, EXPLICIT_LE, DEFLATED_LE, EXPLICIT_BE})

_JPEG = "1.2.840.10008.1.2.4."
CODECS: dict[str, tuple[str, str]] = {
    "1.2.840.10008.1.2.5": ("pydicom", "pydicom"),
    **{_JPEG + n: ("gdcm", "python-gdcm") for n in ("50", "51", "57", "70")},
    **{_JPEG + n: ("pyjpegls", "pyjpegls") for n in ("80", "81")},
    **{_JPEG + n: ("pylibjpeg", "pylibjpeg-openjpeg") for n in ("90", "91", "201", "202", "203")},
}
"""Compressed transfer syntax to (plug-in of pydicom, package to install)."""

NOT_IMAGES = frozenset(
    {"SEG", "SR", "PR", "KO", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "DOC", "REG", "ECG"}
    | {"AU", "FID", "PLAN", "HD", "EPS", "RESP", "SM", "SMR", "TEXTUREMAP", "M3D"}
)
"""Modalities of objects that are not images with geometry, or not of one value per pixel."""

_LONG = frozenset(b"OB OW OF OD OL OV SQ UC UR UT UN SV UV".split())
_SHORT = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
_TEXT = {vr: vr.decode() for vr in _LONG | _SHORT}
_PREFIX = 64 * 1024


@dataclass(frozen=True)
class ZipEntry:
    """Where a member of a zip lies, from the central directory."""

    name: str
    offset: int
    compressed: int
    size: int
    deflated: bool
    crc: int


@dataclass(frozen=True)
class Source:
    """Where the bytes of an instance come from: a file, a member of a zip, or memory."""

    path: Path
    member: ZipEntry | None = None
    held: bytes | None = field(default=None, repr=False)
    """The bytes themselves, of an instance that never lay in a file."""

    @property
    def name(self) -> str:
        """Base name, for messages."""
        return Path(self.member.name).name if self.member else self.path.name

    @property
    def size(self) -> int:
        """Bytes."""
        if self.held is not None:
            return len(self.held)
        return self.member.size if self.member else self.path.stat().st_size

    def read(self, offset: int = 0, length: int = -1) -> bytes:
        """Bytes from `offset`; a zip member is inflated in memory, its CRC checked.

        Raises:
            InputError: The member is damaged.
            OSError: The file cannot be read.
        """
        if self.held is None and self.member is None:
            with self.path.open("rb") as handle:
                handle.seek(offset)
                return handle.read(length)
        body = self.held if self.member is None else _unzip(self.path, self.member)
        assert body is not None
        return body[offset:] if length < 0 else body[offset : offset + length]

    def sha256(self) -> str:
        """Of the instance as it lies in the file or the zip."""
        if self.member is not None or self.held is not None:
            return hashlib.sha256(self.read()).hexdigest()
        with self.path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()


class Element(NamedTuple):
    """One element that the walker passed; `length` may be `UNDEFINED`."""

    tag: int
    vr: str
    offset: int
    length: int
    depth: int


@dataclass(frozen=True)
class Layout:
    """How the elements after the file meta information are encoded."""

    start: int
    syntax: str
    sop_class: str = ""
    sop_uid: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def implicit(self) -> bool:
        """Whether elements carry no VR."""
        return self.syntax == IMPLICIT_LE

    @property
    def little(self) -> bool:
        """Whether numbers are little endian."""
        return self.syntax != EXPLICIT_BE


@dataclass(frozen=True)
class Instance:
    """One instance, opened: its walked header and where its pixels lie."""

    source: Source
    layout: Layout
    header: bytes
    """The elements before the pixels, encoded as `layout` says."""
    elements: dict[int, Element]
    """Elements of the outermost level by tag; offsets into `header`."""
    pixel_tag: int
    """`PIXEL_DATA`, one of the float kinds, or 0 when there are no pixels."""
    pixel_vr: str
    pixel_offset: int
    """Of the first pixel byte, in `body` or the source."""
    pixel_length: int
    size: int
    """Bytes of the whole instance."""
    body: bytes | None = field(default=None, repr=False)
    """The inflated instance, when it cannot be read piece by piece."""

    def read(self, offset: int, length: int) -> bytes:
        """A piece of the instance; shorter at its end."""
        if self.body is not None:
            return self.body[offset : offset + length]
        return self.source.read(offset, length)

    def value(self, tag: int) -> bytes | None:
        """The raw bytes of an outermost element, None when absent."""
        found = self.elements.get(tag)
        if found is None or found.length == UNDEFINED:
            return None
        return self.header[found.offset : found.offset + found.length]

    def text(self, tag: int) -> str:
        """A text in the declared character set, without padding; `""` when absent."""
        raw = self.value(tag)
        if not raw:
            return ""
        if tag == 0x0008103E:
            declared = self.text(0x00080005).split("\\")
            with quiet():
                raw_text = decode_bytes(raw, convert_encodings(declared), {0x5C})
        else:
            raw_text = raw.decode("latin-1")
        return raw_text.strip(" \0\t\r\n")

    def integer(self, tag: int) -> int | None:
        """A number of VR US (or the first of several); None when absent or empty."""
        raw = self.value(tag)
        if not raw:
            return None
        return int.from_bytes(raw[:2], "little" if self.layout.little else "big")

    def numbers(self, tag: int) -> tuple[float, ...]:
        """The numbers of a DS, IS or FD element; empty when absent.

        Raises:
            InputError: Not numbers, or not finite.
        """
        raw = self.value(tag)
        if not raw:
            return ()
        try:
            if self.elements[tag].vr == "FD" and len(raw) % 8 == 0:
                order = "<" if self.layout.little else ">"
                numbers = struct.unpack(f"{order}{len(raw) // 8}d", raw)
            else:
                text = raw.decode("latin-1").strip(" \0\t\r\n")
                if not text:
                    return ()
                numbers = tuple(float(part) for part in text.split("\\"))
        except ValueError as error:
            raise InputError(
                f"{keyword_for_tag(tag)} is not a number", "export the file again"
            ) from error
        if not np.isfinite(numbers).all():
            raise InputError(f"{keyword_for_tag(tag)} is not finite", "export the file again")
        return numbers

    def dataset(self) -> Dataset:
        """The header as pydicom knows it, elements kept raw until they are asked for.

        Raises:
            InputError: pydicom cannot parse it.
        """
        layout = self.layout
        with quiet(), refusing("its header cannot be parsed"):
            dataset: Dataset = read_dataset(BytesIO(self.header), layout.implicit, layout.little)
            encoding = dataset.get("SpecificCharacterSet", None)
            dataset.set_original_encoding(
                layout.implicit, layout.little, convert_encodings(encoding or "")
            )
            meta = FileMetaDataset()
            meta.TransferSyntaxUID = UID(layout.syntax)
            meta.MediaStorageSOPClassUID = UID(layout.sop_class)
            meta.MediaStorageSOPInstanceUID = UID(layout.sop_uid)
            dataset.file_meta = meta
        return dataset


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No warning of pydicom reaches the terminal; values are checked here, not there."""
    settings = pydicom_config.settings
    before = settings.reading_validation_mode, settings.writing_validation_mode
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings.reading_validation_mode = pydicom_config.IGNORE
        settings.writing_validation_mode = pydicom_config.IGNORE
        try:
            yield
        finally:
            settings.reading_validation_mode, settings.writing_validation_mode = before


@contextlib.contextmanager
def refusing(fact: str, remedy: str = "copy or export the file again") -> Iterator[None]:
    """Whatever foreign code raises on hostile bytes becomes one refusal without its text."""
    try:
        yield
    except (MedsslError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise InputError(fact, remedy) from error


def sources(path: Path, limits: Limits | None = None) -> list[Source]:
    """Every regular file under a folder, the members of a zip, or one file; sorted by bytes.

    Nothing is opened but a zip that is named itself; FIFOs and devices are passed over, folders
    reached twice through links are entered once.

    Raises:
        InputError: Missing, unreadable, more files than the limits allow, or a hostile zip.
    """
    limits = limits or Limits()
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return [Source(p) for p in _files(path, limits)]
        if not stat.S_ISREG(mode):
            raise InputError("is neither a file nor a folder", "give a file or a folder")
        with path.open("rb") as handle:
            is_zip = handle.read(4) == b"PK\x03\x04"
    except FileNotFoundError as error:
        raise InputError("does not exist", "check the path", file=path) from error
    except OSError as error:
        raise InputError(
            f"cannot be opened ({error.strerror})", "check the path", file=path
        ) from error
    return [Source(path, entry) for entry in _members(path, limits)] if is_zip else [Source(path)]


def is_dicom(head: bytes) -> bool:
    """Whether the first bytes are a DICOM file, with or without preamble."""
    return head[128:132] == b"DICM" or _bare(head) is not None


def open_instance(source: Source, limits: Limits | None = None) -> Instance | None:
    """Walk an instance up to its pixels; None when the file is not DICOM.

    Args:
        source: Where its bytes are.
        limits: Bounds of elements, nesting and inflation.

    Raises:
        InputError: Damaged or hostile.
        OSError: The file cannot be read.
    """
    limits = limits or Limits()
    with naming(source.name):
        body = source.read() if source.member else source.held
        head = source.read(0, _PREFIX) if body is None else body[:_PREFIX]
        if not is_dicom(head):
            return None
        size = source.size
        layout = _layout(head, size)
        if layout.syntax == DEFLATED_LE:
            whole = source.read() if body is None else body
            body = _inflate(whole[layout.start :], layout, limits)
            layout = Layout(0, DEFLATED_LE, layout.sop_class, layout.sop_uid, layout.warnings)
            size = len(body)
        if body is not None:
            return _walked(source, layout, body, size, limits, body)
        length = len(head)
        while True:
            try:
                return _walked(source, layout, head, size, limits, None)
            except _NeedsMoreError:
                length *= 8
                head = source.read(0, length)
                if len(head) < min(length, size):
                    raise InputError("changed while it was read", "try again") from None


def walk(
    buffer: bytes,
    start: int = 0,
    *,
    implicit: bool = False,
    little: bool = True,
    size: int | None = None,
    limits: Limits | None = None,
) -> Iterator[Element]:
    """Every element of a data set in file order, nested ones too; stops at the pixels.

    Args:
        buffer: The first bytes of the file.
        start: Offset of the first element.
        implicit: Whether elements carry no VR.
        little: Whether numbers are little endian.
        size: Bytes of the whole file, when `buffer` is its beginning only.
        limits: Bounds of elements and nesting.

    Yields:
        Elements; each length was checked against what contains it.

    Raises:
        InputError: A length that does not fit, broken order, or a limit passed.
    """
    limits = limits or Limits()
    size = len(buffer) if size is None else size
    have = len(buffer)
    order = "<" if little else ">"
    pair, wide, long = (struct.Struct(order + f).unpack_from for f in ("HH", "HHI", "I"))
    short = struct.Struct(order + "H").unpack_from
    # A level is [kind, end or None when undefined, hard end, implicit, last tag, elements]
    level: list[Any] = ["set", size, size, implicit, -1, 0]
    stack: list[list[Any]] = []
    position, total = start, 0
    while True:
        kind, end, hard, plain, last, count = level
        if end is not None and position >= end:
            if position > end:
                raise _damaged("an element reaches past what contains it")
            if not stack:
                return
            level = stack.pop()
            continue
        if position + 8 > hard:
            raise _damaged("it ends inside an element")
        if position + 12 > have and have < size:
            raise _NeedsMoreError
        if kind != "set":
            group, element, length = wide(buffer, position)
            tag = group << 16 | element
            position += 8
            if tag == SEQUENCE_END and end is None:
                level = stack.pop()
                continue
            if tag != ITEM:
                raise _damaged("a sequence is not closed")
            level[5] = count + 1
            if count >= limits.frames:
                raise _damaged(f"a sequence holds more than {limits.frames} items")
            if length == UNDEFINED:
                if kind == "fragments":
                    raise _damaged("a fragment has no length")
                stack.append(level)
                level = ["set", None, hard, plain, -1, 0]
            elif position + length > hard:
                raise _damaged("an item reaches past what contains it")
            elif kind == "fragments":
                position += length
            else:
                stack.append(level)
                level = ["set", position + length, position + length, plain, -1, 0]
            continue
        group, element = pair(buffer, position)
        tag = group << 16 | element
        if group == 0xFFFE:
            if tag == ITEM_END and end is None:
                position += 8
                level = stack.pop()
                continue
            raise _damaged("a sequence delimiter stands alone")
        if plain:
            (length,) = long(buffer, position + 4)
            position += 8
            vr = _dictionary_vr(tag)
        else:
            code = buffer[position + 4 : position + 6]
            if code in _SHORT:
                (length,) = short(buffer, position + 6)
                position += 8
            elif code in _LONG:
                if position + 12 > hard:
                    raise _damaged("it ends inside an element")
                (length,) = long(buffer, position + 8)
                position += 12
            else:
                raise _damaged(f"element ({group:04X},{element:04X}) has no known VR")
            vr = _TEXT[code]
        if tag <= last:
            raise _damaged(f"element ({group:04X},{element:04X}) is out of order or doubled")
        level[4] = tag
        level[5] = count + 1
        total += 1
        if count >= limits.elements_per_level or total > limits.elements:
            raise _damaged(
                f"it holds more than {count if total <= limits.elements else total} elements"
            )
        yield Element(tag, vr, position, length, len(stack))
        if not stack and tag in PIXEL_TAGS:
            return
        nested = vr == "SQ" or (length == UNDEFINED and vr == "UN")
        if nested or length == UNDEFINED:
            if not nested and vr not in ("OB", "OW"):
                raise _damaged(f"element ({group:04X},{element:04X}) has no length")
            if len(stack) >= 2 * limits.nesting:
                raise _damaged(f"its sequences are nested deeper than {limits.nesting}")
            stack.append(level)
            inner = plain or (vr == "UN" and length == UNDEFINED)
            if length == UNDEFINED:
                level = ["items" if nested else "fragments", None, hard, inner, -1, 0]
            else:
                if position + length > hard:
                    raise _damaged("a sequence reaches past what contains it")
                level = ["items", position + length, position + length, inner, -1, 0]
            continue
        position += length
        if position > hard:
            raise _damaged(
                f"element ({group:04X},{element:04X}) claims {length} bytes, "
                f"{hard - position + length} are left"
            )
        if position > have:
            raise _NeedsMoreError


def decode(
    instance: Instance, frame: int = 0, limits: Limits | None = None
) -> tuple[NDArray[np.generic], tuple[str, ...]]:
    """The stored integers of one frame.

    Args:
        instance: An opened instance.
        frame: Which frame, from 0.
        limits: Bound of the pixels in memory.

    Returns:
        (rows, columns) native integers, bits above BitsStored masked off, and warnings.

    Raises:
        InputError: Lengths, code stream and header disagree, or no decoder is there.
    """
    with naming(instance.source.name):
        shape = PixelShape.of(instance)
        (limits or Limits()).check_pixels(shape.frame_bytes)
        if not 0 <= frame < shape.frames:
            raise InputError(f"has {shape.frames} frames, frame {frame + 1} was asked for")
        if instance.layout.syntax in NATIVE:
            return shape.aligned(_native(instance, shape, frame))
        stored = _compressed(instance, shape, frame)
        low, high = int(stored.min()), int(stored.max())
        if low < shape.lowest or high > shape.highest:
            raise InputError(
                f"its compressed pixels reach {low} to {high}, {shape.stored} bits cannot",
                "export the file again",
            )
        return stored, ()


@dataclass(frozen=True)
class PixelShape:
    """What the header says of the pixels."""

    rows: int
    columns: int
    frames: int
    allocated: int
    stored: int
    high: int
    signed: bool
    photometric: str

    @classmethod
    def of(cls, instance: Instance) -> "PixelShape":
        """Read and check the pixel description.

        Raises:
            InputError: Missing, zero, colour, or of a size that is not supported.
        """
        rows, columns = instance.integer(0x00280010), instance.integer(0x00280011)
        allocated, stored = instance.integer(0x00280100), instance.integer(0x00280101)
        if instance.pixel_tag not in (0, PIXEL_DATA):
            raise InputError("its pixels are floating point", "give the image it was made from")
        for name, number in (
            ("Rows", rows),
            ("Columns", columns),
            ("BitsAllocated", allocated),
        ):
            if not number:
                raise InputError(f"{name} is missing or 0", "export the file again")
        assert rows
        assert columns
        assert allocated
        samples = instance.integer(0x00280002) or 1
        photometric = instance.text(0x00280004) or "MONOCHROME2"
        if samples != 1 or not photometric.startswith("MONOCHROME"):
            raise InputError(
                f"is a colour image ({printable(photometric, 16)}, {samples} samples)",
                "only images of one value per pixel can be processed",
            )
        if allocated not in (8, 16, 32):
            raise InputError(f"BitsAllocated is {allocated}", "8, 16 and 32 can be read")
        stored = allocated if stored is None else stored
        if not 1 <= stored <= allocated:
            raise InputError(f"BitsStored is {stored} of {allocated} bits", "export the file again")
        high = instance.integer(0x00280102)
        frames = instance.numbers(0x00280008)
        count = int(frames[0]) if frames else 1
        if count < 1:
            raise InputError(f"NumberOfFrames is {count}", "export the file again")
        return cls(
            rows,
            columns,
            count,
            allocated,
            stored,
            stored - 1 if high is None else high,
            (instance.integer(0x00280103) or 0) == 1,
            photometric,
        )

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Of the stored numbers, native."""
        return np.dtype(f"{'i' if self.signed else 'u'}{self.allocated // 8}")

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame."""
        return self.rows * self.columns * self.allocated // 8

    @property
    def lowest(self) -> int:
        """Smallest number that BitsStored can hold."""
        return -(1 << (self.stored - 1)) if self.signed else 0

    @property
    def highest(self) -> int:
        """Largest number that BitsStored can hold."""
        return (1 << (self.stored - 1)) - 1 if self.signed else (1 << self.stored) - 1

    def aligned(self, stored: NDArray[np.generic]) -> tuple[NDArray[np.generic], tuple[str, ...]]:
        """The numbers without the bits that do not belong to them."""
        found: list[str] = []
        bits = self.dtype.type
        shift = self.high + 1 - self.stored
        if shift:
            found.append(f"HighBit is {self.high} where BitsStored is {self.stored}")
            if 0 < shift <= self.allocated - self.stored:
                stored = np.right_shift(stored, bits(shift))
        spare = self.allocated - self.stored
        if spare and stored.size:
            low, high = int(stored.min()), int(stored.max())
            if low < self.lowest or high > self.highest:
                found.append("bits above BitsStored were removed from some pixels")
                stored = np.right_shift(np.left_shift(stored, bits(spare)), bits(spare))
        return stored, tuple(found)


def check_pixels(instance: Instance, shape: PixelShape, limits: Limits) -> None:
    """Compare the pixel element with the header, without reading pixels.

    Raises:
        InputError: No pixels, too few, too many; or more frames than the limits allow.
    """
    if not instance.pixel_tag:
        raise InputError("has no PixelData", "export the images, not only their headers")
    if shape.frames > limits.frames:
        raise InputError(f"claims {shape.frames} frames", "NumberOfFrames is damaged")
    if instance.layout.syntax in NATIVE:
        if instance.pixel_length == UNDEFINED:
            raise InputError(
                "its pixels are compressed, its transfer syntax says they are not",
                "export the file again",
            )
        expected = shape.frame_bytes * shape.frames
        if instance.pixel_length not in (expected, expected + expected % 2):
            raise InputError(
                f"PixelData has {instance.pixel_length} bytes, "
                f"{shape.columns}x{shape.rows}x{shape.frames} pixels need {expected}",
                "copy or export the file again",
            )
        return
    codec(instance.layout.syntax)
    if instance.pixel_length != UNDEFINED:
        raise InputError(
            "its pixels are not compressed, its transfer syntax says they are",
            "export the file again",
        )


def uid_name(uid: str) -> str:
    """What the standard calls a UID; the UID itself when it is not of the standard."""
    return str(UID(uid, validation_mode=pydicom_config.IGNORE).name)


def codec(syntax: str) -> tuple[str, str]:
    """The plug-in that decodes a transfer syntax, and the package that brings it.

    Raises:
        InputError: Nothing does, or the package is not installed.
    """
    name = printable(uid_name(syntax), 60)
    if syntax not in CODECS:
        raise InputError(
            f"transfer syntax {printable(syntax, 40)} ({name}) cannot be decoded",
            "convert it to an uncompressed syntax, for example with gdcmconv --raw",
        )
    plugin, package = CODECS[syntax]
    with quiet():
        available = get_decoder(UID(syntax))._available
    if plugin not in available:
        raise InputError(
            f"transfer syntax {syntax} ({name}) needs a decoder", f"pip install {package}"
        )
    return plugin, package


def _native(instance: Instance, shape: PixelShape, frame: int) -> NDArray[np.generic]:
    check_pixels(instance, shape, Limits())
    order: Literal["<", ">"] = "<" if instance.layout.little else ">"
    offset = instance.pixel_offset + frame * shape.frame_bytes
    raw = instance.read(offset, shape.frame_bytes)
    if len(raw) != shape.frame_bytes:
        raise InputError("ends inside its pixels", "copy the file again")
    if order == ">" and instance.pixel_vr == "OW" and shape.allocated == 8:
        # Bytes of a big-endian word come in the order of the word.
        offset = instance.pixel_offset + frame * shape.frame_bytes
        first = offset - (offset - instance.pixel_offset) % 2
        words = instance.read(first, shape.frame_bytes + 2)
        swapped = np.frombuffer(words[: len(words) // 2 * 2], ">u2").astype("<u2").tobytes()
        raw = swapped[offset - first : offset - first + shape.frame_bytes]
    stored = np.frombuffer(raw, shape.dtype.newbyteorder(order))
    return stored.astype(shape.dtype).reshape(shape.rows, shape.columns)


def _compressed(instance: Instance, shape: PixelShape, frame: int) -> NDArray[np.generic]:
    check_pixels(instance, shape, Limits())
    syntax = instance.layout.syntax
    plugin, _ = codec(syntax)
    parts = frames_of(instance, shape.frames)[frame]
    stream = b"".join(instance.read(offset, length) for offset, length in parts)
    _check_stream(stream, syntax, shape)
    with quiet(), refusing(f"its {_family(syntax)} pixels cannot be decoded", "copy it again"):
        if syntax == _JPEG + "51" and shape.stored > 8:
            return _gdcm_extended(stream, shape)
        decoder: Any = get_decoder(UID(syntax))
        array, _ = decoder.as_array(
            encapsulate([stream]),
            index=0,
            raw=True,
            decoding_plugin=plugin,
            rows=shape.rows,
            columns=shape.columns,
            number_of_frames=1,
            samples_per_pixel=1,
            bits_allocated=shape.allocated,
            bits_stored=shape.stored,
            photometric_interpretation="MONOCHROME2",
            pixel_representation=int(shape.signed),
            pixel_keyword="PixelData",
        )
    if array.shape != (shape.rows, shape.columns):
        raise InputError(f"decodes to {array.shape}, the header says otherwise", "copy it again")
    return np.asarray(array).astype(shape.dtype)


def frames_of(instance: Instance, frames: int) -> list[list[tuple[int, int]]]:
    """Where the fragments (offset, length) of each frame lie.

    Raises:
        InputError: Fragments that are cut, or do not divide into the frames.
    """
    position = instance.pixel_offset
    fragments: list[tuple[int, int]] = []
    while True:
        head = instance.read(position, 8)
        if len(head) < 8:
            raise InputError("ends inside its compressed pixels", "copy the file again")
        group, element, length = struct.unpack("<HHI", head)
        tag = group << 16 | element
        position += 8
        if tag == SEQUENCE_END:
            break
        if tag != ITEM or length == UNDEFINED or position + length > instance.size:
            raise InputError("its compressed pixels are damaged", "copy the file again")
        fragments.append((position, length))
        position += length
        if len(fragments) > 64 * max(frames, 1) + 65536:
            raise InputError("its pixels lie in too many fragments", "export the file again")
    if not fragments:
        raise InputError("its compressed pixels are empty", "copy the file again")
    table, fragments = fragments[0], fragments[1:]
    if len(fragments) < frames:
        raise InputError(
            f"has {len(fragments)} compressed fragments for {frames} frames", "copy the file again"
        )
    if frames == 1:
        return [fragments]
    if len(fragments) == frames:
        return [[fragment] for fragment in fragments]
    offsets = struct.unpack(f"<{table[1] // 4}I", instance.read(table[0], table[1] // 4 * 4))
    starts = {offset - fragments[0][0]: i for i, (offset, _) in enumerate(fragments)}
    if len(offsets) != frames or any(offset not in starts for offset in offsets):
        raise InputError(
            f"has {len(fragments)} compressed fragments for {frames} frames and no table",
            "export the file again",
        )
    cuts = [starts[offset] for offset in offsets] + [len(fragments)]
    if any(a >= b for a, b in itertools.pairwise(cuts)):
        raise InputError("its table of frames is damaged", "export the file again")
    return [fragments[a:b] for a, b in itertools.pairwise(cuts)]


def _check_stream(stream: bytes, syntax: str, shape: PixelShape) -> None:
    """Compare the size inside the code stream with the header before any decoder sees it."""
    if syntax not in CODECS or CODECS[syntax][0] == "pydicom":
        segments = int.from_bytes(stream[:4], "little")
        if len(stream) < 64 or segments != shape.allocated // 8:
            raise InputError(
                f"its RLE pixels have {segments} segments, {shape.allocated} bits need "
                f"{shape.allocated // 8}",
                "copy or export the file again",
            )
        if shape.frame_bytes > 64 * len(stream):  # two bytes stand for 128 at most
            raise InputError(
                f"its RLE pixels are too short for {shape.columns}x{shape.rows}",
                "copy or export the file again",
            )
        return
    found = _jpeg2000_size(stream) if CODECS[syntax][0] == "pylibjpeg" else _jpeg_size(stream)
    if found is None:
        raise InputError(f"its pixels are not {_family(syntax)}", "copy or export the file again")
    rows, columns, bits, components = found
    if (rows, columns, components) != (shape.rows, shape.columns, 1):
        raise InputError(
            f"its {_family(syntax)} pixels are {columns}x{rows}x{components}, "
            f"the header says {shape.columns}x{shape.rows}",
            "copy or export the file again",
        )
    if bits > shape.allocated or (bits > 8) != (shape.stored > 8):
        raise InputError(
            f"its {_family(syntax)} pixels have {bits} bits, the header says {shape.stored}",
            "copy or export the file again",
        )


def _jpeg_size(stream: bytes) -> tuple[int, int, int, int] | None:
    """Rows, columns, bits and components of the frame header of a JPEG or JPEG-LS stream."""
    if stream[:2] != b"\xff\xd8":
        return None
    position = 2
    while position + 4 <= len(stream):
        if stream[position] != 0xFF:
            return None
        marker = stream[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        length = int.from_bytes(stream[position + 2 : position + 4], "big")
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            head = stream[position + 4 : position + 10]
            if len(head) < 6:
                return None
            bits, rows, columns, components = struct.unpack(">BHHB", head)
            return rows, columns, bits, components
        if length < 2 or marker == 0xDA:
            return None
        position += 2 + length
    return None


def _jpeg2000_size(stream: bytes) -> tuple[int, int, int, int] | None:
    """Rows, columns, bits and components of the SIZ marker, also inside a JP2 box."""
    start = stream[:65536].find(b"\xff\x4f\xff\x51")
    if start < 0 or len(stream) < start + 45:
        return None
    right, bottom, left, top = struct.unpack(">4I", stream[start + 8 : start + 24])
    (components,) = struct.unpack(">H", stream[start + 40 : start + 42])
    bits = (stream[start + 42] & 0x7F) + 1
    return bottom - top, right - left, bits, components


def _gdcm_extended(stream: bytes, shape: PixelShape) -> NDArray[np.generic]:
    """Lossy JPEG of 12 bits, which pydicom does not ask gdcm for."""
    import gdcm  # type: ignore[import-untyped]

    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(stream)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((shape.columns, shape.rows, 1))
    image.SetDataElement(element)
    kind = gdcm.PhotometricInterpretation.GetPIType("MONOCHROME2")
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    syntax = gdcm.TransferSyntax.GetTSType(_JPEG + "51")
    image.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    image.SetPixelFormat(
        gdcm.PixelFormat(1, shape.allocated, shape.stored, shape.stored - 1, int(shape.signed))
    )
    raw = image.GetBuffer().encode("utf-8", "surrogateescape")
    return np.frombuffer(raw, shape.dtype).reshape(shape.rows, shape.columns)


def _family(syntax: str) -> str:
    """How a compression is called in a message."""
    return {"pydicom": "RLE", "gdcm": "JPEG", "pyjpegls": "JPEG-LS"}.get(
        CODECS[syntax][0], "JPEG 2000"
    )


def _walked(
    source: Source, layout: Layout, buffer: bytes, size: int, limits: Limits, body: bytes | None
) -> Instance:
    """An instance from the bytes of its beginning."""
    elements: dict[int, Element] = {}
    pixels: Element | None = None
    for element in walk(
        buffer,
        layout.start,
        implicit=layout.implicit,
        little=layout.little,
        size=size,
        limits=limits,
    ):
        if element.depth:
            continue
        if element.tag in PIXEL_TAGS:
            pixels = element
        else:
            elements[element.tag] = element
    start = layout.start
    shifted = {
        tag: Element(tag, e.vr, e.offset - start, e.length, 0) for tag, e in elements.items()
    }
    if pixels is None:
        return Instance(source, layout, bytes(buffer[start:]), shifted, 0, "", size, 0, size, body)
    if pixels.length != UNDEFINED and pixels.offset + pixels.length > size:
        raise InputError(
            f"PixelData claims {pixels.length} bytes, {size - pixels.offset} are left",
            "the file is cut; copy it again",
        )
    end = pixels.offset - (8 if layout.implicit else 12)
    return Instance(
        source,
        layout,
        bytes(buffer[start:end]),
        shifted,
        pixels.tag,
        pixels.vr,
        pixels.offset,
        pixels.length,
        size,
        body,
    )


def _layout(head: bytes, size: int) -> Layout:
    """The transfer syntax and where the data set starts."""
    position = 132 if head[128:132] == b"DICM" else 0
    values: dict[int, str] = {}
    while position + 12 <= len(head):
        group, element = struct.unpack_from("<HH", head, position)
        if group != 2:
            break
        code = head[position + 4 : position + 6]
        if code in _LONG:
            (length,) = struct.unpack_from("<I", head, position + 8)
            position += 12
        elif code in _SHORT:
            (length,) = struct.unpack_from("<H", head, position + 6)
            position += 8
        else:
            raise _damaged("its file meta information has no known VR")
        if position + length > size or length > _PREFIX // 2:
            raise _damaged("its file meta information reaches past the end")
        values[element] = head[position : position + length].decode("latin-1").strip(" \0")
        position += length
    syntax = values.get(0x0010, "")
    names = values.get(0x0002, ""), values.get(0x0003, "")
    if syntax:
        return Layout(position, syntax, *names)
    guess = _bare(head[position:])
    if guess is None:
        if position >= size:
            raise _damaged("it ends after its file meta information")
        guess = IMPLICIT_LE
    return Layout(position, guess, *names, ("has no transfer syntax in its header",))


def _bare(head: bytes) -> str | None:
    """The transfer syntax of a data set that starts right away; None when it is none."""
    if len(head) < 16:
        return None
    for order, syntax in (("<", EXPLICIT_LE), (">", EXPLICIT_BE)):
        group, element = struct.unpack_from(order + "HH", head)
        if group not in (2, 8) or element >= 0x2000:
            continue
        if head[4:6] in _SHORT or head[4:6] in _LONG:
            return syntax
        if order == "<" and struct.unpack_from("<I", head, 4)[0] < 0x10000:
            return IMPLICIT_LE
    return None


def _inflate(deflated: bytes, layout: Layout, limits: Limits) -> bytes:
    """The data set of the deflated syntax, never more than its header declares."""
    stream = zlib.decompressobj(-15)
    with refusing("its deflated data set is damaged", "copy the file again"):
        body = stream.decompress(deflated, limits.slack)
        declared = 0
        if stream.unconsumed_tail:
            declared = _declared(body, layout, limits)
            body += stream.decompress(stream.unconsumed_tail, declared + MIB)
        if stream.unconsumed_tail:
            raise InputError(
                f"inflates to more than the {declared} bytes that its header declares",
                "the file is damaged or hostile",
            )
        if not stream.eof and len(body) < 132:
            raise InputError("its deflated data set is cut", "copy the file again")
    return body


def _declared(body: bytes, layout: Layout, limits: Limits) -> int:
    """Bytes of pixels that the beginning of a data set announces."""
    sizes = {0x00280010: 0, 0x00280011: 0, 0x00280100: 16, 0x00280002: 1}
    frames = 1
    try:
        for element in walk(body, size=2**48, little=layout.little, limits=limits):
            raw = body[element.offset : element.offset + element.length]
            if element.depth == 0 and element.tag in sizes:
                sizes[element.tag] = int.from_bytes(raw[:2], "little")
            elif element.depth == 0 and element.tag == 0x00280008:
                frames = int(raw.decode("latin-1").strip(" \0") or 1)
    except (_NeedsMoreError, ValueError):
        return 0
    rows, columns, bits, samples = sizes.values()
    declared = rows * columns * samples * frames * (bits // 8)
    limits.check_pixels(declared)
    return declared


def _files(folder: Path, limits: Limits) -> list[Path]:
    """Regular files under a folder; each real folder is entered once."""
    seen: set[tuple[int, int]] = set()
    found: list[Path] = []
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        status = here.stat()
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        try:
            entries = sorted(os.scandir(here), key=lambda e: os.fsencode(e.name))
        except PermissionError:
            if here == folder:
                raise
            continue
        for entry in entries:
            with contextlib.suppress(OSError):  # a link that leads nowhere
                if entry.is_dir():
                    waiting.append(Path(entry.path))
                elif entry.is_file():
                    found.append(Path(entry.path))
        if len(found) > limits.files:
            raise InputError(f"holds more than {limits.files} files", "give a smaller folder")
    return sorted(found, key=os.fsencode)


def _members(path: Path, limits: Limits) -> list[ZipEntry]:
    """The members of a zip, refused as a whole when one of them is hostile."""
    with (
        refusing("its zip directory is damaged", "copy the file again"),
        zipfile.ZipFile(path) as archive,
    ):
        infos = [info for info in archive.infolist() if not info.is_dir()]
    if len(infos) > limits.files:
        raise InputError(f"holds more than {limits.files} files", "unzip a part of it")
    found = []
    for info in infos:
        parts = re.split(r"[/\\]", info.filename)
        kind = info.external_attr >> 16
        if info.filename.startswith(("/", "\\")) or ".." in parts or ":" in parts[0]:
            raise InputError("a zip member points outside the zip", "do not trust this file")
        if stat.S_ISLNK(kind):
            raise InputError("a zip member is a link", "do not trust this file")
        if info.flag_bits & 1:
            raise InputError("its zip members are encrypted", "unzip it first")
        if info.file_size > limits.ratio * max(info.compress_size, 1) and info.file_size > MIB:
            raise InputError(
                f"a zip member inflates more than {limits.ratio} times", "do not trust this file"
            )
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError("its zip compression is not known here", "unzip it first")
        found.append(
            ZipEntry(
                info.filename,
                info.header_offset,
                info.compress_size,
                info.file_size,
                info.compress_type == zipfile.ZIP_DEFLATED,
                info.CRC,
            )
        )
    return sorted(found, key=lambda e: e.name.encode("utf-8", "surrogateescape"))


def _unzip(path: Path, entry: ZipEntry) -> bytes:
    """One member in memory, its size and CRC checked."""
    with path.open("rb") as handle, refusing("a zip member is damaged", "copy the zip again"):
        handle.seek(entry.offset)
        head = handle.read(30)
        name, extra = struct.unpack_from("<HH", head, 26)
        handle.seek(entry.offset + 30 + name + extra)
        body = handle.read(entry.compressed)
        if entry.deflated:
            body = zlib.decompressobj(-15).decompress(body, entry.size + 1)
        if len(body) != entry.size or zlib.crc32(body) != entry.crc:
            raise InputError("a zip member is damaged", "copy the zip again")
    return body


@lru_cache(maxsize=4096)
def _dictionary_vr(tag: int) -> str:
    """The VR of a tag by the standard; `UN` for private and unknown ones."""
    if tag & 0xFFFF == 0:
        return "UL"
    try:
        vr = dictionary_VR(tag)
    except KeyError:
        return "UN"
    return str(vr).split(" ")[-1]


class _NeedsMoreError(Exception):
    """The buffer ends before the header does."""


def _damaged(fact: str) -> InputError:
    return InputError(fact, "the file is damaged; copy or export it again")
