"""Learning from many scans: stopped, resumed, refused, and used."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pytest
import torch

from medssl import api, config
from medssl.core.errors import (
    InputError,
    InterruptedRunError,
    OutputError,
    UsageError,
    WeightsError,
)
from medssl.engine.archive import parted
from medssl.engine.noisy_scan import Look, facts_of
from medssl.io import journal, weights
from medssl.io.memory import from_array
from medssl.io.run_folder import RunFolder
from medssl.physics.noise import Gaussian, Rician
from medssl.physics.phantom import head

SCANNERS = [((44, 40, 12), 0.08, 90.0), ((40, 48, 14), 0.12, 700.0), ((40, 36, 10), 0.1, 4.0)]
"""Shape, noise over the peak, and units of the peak."""
QUICK = ("filter2noise_scalar", "noise2score")
"""Recipes that the default run resumes: without and with a running mean of the weights."""
LEARNERS = [
    pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
    for name in config.recipes("denoise")
    if config.load("denoise", name).train is not None
]
FAST = {"recipe": "denoise/filter2noise-scalar", "threads": 1}


def scan(k, law=Rician):
    """Noisy and clean volume of a scanner."""
    shape, sigma, peak = SCANNERS[k]
    truth = head(shape)
    noisy = law(sigma).sample(truth, torch.Generator().manual_seed(k))
    return noisy.numpy() * np.float32(peak), truth.numpy() * np.float32(peak)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([1, 1, 1.5, 1])), path)
    return path


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Three phantoms of three scanners, a damaged file, and notes."""
    folder = tmp_path_factory.mktemp("SECRET_HOSPITAL")
    paths = [save(folder / f"SECRET_{k}" / "SECRET.nii.gz", scan(k)[0]) for k in range(3)]
    (folder / "SECRET_3.nii.gz").write_bytes(paths[0].read_bytes()[:500])
    (folder / "notes.txt").write_text("SECRET")
    return folder


@pytest.fixture(scope="module")
def trained(archive, tmp_path_factory):
    """A run over them."""
    run = tmp_path_factory.mktemp("runs") / "run"
    return api.train(archive, run, steps=60, settings={"train.save_every": 20}, **FAST)


@pytest.fixture
def run(trained, tmp_path):
    """A copy of that run to damage."""
    shutil.copytree(trained.run, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def quick(monkeypatch):
    """No comparison with the default method, which takes a second."""
    monkeypatch.setattr("medssl.engine.learn_denoise.COMPARED", 0)


def stopping_at(step):
    """Progress that presses Ctrl-C after a step."""

    def tell(stage, done, total):
        if (stage, done) == ("learn", step):
            signal.raise_signal(signal.SIGINT)

    return tell


def test_two_trainings_do_not_write_into_one_folder(archive, tmp_path, quick):
    """The second is refused while the first looks, learns, or goes on."""
    refused = []

    def tell(stage, done, total):
        if (stage, done) in (("find scans", 0), ("learn", 2)):
            for words in ({}, {"overwrite": True}, {"resume": True}):
                with pytest.raises(OutputError) as caught:
                    api.train(archive, tmp_path / "run", steps=4, **FAST, **words)
                refused.append(str(caught.value))

    api.train(archive, tmp_path / "run", steps=4, progress=tell, **FAST)
    assert len(refused) == 6
    assert set(refused) == {
        "run: another training writes into it; wait until it is done, or choose another folder "
        "with -o"
    }
    assert not (tmp_path / "run" / ".lock").exists()


def test_the_lock_of_a_killed_training_keeps_nobody_out(archive, tmp_path, quick):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").touch()
    done = api.train(archive, tmp_path / "run", steps=2, **FAST)
    assert done.record["complete"] is True


def test_a_training_of_nothing_leaves_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no scan was found"):
        api.train(tmp_path / "empty", tmp_path / "run", **FAST)
    assert [p.name for p in tmp_path.iterdir()] == ["empty"]


def test_what_a_run_holds(trained):
    record = json.loads((trained.run / "run.json").read_text())
    assert record["complete"] is True
    assert record["seen"]["learnt"] == 2
    assert record["seen"]["tested"] == 1
    assert record["seen"]["laws"] == {"rician": 3}
    assert record["failed"] == 1
    assert record["loss"]["held_out"] < record["loss"]["held_out_at_first"]
    assert [str(e) for e in trained.refused] == [
        "SECRET_3.nii.gz: its gzip stream is damaged; copy the file again"
    ]
    names = {p.name for p in trained.run.iterdir()}
    assert names == {p.name for p in trained.files} | {"checkpoint-40", "checkpoint-60"}
    assert (trained.run / "loss.png").read_bytes().startswith(b"\x89PNG")
    levels = sorted(look["level"] for look in journal.read(trained.run / "scans.jsonl"))
    assert np.allclose(levels, [0.08, 0.1, 0.12], rtol=0.25)


def test_no_name_reaches_the_run(trained):
    for path in trained.run.rglob("*"):
        assert "SECRET" not in path.name
        assert path.is_dir() or b"SECRET" not in path.read_bytes()


@pytest.mark.parametrize("k", range(3))
def test_the_weights_improve_each_scan(trained, k):
    noisy, clean = scan(k)
    done = api.denoise(noisy, weights=trained.run, threads=1)
    where = clean > 0.1 * clean.max()
    before, after = (((x - clean)[where] ** 2).mean() for x in (noisy, done.image))
    assert 10 * np.log10(before / after) > 0.3
    assert (
        done.record["medssl"]["recipe"]["weights"]["sha256"]
        == (trained.record["weights"]["sha256"])
    )
    assert "fit" not in done.record["medssl"]["seconds"]


@pytest.mark.parametrize("name", LEARNERS)
def test_a_stopped_run_goes_on_bit_for_bit(archive, tmp_path, name, quick):
    words = {
        "recipe": name,
        "steps": 5,
        "threads": 1,
        "settings": {"train.save_every": 2, "train.crop": 16, "train.batch": 2},
    }
    whole = api.train(archive, tmp_path / "whole", **words).run
    run = tmp_path / "run"
    with pytest.raises(InterruptedRunError, match="stopped after step 3 of 5, which is saved"):
        api.train(archive, run, progress=stopping_at(3), **words)
    with pytest.raises(WeightsError, match="not complete"):
        api.denoise(scan(0)[0], weights=run)
    api.train(archive, run, resume=True, **words)
    for file in ("weights.safetensors", "metrics.jsonl", "checkpoint-5/checkpoint.safetensors"):
        assert (run / file).read_bytes() == (whole / file).read_bytes(), file
    done = api.denoise(scan(0)[0], weights=run, noise="rician", dry_run=True)
    assert done.record["medssl"]["recipe"]["weights"]["sha256"]


@pytest.mark.slow
def test_one_net_serves_all_scanners(archive, tmp_path):
    run = api.train(archive, tmp_path / "run", "denoise/noise2score", threads=1).run
    for k in range(3):
        noisy, clean = scan(k)
        done = api.denoise(noisy, weights=run, threads=1)
        where = clean > 0.1 * clean.max()
        before, after = (((x - clean)[where] ** 2).mean() for x in (noisy, done.image))
        assert 10 * np.log10(before / after) > 1
    with pytest.raises(WeightsError, match="that of this scan is gaussian"):
        api.denoise(scan(0, Gaussian)[0] - 10, weights=run)


def test_a_look_at_the_scans_can_be_stopped_too(archive, tmp_path, quick):
    def tell(stage, done, total):
        if (stage, done) == ("look at scans", 1):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(InterruptedRunError, match="look at 2 of 4"):
        api.train(archive, tmp_path / "run", steps=2, progress=tell, **FAST)
    assert len(journal.read(tmp_path / "run" / "scans.jsonl")) == 1
    assert api.train(archive, tmp_path / "run", steps=2, resume=True, **FAST).record["complete"]


def test_a_damaged_checkpoint_gives_way_to_the_one_before(archive, tmp_path, trained, run, quick):
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"phase": "learning", "complete": False}))
    (run / "weights.safetensors").unlink()
    last = run / "checkpoint-60" / "checkpoint.safetensors"
    last.write_bytes(last.read_bytes()[:-1])
    done = api.train(archive, run, resume=True, threads=1)
    assert any("checkpoint of step 60 is damaged" in w for w in done.warnings)
    again = (run / "weights.safetensors").read_bytes()
    assert again == (trained.run / "weights.safetensors").read_bytes()


def test_only_the_same_run_is_resumed(archive, run, tmp_path):
    with pytest.raises(UsageError, match=r"another train\.steps"):
        api.train(archive, run, steps=61, settings={"train.save_every": 20}, resume=True, **FAST)
    assert api.train(archive, run, resume=True).warnings == ("the training was complete already",)
    with pytest.raises(UsageError, match="no recipe"):
        api.train(archive, tmp_path / "new", resume=True)
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"phase": "learning", "complete": False}))
    less = tmp_path / "less"
    save(less / "a.nii.gz", scan(0)[0])
    with pytest.raises(InputError, match="2 of the 3 scans of this run are gone"):
        api.train(less, run, resume=True)


def test_nothing_is_overwritten_unasked(archive, run, tmp_path, quick):
    with pytest.raises(OutputError, match="exists already"):
        api.train(archive, run, steps=1, **FAST)
    with pytest.raises(OutputError, match="inside the input"):
        api.train(archive, archive / "run", steps=1, **FAST)
    done = api.train(archive, run, steps=1, overwrite=True, **FAST)
    assert {p.name for p in run.glob("checkpoint-*")} == {"checkpoint-1"}
    assert done.record["wanted"]["recipe"]["train"]["steps"] == 1


def test_a_dry_run_writes_nothing(archive, tmp_path):
    done = api.train(archive, tmp_path / "run", dry_run=True, **FAST)
    assert done.line.startswith("would learn filter2noise_scalar, 6 parameters")
    assert done.record["seen"]["learnt"] == 2
    assert not (tmp_path / "run").exists()


def test_nothing_to_learn_from_is_refused(tmp_path):
    save(tmp_path / "data" / "flat.nii.gz", np.ones((16, 16, 8), np.float32))
    with pytest.raises(InputError, match=r"none of 1 scans .* every voxel is 1"):
        api.train(tmp_path / "data", tmp_path / "run", steps=1, **FAST)
    assert not (tmp_path / "run").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no scan was found"):
        api.train(tmp_path / "empty", tmp_path / "run", steps=1, **FAST)


def test_one_scan_is_enough(tmp_path):
    save(tmp_path / "data" / "a.nii.gz", scan(0)[0])
    done = api.train(tmp_path / "data", tmp_path / "run", steps=2, **FAST)
    assert done.record["seen"]["tested"] == 0
    assert any("no held-out loss" in w for w in done.warnings)


WORDS = {
    "learns nothing": ({"recipe": "collaborative"}, "learns nothing"),
    "another task": ({"recipe": "segment/unet"}, "cannot be trained"),
    "no such recipe": ({"recipe": "denoise/filter2nois"}, "did you mean 'filter2noise'"),
    "no steps": ({"recipe": "filter2noise", "steps": 0}, r"train\.steps is 0"),
    "all held out": ({"recipe": "filter2noise", "settings": {"train.held_out": 1.0}}, "held_out"),
}


@pytest.mark.parametrize("case", WORDS)
def test_words_are_checked_before_anything_is_read(tmp_path, case):
    words, message = WORDS[case]
    with pytest.raises(UsageError, match=message):
        api.train(tmp_path / "nowhere", tmp_path / "run", **words)


def damage(run, kind):
    path = run / "weights.safetensors"
    record = json.loads((run / "run.json").read_text())
    tensors = weights.read(path)
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-2])
    elif kind == "file gone":
        path.unlink()
    elif kind == "folder gone":
        shutil.rmtree(run)
    elif kind == "no record":
        (run / "run.json").unlink()
    elif kind == "damaged record":
        (run / "run.json").write_text('{"complete": true')
    elif kind == "odd record":
        (run / "run.json").write_text('{"complete": true, "recipe": {"task": "../x"}}')
    elif kind == "another recipe":
        record["recipe"]["method"]["n_stages"] = 3
        (run / "run.json").write_text(json.dumps(record))
    else:
        key = next(iter(tensors))
        changed = {
            "key": {"other" if k == key else k: v for k, v in tensors.items()},
            "shape": tensors | {key: torch.zeros(7)},
            "type": tensors | {key: tensors[key].double()},
            "not finite": tensors | {key: torch.full_like(tensors[key], float("nan"))},
        }[kind]
        record["weights"]["sha256"] = weights.write(path, changed, overwrite=True)
        (run / "run.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    "kind",
    [
        "cut",
        "file gone",
        "folder gone",
        "no record",
        "damaged record",
        "odd record",
        "another recipe",
        "key",
        "shape",
        "type",
        "not finite",
    ],
)
def test_weights_that_are_not_whole_are_refused(run, kind):
    damage(run, kind)
    with pytest.raises(WeightsError):
        api.denoise(scan(0)[0], weights=run)


def test_weights_of_other_scans_are_refused(run):
    noisy, _ = scan(0, Gaussian)
    with pytest.raises(WeightsError, match="know rician noise, that of this scan is gaussian"):
        api.denoise(noisy, weights=run, noise="gaussian")
    hu = noisy * 10 - 1000
    with pytest.raises(WeightsError, match="this is CT"):
        api.denoise(dataclasses.replace(from_array(hu, None), modality="CT"), weights=run)
    record = json.loads((run / "run.json").read_text())
    record["seen"]["axes"] = 3
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(WeightsError, match="look along 3 axes, this scan only has 2"):
        api.denoise(scan(0)[0][:, :, 6], weights=run, noise="rician")


def test_a_scan_outside_the_range_is_told(trained):
    truth = head((40, 40, 12))
    noisy = Rician(0.3).sample(truth, torch.Generator().manual_seed(0)).numpy()
    done = api.denoise(noisy, weights=trained.run, noise="rician", dry_run=True)
    assert any("the weights know 0.0" in w for w in done.record["warnings"])


def test_weights_that_harm_are_not_used(run):
    tensors = weights.read(run / "weights.safetensors")
    record = json.loads((run / "run.json").read_text())
    record["weights"]["sha256"] = weights.write(
        run / "weights.safetensors", {k: v + 9 for k, v in tensors.items()}, overwrite=True
    )
    (run / "run.json").write_text(json.dumps(record))
    truth = head((24, 24, 8))
    noisy = Rician(0.02).sample(truth, torch.Generator().manual_seed(0)).numpy()
    done = api.denoise(noisy, weights=run, noise="rician")
    assert np.array_equal(done.image, noisy)
    assert any("left as it is: no gain" in w for w in done.record["warnings"])


def test_the_default_is_named_where_it_does_better(run):
    record = json.loads((run / "run.json").read_text())
    compared = record["compared"]
    assert compared["scans"] == 1
    assert 0 < compared["default_error"] < compared["error"] < 1
    said = api.denoise(scan(0)[0], weights=run, dry_run=True).record["warnings"]
    assert any(w.startswith("the default method is expected to do better") for w in said)
    record["compared"]["error"] = 0.01
    (run / "run.json").write_text(json.dumps(record))
    said = api.denoise(scan(0)[0], weights=run, dry_run=True).record["warnings"]
    assert not any("the default method" in w for w in said)


def test_weights_bring_their_own_method(trained):
    with pytest.raises(UsageError, match="brings its own method"):
        api.denoise(scan(0)[0], weights=trained.run, method="filter2noise")


def test_patients_are_not_parted():
    def look(k, group):
        return Look(
            id=f"{k:012x}",
            group=group,
            modality="",
            shape=(8, 8),
            spacing=(1.0, 1.0),
            volumes=1,
            correlated=False,
            correlation=(),
            independent_slices=False,
            law="rician",
            unsure=False,
            sigma=1.0,
            level=0.1,
            brightest=1.0,
            n_bytes=256,
        )

    scans = [(None, look(k, f"{(k % 10) * 7 % 10:012x}")) for k in range(40)]
    split = parted(scans, 0.2)
    learn, test = ({s.group for _, s in part} for part in (split.learn, split.test))
    assert not learn & test
    assert len(test) == 2
    assert facts_of(parted(scans[::-1], 0.2).looks) == facts_of(split.looks)
    assert {s.group for _, s in parted(scans[::-1], 0.2).test} == test
    assert not parted(scans, 0.0).test
    assert not parted(scans[:1], 0.5).test


def started(archive, run, steps, lines):
    """A training in a process of its own that has noted some steps."""
    code = "from importlib import import_module; import_module('medssl.cli').main()"
    words = ["train", "--recipe", "filter2noise-scalar", "--data", archive, "-o", run.path]
    words += ["--steps", steps, "--threads", 1, "-q", "--resume", "--set", "train.save_every=7"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while len(journal.read(run.metrics)) < lines and time.monotonic() < deadline:
        time.sleep(0.01)
    return process


def test_sigterm_saves_and_leaves(archive, tmp_path):
    run = RunFolder(tmp_path / "run")
    process = started(archive, run, 100000, 1)
    process.terminate()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 143
    assert err.splitlines()[-1].startswith("error: stopped after step ")
    step = run.steps()[-1]
    assert run.load(step)[1]["step"] == step
    assert not list(run.path.glob(".*partial*"))


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(archive, tmp_path):
    words = {"steps": 120, "settings": {"train.save_every": 7}} | FAST
    whole = api.train(archive, tmp_path / "whole", **words).run
    run = RunFolder(tmp_path / "run")
    for lines in (1, 23, 64, 90):
        process = started(archive, run, 120, lines)
        process.kill()
        process.communicate()
    (run.path / ".checkpoint-1.partial-0").mkdir()
    api.train(archive, run.path, resume=True, **words)
    for file in ("weights.safetensors", "metrics.jsonl"):
        assert (run.path / file).read_bytes() == (whole / file).read_bytes(), file
    assert not list(run.path.glob(".*partial*"))
