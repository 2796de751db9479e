"""A reconstruction as a DICOM series: its own pixels and geometry, another's patient and study.

Nothing else is taken over: what that series says of its acquisition is not true of this one.
"""

import hashlib
import math
from dataclasses import replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage

from medssl.core.errors import InputError, UsageError
from medssl.core.geometry import LPS_TO_RAS, Geometry
from medssl.core.image import Image
from medssl.io import atomic
from medssl.io.derived import IMPLEMENTATION_UID, file_bytes, fresh_uid, reopened
from medssl.io.dicom import quiet, refusing
from medssl.io.series import SeriesOrigin
from medssl.io.write import Written

PATIENT = (
    "SpecificCharacterSet",
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
)
STUDY = (
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "StudyDescription",
    "AccessionNumber",
    "ReferringPhysicianName",
    "PatientAge",
    "PatientWeight",
    "PatientSize",
)
DISPLAYED = (
    ((0.0, 1.0, 0.0), (0.0, 0.0, -1.0)),
    ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0)),
    ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)),
)
"""Where the columns and the rows of a sagittal, a coronal and an axial slice run, in LPS. Viewers
show pixels as they are stored."""
LARGEST = 2**16 - 1
FIGURES = 3
"""Before the decimal point of the brightest value, less one."""
SERIES_NUMBER_OFFSET = 1000
NOMINAL = "Orientation and position are nominal: the raw data do not say them."


def write(
    target: Path, image: Image, like: Image, *, sentence: str, overwrite: bool = False
) -> Written:
    """Write the MR series of a reconstruction; the folder appears complete or not at all.

    Args:
        target: The folder.
        image: (1, ky, kx[, slice or kz]) magnitude; where its place is known, its planes are
            turned as people read them.
        like: A DICOM series of the same patient and study.
        sentence: How the image was made, for DerivationDescription.
        overwrite: Replace an existing folder.

    Raises:
        InputError: `like` has changed, or names no study.
        OutputError: The place is taken, not writable, or full.
        UsageError: `like` is no DICOM series, or the image no single volume.
    """
    if not isinstance(like.origin, SeriesOrigin):
        raise UsageError("there are no DICOM headers to take", "name a DICOM series with --like")
    if image.data.shape[0] != 1:
        raise UsageError("only a single volume can be written as this series", "use --to nii")
    image = image if image.nominal else displayed(image)
    planes = image.data[0] if image.data.ndim == 4 else image.data[0][..., None]
    power = _power(float(planes.max(initial=0.0)))
    if power:
        planes = planes * np.float32(10.0**power)
        sentence += f"; values are 10^{power} times those of the raw data"
    top = float(planes.max(initial=0.0))
    slope = float(f"{top / LARGEST:.10g}") if top > 0 else 1.0
    bright = max(float(np.percentile(planes, 99.5)), 1.0)
    common = _common(image, like.origin, sentence, slope, bright)
    digest = hashlib.sha256()
    with atomic.folder(target, overwrite=overwrite) as folder:
        for index in range(planes.shape[2]):
            scaled = np.rint(planes[..., index].astype(np.float64) / slope)
            stored = np.clip(scaled, 0, LARGEST).astype("<u2")
            digest.update(stored.tobytes())
            with quiet(), refusing("a DICOM image cannot be encoded", "use --to nii"):
                content = file_bytes(_instance(common, image, stored, index))
            (folder / f"IM{index + 1:04d}.dcm").write_bytes(content)
    n = planes.shape[2]
    return Written(target, "dicom", n, image.data.size, 0, digest.hexdigest())


def _power(top: float) -> int:
    """Of ten, that raw units are multiplied with: windows of DICOM are not narrower than 1."""
    return max(0, FIGURES - math.floor(math.log10(top))) if 0 < top < 1e3 else 0


def displayed(image: Image) -> Image:
    """The same voxels in the same places, in-plane axes in the order and sense that people read.

    Raw data come in the order of the gradients: upside down as often as not.
    """
    affine = image.geometry.affine
    lps = LPS_TO_RAS @ affine
    directions = lps[:3, :3] / np.linalg.norm(lps[:3, :3], axis=0)
    normal = np.cross(directions[:, 0], directions[:, 1])
    along, down = np.array(DISPLAYED[int(np.argmax(np.abs(normal)))])
    straight = np.abs(down @ directions[:, 0]) + np.abs(along @ directions[:, 1])
    crossed = np.abs(down @ directions[:, 1]) + np.abs(along @ directions[:, 0])
    order = (1, 0) if crossed > straight + 1e-6 else (0, 1)
    data = image.data if order == (0, 1) else image.data.swapaxes(1, 2)
    turn = np.eye(4)
    for axis, wanted in enumerate((down, along)):
        turn[:, axis] = 0.0
        backwards = wanted @ directions[:, order[axis]] < 0
        turn[order[axis], axis] = -1.0 if backwards else 1.0
        if backwards:
            turn[order[axis], 3] = data.shape[1 + axis] - 1
            data = np.flip(data, 1 + axis)
    return replace(image, data=data, geometry=Geometry(data.shape[1:], affine @ turn))


def _common(
    image: Image, origin: SeriesOrigin, sentence: str, slope: float, width: float
) -> Dataset:
    """What all instances of the series share."""
    with quiet(), refusing("its header cannot be copied", "name another series with --like"):
        source = reopened(origin, origin.frames[0].source).dataset()
        result = Dataset()
        for keyword in (*PATIENT, *STUDY):
            if keyword in source:
                result[keyword] = source[keyword]
        frame_of_reference = str(source.get("FrameOfReferenceUID") or "")
        number = int(source.get("SeriesNumber") or 0)
        position = str(source.get("PatientPosition") or "")
    if not result.get("StudyInstanceUID"):
        raise InputError("names no study", "name another series with --like")
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex"):
        if keyword not in result:
            setattr(result, keyword, "")
    for keyword in ("StudyDate", "StudyTime", "StudyID", "AccessionNumber"):
        if keyword not in result:
            setattr(result, keyword, "")
    if "ReferringPhysicianName" not in result:
        result.ReferringPhysicianName = ""
    now = datetime.now()
    date, time = now.strftime("%Y%m%d"), now.strftime("%H%M%S.%f")
    for word in ("InstanceCreation", "Content", "Series"):
        setattr(result, f"{word}Date", date)
        setattr(result, f"{word}Time", time)
    result.SOPClassUID = MRImageStorage
    result.Modality = "MR"
    result.SeriesInstanceUID = UID(fresh_uid())
    result.SeriesNumber = (number + SERIES_NUMBER_OFFSET) % 2**31
    result.SeriesDescription = "medssl reconstruction of raw data"
    result.PatientPosition = position
    known = frame_of_reference and not image.nominal
    result.FrameOfReferenceUID = UID(frame_of_reference if known else fresh_uid())
    result.PositionReferenceIndicator = ""
    result.Manufacturer = result.ManufacturerModelName = "medssl"
    result.SoftwareVersions = version("medssl")
    result.ImageType = ["DERIVED", "PRIMARY", "OTHER"]
    result.DerivationDescription = sentence[:1024]
    if image.nominal:
        result.ImageComments = NOMINAL
    result.ScanningSequence, result.SequenceVariant, result.ScanOptions = "RM", "NONE", ""
    result.MRAcquisitionType = ""
    result.RepetitionTime = result.EchoTime = result.EchoTrainLength = None
    result.SamplesPerPixel, result.PhotometricInterpretation = 1, "MONOCHROME2"
    result.BitsAllocated = result.BitsStored = 16
    result.HighBit, result.PixelRepresentation = 15, 0
    result.RescaleSlope, result.RescaleIntercept, result.RescaleType = f"{slope:.10g}", 0, "US"
    result.WindowCenter, result.WindowWidth = f"{width / 2:.8g}", f"{width:.8g}"
    result.LossyImageCompression, result.BurnedInAnnotation = "00", "NO"
    return result


def _instance(common: Dataset, image: Image, stored: NDArray[np.uint16], index: int) -> Dataset:
    """One slice: the first axis of the image counts rows, the second columns."""
    result = Dataset()
    result.update(common)
    lps = LPS_TO_RAS @ image.geometry.affine  # its own inverse
    steps = np.linalg.norm(lps[:3, :3], axis=0)
    down, along = lps[:3, 0] / steps[0], lps[:3, 1] / steps[1]
    first = lps[:3, 3] + index * lps[:3, 2]
    result.SOPInstanceUID = UID(fresh_uid())
    result.InstanceNumber = index + 1
    result.Rows, result.Columns = stored.shape
    result.ImageOrientationPatient = [_decimal(v) for v in (*along, *down)]
    result.ImagePositionPatient = [_decimal(v) for v in first]
    result.PixelSpacing = [_decimal(steps[0]), _decimal(steps[1])]
    result.SliceThickness = result.SpacingBetweenSlices = _decimal(steps[2])
    result.SmallestImagePixelValue = int(stored.min())
    result.LargestImagePixelValue = int(stored.max())
    raw = stored.tobytes()
    result.PixelData = raw + b"\0" * (len(raw) % 2)
    result["PixelData"].VR = "OW"
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = result.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(IMPLEMENTATION_UID)
    meta.ImplementationVersionName = f"MEDSSL_{version('medssl')}"[:16]
    result.file_meta = meta
    return result


def _decimal(value: float) -> str:
    """DICOM's decimal string: at most 16 characters, and no minus before zero."""
    for digits in range(12, 0, -1):
        text = f"{value + 0.0 if abs(value) > 1e-12 else 0.0:.{digits}g}"
        if len(text) <= 16:
            return text
    return f"{value:.8e}"
