"""A reconstruction on disk: NIfTI and DICOM say the same place, or that none is known."""

import nibabel as nib
import numpy as np
import pydicom
import pytest

from medssl.core.errors import MedsslError, UsageError
from medssl.core.geometry import Geometry
from medssl.core.image import Image
from medssl.io import raw_dicom
from medssl.io.example_series import ct_series
from medssl.io.raw_geometry import Placement, place
from medssl.io.read import read
from medssl.io.twix import in_plane
from medssl.io.write import write

RNG = np.random.default_rng(0)


def turned(angles):
    """Columns read, phase, normal of a frame turned about each axis."""
    x, y, z = angles
    a = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    b = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    c = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    return (a @ b @ c).T


def reconstruction(shape, *, angles=(0.3, -0.2, 0.5), nominal=False, flip=False):
    read_dir, phase, normal = turned(angles)
    n_slices = shape[2] if len(shape) == 3 else 1
    middle = np.array([5.0, -30.0, 12.0])
    centres = middle + np.arange(n_slices)[:, None] * 4.5 * normal
    placement = Placement(
        phase=-phase if flip else phase, read=read_dir, normal=normal, centres=centres
    )
    made = place(shape, (2.0, 1.5, 4.5)[: len(shape)], placement, stacked=True, thickness=4.5)
    data = RNG.uniform(0, 3e-6, (1, *shape)).astype(np.float32)
    return Image(data, made.geometry, modality="MR", nominal=nominal)


@pytest.fixture
def like(tmp_path):
    files = ct_series(tmp_path / "like", RNG.uniform(0, 900, (20, 16, 3)), (1, 1, 3), modality="MR")
    for path in files:
        scan = pydicom.dcmread(path)
        scan.PatientName, scan.PatientID = "Müller^Änne", "P7"
        scan.SpecificCharacterSet = "ISO_IR 100"
        scan.StudyDescription, scan.EchoTime = "Head", 30
        scan.save_as(path)
    return read(tmp_path / "like")


@pytest.mark.parametrize("shape", [(12, 18), (12, 18, 4)])
@pytest.mark.parametrize(
    "angles", [(0.3, -0.2, 0.5), (0.2, 0.1, 1.4), (1.5, 0.1, 0.2), (0.1, 1.5, -3.0), (3.0, 0, 0)]
)
@pytest.mark.parametrize("flip", [False, True])
def test_nifti_and_dicom_agree_on_every_voxel(tmp_path, like, shape, flip, angles):
    image = reconstruction(shape, flip=flip, angles=angles)
    write(tmp_path / "a.nii.gz", image)
    loaded = nib.load(tmp_path / "a.nii.gz")
    assert np.allclose(loaded.affine, image.geometry.affine, atol=1e-5)
    assert (loaded.header["sform_code"], loaded.header["qform_code"]) == (1, 1)
    assert np.array_equal(np.asarray(loaded.dataobj), image.data[0])
    written = raw_dicom.write(tmp_path / "d", image, like, sentence="Reconstructed")
    assert written.files == (shape[2] if len(shape) == 3 else 1)
    for k, path in enumerate(sorted((tmp_path / "d").iterdir())):
        scan = pydicom.dcmread(path)
        x, y = np.array(scan.ImageOrientationPatient, float).reshape(2, 3)
        dy, dx = map(float, scan.PixelSpacing)
        first = np.array(scan.ImagePositionPatient, float)
        rows, columns = np.indices((scan.Rows, scan.Columns))
        lps = first + columns[..., None] * dx * x + rows[..., None] * dy * y
        index = nib.affines.apply_affine(np.linalg.inv(image.geometry.affine), lps * [-1, -1, 1])
        i, j, at = np.moveaxis(np.rint(index).astype(int), -1, 0)
        assert np.abs(index - np.rint(index)).max() < 1e-3
        assert (at == k).all()
        planes = image.data[0].reshape(*shape[:2], -1)
        assert float(scan.WindowWidth) >= 1
        assert "values are 10^9 times those of the raw data" in scan.DerivationDescription
        values = scan.pixel_array * float(scan.RescaleSlope) / 1e9
        assert np.allclose(values, planes[i, j, at], atol=image.data.max() / 60000)
        assert float(scan.SliceThickness) == pytest.approx(4.5)


@pytest.mark.parametrize(
    ("normal", "along", "down"),
    [((0, 0, 1), "L", "P"), ((0, 1, 0), "L", "I"), ((1, 0, 0), "P", "I")],
)
@pytest.mark.parametrize("turn", [0.1, 1.6, 3.2, 4.7])
def test_planes_are_shown_as_people_read_them(normal, along, down, turn):
    phase, read_dir = in_plane(np.array(normal, float), turn)
    placement = Placement(
        phase=phase, read=read_dir, normal=np.array(normal, float), centres=np.zeros((1, 3))
    )
    made = place((6, 8), (1, 1), placement, stacked=False, thickness=3)
    shown = raw_dicom.displayed(Image(np.zeros((1, 6, 8), np.float32), made.geometry))
    assert shown.geometry.orientation[:2] == down + along


def test_the_patient_is_taken_and_the_acquisition_is_not(tmp_path, like):
    image = reconstruction((12, 18, 3))
    raw_dicom.write(tmp_path / "d", image, like, sentence="Reconstructed by l1")
    scans = [pydicom.dcmread(p) for p in sorted((tmp_path / "d").iterdir())]
    source = pydicom.dcmread(min((tmp_path / "like").iterdir()))
    for scan in scans:
        assert str(scan.PatientName) == "Müller^Änne"
        assert scan.StudyInstanceUID == source.StudyInstanceUID
        assert scan.StudyDescription == "Head"
        assert scan.SOPClassUID == "1.2.840.10008.5.1.4.1.1.4"
        assert scan.ImageType[0] == "DERIVED"
        assert scan.DerivationDescription.startswith("Reconstructed by l1")
        assert scan.SeriesInstanceUID not in ("", source.SeriesInstanceUID)
        assert scan.EchoTime is None
        assert scan.FrameOfReferenceUID == source.FrameOfReferenceUID
    assert len({s.SOPInstanceUID for s in scans}) == 3
    assert len({s.SeriesInstanceUID for s in scans}) == 1
    again = read(tmp_path / "d")
    assert again.shape == (18, 12, 3)
    assert again.modality == "MR"


def test_a_nominal_place_is_not_claimed(tmp_path, like):
    image = reconstruction((12, 18), nominal=True)
    write(tmp_path / "n.nii", image)
    header = nib.load(tmp_path / "n.nii").header
    assert (header["sform_code"], header["qform_code"]) == (0, 0)
    assert np.allclose(header["pixdim"][1:4], (2, 1.5, 4.5))
    raw_dicom.write(tmp_path / "d", image, like, sentence="x")
    scan = pydicom.dcmread(next((tmp_path / "d").iterdir()))
    source = pydicom.dcmread(min((tmp_path / "like").iterdir()))
    assert scan.FrameOfReferenceUID != source.get("FrameOfReferenceUID")
    assert "nominal" in scan.ImageComments


def test_what_cannot_be_written_leaves_nothing(tmp_path, like):
    image = reconstruction((12, 18))
    with pytest.raises(UsageError, match="no DICOM headers"):
        raw_dicom.write(tmp_path / "d", image, image, sentence="x")
    raw_dicom.write(tmp_path / "d", image, like, sentence="x")
    with pytest.raises(MedsslError):
        raw_dicom.write(tmp_path / "d", image, like, sentence="x")
    dark = image.with_data(np.zeros_like(image.data))
    raw_dicom.write(tmp_path / "z", dark, like, sentence="x")
    assert not pydicom.dcmread(next((tmp_path / "z").iterdir())).pixel_array.any()


def test_the_middle_voxel_lies_at_the_stated_centre():
    image = reconstruction((13, 18, 4))
    expected = np.array([-5.0, 30.0, 12.0])
    assert np.allclose(image.geometry.world([6, 9, 0]), expected)
    volume = place(
        (13, 18, 7),
        (1, 2, 3),
        Placement(
            phase=np.array([0, 1.0, 0]),
            read=np.array([1.0, 0, 0]),
            normal=np.array([0, 0, 1.0]),
            centres=np.array([[5.0, -30, 12]]),
        ),
        stacked=False,
    )
    assert np.allclose(volume.geometry.world([6, 9, 3]), expected)


@pytest.mark.parametrize("spacing", [(0.0, 1.0), (np.nan, 1.0), (np.inf, 1.0), (-1.0, 2.0)])
def test_a_spacing_that_is_none_becomes_one(spacing):
    made = place((4, 5), spacing, None, stacked=False)
    assert made.nominal
    assert made.geometry.spacing == (1.0, spacing[1])
    assert isinstance(made.geometry, Geometry)


def test_a_reconstruction_becomes_a_series_of_the_patient(tmp_path, like, medssl, coil_kspace):
    np.save(tmp_path / "k.npy", coil_kspace((32, 40), 4))
    words = ("--axes", "coil,ky,kx", "--to", "dicom", "-o", tmp_path / "out", "-q")
    words += ("--method", "zero-filled")
    code, _, err = medssl("recon", tmp_path / "k.npy", *words)
    assert code == 2
    assert "--like" in err
    assert not (tmp_path / "out").exists()
    code, _, err = medssl("recon", tmp_path / "k.npy", *words, "--like", tmp_path / "like")
    assert code == 0, err
    scan = pydicom.dcmread(next((tmp_path / "out").iterdir()))
    assert (scan.Rows, scan.Columns) == (32, 40)
    assert str(scan.PatientID) == "P7"
    assert "P7" not in (tmp_path / "out.json").read_text()


def test_info_tells_of_raw_data(tmp_path, medssl, coil_kspace):
    np.save(tmp_path / "k.npy", coil_kspace((32, 40), 4))
    code, out, err = medssl("info", tmp_path / "k.npy", "--axes", "coil,ky,kx")
    assert code == 0, err
    assert "coils        4" in out
    assert "32 x 40" in out
    assert "geometry     nominal" in out
    code, _, err = medssl("info", tmp_path / "k.npy")
    assert code == 3
    assert "--axes coil,ky,kx" in err
    (tmp_path / "alone.cfl").write_bytes(bytes(64))
    assert ".hdr file is missing" in medssl("info", tmp_path / "alone.cfl")[2]
