"""`medssl train` and `denoise --weights` as a user types them."""

import json

import numpy as np
import pytest
import torch

from medssl.data.simulate import phantom, simulate_multicoil
from medssl.physics.noise import Rician
from medssl.physics.phantom import head


@pytest.fixture
def data(tmp_path, nifti):
    folder = tmp_path / "data"
    folder.mkdir()
    for k in range(3):
        noisy = Rician(0.1).sample(head((32, 28, 8)), torch.Generator().manual_seed(k))
        nifti(100 * noisy.numpy(), f"scan{k}.nii.gz").rename(folder / f"scan{k}.nii.gz")
    return folder


def test_train_then_denoise(medssl, tmp_path, data):
    run = tmp_path / "run"
    words = ["train", "--recipe", "denoise/filter2noise-scalar", "--data", data, "-o", run]
    (data / "bad.npy").write_bytes(b"\x93NUMPY")
    code, out, err = medssl(*words, "--steps", 3)
    assert code == 0, err
    assert out.splitlines() == [str(run)]
    assert "warning: passed over: bad.npy: " in err
    assert "3 steps on 2 scans, 1 kept for testing, 1 passed over, held-out loss" in err
    assert "learn 100 %" in err

    code, out, _ = medssl("info", run)
    assert code == 0
    assert "learnt from  2 scans, 1 more for testing" in out
    assert json.loads(medssl("info", run, "--json")[1])["run"]["complete"] is True

    scan = data / "scan0.nii.gz"
    code, _, err = medssl("denoise", scan, "--weights", run)
    assert code == 0, err
    assert "(weights of 2 other scans)" in err
    assert not any(line.startswith("fit") for line in err.splitlines())
    record = json.loads((data / "scan0_denoised.json").read_text())
    assert record["medssl"]["recipe"]["weights"]["seen"]["laws"] == {"rician": 3}

    assert medssl(*words, "--steps", 3)[0] == 6
    assert medssl(*words, "--steps", 4, "--resume")[0] == 2
    assert medssl(*words, "--steps", 3, "--resume", "-q")[0] == 0


def test_dry_run_and_json(medssl, tmp_path, data):
    words = ["--recipe", "filter2noise", "--data", data, "-o", tmp_path / "run", "--dry-run"]
    code, out, err = medssl("train", *words, "--json")
    assert code == 0, err
    assert json.loads(out)["seen"]["laws"] == {"rician": 3}
    assert "would learn filter2noise, " in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["missing", "cut", "law"])
def test_wrong_weights_leave_nothing(medssl, tmp_path, data, nifti, kind):
    run = tmp_path / "run"
    words = ["train", "--recipe", "filter2noise-scalar", "--data", data, "-o", run, "-q"]
    words += ["--set", "train.held_out=0"]
    assert kind == "missing" or medssl(*words, "--steps", 1)[0] == 0
    rng = np.random.default_rng(0)
    signed = 100 * head((32, 28, 8)).numpy() + rng.normal(0, 8, (32, 28, 8)) - 30
    scan = nifti(signed.astype(np.float32), "signed.nii.gz")
    if kind == "cut":
        path = run / "weights.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
    before = sorted(tmp_path.rglob("*"))
    code, out, err = medssl("denoise", scan, "--weights", run, "-q", "--json")
    assert code == 4
    assert json.loads(out)["error"]["kind"] == "weights"
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    if kind == "law":
        assert "know rician noise, that of this scan is gaussian" in err
    assert sorted(tmp_path.rglob("*")) == before


def test_train_then_recon(medssl, tmp_path):
    made = simulate_multicoil(phantom((40, 40), 1), 1, n_coils=4)
    scan = made.measured(0.01, 1).data.transpose(1, 2, 0)[None]
    data = tmp_path / "data"
    data.mkdir()
    (data / "scan.hdr").write_text(f"# Dimensions\n{' '.join(map(str, scan.shape))}\n")
    (data / "scan.cfl").write_bytes(scan.tobytes("F"))
    run, image = tmp_path / "run", tmp_path / "image.nii.gz"
    words = ["train", "--recipe", "recon/noise2recon", "--data", data, "-o", run, "--steps", 2]
    small = ["method.net.stages=1", "raw.simulated=2", "raw.size=32", "raw.acceleration=[2.0, 3.0]"]
    words += [word for one in small for word in ("--set", one)]
    code, out, err = medssl(*words, "--set", "raw.center=8")
    assert code == 0, err
    assert out.splitlines() == [str(run)]
    assert "2 steps on 1 scans, 2 generated" in err
    code, out, _ = medssl("info", run)
    assert code == 0
    assert "2 generated, 0 of magnitude images, 3 with a truth" in out
    assert "R 2 to 3" in out
    code, _, err = medssl("recon", data / "scan.cfl", "-o", image, "--weights", run)
    assert code == 0, err
    assert image.exists()
    record = json.loads((tmp_path / "image.json").read_text())
    assert record["medssl"]["method"] == "noise2recon"
    code, _, err = medssl("denoise", image, "--weights", run, "-q")
    assert code == 4
    assert "the training is of a recon recipe" in err
    words = ["recon", data / "scan.cfl", "-o", tmp_path / "no.nii", "--method", "noise2recon"]
    code, _, err = medssl(*words)
    assert code == 2
    assert "has to be trained first" in err
    words = ["train", "--recipe", "recon/noise2recon", "--data", data, "-o", tmp_path / "no"]
    assert medssl(*words, "--noise", "rician")[0] == 2
