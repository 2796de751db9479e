"""Tables of labels: which volume, slice or file is of which class."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medssl.core.errors import InputError, printable
from medssl.engine.archive import short
from medssl.io.features import Features, read_csv
from medssl.io.folder import find_scans

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
