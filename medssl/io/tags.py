"""The few tags of a DICOM header that an archive is sorted by, read fast and without pixels.

The scanner walks over the elements of little-endian files by their lengths and stops after the
last wanted group; sequences are jumped over, or walked where they have no length. Whatever it does
not know (deflated, big endian, no preamble, damage) it hands to the checked walker of `io.dicom`
with pydicom behind it. Of Enhanced images it reads the geometry of the first frame.
"""

import math
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from medssl.core.errors import InputError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

WINDOW = 32 * 1024
"""Bytes that are read at first; most headers end earlier."""
LARGEST_WINDOW = 4 * 1024 * 1024
DEEPEST = 32
"""Levels of sequences without a length that are walked."""
MOST = 10_000
"""Elements and items that are walked inside one sequence without a length."""

IMPLICIT_LE = "1.2.840.10008.1.2"
FOREIGN = frozenset({"1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"})
"""Transfer syntaxes of other bytes: big endian, deflated."""
_CT_MR_US = ("2.1", "2.2", "4.1", "4.3", "4.4", "6.2")
_OTHERS = ("12.1.1", "12.2.1", "13.1.1", "13.1.2", "13.1.3", "66.4", "77.1.5.4", "128.1", "130")
ENHANCED = frozenset(f"1.2.840.10008.5.1.4.1.1.{tail}" for tail in (*_CT_MR_US, *_OTHERS))
"""SOP classes whose geometry lies in functional groups."""


class Header(NamedTuple):
    """What a DICOM file says of itself; it names the patient, so it stays in memory.

    Texts are without padding and `""` where absent; numbers are None where absent, not a number
    or not finite; so are lists `()`.
    """

    syntax: str
    charset: str
    image_type: tuple[str, ...]
    sop_class: str
    instance: str
    modality: str
    maker: str
    description: str
    """Of the series."""
    patient_name: str
    patient_id: str
    contrast: str
    """Agent of the contrast medium."""
    body_part: str
    thickness: float | None
    """Millimetres."""
    kvp: float | None
    echo_time: float | None
    """Milliseconds."""
    kernel: str
    b_value: float | None
    """s/mm^2."""
    study: str
    series: str
    number: int | None
    """Of the instance."""
    position: tuple[float, ...]
    """LPS millimetres."""
    orientation: tuple[float, ...]
    """Direction cosines along rows and columns."""
    frame: str
    """UID of the frame of reference."""
    temporal: int | None
    """Index of the time point."""
    samples: int | None
    photometric: str
    frames: int | None
    rows: int | None
    columns: int | None
    spacing: tuple[float, ...]
    """Millimetres between rows, between columns."""
    bits: int | None
    """Stored."""
    burned_in: str
    intercept: float | None
    slope: float | None
    lossy: str
    """`01` where pixels were compressed with losses."""
    by: Literal["scanner", "pydicom"] = "scanner"
    """Who read it."""


_TAGS: dict[str, tuple[int, str]] = {
    "syntax": (0x00020010, "UI"),
    "charset": (0x00080005, "CS"),
    "image_type": (0x00080008, "CS"),
    "sop_class": (0x00080016, "UI"),
    "instance": (0x00080018, "UI"),
    "modality": (0x00080060, "CS"),
    "maker": (0x00080070, "LO"),
    "description": (0x0008103E, "LO"),
    "patient_name": (0x00100010, "PN"),
    "patient_id": (0x00100020, "LO"),
    "contrast": (0x00180010, "LO"),
    "body_part": (0x00180015, "CS"),
    "thickness": (0x00180050, "DS"),
    "kvp": (0x00180060, "DS"),
    "echo_time": (0x00180081, "DS"),
    "kernel": (0x00181210, "SH"),
    "b_value": (0x00189087, "FD"),
    "study": (0x0020000D, "UI"),
    "series": (0x0020000E, "UI"),
    "number": (0x00200013, "IS"),
    "position": (0x00200032, "DS"),
    "orientation": (0x00200037, "DS"),
    "frame": (0x00200052, "UI"),
    "temporal": (0x00200100, "IS"),
    "samples": (0x00280002, "US"),
    "photometric": (0x00280004, "CS"),
    "frames": (0x00280008, "IS"),
    "rows": (0x00280010, "US"),
    "columns": (0x00280011, "US"),
    "spacing": (0x00280030, "DS"),
    "bits": (0x00280101, "US"),
    "burned_in": (0x00280301, "CS"),
    "intercept": (0x00281052, "DS"),
    "slope": (0x00281053, "DS"),
    "lossy": (0x00282110, "CS"),
}
"""Tag and VR of each field, in the order of tags and of `Header`."""
TAGS = {name: tag for name, (tag, _) in _TAGS.items()}
"""Tag of each field."""
LISTS = frozenset({"image_type", "position", "orientation", "spacing"})

_SHORT = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
_LONG = frozenset(b"OB OW OF OD OL OV SQ UC UR UT UN SV UV".split())
_LAST_GROUP = 0x0028
_READ = os.O_RDONLY | getattr(os, "O_BINARY", 0)
_UNDEFINED = 0xFFFFFFFF
_NESTED = (b"SQ", b"UN")
_ITEM, _ITEM_END, _SEQUENCE_END = 0xE000FFFE, 0xE00DFFFE, 0xE0DDFFFE  # as little-endian words
_explicit = struct.Struct("<I2sH").unpack_from
_implicit = struct.Struct("<II").unpack_from
_word = struct.Struct("<I").unpack_from
_half = struct.Struct("<H").unpack


class _UnknownError(Exception):
    """The scanner does not know what this is."""


def scan(path: str | bytes | Path) -> Header | None:
    """The header of a little-endian DICOM file with preamble; None for everything else.

    It never raises, whatever the file holds, and reads at most `LARGEST_WINDOW` bytes.
    """
    try:
        descriptor = os.open(path, _READ)
    except (OSError, ValueError):
        return None
    try:
        size, window = WINDOW, b""
        while True:
            window += os.read(descriptor, size - len(window))
            if window[128:132] != b"DICM":
                return None
            try:
                return _scanned(window)
            except (struct.error, IndexError):  # the window ends inside an element
                if len(window) < size or size >= LARGEST_WINDOW:
                    return None
                size *= 2
    except (OSError, ValueError, _UnknownError):
        return None
    finally:
        os.close(descriptor)


def read_header(path: str | bytes | Path) -> Header:
    """The header of any DICOM file: by the scanner, else by pydicom (`Header.by` says which).

    Raises:
        InputError: Not DICOM, damaged, or hostile.
        OSError: The file cannot be read.
    """
    found = scan(path) or parse(path)
    if found is None:
        raise InputError("is no DICOM file", "give DICOM", file=os.fsdecode(path))
    return found


def parse(path: str | bytes | Path) -> Header | None:
    """The header of any DICOM file by the checked walker and pydicom; None where it is no DICOM.

    Raises:
        InputError: Damaged or hostile.
        OSError: The file cannot be read.
    """
    from medssl.io import dicom

    source = dicom.Source(Path(os.fsdecode(path)))
    instance = dicom.open_instance(source)
    if instance is None:
        return None
    charset = instance.text(TAGS["charset"])
    values = {
        name: _value(name, instance.value(tag), instance.elements, instance.layout.little, charset)
        for name, tag in TAGS.items()
    }
    values["syntax"] = instance.layout.syntax
    if values["sop_class"] in ENHANCED:
        with dicom.quiet(), dicom.refusing("its functional groups cannot be parsed"):
            _add_functional(values, instance.dataset())
    return Header(**values, by="pydicom")


def _scanned(window: bytes) -> Header:
    """The header at the beginning of a file.

    Raises:
        struct.error, IndexError: The window ends too early.
        _UnknownError: Not for the scanner.
    """
    found: dict[int, bytes] = {}
    start = _walk_meta(window, found)
    syntax = _text(found.get(_SYNTAX, b""))
    if not syntax or syntax in FOREIGN:
        raise _UnknownError
    walk = _walk_implicit if syntax == IMPLICIT_LE else _walk_explicit
    at = walk(window, start, found)
    values = _EMPTY.copy()
    for slot, raw in found.items():
        if raw:
            values[slot] = _TAKE[slot](raw)
    if not _is_plain(b"".join([found.get(slot, b"") for slot in _WRITTEN])):
        for slot in _WRITTEN:
            values[slot] = _in_charset(found.get(slot, b""), slot == _NAME, values[_CHARSET])
    if values[_CLASS] in ENHANCED:
        for slot, value in _functional(window, at, syntax == IMPLICIT_LE).items():
            if values[slot] in (None, ()):
                values[slot] = value
    return Header(*values)


def _walk_meta(window: bytes, found: dict[int, bytes]) -> int:
    """Take the transfer syntax; where the data set starts."""
    at = 132
    while window[at : at + 2] == b"\x02\0":
        tag, vr, length = _explicit(window, at)
        if vr in _SHORT:
            at += 8
        elif vr in _LONG:
            (length,) = _word(window, at + 8)
            at += 12
        else:
            raise _UnknownError
        if tag in _SLOTS:
            found[_SLOTS[tag]] = window[at : at + length]
        at += length
    if at > len(window):
        raise IndexError
    return at


def _walk_explicit(window: bytes, at: int, found: dict[int, bytes]) -> int:
    """Take the wanted elements of a data set whose elements carry their VR: the hot loop.

    Only elements of a long VR are asked whether they lie behind the last group: pixels and
    sequences have one, so the walk ends there at the latest.
    """
    slots, vrs, short, end = _SLOTS, _VRS, _SHORT, len(window)
    while at != end:
        tag, vr, length = _explicit(window, at)
        if vr in short:
            if tag in slots:
                slot = slots[tag]
                if vr != vrs[slot]:
                    raise _UnknownError
                found[slot] = window[at + 8 : at + 8 + length]
            at += 8 + length
            continue
        if tag & 0xFFFF > _LAST_GROUP:
            return at
        if vr not in _LONG or tag in slots:
            raise _UnknownError
        (length,) = _word(window, at + 8)
        at += 12
        if length != _UNDEFINED:
            at += length
        elif vr in _NESTED:
            at = _skip(window, at, vr == b"UN")
        else:
            raise _UnknownError
    return at


def _walk_implicit(window: bytes, at: int, found: dict[int, bytes]) -> int:
    """Take the wanted elements of a data set whose elements carry no VR."""
    slots, end = _SLOTS, len(window)
    if window[at + 4 : at + 6] in _SHORT:  # explicit, whatever the meta information says
        raise _UnknownError
    while at != end:
        tag, length = _implicit(window, at)
        if tag & 0xFFFF > _LAST_GROUP:
            return at
        at += 8
        if length == _UNDEFINED:
            at = _skip(window, at, True)
            continue
        if tag in slots:
            found[slots[tag]] = window[at : at + length]
        at += length
    return at


def _functional(window: bytes, at: int, implicit: bool) -> dict[int, Any]:
    """What all frames share, and for the rest the first frame.

    Args:
        window: Of the file.
        at: An element of the data set before them.
        implicit: Whether elements carry no VR.

    Returns:
        Values by their place in `Header`.
    """
    found: dict[int, Any] = {}
    for _ in range(MOST):
        if at == len(window):
            break
        tag, length = _implicit(window, at)
        if tag & 0xFFFF > _FUNCTIONAL_GROUP:
            break
        start, length, inner = _inside(window, at, length, implicit)
        if tag in (_SHARED, _FRAMES):
            at = _first_item(window, start, length, inner, _FUNCTIONAL_TAGS, found)
            if tag == _FRAMES:
                break
        else:
            at = start + length if length != _UNDEFINED else _skip(window, start, inner)
    return found


def _first_item(
    window: bytes,
    at: int,
    length: int,
    implicit: bool,
    wanted: dict[int, Any],
    found: dict[int, Any],
) -> int:
    """Take elements of the first item of a sequence; where the element after it starts.

    Args:
        window: Of the file.
        at: Start of the sequence's value.
        length: Of it, or undefined.
        implicit: Whether elements inside carry no VR.
        wanted: By tag, the place of an element in `Header`, or of a sequence what is wanted of it.
        found: Where values go, unless there is one.
    """
    if length == 0:
        return at
    after = at + length
    tag, size = _implicit(window, at)
    at += 8
    if tag == _SEQUENCE_END:
        return at
    if tag != _ITEM:
        raise _UnknownError
    stop = at + size if size != _UNDEFINED else -1
    for _ in range(MOST):
        if at == stop:
            break
        tag, size = _implicit(window, at)
        if tag == _ITEM_END:
            at += 8
            break
        start, size, inner = _inside(window, at, size, implicit)
        goal = wanted.get(tag)
        if isinstance(goal, dict):
            at = _first_item(window, start, size, inner, goal, found)
        elif size == _UNDEFINED:
            at = _skip(window, start, inner)
        else:
            vr = b"FD" if tag == _ECHO else b"DS"
            if goal is not None and goal not in found:
                if start + size > len(window):
                    raise IndexError
                if not implicit and window[at + 4 : at + 6] != vr:
                    raise _UnknownError
                raw = window[start : start + size]
                found[goal] = _first_double(raw) if tag == _ECHO else _TAKE[goal](raw)
            at = start + size
    else:
        raise _UnknownError
    return after if length != _UNDEFINED else _skip(window, at, implicit)


def _skip(window: bytes, at: int, implicit: bool) -> int:
    """Where the element after a sequence without a length starts.

    Args:
        window: Of the file.
        at: Its first item.
        implicit: Whether elements inside carry no VR.
    """
    stack = [(False, implicit)]  # whether inside an item; else between the items of a sequence
    for _ in range(MOST):
        in_item, implicit = stack[-1]
        tag, length = _implicit(window, at)
        if tag == _ITEM_END and in_item:
            at += 8
            stack.pop()
        elif tag == _SEQUENCE_END and not in_item:
            at += 8
            stack.pop()
            if not stack:
                return at
        elif tag == _ITEM and not in_item:
            at += 8
            if length == _UNDEFINED:
                stack.append((True, implicit))
            else:
                at += length
        elif not in_item or tag & 0xFFFF == 0xFFFE:
            raise _UnknownError
        else:
            at, length, inner = _inside(window, at, length, implicit)
            if length == _UNDEFINED:
                stack.append((False, inner))
            else:
                at += length
        if len(stack) > 2 * DEEPEST:
            break
    raise _UnknownError


def _inside(window: bytes, at: int, length: int, implicit: bool) -> tuple[int, int, bool]:
    """Of an element inside an item: where its value starts, its length, and what is inside."""
    if implicit:
        return at + 8, length, True
    vr = window[at + 4 : at + 6]
    if vr in _SHORT:
        return at + 8, length >> 16, False
    if vr not in _LONG:
        raise _UnknownError
    return at + 12, _word(window, at + 8)[0], vr == b"UN"


def _text(raw: bytes) -> str:
    return raw.decode("latin-1").strip(" \0\t\r\n")


def _texts(raw: bytes) -> tuple[str, ...]:
    return tuple([part.strip(" \0\t\r\n") for part in _text(raw).split("\\")])


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _first_float(raw: bytes) -> float | None:
    return _number(_text(raw).partition("\\")[0])


def _floats(raw: bytes) -> tuple[float, ...]:
    numbers = [_number(part) for part in _text(raw).split("\\")]
    return () if None in numbers else tuple(numbers)  # type: ignore[arg-type]


def _first_integer(raw: bytes) -> int | None:
    return _whole(_first_float(raw))


def _whole(number: float | None) -> int | None:
    """A number that is an integer and fits 63 bits."""
    if number is None or not math.isfinite(number) or number % 1 or abs(number) >= 2.0**62:
        return None
    return int(number)


def _first_short(raw: bytes) -> int | None:
    return _half(raw[:2])[0] if len(raw) > 1 else None


def _first_double(raw: bytes) -> float | None:
    number: float = struct.unpack("<d", raw[:8])[0] if len(raw) > 7 else math.nan
    return number if math.isfinite(number) else None


_PLACES = {name: slot for slot, name in enumerate(_TAGS)}
_SLOTS = {(tag & 0xFFFF) << 16 | tag >> 16: _PLACES[name] for name, (tag, _) in _TAGS.items()}
"""Place in `Header` by the tag as a little-endian word."""
_VRS = [vr.encode() for _, vr in _TAGS.values()]
_SYNTAX, _CHARSET, _CLASS, _NAME = (
    _PLACES[name] for name in ("syntax", "charset", "sop_class", "patient_name")
)
_READERS: dict[str, Callable[[bytes], Any]] = {
    "DS": _first_float,
    "IS": _first_integer,
    "US": _first_short,
    "FD": _first_double,
}
_TAKE = [
    (_texts if vr == "CS" else _floats) if name in LISTS else _READERS.get(vr, _text)
    for name, (_, vr) in _TAGS.items()
]
"""How the bytes of each field are read."""
_EMPTY: list[Any] = [
    () if name in LISTS else None if vr in _READERS else "" for name, (_, vr) in _TAGS.items()
]
_WRITTEN = [_PLACES[name] for name, (_, vr) in _TAGS.items() if vr in ("LO", "SH", "PN")]
"""Fields in the character set of the file."""


def _is_plain(raw: bytes) -> bool:
    """Whether a text means the same in every character set."""
    return raw.isascii() and b"\x1b" not in raw


def _in_charset(raw: bytes, is_name: bool, charset: str) -> str:
    """A text in a declared character set; latin-1 where that cannot be."""
    from pydicom.charset import convert_encodings, decode_bytes

    from medssl.io.dicom import quiet

    delimiters = {0x5E, 0x3D} if is_name else {0x5C, 0x0A, 0x0C, 0x0D}
    try:
        with quiet():
            text: str = decode_bytes(raw, convert_encodings(charset.split("\\")), delimiters)
    except (LookupError, ValueError):
        text = raw.decode("latin-1")
    return text.strip(" \0\t\r\n")


def _value(name: str, raw: bytes | None, elements: Any, little: bool, charset: str) -> Any:
    """A field by the VR that the file gives it, in either byte order."""
    tag, expected = _TAGS[name]
    slot = _PLACES[name]
    if not raw:
        return _EMPTY[slot]
    vr = elements[tag].vr
    vr = expected if vr == "UN" else vr
    if expected in ("LO", "SH", "PN") and not _is_plain(raw):
        return _in_charset(raw, expected == "PN", charset)
    letter = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d"}.get(vr)
    if expected not in ("US", "FD", "DS", "IS") or (letter is None and expected in ("DS", "IS")):
        return _TAKE[slot](raw)
    numbers: tuple[float, ...]
    if letter is None:
        numbers = _floats(raw)
    else:
        one = struct.calcsize(letter)
        order = "<" if little else ">"
        numbers = struct.unpack(f"{order}{len(raw) // one}{letter}", raw[: len(raw) // one * one])
    if name in LISTS:
        return numbers if all(map(math.isfinite, numbers)) else ()
    first = numbers[0] if numbers and math.isfinite(numbers[0]) else None
    return first if expected in ("DS", "FD") else _whole(first)


_FUNCTIONAL = (
    ("spacing", 0x00289110, 0x00280030),
    ("thickness", 0x00289110, 0x00180050),
    ("orientation", 0x00209116, 0x00200037),
    ("position", 0x00209113, 0x00200032),
    ("slope", 0x00289145, 0x00281053),
    ("intercept", 0x00289145, 0x00281052),
    ("echo_time", 0x00189114, 0x00189082),
)
"""Field, sequence of a functional group, tag inside. The groups are pixel measures, plane
orientation, plane position, pixel value transformation and MR echo."""
_SHARED, _FRAMES, _FUNCTIONAL_GROUP = 0x92295200, 0x92305200, 0x5200
_ECHO = 0x90820018


def _as_word(tag: int) -> int:
    return (tag & 0xFFFF) << 16 | tag >> 16


_FUNCTIONAL_TAGS: dict[int, dict[int, int]] = {}
for _name, _group, _tag in _FUNCTIONAL:
    _FUNCTIONAL_TAGS.setdefault(_as_word(_group), {})[_as_word(_tag)] = _PLACES[_name]


def _add_functional(values: dict[str, Any], dataset: "Dataset") -> None:
    """Fill fields from what all frames share, or else from the first frame."""
    groups = [
        dataset[sequence].value[0]
        for sequence in (0x52009229, 0x52009230)
        if sequence in dataset and dataset[sequence].value
    ]
    for name, sequence, tag in _FUNCTIONAL:
        for group in groups:
            inside = group[sequence].value if sequence in group else []
            given = inside[0][tag].value if inside and tag in inside[0] else None
            if values[name] in (None, ()) and given not in (None, ""):
                numbers = tuple(map(float, given if name in LISTS else [given]))
                if all(map(math.isfinite, numbers)):
                    values[name] = numbers if name in LISTS else numbers[0]
