"""Synthetic DICOM series that follow the standard: for the demo, tests and benchmarks.

Names and numbers in the headers are invented and say so.
"""

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, MRImageStorage

from medssl.io.derived import IMPLEMENTATION_UID

NAMESPACE = uuid.UUID("0d0a3d3e-33b0-4c5b-8a39-8f2b6f5a1c11")
"""Of the invented UIDs."""
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def ct_series(
    folder: Path,
    hu: NDArray[np.floating],
    spacing: Sequence[float],
    *,
    seed: int = 0,
    modality: Literal["CT", "MR"] = "CT",
    slope: float = 1.0,
    intercept: float = -1024.0,
    signed: bool = False,
    bits: int = 12,
    orientation: Sequence[float] = AXIAL,
) -> list[Path]:
    """Write a volume as a classic series.

    Args:
        folder: Where the instances go; made when it is not there.
        hu: (columns, rows, slices) image values, HU for CT.
        spacing: (3,) mm along columns, rows and slices.
        seed: Of the invented UIDs; another seed is another series.
        modality: `CT` or `MR`.
        slope: RescaleSlope.
        intercept: RescaleIntercept; for MR give 0.
        signed: Whether stored numbers are signed.
        bits: BitsStored; values that do not fit are clipped.
        orientation: ImageOrientationPatient.

    Returns:
        The files, in slice order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    normal = np.cross(orientation[:3], orientation[3:])
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    paths = []
    for k in range(hu.shape[2]):
        exact = np.rint((hu[:, :, k].T.astype(np.float64) - intercept) / slope)
        stored = np.clip(exact, low, high).astype(np.int16 if signed else np.uint16)
        dataset = instance(
            stored,
            position=tuple(float(v) for v in normal * spacing[2] * k),
            spacing=(spacing[1], spacing[0]),
            number=k + 1,
            seed=seed,
            modality=modality,
            slope=slope,
            intercept=intercept,
            bits=bits,
            orientation=orientation,
            thickness=spacing[2],
        )
        path = folder / f"IM{k + 1:04d}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def instance(
    stored: NDArray[np.integer],
    *,
    position: Sequence[float] = (0.0, 0.0, 0.0),
    spacing: Sequence[float] = (1.0, 1.0),
    number: int = 1,
    seed: int = 0,
    modality: Literal["CT", "MR"] = "CT",
    slope: float = 1.0,
    intercept: float = -1024.0,
    bits: int = 12,
    orientation: Sequence[float] = AXIAL,
    thickness: float = 1.0,
) -> Dataset:
    """One CT or MR instance in memory, ready for `save_as(..., enforce_file_format=True)`.

    Args:
        stored: (rows, columns) uint16 or int16 pixels.
        position: ImagePositionPatient, LPS mm.
        spacing: PixelSpacing: step between rows, between columns, mm.
        number: InstanceNumber; with `seed` it fixes the UIDs.
        seed: Of the invented UIDs of study and series.
        modality: `CT` or `MR`.
        slope: RescaleSlope.
        intercept: RescaleIntercept.
        bits: BitsStored.
        orientation: ImageOrientationPatient.
        thickness: SliceThickness, mm.
    """
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    kind = ["ORIGINAL", "PRIMARY", "AXIAL"] if modality == "CT" else ["ORIGINAL", "PRIMARY", "M"]
    dataset.ImageType = kind
    dataset.SOPClassUID = CTImageStorage if modality == "CT" else MRImageStorage
    dataset.SOPInstanceUID = _uid(f"{seed}/{modality}/{number}")
    for word in ("Study", "Series", "Acquisition", "Content"):
        setattr(dataset, f"{word}Date", "20200101")
        setattr(dataset, f"{word}Time", "120000")
    dataset.AccessionNumber = ""
    dataset.Modality = modality
    dataset.Manufacturer = "Medssl Phantoms"
    dataset.ManufacturerModelName = "Synthetic"
    dataset.ReferringPhysicianName = ""
    dataset.SeriesDescription = f"Phantom {modality} {seed}"
    dataset.PatientName = "Phantom^Medssl"
    dataset.PatientID = "MEDSSL-PHANTOM"
    dataset.PatientBirthDate = ""
    dataset.PatientSex = "O"
    dataset.BodyPartExamined = "HEAD"
    dataset.SliceThickness = _number(thickness)
    if modality == "CT":
        dataset.KVP = "120"
    else:
        dataset.ScanningSequence = "GR"
        dataset.SequenceVariant = "NONE"
        dataset.ScanOptions = ""
        dataset.MRAcquisitionType = "2D"
        dataset.RepetitionTime = "500"
        dataset.EchoTime = "10"
        dataset.EchoTrainLength = "1"
    dataset.PatientPosition = "HFS"
    dataset.StudyInstanceUID = _uid(f"study {seed}")
    dataset.SeriesInstanceUID = _uid(f"series {seed}/{modality}")
    dataset.StudyID = "1"
    dataset.SeriesNumber = seed + 1
    dataset.AcquisitionNumber = 1
    dataset.InstanceNumber = number
    dataset.ImagePositionPatient = [_number(v) for v in position]
    dataset.ImageOrientationPatient = [_number(v) for v in orientation]
    dataset.FrameOfReferenceUID = _uid(f"frame {seed}")
    dataset.PositionReferenceIndicator = ""
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = stored.shape
    dataset.PixelSpacing = [_number(v) for v in spacing]
    dataset.BitsAllocated = 16
    dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelRepresentation = int(np.issubdtype(stored.dtype, np.signedinteger))
    if modality == "CT" or (slope, intercept) != (1.0, 0.0):
        dataset.RescaleIntercept = _number(intercept)
        dataset.RescaleSlope = _number(slope)
        dataset.RescaleType = "HU" if modality == "CT" else "US"
    dataset.add(
        DataElement(0x7FE00010, "OW", stored.astype(stored.dtype.newbyteorder("<")).tobytes())
    )
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(IMPLEMENTATION_UID)
    dataset.file_meta = meta
    return dataset


def _uid(words: str) -> UID:
    return UID(f"2.25.{uuid.uuid5(NAMESPACE, words).int}")


def _number(value: float) -> str:
    """A decimal string of at most 16 characters."""
    for digits in range(12, 3, -1):
        text = f"{float(value):.{digits}g}"
        if len(text) <= 16:
            return text
    return f"{float(value):.3g}"
