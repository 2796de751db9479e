"""Tables of features: Parquet, CSV or NPZ, as the suffix says. Rows are named by hashes."""

import csv
import io
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from medssl.core.errors import InputError, UsageError
from medssl.io import atomic
from medssl.io.table import read_parquet, write_parquet

SUFFIXES = (".parquet", ".csv", ".npz")
WORDS = ("id", "group", "split", "modality")
"""Columns of text."""
PLACE = ("x", "y", "z")
"""First voxel of a patch, in the axes of the store."""
REMEDY = "make it with medssl embed"


@dataclass(frozen=True, eq=False)
class Features:
    """One row for each volume, slice or patch."""

    id: tuple[str, ...]
    """Of the volume: its key in the store, or a hash of its file."""
    group: tuple[str, ...]
    """Equal where rows may be of one patient."""
    split: tuple[str, ...]
    """`train`, `val`, `test`, or `""` where the scans are in no store."""
    modality: tuple[str, ...]
    slice: tuple[int | None, ...]
    """None for whole volumes."""
    values: NDArray[np.float32]
    """(n, D)."""
    place: NDArray[np.int32] | None = None
    """(n, 3) first voxel of each patch; None where rows are no patches."""

    def __len__(self) -> int:
        """Rows."""
        return len(self.id)

    def columns(self) -> dict[str, Any]:
        """By name, in the order in which they are written."""
        found: dict[str, Any] = {name: list(getattr(self, name)) for name in WORDS}
        found["slice"] = list(self.slice)
        if self.place is not None:
            found |= {name: self.place[:, k] for k, name in enumerate(PLACE)}
        return found | {f"f{k}": self.values[:, k] for k in range(self.values.shape[1])}


def is_table(path: Path) -> bool:
    """Whether a file is named as a table of features."""
    return path.suffix.lower() in SUFFIXES


def check_suffix(target: Path) -> None:
    """Refuse a name whose suffix says nothing.

    Raises:
        UsageError: It is none of `SUFFIXES`.
    """
    if not is_table(target):
        raise UsageError(
            f"the suffix is {target.suffix!r}", f"end it in {', '.join(SUFFIXES)}", file=target
        )


def write_features(target: Path, table: Features, *, overwrite: bool) -> None:
    """Write a table.

    Raises:
        UsageError: The suffix is not known, or Parquet is not installed.
        OutputError: The place is taken, not writable, or full.
    """
    check_suffix(target)
    atomic.check_target(target, overwrite=overwrite)
    columns, suffix = table.columns(), target.suffix.lower()
    if suffix == ".parquet":
        types = dict.fromkeys(columns, "float32") | dict.fromkeys(WORDS, "str")
        types |= {name: "int32" for name in ("slice", *PLACE) if name in columns}
        write_parquet(target, columns, types)
        return
    with atomic.file(target, overwrite=overwrite) as sink:
        if suffix == ".csv":
            sink.write(_csv(columns).encode())
        else:
            slices = np.array([-1 if s is None else s for s in table.slice], np.int32)
            words = {name: np.array(columns[name], np.str_) for name in WORDS}
            place = {} if table.place is None else {"place": table.place}
            held: dict[str, NDArray[Any]] = {**words, "slice": slices, **place}
            np.savez(sink, allow_pickle=False, values=table.values, **held)


def read_features(source: Path) -> Features:
    """Read a table that `write_features` wrote, or one with the same columns.

    Columns `id` and `f0`, `f1`, ... must be there; a missing `group` makes each id its own.

    Raises:
        InputError: Missing, damaged, empty, or without these columns.
        UsageError: The suffix is not known, or Parquet is not installed.
    """
    check_suffix(source)
    if not source.is_file():
        raise InputError("does not exist", "check the path", file=source)
    suffix = source.suffix.lower()
    if suffix == ".npz":
        table = _of_npz(source)
    else:
        columns = read_parquet(source) if suffix == ".parquet" else _columns(source)
        table = _of_columns(columns, source)
    if not len(table) or not table.values.shape[1]:
        raise InputError("holds no features", REMEDY, file=source)
    if not np.isfinite(table.values).all():
        raise InputError("has features that are not finite", REMEDY, file=source)
    return table


def read_csv(source: Path) -> dict[str, list[str]]:
    """The columns of a CSV file as text.

    Raises:
        InputError: Missing, no text, or rows of another length than the first.
    """
    if not source.is_file():
        raise InputError("does not exist", "check the path", file=source)
    try:
        with source.open(newline="", encoding="utf-8-sig") as handle:
            rows = [row for row in csv.reader(handle) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError("is no CSV file", "save it as UTF-8 text", file=source) from error
    if not rows:
        raise InputError("is empty", "give a line of names and a line for each row", file=source)
    names = [name.strip() for name in rows[0]]
    for k, row in enumerate(rows[1:], 2):
        if len(row) != len(names):
            raise InputError(
                f"line {k} has {len(row)} fields, the first has {len(names)}", file=source
            )
    return {name: [row[k].strip() for row in rows[1:]] for k, name in enumerate(names)}


def _csv(columns: Mapping[str, Any]) -> str:
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(columns)
    for row in zip(*columns.values(), strict=True):
        writer.writerow("" if v is None else v for v in row)
    return sink.getvalue()


def _columns(source: Path) -> dict[str, list[Any]]:
    """Of a CSV file, numbers as numbers."""
    found: dict[str, list[Any]] = {}
    for name, texts in read_csv(source).items():
        if name in WORDS:
            found[name] = list(texts)
            continue
        try:
            found[name] = [float(t) if t else None for t in texts]
        except ValueError as error:
            raise InputError(f"column {name!r} holds text", REMEDY, file=source) from error
    return found


def _of_columns(columns: Mapping[str, list[Any]], source: Path) -> Features:
    names = [f"f{k}" for k in range(len(columns)) if f"f{k}" in columns]
    if "id" not in columns or not names:
        raise InputError("has no columns id, f0, f1, ...", REMEDY, file=source)
    n = len(columns["id"])
    ids = tuple(str(v) for v in columns["id"])
    slices = columns.get("slice", [None] * n)
    values = np.array([columns[name] for name in names], np.float32).T
    place = None
    if all(name in columns for name in PLACE):
        place = np.array([columns[name] for name in PLACE], np.int32).T
    return Features(
        id=ids,
        group=tuple(str(v) for v in columns.get("group", ids)),
        split=tuple(str(v or "") for v in columns.get("split", [""] * n)),
        modality=tuple(str(v or "") for v in columns.get("modality", [""] * n)),
        slice=tuple(None if s is None else int(s) for s in slices),
        values=values.reshape(n, len(names)),
        place=place,
    )


def _of_npz(source: Path) -> Features:
    try:
        with source.open("rb") as handle, np.load(handle, allow_pickle=False) as held:
            words = {name: tuple(str(v) for v in held[name]) for name in WORDS}
            slices = tuple(None if s < 0 else int(s) for s in held["slice"])
            place = held["place"] if "place" in held.files else None
            values = held["values"].astype(np.float32)
    except (OSError, ValueError, TypeError, KeyError, EOFError, BadZipFile, zlib.error) as error:
        raise InputError("is no table of features", REMEDY, file=source) from error
    return Features(**words, slice=slices, values=values, place=place)
