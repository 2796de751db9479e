"""Shape and spacing of NIfTI files and pictures from their first bytes."""

import gzip
import random

import nibabel as nib
import numpy as np
import PIL.Image
import pytest
import tifffile

from medssl.core.errors import InputError
from medssl.io.heads import head


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "nifti2.nii", "nifti2.nii.gz"])
def test_nifti(nifti, name):
    found = head(nifti(np.zeros((5, 6, 7, 2), np.int16), name))
    assert found.kind == "nifti"
    assert found.shape == (5, 6, 7, 2)
    assert found.spacing == pytest.approx((1, 1.2, 1.5))
    assert (found.samples, found.bits) == (1, 16)


def test_big_endian_nifti_in_metres(tmp_path):
    header = nib.Nifti1Header(endianness=">")
    image = nib.Nifti1Image(np.zeros((4, 3), np.float32), np.diag([0.002, 0.003, 1, 1]), header)
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "a.nii")
    found = head(tmp_path / "a.nii")
    assert found.shape == (4, 3)
    assert found.spacing == pytest.approx((2, 3))


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_pictures(tmp_path, suffix, mode):
    path = tmp_path / f"a.{suffix}"
    more = {"exif": b"Exif\0\0" + bytes(40_000)} if suffix == "jpg" else {}  # before the size
    PIL.Image.new(mode, (31, 17)).save(path, **more)
    found = head(path)
    assert (found.kind, found.shape, found.spacing) == ("picture", (31, 17), ())
    assert found.samples == len(mode)


def test_pages_of_a_tiff_are_an_axis(tmp_path):
    for big in (False, True):
        tifffile.imwrite(
            tmp_path / "a.tif",
            np.zeros((4, 8, 9), np.uint16),
            bigtiff=big,
            metadata=None,
            photometric="minisblack",
        )
        assert head(tmp_path / "a.tif")[1:] == ((9, 8, 4), (), 1, 16)


def test_arrays(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((3, 4, 5), np.float32))
    assert head(tmp_path / "a.npy")[1:] == ((5, 4, 3), (), 1, 32)
    np.save(tmp_path / "b.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(InputError, match="no real numbers"):
        head(tmp_path / "b.npy")


def test_what_is_neither_is_none(tmp_path):
    for content in (b"", b"notes", gzip.compress(b"notes" * 200), b"PK\x03\x04" * 100):
        (tmp_path / "a").write_bytes(content)
        assert head(tmp_path / "a") is None


def test_a_bomb_is_not_inflated(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(bytes(50_000_000)))
    assert head(tmp_path / "a.nii.gz") is None


def test_damage_ends_in_one_line(tmp_path, nifti):
    PIL.Image.new("L", (31, 17)).save(tmp_path / "a.jpg")
    PIL.Image.new("L", (31, 17)).save(tmp_path / "a.tif")
    PIL.Image.new("L", (31, 17)).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", np.zeros((3, 4)))
    nifti(np.zeros((5, 6, 7), np.int16), "a.nii.gz")
    nifti(np.zeros((5, 6, 7), np.int16), "b.nii")
    chance = random.Random(0)
    seeds = [p.read_bytes() for p in sorted(tmp_path.iterdir())]
    refused = 0
    for i in range(1200):
        raw = bytearray(seeds[i % len(seeds)])
        if i % 2:
            del raw[chance.randrange(min(len(raw), 400)) :]
        else:
            for _ in range(4):
                raw[chance.randrange(min(len(raw), 400))] = chance.randrange(256)
        (tmp_path / "damaged").write_bytes(raw)
        try:
            head(tmp_path / "damaged")
        except InputError:
            refused += 1
    assert refused > 200
