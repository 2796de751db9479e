"""`medssl archive`: what is printed and stored names nobody; wrong calls end in one line."""

import json
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three slices of a patient of a secret name, a NIfTI file, notes and rubbish."""
    root = tmp_path / "SECRETDIR"
    (root / "SECRETNAME").mkdir(parents=True)
    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    dataset.PatientName, dataset.PatientID = "SECRET^Jane", "SECRET4711"
    dataset.SeriesDescription, dataset.InstitutionName = "SECRET t1 thorax", "SECRET hospital"
    for number in range(3):
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = (
            f"1.2.3.777.{number}"
        )
        dataset.save_as(root / "SECRETNAME" / f"SECRET{number}.dcm")
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5), np.int16), np.eye(4)), root / "SECRET.nii")
    (root / "SECRET.txt").write_text("SECRET")
    (root / "SECRETcut.dcm").write_bytes((root / "SECRETNAME" / "SECRET0.dcm").read_bytes()[:600])
    return root


def secrets_in(texts: list[bytes], root: Path) -> list[bytes]:
    words = (b"SECRET", b"777.", b"Jane", str(root.parent).encode())
    return [word for word in words for text in texts if word in text]


def test_index_and_show_name_nobody(folder, tmp_path, medssl):
    index = tmp_path / "index"
    texts = []
    for _ in range(2):
        code, out, err = medssl("archive", "index", folder, "-o", index)
        assert code == 0
        texts += [out.encode(), err.encode()]
    assert "6 files: 0 new, 0 changed, 0 vanished; 2 series, 1 studies, 2 patients" in out
    assert "of no use    1 damaged, 1 unknown" in out
    assert "CT           3" in out
    assert "warning      1 NIfTI file without a patient" in out
    assert "headers 100 %" in texts[1].decode()
    code, out, err = medssl("archive", "show", index)
    assert code == 0
    assert "CT           3 files in 1 series" in out
    assert "train" in out
    texts += [out.encode(), err.encode()]
    texts += [p.read_bytes() for p in index.rglob("*") if p.is_file() and "private" not in p.parts]
    assert secrets_in(texts, folder) == []


def test_json_holds_the_same(folder, tmp_path, medssl):
    index = tmp_path / "index"
    code, out, err = medssl("archive", "index", folder, "-o", index, "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert (found["files"], found["added"], found["series"]) == (6, 6, 2)
    assert found["modalities"] == {"CT": 3, "nifti": 1}
    code, out, _ = medssl("archive", "show", index, "--json")
    shown = json.loads(out)
    assert shown["modalities"]["CT"] == {"files": 3, "series": 1}
    assert sum(split["series"] for split in shown["splits"].values()) == 2
    assert secrets_in([out.encode()], folder) == []


def test_quiet_says_nothing_on_the_way(folder, tmp_path, medssl):
    code, out, err = medssl("archive", "index", folder, "-o", tmp_path / "index", "--quiet")
    assert (code, err) == (0, "")
    assert out.startswith("6 files")


def test_wrong_calls_end_in_one_line(folder, tmp_path, medssl):
    index = tmp_path / "index"
    for code, words, line in (
        (3, ("index", tmp_path / "missing", "-o", index), "cannot be listed"),
        (2, ("index", folder, "-o", index, "--patient-regex", "("), "no expression"),
        (2, ("index", folder, "-o", index, "--threads", 0), "--threads is 0"),
        (6, ("index", folder, "-o", tmp_path / "no" / "where"), "cannot be written"),
        (6, ("index", folder, "-o", folder), "is no index"),
        (2, ("index", folder), "-o"),
        (3, ("show", folder), "is no index"),
        (2, ("shwo", index), "did you mean 'show'"),
    ):
        left, out, err = medssl("archive", *words, *(["-q"] if words[0] == "index" else []))
        assert (left, out) == (code, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert line in err
        assert not index.exists()


def test_one_patient_of_all_studies_is_refused(folder, tmp_path, medssl):
    path = next((folder / "SECRETNAME").iterdir())
    dataset = pydicom.dcmread(path)
    for number in range(25):
        dataset.StudyInstanceUID = f"1.2.3.777.8.{number}"
        (folder / f"SECRET{number}").mkdir()
        dataset.save_as(folder / f"SECRET{number}" / "1.dcm")
    code, out, err = medssl("archive", "index", folder, "-o", tmp_path / "index", "-q")
    assert (code, out) == (3, "")
    assert "holds 26 of 26 studies" in err
    assert "--patient-regex" in err
    assert secrets_in([err.encode()], folder) == []
    expression = r"SECRET(\d+|NAME)/"
    words = ("--patient-regex", expression)
    code, out, _ = medssl("archive", "index", folder, "-o", tmp_path / "index", "-q", *words)
    assert (code, "27 patients" in out) == (0, True)  # with the NIfTI file


def test_a_missing_package_names_the_extra(folder, tmp_path, medssl, monkeypatch):
    monkeypatch.setitem(sys.modules, "duckdb", None)
    code, out, err = medssl("archive", "index", folder, "-o", tmp_path / "index", "-q")
    assert (code, out) == (2, "")
    assert "medssl[archive]" in err
    assert not (tmp_path / "index").exists()


def test_help_is_light():
    code = (
        "import sys, importlib; sys.argv = ['medssl', 'archive', '--help']\n"
        "try: importlib.import_module('medssl.cli').main()\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'numpy', 'pyarrow', 'duckdb', 'pydicom'} & set(sys.modules)"
    )
    before = time.process_time()
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "index" in out.stdout
    assert "show" in out.stdout
    assert time.process_time() - before < 1
