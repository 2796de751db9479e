"""Tensors in files: what is written comes back, what is damaged is refused."""

import pytest
import torch

from medssl.core.errors import OutputError, WeightsError
from medssl.io import journal, weights
from medssl.io.run_folder import RunFolder


def tensors():
    return {"a": torch.arange(6.0).reshape(2, 3).T, "b/0": torch.tensor(3)}


def test_round_trip(tmp_path):
    digest = weights.write(tmp_path / "w.safetensors", tensors())
    back = weights.read(tmp_path / "w.safetensors", digest)
    assert all(torch.equal(back[k], v) and back[k].dtype == v.dtype for k, v in tensors().items())


@pytest.mark.parametrize("damage", ["missing", "cut", "other", "pickle", "empty"])
def test_damage_is_refused(tmp_path, damage):
    path = tmp_path / "w.safetensors"
    digest = weights.write(path, tensors())
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "pickle":
        torch.save(tensors(), path)
    else:
        path.write_bytes({"cut": content[:-3], "other": content, "empty": b""}[damage])
    with pytest.raises(WeightsError):
        weights.read(path, "0" * 64 if damage == "other" else None)
    assert digest


def test_checkpoints_are_whole_and_two_are_kept(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.begin({})
    for step in (5, 10, 100):
        folder.save(step, tensors(), {"step": step})
    assert folder.steps() == [10, 100]
    back, state = folder.load(100)
    assert state["step"] == 100
    assert torch.equal(back["a"], tensors()["a"])
    path = tmp_path / "run" / "checkpoint-100" / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WeightsError):
        folder.load(100)


def test_a_folder_of_something_else_is_not_overwritten(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    for words in ({"overwrite": True, "resume": False}, {"overwrite": False, "resume": True}):
        with pytest.raises(OutputError):
            RunFolder(tmp_path / "run").check(tmp_path / "data", **words)


def test_a_torn_line_is_dropped(tmp_path):
    path = tmp_path / "x.jsonl"
    for step in range(3):
        journal.append(path, {"step": step, "loss": float("nan")})
    path.write_bytes(path.read_bytes() + b'{"step": 3, "lo')
    assert [row["step"] for row in journal.read(path)] == [0, 1, 2]
    journal.keep(path, lambda row: row["step"] < 2)
    journal.append(path, {"step": 7})
    assert [row["step"] for row in journal.read(path)] == [0, 1, 7]
