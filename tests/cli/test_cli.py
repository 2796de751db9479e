"""The command as a user types it, judged by what it prints and leaves."""

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest


def test_help_loads_nothing_heavy():
    code = (
        "import sys\n"
        "sys.argv = ['medssl', '--help']\n"
        "from importlib import import_module\n"
        "try:\n    import_module('medssl.cli').main()\n"
        "except SystemExit as leave:\n    assert leave.code == 0\n"
        "heavy = {'torch', 'monai', 'sigpy', 'nibabel', 'pydicom', 'numpy', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "denoise" in done.stdout


def test_methods_lists_without_torch(medssl):
    code, out, _ = medssl("methods", "--json")
    assert code == 0
    rows = json.loads(out)
    assert {"collaborative", "filter2noise"} <= {row["name"] for row in rows}
    assert all(row["title"] and row["reference"] for row in rows)


def test_denoise_without_a_word(medssl, tmp_path, nifti, brain):
    source = nifti(np.round(brain).astype(np.int16))
    code, out, err = medssl("denoise", source)
    assert code == 0, err
    names = {"scan_denoised.nii.gz", "scan_denoised.json", "scan_denoised.preview.png"}
    assert {p.name for p in tmp_path.iterdir()} == names | {"scan.nii.gz"}
    assert Path(out.splitlines()[0]).name == "scan_denoised.nii.gz"
    assert "collaborative" in err
    assert "rician noise" in err
    before, after = nib.load(source), nib.load(tmp_path / "scan_denoised.nii.gz")
    assert after.get_data_dtype() == np.int16
    assert np.array_equal(before.affine, after.affine)
    record = json.loads((tmp_path / "scan_denoised.json").read_text())
    assert record["medssl"]["complete"] is True
    assert record["medssl"]["noise"]["sigma"] == pytest.approx(6, rel=0.15)
    assert str(tmp_path) not in json.dumps(record)
    assert (tmp_path / "scan_denoised.preview.png").stat().st_size < 400_000


def test_nothing_is_written_over(medssl, tmp_path, nifti, brain):
    source = nifti(brain)
    (tmp_path / "scan_denoised.json").write_text("mine")
    code, _, err = medssl("denoise", source)
    assert code == 6
    assert err.splitlines()[-1].startswith("error: scan_denoised.json: exists already")
    assert (tmp_path / "scan_denoised.json").read_text() == "mine"
    assert medssl("denoise", source, "--overwrite", "-q")[0] == 0
    assert medssl("denoise", source, "-o", source, "--overwrite")[0] == 6


def test_strength_0_gives_the_bytes_back(medssl, tmp_path, nifti, brain):
    source = nifti(np.round(brain).astype(np.int16), "scan.nii")
    assert medssl("denoise", source, "--strength", 0, "--no-preview")[0] == 0
    assert (tmp_path / "scan_denoised.nii").read_bytes() == source.read_bytes()


def test_extra_outputs_and_json(medssl, tmp_path, nifti, brain):
    source = nifti(brain)
    mask = np.zeros(brain.shape, np.uint8)
    mask[10:30] = 1
    nifti(mask, "mask.nii")
    code, out, _ = medssl(
        "denoise",
        source,
        tmp_path / "out.nii",
        "--residual",
        "--noise-map",
        "--json",
        "--mask",
        tmp_path / "mask.nii",
        "--sigma",
        6,
        "--noise",
        "rician",
        "--threads",
        1,
    )
    assert code == 0
    record = json.loads(out)
    assert record["outputs"][0] == "out.nii"
    assert record["medssl"]["noise"]["sigma"] == 6
    load = {
        n: nib.load(tmp_path / n).get_fdata()
        for n in ("out.nii", "out_residual.nii.gz", "out_noise.nii.gz")
    }
    assert np.allclose(load["out.nii"] + load["out_residual.nii.gz"], brain, atol=1e-4)
    assert np.array_equal(load["out.nii"][:10], brain[:10])
    assert not np.array_equal(load["out.nii"][10:30], brain[10:30])
    assert 3 < load["out_noise.nii.gz"][20, 18, 12] < 7


def test_maps_are_saved_used_again_and_edited_in_a_region(medssl, tmp_path, nifti, brain):
    source = nifti(brain)
    region = np.zeros(brain.shape, np.uint8)
    region[10:14, 10:14, 10:12] = 1
    words = ["--method", "filter2noise-scalar", "--set", "train.steps=3", "--sigma", 6]
    words += ["--noise", "gaussian", "--threads", 1, "--no-preview", "-q"]
    code, out, err = medssl("denoise", source, tmp_path / "a.nii", *words, "--maps")
    assert code == 0, err
    assert [Path(line).name for line in out.splitlines()] == [
        "a.nii",
        "a_sigma_maps.nii.gz",
        "a.json",
    ]
    maps = tmp_path / "a_sigma_maps.nii.gz"
    again = [*words, "--sigma-maps", maps]
    assert medssl("denoise", source, tmp_path / "b.nii", *again)[0] == 0
    assert (tmp_path / "b.nii").read_bytes() == (tmp_path / "a.nii").read_bytes()
    edits = ["--roi", nifti(region, "region.nii"), "--strength-in-roi", 0]
    edits += ["--roi", "20:24,20:24,5:8", "--strength-in-roi", 3]
    assert medssl("denoise", source, tmp_path / "c.nii", *again, *edits)[0] == 0
    plain, edited = (nib.load(tmp_path / n).get_fdata() for n in ("b.nii", "c.nii"))
    assert np.array_equal(edited[region > 0], np.float32(brain)[region > 0])
    changed = np.argwhere((plain != edited) & (region == 0))
    assert len(changed)
    assert (changed[:, 2] >= 5).all()
    assert (changed[:, 2] < 8).all()
    record = json.loads((tmp_path / "c.json").read_text())["medssl"]
    assert record["recipe"]["regions"] == [
        {"strength": 0.0, "voxels": 32},
        {"strength": 3.0, "voxels": 48},
    ]
    assert "outside the regions of interest" in record["qc"]["regions"]
    assert "region.nii" not in json.dumps(record)
    over = medssl("denoise", source, tmp_path / "a.nii", *again, "--maps", "--overwrite")
    assert over[0] == 6
    assert "a_sigma_maps.nii.gz" in over[2]


def test_dry_run_writes_nothing(medssl, tmp_path, nifti, brain):
    code, out, err = medssl("denoise", nifti(brain), "--dry-run", "--json")
    assert code == 0
    assert json.loads(out)["medssl"]["plan"]["tiles"] == 1
    assert "collaborative" in err
    assert [p.name for p in tmp_path.iterdir()] == ["scan.nii.gz"]


def test_info_tells_what_a_scan_is(medssl, nifti, brain):
    code, out, _ = medssl("info", nifti(brain), "--json")
    assert code == 0
    facts = json.loads(out)["image"]
    assert facts["shape"] == [40, 36, 24]
    assert facts["orientation"] == "LAS"
    assert "40 x 36 x 24" in medssl("info", nifti(brain))[1]


USAGE = {
    "negative sigma": (["--sigma", "-3"], 2),
    "sigma in words": (["--sigma", "much"], 2),
    "sigma of another unit": (["--sigma", "5000"], 2),
    "unknown method": (["--method", "colaborative"], 2),
    "unknown key": (["--set", "method.hart=2"], 2),
    "strength 2": (["--strength", "2"], 2),
    "no such device": (["--device", "cuda:99"], 2),
    "odd device": (["--device", "toaster"], 2),
    "one byte of memory": (["--memory", "1B"], 5),
    "no such option": (["--sigmas", "3"], 2),
    "maps of no method": (["--sigma-maps", "nowhere.nii.gz"], 2),
    "maps of a method that has none": (["--save-sigma-maps", "--method", "collaborative"], 2),
    "no such maps": (["--sigma-maps", "none.nii", "--method", "filter2noise"], 3),
    "a region without strength": (["--roi", "0:4,0:4,0:4"], 2),
    "a strength of no region": (["--strength-in-roi", "0.5"], 2),
    "a region outside": (["--roi", "0:4,0:99", "--strength-in-roi", "0.5"], 2),
    "no such region": (["--roi", "nowhere.nii", "--strength-in-roi", "0.5"], 3),
    "no such mask": (["--mask", "nowhere.nii"], 3),
    "no such suffix": (["-o", "out.xyz"], 2),
    "no such folder": (["-o", "nowhere/out.nii"], 6),
    "series of a NIfTI": (["--series", "3"], 2),
}


@pytest.mark.parametrize("case", USAGE)
def test_wrong_words_get_one_line(medssl, tmp_path, nifti, brain, case):
    words, expected = USAGE[case]
    source = nifti(brain)
    code, out, err = medssl("denoise", source, *words, "-q")
    assert code == expected, err
    assert out == ""
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Traceback" not in err
    assert [p.name for p in tmp_path.iterdir()] == ["scan.nii.gz"]


def test_misspelt_words_are_guessed(medssl, nifti, brain):
    assert "did you mean 'denoise'" in medssl("denois", "x")[2]
    assert (
        "did you mean 'collaborative'"
        in medssl("denoise", nifti(brain), "--method", "colaborative")[2]
    )


def test_errors_as_json(medssl, tmp_path):
    code, out, err = medssl("denoise", tmp_path / "nowhere.nii", "--json")
    assert code == 3
    error = json.loads(out)["error"]
    assert (error["code"], error["kind"], error["file"]) == (3, "input", "nowhere.nii")
    assert error["fact"]
    assert error["remedy"]
    assert err.startswith("error: nowhere.nii: does not exist")


def test_debug_shows_the_traceback(medssl, tmp_path):
    assert "Traceback" in medssl("--debug", "denoise", tmp_path / "nowhere.nii")[2]
    assert "Traceback" in medssl("denoise", tmp_path / "nowhere.nii", "--debug")[2]


def test_doctor_passes_here(medssl, tmp_path):
    code, out, err = medssl("doctor")
    assert code == 0, out + err
    assert out.count("ok") >= 8
    assert list(tmp_path.iterdir()) == []
