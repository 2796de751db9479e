"""Names of outputs, and images that go back into the series they came from."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from medssl.core.errors import InputError, UsageError
from medssl.core.geometry import Geometry
from medssl.io.example_series import ct_series
from medssl.io.memory import from_array
from medssl.io.read import read
from medssl.io.write import beside, on_grid_of, output_name, write

ARRAY = from_array(np.zeros((3, 3, 3), np.float32), None)


@pytest.fixture
def series(tmp_path):
    rng = np.random.default_rng(0)
    ct_series(tmp_path / "ct", rng.normal(40, 20, (8, 6, 5)).astype(np.float32), (0.7, 0.9, 2.5))
    return read(tmp_path / "ct")


@pytest.mark.parametrize(
    ("name", "to", "expected"),
    [
        ("scan.nii.gz", "same", "scan_denoised.nii.gz"),
        ("scan.nii", "same", "scan_denoised.nii"),
        ("scan.hdr", "same", "scan_denoised.hdr"),
        ("sub-01_ses-2_T1w.nii.gz", "same", "sub-01_ses-2_desc-denoised_T1w.nii.gz"),
        ("photo.jpg", "same", "photo_denoised.jpg"),
        ("photo.png", "nii", "photo_denoised.nii.gz"),
        ("scan.nii.gz", "dicom", "scan_denoised"),
    ],
)
def test_default_names(name, to, expected):
    assert output_name(Path("/a") / name, ARRAY, to) == Path("/a") / expected


def test_default_names_of_series(series):
    assert output_name(Path("/a/ct"), series, "same") == Path("/a/ct_denoised")
    assert output_name(Path("/a/ct.zip"), series, "same") == Path("/a/ct_denoised")
    assert output_name(Path("/a/ct"), series, "nii") == Path("/a/ct_denoised.nii.gz")


def test_names_beside():
    assert beside(Path("/a/b.c.nii.gz"), ".json") == Path("/a/b.c.json")
    assert beside(Path("/a/folder.v2"), ".json") == Path("/a/folder.v2.json")


def test_a_series_as_nifti_and_back(series, tmp_path):
    write(tmp_path / "ct.nii.gz", series)
    there = read(tmp_path / "ct.nii.gz")
    assert there.geometry.same_grid(series.geometry, 1e-3)
    assert np.array_equal(there.data, series.data)
    assert there.stored.dtype == np.uint16
    write(tmp_path / "back", there, like=series, to="dicom")
    assert np.array_equal(read(tmp_path / "back").data, series.data)


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0), (1, 2, 0)])
@pytest.mark.parametrize("signs", [(1, -1, 1), (-1, -1, -1)])
def test_swapped_and_flipped_axes_find_their_way(series, order, signs):
    flips = tuple(slice(None, None, s) for s in signs)
    data = series.data.transpose(0, *(1 + k for k in order))[(slice(None), *flips)]
    turn = np.zeros((4, 4))
    turn[3, 3] = 1
    for a, (k, s) in enumerate(zip(order, signs, strict=True)):
        turn[k, a] = s
        turn[k, 3] = 0 if s > 0 else series.shape[k] - 1
    geometry = Geometry(data.shape[1:], series.geometry.affine @ turn)
    other = dataclasses.replace(series, data=data, geometry=geometry)
    assert np.array_equal(on_grid_of(other, series).data, series.data)


def test_another_grid_is_refused(series, tmp_path):
    moved = series.geometry.affine.copy()
    moved[0, 3] += 1
    other = dataclasses.replace(series, geometry=Geometry(series.shape, moved))
    with pytest.raises(InputError, match=r"lies up to 1\.00 mm away"):
        on_grid_of(other, series)


def test_words_that_disagree_are_refused(series, tmp_path):
    with pytest.raises(UsageError, match="no suffix that is known"):
        write(tmp_path / "out", ARRAY)
    with pytest.raises(UsageError, match="name a series with --like"):
        write(tmp_path / "out", ARRAY, to="dicom")
    with pytest.raises(UsageError, match=r"ends in \.nii"):
        write(tmp_path / "out", series, to="nii")
    with pytest.raises(UsageError, match="DICOM cannot hold float32"):
        write(tmp_path / "out", series, dtype="float32")
    assert not (tmp_path / "out").exists()


def test_changed_voxels_are_written_without_naming_the_source(series, tmp_path):
    """The stored numbers of the source come back only where nothing changed."""
    changed = series.data.copy()
    changed[..., 2] += 7
    write(tmp_path / "out", series.with_data(changed))
    assert np.array_equal(read(tmp_path / "out").data, changed)
