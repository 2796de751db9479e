"""Tables as Parquet files, and questions to them in SQL; the only user of pyarrow and DuckDB.

Both packages are the extra `medssl[archive]` and are imported when a table is touched, so that
nothing else needs them. Every file is compressed with zstd and appears complete or not at all.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from medssl.core.errors import InputError, MemoryLimitError, UsageError
from medssl.io import atomic

EXTRA = "medssl[archive]"
LEVEL = 5
"""Of zstd: beyond it archives of headers shrink by under 2 % and writing takes twice as long."""
_LIST = re.compile(r"\[(.+)\]")
_BYTES = re.compile(r"bytes(\d+)")


def require() -> None:
    """Refuse at once what could not be done later.

    Raises:
        UsageError: A package of the extra is not installed.
    """
    for name in ("pyarrow.parquet", "duckdb"):
        _package(name)


def write_parquet(
    target: Path,
    columns: Mapping[str, Sequence[Any]],
    types: Mapping[str, str],
    *,
    running: Sequence[str] = (),
    private: bool = False,
) -> None:
    """Write a table, in place of one that may be there.

    Args:
        target: The file.
        columns: Values of each column, all of one length; lists or one-dimensional arrays. None
            is a missing value.
        types: Of each column, in the order they are stored: `str`, `bool`, `int8` ... `int64`,
            `uint8` ... `uint64`, `float32`, `float64`, `bytes`, `bytesN` of N bytes each, or a
            list of them such as `[float32]`.
        running: Columns of integers or text in which neighbours are alike but hardly ever equal
            (counters, sorted paths): their differences are stored.
        private: Nobody but its owner may read the file.

    Raises:
        UsageError: The extra is not installed.
        OutputError: Not writable, or full.
        ValueError: Columns and types do not fit each other: a mistake of the caller.
    """
    pa, pq = _package("pyarrow"), _package("pyarrow.parquet")
    if set(columns) != set(types):
        raise ValueError(f"columns {sorted(columns)} have types for {sorted(types)}")
    arrays = [pa.array(columns[name], _type(pa, kind)) for name, kind in types.items()]
    table = pa.Table.from_arrays(arrays, names=list(types))
    encodings = {
        name: "DELTA_BYTE_ARRAY" if types[name] in ("str", "bytes") else "DELTA_BINARY_PACKED"
        for name in running
    }
    with atomic.file(target, overwrite=True, private=private) as sink:
        pq.write_table(
            table,
            sink,
            compression="zstd",
            compression_level=LEVEL,
            use_dictionary=[name for name in types if name not in encodings],
            column_encoding=encodings or None,
            write_statistics=False,
        )


def read_parquet(source: Path, columns: Sequence[str] | None = None) -> dict[str, list[Any]]:
    """Read a table, or some of its columns.

    Raises:
        UsageError: The extra is not installed.
        InputError: Missing, damaged, or without one of the columns.
    """
    pq = _package("pyarrow.parquet")
    if not source.is_file():
        raise InputError("does not exist", "check the path", file=source)
    with _refusals(source), source.open("rb") as handle:
        file = pq.ParquetFile(handle)
        missing = sorted(set(columns or ()) - set(file.schema_arrow.names))
        if missing:
            raise InputError(
                f"has no column {missing[0]!r}", "it was made by another program", file=source
            )
        table = file.read(columns=None if columns is None else list(columns))
    found: dict[str, list[Any]] = table.to_pydict()
    return found


def n_rows(source: Path) -> int:
    """How many rows a table has; only its end is read.

    Raises:
        UsageError: The extra is not installed.
        InputError: Missing or damaged.
    """
    pq = _package("pyarrow.parquet")
    if not source.is_file():
        raise InputError("does not exist", "check the path", file=source)
    with _refusals(source), source.open("rb") as handle:
        return int(pq.ParquetFile(handle).metadata.num_rows)


def query(
    sql: str, tables: Mapping[str, Sequence[Path]], *, scratch: Path | None = None
) -> dict[str, list[Any]]:
    """Ask a question of tables; as `queries` does with several."""
    return queries([sql], tables, scratch=scratch)[0]


def queries(
    sql: Sequence[str], tables: Mapping[str, Sequence[Path]], *, scratch: Path | None = None
) -> list[dict[str, list[Any]]]:
    """Ask questions of tables.

    Args:
        sql: In DuckDB's dialect, over the names of the tables. They are written by the caller,
            never by a user.
        tables: The files that make up each table, at least one each and all of the same columns.
        scratch: Folder for what does not fit into memory, made when needed; None: nothing is
            written anywhere.

    Returns:
        The answers, by column.

    Raises:
        UsageError: The extra is not installed.
        InputError: A file is missing or damaged.
        MemoryLimitError: An answer needs more memory than there is.
    """
    duckdb = _package("duckdb")
    _package("pyarrow")  # of which the answers are made
    first = next(iter(tables.values()))[0]
    # nothing is fetched or loaded behind the user's back
    settings = {"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}
    settings["temp_directory"] = "" if scratch is None else str(scratch)
    with _refusals(first), duckdb.connect(":memory:", config=settings) as connection:
        connection.execute("SET enable_progress_bar = false")
        for name, files in tables.items():
            connection.read_parquet([str(f) for f in files]).create_view(name)
        return [connection.sql(question).to_arrow_table().to_pydict() for question in sql]


def _type(pa: Any, kind: str) -> Any:
    """The Arrow type of a word."""
    if listed := _LIST.fullmatch(kind):
        return pa.list_(_type(pa, listed[1]))
    if fixed := _BYTES.fullmatch(kind):
        return pa.binary(int(fixed[1]))
    plain = {"str": pa.string, "bool": pa.bool_, "bytes": pa.binary}
    return plain[kind]() if kind in plain else pa.type_for_alias(kind)


def _package(name: str) -> Any:
    """A package of the extra.

    Raises:
        UsageError: Not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise UsageError(
            f"archives need {package}, which is not installed", f"pip install '{EXTRA}'"
        ) from error


@contextmanager
def _refusals(source: Path) -> Iterator[None]:
    """Every complaint of the two packages about a file, in one line."""
    pa = _package("pyarrow")
    known: tuple[type[Exception], ...] = (pa.ArrowException, OSError, EOFError)
    full: tuple[type[Exception], ...] = (pa.ArrowMemoryError,)
    with suppress(ImportError):
        duckdb = import_module("duckdb")
        known, full = (*known, duckdb.Error), (*full, duckdb.OutOfMemoryException)
    try:
        yield
    except full as error:
        raise MemoryLimitError(
            "the tables need more memory than is free", "close other programs", file=source
        ) from error
    except known as error:
        raise InputError(
            "is no table, or a damaged one",
            "remove it and run the command that made it again",
            file=source,
        ) from error
