"""The derived series: every row of the table of tags, and the stored numbers themselves."""

import collections
import shutil
import subprocess
import uuid
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import RLELossless

from medssl.core.errors import InputError
from medssl.core.image import Image
from medssl.io.derived import (
    IMPLEMENTATION_UID,
    Derivation,
    derive,
    derived_datasets,
    write_series,
)
from medssl.io.example_series import ct_series, instance
from medssl.io.series import read_series

NOW = datetime(2026, 1, 2, 3, 4, 5)
RUN = Derivation(version="1.2", method="bm3d", now=NOW)
ALLOWED = {
    "ImageType",
    "InstanceCreationDate",
    "InstanceCreationTime",
    "SOPInstanceUID",
    "SeriesDate",
    "SeriesTime",
    "ContentDate",
    "ContentTime",
    "SeriesDescription",
    "DerivationDescription",
    "SourceImageSequence",
    "DerivationCodeSequence",
    "ContributingEquipmentSequence",
    "SeriesInstanceUID",
    "SeriesNumber",
    "SmallestImagePixelValue",
    "LargestImagePixelValue",
    "SmallestPixelValueInSeries",
    "LargestPixelValueInSeries",
    "IconImageSequence",
    "PixelData",
}
"""Tags in which a derived instance may differ from its source."""


@pytest.fixture
def hu() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 200, (12, 16, 4)).round().astype(np.float32)


@pytest.fixture
def source() -> Dataset:
    """A header with everything that the table of tags speaks of."""
    stored = np.random.default_rng(1).integers(0, 4096, (16, 12)).astype(np.uint16)
    dataset = instance(stored, number=7)
    dataset.PatientName = "Ünique^Name"
    dataset.LossyImageCompression = "01"
    dataset.LossyImageCompressionRatio = "10"
    dataset.BurnedInAnnotation = "NO"
    dataset.WindowCenter, dataset.WindowWidth = "40", "400"
    dataset.GantryDetectorTilt = "3"
    dataset.add_new(0x00280106, "US", 1)
    dataset.add_new(0x00280107, "US", 2)
    dataset.add_new(0x00280108, "US", 1)
    dataset.add_new(0x00280109, "US", 2)
    dataset.add_new(0x00280120, "US", 0)
    icon = Dataset()
    icon.Rows = 1
    dataset.IconImageSequence = Sequence([icon])
    dataset.add_new(0x60000010, "US", 16)
    dataset.add_new(0x00091010, "LO", "private")
    dataset.add_new(0x00090010, "LO", "VENDOR")
    inner = Dataset()
    inner.CodeValue = "T1"
    inner.add_new(0x00110010, "LO", "VENDOR")
    dataset.AnatomicRegionSequence = Sequence([inner])
    earlier = Dataset()
    earlier.Manufacturer = "earlier"
    dataset.ContributingEquipmentSequence = Sequence([earlier])
    return dataset


def write(folder: Path, image: Image, like: Image, run: Derivation = RUN, **options: bool) -> list:
    folder.mkdir()
    written = write_series(folder, image, like, run, **options)
    assert [p.name for p in sorted(folder.iterdir())] == list(written.names)
    return [dcmread(folder / name) for name in written.names]


def test_every_row_of_the_table(source):
    stored = np.random.default_rng(2).integers(5, 4000, (16, 12)).astype(np.uint16)
    before = source.to_json()
    run = Derivation(version="1.2", method="bm3d", now=NOW, weights_sha256="ab" * 32)
    made = derive(source, stored, run)
    assert source.to_json() == before
    assert made.SOPClassUID == source.SOPClassUID == made.file_meta.MediaStorageSOPClassUID
    assert made.SOPInstanceUID == made.file_meta.MediaStorageSOPInstanceUID
    assert made.SOPInstanceUID != source.SOPInstanceUID
    assert made.SOPInstanceUID.startswith("2.25.")
    assert made.SeriesInstanceUID != source.SeriesInstanceUID
    assert list(made.ImageType) == ["DERIVED", "PRIMARY", "AXIAL"]
    assert made.SeriesNumber == source.SeriesNumber + 1000
    assert made.SeriesDescription == f"medssl DN {source.SeriesDescription}"
    assert made.InstanceNumber == 7
    assert made.DerivationDescription == "Denoised: medssl 1.2 bm3d; research use only"
    code = made.DerivationCodeSequence[0]
    assert (code.CodeValue, code.CodingSchemeDesignator) == ("DN", "99MEDSSL")
    reference = made.SourceImageSequence[0]
    assert reference.ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert reference.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
    first, last = made.ContributingEquipmentSequence
    assert first.Manufacturer == "earlier"
    assert last.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
    assert "ab" * 32 in last.ContributionDescription
    assert np.array_equal(made.pixel_array, stored)
    assert made["PixelData"].VR == "OW"
    assert made.SmallestImagePixelValue == stored.min()
    assert made.LargestImagePixelValue == stored.max()
    assert made["PixelPaddingValue"].VR == "US"
    assert (made.ContentDate, made.SeriesTime[:6]) == ("20260102", "030405")
    assert made.AcquisitionDate == source.AcquisitionDate
    assert made.LossyImageCompression == "01"
    assert made.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    assert made.file_meta.ImplementationClassUID == IMPLEMENTATION_UID
    assert made.file_meta.ImplementationVersionName == "MEDSSL_1.2"
    assert not any(e.tag.is_private for e in made.iterall())
    assert not [e for e in made if 0x6000 <= e.tag.group < 0x6100]
    assert changed(source, made) <= ALLOWED


def changed(source: Dataset, made: Dataset) -> set[str]:
    """Keywords of public elements that differ; overlays and nested private ones apart."""
    tags = {t for t in (*source.keys(), *made.keys()) if not t.is_private and t.group < 0x6000}
    tags.add(0x7FE00010)
    different = {t for t in tags if source.get(t) != made.get(t)}
    if 0x00082218 in different:  # only the private element inside went away
        assert made.AnatomicRegionSequence[0].CodeValue == "T1"
        different.remove(0x00082218)
    return {(source.get(t) or made.get(t)).keyword for t in different}


def test_private_and_overlays_can_be_kept(source):
    stored = np.zeros((16, 12), np.uint16)
    made = derive(source, stored, Derivation(keep_private=True, keep_overlays=True))
    assert made[0x00091010].value == "private"
    assert 0x60000010 in made


def test_long_descriptions_are_cut(source):
    source.SeriesDescription = "x" * 64
    made = derive(source, np.zeros((16, 12), np.uint16), RUN)
    assert len(made.SeriesDescription) == 64


def test_uids_are_new_unique_and_of_one_series(tmp_path, hu):
    ct_series(tmp_path / "a", hu, (1, 1, 2))
    image = read_series(tmp_path / "a")
    first = write(tmp_path / "b", image, image)
    second = write(tmp_path / "c", image, image)
    old = [dcmread(p) for p in sorted((tmp_path / "a").iterdir())]
    every = [d.SOPInstanceUID for d in (*old, *first, *second)]
    assert len(set(every)) == 12
    assert len({d.SeriesInstanceUID for d in (*old, *first, *second)}) == 3
    assert len({d.StudyInstanceUID for d in (*old, *first, *second)}) == 1
    assert len({d.FrameOfReferenceUID for d in (*old, *first, *second)}) == 1
    for dataset in first:
        assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
        assert uuid.UUID(int=int(dataset.SOPInstanceUID.split(".")[2])).int >= 0
        assert len(dataset.SOPInstanceUID) <= 64


def test_stable_uids_repeat_and_follow_the_settings(tmp_path, hu):
    ct_series(tmp_path / "a", hu, (1, 1, 2))
    image = read_series(tmp_path / "a")

    def uids(method: str, name: str) -> list[str]:
        run = Derivation(version="1", method=method, now=NOW, stable_uids=True)
        return [d.SOPInstanceUID for d in write(tmp_path / name, image, image, run)]

    assert uids("x", "b") == uids("x", "c") != uids("y", "d")
    for name in ("IM0001.dcm", "IM0004.dcm"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "c" / name).read_bytes()


def test_equal_data_keep_the_stored_bits(tmp_path, hu):
    paths = ct_series(tmp_path / "a", hu, (1, 1, 2))
    for k, path in enumerate(paths):
        dataset = dcmread(path)
        dataset.RescaleSlope = str(0.1 + 0.37 * k)
        dataset.save_as(path, enforce_file_format=True)
    image = read_series(tmp_path / "a")
    made = write(tmp_path / "b", image.with_data(image.data.copy()), image)
    for path, dataset in zip(paths, made, strict=True):
        assert dataset.PixelData == dcmread(path).PixelData


def test_each_slice_takes_its_own_rescale(tmp_path, hu):
    paths = ct_series(tmp_path / "a", hu, (1, 1, 2))
    for k, path in enumerate(paths):
        dataset = dcmread(path)
        dataset.RescaleSlope = str(1 + k)
        dataset.save_as(path, enforce_file_format=True)
    image = read_series(tmp_path / "a")
    slopes = image.stored.slope
    made = write(tmp_path / "b", image.with_data(image.data + np.float32(6)), image)
    for k, (path, dataset) in enumerate(zip(paths, made, strict=True)):
        step = np.rint(6 / slopes[k] + 1e-9) if 6 % slopes[k] else 6 / slopes[k]
        moved = dataset.pixel_array.astype(int) - dcmread(path).pixel_array
        assert np.abs(moved - 6 / slopes[k]).max() <= 0.5 + 1e-6
        assert dataset.RescaleSlope == 1 + k
        assert step >= 1


@pytest.mark.parametrize(("signed", "low", "high"), [(False, 0, 4095), (True, -2048, 2047)])
def test_values_are_clipped_to_bits_stored_before_the_cast(tmp_path, hu, signed, low, high):
    ct_series(tmp_path / "a", hu, (1, 1, 2), signed=signed, intercept=0 if signed else -1024)
    image = read_series(tmp_path / "a")
    data = image.data.copy()
    data[0, 0], data[0, 1] = -1e6, 1e6
    (tmp_path / "b").mkdir()
    written = write_series(tmp_path / "b", image.with_data(data), image, RUN)
    assert written.clipped == 2 * 16 * 4
    stored = dcmread(tmp_path / "b" / "IM0001.dcm").pixel_array
    assert (stored[:, 0] == low).all()
    assert (stored[:, 1] == high).all()


def test_rounding_is_half_to_even(tmp_path):
    ct_series(tmp_path / "a", np.zeros((4, 4, 1)), (1, 1, 1), intercept=0)
    image = read_series(tmp_path / "a")
    data = np.full_like(image.data, 0.5)
    data[0, 0], data[0, 1] = 1.5, 2.5
    made = write(tmp_path / "b", image.with_data(data), image)[0].pixel_array
    assert made[0].tolist() == [2, 2, 0, 0]


def test_padding_and_non_finite_voxels_keep_their_bits(tmp_path, hu):
    hu[0] = -1024
    paths = ct_series(tmp_path / "a", hu, (1, 1, 2))
    for path in paths:
        dataset = dcmread(path)
        dataset.add_new(0x00280120, "US", 0)
        dataset.save_as(path, enforce_file_format=True)
    image = read_series(tmp_path / "a")
    data = image.data + 50
    data[0, 1] = np.nan
    made = write(tmp_path / "b", image.with_data(data), image)
    for path, dataset in zip(paths, made, strict=True):
        before, after = dcmread(path).pixel_array.astype(int), dataset.pixel_array
        assert (after[:, 0] == 0).all()
        assert np.array_equal(after[:, 1], before[:, 1])
        assert np.array_equal(after[:, 2:], before[:, 2:] + 50)


@pytest.mark.parametrize("compress", ["rle", "jpegls", "j2k"])
def test_lossless_compression_keeps_pixels(tmp_path, hu, compress):
    ct_series(tmp_path / "a", np.tile(hu, (4, 4, 1)), (1, 1, 2))
    image = read_series(tmp_path / "a")
    run = Derivation(now=NOW, compress=compress)
    made = write(tmp_path / "b", image, image, run)
    assert made[0].file_meta.TransferSyntaxUID.is_compressed
    assert made[0].file_meta.MediaStorageSOPInstanceUID == made[0].SOPInstanceUID
    assert np.array_equal(read_series(tmp_path / "b").data, image.data)


def test_compressed_source_comes_out_uncompressed(tmp_path, hu):
    for k, path in enumerate(ct_series(tmp_path / "a", hu, (1, 1, 2))):
        dataset = dcmread(path)
        if k % 2:
            dataset.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
            dataset.save_as(path, enforce_file_format=True)
    image = read_series(tmp_path / "a")
    made = write(tmp_path / "b", image, image)
    assert {d.file_meta.TransferSyntaxUID for d in made} == {"1.2.840.10008.1.2.1"}
    assert np.array_equal(read_series(tmp_path / "b").data, image.data)


def test_text_bytes_of_any_character_set_are_kept(tmp_path, hu):
    names = "Ünique", "Yamada^Tarou=山田^太郎"
    for k, charset in enumerate((["ISO_IR 100"], ["", "ISO 2022 IR 87"])):
        folder = tmp_path / str(k)
        ct_series(folder, hu[..., :1], (1, 1, 2))
        path = next(folder.iterdir())
        dataset = dcmread(path)
        dataset.SpecificCharacterSet = charset
        dataset.PatientName = names[k]
        dataset.save_as(path, enforce_file_format=True)
        image = read_series(folder)
        made = write(tmp_path / f"out{k}", image, image)[0]
        before, after = dcmread(path), made
        assert after.get_item("PatientName").value == before.get_item("PatientName").value


def test_source_that_changed_is_refused(tmp_path, hu):
    paths = ct_series(tmp_path / "a", hu, (1, 1, 2))
    image = read_series(tmp_path / "a")
    paths[1].write_bytes(paths[1].read_bytes()[:-1] + b"x")
    (tmp_path / "b").mkdir()
    with pytest.raises(InputError, match="changed since"):
        write_series(tmp_path / "b", image, image, RUN)
    paths[1].unlink()
    with pytest.raises(InputError, match="cannot be read again"):
        write_series(tmp_path / "b", image, image, RUN)


def test_image_on_another_grid_is_refused(tmp_path, hu):
    ct_series(tmp_path / "a", hu, (1, 1, 2))
    ct_series(tmp_path / "b", hu, (1, 1.1, 2))
    with pytest.raises(InputError, match="grid"):
        write(tmp_path / "c", read_series(tmp_path / "b"), read_series(tmp_path / "a"))


def test_image_without_origin_takes_the_headers_of_like(tmp_path, hu):
    ct_series(tmp_path / "a", hu, (1, 1, 2))
    like = read_series(tmp_path / "a")
    plain = Image(data=like.data + 1, geometry=like.geometry)
    write(tmp_path / "b", plain, like)
    assert np.array_equal(read_series(tmp_path / "b").data, like.data + 1)


def test_in_memory_equals_on_disk(tmp_path, hu):
    ct_series(tmp_path / "a", hu, (1, 1, 2))
    image = read_series(tmp_path / "a")
    held = derived_datasets(image, image, RUN)
    disk = write(tmp_path / "b", image, image)
    assert [d.PixelData for d in held] == [d.PixelData for d in disk]


def test_hash_is_that_of_the_stored_numbers(tmp_path, hu):
    import hashlib

    ct_series(tmp_path / "a", hu, (1, 1, 2))
    image = read_series(tmp_path / "a")
    (tmp_path / "b").mkdir()
    written = write_series(tmp_path / "b", image, image, RUN)
    digest = hashlib.sha256()
    for name in written.names:
        digest.update(dcmread(tmp_path / "b" / name).PixelData)
    assert written.voxels_sha256 == digest.hexdigest()
    assert written.voxels == hu.size


def errors(path: Path) -> collections.Counter:
    done = subprocess.run(["dciodvfy", "-new", path], capture_output=True, check=False)
    lines = (done.stdout + done.stderr).decode("latin-1").splitlines()
    return collections.Counter(line for line in lines if line.startswith("Error"))


@pytest.mark.parametrize(("modality", "intercept"), [("CT", -1024), ("MR", 0)])
def test_example_and_its_derived_series_follow_the_standard(tmp_path, hu, modality, intercept):
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed")
    ct_series(tmp_path / "a", np.abs(hu), (1, 1, 2), modality=modality, intercept=intercept)
    image = read_series(tmp_path / "a")
    write(tmp_path / "b", image.with_data(image.data + 1), image)
    assert not errors(tmp_path / "a" / "IM0001.dcm")
    assert not errors(tmp_path / "b" / "IM0001.dcm")


@pytest.mark.data
@pytest.mark.parametrize(
    "name",
    [
        "ct/series_3mm_dicom",
        "dicom/hazen_acr_GE_Signa_3T_T1",
        "odd/dicom2nifti/failing_gantrytilting/001",
        "odd/dicom2nifti/generic_compressed_j2k/001",
        "dicom/pydicom/CT_small.dcm",
        "dicom/pydicom/MR_small.dcm",
        "dicom/pydicom/MR_small_bigendian.dcm",
        "dicom/pydicom/MR_small_implicit.dcm",
        "odd/dcm_qa_ts/In/1.dcm",
        "odd/dcm_qa_ts/In/5.dcm",
        "prostate/dicom/ProstateX-0000/t2w",
        "odd/dicom2nifti/philips_enhanced_fmri/001",
        "odd/dicom2nifti/siemens_multiframe_anatomical/001",
    ],
)
def test_no_new_error_on_real_series(data_folder, tmp_path, name):
    """Enhanced files may add the one complaint that MR pulse-sequence attributes are kept."""
    if shutil.which("dciodvfy") is None or not (data_folder / name).exists():
        pytest.skip("dciodvfy or the series is not there")
    image = read_series(data_folder / name)
    (tmp_path / "b").mkdir()
    write_series(tmp_path / "b", image, image, RUN)
    new = errors(tmp_path / "b" / "IM0001.dcm") - errors(image.origin.sources[0].path)
    if image.origin.is_enhanced:
        assert all("condition unsatisfied" in line for line in new)
        assert len(new) <= 1
    else:
        assert not new
    again = read_series(tmp_path / "b")
    assert np.array_equal(again.data, image.data)
    assert again.geometry.same_grid(image.geometry)
