"""From a folder to one volume: grouping, order, geometry, the policy for odd positions."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import (
    io_orientation,
    ornt_transform,
)
from pydicom import dcmread
from pydicom.dataset import Dataset

from medssl.core.errors import InputError
from medssl.io.example_series import ct_series, instance
from medssl.io.series import UNEVEN, list_series, read_datasets, read_series, select


@pytest.fixture
def hu() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 200, (12, 16, 6)).round().astype(np.float32)


def edit(folder: Path, change: Callable[[Dataset, int], None]) -> None:
    """Change every instance of a folder in place."""
    for k, path in enumerate(sorted(folder.iterdir())):
        dataset = dcmread(path)
        change(dataset, k)
        dataset.save_as(path, enforce_file_format=True)


def move(dataset: Dataset, z: float, y: float = 0.0) -> None:
    dataset.ImagePositionPatient = ["0", f"{y:.6f}", f"{z:.6f}"]


def test_voxels_axes_and_units(tmp_path, hu):
    ct_series(tmp_path, hu, (0.5, 0.8, 2.5))
    image = read_series(tmp_path)
    assert image.data.shape == (1, 12, 16, 6)
    assert image.data.dtype == np.float32
    assert np.array_equal(image.data[0], hu)
    assert image.data[0].transpose(2, 1, 0).flags.c_contiguous
    assert image.spacing == pytest.approx((0.5, 0.8, 2.5))
    assert image.geometry.orientation == "LPS"
    assert image.modality == "CT"
    assert (image.stored.lowest, image.stored.highest) == (0, 4095)
    assert float(image.stored.intercept) == -1024
    assert image.valid is None
    assert image.warnings == ()


def test_pixel_spacing_is_row_step_then_column_step(tmp_path, hu):
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    ct_series(tmp_path, hu, (0.5, 0.8, 2.5), orientation=tuple(turn[:2].ravel()))
    affine = read_series(tmp_path).geometry.affine
    ras = np.array([-1, -1, 1])
    assert affine[:3, 0] == pytest.approx(turn[0] * 0.5 * ras, abs=1e-6)
    assert affine[:3, 1] == pytest.approx(turn[1] * 0.8 * ras, abs=1e-6)
    assert affine[:3, 2] == pytest.approx(np.cross(turn[0], turn[1]) * 2.5 * ras, abs=1e-6)


def test_order_comes_from_positions_alone(tmp_path, hu):
    for k, path in enumerate(reversed(ct_series(tmp_path / "a", hu, (1, 1, 2)))):
        dataset = dcmread(path)
        dataset.InstanceNumber = (k * 5) % 7
        if k % 2:
            del dataset.InstanceNumber
        del dataset.PatientID
        (tmp_path / "b").mkdir(exist_ok=True)
        dataset.save_as(tmp_path / "b" / f"{k}", enforce_file_format=True)
    assert np.array_equal(read_series(tmp_path / "b").data[0], hu)


def test_slope_that_differs_from_slice_to_slice(tmp_path, hu):
    ct_series(tmp_path, hu, (1, 1, 2))

    def change(dataset: Dataset, k: int) -> None:
        dataset.RescaleSlope = str(1 + k / 2)

    edit(tmp_path, change)
    image = read_series(tmp_path)
    slopes = 1 + np.arange(6) / 2
    assert image.stored.slope == pytest.approx(slopes)
    assert np.array_equal(image.data[0], ((hu + 1024) * slopes - 1024).astype(np.float32))


@pytest.mark.parametrize("limit", [None, 105])
def test_padding_is_not_valid(tmp_path, limit):
    hu = np.zeros((12, 16, 3))
    hu[0], hu[1], hu[2] = -924, -921, -919
    ct_series(tmp_path, hu, (1, 1, 1))

    def change(dataset: Dataset, _k: int) -> None:
        dataset.add_new(0x00280120, "US", 100)
        if limit:
            dataset.add_new(0x00280121, "US", limit)

    edit(tmp_path, change)
    valid = read_series(tmp_path).valid
    assert not valid[0, 0].any()
    assert valid[0, 1].all() == (limit is None)
    assert valid[0, 3:].all()


def test_missing_slice_is_refused_with_its_place(tmp_path, hu):
    files = ct_series(tmp_path, hu, (1, 1, 2))
    files[3].unlink()
    with pytest.raises(InputError, match=r"missing after slice 3 \(gap 4.00 mm, spacing 2.00"):
        read_series(tmp_path)
    assert "missing" in str(list_series(tmp_path)[0].refusal)
    image = read_series(tmp_path, allow_gaps=True)
    assert image.origin.independent_slices
    assert image.warnings[0].startswith(UNEVEN)


def test_missing_slice_among_three(tmp_path, hu):
    files = ct_series(tmp_path, hu[..., :4], (1, 1, 5))
    files[1].unlink()
    with pytest.raises(InputError, match="missing"):
        read_series(tmp_path)


def test_steps_that_change_are_processed_slice_by_slice(tmp_path, hu):
    ct_series(tmp_path, hu, (1, 1, 3))
    edit(tmp_path, lambda d, k: move(d, [0, 3, 6, 9, 14, 19][k]))
    image = read_series(tmp_path)
    assert image.origin.independent_slices
    assert image.warnings[0].startswith(UNEVEN)
    assert np.array_equal(image.data[0], hu)


def test_small_jitter_is_even(tmp_path, hu):
    ct_series(tmp_path, hu, (1, 1, 3))
    edit(tmp_path, lambda d, k: move(d, 3 * k + 0.015 * (-1) ** k))
    assert not read_series(tmp_path).origin.independent_slices


def test_tilt_gives_a_sheared_grid_and_a_warning(tmp_path, hu):
    ct_series(tmp_path, hu, (1, 1, 2))
    edit(tmp_path, lambda d, k: move(d, 2 * k, 0.5 * k))
    image = read_series(tmp_path)
    assert image.geometry.shear == pytest.approx(np.degrees(np.arctan(0.25)), abs=0.01)
    assert image.origin.tilted
    assert "tilted by 14.0" in image.warnings[0]


def test_same_instance_twice_is_dropped_with_a_warning(tmp_path, hu):
    files = ct_series(tmp_path, hu, (1, 1, 2))
    shutil.copy(files[2], tmp_path / "copy.dcm")
    image = read_series(tmp_path)
    assert image.shape == (12, 16, 6)
    assert any("copies" in w for w in image.warnings)


def test_same_uid_with_other_pixels_is_refused(tmp_path, hu):
    files = ct_series(tmp_path, hu, (1, 1, 2))
    dataset = dcmread(files[2])
    dataset.PixelData = bytes(len(dataset.PixelData))
    dataset.save_as(tmp_path / "other.dcm", enforce_file_format=True)
    with pytest.raises(InputError, match="other bytes"):
        read_series(tmp_path)


def test_repeated_position_is_not_one_volume(tmp_path, hu):
    files = ct_series(tmp_path, hu, (1, 1, 2))
    dataset = dcmread(files[2])
    dataset.SOPInstanceUID += "9"
    dataset.save_as(tmp_path / "other.dcm", enforce_file_format=True)
    with pytest.raises(InputError, match="not one volume: 7 images at 6 positions"):
        read_series(tmp_path)
    assert read_series(tmp_path, as_slices=True).shape == (12, 16, 7)


@pytest.mark.parametrize("keyword", ["TemporalPositionIdentifier", "EchoTime", "AcquisitionTime"])
def test_equal_counts_told_apart_are_4d(tmp_path, hu, keyword):
    ct_series(tmp_path / "a", hu, (1, 1, 2), modality="MR", intercept=-1024)
    for t in range(3):
        for k, path in enumerate(sorted((tmp_path / "a").iterdir())):
            dataset = dcmread(path)
            value = 120000 + 10 * t + k if keyword == "AcquisitionTime" else 10 * (t + 1)
            setattr(dataset, keyword, str(value))
            dataset.SOPInstanceUID += f"{t}"
            dataset.PixelData = (dataset.pixel_array + np.uint16(t)).tobytes()
            (tmp_path / "b").mkdir(exist_ok=True)
            name = f"{(k * 7 + t * 5) % 18:02d}{t}"
            dataset.save_as(tmp_path / "b" / name, enforce_file_format=True)
    image = read_series(tmp_path / "b")
    assert image.channels == "time"
    assert image.data.shape == (3, 12, 16, 6)
    assert image.origin.time_axis == keyword
    for t in range(3):
        assert np.array_equal(image.data[t], hu + t)
    assert list_series(tmp_path / "b")[0].shape == (12, 16, 6, 3)


def test_images_at_one_position_are_refused(tmp_path, hu):
    ct_series(tmp_path, hu, (1, 1, 2))
    edit(tmp_path, lambda d, _k: move(d, 0))
    with pytest.raises(InputError, match="not one volume: 6 images at 1 positions"):
        read_series(tmp_path)


def test_two_series_need_a_choice(tmp_path, hu):
    ct_series(tmp_path / "a", hu, (1, 1, 2), seed=1)
    ct_series(tmp_path / "b", np.abs(hu[:8]), (1, 1, 2), seed=2, modality="MR", intercept=0)
    with pytest.raises(InputError, match=r"2 series: 2 \(CT 12x16x6\), 3 .*--series"):
        read_series(tmp_path)
    table = list_series(tmp_path)
    assert [s.number for s in table] == ["2", "3"]
    assert read_series(tmp_path, series="3").modality == "MR"
    assert read_series(tmp_path, series=table[0].uid).modality == "CT"
    assert read_series(tmp_path, series="phantom mr").modality == "MR"
    for text, fact in (("phantom", "2 series fit"), ("9", "no series fits")):
        with pytest.raises(InputError, match=fact):
            select(table, text)


def test_groups_of_one_number_get_letters(tmp_path, hu):
    ct_series(tmp_path, hu, (1, 1, 2))

    def change(dataset: Dataset, k: int) -> None:
        if k > 2:
            dataset.ImageOrientationPatient = ["0", "1", "0", "0", "0", "-1"]

    edit(tmp_path, change)
    assert [s.number for s in list_series(tmp_path)] == ["1", "1b"]


@pytest.mark.parametrize("keyword", ["PatientID", "StudyInstanceUID"])
def test_two_patients_or_studies_in_one_series_are_refused_always(tmp_path, hu, keyword):
    ct_series(tmp_path, hu, (1, 1, 2))

    def change(dataset: Dataset, k: int) -> None:
        setattr(dataset, keyword, "1.2.3" if k > 2 else "1.2.4")

    edit(tmp_path, change)
    for series in ("1", "1b") if keyword == "StudyInstanceUID" else ("1", None):
        with pytest.raises(InputError, match=r"2 (patients|studies)"):
            read_series(tmp_path, series=series)


def test_one_slice_of_another_kind_is_refused(tmp_path, hu):
    ct_series(tmp_path, hu, (1, 1, 2))

    def change(dataset: Dataset, k: int) -> None:
        if k == 3:
            dataset.PixelSpacing = ["1.5", "1"]

    edit(tmp_path, change)
    with pytest.raises(InputError, match="2 series"):
        read_series(tmp_path)


def test_a_lone_image_without_position_is_flat(tmp_path, hu):
    dataset = instance((hu[:, :, 0].T + 1024).astype(np.uint16))
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient"):
        delattr(dataset, keyword)
    dataset.PixelSpacing = ["0.5", "0.25"]
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    image = read_series(tmp_path / "a.dcm")
    assert np.array_equal(image.data, hu[None, :, :, 0])
    assert image.spacing == (0.25, 0.5)
    assert len(image.warnings) == 1


def test_several_images_without_position_are_refused(tmp_path, hu):
    ct_series(tmp_path, hu, (1, 1, 2))

    def change(dataset: Dataset, _k: int) -> None:
        del dataset.ImagePositionPatient

    edit(tmp_path, change)
    with pytest.raises(InputError, match="6 of 6 images have no position"):
        read_series(tmp_path)


def test_a_single_slice_has_a_slice_axis(tmp_path, hu):
    ct_series(tmp_path, hu[..., :1], (1, 1, 3))
    image = read_series(tmp_path)
    assert image.data.shape == (1, 12, 16, 1)
    assert image.spacing == (1, 1, 3)


def test_no_patient_data_in_origin_messages_or_warnings(tmp_path, hu):
    ct_series(tmp_path, hu, (1, 1, 2))

    def change(dataset: Dataset, _k: int) -> None:
        dataset.PatientName = dataset.PatientID = "CANARY"
        dataset.InstitutionName = dataset.StudyDescription = "CANARY"
        dataset.SeriesDescription = "\x1b[31mCANARY"

    edit(tmp_path, change)
    image = read_series(tmp_path)
    assert "CANARY" not in repr(image.origin) + repr(image.warnings) + image.name
    assert list_series(tmp_path)[0].description == "[31mCANARY"


def test_data_sets_in_memory_are_the_same_image(tmp_path, hu):
    files = ct_series(tmp_path, hu, (1, 1, 2))
    image = read_datasets([dcmread(f) for f in files[::-1]])
    assert np.array_equal(image.data[0], hu)
    built = [instance((hu[:, :, k].T + 1024).astype(np.uint16), number=k) for k in range(1)]
    assert np.array_equal(read_datasets(built).data[0, :, :, 0], hu[:, :, 0])


def test_headers_of_200_slices_in_about_a_second(tmp_path):
    import time

    ct_series(tmp_path, np.zeros((16, 16, 200)), (1, 1, 1))
    start = time.perf_counter()
    list_series(tmp_path)
    assert time.perf_counter() - start < 1


def truth_on_grid(path: Path, affine: np.ndarray) -> nib.Nifti1Image:
    """A NIfTI volume with its axes flipped and swapped to those of an affine."""
    truth = nib.load(path)
    turn = ornt_transform(io_orientation(truth.affine), io_orientation(affine))
    return truth.as_reoriented(turn)


@pytest.mark.data
@pytest.mark.parametrize(
    "name", ["failing_slicecount", "generic_compressed_j2k", "generic_compressed_jpegls"]
)
def test_geometry_and_voxels_equal_the_truths(data_folder, name):
    folder = data_folder / "odd/dicom2nifti" / name
    if not folder.is_dir():
        pytest.skip(f"{name} is not there")
    image = read_series(folder / "001")
    truth = truth_on_grid(folder / "001_ground_truth.nii.gz", image.geometry.affine)
    assert truth.affine == pytest.approx(image.geometry.affine, abs=1e-3)
    assert np.array_equal(truth.get_fdata(dtype=np.float32), image.data[0])


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "fact"),
    [("failing_notavolume", "not one volume"), ("failing_sliceorientation", "2 series")],
)
def test_folders_that_are_no_volume(data_folder, name, fact):
    folder = data_folder / "odd/dicom2nifti" / name / "001"
    if not folder.is_dir():
        pytest.skip(f"{name} is not there")
    with pytest.raises(InputError, match=fact):
        read_series(folder)


@pytest.mark.data
@pytest.mark.parametrize(
    "name",
    [
        "dicom/hazen_acr_GE_Signa_3T_T1",
        "prostate/dicom/ProstateX-0000/t2w",
        "prostate/dicom/ProstateX-0000/adc",
        "ct/series_3mm_dicom",
    ],
)
def test_every_voxel_lies_where_dcm2niix_puts_it(data_folder, tmp_path, name):
    folder = data_folder / name
    if shutil.which("dcm2niix") is None or not folder.is_dir():
        pytest.skip("dcm2niix or the series is not there")
    subprocess.run(
        ["dcm2niix", "-z", "n", "-b", "n", "-f", "x", "-o", tmp_path, folder],
        check=True,
        capture_output=True,
    )
    image = read_series(folder)
    truth = truth_on_grid(next(tmp_path.glob("*.nii")), image.geometry.affine)
    assert truth.shape == image.shape
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in image.shape])).reshape(3, -1).T
    there = nib.affines.apply_affine(truth.affine, corners)
    assert np.abs(there - image.geometry.world(corners)).max() < 1e-3
    assert np.allclose(truth.get_fdata(dtype=np.float32), image.data[0], atol=1e-3)
