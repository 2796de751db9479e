"""From an index to a training store: one pure function for each series, then what joins them.

A series becomes one volume, or several where it runs over time, each of them packed as it is ready.
What is ready is written down in a journal, so that a preparation that was killed goes on where it
was; rows, links, splits and the skip list follow from all series at the end, and from nothing else.
The order of the series and the number of processes leave no trace.

`skipped.csv` is the list of what stays out, and it is obeyed: a line that is added keeps a series
or volume out, a line that is removed lets it in if it can be read at all.
"""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medssl.core.errors import (
    InputError,
    InterruptedRunError,
    MedsslError,
    MemoryLimitError,
    OutputError,
    UsageError,
)
from medssl.core.image import Image
from medssl.core.progress import Progress
from medssl.data.archive import SeriesRow, groups, split
from medssl.data.duplicates import (
    Link,
    Print,
    link,
    packed,
    slice_hash,
    thinned,
    voxel_sketch,
)
from medssl.data.foreground import measure
from medssl.data.jobs import each
from medssl.data.ledger import (
    HAND,
    JOURNAL,
    LINKS,
    LOCK,
    SERIES,
    SKIPPED,
    Done,
    Skipped,
    as_json,
    finished,
    journaled,
    read_list,
    series_of,
    skipped_by_us,
    write_links,
    write_list,
    write_series,
)
from medssl.data.quality import (
    CODES,
    PLANAR,
    RefusedError,
    check_finite,
    check_foreground,
    check_grid,
    check_header,
    check_values,
    code_of,
)
from medssl.data.store import (
    MANIFEST,
    VOLUMES,
    Row,
    row_of,
    volume_path,
    write_manifest,
    write_rows,
)
from medssl.io import atomic, journal
from medssl.io.b2nd import Codec, write_b2nd
from medssl.io.dicom import Source
from medssl.io.limits import Limits
from medssl.io.read import read
from medssl.io.series import read_sources

AGAIN = frozenset({"too-large", "failed"})
"""Codes of series that may go well another time."""
SMALL = 2**26
"""Bytes of all series together that no other process is started for."""
EXACT = 2**24
"""Whole numbers below it are exact in the reader's float32."""
SLAB = 16
"""Slices that are turned at once."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One series to prepare; all that its function needs to know."""

    key: str
    kind: str
    modality: str
    flags: tuple[str, ...]
    patient: str
    frame: str
    sides: tuple[int, int]
    """Rows and columns; 0 where they are not known."""
    n_frames: int
    stamp: str
    paths: tuple[Path, ...] = field(repr=False)  # they may name a patient
    store: Path = field(repr=False)
    accepted: bool = False
    """Whether a human wants it whatever its quality."""
    codec: Codec = "zstd"
    memory: int | None = None
    """Bytes that its voxels may take."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a store holds after its preparation."""

    path: Path
    n_series: int
    n_volumes: int
    n_new: int
    """Series that were read this time; the others were ready."""
    n_lossy: int
    modalities: Mapping[str, int]
    splits: Mapping[str, int]
    skipped: Mapping[str, int]
    """How many series or volumes stay out, by code."""
    n_links: int
    torn: tuple[str, ...]
    """Groups that linked several splits and went to training."""

    @property
    def line(self) -> str:
        """All of it in one line."""
        kinds = ", ".join(f"{n} {m or 'of unknown modality'}" for m, n in self.modalities.items())
        out = ", ".join(f"{n} {code}" for code, n in self.skipped.items())
        parts = ", ".join(f"{n} {name}" for name, n in self.splits.items())
        return (
            f"{self.n_volumes} volumes ({kinds or 'none'}) of {self.n_series} series, "
            f"{self.n_new} read now; {parts or 'no split'}; "
            f"{sum(self.skipped.values())} skipped{f' ({out})' if out else ''}; "
            f"{self.n_links} links between volumes"
        )


def prepare(
    series: Sequence[SeriesRow],
    out: Path,
    *,
    salt: bytes,
    scheduler: str | None = None,
    jobs: int = 1,
    codec: Codec = "zstd",
    progress: Progress | None = None,
) -> Prepared:
    """Fill a store, or bring one up to date.

    Args:
        series: Of the index.
        out: The store; new, empty, or one that was prepared from the same index.
        salt: Of the index, for the split.
        scheduler: `tcp://host:port` of a Dask scheduler whose workers see the same paths.
        jobs: Local processes.
        codec: How volumes are packed.
        progress: Told the stage, how much is done, and how much there is.

    Raises:
        InputError: No series, or a store of another index.
        OutputError: Something else lies there, another preparation writes it, or it is full.
        UsageError: No scheduler answers, or the extra `archive` is not installed.
        MemoryLimitError: A worker was killed.
    """
    out = out.resolve()
    if not series:
        raise InputError("the index holds no series", "index a folder of scans first")
    rows = {s.key: s for s in series}
    _make_place(out)
    with _locked(out), _filled(out):
        last, since = finished(out), journaled(out)
        known = last | since
        if known and not known.keys() & rows.keys():
            raise InputError(
                "the store was made from another index", "choose another place with -o"
            )
        copies = {r.key for d in last.values() for r in d.rows if r.left_out not in ("", HAND)}
        ours = skipped_by_us(last) | copies
        listed = read_list(out / SKIPPED)
        removed = {series_of(key) for key in ours - listed.keys()} if listed is not None else set()
        wanted = {key: d.accepted or key in removed - since.keys() for key, d in known.items()}
        by_hand = {k: v for k, v in (listed or {}).items() if k not in ours | skipped_by_us(known)}
        done = {
            key: d
            for key, d in known.items()
            if key in rows and d.stamp == rows[key].stamp and d.accepted == wanted[key]
            and not any(s.code in AGAIN for s in d.skipped)
        }  # fmt: skip
        accepted = frozenset(key for key, yes in wanted.items() if yes)
        read_now: set[str] = set()
        while True:
            joined = _join(done, by_hand, accepted)
            lost = {r.series for r in joined.kept if not volume_path(out, r.key).is_file()}
            if lost & read_now:
                raise OutputError(
                    "its volumes are not where the workers put them",
                    "the store must lie on a disk that all of them share",
                    file=out,
                )
            todo = sorted((rows.keys() - done.keys() - by_hand.keys()) | lost)
            if not todo:
                break
            atomic.remove(out / MANIFEST)  # it is no store until all is done
            work = [_job(rows[k], out, k in accepted, codec, jobs, scheduler) for k in todo]
            for result in _results(work, jobs, scheduler, progress):
                journal.append(out / JOURNAL, as_json(result))
                done[result.key] = result
            read_now |= set(todo)
        return _finish(out, rows, done, by_hand, joined, salt, len(read_now))


def prepare_series(job: Job) -> Done:
    """Read a series, judge it, and pack its volumes; what went wrong is in the result."""
    rows: list[Row] = []
    skipped: list[Skipped] = []
    error: MedsslError | None = None
    try:
        with _listing(skipped, job.key):
            if not job.accepted:
                check_header(job.kind, job.modality, job.flags, job.sides, job.n_frames)
            for key, paths in _parts(job):
                with _listing(skipped, key):
                    image = _read(job, key, paths)
                    if not job.accepted:
                        check_grid(image, _is_picture(job, image))
                    for volume in _volumes(key, image):
                        with _listing(skipped, volume[0]):
                            rows.append(_pack(job, image, *volume))
    except (OutputError, UsageError) as refusal:
        error = refusal
    return Done(
        key=job.key,
        stamp=job.stamp,
        accepted=job.accepted,
        rows=tuple(rows),
        skipped=tuple(skipped),
        error=error,
    )


@contextlib.contextmanager
def _listing(skipped: list[Skipped], key: str) -> Iterator[None]:
    """Whatever keeps a series or volume out goes to the list, and the work goes on.

    Raises:
        OutputError: Nothing can be written any more.
        UsageError: A package is missing.
    """
    try:
        yield
    except (OutputError, UsageError):
        raise
    except RefusedError as refusal:
        skipped.append(Skipped(key=key, code=refusal.code, fact=refusal.fact))
    except (MemoryLimitError, MemoryError):
        skipped.append(Skipped(key=key, code="too-large", fact=CODES["too-large"]))
    except MedsslError as refusal:
        found = code_of(refusal)
        skipped.append(Skipped(key=key, code=found.code, fact=found.fact))
    except Exception as failure:  # noqa: BLE001 (one series must not stop a night's work)
        fact = f"{type(failure).__name__} while it was prepared"
        skipped.append(Skipped(key=key, code="failed", fact=fact))


def canonical(
    data: NDArray[Any], affine: NDArray[np.float64]
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Voxels (C, X, Y, Z) with axes nearest to right, anterior, superior; no value is touched.

    Args:
        data: (C, i, j, k).
        affine: (4, 4), voxel indices to RAS mm.

    Returns:
        A view of the data, and its affine.
    """
    steps = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    axes = max(permutations(range(3)), key=lambda p: sum(abs(steps[w, p[w]]) for w in range(3)))
    turn = np.zeros((4, 4))
    turn[3, 3] = 1
    view = data.transpose(0, *(1 + a for a in axes))
    for world, axis in enumerate(axes):
        backwards = steps[world, axis] < 0
        turn[axis, world] = -1 if backwards else 1
        if backwards:
            turn[axis, 3] = data.shape[1 + axis] - 1
            view = np.flip(view, 1 + world)
    return view, affine @ turn


def as_stored(data: NDArray[np.float32], image: Image) -> NDArray[Any]:
    """Whole numbers as integers: of the file's own type where that holds them, exactly.

    Args:
        data: A volume of the image, in its units.
        image: What says how its values lie in the file.
    """
    stored = image.stored
    scale = np.r_[stored.slope.ravel(), stored.intercept.ravel()]
    if not stored.is_integer or not np.array_equal(scale, np.rint(scale)):
        return data
    low, high = float(data.min()), float(data.max())
    if max(-low, high) >= EXACT:
        return data
    for dtype in (stored.dtype.newbyteorder("="), np.dtype(np.int16), np.dtype(np.int32)):
        info = np.iinfo(dtype)  # type: ignore[type-var]
        if info.min <= low and high <= info.max:
            return data.astype(dtype, order="K")
    return data


def _parts(job: Job) -> list[tuple[str, tuple[Path, ...]]]:
    """Keys and files of the images of a series: one, or of projections each instance."""
    if job.kind == "dicom" and job.modality in PLANAR and len(job.paths) > 1:
        return [(f"{job.key}-{k}", (path,)) for k, path in enumerate(job.paths)]
    return [(job.key, job.paths)]


def _read(job: Job, key: str, paths: tuple[Path, ...]) -> Image:
    limits = Limits(memory=job.memory)
    if job.kind != "dicom":
        return read(paths[0], limits=limits)
    return read_sources([Source(p) for p in paths], key, limits, allow_gaps=job.accepted)


def _is_picture(job: Job, image: Image) -> bool:
    """Whether it is complete without other slices."""
    return job.modality in PLANAR or (job.kind == "picture" and len(image.shape) == 2)


def _volumes(
    key: str, image: Image
) -> Iterator[tuple[str, NDArray[np.float32], NDArray[np.bool_] | None]]:
    """Key, voxels (C, i, j, k) and validity (i, j, k) of each volume of an image."""
    data, valid = image.data, image.valid
    if len(image.shape) == 2:
        data, valid = data[..., None], None if valid is None else valid[..., None]
    if image.channels != "time" or len(data) == 1:
        yield key, data, None if valid is None else np.logical_and.reduce(valid)
        return
    for t in range(len(data)):
        yield f"{key}-{t}", data[t : t + 1], None if valid is None else valid[t]


def _pack(
    job: Job,
    image: Image,
    key: str,
    data: NDArray[np.float32],
    valid: NDArray[np.bool_] | None,
) -> Row:
    """Judge a volume, write it, and say what it is.

    Raises:
        RefusedError: It stays out.
        OutputError: It cannot be written.
    """
    is_picture = _is_picture(job, image)
    modality = image.modality or job.modality or ("PICTURE" if is_picture else "")
    as_read, affine = canonical(as_stored(data, image), image.geometry.affine)
    check_finite(as_read)
    if valid is not None:
        valid = canonical(valid[None], image.geometry.affine)[0][0]
    volume = _laid_out(as_read)
    if not job.accepted:
        check_values(volume, job.kind, valid)
    measured = measure(volume, modality, valid)
    if not (job.accepted or is_picture):
        check_foreground(measured)
    sketch, every = thinned(voxel_sketch(volume))
    slices = slice_hash(as_read, measured.level)  # slices still lie as a whole there
    write_b2nd(volume_path(job.store, key), volume, job.codec, overwrite=True)
    row = row_of(
        volume,
        affine,
        measured,
        key=key,
        series=job.key,
        kind=job.kind,
        modality=modality,
        patient=job.patient,
        lossy="LOSSY" in job.flags,
    )
    return dataclasses.replace(
        row, frame=job.frame, sketch=sketch.tobytes(), every=every, slices=packed(slices)
    )


def _laid_out(view: NDArray[Any]) -> NDArray[Any]:
    """The voxels of a view in memory order, a few slices at a time, which keeps to the cache."""
    volume = np.empty(view.shape, view.dtype)
    for z in range(0, view.shape[-1], SLAB):
        volume[..., z : z + SLAB] = view[..., z : z + SLAB]
    return volume


def _job(
    row: SeriesRow, out: Path, accepted: bool, codec: Codec, jobs: int, scheduler: str | None
) -> Job:
    memory = None if scheduler else Limits().pixels // max(jobs, 1)
    return Job(
        key=row.key,
        kind=row.kind,
        modality=row.modality,
        flags=row.flags,
        patient=row.patient,
        frame=row.frame,
        sides=(row.rows, row.columns),
        n_frames=row.n_frames,
        stamp=row.stamp,
        paths=row.paths,
        store=out,
        accepted=accepted,
        codec=codec,
        memory=memory,
    )


def _results(
    work: Sequence[Job], jobs: int, scheduler: str | None, progress: Progress | None
) -> Iterator[Done]:
    """What became of each series.

    Raises:
        InterruptedRunError: From the keyboard.
        MedsslError: It makes no sense to go on.
    """
    if progress is not None:
        progress("preparing", 0, len(work))
    few = scheduler is None and sum(_size(j) for j in work) <= SMALL
    results = each(prepare_series, work, processes=1 if few else jobs, scheduler=scheduler)
    try:
        for k, result in enumerate(results):
            if result.error is not None:
                raise result.error
            yield result
            if progress is not None:
                progress("preparing", k + 1, len(work))
    except KeyboardInterrupt as error:
        raise InterruptedRunError("interrupted", "run it again, it goes on") from error


def _size(job: Job) -> int:
    return sum(p.stat().st_size for p in job.paths if p.is_file())


@dataclass(frozen=True)
class _Joined:
    """What follows from all series together."""

    kept: tuple[Row, ...]
    left_out: tuple[Row, ...]
    links: tuple[Link, ...]


def _join(done: Mapping[str, Done], by_hand: Iterable[str], accepted: frozenset[str]) -> _Joined:
    """Which volumes stay, and how they are linked."""
    rows = sorted((r for d in done.values() for r in d.rows), key=lambda r: r.key)
    out = frozenset(by_hand)
    links, copies = link(_print(r) for r in rows if not {r.key, r.series} & out)
    kept: list[Row] = []
    left_out: list[Row] = []
    for row in rows:
        why = copies.get(row.key, "") if row.series not in accepted else ""
        why = HAND if {row.key, row.series} & out else why
        (left_out if why else kept).append(dataclasses.replace(row, left_out=why))
    return _Joined(tuple(kept), tuple(left_out), tuple(links))


def _finish(
    out: Path,
    series: Mapping[str, SeriesRow],
    done: Mapping[str, Done],
    by_hand: Mapping[str, str],
    joined: _Joined,
    salt: bytes,
    n_new: int,
) -> Prepared:
    """Write the tables, the list and the manifest, and remove what is no part of the store."""
    members = [(s.key, s.patient, s.frame) for s in sorted(series.values(), key=lambda s: s.key)]
    pairs = [(series_of(x.a), series_of(x.b)) for x in joined.links]
    group = groups(members, pairs)
    splits, torn = split(members, pairs, salt=salt)
    rows = [
        dataclasses.replace(r, group=group[r.series], split=splits[r.series])
        for r in (*joined.kept, *joined.left_out)
    ]
    rows.sort(key=lambda r: r.key)
    modality = {s.key: s.modality for s in series.values()}
    skipped = [s for d in done.values() for s in d.skipped]
    skipped += [
        Skipped(key=r.key, code="copy", fact=f"its voxels are in {_original(r, joined)}")
        for r in joined.left_out
        if r.left_out != HAND
    ]
    listed = {s.key: (s.code, s.fact) for s in skipped}
    listed |= {key: ("by-hand", fact or CODES["by-hand"]) for key, fact in by_hand.items()}
    kept = [r for r in rows if not r.left_out]
    made = Prepared(
        path=out,
        n_series=len(series),
        n_volumes=len(kept),
        n_new=n_new,
        n_lossy=sum(r.lossy for r in kept),
        modalities=_counted(r.modality for r in kept),
        splits=_counted(r.split for r in kept),
        skipped=_counted(code for code, _ in listed.values()),
        n_links=len(joined.links),
        torn=tuple(torn),
    )
    write_rows(out, rows)
    write_links(out / LINKS, joined.links)
    write_list(out / SKIPPED, listed, modality)
    write_series(out / SERIES, done)
    facts = dataclasses.asdict(made)
    write_manifest(out, {k: v for k, v in facts.items() if k not in ("path", "n_new")})
    atomic.remove(out / JOURNAL)
    wanted = {volume_path(out, r.key) for r in kept}
    for file in [*atomic.leftovers(out), *(out / VOLUMES).iterdir()]:
        if file not in wanted:
            atomic.remove(file)
    return made


def _original(row: Row, joined: _Joined) -> str:
    """The volume that stays, of one that may be a copy of a copy."""
    copies = {r.key: r.left_out for r in joined.left_out}
    key = row.left_out
    while key in copies and copies[key] != HAND:
        key = copies[key]
    return key


def _print(row: Row) -> Print:
    """What is compared of a volume; of two equal ones the DICOM stays, then the lossless one."""
    return Print(
        key=row.key,
        hash=row.hash,
        n_voxels=int(np.prod(row.shape, dtype=np.int64)),
        rank=2 * (row.kind != "dicom") + row.lossy,
        sketch=np.frombuffer(row.sketch, np.int64),
        every=row.every,
        slices=row.slices,
    )


def _counted(words: Iterable[str]) -> dict[str, int]:
    """How often each word occurs, by word."""
    return dict(sorted(Counter(words).items()))


def _make_place(out: Path) -> None:
    """The folder of a store, new or begun.

    Raises:
        OutputError: Something else lies there, or it cannot be made.
    """
    if not any((out / name).is_file() for name in (JOURNAL, SERIES)):
        atomic.check_target(out, overwrite=False)
        atomic.make_folder(out)
        journal.append(out / JOURNAL, {})  # whose folder this is


@contextlib.contextmanager
def _filled(out: Path) -> Iterator[None]:
    """What a preparation puts into its folder; nothing if it did nothing."""
    atomic.make_folder(out / VOLUMES)
    try:
        yield
    except BaseException:
        if not (out / SERIES).is_file() and not journaled(out):
            atomic.remove(out / JOURNAL)
            atomic.remove_if_empty(out / VOLUMES)
        raise


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """One preparation of a store at a time; a lock of a killed one is gone with it."""
    from filelock import FileLock, Timeout

    lock = FileLock(out / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise OutputError(
            "another preparation writes it", "wait for it, or choose another place", file=out
        ) from error
    except OSError:  # a file system without locks
        pass
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # while it is held, so that nobody else's goes
            (out / LOCK).unlink(missing_ok=True)
        lock.release()
        atomic.remove_if_empty(out)
