"""Parquet tables: what goes in comes out, damaged files and missing packages end in one line."""

import subprocess
import sys

import numpy as np
import pytest

from medssl.core.errors import InputError, UsageError
from medssl.io import table

TYPES = {
    "id": "int64",
    "name": "str",
    "key": "bytes4",
    "blob": "bytes",
    "seen": "bool",
    "hash": "uint64",
    "spacing": "[float64]",
    "words": "[str]",
}
ROWS = {
    "id": [1, 2, 3],
    "name": ["a/b", None, "ä"],
    "key": [b"abcd", b"\0\0\0\0", None],
    "blob": [b"", b"xyz", None],
    "seen": [True, False, None],
    "hash": np.array([0, 1, 2**64 - 1], np.uint64),
    "spacing": [[0.5, 1.0], [], None],
    "words": [["T1"], [], ["T2", "DERIVED"]],
}


def test_a_table_comes_back(tmp_path):
    target = tmp_path / "t.parquet"
    table.write_parquet(target, ROWS, TYPES, running=("id", "name"))
    assert table.read_parquet(target) == {k: list(v) for k, v in ROWS.items()}
    assert table.read_parquet(target, ["name"]) == {"name": ROWS["name"]}
    assert table.n_rows(target) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["t.parquet"]


def test_an_empty_table_keeps_its_columns(tmp_path):
    table.write_parquet(tmp_path / "t", {k: [] for k in TYPES}, TYPES)
    assert table.read_parquet(tmp_path / "t") == {k: [] for k in TYPES}


def test_questions_go_over_all_parts(tmp_path):
    parts = [tmp_path / f"{i}.parquet" for i in range(3)]
    for i, part in enumerate(parts):
        table.write_parquet(part, {"id": [i, i + 10], "n": [1, 2]}, {"id": "int64", "n": "int32"})
    table.write_parquet(tmp_path / "gone", {"id": [11]}, {"id": "int64"})
    found = table.query(
        "SELECT n, count(*) AS many FROM rows ANTI JOIN gone USING (id) GROUP BY n ORDER BY n",
        {"rows": parts, "gone": [tmp_path / "gone"]},
    )
    assert found == {"n": [1, 2], "many": [3, 2]}


def test_neighbours_that_are_alike_cost_little(tmp_path):
    paths = [f"patient/study/series/IM{i:06}.dcm" for i in range(20_000)]
    table.write_parquet(tmp_path / "a", {"path": paths}, {"path": "str"}, running=("path",))
    assert (tmp_path / "a").stat().st_size < 2 * len(paths)


@pytest.mark.parametrize("ask", [table.read_parquet, table.n_rows])
def test_damaged_tables_are_refused_in_one_line(tmp_path, ask):
    target = tmp_path / "t.parquet"
    with pytest.raises(InputError, match="does not exist"):
        ask(target)
    table.write_parquet(target, ROWS, TYPES)
    whole = target.read_bytes()
    for damaged in (b"", b"PAR1", whole[: len(whole) // 2], b"\xff" * 500):
        target.write_bytes(damaged)
        with pytest.raises(InputError, match="damaged"):
            ask(target)
        with pytest.raises(InputError, match="damaged"):
            table.query("SELECT * FROM t", {"t": [target]})


def test_a_column_that_is_not_there_is_named(tmp_path):
    table.write_parquet(tmp_path / "t", {"a": [1]}, {"a": "int8"})
    with pytest.raises(InputError, match="no column 'b'"):
        table.read_parquet(tmp_path / "t", ["a", "b"])
    with pytest.raises(ValueError, match="types"):
        table.write_parquet(tmp_path / "t", {"a": [1]}, {"b": "int8"})


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"pyarrow.*medssl\[archive\]"):
        table.write_parquet(tmp_path / "t", {"a": [1]}, {"a": "int8"})
    assert not any(tmp_path.iterdir())


def test_importing_it_loads_neither_package():
    code = (
        "import sys; import medssl.io.table; "
        "assert not {'pyarrow', 'duckdb', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
