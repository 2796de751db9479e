"""An archive of scans as rows: what lies where, which scans belong together, and to which split.

Rows only: no pixels, and no torch. Patients, studies and series are known by keyed hashes.

`index` looks at headers and writes one row per file (`data.rows`) in parts (`data.parts`); the next
run looks only at files that are new or changed. A file that is of no use has a code:

======================  ====================================================================
`empty`                 no bytes
`unreadable`            may not be opened, a link that leads nowhere, no regular file
`unknown`               neither DICOM, NIfTI nor a picture
`damaged`               starts like one of them and is broken or hostile
`too-large`             its header asks for more memory than there is
`no-image`              DICOM without a series and without pixels, such as a DICOMDIR
======================  ====================================================================
"""

import hashlib
import hmac
import os
import re
import stat
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import groupby, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

from medssl.core.errors import (
    InputError,
    InterruptedRunError,
    MedsslError,
    MemoryLimitError,
    UsageError,
    printable,
)
from medssl.core.progress import Progress
from medssl.data.jobs import begin, cores
from medssl.data.parts import File, Parts
from medssl.data.rows import PUBLIC, Keys, dicom_row, flag_words, head_row, refused_row
from medssl.io import atomic, heads, table, tags

Split = Literal["train", "val", "test"]
Member = tuple[str, str, str]
"""Key of a series or volume, key of its patient, key of its frame of reference or `""`."""


@dataclass(frozen=True, kw_only=True)
class SeriesRow:
    """One series of the index; nothing in it names a patient except `paths`."""

    key: str
    """Hex, of the series: 128 bits."""
    study: str
    patient: str
    """Whom the split must not tear apart: the patient, or what stands in for one."""
    frame: str
    """Of the frame of reference; `""` where the files have none."""
    kind: Literal["dicom", "nifti", "picture"]
    modality: str
    """`CT`, `MR`, ...; `""` where it is not known."""
    flags: tuple[str, ...]
    """Of `data.rows.FLAGS`, in its order: what any of its files says."""
    paths: tuple[Path, ...]
    """Of its files, ascending, each instance once."""
    n_instances: int
    rows: int
    columns: int
    n_frames: int
    """Over all its files."""
    size: int
    """Bytes of its files."""
    stamp: str
    """Changes with the names, sizes and times of its files."""


@dataclass(frozen=True, kw_only=True)
class Indexed:
    """What a run of `index` found."""

    files: int
    """In the archive."""
    added: int
    changed: int
    vanished: int
    fallback: float
    """Share of the DICOM files that the scanner left to pydicom."""
    modalities: Mapping[str, int]
    """Files of use by modality; what has none by its kind."""
    series: int
    studies: int
    patients: int
    refused: Mapping[str, int]
    """Files of no use by code."""
    warnings: tuple[str, ...]


PART = 50_000
"""Files of one part: what a killed run loses at most."""
AGAIN = ("unreadable", "too-large")
"""Codes of files that are looked at in every run: rights and memory change without a trace."""
NEVER = -1
"""Time of a file that no file has."""
LONGEST_PART = 30.0
"""Seconds after which a part is written, however short."""
CHUNK = 250
"""Files that a process takes at once."""
FEW = 4_000
"""Files up to which starting other processes takes longer than they save."""
MOST_SHARE = 0.05
"""Of the studies of an archive that one patient may hold."""
MOST_STUDIES = 20
"""That a patient may have whatever the share: in small archives every patient has a large one."""
CROWD = 4.0
"""Times as many studies as others have on average, that a patient may have: where all have many,
it is a study that follows its patients."""
TOLERANCE = 1e-4
"""Up to which direction cosines are equal."""

Rows = list[tuple[Any, ...]]
Look = Callable[[list[File]], Rows]
Listed = tuple[bytes, int, int]
"""Path below the archive, size, or -1 of what is no readable file, and time in ns."""


def index(
    root: Path,
    out: Path,
    *,
    patient_regex: str | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Indexed:
    """Look at the headers of an archive and write, or bring up to date, its index.

    Args:
        root: Folder of DICOM, NIfTI and pictures. Hidden files are passed over, and the index
            itself should it lie inside.
        out: Folder of the index.
        patient_regex: Finds the patient in a path below the archive, `/` between folders: by its
            first group, or by all that matches. What it does not match keeps what its file says.
        workers: Processes; None takes all cores when there are many files.
        progress: Told the stage, files done and files in all.

    Raises:
        UsageError: The expression is none, or the extra is not installed.
        InputError: No such folder, the index is damaged or of another folder, or one patient holds
            so many studies that it must be a filler.
        OutputError: The index cannot be written, or another run writes it.
    """
    table.require()
    pattern = _compiled(patient_regex)
    root = root.resolve()
    try:
        os.scandir(root).close()
    except OSError as error:
        raise InputError(
            f"cannot be listed ({error.strerror})", "give the folder of the archive", file=root
        ) from error
    atomic.make_folder(out)
    with Parts(out).locked():
        parts = Parts.make(out, root)
        keys = Keys(parts.salt)
        wanted = keys.once("pattern", patient_regex or "").hex()[:32]
        if parts.pattern != wanted:  # it decides whose every row is
            parts.forget()
            parts.pattern = wanted
        parts.complete = False
        parts.save()
        if progress is not None:
            progress("list", 0, 1)
        files, lost, total = parts.compare(_pieces(_walk(os.fsencode(root), out), PART))
        try:
            _add(parts, files, lost, pattern, workers, progress)
        except KeyboardInterrupt as error:
            raise InterruptedRunError("interrupted", "run it again, it goes on") from error
        facts = _facts(parts)
        warnings = _warnings(parts, facts, pattern)
        parts.complete = True
        parts.save()
    changed = sum(file.old is not None for file in files)
    return Indexed(
        files=total,
        added=len(files) - changed,
        changed=changed,
        vanished=len(lost),
        fallback=facts["fallback"],
        modalities={name: kind["files"] for name, kind in facts["modalities"].items()},
        series=facts["series"],
        studies=facts["studies"],
        patients=facts["patients"],
        refused=facts["refused"],
        warnings=warnings,
    )


def salt(index: Path) -> bytes:
    """What `split` is keyed with: of this index, and no other.

    Raises:
        InputError: It is no index, or damaged.
    """
    return Parts.open(index).salt


def series(index: Path) -> list[SeriesRow]:
    """The series of an index, in the order of their keys; files of no use are in none of them.

    Images of one series UID are of one series here when they have the same patient, study, class,
    frame of reference, matrix, spacing, echo time and b-value, and directions that differ by less
    than `TOLERANCE`. Copies of an instance count once.

    Raises:
        InputError: It is no index, damaged, or its last run did not come to its end.
    """
    parts = _whole(index)
    root = os.fsencode(parts.root)
    (found,) = parts.ask(_SERIES)
    rows = (dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True))
    together: list[SeriesRow] = []
    for _, same in groupby(rows, key=lambda row: row["series"]):
        together += [_series_row(plane, root) for plane in _by_plane(list(same))]
    return sorted(together, key=lambda row: row.key)


def show(index: Path) -> dict[str, Any]:
    """Counts of an index, ready for JSON; nothing in them names a patient.

    Raises:
        InputError: It is no index, damaged, or its last run did not come to its end.
    """
    parts = _whole(index)
    rows = series(index)
    members = [(row.key, row.patient, row.frame) for row in rows]
    chosen, _ = split(members, salt=parts.salt)
    together = groups(members)
    splits = {
        name: {
            "series": sum(one == name for one in chosen.values()),
            "groups": len({together[key] for key, one in chosen.items() if one == name}),
        }
        for name in ("train", "val", "test")
    }
    words: dict[str, int] = {}
    for row in rows:
        for word in row.flags:
            words[word] = words.get(word, 0) + 1
    facts = _facts(parts)
    return facts | {"series": len(rows), "splits": splits, "flags": dict(sorted(words.items()))}


def groups(members: Sequence[Member], links: Sequence[tuple[str, str]] = ()) -> dict[str, str]:
    """Which series or volumes must stay together.

    Args:
        members: Key, patient and frame of reference of each.
        links: Pairs of keys that show the same anatomy, such as copies.

    Returns:
        The group of each key: the smallest patient key among its members. A group is a connected
        component over equal patients, equal frames of reference, and links.
    """
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        parent.setdefault(name, name)
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    def join(a: str, b: str) -> None:
        first, second = sorted((root(a), root(b)))
        parent[second] = first

    known = {key for key, _, _ in members}
    for key, patient, frame in members:
        if patient:
            join(f"key/{key}", f"patient/{patient}")
        if frame:
            join(f"key/{key}", f"frame/{frame}")
    for a, b in links:
        if a in known and b in known:
            join(f"key/{a}", f"key/{b}")
    names: dict[str, str] = {}
    for key, patient, _ in members:
        here, name = root(f"key/{key}"), patient or key
        names[here] = min(names.get(here, name), name)
    return {key: names[root(f"key/{key}")] for key, _, _ in members}


def split(
    members: Sequence[Member],
    links: Sequence[tuple[str, str]] = (),
    *,
    salt: bytes,
    shares: tuple[float, float, float] = (0.9, 0.05, 0.05),
) -> tuple[dict[str, Split], list[str]]:
    r"""Training, validation or test, by a hash of the patient.

    With :math:`u = \mathrm{HMAC}(salt, patient) / 2^{64}` (its first 8 bytes) a patient is in
    training when :math:`u < shares_0`, in validation when :math:`u < shares_0 + shares_1`, and
    in the test otherwise: whatever else the archive holds, and in whatever order it came. A group
    whose patients fall apart goes to training as a whole, so that evaluation may shrink but never
    leaks.

    Args:
        members: Key, patient and frame of reference of each series or volume; one without a
            patient is its own.
        links: Pairs of keys that show the same anatomy.
        salt: Of the index (`salt`).
        shares: Of training, validation and test; they sum to 1.

    Returns:
        The split of each key, and the groups that were moved to training.
    """
    drawn: dict[str, Split] = {
        key: _draw(patient or key, salt, shares) for key, patient, _ in members
    }
    together = groups(members, links)
    seen: dict[str, set[Split]] = {}
    for key, group in together.items():
        seen.setdefault(group, set()).add(drawn[key])
    torn = {group for group, splits in seen.items() if len(splits) > 1}
    chosen: Mapping[str, Split] = {
        g: "train" if g in torn else next(iter(s)) for g, s in seen.items()
    }
    return {key: chosen[group] for key, group in together.items()}, sorted(torn)


def _draw(patient: str, salt: bytes, shares: tuple[float, float, float]) -> Split:
    digest = hmac.digest(salt, b"split/" + patient.encode(), "sha256")
    u = int.from_bytes(digest[:8]) / 2**64
    return "train" if u < shares[0] else "val" if u < shares[0] + shares[1] else "test"


_SERIES = """
    SELECT series, orientation, kind, min(study) AS study, min(patient) AS patient,
        min(frame) AS frame, max(modality) AS modality, bit_or(flags) AS flags,
        max(rows) AS rows, max(columns) AS columns,
        list({'path': path, 'size': size, 'time': mtime_ns, 'instance': instance,
            'frames': frames}) AS files
    FROM alive WHERE code = '' GROUP BY series, orientation, kind ORDER BY series, orientation
"""


def _by_plane(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Groups of one series merged where their directions are equal up to the tolerance."""
    planes: list[dict[str, Any]] = []
    for row in rows:
        here = row["orientation"] or []
        for plane in planes:
            there = plane["orientation"] or []
            near = (abs(a - b) <= TOLERANCE for a, b in zip(here, there, strict=False))
            if len(here) == len(there) and all(near):
                plane["files"] = plane["files"] + row["files"]
                plane["flags"] |= row["flags"]
                break
        else:
            planes.append(row)
    return planes


def _series_row(row: dict[str, Any], root: bytes) -> SeriesRow:
    """A series of what the query found; its key is that of its files and their direction."""
    found: dict[tuple[bytes, int], dict[str, Any]] = {}
    for file in sorted(row["files"], key=lambda file: file["path"]):
        found.setdefault((file["instance"], file["size"]), file)
    files = list(found.values())
    stamp = hashlib.blake2b(digest_size=16)
    for file in files:
        stamp.update(b"%b\0%d\0%d\0" % (file["path"], file["size"], file["time"]))
    key = row["series"]
    if row["orientation"]:  # coarse, so that a new file with a little noise does not change it
        plane = " ".join(f"{round(value, 2) + 0.0:.2f}" for value in row["orientation"])
        key = hashlib.blake2b(key + plane.encode(), digest_size=16).digest()
    return SeriesRow(
        key=key.hex(),
        study=(row["study"] or b"").hex(),
        patient=row["patient"].hex(),
        frame=(row["frame"] or b"").hex(),
        kind=row["kind"],
        modality=row["modality"],
        flags=flag_words(row["flags"]),
        paths=tuple(Path(os.fsdecode(root + b"/" + file["path"])) for file in files),
        n_instances=len(files),
        rows=row["rows"] or 0,
        columns=row["columns"] or 0,
        n_frames=sum(file["frames"] or 1 for file in files),
        size=sum(file["size"] for file in files),
        stamp=stamp.hexdigest(),
    )


def _whole(index: Path) -> Parts:
    """An index whose last run came to its end.

    Raises:
        InputError: It did not, or this is none.
    """
    parts = Parts.open(index)
    if not parts.complete:
        raise InputError(
            "was not finished", "run `medssl archive index` again, it goes on", file=index
        )
    return parts


def _compiled(patient_regex: str | None) -> re.Pattern[str] | None:
    """The expression that finds patients.

    Raises:
        UsageError: It is none.
    """
    try:
        return None if patient_regex is None else re.compile(patient_regex)
    except re.error as error:
        raise UsageError(
            f"--patient-regex is no expression ({printable(error)})", "mend it"
        ) from error


def _walk(root: bytes, out: Path) -> Iterator[Listed]:
    """Every visible file below a folder, in the order of bytes in each folder.

    Folders reached twice through links are entered once, and the index never.

    Raises:
        InputError: The folder itself cannot be read.
    """
    own = out.stat()
    seen = {(own.st_dev, own.st_ino)}
    waiting = [b""]
    while waiting:
        below = waiting.pop()
        place = root + b"/" + below
        try:
            status = Path(os.fsdecode(place)).stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(place) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            if not below:
                raise InputError(f"cannot be opened ({error.strerror})", "check it") from error
            yield below, -1, 0
            continue
        folders = []
        prefix = below + b"/" if below else b""
        for entry in entries:
            name = entry.name
            if name[:1] == b".":
                continue
            path = prefix + name
            try:
                if entry.is_dir():
                    folders.append(path)
                    continue
                status = entry.stat()
            except OSError:  # a link that leads nowhere
                yield path, -1, 0
                continue
            if stat.S_ISREG(status.st_mode):
                yield path, status.st_size, status.st_mtime_ns
            else:
                yield path, -1, 0
        waiting += reversed(folders)


def _add(
    parts: Parts,
    files: list[File],
    lost: list[int],
    pattern: re.Pattern[str] | None,
    workers: int | None,
    progress: Progress | None,
) -> None:
    """Look at files and write their rows, part by part."""
    done, gone = 0, lost
    rows: Rows = []
    listed: list[Listed] = []
    last = time.monotonic()
    for chunk, found in _looked(parts, files, pattern, workers):
        rows += found
        for file, row in zip(chunk, found, strict=True):
            again = row[_CODE] in AGAIN and file.size > 0
            listed.append((file.path, file.size, NEVER if again else file.mtime_ns))
        gone = gone + [file.old for file in chunk if file.old is not None]
        done += len(chunk)
        if len(rows) >= PART or time.monotonic() - last > LONGEST_PART:
            parts.append(rows, listed, gone)
            rows, listed, gone, last = [], [], [], time.monotonic()
        if progress is not None:
            progress("headers", done, len(files))
    if rows or gone:
        parts.append(rows, listed, gone)


def _looked(
    parts: Parts, files: list[File], pattern: re.Pattern[str] | None, workers: int | None
) -> Iterator[tuple[list[File], Rows]]:
    """Rows of files, in their order, in this process or in several."""
    look = partial(_look, os.fsencode(parts.root), parts.salt, pattern)
    chunks = _pieces(files, CHUNK)
    n = workers or (cores() if len(files) > FEW else 1)
    if n == 1:
        yield from ((chunk, look(chunk)) for chunk in chunks)
        return
    with ProcessPoolExecutor(n, get_context("spawn"), begin) as pool:
        try:
            for chunk, future in _submitted(pool, look, chunks, 4 * n):
                yield chunk, _rows_of(future, look, chunk)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _submitted(
    pool: ProcessPoolExecutor, look: Look, chunks: Iterable[list[File]], most: int
) -> Iterator[tuple[list[File], Future[Rows] | None]]:
    """Chunks in their order with who works on them, no more than so many at a time."""
    waiting: deque[tuple[list[File], Future[Rows] | None]] = deque()
    for chunk in chunks:
        future = None
        with suppress(BrokenProcessPool):
            future = pool.submit(look, chunk)
        waiting.append((chunk, future))
        if len(waiting) > most:
            yield waiting.popleft()
    yield from waiting


def _rows_of(future: Future[Rows] | None, look: Look, chunk: list[File]) -> Rows:
    """Of a chunk, from the process that has it; from this one where that was killed."""
    with suppress(BrokenProcessPool):
        if future is not None:
            return future.result()
    return look(chunk)


def _pieces(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of so many items, the last one shorter."""
    left = iter(items)
    while piece := list(islice(left, size)):
        yield piece


def _look(root: bytes, salt: bytes, pattern: re.Pattern[str] | None, files: list[File]) -> Rows:
    """The rows of files, whatever they hold."""
    keys = _keys(salt)
    return [_look_at(root, file, keys, pattern) for file in files]


@lru_cache(1)
def _keys(salt: bytes) -> Keys:
    """Of this process, with what they know."""
    return Keys(salt)


def _look_at(
    root: bytes, file: File, keys: Keys, pattern: re.Pattern[str] | None
) -> tuple[Any, ...]:
    """The row of one file; no exception leaves it."""
    path = os.fsdecode(file.path)
    if file.size < 1:
        return refused_row("unreadable" if file.size else "empty", path, keys)
    whole = root + b"/" + file.path
    kind = ""
    try:
        header = tags.scan(whole)
        if header is None:
            kind = "dicom"
            header = tags.parse(whole)
        if header is not None:
            return dicom_row(header, path, keys, pattern)
        kind = ""
        head = heads.head(whole)
        if head is not None:
            return head_row(head, path, keys, pattern)
        code = "unknown"
    except MemoryLimitError:
        code = "too-large"
    except MedsslError:
        code = "damaged"
    except OSError:
        code, kind = "unreadable", ""
    except Exception:  # noqa: BLE001 (one file of millions must not end a night's run)
        code = "damaged"
    return refused_row(code, path, keys, kind)


def _facts(parts: Parts) -> dict[str, Any]:
    """Counts of the rows that hold."""
    plane = "list_transform(orientation, lambda x: round(x, 2) + 0)"
    of_use = f"FROM (SELECT *, hash(series, {plane}) AS one FROM alive WHERE code = '')"
    by_modality, refused, counts, reader = parts.ask(
        "SELECT CASE WHEN modality <> '' THEN modality ELSE kind END AS name, "
        f"count(*) AS files, count(DISTINCT one) AS series {of_use} GROUP BY name ORDER BY name",
        "SELECT code, count(*) AS n FROM alive WHERE code <> '' GROUP BY code ORDER BY code",
        "SELECT count(DISTINCT one) AS series, count(DISTINCT study) AS studies, "
        f"count(DISTINCT patient) AS patients {of_use}",
        "SELECT count(*) AS n, count(*) FILTER (\"by\" = 'pydicom') AS slow FROM alive "
        "WHERE \"by\" IN ('scanner', 'pydicom')",
    )
    names, *numbers = by_modality.values()
    return {
        "files": sum(by_modality["files"]) + sum(refused["n"]),
        "fallback": reader["slow"][0] / max(reader["n"][0], 1),
        "modalities": {
            name: {"files": n, "series": m} for name, n, m in zip(names, *numbers, strict=True)
        },
        "series": counts["series"][0],
        "studies": counts["studies"][0],
        "patients": counts["patients"][0],
        "refused": dict(zip(refused["code"], refused["n"], strict=True)),
    }


def _warnings(
    parts: Parts, facts: dict[str, Any], pattern: re.Pattern[str] | None
) -> tuple[str, ...]:
    """What is doubtful about whose the files are.

    Raises:
        InputError: One patient holds so many studies that it must be a filler.
    """
    by_patient, shared, nameless = parts.ask(
        "SELECT patient_by, patient, count(DISTINCT study) AS n FROM alive "
        "WHERE kind = 'dicom' AND code = '' AND patient_by IN ('id', 'regex') "
        "GROUP BY ALL ORDER BY n DESC",
        "SELECT count(DISTINCT patient) AS n FROM alive WHERE frame IS NOT NULL "
        "AND patient_by IN ('id', 'regex') GROUP BY frame ORDER BY n DESC LIMIT 1",
        "SELECT kind, patient_by, count(*) AS files, count(DISTINCT patient) AS patients "
        "FROM alive WHERE code = '' AND patient_by NOT IN ('id', 'regex', 'bids') "
        "GROUP BY ALL ORDER BY ALL",
    )
    warnings = []
    if by_patient["n"]:
        most, others = by_patient["n"][0], by_patient["n"][1:]
        usual = sum(others) / max(len(others), 1)
        share = most / max(facts["studies"], 1)
        if most > MOST_STUDIES and share > MOST_SHARE and most > CROWD * usual:
            fact = f"one patient ID holds {most} of {facts['studies']} studies: it names no patient"
            if pattern is None:
                raise InputError(fact, "say how paths name patients with --patient-regex")
            warnings.append(f"{fact}; mend --patient-regex")
    if shared["n"] and shared["n"][0] > 2:
        warnings.append(
            f"{shared['n'][0]} patients share one frame of reference and stay in one split: "
            "it seems to be a filler"
        )
    for kind, by, files, patients in zip(*nameless.values(), strict=True):
        word = {"dicom": "DICOM file", "nifti": "NIfTI file", "picture": "picture"}[kind]
        several = "s" if files > 1 else ""
        if by != "folder":
            warnings.append(
                f"{files} {word}{several} without a patient: the {_STANDS[by]} stands for it; "
                "--patient-regex finds patients in paths"
            )
        elif patients == 1 and files > 1:
            warnings.append(
                f"all {files} pictures in folders are of one patient: give the folder whose "
                "folders are patients, or --patient-regex"
            )
    return tuple(warnings)


_CODE = [name for name in PUBLIC if name != "id"].index("code")
_STANDS = {"study": "study", "frame": "frame of reference", "file": "file"}
