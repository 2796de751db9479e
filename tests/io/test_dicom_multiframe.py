"""Enhanced images: frames are placed by their functional groups, never by their order."""

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import io_orientation, ornt_transform
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import EnhancedCTImageStorage, EnhancedMRImageStorage

from medssl.core.errors import InputError
from medssl.io.derived import Derivation, write_series
from medssl.io.example_series import instance
from medssl.io.series import list_series, read_series

ROWS, COLUMNS = 10, 8


def holding(**values: object) -> Sequence:
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return Sequence([item])


def enhanced(
    frames: np.ndarray, places: list[tuple[int, int]], *, shared: bool = True, indices: bool = True
) -> Dataset:
    """Frames (n, rows, columns) at (slice, time) in file order; slope 1 + slice / 2."""
    dataset = instance(frames[0], modality="MR", intercept=0)
    for keyword in (
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "SliceThickness",
        "EchoTime",
    ):
        delattr(dataset, keyword)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    dataset.NumberOfFrames = len(frames)
    dataset.PixelData = frames.tobytes()
    common = Dataset()
    common.PixelMeasuresSequence = holding(PixelSpacing=["0.5", "0.25"], SliceThickness="2")
    common.PlaneOrientationSequence = holding(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    common.MRImageFrameTypeSequence = holding(
        FrameType=["ORIGINAL", "PRIMARY", "T2", "NONE"], ComplexImageComponent="MAGNITUDE"
    )
    items = []
    for place, time in places:
        item = Dataset()
        item.PlanePositionSequence = holding(ImagePositionPatient=["1", "2", str(3 * place)])
        content = holding(
            StackID="1", InStackPositionNumber=place + 1, TemporalPositionIndex=time + 1
        )
        if indices:
            content[0].DimensionIndexValues = [1, place + 1, time + 1]
        item.FrameContentSequence = content
        item.PixelValueTransformationSequence = holding(
            RescaleSlope=str(1 + place / 2), RescaleIntercept="-10", RescaleType="US"
        )
        if not shared:
            item.update(common)
        items.append(item)
    dataset.PerFrameFunctionalGroupsSequence = Sequence(items)
    if shared:
        dataset.SharedFunctionalGroupsSequence = Sequence([common])
    return dataset


@pytest.fixture
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 900, (12, ROWS, COLUMNS)).astype(np.uint16)


@pytest.fixture
def places() -> list[tuple[int, int]]:
    """Four slices at three times, in no order."""
    order = np.random.default_rng(1).permutation(12)
    return [(int(k) % 4, int(k) // 4) for k in order]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("indices", [True, False])
def test_frames_go_where_their_groups_say(tmp_path, frames, places, shared, indices):
    path = tmp_path / "a.dcm"
    enhanced(frames, places, shared=shared, indices=indices).save_as(path, enforce_file_format=True)
    image = read_series(path)
    assert image.data.shape == (3, COLUMNS, ROWS, 4)
    assert image.spacing == (0.25, 0.5, 3)
    assert image.origin.time_axis == "TemporalPositionIdentifier"
    assert image.geometry.affine[:3, 3] == pytest.approx([-1, -2, 0])
    for frame, (place, time) in zip(frames, places, strict=True):
        expected = frame * (1 + place / 2) - 10
        assert np.array_equal(image.data[time, :, :, place].T, expected.astype(np.float32))
    assert list_series(path)[0].shape == (COLUMNS, ROWS, 4, 3)


def repeat_index(dataset: Dataset) -> None:
    items = dataset.PerFrameFunctionalGroupsSequence
    content = items[0].FrameContentSequence[0]
    content.DimensionIndexValues = items[1].FrameContentSequence[0].DimensionIndexValues


def skip_index(dataset: Dataset) -> None:
    for item in dataset.PerFrameFunctionalGroupsSequence:
        content = item.FrameContentSequence[0]
        stack, place, time = content.DimensionIndexValues
        content.DimensionIndexValues = [stack, place, time * 2]


def contradict(dataset: Dataset) -> None:
    for item in dataset.PerFrameFunctionalGroupsSequence:
        item.FrameContentSequence[0].InStackPositionNumber = 1


def drop_group(dataset: Dataset) -> None:
    dataset.PerFrameFunctionalGroupsSequence = dataset.PerFrameFunctionalGroupsSequence[1:]


def drop_all(dataset: Dataset) -> None:
    del dataset.PerFrameFunctionalGroupsSequence
    del dataset.SharedFunctionalGroupsSequence


def drop_orientation(dataset: Dataset) -> None:
    del dataset.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence


def turn_one(dataset: Dataset) -> None:
    dataset.PerFrameFunctionalGroupsSequence[5].PlaneOrientationSequence = holding(
        ImageOrientationPatient=[0, 1, 0, 0, 0, -1]
    )


def mix_phase(dataset: Dataset) -> None:
    dataset.PerFrameFunctionalGroupsSequence[5].MRImageFrameTypeSequence = holding(
        ComplexImageComponent="PHASE"
    )


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (repeat_index, "same dimension indices"),
        (skip_index, "skip"),
        (contradict, "in-stack position"),
        (drop_group, "functional groups for 11"),
        (drop_all, "no functional groups"),
        (drop_orientation, "no position"),
        (turn_one, "several orientations"),
        (mix_phase, "complex"),
    ],
)
def test_groups_that_do_not_agree_are_refused(
    tmp_path: Path, frames, places, change: Callable[[Dataset], None], fact: str
):
    dataset = enhanced(frames, places)
    change(dataset)
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    with pytest.raises(InputError, match=fact):
        read_series(tmp_path)


def test_enhanced_comes_back_enhanced_or_as_single_frames(tmp_path, frames, places):
    enhanced(frames, places).save_as(tmp_path / "a.dcm", enforce_file_format=True)
    image = read_series(tmp_path / "a.dcm")
    for classic, count in ((False, 1), (True, 12)):
        out = tmp_path / str(classic)
        out.mkdir()
        written = write_series(
            out, image.with_data(image.data), image, Derivation(), classic=classic
        )
        assert len(written.names) == count
        assert (written.voxels, written.clipped) == (frames.size, 0)
        again = read_series(out)
        assert np.array_equal(again.data, image.data)
        assert again.geometry.same_grid(image.geometry)
        assert again.origin.is_enhanced != classic


def test_only_the_changed_frame_changes(tmp_path, frames, places):
    enhanced(frames, places).save_as(tmp_path / "a.dcm", enforce_file_format=True)
    image = read_series(tmp_path / "a.dcm")
    data = image.data.copy()
    data[1, :, :, 2] += 4
    (tmp_path / "out").mkdir()
    write_series(tmp_path / "out", image.with_data(data), image, Derivation())
    again = read_series(tmp_path / "out").data
    assert np.array_equal(again, data)


def test_enhanced_ct_is_kept(tmp_path, frames, places):
    dataset = enhanced(frames, places)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    assert read_series(tmp_path).origin.is_enhanced


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "stem", "shape"),
    [
        ("philips_enhanced_fmri", "001", (4, 64, 64, 8)),
        ("philips_enhanced_fmri", "001_implicit", (4, 64, 64, 8)),
        ("siemens_multiframe_anatomical", "001", (1, 256, 256, 8)),
    ],
)
def test_real_enhanced_files_equal_their_truths(data_folder, name, stem, shape):
    folder = data_folder / "odd/dicom2nifti" / name
    if not folder.is_dir():
        pytest.skip(f"{name} is not there")
    image = read_series(folder / stem)
    assert image.data.shape == shape
    truth = nib.load(folder / f"{stem}_ground_truth.nii.gz")
    turn = ornt_transform(io_orientation(truth.affine), io_orientation(image.geometry.affine))
    truth = truth.as_reoriented(turn)
    voxels = np.atleast_3d(truth.get_fdata(dtype=np.float32))
    voxels = np.moveaxis(voxels, -1, 0) if voxels.ndim == 4 else voxels[None]
    assert truth.affine == pytest.approx(image.geometry.affine, abs=1e-3)
    assert np.allclose(voxels, image.data, atol=1e-3)


@pytest.mark.data
def test_frames_without_groups_are_refused(data_folder):
    files = sorted((data_folder / "dicom/pydicom-data").glob("emri_small*.dcm"))
    if not files:
        pytest.skip("emri_small is not there")
    for file in files:
        with pytest.raises(InputError, match="no functional groups"):
            read_series(file)
