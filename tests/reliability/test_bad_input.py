"""Input that must be refused: one line, the right exit code, no file left behind."""

import gzip
import os
import shutil
import struct
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from medssl.io.example_series import ct_series

SHAPE = (20, 16, 6)
ALLOWED = {"source", "input"}


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    """A small valid CT series, copied and damaged by each case."""
    place = tmp_path_factory.mktemp("series") / "ct"
    rng = np.random.default_rng(0)
    hu = rng.normal(40, 20, SHAPE).astype(np.float32)
    ct_series(place, hu, (0.7, 0.9, 2.5))
    return place


def volume(place, name="scan.nii", array=None):
    rng = np.random.default_rng(0)
    array = rng.integers(0, 99, SHAPE).astype(np.int16) if array is None else array
    path = place / name
    nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.2, 2.0, 1.0]), dtype=array.dtype), path)
    return path


def written(path, content):
    path.write_bytes(content)
    return path


def patched(path, offset, code, *values):
    content = bytearray(path.read_bytes())
    struct.pack_into("<" + code, content, offset, *values)
    return written(path, content)


def flipped(content, at):
    changed = bytearray(content)
    changed[at] ^= 0x10
    return bytes(changed)


NIFTI = {
    "missing": lambda d: d / "nowhere.nii",
    "empty": lambda d: written(d / "scan.nii", b""),
    "text": lambda d: written(d / "scan.nii", b"this is not an image, it is a letter\n" * 40),
    "folder named .nii": lambda d: (d / "scan.nii").mkdir() or d / "scan.nii",
    "truncated": lambda d: written(d / "scan.nii", volume(d).read_bytes()[:-9]),
    "truncated gz": lambda d: written(
        d / "scan.nii.gz", gzip.compress(volume(d, "v.nii").read_bytes())[:-300]
    ),
    "flipped byte in gz": lambda d: written(
        d / "scan.nii.gz", flipped(gzip.compress(volume(d, "v.nii").read_bytes()), 900)
    ),
    "wrong crc": lambda d: written(
        d / "scan.nii.gz", flipped(gzip.compress(volume(d, "v.nii").read_bytes()), -6)
    ),
    "NaN only": lambda d: volume(d, array=np.full(SHAPE, np.nan, np.float32)),
    "terabytes": lambda d: patched(volume(d), 40, "4h", 3, 32767, 32767, 32767),
    "RGB": lambda d: patched(volume(d), 70, "2h", 128, 24),
    "complex": lambda d: patched(volume(d), 70, "2h", 32, 64),
    "singular sform": lambda d: patched(volume(d), 280, "12f", *[0.0] * 12),
    "img without hdr": lambda d: written(d / "scan.img", bytes(5000)),
    "k-space": lambda d: written(d / "scan.h5", b"\x89HDF\r\n\x1a\n" + bytes(600)),
    "pickle": lambda d: written(d / "scan.pt", b"\x80\x04\x95" + bytes(600)),
    "object array": lambda d: (
        np.save(d / "scan.npy", np.array([[print, print]] * 2), allow_pickle=True) or d / "scan.npy"
    ),
    "cut png": lambda d: written(d / "scan.png", b"\x89PNG\r\n\x1a\n" + bytes(40)),
    "fifo": lambda d: os.mkfifo(d / "scan.nii") or d / "scan.nii",
}


def names(folder):
    return sorted(folder.iterdir())


def edit(folder, index, **changes):
    path = names(folder)[index]
    dataset = pydicom.dcmread(path)
    for keyword, value in changes.items():
        if value is None:
            del dataset[keyword]
        else:
            setattr(dataset, keyword, value)
    dataset.save_as(path)


def add_copy(folder, name, index=0, **changes):
    shutil.copy(names(folder)[index], folder / name)
    position = names(folder).index(folder / name)
    edit(folder, position, **changes)


def second_series(folder):
    for k in range(2):
        add_copy(
            folder,
            f"other{k}.dcm",
            k,
            SeriesInstanceUID="2.25.77",
            SOPInstanceUID=f"2.25.7{k}",
        )


def two_patients(folder):
    for k in range(3):
        edit(folder, k, PatientID="SOMEBODY-ELSE")


def short_pixels(folder):
    dataset = pydicom.dcmread(names(folder)[2])
    dataset.PixelData = dataset.PixelData[:-40]
    dataset.save_as(names(folder)[2])


def zipped_outside(folder):
    target = folder.parent / "input.zip"
    with zipfile.ZipFile(target, "w") as archive:
        archive.write(names(folder)[0], "../../escape.dcm")
    return target


DICOM = {
    "missing slice": lambda f: names(f)[3].unlink(),
    "two series": second_series,
    "two patients": two_patients,
    "one position twice": lambda f: add_copy(
        f, "again.dcm", 2, SOPInstanceUID="2.25.5", PixelData=bytes(2 * SHAPE[0] * SHAPE[1])
    ),
    "cut file": lambda f: written(names(f)[1], names(f)[1].read_bytes()[:-100]),
    "short pixels": short_pixels,
    "no pixels": lambda f: edit(f, 0, PixelData=None),
    "no position": lambda f: edit(f, 0, ImagePositionPatient=None),
    "other spacing": lambda f: edit(f, 4, PixelSpacing=[0.9, 0.8]),
    "colour": lambda f: [
        edit(f, k, SamplesPerPixel=3, PhotometricInterpretation="RGB") for k in range(SHAPE[2])
    ],
    "only text": lambda f: [p.unlink() for p in names(f)] + [written(f / "a.txt", b"hello")],
    "empty": lambda f: [p.unlink() for p in names(f)],
    "zip slip": zipped_outside,
    "claims too many rows": lambda f: edit(f, 0, Rows=65535, Columns=65535),
}


def refused(medssl, path, place):
    before = sorted(p for p in place.rglob("*"))
    code, out, err = medssl("denoise", path, "-o", place / "result", "-q")
    assert code == 3, err
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert "; " in lines[0], "a refusal names a remedy"
    assert len(lines[0]) <= 210
    assert out == ""
    assert sorted(p for p in place.rglob("*")) == before
    return lines[0]


@pytest.mark.parametrize("case", NIFTI)
def test_bad_files(medssl, tmp_path, case):
    refused(medssl, NIFTI[case](tmp_path), tmp_path)


@pytest.mark.parametrize("case", DICOM)
def test_bad_folders(medssl, series, tmp_path, case):
    folder = tmp_path / "input"
    shutil.copytree(series, folder)
    changed = DICOM[case](folder)
    refused(medssl, changed if isinstance(changed, Path) else folder, tmp_path)


def test_the_series_to_take_is_named(medssl, series, tmp_path):
    folder = tmp_path / "input"
    shutil.copytree(series, folder)
    second_series(folder)
    line = refused(medssl, folder, tmp_path)
    assert "--series" in line
    code, out, _ = medssl("info", folder)
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()[1:]] == [["1", "CT"], ["1b", "CT"]]


ODD = {
    "constant": np.full(SHAPE, 7, np.int16),
    "all zero": np.zeros(SHAPE, np.int16),
    "two values": (np.indices(SHAPE).sum(0) > 20).astype(np.uint8),
    "one voxel": np.array([[[3.0]]], np.float32),
    "tiny": np.arange(8, dtype=np.int16).reshape(2, 2, 2),
    "a line": np.arange(40, dtype=np.int16).reshape(1, 1, 40),
    "a picture": np.arange(900, dtype=np.int16).reshape(30, 30),
    "prime sizes": np.random.default_rng(0).normal(50, 5, (13, 11, 7)).astype(np.float32),
    "some NaN": np.where(np.indices(SHAPE).sum(0) % 17, 5.0, np.nan).astype(np.float32),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_input_is_answered(medssl, tmp_path, case):
    """Never a crash: the result lies on the same grid, finite where the input is."""
    source = volume(tmp_path, array=ODD[case])
    code, _, err = medssl("denoise", source, "-q")
    assert code == 0, err
    assert "Traceback" not in err
    out = nib.load(tmp_path / "scan_denoised.nii").get_fdata()
    assert out.shape == ODD[case].shape
    assert np.array_equal(np.isfinite(out), np.isfinite(ODD[case]))
    if case in ("constant", "all zero", "one voxel"):
        assert "warning:" in err
        assert (tmp_path / "scan_denoised.nii").read_bytes() == source.read_bytes()
