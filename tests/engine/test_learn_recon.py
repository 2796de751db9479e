"""Learning to reconstruct: from raw scans of all kinds, from pictures, and from nothing."""

import json

import numpy as np
import pytest

from medssl import api
from medssl.core.errors import InputError, InterruptedRunError, UsageError, WeightsError
from medssl.data.simulate import phantom, simulate_multicoil
from medssl.io import journal
from medssl.physics.sampling import poisson_disc

SIDE = 48
SMALL = {
    "raw.simulated": 0,
    "raw.acceleration": [2.0, 3.0],
    "raw.center": 12,
    "method.net.stages": 2,
    "method.net.denoiser": {"depth": 2, "width": 8, "zero_last": True},
    "train.save_every": 2,
}


def scan(k, pattern=None, sigma=0.01):
    """Raw data of a generated picture, as (coil, H, W)."""
    made = simulate_multicoil(phantom((SIDE, SIDE), k), k, n_coils=4)
    data = made.measured(sigma, k).data
    return data if pattern is None else data * pattern


def save(path, kspace):
    """BART's pair of files, (1, y, x, coil)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = kspace.transpose(1, 2, 0)[None].astype(np.complex64)
    path.with_suffix(".hdr").write_text(f"# Dimensions\n{' '.join(map(str, array.shape))}\n")
    path.with_suffix(".cfl").write_bytes(array.tobytes("F"))
    return path.with_suffix(".cfl")


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    """Three fully sampled scans, two undersampled ones, and a damaged file."""
    folder = tmp_path_factory.mktemp("SECRET_HOSPITAL")
    for k in range(3):
        save(folder / f"SECRET_full_{k}" / "scan", scan(k))
    for k in range(3, 5):
        pattern = poisson_disc((SIDE, SIDE), 2.5, (14, 14), k)
        save(folder / f"SECRET_fast_{k}" / "scan", scan(k, pattern))
    broken = save(folder / "SECRET_broken" / "scan", scan(9))
    broken.write_bytes(broken.read_bytes()[:-8])
    return folder


def train(data, run, recipe="noise2recon", steps=4, **words):
    settings = SMALL | words.pop("settings", {})
    return api.train(
        data, run, f"recon/{recipe}", steps=steps, settings=settings, threads=1, **words
    )


@pytest.fixture(scope="module")
def trained(hospital, tmp_path_factory):
    return train(hospital, tmp_path_factory.mktemp("runs") / "run")


def test_what_a_run_holds(trained):
    record = json.loads((trained.run / "run.json").read_text())
    assert record["complete"] is True
    assert record["seen"]["learnt"] + record["seen"]["tested"] == 5
    assert record["seen"]["tested"] == 1
    assert record["failed"] == 1
    assert record["seen"]["acceleration"][0] == pytest.approx(2.0)
    assert 0.1 < record["seen"]["sigma"][1] < 0.2
    looks = journal.read(trained.run / "scans.jsonl")
    assert sum(look["full"] for look in looks) == 3
    assert {look["kind"] for look in looks} == {"raw"}
    terms = [line["terms"] for line in journal.read(trained.run / "metrics.jsonl")]
    assert all("consistency" in t for t in terms)
    assert {"supervised", "ssdu"} == {k for t in terms for k in t} - {"consistency"}
    for path in trained.run.rglob("*"):
        assert path.is_dir() or b"SECRET" not in path.read_bytes()


def test_the_weights_reconstruct_scans(trained, hospital, tmp_path):
    path = hospital / "SECRET_fast_3" / "scan.cfl"
    done = api.recon(path, tmp_path / "image.nii.gz", weights=trained.run, threads=1)
    assert done.record["medssl"]["recipe"]["weights"]["sha256"]
    assert done.record["medssl"]["recipe"]["method"]["name"] == "noise2recon"
    assert not any("outside" in w for w in done.record["warnings"])
    far = poisson_disc((SIDE, SIDE), 6, (10, 10), 1)
    fast = save(tmp_path / "far", scan(1, far, sigma=0.25))
    told = api.recon(fast, tmp_path / "far.nii.gz", weights=trained.run, threads=1)
    outside = [w for w in told.record["warnings"] if w.startswith("outside of what")]
    assert len(outside) == 1
    assert "R is 6" in outside[0]
    assert "sigma is" in outside[0]


def test_weights_of_another_task_are_refused(trained, hospital, tmp_path):
    with pytest.raises(WeightsError, match="training is of a recon recipe"):
        api.denoise(np.ones((32, 32), np.float32), weights=trained.run)
    record = json.loads((trained.run / "run.json").read_text())
    other = tmp_path / "run"
    other.mkdir()
    record["recipe"]["task"] = "denoise"
    (other / "run.json").write_text(json.dumps(record))
    path = hospital / "SECRET_fast_3" / "scan.cfl"
    with pytest.raises(WeightsError, match="training is of a denoise recipe"):
        api.recon(path, tmp_path / "out.nii.gz", weights=other)
    with pytest.raises(UsageError, match="brings its own method"):
        api.recon(path, tmp_path / "out.nii.gz", weights=trained.run, method="tv")
    with pytest.raises(UsageError, match="has to be trained first"):
        api.recon(path, tmp_path / "out.nii.gz", method="noise2recon")
    assert not (tmp_path / "out.nii.gz").exists()


def test_a_stopped_run_goes_on_bit_for_bit(hospital, tmp_path):
    import signal

    def tell(stage, done, total):
        if (stage, done) == ("learn", 3):
            signal.raise_signal(signal.SIGINT)

    whole = train(hospital, tmp_path / "whole", steps=5).run
    run = tmp_path / "run"
    with pytest.raises(InterruptedRunError, match="stopped after step 3 of 5"):
        train(hospital, run, steps=5, progress=tell)
    train(hospital, run, steps=5, resume=True)
    for file in ("weights.safetensors", "metrics.jsonl"):
        assert (run / file).read_bytes() == (whole / file).read_bytes(), file
    with pytest.raises(UsageError, match=r"another raw\.center"):
        train(hospital, run, steps=5, resume=True, settings={"raw.center": 10})


def test_methods_that_need_a_truth_pass_over_or_refuse(hospital, tmp_path):
    done = train(hospital, tmp_path / "run", "supervised", steps=1)
    assert done.record["seen"]["learnt"] + done.record["seen"]["tested"] == 3
    assert sum("has no truth" in str(e) for e in done.refused) == 2
    only = tmp_path / "only"
    save(only / "a", scan(3, poisson_disc((SIDE, SIDE), 2.5, (14, 14), 3)))
    with pytest.raises(InputError, match=r"none of 1 scans .*undersampled"):
        train(only, tmp_path / "none", "supervised")
    with pytest.raises(InputError, match="none of 1 scans has a truth"):
        train(only, tmp_path / "none", "noise2recon_semi")
    assert not (tmp_path / "none").exists()
    assert train(only, tmp_path / "ssdu", "noise2recon_ssdu", steps=1).record["complete"]


def test_scans_stand_for_undersampled_ones_where_their_truth_must_not_be_used(hospital, tmp_path):
    done = train(hospital, tmp_path / "run", "ssdu", steps=1)
    assert done.record["seen"]["labelled"] == 0
    semi = train(
        hospital, tmp_path / "semi", "noise2recon_semi", settings={"raw.simulated": 4}, steps=4
    )
    terms = [set(line["terms"]) for line in journal.read(semi.run / "metrics.jsonl")]
    assert terms == [{"supervised"}, {"consistency"}] * 2


def test_pictures_are_measured_by_simulated_coils(tmp_path, nifti):
    for k in range(3):
        volume = np.stack([phantom((40, 36), 10 * k + j) for j in range(3)], -1)
        place = tmp_path / "data" / f"patient{k}"
        place.mkdir(parents=True)
        nifti(100 * volume).rename(place / "scan.nii.gz")
    (tmp_path / "data" / "hu").mkdir()
    nifti(np.full((40, 40, 2), -5, np.float32)).rename(tmp_path / "data" / "hu" / "ct.nii.gz")
    done = train(tmp_path / "data", tmp_path / "run", steps=2)
    assert done.record["seen"]["pictures"] == 3
    assert any("does not turn images into raw data" in w for w in done.warnings)
    assert [e.fact for e in done.refused] == ["values reach down to -5, magnitudes are 0 or more"]


def test_generated_scans_are_enough(tmp_path):
    (tmp_path / "empty").mkdir()
    words = {"raw.simulated": 2, "raw.size": 32, "raw.center": 8}
    done = train(tmp_path / "empty", tmp_path / "run", steps=2, settings=words)
    assert done.line.startswith("noise2recon, ")
    assert "2 steps on 0 scans, 2 generated" in done.line
    assert any("only the 2 generated scans" in w for w in done.warnings)
    with pytest.raises(InputError, match=r"no scan was found; .*raw\.simulated"):
        train(tmp_path / "empty", tmp_path / "none", settings={"raw.simulated": 0})


WORDS = {
    "acceleration": ({"raw.acceleration": [8.0, 4.0]}, "raw.acceleration is"),
    "misspelt": ({"raw.acelleration": [4.0, 8.0]}, "did you mean 'acceleration'"),
    "consistency alone": (
        {"method.supervised": False, "method.ssdu": False},
        "consistency alone is met by an empty image",
    ),
}


@pytest.mark.parametrize("case", WORDS)
def test_words_are_checked_before_anything_is_read(tmp_path, case):
    settings, message = WORDS[case]
    with pytest.raises(UsageError, match=message):
        train(tmp_path / "nowhere", tmp_path / "run", settings=settings)
