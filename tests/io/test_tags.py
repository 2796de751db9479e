"""The fast header scanner: pydicom's values on every encoding, and nothing that upsets it."""

import math
import random
import struct
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)

from medssl.core.errors import InputError, MedsslError
from medssl.io import tags

IMPLICIT, EXPLICIT = ImplicitVRLittleEndian, ExplicitVRLittleEndian
NUMBERS = {"DS": float, "FD": float, "IS": int, "US": int}


def header_set(**changes) -> Dataset:
    """A header with every wanted tag, and sequences, private and unknown elements between."""
    inner = Dataset()
    inner.CodeValue, inner.CodeMeaning = "T-D1100", "Head"
    inner.AnatomicRegionModifierSequence = Sequence([Dataset(), Dataset()])
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "NORM"]
    dataset.SOPClassUID, dataset.SOPInstanceUID = MRImageStorage, generate_uid()
    dataset.Modality, dataset.Manufacturer = "MR", "SIEMENS "
    dataset.SeriesDescription, dataset.PatientName = "t2 spin échò", "Müller^Jörg"
    dataset.PatientID, dataset.AnatomicRegionSequence = " 4711 ", Sequence([inner, inner])
    dataset.add_new(0x00091001, "UN", b"\x01\x02\x03\x04")
    dataset.ContrastBolusAgent, dataset.BodyPartExamined = "Gadovist", "HEAD"
    dataset.SliceThickness, dataset.KVP, dataset.EchoTime = "3.0", "120", "101.5"
    dataset.DiffusionBValue, dataset.ConvolutionKernel = 800.0, "B30f"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.InstanceNumber, dataset.FrameOfReferenceUID = 7, generate_uid()
    dataset.ImagePositionPatient = [-120.5, 3, 1e-3]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 0.8660254, 0.5]
    dataset.TemporalPositionIdentifier = 2
    dataset.add_new(0x00211001, "OB", b"\0" * 40)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = 10, 512, 384
    dataset.PixelSpacing, dataset.BitsStored = [0.5, 0.75], 12
    dataset.BurnedInAnnotation, dataset.LossyImageCompression = "NO", "00"
    dataset.RescaleIntercept, dataset.RescaleSlope = "-1024", "1"
    dataset.RequestAttributesSequence = Sequence([inner])
    for keyword, value in changes.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    return dataset


def save(path: Path, dataset: Dataset, syntax: str = EXPLICIT, undefined: bool = False) -> Path:
    """Write it with eight bytes of pixels; sequences and items without a length when asked."""
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.BitsAllocated = 16
    dataset.PixelData = np.arange(4, dtype=np.uint16).tobytes()
    dataset["PixelData"].VR = "OW"
    for element in dataset.iterall():
        if element.VR == "SQ":
            element.is_undefined_length = undefined
            for item in element.value:
                item.is_undefined_length_sequence_item = undefined
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    return path


def wanted(path: Path) -> dict:
    """What pydicom reads of the same tags."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(path, stop_before_pixels=True)
        return {
            name: plain(dataset.file_meta if tag >> 16 == 2 else dataset, name, tag)
            for name, tag in tags.TAGS.items()
        }


def plain(dataset: Dataset, name: str, tag: int):
    element = dataset.get(tag)
    vr = pydicom.datadict.dictionary_VR(tag)
    value = element.value if element is not None else None
    several = list(value) if isinstance(value, MultiValue) else [value]
    if value is None or value == "" or several == []:
        return () if name in tags.LISTS else None if vr in NUMBERS else ""
    if name in tags.LISTS:
        return tuple(str(v).strip() if vr == "CS" else float(v) for v in several)
    if vr in NUMBERS:
        return NUMBERS[vr](several[0])
    return "\\".join(map(str, several)).strip(" \0")


def read(path: Path) -> dict:
    found = tags.scan(path)
    assert found is not None
    assert found.by == "scanner"
    return {name: getattr(found, name) for name in tags.TAGS}


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT])
def test_every_tag_is_what_pydicom_reads(tmp_path, syntax, undefined):
    path = save(tmp_path / "a.dcm", header_set(), syntax, undefined)
    found = read(path)
    assert found == wanted(path)
    assert found["patient_name"] == "Müller^Jörg"
    assert found["frames"] == 10
    assert found["orientation"][4] == 0.8660254


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "rtplan.dcm", "image_dfl.dcm"])
def test_files_of_other_people(name):
    path = Path(get_testdata_file(name))
    found = tags.read_header(path)
    assert {n: getattr(found, n) for n in tags.TAGS} == wanted(path)
    assert found.by == ("pydicom" if name == "image_dfl.dcm" else "scanner")


def test_a_number_that_is_none_is_absent(tmp_path):
    dataset = header_set(KVP=None, PixelSpacing=None)
    path = save(tmp_path / "a.dcm", dataset)
    raw = path.read_bytes()
    bent = raw.replace(b"101.5 ", b"a few ").replace(b"-1024 ", b"1e999 ")
    path.write_bytes(bent)
    found = tags.scan(path)
    assert (found.kvp, found.spacing, found.echo_time, found.intercept) == (None, (), None, None)


def test_unknown_sequences_without_length_are_implicit_inside(tmp_path):
    item = struct.pack("<HHI", 0x0008, 0x0100, 4) + b"ABCD"
    nested = struct.pack("<HHI", 0x0008, 0x1140, 0xFFFFFFFF)  # a sequence in it, as deep again
    nested += struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item
    nested += struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    unknown = struct.pack("<HH2sHI", 0x0019, 0x1001, b"UN", 0, 0xFFFFFFFF)
    unknown += struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) + item + nested
    unknown += struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    path = save(tmp_path / "a.dcm", header_set())
    raw = path.read_bytes()
    at = raw.index(b"\x20\0\x0d\0UI")
    path.write_bytes(raw[:at] + unknown + raw[at:])
    assert read(path) == wanted(path)


def test_long_headers_are_read_on(tmp_path):
    dataset = header_set()
    dataset.add_new(0x00191002, "OB", bytes(3 * tags.WINDOW))
    path = save(tmp_path / "a.dcm", dataset)
    assert read(path) == wanted(path)
    dataset.add_new(0x00191002, "OB", bytes(tags.LARGEST_WINDOW))
    path = save(tmp_path / "b.dcm", dataset)
    assert tags.scan(path) is None
    assert tags.read_header(path).rows == 512


@pytest.mark.parametrize("syntax", [ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_other_bytes_are_left_to_pydicom(tmp_path, syntax):
    dataset = header_set()
    del dataset[0x00091001], dataset[0x00211001]
    dataset = save(tmp_path / "little.dcm", dataset) and pydicom.dcmread(tmp_path / "little.dcm")
    dataset.file_meta.TransferSyntaxUID = syntax
    path = tmp_path / "a.dcm"
    little = syntax != ExplicitVRBigEndian
    pydicom.dcmwrite(path, dataset, implicit_vr=False, little_endian=little)
    assert tags.scan(path) is None
    found = tags.read_header(path)
    assert found.by == "pydicom"
    assert {n: getattr(found, n) for n in tags.TAGS} == wanted(path)


def test_without_preamble_pydicom_reads(tmp_path):
    path = save(tmp_path / "a.dcm", header_set(), IMPLICIT)
    raw = path.read_bytes()
    bare = tmp_path / "bare.dcm"
    bare.write_bytes(raw[raw.index(b"\x08\0\x05\0") :])
    assert tags.scan(bare) is None
    found = tags.read_header(bare)
    assert (found.by, found.rows, found.patient_id) == ("pydicom", 512, "4711")


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT])
@pytest.mark.parametrize("shared_plane", [False, True])
def test_geometry_of_enhanced_images_comes_from_functional_groups(
    tmp_path, syntax, undefined, shared_plane
):
    shared, first, second, echo = Dataset(), Dataset(), Dataset(), Dataset()
    measures, plane, at, later = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.5, 0.75], 2.5
    plane.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    at.ImagePositionPatient, later.ImagePositionPatient = [1, 2, 3], [4, 5, 6]
    echo.EffectiveEchoTime = 77.5
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.MREchoSequence = Sequence([echo])
    (shared if shared_plane else first).PlaneOrientationSequence = Sequence([plane])
    first.PlanePositionSequence, second.PlanePositionSequence = Sequence([at]), Sequence([later])
    first.ReferencedImageSequence = Sequence([header_set(PixelSpacing=[9, 9])])
    names = ("PixelSpacing", "SliceThickness", "ImageOrientationPatient", "ImagePositionPatient")
    empty = dict.fromkeys((*names, "EchoTime"))
    dataset = header_set(SOPClassUID=EnhancedMRImageStorage, **empty)
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    dataset.PerFrameFunctionalGroupsSequence = Sequence([first, second])
    path = save(tmp_path / "a.dcm", dataset, syntax, undefined)
    found = tags.scan(path)
    assert (found.spacing, found.thickness, found.echo_time) == ((0.5, 0.75), 2.5, 77.5)
    assert (found.position, found.orientation) == ((1, 2, 3), (1, 0, 0, 0, 1, 0))
    assert found == tags.parse(path)._replace(by="scanner")


def test_what_is_no_dicom_is_none_and_what_is_hostile_is_refused(tmp_path):
    for name, content in {
        "empty": b"",
        "text": b"notes" * 100,
        "short": b"\0" * 128 + b"DICM",
    }.items():
        (tmp_path / name).write_bytes(content)
        assert tags.scan(tmp_path / name) is None
        with pytest.raises(InputError):
            tags.read_header(tmp_path / name)
    assert tags.scan(tmp_path) is None
    assert tags.scan(tmp_path / "missing") is None
    meta = save(tmp_path / "a.dcm", header_set()).read_bytes()
    at = meta.index(b"\x08\0\x08\0CS")
    deep = b"".join(
        struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF)
        + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
        for _ in range(5000)
    )
    (tmp_path / "deep").write_bytes(meta[:at] + deep)
    assert tags.scan(tmp_path / "deep") is None
    with pytest.raises(InputError, match="nested deeper"):
        tags.read_header(tmp_path / "deep")


def mutated(raw: bytes, chance: random.Random) -> bytes:
    """Damage: flipped bytes, a cut, a lost, doubled or moved piece, hostile lengths."""
    body = bytearray(raw)
    kind = chance.randrange(5)
    at = chance.randrange(len(body))
    size = chance.randrange(1, 64)
    if kind == 0:
        for _ in range(chance.randrange(1, 17)):
            body[chance.randrange(len(body))] = chance.randrange(256)
    elif kind == 1:
        del body[at:]
    elif kind == 2:
        del body[at : at + size]
    elif kind == 3:
        body[at:at] = body[at : at + size]
    else:
        hostile = chance.choice(
            [b"\xff\xff\xff\xff", b"\xfe\xff\xff\xff", b"\0\0\0\0", b"\xff\xff"]
        )
        body[at : at + len(hostile)] = hostile
    return bytes(body)


def test_two_thousand_mutations_end_in_a_header_or_one_line(tmp_path):
    seeds = [
        save(tmp_path / "a", header_set(), EXPLICIT, True).read_bytes(),
        save(tmp_path / "b", header_set(), IMPLICIT, True).read_bytes(),
        save(tmp_path / "c", header_set(SOPClassUID=EnhancedMRImageStorage)).read_bytes(),
        Path(get_testdata_file("MR_small_bigendian.dcm")).read_bytes()[:3000],
        Path(get_testdata_file("image_dfl.dcm")).read_bytes(),
    ]
    chance = random.Random(0)
    path = tmp_path / "damaged"
    outcomes = {"scanner": 0, "pydicom": 0, "refused": 0}
    slowest = 0.0
    for i in range(2000):
        path.write_bytes(mutated(seeds[i % len(seeds)], chance))
        start = time.process_time()
        try:
            found = tags.read_header(path)
            outcomes[found.by] += 1
            numbers = (*found.position, *found.orientation, *found.spacing, found.echo_time or 0)
            assert all(map(math.isfinite, numbers))
        except MedsslError:
            outcomes["refused"] += 1
        slowest = max(slowest, time.process_time() - start)
    assert min(outcomes.values()) > 20
    assert slowest < 2


def test_scanning_needs_only_the_standard_library():
    code = (
        "import sys; import medssl.io.tags; "
        "assert not {'pydicom', 'numpy', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.data
def test_all_real_files_read_as_pydicom_reads_them(data_folder):
    by = {"scanner": 0, "pydicom": 0}
    for path in sorted(p for p in data_folder.rglob("*") if p.is_file()):
        with path.open("rb") as handle:
            if handle.read(132)[128:] != b"DICM":
                continue
        found = tags.read_header(path)
        by[found.by] += 1
        expected = wanted(path)
        names = [n for n in tags.TAGS if expected[n] not in ((), None) or found.frames is None]
        assert {n: getattr(found, n) for n in names} == {n: expected[n] for n in names}, path.name
        assert found == tags.parse(path)._replace(by=found.by), path.name
    assert by["scanner"] > 100
    assert by["pydicom"] <= 0.1 * sum(by.values())
