"""`medssl recon` from the command line: a file of raw data in, an image and its record out."""

import json

import nibabel as nib
import numpy as np
import pytest

from medssl.physics.sampling import poisson_disc

QUICK = ("--threads", "1", "--set", "method.iterations=10", "-q")


@pytest.fixture
def cfl(coils, tmp_path):
    """An undersampled scan as BART lays it out, zeros where nothing was measured."""
    kspace, image, _ = coils((56, 48), n_coils=6, sigma=0.004)
    data = (kspace.numpy() * poisson_disc((56, 48), 3, (18, 18))).transpose(1, 2, 0)[None]
    data.astype(np.complex64).ravel(order="F").tofile(tmp_path / "scan.cfl")
    (tmp_path / "scan.hdr").write_text("# Dimensions\n1 56 48 6\n")
    return tmp_path / "scan.cfl", image.abs().numpy()


def test_the_default_command(medssl, cfl):
    path, true = cfl
    code, out, err = medssl("recon", path, *QUICK)
    assert code == 0, err
    made = [path.with_name(f"scan_recon{end}") for end in (".nii.gz", ".preview.png", ".json")]
    assert out.split() == [str(p) for p in made]
    assert "withheld k-space" in err
    assert "R 3" in err
    image = nib.load(made[0])
    found = image.get_fdata()
    assert found.shape == true.shape
    assert np.abs(found - true).mean() < 0.1 * true.mean()
    assert image.header["sform_code"] == image.header["qform_code"] == 0
    record = json.loads(made[2].read_text())
    assert record["medssl"]["complete"]
    assert record["medssl"]["qc"]["acceleration"] == pytest.approx(3, rel=0.02)
    assert len(record["medssl"]["plan"]["lambda"]["tried"]) >= 6
    code, _, err = medssl("recon", path, *QUICK)
    assert code == 6
    assert "--overwrite" in err


def test_an_array_keeps_its_order_and_json_is_one_object(medssl, cfl):
    path, true = cfl
    out = path.with_name("x.npy")
    code, text, _ = medssl("recon", path, "-o", out, "--lambda", "0.01", "--json", *QUICK)
    assert code == 0
    assert json.loads(text)["medssl"]["recipe"]["method"]["lambda_"] == 0.01
    assert np.load(out).shape == true.shape


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--method", "l2"], 2, "l2"),
        (["--lambda", "-1"], 2, "--lambda"),
        (["--maps", "none.npy"], 3, "none.npy"),
        (["--to", "dicom"], 2, "--like"),
        (["-o", "x.jpg2"], 2, "suffix"),
        (["--frame", "3"], 2, "frame"),
    ],
)
def test_one_line_and_no_file_where_words_are_wrong(medssl, cfl, words, code, text):
    path, _ = cfl
    before = sorted(path.parent.iterdir())
    found, out, err = medssl("recon", path, *words, "-q")
    assert (found, out) == (code, "")
    lines = [line for line in err.splitlines() if line]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert text in lines[0]
    assert sorted(path.parent.iterdir()) == before


def test_pictures_hold_no_raw_data(medssl, tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.float32), np.eye(4)), tmp_path / "a.nii.gz")
    code, _, err = medssl("recon", tmp_path / "a.nii.gz", "-q")
    assert code == 3
    assert "no raw k-space" in err
    assert "medssl denoise" in err
