"""From a folder of instances to one image: grouping, sorting, geometry, values.

Headers are scanned without pixels; instances of one series, grid and kind form a group; its planes
are sorted by their position along the normal, never by number or name; only then are pixels read,
plane by plane, into one float32 array. Patient axes of DICOM (LPS) exist only in this file.
"""

import contextlib
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID

from medssl.core.errors import InputError, MedsslError, naming, printable
from medssl.core.geometry import LPS_TO_RAS, Geometry
from medssl.core.image import Image, Stored
from medssl.io import values
from medssl.io.dicom import (
    EXPLICIT_LE,
    NOT_IMAGES,
    Instance,
    PixelShape,
    Source,
    check_pixels,
    decode,
    open_instance,
    quiet,
    refusing,
    sources,
    uid_name,
)
from medssl.io.limits import Limits
from medssl.io.multiframe import (
    SAME_EVERYWHERE,
    TIME_AXES,
    Frame,
    classic_frame,
    is_multiframe,
    multiframe_frames,
)

UNEVEN = "slices are not evenly spaced"
"""Start of the warning of a series whose slices must be processed one by one."""
SAME_PLACE = 1e-3
"""Distance in mm within which two planes have the same position."""
DIRECTORY = "1.2.840.10008.1.3.10"


@dataclass(frozen=True)
class Series:
    """One group of a folder, from headers alone."""

    number: str
    """What `--series` takes: SeriesNumber, with a letter where several groups share it."""
    modality: str
    description: str
    shape: tuple[int, ...]
    """Columns, rows, slices, and times where there are several."""
    spacing: tuple[float, ...]
    """Columns, rows, slices; mm."""
    count: int
    """Instances."""
    uid: str
    sources: tuple[Source, ...]
    refusal: str | None = None
    """Why it cannot be read as one image; None when it can."""


@dataclass(frozen=True)
class SeriesOrigin:
    """Where an image came from, for the writer of derived series. Holds no patient data."""

    sources: tuple[Source, ...]
    digests: tuple[str, ...]
    """SHA-256 of each instance."""
    frames: tuple[Frame, ...]
    """Planes in the order of the image: times outside, slices inside."""
    n_times: int
    n_slices: int
    sop_class: str
    is_enhanced: bool
    photometric: str
    image_type: tuple[str, ...]
    """Of the first instance."""
    independent_slices: bool = False
    """The slices are no volume; only methods for single slices may be used."""
    tilted: bool = False
    time_axis: str = ""
    """What tells the times of a 4D series apart; one of `TIME_AXES`."""
    skipped: int = 0
    """Files of the folder that are not DICOM."""

    @property
    def sha256(self) -> str:
        """Of the digests of all instances in order."""
        return hashlib.sha256("\n".join(self.digests).encode()).hexdigest()


@dataclass(frozen=True)
class _Entry:
    """What the scan keeps of one instance."""

    source: Source
    uid: str
    key: tuple[object, ...]
    patient: str
    study: str
    series: str
    number: int
    order: float
    modality: str
    description: str
    sop_class: str
    image_type: tuple[str, ...]
    pixels: PixelShape | None
    frames: tuple[Frame, ...]
    is_enhanced: bool
    padding: tuple[int, int] | None
    refusal: tuple[str, str] | None
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Scan:
    """A folder, scanned."""

    groups: tuple[tuple[_Entry, ...], ...]
    skipped: int
    unreadable: int
    others: tuple[str, ...]
    """What was found that is no image."""


@dataclass(frozen=True)
class _Stack:
    """Planes in order, and the grid they form."""

    frames: tuple[Frame, ...]
    n_times: int
    geometry: Geometry
    time_axis: str = ""
    independent: bool = False
    tilted: bool = False
    flat: bool = False
    """A lone image that lies nowhere: two spatial axes."""
    warnings: tuple[str, ...] = ()

    @property
    def n_slices(self) -> int:
        """Planes of one time."""
        return len(self.frames) // self.n_times


@dataclass
class _Found:
    """Warnings while they are collected: each sentence once, with the number of images."""

    counts: Counter[str] = field(default_factory=Counter)

    def add(self, sentences: Iterable[str]) -> None:
        """Count sentences."""
        self.counts.update(sentences)

    def sentences(self) -> tuple[str, ...]:
        """One line for each, in the order in which they were found."""
        return tuple(s if n == 1 else f"{s} ({n} images)" for s, n in self.counts.items())


def list_series(path: Path, limits: Limits | None = None) -> tuple[Series, ...]:
    """The series of a folder, a zip or a file, from headers alone.

    Args:
        path: Folder (with everything below it), zip, or one instance.
        limits: Bounds of what the files may ask for.

    Returns:
        One entry for each group of the same series, kind, grid and frame of reference.

    Raises:
        InputError: Nothing there, or a file is damaged.
    """
    limits = limits or Limits()
    path = Path(path)
    scan = _scan(sources(path, limits), limits)
    if not scan.groups:
        raise _nothing(scan, path)
    return _table(scan)


def list_readable(
    path: Path, limits: Limits
) -> tuple[tuple[Series, ...], tuple[tuple[Source, InputError], ...]]:
    """The series of a folder or zip without its damaged files, and why those are no use.

    A series that a damaged file would have belonged to lacks that slice; a gap in it is a refusal
    of the series.

    Raises:
        InputError: Nothing there.
    """
    damaged: list[tuple[Source, InputError]] = []
    scan = _scan(sources(path, limits), limits, damaged)
    if not scan.groups and not damaged:
        raise _nothing(scan, path)
    return _table(scan), tuple(damaged)


def select(series: Sequence[Series], text: str | None) -> Series:
    """The series that a user means.

    Args:
        series: What the folder holds.
        text: A number of the table, a UID, a part of the description; None means the only one.

    Raises:
        InputError: Several without a choice, none that fits, or several that fit.
    """
    remedy = "choose with --series NUMBER; `medssl info` lists them"
    if text is None:
        if len(series) == 1:
            return series[0]
        listed = ", ".join(
            f"{s.number} ({s.modality} {'x'.join(map(str, s.shape))})" for s in series[:4]
        )
        more = ", ..." if len(series) > 4 else ""
        raise InputError(f"holds {len(series)} series: {listed}{more}", remedy)
    wanted = text.strip()
    exact = [s for s in series if s.number == wanted] or [s for s in series if s.uid == wanted]
    fitting = exact or [s for s in series if wanted and wanted.lower() in s.description.lower()]
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        numbers = ", ".join(s.number for s in series[:12])
        raise InputError(f"no series fits {printable(text, 24)!r}; it holds {numbers}", remedy)
    numbers = ", ".join(s.number for s in fitting[:12])
    raise InputError(f"{len(fitting)} series fit {printable(text, 24)!r}: {numbers}", remedy)


def read_series(
    path: str | Path,
    *,
    series: str | None = None,
    limits: Limits | None = None,
    allow_gaps: bool = False,
    as_slices: bool = False,
) -> Image:
    """One series of a folder, a zip or a file, as an image.

    Args:
        path: Folder, zip, or one instance.
        series: Which one: number, UID, or text of its description.
        limits: Bounds of what the files may ask for.
        allow_gaps: Take a series with missing slices as independent slices.
        as_slices: Take images that form no volume as independent slices.

    Returns:
        Data (1, columns, rows, slices) or, over time, (T, columns, rows, slices); a lone image
        without position has (1, columns, rows). Memory order is slice by slice.

    Raises:
        InputError: Damaged, several series without a choice, or not one volume.
        MemoryLimitError: The voxels do not fit.
    """
    limits = limits or Limits()
    path = Path(path)
    scan = _scan(sources(path, limits), limits)
    if not scan.groups:
        raise _nothing(scan, path)
    table = _table(scan)
    chosen = scan.groups[table.index(select(table, series))]
    return _read(chosen, scan, limits, path.resolve().name, allow_gaps, as_slices)


def read_sources(
    found: Sequence[Source], name: str, limits: Limits, *, allow_gaps: bool = False
) -> Image:
    """The image of instances that form one series; nothing else of their folders is opened.

    Args:
        found: Where the instances are.
        name: For messages and sidecars.
        limits: Bounds of what they may ask for.
        allow_gaps: Take a series with missing slices as independent slices.

    Raises:
        InputError: They are no series, or not what they were.
        MemoryLimitError: The voxels do not fit.
    """
    scan = _scan(found, limits)
    if not scan.groups:
        raise InputError("holds no image any more", "look at the folder again")
    for group in scan.groups:  # what is wrong with one image is said, not that it differs
        _check_group(group, scan.groups)
    select(_table(scan), None)
    return _read(scan.groups[0], scan, limits, name, allow_gaps, False)


def read_datasets(datasets: Sequence[Dataset], limits: Limits | None = None) -> Image:
    """The image of data sets in memory, which must form one series.

    Args:
        datasets: Single-frame or Enhanced instances of pydicom, in any order.
        limits: Bounds of what they may ask for.

    Raises:
        InputError: They cannot be encoded, or do not form one volume.
        MemoryLimitError: The voxels do not fit.
    """
    limits = limits or Limits()
    held = [Source(Path(f"data set {k + 1}"), held=_encoded(d)) for k, d in enumerate(datasets)]
    scan = _scan(held, limits)
    if not scan.groups:
        raise InputError("the data sets hold no image", "give CT, MR or PT instances")
    select(_table(scan), None)
    return _read(scan.groups[0], scan, limits, "data sets", False, False)


def _encoded(dataset: Dataset) -> bytes:
    """A data set as the bytes of a file; the caller's object is left as it is."""
    meta = getattr(dataset, "file_meta", None)
    syntax = getattr(meta, "TransferSyntaxUID", None) or EXPLICIT_LE
    target = BytesIO()
    with quiet(), refusing("a data set cannot be encoded", "read it from its file"):
        copied = Dataset(dataset)
        implicit, little = dataset.original_encoding
        copied.set_original_encoding(implicit, little, dataset.original_character_set)
        copied.file_meta = FileMetaDataset()
        copied.file_meta.TransferSyntaxUID = UID(syntax)
        copied.file_meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID", "")
        copied.file_meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID", "")
        copied.save_as(target, enforce_file_format=True)
    return target.getvalue()


def _scan(
    found: Sequence[Source],
    limits: Limits,
    damaged: list[tuple[Source, InputError]] | None = None,
) -> _Scan:
    """Open every source up to its pixels and group what belongs together.

    Args:
        found: What may be instances.
        limits: Bounds of what they may ask for.
        damaged: Takes those that cannot be read; None raises at the first.
    """
    entries: list[_Entry] = []
    skipped = unreadable = 0
    others: Counter[str] = Counter()
    for source in found:
        try:
            instance = open_instance(source, limits)
        except OSError:
            unreadable += 1
            continue
        except InputError as error:
            if damaged is None:
                raise
            damaged.append((source, error))
            continue
        if instance is None:
            skipped += 1
            continue
        with naming(source.name):
            other = _other_kind(instance)
            if other:
                others[other] += 1
            else:
                entries.append(_entry(instance, len(entries), limits))
    groups: list[list[_Entry]] = []
    by_key: dict[tuple[object, ...], list[list[_Entry]]] = {}
    for entry in entries:
        near = by_key.setdefault(entry.key, [])
        for group in near:
            if _same_grid(group[0].frames, entry.frames):
                group.append(entry)
                break
        else:
            near.append([entry])
            groups.append(near[-1])
    groups.sort(key=lambda g: g[0].number)
    names = tuple(f"{n} {name}" for name, n in others.items())
    return _Scan(tuple(map(tuple, groups)), skipped, unreadable, names)


def _other_kind(instance: Instance) -> str:
    """The name of an object that is no image; `""` for images."""
    sop_class = instance.text(0x00080016) or instance.layout.sop_class
    modality = instance.text(0x00080060)
    if sop_class == DIRECTORY:
        return "DICOMDIR"
    name = uid_name(sop_class) if sop_class else ""
    if modality in NOT_IMAGES:
        return modality
    if not instance.pixel_tag and "Image Storage" not in name:
        return "object without pixels" if name in ("", sop_class) else printable(name, 40)
    return ""


def _entry(instance: Instance, index: int, limits: Limits) -> _Entry:
    """What the scan keeps; reasons to refuse an image are kept too, not raised."""
    text = instance.text
    sop_class = text(0x00080016) or instance.layout.sop_class
    uid = text(0x00080018)
    found = list(instance.layout.warnings)
    if instance.layout.sop_uid not in ("", uid) or instance.layout.sop_class not in (
        "",
        sop_class,
    ):
        found.append("its file meta information contradicts its data set")
    if text(0x00280301) == "YES":
        found.append("names may be burned into the pixels (BurnedInAnnotation)")
    refusal: tuple[str, str] | None = None
    pixels: PixelShape | None = None
    frames: tuple[Frame, ...] = ()
    padding: tuple[int, int] | None = None
    multi = False
    try:
        pixels = PixelShape.of(instance)
        check_pixels(instance, pixels, limits)
        if 0x00283000 in instance.elements:
            raise InputError("has a ModalityLUTSequence", "only linear rescaling can be inverted")
        multi = is_multiframe(instance)
        if multi:
            frames = tuple(multiframe_frames(instance, index, pixels.frames, limits))
        else:
            frames = (classic_frame(instance, index),)
        padding = _padding(instance, pixels)
    except InputError as error:
        refusal = error.fact, error.remedy
    number = _first(instance, 0x00200011)
    kinds = tuple(text(0x00080008).split("\\"))
    if "MOSAIC" in kinds and not multi:
        found.append("its slices are tiles of one image (mosaic), which is processed as one")
    modality = printable(text(0x00080060), 16)
    rows, columns = instance.integer(0x00280010), instance.integer(0x00280011)
    key = (
        text(0x0020000D),
        text(0x0020000E),
        sop_class,
        text(0x00200052),
        modality,
        rows,
        columns,
        refusal[0] if refusal is not None and pixels is None else "",
    )
    order = _first(instance, 0x00200013)
    return _Entry(
        instance.source,
        uid,
        key,
        text(0x00100020),
        key[0],
        key[1],
        0 if number is None else int(number),
        math.inf if order is None else order,
        modality,
        printable(text(0x0008103E), 64),
        sop_class,
        kinds,
        pixels,
        frames,
        multi,
        padding,
        refusal,
        tuple(found),
    )


def _first(instance: Instance, tag: int) -> float | None:
    """The first number of an element that need not be right."""
    with contextlib.suppress(InputError):
        numbers = instance.numbers(tag)
        return numbers[0] if numbers else None
    return None


def _padding(instance: Instance, pixels: PixelShape) -> tuple[int, int] | None:
    """Stored values that mean "no pixel": lowest and highest."""
    ends = []
    for tag in (0x00280120, 0x00280121):
        number = instance.integer(tag)
        if number is not None:
            # Writers mix up US and SS here; PixelRepresentation decides.
            ends.append(number - 65536 if pixels.signed and number > 32767 else number)
    return (min(ends), max(ends)) if ends and 0x00280120 in instance.elements else None


def _same_grid(a: Sequence[Frame], b: Sequence[Frame]) -> bool:
    """Whether the first planes of two instances have one orientation and pixel size."""
    if not a or not b:
        return bool(a) == bool(b)
    pairs = ((a[0].orientation, b[0].orientation), (a[0].spacing, b[0].spacing))
    return all(
        (x is None) == (y is None) and (x is None or y is None or _near(x, y)) for x, y in pairs
    )


def _near(a: Sequence[float], b: Sequence[float], tolerance: float = 1e-4) -> bool:
    return max(abs(x - y) for x, y in zip(a, b, strict=True)) <= tolerance


def _table(scan: _Scan) -> tuple[Series, ...]:
    """The groups as a user sees them."""
    used: Counter[str] = Counter()
    table = []
    for group in scan.groups:
        base = str(group[0].number)
        letter = "" if not used[base] else chr(ord("a") + used[base] % 26) * (1 + used[base] // 26)
        used[base] += 1
        refusal = None
        spacing: tuple[float, ...] = (0.0, 0.0, 0.0)
        first = group[0].pixels
        shape: tuple[int, ...] = (first.columns, first.rows, len(group)) if first else (len(group),)
        try:
            _check_group(group, scan.groups)
            stack = _stack(_unique(group), group[0], allow_gaps=False, as_slices=False)
            shape = (*stack.geometry.shape, *([stack.n_times] if stack.n_times > 1 else []))
            spacing = (*stack.geometry.spacing, 0.0)[:3]
        except MedsslError as error:
            refusal = error.fact
        table.append(
            Series(
                base + letter,
                group[0].modality,
                group[0].description,
                shape,
                spacing,
                len(group),
                group[0].series,
                tuple(e.source for e in group),
                refusal,
            )
        )
    return tuple(table)


def _nothing(scan: _Scan, path: Path) -> InputError:
    if scan.others:
        return InputError(
            f"holds no image, only {printable(', '.join(scan.others), 80)}",
            "give the folder of a CT, MR or PT series",
            file=path,
        )
    if scan.unreadable:
        return InputError(
            f"{scan.unreadable} of its files must not be read by you",
            "check permissions",
            file=path,
        )
    return InputError(
        f"holds no DICOM ({scan.skipped} other files)" if path.is_dir() else "is not DICOM",
        "give the folder of a series",
        file=path,
    )


def _check_group(group: Sequence[_Entry], groups: Sequence[Sequence[_Entry]]) -> None:
    """Refuse what no choice of the user can make one image.

    Raises:
        InputError: Several patients or studies, or a reason found while its headers were read.
    """
    same = [e for other in groups for e in other if e.series == group[0].series]
    if group[0].series:
        for word, count in (
            ("patients", len({e.patient for e in same})),
            ("studies", len({e.study for e in same})),
        ):
            if count > 1:
                raise InputError(
                    f"one series holds images of {count} {word}", "export each on its own"
                )
    if len({e.patient for e in group}) > 1:
        raise InputError("one series holds images of several patients", "export each on its own")
    for entry in group:
        if entry.refusal is not None:
            raise InputError(*entry.refusal, file=entry.source.name)


def _unique(group: Sequence[_Entry]) -> list[_Entry]:
    """The entries without copies of the same instance.

    Raises:
        InputError: One UID with different bytes.
    """
    kept: dict[str, _Entry] = {}
    out = []
    for entry in group:
        known = kept.get(entry.uid) if entry.uid else None
        if known is None:
            kept[entry.uid] = entry
            out.append(entry)
        elif known.source.sha256() != entry.source.sha256():
            raise InputError(
                "has the SOPInstanceUID of another file but other bytes",
                "keep one of the two",
                file=entry.source.name,
            )
    return out


def _stack(
    entries: Sequence[_Entry], first: _Entry, *, allow_gaps: bool, as_slices: bool
) -> _Stack:
    """Sort the planes of a group by position and find the grid they form.

    Raises:
        InputError: They are no volume, by the policy of this file.
    """
    numbered = sorted(entries, key=lambda e: e.order)
    index = {id(e): k for k, e in enumerate(entries)}
    frames = [replace(f, source=index[id(e)]) for e in numbered for f in e.frames]
    pixels = first.pixels
    assert pixels is not None
    columns, rows = pixels.columns, pixels.rows
    placed = [f for f in frames if f.position and f.orientation and f.spacing]
    if len(frames) == 1 and not placed:
        row, column = frames[0].spacing or (1.0, 1.0)
        return _Stack(
            tuple(frames),
            1,
            Geometry.from_spacing((columns, rows), (column, row)),
            flat=True,
            warnings=("no position is stored; treated as a single image that lies nowhere",),
        )
    if len(placed) < len(frames):
        raise InputError(
            f"{len(frames) - len(placed)} of {len(frames)} images have no position, orientation "
            "or pixel spacing",
            "give them one by one",
        )
    if any(not _same_grid([frames[0]], [f]) for f in frames):
        raise InputError(
            "its frames have several orientations or pixel sizes", "export each stack on its own"
        )
    components = {f.component for f in frames if f.component}
    if len(components) > 1:
        raise InputError(
            f"holds {len(components)} parts of complex images ({', '.join(sorted(components))})",
            "export magnitude and phase on their own",
        )
    return _placed_stack(frames, columns, rows, allow_gaps=allow_gaps, as_slices=as_slices)


def _placed_stack(
    frames: list[Frame], columns: int, rows: int, *, allow_gaps: bool, as_slices: bool
) -> _Stack:
    """The grid of planes that all have a position."""
    normal = _normal(frames[0])
    frames = sorted(frames, key=lambda f: float(np.dot(_position(f), normal)))
    places: list[list[Frame]] = []
    for frame in frames:
        if places and _position_gap(places[-1][0], frame, normal) <= SAME_PLACE:
            places[-1].append(frame)
        else:
            places.append([frame])
    counts = {len(place) for place in places}
    time_axis, n_times = "", 1
    if counts != {1}:
        time_axis, ordered = _over_time(places, counts)
        if not time_axis:
            if not as_slices:
                raise InputError(
                    f"is not one volume: {len(frames)} images at {len(places)} positions",
                    "export each volume on its own",
                )
            return _Stack(
                tuple(frames),
                1,
                Geometry(
                    (columns, rows, len(frames)), _affine(frames[0], _nominal(frames[0], normal))
                ),
                independent=True,
                warnings=(f"{UNEVEN}: each is processed on its own",),
            )
        places, n_times = ordered, len(ordered[0])
    path = [place[0] for place in places]
    step, found, independent, tilted = _steps(path, normal, allow_gaps=allow_gaps)
    ordered_frames = tuple(place[t] for t in range(n_times) for place in places)
    return _Stack(
        ordered_frames,
        n_times,
        Geometry((columns, rows, len(path)), _affine(path[0], step)),
        time_axis=time_axis,
        independent=independent,
        tilted=tilted,
        warnings=tuple(found),
    )


def _steps(
    path: Sequence[Frame], normal: NDArray[np.float64], *, allow_gaps: bool
) -> tuple[NDArray[np.float64], list[str], bool, bool]:
    """Mean step (LPS mm), warnings, whether slices are independent, whether the stack is tilted.

    Raises:
        InputError: A slice is missing.
    """
    if len(path) == 1:
        found = ["holds a single slice; the slice direction is that of its header"]
        return _nominal(path[0], normal), found, False, False
    positions = np.array([_position(f) for f in path])
    step = (positions[-1] - positions[0]) / (len(path) - 1)
    steps = np.diff(positions @ normal)
    usual = float(np.sort(steps)[(len(steps) - 1) // 2])
    tolerance = max(0.01 * usual, min(0.05, 0.2 * usual))
    odd = np.flatnonzero(np.abs(steps - usual) > tolerance)
    if np.ptp(steps) <= 2 * tolerance:  # all within the tolerance of their middle
        odd = odd[:0]
    found = []
    if len(path) == 2:
        found.append("holds two slices only; whether one is missing cannot be seen")
    if odd.size:
        times = np.round(steps[odd] / usual)
        gaps = (times >= 2) & (np.abs(steps[odd] - times * usual) <= np.maximum(tolerance, 0.05))
        if gaps.all() and not allow_gaps:
            where = int(odd[0])
            raise InputError(
                f"slice missing after slice {where + 1} (gap {steps[where]:.2f} mm, "
                f"spacing {usual:.2f} mm)",
                "export all slices, or use --allow-gaps to process them one by one",
            )
        found.append(
            f"{UNEVEN} ({steps.min():.2f} to {steps.max():.2f} mm): each is processed on its own"
        )
        return step, found, True, False
    line = positions[0] + np.arange(len(path))[:, None] * step
    if np.linalg.norm(positions - line, axis=1).max() > max(tolerance, 0.05) * 2:
        found.append(f"{UNEVEN} (they shift sideways): each is processed on its own")
        return step, found, True, False
    cosine = float(np.dot(step, normal) / np.linalg.norm(step))
    angle = math.degrees(math.acos(min(1.0, cosine)))
    if angle > 0.1:
        found.append(f"the slices are tilted by {angle:.1f} degrees; the grid is sheared")
    return step, found, False, angle > 0.1


def _over_time(places: list[list[Frame]], counts: set[int]) -> tuple[str, list[list[Frame]]]:
    """What tells several images at each position apart, and the images in that order."""
    if len(places) < 2 or len(counts) != 1:
        return "", places
    for k, name in enumerate(TIME_AXES):
        table = [[frame.times[k] for frame in place] for place in places]
        if any(v is None for row in table for v in row):
            continue
        if any(len(set(row)) < len(row) for row in table):
            continue
        if name in SAME_EVERYWHERE and len({frozenset(row) for row in table}) > 1:
            continue
        return name, [sorted(place, key=_by_time(k)) for place in places]
    return "", places


def _by_time(axis: int) -> Callable[[Frame], Any]:
    return lambda frame: frame.times[axis]


def _position(frame: Frame) -> NDArray[np.float64]:
    return np.asarray(frame.position, dtype=np.float64)


def _position_gap(a: Frame, b: Frame, normal: NDArray[np.float64]) -> float:
    return abs(float(np.dot(_position(b) - _position(a), normal)))


def _normal(frame: Frame) -> NDArray[np.float64]:
    assert frame.orientation is not None
    normal = np.cross(frame.orientation[:3], frame.orientation[3:])
    return normal / np.linalg.norm(normal)


def _nominal(frame: Frame, normal: NDArray[np.float64]) -> NDArray[np.float64]:
    """The step that the header of a lone slice announces."""
    thickness = abs(frame.thickness) if frame.thickness else 1.0
    return normal * thickness


def _affine(first: Frame, step: NDArray[np.float64]) -> NDArray[np.float64]:
    """(4, 4) RAS affine of (column, row, slice) indices; a column index steps along a row."""
    assert first.orientation is not None
    assert first.spacing is not None
    lps = np.eye(4)
    lps[:3, 0] = np.array(first.orientation[:3]) * first.spacing[1]
    lps[:3, 1] = np.array(first.orientation[3:]) * first.spacing[0]
    lps[:3, 2] = step
    lps[:3, 3] = _position(first)
    return LPS_TO_RAS @ lps


def _read(
    group: Sequence[_Entry],
    scan: _Scan,
    limits: Limits,
    name: str,
    allow_gaps: bool,
    as_slices: bool,
) -> Image:
    """The pixels of a group in one float32 array."""
    _check_group(group, scan.groups)
    entries = _unique(group)
    stack = _stack(entries, group[0], allow_gaps=allow_gaps, as_slices=as_slices)
    found = _Found()
    found.add(stack.warnings)
    found.add(w for e in entries for w in e.warnings)
    if len(entries) < len(group):
        found.add([f"{len(group) - len(entries)} copies of the same instances were left out"])
    if scan.unreadable:
        found.add([f"{scan.unreadable} files must not be read by you and were left out"])
    shapes = [e.pixels for e in entries if e.pixels is not None]
    if len({s.signed for s in shapes}) > 1:
        found.add(["PixelRepresentation differs between its slices"])
    first = shapes[0]
    n_planes = len(stack.frames)
    start = stack.frames[0]
    with naming(entries[start.source].source.name):
        # A hostile header fails here, before the whole array is allocated.
        decode(_reopen(entries[start.source], limits), start.index, limits)
    limits.check_pixels(4 * n_planes * first.rows * first.columns)
    array = np.empty((n_planes, first.rows, first.columns), np.float32)
    valid: NDArray[np.bool_] | None = None
    opened: tuple[int, Instance] | None = None
    for k, frame in enumerate(stack.frames):
        entry = entries[frame.source]
        with naming(entry.source.name):
            if opened is None or opened[0] != frame.source:
                opened = frame.source, _reopen(entry, limits)
            stored, sentences = decode(opened[1], frame.index, limits)
            found.add(sentences)
            array[k] = values.decode(stored, frame.slope, frame.intercept)
            if not np.isfinite(array[k]).all():
                raise InputError("its rescaled values overflow", "export the images again")
        if entry.padding is not None:
            numbers: NDArray[Any] = stored
            padding = (numbers >= entry.padding[0]) & (numbers <= entry.padding[1])
            if padding.any():
                if valid is None:
                    valid = np.ones(array.shape, np.bool_)
                valid[k] = ~padding
    del opened
    if valid is not None and not valid.any():
        valid = None
    digests = tuple(e.source.sha256() for e in entries)
    origin = SeriesOrigin(
        tuple(e.source for e in entries),
        digests,
        stack.frames,
        stack.n_times,
        stack.n_slices,
        group[0].sop_class,
        group[0].is_enhanced,
        first.photometric,
        group[0].image_type,
        stack.independent,
        stack.tilted,
        stack.time_axis,
        scan.skipped,
    )
    return Image(
        data=_turned(array, stack),
        geometry=stack.geometry,
        stored=_stored(stack, shapes),
        channels="time" if stack.n_times > 1 else "scalar",
        valid=None if valid is None else _turned(valid, stack),
        modality=group[0].modality,
        origin=origin,
        name=name,
        warnings=found.sentences(),
    )


def _reopen(entry: _Entry, limits: Limits) -> Instance:
    """The instance again, now for its pixels."""
    try:
        instance = open_instance(entry.source, limits)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", "check the disk") from error
    if instance is None or instance.text(0x00080018) != entry.uid:
        raise InputError("changed while the folder was read", "try again")
    return instance


def _turned(planes: NDArray[Any], stack: _Stack) -> NDArray[Any]:
    """(planes, rows, columns) as a view (times, columns, rows[, slices])."""
    if stack.flat:
        return planes.transpose(0, 2, 1)
    volumes = planes.reshape(stack.n_times, stack.n_slices, *planes.shape[1:])
    return volumes.transpose(0, 3, 2, 1)


def _stored(stack: _Stack, shapes: Sequence[PixelShape]) -> Stored:
    """How the values lie in the instances; scaling of the first time where it varies over time."""
    slopes = np.array([f.slope for f in stack.frames[: stack.n_slices]])
    intercepts = np.array([f.intercept for f in stack.frames[: stack.n_slices]])
    same = len({(f.slope, f.intercept) for f in stack.frames}) == 1
    return Stored(
        shapes[0].dtype,
        slopes[0].reshape(()) if same else slopes,
        intercepts[0].reshape(()) if same else intercepts,
        float(min(s.lowest for s in shapes)),
        float(max(s.highest for s in shapes)),
    )
