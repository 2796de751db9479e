"""An index on disk: parts that are written one after the other and never changed.

```
manifest.json             the parts that count, and whether the last run came to its end
rows/000000.parquet       one row per file (`data.rows.PUBLIC`)
gone/000000.parquet       ids of older rows that changed or vanished
private/                  0700; what leads back to patients; without it nobody can
private/salt              of all keys
private/root              where the archive lies
private/paths/000000.parquet   path, size and time of each row
.lock                     while a run writes
```
A part counts once the manifest names it, so that a killed run loses at most the part it was at.
"""

import contextlib
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from medssl.core.errors import InputError, OutputError
from medssl.data.rows import PRIVATE, PUBLIC, RUNNING
from medssl.io import atomic, table

FORMAT = 1
MANIFEST, LOCK = "manifest.json", ".lock"
ROWS, GONE = "rows", "gone"
SECRETS = "private"
PATHS, LISTING, SCRATCH = (f"{SECRETS}/{name}" for name in ("paths", "listing", "scratch"))
_GONE = {"id": "int64"}
_LISTING = {"path": "bytes", "size": "int64", "mtime_ns": "int64"}
_ALIVE = "(SELECT * FROM paths ANTI JOIN gone USING (id))"


class File(NamedTuple):
    """A file of the archive that the index does not know as it is now."""

    path: bytes
    """Relative to the archive."""
    size: int
    mtime_ns: int
    old: int | None
    """Id of the row that is out of date."""


@dataclass
class Parts:
    """The parts of one index."""

    path: Path
    names: list[str] = field(default_factory=list)
    next_id: int = 0
    complete: bool = False
    """The last run came to its end."""
    pattern: str = ""
    """Key of the expression that patients were found by."""

    @classmethod
    def open(cls, path: Path) -> "Parts":
        """An index that is there.

        Raises:
            InputError: It is none, or damaged.
        """
        manifest = path / MANIFEST
        if not manifest.is_file():
            raise InputError("is no index", "make one with `medssl archive index`", file=path)
        try:
            facts = json.loads(manifest.read_bytes())
            found = cls(
                path,
                [f"{int(name):06}" for name in facts["parts"]],
                int(facts["next_id"]),
                bool(facts["complete"]),
                str(facts["pattern"]),
            )
            is_known = facts["format"] == FORMAT
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(
                "its manifest is damaged", "index again elsewhere", file=path
            ) from error
        if not is_known:
            raise InputError("is of another version of medssl", "index again elsewhere", file=path)
        return found

    @classmethod
    def make(cls, path: Path, root: Path) -> "Parts":
        """An index that is there, or an empty one in a new folder.

        Raises:
            InputError: It is damaged, or of another archive.
            OutputError: Something else is there, or it cannot be made.
        """
        if (path / MANIFEST).exists():
            parts = cls.open(path)
            if parts.root != root:
                raise InputError(
                    "is the index of another folder", "choose another with -o", file=path
                )
            return parts
        if any(p.name not in (LOCK, SECRETS, ROWS, GONE) for p in path.iterdir()):
            raise OutputError("exists and is no index", "choose another with -o", file=path)
        for name in (SECRETS, PATHS):
            atomic.make_folder(path / name, private=True)
        for name in (ROWS, GONE):
            atomic.make_folder(path / name)
        for name, content in (("salt", secrets.token_bytes(32)), ("root", os.fsencode(root))):
            with atomic.file(path / SECRETS / name, overwrite=True, private=True) as sink:
                sink.write(content)
        parts = cls(path)
        parts.forget()
        return parts

    @property
    def salt(self) -> bytes:
        """Of all keys."""
        return self._secret("salt")

    @property
    def root(self) -> Path:
        """Where the archive lies."""
        return Path(os.fsdecode(self._secret("root")))

    def append(
        self,
        rows: Sequence[tuple[Any, ...]],
        files: Sequence[tuple[bytes, int, int]],
        gone: Sequence[int],
    ) -> None:
        """Add a part.

        Args:
            rows: In the order of `PUBLIC` without `id`.
            files: Path, size and time of each.
            gone: Ids of older rows that no longer hold.

        Raises:
            OutputError: Not writable, or full.
        """
        name = f"{len(self.names):06}"
        ids = range(self.next_id, self.next_id + len(rows))
        self._write(PATHS, name, _columns(PRIVATE, ids, files), PRIVATE, RUNNING)
        self._write(GONE, name, {"id": gone}, _GONE, ["id"])
        self._write(ROWS, name, _columns(PUBLIC, ids, rows), PUBLIC, ["id"])
        self.names.append(name)
        self.next_id += len(rows)
        self.save()

    def save(self) -> None:
        """Replace the manifest.

        Raises:
            OutputError: Not writable, or full.
        """
        facts = {
            "format": FORMAT,
            "complete": self.complete,
            "pattern": self.pattern,
            "next_id": self.next_id,
            "parts": self.names,
        }
        with atomic.file(self.path / MANIFEST, overwrite=True) as sink:
            sink.write(json.dumps(facts, indent=1).encode() + b"\n")

    def forget(self) -> None:
        """Drop all rows; the salt stays, and with it every key."""
        self.names, self.next_id, self.complete = [], 0, False
        self.append([], [], [])
        for folder in (ROWS, GONE, PATHS):
            for file in sorted((self.path / folder).glob("*.parquet")):
                if file.stem not in self.names:
                    atomic.remove(file)

    def ask(self, *questions: str) -> list[dict[str, list[Any]]]:
        """Questions over `alive`: the rows that hold, with `path`, `size` and `mtime_ns`.

        Raises:
            InputError: A part is missing or damaged.
        """
        alive = "SELECT * FROM rows JOIN paths USING (id) ANTI JOIN gone USING (id)"
        tables = {n: self._files(f) for n, f in (("rows", ROWS), ("paths", PATHS), ("gone", GONE))}
        together = [f"WITH alive AS ({alive}) {question}" for question in questions]
        return table.queries(together, tables, scratch=self.path / SCRATCH)

    def compare(
        self, listing: Iterable[list[tuple[bytes, int, int]]]
    ) -> tuple[list[File], list[int], int]:
        """What a listing of the archive holds that the index does not, and the other way round.

        Args:
            listing: Path, size and time of its files, in pieces.

        Returns:
            Files to be looked at, ids of rows whose file vanished, and how many files there are.
        """
        atomic.remove_folder(self.path / LISTING)
        atomic.make_folder(self.path / LISTING, private=True)
        total = 0
        try:
            for i, piece in enumerate(chain([[]], listing)):
                self._write(LISTING, f"{i:06}", _columns(_LISTING, (), piece), _LISTING, ["path"])
                total += len(piece)
            tables = {"paths": self._files(PATHS), "gone": self._files(GONE)}
            tables["listing"] = sorted((self.path / LISTING).glob("*.parquet"))
            news, lost = table.queries(
                [
                    f"SELECT n.path, n.size, n.mtime_ns, a.id FROM listing n "
                    f"LEFT JOIN {_ALIVE} a USING (path) WHERE a.id IS NULL OR a.size <> n.size "
                    "OR a.mtime_ns <> n.mtime_ns ORDER BY n.path",
                    f"SELECT id FROM {_ALIVE} ANTI JOIN listing USING (path) ORDER BY id",
                ],
                tables,
                scratch=self.path / SCRATCH,
            )
        finally:
            atomic.remove_folder(self.path / LISTING)
        return list(map(File, *news.values())), lost["id"], total

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other run out of the index.

        The lock ends with the process, however that ends. File systems that know no locks keep
        nobody out.

        Raises:
            OutputError: Another run has it.
        """
        from filelock import FileLock, Timeout

        lock = FileLock(self.path / LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise OutputError(
                "another run writes into it", "wait until it is done", file=self.path
            ) from error
        except OSError:  # a file system without locks
            pass
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # while it is held, so that nobody else's goes
                (self.path / LOCK).unlink(missing_ok=True)
            lock.release()

    def _write(
        self,
        folder: str,
        name: str,
        columns: Mapping[str, Sequence[Any]],
        types: Mapping[str, str],
        running: Sequence[str],
    ) -> None:
        target = self.path / folder / f"{name}.parquet"
        private = folder.startswith(SECRETS)
        table.write_parquet(target, columns, types, running=running, private=private)

    def _files(self, folder: str) -> list[Path]:
        return [self.path / folder / f"{name}.parquet" for name in self.names]

    def _secret(self, name: str) -> bytes:
        try:
            found = (self.path / SECRETS / name).read_bytes()
        except OSError as error:
            raise InputError(
                f"its {SECRETS}/{name} cannot be read",
                "copy the index with all its folders",
                file=self.path,
            ) from error
        if not found:
            raise InputError(
                f"its {SECRETS}/{name} is empty", "index again elsewhere", file=self.path
            )
        return found


def _columns(
    types: Mapping[str, str], ids: Sequence[int], rows: Sequence[tuple[Any, ...]]
) -> dict[str, Sequence[Any]]:
    """Rows turned into columns, `id` before them where there is one."""
    names = [name for name in types if name != "id"]
    columns: dict[str, Sequence[Any]] = {"id": ids} if "id" in types else {}
    if rows:
        return columns | dict(zip(names, zip(*rows, strict=True), strict=True))
    return columns | dict.fromkeys(names, ())
