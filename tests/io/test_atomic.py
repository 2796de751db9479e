"""A file or folder is there complete, or not at all."""

import pytest

from medssl.core.errors import OutputError
from medssl.io import atomic


def test_a_file_appears_when_it_is_complete(tmp_path):
    target = tmp_path / "a.bin"
    with atomic.file(target) as sink:
        sink.write(b"voxels")
        assert not target.exists()
    assert target.read_bytes() == b"voxels"
    assert list(tmp_path.iterdir()) == [target]


def test_a_failure_leaves_nothing_and_keeps_the_old_file(tmp_path):
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), atomic.file(target, overwrite=True) as sink:
        sink.write(b"new")
        raise ZeroDivisionError
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_is_swapped_whole(tmp_path):
    target = tmp_path / "series"
    for content in ("one", "two"):
        with atomic.folder(target, overwrite=True) as folder:
            (folder / content).write_text(content)
        assert [p.name for p in target.iterdir()] == [content]
    with pytest.raises(ZeroDivisionError), atomic.folder(target, overwrite=True) as folder:
        (folder / "three").write_text("three")
        raise ZeroDivisionError
    assert [p.name for p in target.iterdir()] == ["two"]
    assert list(tmp_path.iterdir()) == [target]


def test_nothing_is_written_over_without_being_told(tmp_path):
    (tmp_path / "a").write_text("x")
    with (
        pytest.raises(OutputError, match="exists already; use --overwrite"),
        atomic.file(tmp_path / "a"),
    ):
        pass
    with (
        pytest.raises(OutputError, match="does not exist; create it"),
        atomic.file(tmp_path / "b" / "c"),
    ):
        pass


def test_the_input_is_never_the_output(tmp_path):
    source = tmp_path / "a.nii"
    source.write_text("x")
    (tmp_path / "link.nii").symlink_to(source)
    series = tmp_path / "series"
    series.mkdir()
    for target, origin in ((tmp_path / "link.nii", source), (series / "out", series)):
        with pytest.raises(OutputError):
            atomic.check_target(target, overwrite=True, source=origin)


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with (
        pytest.raises(OutputError, match="No space left on device"),
        atomic.file(tmp_path / "a") as sink,
    ):
        sink.write(b"x")
    assert list(tmp_path.iterdir()) == []
