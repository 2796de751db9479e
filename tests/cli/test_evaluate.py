"""`medssl evaluate` as a user calls it."""

import json

import numpy as np
import pytest


@pytest.fixture
def pair(nifti, tmp_path):
    truth = np.zeros((8, 8, 4), np.uint8)
    truth[2:6, 2:6, 1:3] = 1
    return nifti(np.roll(truth, 1, 0), name="p.nii.gz"), nifti(truth, name="r.nii.gz")


def test_segmentation(medssl, pair, tmp_path):
    code, out, err = medssl("evaluate", *pair, "--task", "seg", "-q")
    assert code == 0, err
    assert out.splitlines()[0].split() == ["label", "number", "mean", "[95", "%]", "cases"]
    assert out.splitlines()[1].split() == ["1", "Dice", "0.750", "1"]
    assert "1 cases of 1 patients" in err
    target = tmp_path / "metrics.json"
    code, out, _ = medssl("evaluate", *pair, "--json", "-o", target)
    assert code == 0
    assert json.loads(out)["labels"]["1"]["dice"]["value"] == 0.75
    assert json.loads(target.read_text()) == json.loads(out)
    assert medssl("evaluate", *pair, "-o", target)[0] == 6
    assert medssl("evaluate", *pair, "-o", target, "--overwrite", "--empty", "one")[0] == 0


def test_words_that_cannot_be(medssl, pair, tmp_path):
    assert medssl("evaluate", pair[0])[0] == 2
    assert medssl("evaluate", *pair, "--empty", "zero")[0] == 2
    code, _, err = medssl("evaluate", *pair, "--tolerance", "-1")
    assert code == 2
    assert len(err.splitlines()) == 1
    target = tmp_path / "metrics.json"
    assert medssl("evaluate", pair[0], tmp_path / "none.nii", "-o", target)[0] == 3
    assert not target.exists()


@pytest.mark.data
def test_nine_cases(medssl, data_folder):
    folder = data_folder / "prostate" / "detection"
    code, out, _ = medssl("evaluate", "--task", "detect", folder, "--json")
    assert code == 0
    record = json.loads(out)
    assert record["auroc"] == pytest.approx(0.8888888889, abs=1e-9)
    assert record["ap"] == pytest.approx(0.8095238095, abs=1e-9)
