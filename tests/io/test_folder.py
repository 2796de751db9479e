"""What counts as a scan below a folder."""

import json
import zipfile

import numpy as np
import pytest

from medssl.core.errors import InputError
from medssl.io.example_series import ct_series
from medssl.io.folder import find_scans
from medssl.io.limits import Limits
from medssl.io.series import read_sources


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


def test_a_damaged_file_is_one_refusal_and_the_other_series_are_used(tmp_path):
    for k in range(2):  # of one folder, as they come from a disc
        for path in ct_series(tmp_path / "x", np.full((8, 8, 3), k, np.float32), (1, 1, 3), seed=k):
            path.rename(tmp_path / f"{k}{path.name}")
    (tmp_path / "x").rmdir()
    broken = tmp_path / "0IM0003.dcm"
    broken.write_bytes(broken.read_bytes()[:-40])
    damaged, shorter, whole = find_scans(tmp_path)
    assert "0IM0003.dcm: PixelData claims 128 bytes, 88 are left" in str(damaged.refusal)
    assert damaged.refusal.code == 3
    assert [scan.refusal for scan in (shorter, whole)] == [None, None]
    assert [scan.series.count for scan in (shorter, whole)] == [2, 3]
    image = read_sources(whole.series.sources, "scan", Limits())
    assert image.shape == (8, 8, 3)
    assert image.data.mean() == 1
    broken.with_name("0IM0002.dcm").unlink()
    (tmp_path / "0IM0001.dcm").unlink()
    assert [scan.refusal is None for scan in find_scans(tmp_path)] == [False, True]


def test_a_damaged_member_of_a_zip_is_one_refusal(tmp_path):
    paths = ct_series(tmp_path / "x", np.zeros((8, 8, 3), np.float32), (1, 1, 3))
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for path in paths:
            archive.write(path, path.name)
            path.unlink()
    content = bytearray((tmp_path / "x.zip").read_bytes())
    content[200] ^= 1  # in the first member, which its checksum tells
    (tmp_path / "x.zip").write_bytes(content)
    damaged, rest = find_scans(tmp_path)
    assert damaged.refusal is not None
    assert rest.refusal is None
    assert rest.series.count == 2


def test_nothing_there_is_said(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        find_scans(tmp_path / "nowhere")
    assert find_scans(tmp_path) == []
