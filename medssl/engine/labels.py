"""Tables of labels: which volume, slice or file is of which class, or has which label map."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medssl.core.errors import InputError, UsageError, naming, printable
from medssl.data.prepare import canonical
from medssl.data.store import Store, Volume
from medssl.data.views import normalised, thick_axis
from medssl.engine.archive import short
from medssl.engine.encoders import LoadedEncoder, volumes_of
from medssl.engine.few_labels import Case
from medssl.io.features import Features, read_csv
from medssl.io.folder import find_scans
from medssl.io.limits import Limits
from medssl.io.read import read

MOST_CLASSES = 50
"""More are numbers that were measured, not classes."""
COLUMNS = "give columns id or file, label, and slice or group where they are known"


@dataclass(frozen=True)
class Label:
    """A line of a table."""

    id: str
    """Of the volume; see `medssl embed`."""
    slice: int | None
    text: str
    """The class, or the label map."""
    group: str
    """`""` leaves it to the features."""
    file: Path | None
    """Where the scan lies, if the table says so."""


@dataclass(frozen=True, eq=False)
class Labelled:
    """Features with their classes."""

    x: NDArray[np.float64]
    """(n, D)."""
    y: NDArray[np.int64]
    """(n,) index into `classes`."""
    group: NDArray[np.int64]
    """(n,) equal where rows may be of one patient."""
    split: tuple[str, ...]
    classes: tuple[str, ...]


def read_labels(source: Path, column: str) -> list[Label]:
    """The lines of a CSV table.

    Volumes are named by `id`, or by `file`, a path from where the table lies; files are hashed as
    `medssl embed` does.

    Args:
        source: The table.
        column: That is read beside the names: `label` or `segmentation`.

    Raises:
        InputError: Missing, without these columns, or a file in it is no scan.
    """
    columns = read_csv(source)
    if column not in columns or not {"id", "file"} & set(columns):
        raise InputError(
            f"has columns {printable(', '.join(columns), 60)}",
            COLUMNS.replace("label", column),
            file=source,
        )
    n = len(columns[column])
    files = [source.parent / f for f in columns["file"]] if "file" in columns else [None] * n
    ids = columns["id"] if "id" in columns else _hashed(files)
    slices = columns.get("slice", [""] * n)
    groups = columns.get("group", [""] * n)
    try:
        numbers = [int(float(s)) if s else None for s in slices]
    except ValueError as error:
        raise InputError("column 'slice' holds text", "give whole numbers", file=source) from error
    rows = zip(ids, numbers, columns[column], groups, files, strict=True)
    return [Label(*row) for row in rows if row[2]]


def joined(table: Features, labels: Sequence[Label], source: Path) -> Labelled:
    """The rows of a table that have a label; a label without a slice is that of all slices.

    Args:
        table: The features.
        labels: Their labels.
        source: Of the labels, for messages.

    Raises:
        InputError: None has, two disagree, or there are not two classes.
    """
    by_slice = any(one.slice is not None for one in labels)
    if by_slice and all(s is None for s in table.slice):
        raise InputError(
            "labels slices, the features are of volumes", "embed with --per slice", file=source
        )
    known: dict[tuple[str, int | None], Label] = {}
    for one in labels:
        other = known.setdefault((one.id, one.slice), one)
        if other.text != one.text:
            raise InputError(
                f"gives {printable(one.id, 16)} two labels", "remove one of them", file=source
            )
    found = []
    for k, (name, slice_) in enumerate(zip(table.id, table.slice, strict=True)):
        label = known.get((name, slice_)) or known.get((name, None))
        if label is not None:
            found.append((k, label))
    if not found:
        raise InputError(
            f"none of its {len(labels)} labels belongs to the {len(table)} rows of features",
            "the ids are those that medssl embed writes",
            file=source,
        )
    classes = tuple(sorted({label.text for _, label in found}))
    if not 2 <= len(classes) <= MOST_CLASSES:
        raise InputError(
            f"has {len(classes)} classes", f"give 2 to {MOST_CLASSES} of them", file=source
        )
    rows = [k for k, _ in found]
    groups = [label.group or table.group[k] for k, label in found]
    return Labelled(
        x=table.values[rows].astype(np.float64),
        y=np.array([classes.index(label.text) for _, label in found], np.int64),
        group=np.unique(groups, return_inverse=True)[1].astype(np.int64),
        split=tuple(table.split[k] for k in rows),
        classes=classes,
    )


def cases_of(
    labels: Sequence[Label], store: Path | None, loaded: LoadedEncoder, limits: Limits, source: Path
) -> list[Case]:
    """Images with their label maps: volumes, or each slice that has a label.

    Args:
        labels: Whose text is the path of a label map, from where the table lies.
        store: Where the images lie; None takes the files of the table.
        loaded: Says how images are normalised, and along which axes they are seen.
        limits: Bounds of what a file may ask for.
        source: The table.

    Raises:
        UsageError: The table names no files and there is no store.
        InputError: A map does not fit its image, or its values are no classes.
    """
    opened = None if store is None else Store.open(store)
    known = {} if opened is None else {v.key: v for v in opened.volumes}
    found: list[tuple[NDArray[Any], Volume, NDArray[np.int64]]] = []
    for one in labels:
        if opened is not None:
            volume = known.get(one.id)
            if volume is None:
                raise InputError(
                    f"{printable(one.id, 16)} is not in the store", "see its volumes", file=source
                )
            array = opened.read(volume.index)
        else:
            if one.file is None:
                raise UsageError("the table names no files", "give --data STORE")
            array, volume = next(volumes_of(read(one.file, None, limits), one.id, one.id))
        if one.group:
            volume = dataclasses.replace(volume, group=one.group)
        found.append((array, volume, _label_map(source.parent / one.text, volume, limits)))
    values = np.unique(np.concatenate([np.unique(m) for _, _, m in found]))
    if len(values) > MOST_CLASSES or len(values) < 2:
        raise InputError(
            f"the label maps hold {len(values)} values", f"give 2 to {MOST_CLASSES}", file=source
        )
    groups = sorted({v.group for _, v, _ in found})
    return [
        case
        for array, volume, label in found
        for case in _cases(array, volume, np.searchsorted(values, label), groups, loaded)
    ]


def _label_map(path: Path, volume: Volume, limits: Limits) -> NDArray[np.int64]:
    """(X, Y, Z) in RAS+."""
    with naming(path):
        image = read(path, None, limits)
        data = image.data[:1] if image.data.ndim == 4 else image.data[:1, ..., None]
        turned, _ = canonical(data, image.geometry.affine)
        if turned.shape[1:] != volume.shape[1:]:
            raise InputError(
                f"has {turned.shape[1:]} voxels, its image {volume.shape[1:]}",
                "give a label map on the grid of the image",
            )
        if not np.array_equal(turned, np.rint(turned)) or turned.min() < 0:
            raise InputError("holds no whole numbers from 0 on", "give a label map")
    return turned[0].astype(np.int64)


def _cases(
    array: NDArray[Any],
    volume: Volume,
    label: NDArray[np.int64],
    groups: Sequence[str],
    loaded: LoadedEncoder,
) -> Iterator[Case]:
    x = torch.nan_to_num(normalised(array, volume, loaded.crops), nan=0.0, posinf=0.0, neginf=0.0)
    if len(x) != loaded.channels:
        x = x.mean(0, keepdim=True).expand(loaded.channels, *x.shape[1:])
    y, group = torch.from_numpy(np.ascontiguousarray(label)), groups.index(volume.group)
    thick = thick_axis(volume)
    sees = loaded.method.sees
    if sees.axes == 2:
        for z in range(y.shape[thick]):
            plane = y.select(thick, z)
            if plane.any():
                yield Case(x.select(1 + thick, z), plane, group, volume.split)
        return
    if sees.stack:
        x, y = x.movedim(1 + thick, -1), y.movedim(thick, -1)
    yield Case(x, y, group, volume.split)


def _hashed(files: Sequence[Path | None]) -> list[str]:
    """Ids of scans."""
    known: dict[Path, str] = {}
    for path in files:
        assert path is not None
        if path not in known:
            found = find_scans(path)
            if len(found) != 1:
                raise InputError(
                    f"holds {len(found)} scans", "name one file or series for each label", file=path
                )
            known[path] = short(found[0].id)
    return [known[path] for path in files if path is not None]
