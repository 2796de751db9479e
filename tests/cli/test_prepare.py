"""`medssl archive prepare` as a user types it: nobody is named, wrong calls end in one line."""

import json

import numpy as np
import pydicom
import pytest

from medssl.data.store import Store
from medssl.io.example_series import ct_series


@pytest.fixture
def folder(tmp_path):
    """Two series of patients of secret names, a short one, and a NIfTI file."""
    rng = np.random.default_rng(0)
    for k, n in enumerate((12, 12, 4)):
        hu = np.full((72, 70, n), -1000.0)
        hu[10:60, 12:60] = 40
        hu[20:30, 20:50, n // 3 :] = 200 - 90 * k
        hu += rng.normal(0, 12, hu.shape)
        for path in ct_series(tmp_path / "SECRETDIR" / f"SECRET{k}", hu, (1, 1, 3), seed=k):
            dataset = pydicom.dcmread(path)
            dataset.PatientName, dataset.PatientID = "SECRET^Jane", f"SECRET{k}"
            dataset.SeriesDescription = dataset.StudyDescription = "SECRET thorax"
            dataset.save_as(path, enforce_file_format=True)
    return tmp_path / "SECRETDIR"


def test_index_prepare_show_name_nobody(folder, tmp_path, medssl):
    index, store = tmp_path / "index", tmp_path / "store"
    assert medssl("archive", "index", folder, "-o", index, "-q")[0] == 0
    said = []
    code, out, err = medssl("archive", "prepare", index, "-o", store)
    said += [out, err]
    assert code == 0, err
    assert "2 volumes (2 CT) of 3 series, 3 read now; " in out
    assert "1 skipped (1 few-slices)" in out
    assert "see store/skipped.csv" in out
    assert "preparing 100 %" in err
    code, out, err = medssl("archive", "prepare", index, "-o", store, "--jobs", 2, "--json")
    said += [out, err]
    assert code == 0, err
    assert json.loads(out)["n_new"] == 0
    code, out, err = medssl("archive", "show", store)
    said += [out, err]
    assert code == 0, err
    assert "2 volumes of 3 series" in out
    assert "skipped      1 few-slices" in out
    assert json.loads(medssl("archive", "show", store, "--json")[1])["n_volumes"] == 2
    assert len(Store.open(store).volumes) == 2
    files = [p for p in store.rglob("*") if p.is_file()]
    held = [p.read_bytes() for p in files] + [str(p.relative_to(store)).encode() for p in files]
    held += [text.encode() for text in said]
    for word in (b"SECRET", b"Jane", str(tmp_path).encode()):
        assert not [text for text in held if word in text], word


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["{tmp}", "-o", "{tmp}/store"], 3, "index"),
        (["{tmp}/none", "-o", "{tmp}/store"], 3, ""),
        (["{index}", "-o", "{tmp}/store", "--jobs", "0"], 2, "--jobs is 0"),
        (["{index}", "-o", "{tmp}/s", "--jobs", "2", "--scheduler", "tcp://a:1"], 2, "one of them"),
        (["{index}", "-o", "{tmp}/SECRETDIR"], 6, "exists already"),
        (["{index}", "-o", "{tmp}/none/store"], 6, "does not exist"),
    ],
)
def test_wrong_calls_end_in_one_line(folder, tmp_path, medssl, words, code, said):
    index = tmp_path / "index"
    assert medssl("archive", "index", folder, "-o", index, "-q")[0] == 0
    words = [w.format(tmp=tmp_path, index=index) for w in words]
    left, out, err = medssl("archive", "prepare", *words, "-q")
    assert left == code, err
    assert len(err.strip().splitlines()) == 1
    assert said in err
    assert not out
    assert not (tmp_path / "store").exists()
