"""An archive becomes a store: everything good is in, everything bad is listed, nothing is named."""

import contextlib
import csv
import errno
import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from medssl.core.errors import InputError, InterruptedRunError, OutputError, UsageError
from medssl.core.geometry import Geometry
from medssl.data import archive
from medssl.data import prepare as prepare_module
from medssl.data.prepare import as_stored, canonical, prepare
from medssl.data.quality import CODES, looks_like_labels
from medssl.data.store import Store, volume_path
from medssl.io import journal
from medssl.io.example_series import ct_series
from medssl.io.read import read
from medssl.io.table import read_parquet

SALT = b"salt"


def listed(store: Path) -> dict[str, str]:
    """Code of every key of the skip list."""
    with (store / "skipped.csv").open(newline="") as lines:
        return {x["key"]: x["code"] for x in csv.DictReader(lines)}


def edit(store: Path, *, without: str = "", plus: str = "") -> None:
    """Do to the skip list what a human does."""
    lines = (store / "skipped.csv").read_text().splitlines()
    lines = [x for x in lines if not (without and x.startswith(without))]
    (store / "skipped.csv").write_text("\n".join([*lines, *([plus] if plus else [])]) + "\n")


def content(store: Path) -> dict[str, str]:
    """Every file of a store and the hash of its bytes."""
    files = sorted(p for p in store.rglob("*") if p.is_file())
    return {str(p.relative_to(store)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "store"


# ---- what comes in, comes in as it was


def test_hounsfield_units_are_exact_integers_in_canonical_axes(ct, out, body):
    hu = body(seed=3)
    series = ct("a", hu)
    made = prepare([series], out, salt=SALT)
    store = Store.open(out)
    assert made.n_volumes == len(store.volumes) == 1
    volume, voxels = store.volumes[0], store.read(0)
    assert voxels.dtype == np.int16
    assert np.array_equal(voxels[0], hu[::-1, ::-1])  # columns run to the left, rows to the back
    assert volume.spacing == pytest.approx((0.8, 0.8, 3.0))
    image = read(series.paths[0].parent)
    assert image.geometry.orientation == "LPS"
    there = np.reshape(volume.affine, (4, 4)) @ [79, 71, 0, 1]
    assert np.allclose(there[:3], image.geometry.world((0, 0, 0)))
    assert volume.modality == "CT"
    assert volume.split in ("train", "val", "test")


def test_a_time_series_becomes_volumes(nifti, row, out):
    rng = np.random.default_rng(0)
    array = rng.integers(100, 900, (70, 66, 10, 3)).astype(np.uint16)
    series = row("4d", [nifti(array)], kind="nifti", modality="MR")
    prepare([series], out, salt=SALT)
    store = Store.open(out)
    assert [v.key for v in store.volumes] == [f"{series.key}-{t}" for t in range(3)]
    assert {v.series for v in store.volumes} == {series.key}
    assert len({v.group for v in store.volumes}) == 1
    for t in range(3):
        assert store.read(t).dtype == np.uint16
        assert np.array_equal(store.read(t)[0], array[::-1, ..., t])  # the fixture's axes are LAS


def test_pictures_keep_their_colours(tmp_path, row, out):
    import PIL.Image

    colours = np.random.default_rng(0).integers(0, 255, (90, 120, 3)).astype(np.uint8)
    PIL.Image.fromarray(colours).save(tmp_path / "a.png")
    prepare([row("p", [tmp_path / "a.png"], kind="picture", modality="PICTURE")], out, salt=SALT)
    store = Store.open(out)
    assert store.volumes[0].shape == (3, 120, 90, 1)
    assert store.read(0).dtype == np.uint8
    assert np.array_equal(store.read(0)[..., 0], colours.transpose(2, 1, 0)[:, ::-1, ::-1])


@pytest.mark.parametrize("dtype", ["int16", "uint8", "uint16", "int32", "float32", "float64"])
def test_the_type_is_kept(nifti, row, out, dtype):
    array = np.random.default_rng(0).integers(1, 250, (70, 66, 9)).astype(dtype)
    array = array + np.asarray(0.25, dtype) if dtype.startswith("float") else array
    prepare([row("a", [nifti(array)], kind="nifti", modality="")], out, salt=SALT)
    read_back = Store.open(out).read(0)[0, ::-1]
    assert read_back.dtype == (np.float32 if dtype.startswith("float") else np.dtype(dtype))
    assert np.array_equal(read_back, array)


def test_scaled_values_are_real_numbers(nifti, row, out):
    array = np.random.default_rng(0).integers(1, 250, (70, 66, 9)).astype(np.int16)
    prepare([row("a", [nifti(array, slope=(0.5, 3.0))], kind="nifti")], out, salt=SALT)
    assert np.array_equal(Store.open(out).read(0)[0, ::-1], array * np.float32(0.5) + 3)


def test_large_integers_that_the_reader_rounds_stay_as_they_were_read(nifti):
    array = np.full((70, 66, 9), 2**24 + 1, np.int32)
    image = read(nifti(array))
    assert as_stored(image.data, image).dtype == np.float32


@pytest.mark.parametrize("turn", range(8))
def test_canonical_axes_point_right_anterior_superior(turn):
    rng = np.random.default_rng(turn)
    data = rng.normal(size=(2, 4, 5, 6))
    matrix = np.eye(4)
    matrix[:3, :3] = np.eye(3)[rng.permutation(3)] * rng.choice([-1, 1], 3)
    angle = 0.3
    tilt = np.array(
        [[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]]
    )
    matrix[:3, :3] = tilt @ matrix[:3, :3] @ np.diag([0.5, 2, 3])
    matrix[:3, 3] = 7, -8, 9
    view, affine = canonical(data, matrix)
    assert Geometry(view.shape[1:], affine).orientation == "RAS"
    assert np.shares_memory(view, data)
    for _ in range(5):
        there = tuple(rng.integers(0, n) for n in view.shape[1:])
        here = np.linalg.solve(matrix, affine @ [*there, 1])[:3]
        assert np.allclose(here, np.rint(here))
        assert np.array_equal(
            view[(slice(None), *there)], data[(slice(None), *np.rint(here).astype(int))]
        )


# ---- what stays out, and why


def rewritten(path: Path, **changes: object) -> None:
    """Change elements of an instance."""
    import pydicom

    dataset = pydicom.dcmread(path)
    for name, value in changes.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)


def faulty(kind: str, ct, nifti, row, body, tmp_path):
    """A series with one fault."""
    if kind in ("localizer", "secondary-capture", "burned-in"):
        flag = {"localizer": "LOCALIZER", "secondary-capture": "SECONDARY"}.get(kind, "BURNED_IN")
        return ct(kind, flags=("DERIVED", flag))
    if kind == "few-slices":
        return ct(kind, body((80, 72, 7)))
    if kind == "small-matrix":
        return ct(kind, body((80, 60, 20)))
    if kind == "constant":
        return ct(kind, np.full((80, 72, 20), 40.0))
    if kind == "little-foreground":
        hu = np.random.default_rng(0).normal(-1000, 12, (80, 72, 20))
        hu[30:45, 30:40, 5:15] += 1040
        return ct(kind, hu)
    if kind == "not-finite":
        array = body((70, 66, 12)).astype(np.float32)
        array[5, 5, 5] = np.nan
        return row(kind, [nifti(array)], kind="nifti")
    if kind == "labels":
        array = np.zeros((70, 66, 12), np.uint8)
        array[10:50, 10:50] = 1
        array[20:40, 20:40, 3:] = 2
        return row(kind, [nifti(array)], kind="nifti")
    if kind == "not-an-image":
        (tmp_path / "note.dcm").write_text("no scan at all")
        return row(kind, [tmp_path / "note.dcm"], kind="nifti")
    series = ct(kind)
    paths = series.paths
    if kind == "uneven-slices":
        paths = paths[:7] + paths[8:]
    elif kind == "tilted":
        for k, path in enumerate(paths):
            rewritten(path, ImagePositionPatient=[0, 0.9 * k, 3 * k])
    elif kind == "mixed-orientation":
        for path in paths[10:]:
            rewritten(path, ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    elif kind == "duplicate-position":
        rewritten(paths[4], ImagePositionPatient=[0, 0, 15])
        rewritten(paths[5], ImagePositionPatient=[0, 0, 15])
    elif kind == "truncated":
        paths[3].write_bytes(paths[3].read_bytes()[:-500])
    else:
        assert kind == "unreadable"
        rewritten(paths[0], RescaleSlope=0)  # the rest is fine, and must not be called mixed
    return row(kind, paths)


FAULTS = sorted(set(CODES) - {"copy", "too-large", "failed", "by-hand"})


@pytest.mark.parametrize("kind", FAULTS)
def test_every_fault_has_its_code_and_stops_nobody(kind, ct, nifti, row, body, tmp_path, out):
    bad, good = faulty(kind, ct, nifti, row, body, tmp_path), ct("good", seed=50)
    made = prepare([bad, good], out, salt=SALT)
    assert listed(out) == {bad.key: kind}
    assert made.skipped == {kind: 1}
    assert kind in made.line
    assert [v.key for v in Store.open(out).volumes] == [good.key]


def test_what_is_wrong_with_a_time_series_as_a_whole_is_one_line(nifti, row, out):
    array = np.random.default_rng(0).integers(1, 999, (70, 66, 5, 9)).astype(np.int16)
    series = row("4d", [nifti(array)], kind="nifti")
    prepare([series], out, salt=SALT)
    assert listed(out) == {series.key: "few-slices"}


def test_series_of_no_memory_are_tried_again(ct, out, monkeypatch):
    series = ct("a")
    monkeypatch.setattr(prepare_module, "Limits", lambda **_: prepare_module_limits(1000))
    prepare([series], out, salt=SALT)
    assert listed(out) == {series.key: "too-large"}
    monkeypatch.undo()
    assert prepare([series], out, salt=SALT).n_volumes == 1
    assert listed(out) == {}


def prepare_module_limits(n: int):
    from medssl.io.limits import Limits

    return Limits(memory=n)


def test_an_error_of_this_program_stops_one_series_only(ct, out, monkeypatch):
    bad, good = ct("bad"), ct("good", seed=5)
    whole = prepare_module.read_sources

    def broken(found, name, limits, **more):
        if name == bad.key:
            raise ZeroDivisionError("SECRET")
        return whole(found, name, limits, **more)

    monkeypatch.setattr(prepare_module, "read_sources", broken)
    prepare([bad, good], out, salt=SALT)
    assert listed(out) == {bad.key: "failed"}
    assert "SECRET" not in (out / "skipped.csv").read_text()


def test_scans_do_not_look_like_labels(body):
    assert not looks_like_labels(body())
    assert not looks_like_labels((body() // 16).clip(-10, 20).astype(np.int8))


@pytest.mark.parametrize("name", ["bits.png", "packed.jpg", "classes.png"])
def test_masks_of_pictures_are_labels(tmp_path, row, out, name):
    import PIL.Image

    levels = np.zeros((90, 120), np.uint8)
    levels[20:60, 30:100] = 255 if name != "classes.png" else 1
    levels[30:40, 50:80] = 255 if name != "classes.png" else 2
    picture = PIL.Image.fromarray(levels)
    picture = picture.convert("1") if name == "bits.png" else picture
    (picture.convert("RGB") if name == "packed.jpg" else picture).save(tmp_path / name)
    series = row("p", [tmp_path / name], kind="picture", modality="PICTURE")
    assert prepare([series], out, salt=SALT).skipped == {"labels": 1}


def test_an_array_of_two_axes_is_a_picture(tmp_path, row, out):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(80, 90)).astype(np.float32))
    prepare([row("p", [tmp_path / "a.npy"], kind="picture", modality="")], out, salt=SALT)
    assert Store.open(out).volumes[0].modality == "PICTURE"


def test_projections_are_pictures_each(tmp_path, row, out):
    rng = np.random.default_rng(0)
    hu = rng.normal(500, 100, (90, 70, 3))
    paths = ct_series(tmp_path / "cr", hu, (0.2, 0.2, 1.0), intercept=0)
    for path in paths:
        rewritten(path, Modality="CR")
    series = row("cr", paths, modality="CR", n_frames=3)
    assert prepare([series], out, salt=SALT).n_volumes == 3
    assert [v.shape for v in Store.open(out).volumes] == [(1, 90, 70, 1)] * 3
    paths[1].write_bytes(paths[1].read_bytes()[:-999])
    series = row("cr", paths, modality="CR", n_frames=3)
    assert prepare([series], out, salt=SALT).n_volumes == 2
    assert listed(out) == {f"{series.key}-1": "truncated"}


# ---- the list is obeyed


def test_a_line_that_is_removed_lets_a_series_in(ct, body, out):
    few, good = ct("few", body((80, 72, 7))), ct("good", seed=5)
    prepare([few, good], out, salt=SALT)
    assert listed(out) == {few.key: "few-slices"}
    edit(out, without=few.key)
    assert prepare([few, good], out, salt=SALT).n_new == 1
    assert listed(out) == {}
    assert len(Store.open(out).volumes) == 2
    assert prepare([few, good], out, salt=SALT).n_new == 0
    assert len(Store.open(out).volumes) == 2


@pytest.mark.parametrize("shape", [(80, 72, 20), (1, 1, 1), (3, 40, 2)])
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_a_human_may_want_anything(ct, out, shape, modality):
    odd, good = ct("odd", np.full(shape, 40.0), modality=modality), ct("good", seed=5)
    prepare([odd, good], out, salt=SALT)
    assert set(listed(out)) == {odd.key}
    edit(out, without=odd.key)
    prepare([odd, good], out, salt=SALT)
    assert listed(out) == {}
    assert {v.shape for v in Store.open(out).volumes} == {(1, *shape), (1, 80, 72, 20)}


def test_what_cannot_be_read_returns_to_the_list(ct, nifti, row, body, tmp_path, out):
    bad, good = faulty("truncated", ct, nifti, row, body, tmp_path), ct("good", seed=5)
    prepare([bad, good], out, salt=SALT)
    edit(out, without=bad.key)
    for n_new in (1, 0):
        assert prepare([bad, good], out, salt=SALT).n_new == n_new
        assert listed(out) == {bad.key: "truncated"}


def test_a_line_that_is_added_keeps_a_series_out_until_it_goes(ct, out):
    rows = [ct("a", seed=1), ct("b", seed=2)]
    first = prepare(rows, out, salt=SALT)
    before = Store.open(out)
    edit(out, plus=f"{rows[0].key},,,blurred")
    for _ in range(2):
        assert prepare(rows, out, salt=SALT).skipped == {"by-hand": 1}
        assert [v.key for v in Store.open(out).volumes] == [rows[1].key]
        assert not volume_path(out, rows[0].key).exists()
        assert "blurred" in (out / "skipped.csv").read_text()
    edit(out, without=rows[0].key)
    assert prepare(rows, out, salt=SALT).n_volumes == first.n_volumes
    assert Store.open(out).sha256 == before.sha256


def test_one_volume_of_a_time_series_can_be_taken_out(nifti, row, out):
    array = np.random.default_rng(0).integers(1, 999, (70, 66, 9, 3)).astype(np.int16)
    series = row("4d", [nifti(array)], kind="nifti")
    prepare([series], out, salt=SALT)
    edit(out, plus=f"{series.key}-1,,,")
    assert prepare([series], out, salt=SALT).n_new == 0
    assert [v.key for v in Store.open(out).volumes] == [f"{series.key}-{t}" for t in (0, 2)]


def test_a_series_can_be_kept_out_from_the_start_of_a_second_run(ct, out):
    a, b = ct("a", seed=1), ct("b", seed=2)
    prepare([a], out, salt=SALT)
    edit(out, plus=f"{b.key},by-hand,CT,no consent")
    assert prepare([a, b], out, salt=SALT).n_new == 0
    assert listed(out) == {b.key: "by-hand"}


def test_a_copy_is_listed_and_let_in_when_its_line_goes(ct, body, out):
    whole, crop = ct("whole", body(seed=1)), ct("crop", body(seed=1)[8:, :70, 2:18], seed=9)
    made = prepare([crop, whole], out, salt=SALT)
    assert listed(out) == {crop.key: "copy"}
    assert made.n_links == 1
    edit(out, without=crop.key)
    prepare([crop, whole], out, salt=SALT)
    volumes = Store.open(out).volumes
    assert len(volumes) == 2
    assert len({v.group for v in volumes}) == len({v.split for v in volumes}) == 1


def test_a_list_that_is_no_list_is_refused(ct, out):
    rows = [ct("a")]
    prepare(rows, out, salt=SALT)
    (out / "skipped.csv").write_text("series;why\n1;2\n")
    with pytest.raises(InputError, match="no column 'key'"):
        prepare(rows, out, salt=SALT)


# ---- again, later, elsewhere


def test_a_second_run_reads_nothing_and_changes_nothing(ct, out):
    rows = [ct("a", seed=1), ct("b", seed=2)]
    prepare(rows, out, salt=SALT)
    before = content(out)
    assert prepare(rows, out, salt=SALT).n_new == 0
    assert content(out) == before


def test_changed_new_and_vanished_series(ct, out, body):
    a, b = ct("a", seed=1), ct("b", seed=2)
    prepare([a, b], out, salt=SALT)
    changed, c = ct("a", body(seed=7), seed=1), ct("c", seed=3)
    assert changed.key == a.key
    assert changed.stamp != a.stamp
    assert prepare([changed, c], out, salt=SALT).n_new == 2
    store = Store.open(out)
    assert {v.key for v in store.volumes} == {a.key, c.key}
    place = next(v.index for v in store.volumes if v.key == a.key)
    assert np.array_equal(store.read(place)[0], body(seed=7)[::-1, ::-1])
    assert {p.stem for p in (out / "volumes").iterdir()} == {a.key, c.key}


def test_a_copy_returns_when_its_original_vanishes(ct, body, out):
    whole, crop = ct("whole", body(seed=1)), ct("crop", body(seed=1)[8:, :70, 2:18], seed=9)
    prepare([whole, crop], out, salt=SALT)
    prepare([crop], out, salt=SALT)
    assert [v.key for v in Store.open(out).volumes] == [crop.key]
    assert np.array_equal(Store.open(out).read(0)[0], body(seed=1)[8:, :70, 2:18][::-1, ::-1])


def test_a_lost_volume_is_made_again(ct, out):
    rows = [ct("a", seed=1), ct("b", seed=2)]
    prepare(rows, out, salt=SALT)
    before = content(out)
    volume_path(out, rows[1].key).unlink()
    assert prepare(rows, out, salt=SALT).n_new == 1
    assert content(out) == before


def test_neither_order_nor_processes_leave_a_trace(ct, tmp_path, monkeypatch):
    rows = [ct(f"{k}", seed=k) for k in range(3)]
    prepare(rows, tmp_path / "one", salt=SALT)
    prepare(rows[::-1], tmp_path / "other", salt=SALT)
    assert content(tmp_path / "one") == content(tmp_path / "other")
    monkeypatch.setattr(prepare_module, "SMALL", 0)
    prepare(rows, tmp_path / "many", salt=SALT, jobs=2)
    assert content(tmp_path / "one") == content(tmp_path / "many")


KILLED = """
import sys, pickle
from pathlib import Path
from medssl.data import prepare as module

if __name__ == "__main__":
    place, rows = sys.argv[1], pickle.loads(Path(sys.argv[2]).read_bytes())
    module.SMALL = 0
    module.prepare(rows, Path(place), salt=b"salt", jobs=int(sys.argv[3]))
"""


def test_a_killed_preparation_goes_on_where_it_was(ct, tmp_path):
    import pickle

    rows = [ct(f"{k}", seed=k) for k in range(6)]
    prepare(rows, tmp_path / "whole", salt=SALT)
    (tmp_path / "rows").write_bytes(pickle.dumps(rows))
    out = tmp_path / "store"
    words = [sys.executable, "-c", KILLED, str(out), str(tmp_path / "rows"), "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(words, env=environment)
    try:
        deadline = time.monotonic() + 60
        while len(journal.read(out / "journal.jsonl")) < 3 and time.monotonic() < deadline:
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    n_ready = len(journal.read(out / "journal.jsonl")) - 1
    assert 2 <= n_ready < 6
    with pytest.raises(InputError, match="did not end"):
        Store.open(out)
    with (out / "journal.jsonl").open("ab") as torn:
        torn.write(b'{"key": "to')
    assert prepare(rows, out, salt=SALT).n_new == 6 - n_ready
    assert content(out) == content(tmp_path / "whole")


@pytest.mark.slow
def test_kills_at_any_moment_leave_nothing_behind(ct, tmp_path):
    import pickle

    import psutil

    rows = [ct(f"{k}", seed=k) for k in range(12)]
    prepare(rows, tmp_path / "whole", salt=SALT)
    (tmp_path / "rows").write_bytes(pickle.dumps(rows))
    (tmp_path / "run.py").write_text(KILLED)
    out, rng = tmp_path / "store", np.random.default_rng(0)
    words = [sys.executable, str(tmp_path / "run.py"), str(out), str(tmp_path / "rows"), "2"]
    for _ in range(6):
        process = subprocess.Popen(words, env=os.environ | {"OMP_NUM_THREADS": "1"})
        time.sleep(rng.uniform(1, 5))
        workers = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not psutil.wait_procs(workers, timeout=20)[1]
    prepare(rows, out, salt=SALT)
    assert content(out) == content(tmp_path / "whole")


def test_a_full_disk_is_one_line_and_what_is_ready_stays(ct, out, monkeypatch):
    rows = sorted((ct(f"{k}", seed=k) for k in range(3)), key=lambda r: r.key)
    packed, whole = [], prepare_module.write_b2nd

    def full(target, *words, **more):
        if len(packed) == 2:
            message = os.strerror(errno.ENOSPC)
            raise OutputError(f"cannot be written ({message})", "check free space", file=target)
        packed.append(target)
        whole(target, *words, **more)

    monkeypatch.setattr(prepare_module, "write_b2nd", full)
    with pytest.raises(OutputError, match="No space left") as refusal:
        prepare(rows, out, salt=SALT)
    assert "\n" not in str(refusal.value)
    monkeypatch.undo()
    assert prepare(rows, out, salt=SALT).n_new == 1
    assert len(Store.open(out).volumes) == 3


def test_other_places_are_refused(ct, tmp_path, out):
    a, b = ct("a"), ct("b", seed=4)
    with pytest.raises(InputError, match="no series"):
        prepare([], out, salt=SALT)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        prepare([a], tmp_path / "full", salt=SALT)
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.txt"]
    prepare([a], out, salt=SALT)
    with pytest.raises(InputError, match="another index"):
        prepare([b], out, salt=SALT)
    from filelock import FileLock

    with FileLock(out / ".lock"), pytest.raises(OutputError, match="another preparation"):
        prepare([a], out, salt=SALT)
    begun = tmp_path / "begun"
    begun.mkdir()
    journal.append(begun / "journal.jsonl", {})
    with FileLock(begun / ".lock"), pytest.raises(OutputError, match="another preparation"):
        prepare([a], begun, salt=SALT)
    assert (begun / "journal.jsonl").exists()  # it is the other one's


# ---- on a cluster


@pytest.fixture
def cluster(tmp_path):
    """A real scheduler and two workers of one thread each, on this machine."""
    pytest.importorskip("distributed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    common = {"env": environment, "cwd": tmp_path, "stdin": subprocess.DEVNULL}
    port = address.rpartition(":")[2]
    dask = [sys.executable, "-m", "distributed.cli."]
    commands = [
        [*dask[:2], dask[2] + "dask_scheduler", "--host", "127.0.0.1", "--port", port],
        *([[*dask[:2], dask[2] + "dask_worker", address, "--nthreads", "1", "--no-nanny"]] * 2),
    ]
    logs = [(tmp_path / f"{k}.log").open("wb") for k in range(3)]
    running = [
        subprocess.Popen([*c, "--no-dashboard"], stdout=log, stderr=log, **common)
        for c, log in zip(commands, logs, strict=True)
    ]
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and b"Registered to" not in b"".join(
            (tmp_path / f"{k}.log").read_bytes() for k in (1, 2)
        ):
            time.sleep(0.1)
        yield address
    finally:
        for process in running:
            process.kill()
            process.wait()
        for log in logs:
            log.close()


def test_a_cluster_makes_the_same_store_and_logs_no_path(ct, body, tmp_path, cluster):
    rows = [ct(f"SECRET {k}", seed=k) for k in range(3)] + [ct("few", body((80, 72, 7)))]
    prepare(rows, tmp_path / "here", salt=SALT)
    prepare(rows, tmp_path / "there", salt=SALT, scheduler=cluster)
    assert content(tmp_path / "here") == content(tmp_path / "there")
    for log in tmp_path.glob("*.log"):
        assert b"SECRET" not in log.read_bytes()


def test_no_scheduler_is_one_line(ct, out, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr("medssl.data.jobs.PATIENCE", 0.5)
    with pytest.raises(UsageError, match="no Dask scheduler answers"):
        prepare([ct("a")], out, salt=SALT, scheduler="tcp://127.0.0.1:9")
    with pytest.raises(UsageError, match="no Dask scheduler answers"):
        prepare([ct("a")], out, salt=SALT, scheduler="nonsense://")
    assert not out.exists()


@pytest.mark.parametrize("package", ["blosc2", "pyarrow"])
def test_a_missing_package_is_one_line_and_leaves_nothing(ct, out, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=r"medssl\[archive\]"):
        prepare([ct("a")], out, salt=SALT)
    if package == "blosc2":
        assert not out.exists()
    monkeypatch.undo()
    assert prepare([ct("a")], out, salt=SALT).n_volumes == 1


def test_the_keyboard_interrupts(ct, out, monkeypatch):
    rows, done = sorted((ct("a"), ct("b", seed=2)), key=lambda r: r.key), []

    def told(stage: str, n: int, total: int) -> None:
        done.append(n)
        if n == 1:
            raise KeyboardInterrupt

    with pytest.raises(InterruptedRunError, match="it goes on"):
        prepare(rows, out, salt=SALT, progress=told)
    assert prepare(rows, out, salt=SALT).n_new == 1


# ---- nobody is named


def test_no_name_reaches_the_store(ct, nifti, row, body, tmp_path, out, capfd):
    rows = [ct("SECRET^folder", seed=1, patient="f" * 32)]
    for path in rows[0].paths:
        rewritten(
            path, PatientName="SECRET^NAME", PatientID="SECRET-ID", StudyDescription="SECRET",
            SeriesDescription="SECRET", InstitutionName="SECRET", PatientBirthDate="19010101",
        )  # fmt: skip
    rows = [row("SECRET^folder", rows[0].paths)]
    for k, kind in enumerate(FAULTS):
        (tmp_path / f"SECRET{k}").mkdir()
        rows.append(faulty(kind, ct, nifti, row, body, tmp_path / f"SECRET{k}"))
        for path in rows[-1].paths:
            with contextlib.suppress(Exception):
                rewritten(path, PatientName="SECRET", SeriesDescription="SECRET")
    said: list[object] = []
    made = prepare(rows, out, salt=SALT, progress=lambda *words: said.append(words))
    text = " ".join([made.line, str(made), str(said), *capfd.readouterr()])
    text = text.replace(str(out), "")
    for word in ("SECRET", "19010101", "archive/"):
        assert word not in text
        for file in out.rglob("*"):
            assert word not in file.name
            assert not file.is_file() or word.encode() not in file.read_bytes(), (word, file.name)
    assert not any("SECRET" in str(x) for x in read_parquet(out / "series.parquet").values())


@pytest.mark.data
def test_real_folders_of_awkward_series(data_folder, tmp_path):
    made = {}
    for name in ("odd", "prostate", "ct"):
        archive.index(data_folder / name, tmp_path / f"index {name}")
        rows = archive.series(tmp_path / f"index {name}")
        made[name] = prepare(rows, tmp_path / name, salt=SALT)
        for volume in Store.open(tmp_path / name).volumes:
            voxels = Store.open(tmp_path / name).read(volume.index)
            assert voxels.shape == volume.shape
            assert np.linalg.det(np.reshape(volume.affine, (4, 4))[:3, :3]) > 0
            box = tuple(slice(a, b) for a, b in volume.foreground)
            assert 0 < volume.sd < np.ptp(voxels[(slice(None), *box)])
    assert made["prostate"].skipped == {"labels": 6}
    assert made["prostate"].modalities == {"MR": 3}
    assert made["ct"].skipped == {"labels": 1}
    # files of the loaders' tests: short stacks, one plane nine times, conversions of the DICOM
    assert set(made["odd"].skipped) == {"copy", "duplicate-position", "few-slices", "unreadable"}
    assert made["odd"].modalities == {"MR": 9}
