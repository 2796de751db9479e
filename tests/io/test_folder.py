"""What counts as a scan below a folder."""

import json

import numpy as np
import pytest

from medssl.core.errors import InputError
from medssl.io.example_series import ct_series
from medssl.io.folder import find_scans


def picture(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.random.default_rng(seed).normal(size=(8, 8)).astype(np.float32))


def test_every_kind_is_found_once(tmp_path, nifti, brain):
    nifti(brain)
    (tmp_path / "copy.nii.gz").write_bytes((tmp_path / "scan.nii.gz").read_bytes())
    picture(tmp_path / "a" / "one.npy", 0)
    picture(tmp_path / "a" / ".hidden.npy", 1)
    ct_series(tmp_path / "a" / "ct", np.zeros((8, 8, 3), np.float32), (1, 1, 3))
    ct_series(tmp_path / "a" / "ct" / "more", np.ones((8, 9, 3), np.float32), (1, 1, 3))
    (tmp_path / "notes.txt").write_text("no scan")
    (tmp_path / "cut.nii.gz").write_bytes((tmp_path / "scan.nii.gz").read_bytes()[:99])
    (tmp_path / "loop").symlink_to(tmp_path)
    found = find_scans(tmp_path)
    assert [(f.path.name, f.series is not None) for f in found] == [
        ("copy.nii.gz", False),
        ("cut.nii.gz", False),
        ("one.npy", False),
        ("ct", True),
        ("ct", True),
    ]
    assert len({f.id for f in found}) == 5


def test_outputs_of_medssl_are_no_scans(tmp_path):
    picture(tmp_path / "scan.npy", 0)
    picture(tmp_path / "scan_denoised.npy", 1)
    record = {"GeneratedBy": [{"Name": "medssl"}], "outputs": ["scan_denoised.npy"]}
    (tmp_path / "scan_denoised.json").write_text(json.dumps(record))
    (tmp_path / "other.json").write_text('["not", "ours"]')
    assert [f.path.name for f in find_scans(tmp_path)] == ["scan.npy"]


@pytest.mark.parametrize("above", ["", "study/site"])
def test_the_first_folders_that_differ_are_patients(tmp_path, above):
    for k, name in enumerate(["p1/a.npy", "p1/later/b.npy", "p2/c.npy"]):
        picture(tmp_path / above / name, k)
    assert [f.group for f in find_scans(tmp_path)] == ["p1", "p1", "p2"]


def test_a_damaged_series_is_one_refusal(tmp_path):
    ct_series(tmp_path / "ct", np.zeros((8, 8, 3), np.float32), (1, 1, 3))
    next((tmp_path / "ct").iterdir()).unlink()
    broken = min((tmp_path / "ct").iterdir())
    broken.write_bytes(broken.read_bytes()[:-40])
    (found,) = find_scans(tmp_path)
    assert found.refusal is not None
    assert found.refusal.code == 3


def test_nothing_there_is_said(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        find_scans(tmp_path / "nowhere")
    assert find_scans(tmp_path) == []
