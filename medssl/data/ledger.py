"""What a store remembers of its preparation: journal, skip list, links, and the end of each series.

    store/journal.jsonl    series that are ready, while a preparation goes on or after it was killed
          series.parquet   what became of each series, at the end
          skipped.csv      what is left out and why; for humans, who may edit it
          links.parquet    volumes that show the same anatomy

None of them names a patient, a file or a folder.
"""

import base64
import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medssl.core.errors import InputError, MedsslError
from medssl.data.duplicates import Link
from medssl.data.store import HEAVY, TABLE, Row, read_rows
from medssl.io import atomic, journal
from medssl.io.table import read_parquet, write_parquet

JOURNAL, SKIPPED, LINKS, SERIES, LOCK = (
    "journal.jsonl",
    "skipped.csv",
    "links.parquet",
    "series.parquet",
    ".lock",
)
HAND = "by hand"
"""Why a row is left out that a human put on the list."""
LINK_TYPES = {"a": "str", "b": "str", "test": "str", "share": "float64"}
SERIES_TYPES = {
    "series": "str",
    "stamp": "str",
    "accepted": "bool",
    "key": "str",
    "code": "str",
    "fact": "str",
}


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A series or volume that stays out."""

    key: str
    code: str
    fact: str


@dataclass(frozen=True, kw_only=True)
class Done:
    """What became of a series."""

    key: str
    stamp: str
    accepted: bool
    rows: tuple[Row, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    error: MedsslError | None = None
    """Why it makes no sense to go on with other series."""


def series_of(key: str) -> str:
    """The series of a volume."""
    return key.partition("-")[0]


def finished(out: Path) -> dict[str, Done]:
    """What became of each series when the preparation last came to its end."""
    if not (out / SERIES).is_file() or not (out / TABLE).is_file():
        return {}
    rows: dict[str, list[Row]] = {}
    for row in read_rows(out):
        rows.setdefault(row.series, []).append(row)
    known: dict[str, Done] = {}
    table = read_parquet(out / SERIES, list(SERIES_TYPES))
    for key, stamp, accepted, volume, code, fact in zip(*table.values(), strict=True):
        before = known.get(key, Done(key=key, stamp=stamp, accepted=accepted))
        more = (Skipped(key=volume, code=code, fact=fact),) if code else ()
        known[key] = dataclasses.replace(
            before, rows=tuple(rows.get(key, ())), skipped=before.skipped + more
        )
    return known


def journaled(out: Path) -> dict[str, Done]:
    """What became of series since then, in a preparation that did not come to its end."""
    records = [record for record in journal.read(out / JOURNAL) if record]
    return {record["key"]: of_json(record) for record in records}


def skipped_by_us(known: Mapping[str, Done]) -> set[str]:
    """Keys that are on the list because of their quality."""
    return {s.key for d in known.values() for s in d.skipped}


def read_list(file: Path) -> dict[str, str] | None:
    """The keys of the skip list and what is said of them; None where there is no list yet.

    Raises:
        InputError: It was edited into something else.
    """
    if not file.is_file():
        return None
    try:
        lines = list(csv.DictReader(io.StringIO(file.read_text("utf-8-sig"))))
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise InputError("cannot be read", "save it as CSV in UTF-8", file=file) from error
    if lines and "key" not in lines[0]:
        raise InputError("has no column 'key'", "keep its first line as it was", file=file)
    return {str(x["key"]).strip(): str(x.get("why") or "").strip() for x in lines if x["key"]}


def write_list(
    file: Path, listed: Mapping[str, tuple[str, str]], modality: Mapping[str, str]
) -> None:
    """Write the skip list in the order of codes, then keys."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["key", "code", "modality", "why"])
    for key, (code, why) in sorted(listed.items(), key=lambda x: (x[1][0], x[0])):
        writer.writerow([key, code, modality.get(series_of(key), ""), why])
    with atomic.file(file, overwrite=True) as sink:
        sink.write(text.getvalue().encode())


def write_links(file: Path, links: Sequence[Link]) -> None:
    """Write the pairs of volumes that show the same anatomy."""
    write_parquet(
        file, {name: [getattr(x, name) for x in links] for name in LINK_TYPES}, LINK_TYPES
    )


def write_series(file: Path, done: Mapping[str, Done]) -> None:
    """Write what became of each series: a line for each reason, or one without."""
    lines = [
        (d.key, d.stamp, d.accepted, s.key, s.code, s.fact)
        for _, d in sorted(done.items())
        for s in (d.skipped or (Skipped(key="", code="", fact=""),))
    ]
    columns = dict(zip(SERIES_TYPES, zip(*lines, strict=True), strict=True)) if lines else {}
    write_parquet(file, {name: list(columns.get(name, ())) for name in SERIES_TYPES}, SERIES_TYPES)


def as_json(done: Done) -> dict[str, Any]:
    """A line of the journal."""
    record = dataclasses.asdict(dataclasses.replace(done, error=None))
    for row in record["rows"]:
        for name in HEAVY:
            row[name] = base64.b64encode(row[name]).decode()
    return record


def of_json(record: dict[str, Any]) -> Done:
    """What a line of the journal says."""
    rows = []
    for row in record["rows"]:
        values = row | {name: base64.b64decode(row[name]) for name in HEAVY}
        values["foreground"] = tuple(tuple(ends) for ends in row["foreground"])
        values |= {name: tuple(row[name]) for name in ("shape", "affine", "percentiles")}
        rows.append(Row(**values))
    skipped = tuple(Skipped(**s) for s in record["skipped"])
    return Done(
        key=record["key"],
        stamp=record["stamp"],
        accepted=record["accepted"],
        rows=tuple(rows),
        skipped=skipped,
    )
