"""One instance: found, walked, decoded, or refused in one line."""

import os
import struct
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.filewriter import dcmwrite
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from medssl.core.errors import InputError, MedsslError
from medssl.io.dicom import (
    PIXEL_DATA,
    PixelShape,
    Source,
    decode,
    open_instance,
    sources,
    walk,
)
from medssl.io.example_series import ct_series, instance
from medssl.io.limits import Limits
from medssl.io.series import list_series, read_series

SHAPE = (40, 36)


@pytest.fixture
def stored() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4096, SHAPE).astype(np.uint16)


def save(path: Path, dataset: Dataset, syntax: UID | None = None) -> Path:
    """Write a data set, in another native syntax if one is named."""
    if syntax is None:
        dataset.save_as(path, enforce_file_format=True)
        return path
    dataset.file_meta.TransferSyntaxUID = syntax
    dcmwrite(
        path,
        dataset,
        implicit_vr=syntax.is_implicit_VR,
        little_endian=syntax.is_little_endian,
        enforce_file_format=True,
    )
    return path


def pixels(path: Path) -> np.ndarray:
    opened = open_instance(Source(path))
    assert opened is not None
    return decode(opened)[0]


@pytest.mark.parametrize(
    "syntax", [None, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian], ids=str
)
def test_native_syntaxes_give_the_stored_integers(tmp_path, stored, syntax):
    assert np.array_equal(pixels(save(tmp_path / "a", instance(stored), syntax)), stored)


def test_big_endian_comes_out_native(tmp_path, stored):
    dataset = instance(stored)
    dataset[PIXEL_DATA] = DataElement(PIXEL_DATA, "OW", stored.byteswap().tobytes())
    found = pixels(save(tmp_path / "a", dataset, ExplicitVRBigEndian))
    assert np.array_equal(found, stored)
    assert found.dtype.isnative


@pytest.mark.parametrize(
    ("syntax", "plugin"),
    [(RLELossless, "pydicom"), (JPEGLSLossless, "pyjpegls"), (JPEG2000Lossless, "pylibjpeg")],
    ids=str,
)
@pytest.mark.parametrize("signed", [False, True])
def test_lossless_syntaxes_give_the_stored_integers(tmp_path, stored, syntax, plugin, signed):
    if signed:
        stored = stored.astype(np.int16) - 2048
    dataset = instance(stored)
    dataset.compress(syntax, encoding_plugin=plugin, generate_instance_uid=False)
    assert np.array_equal(pixels(save(tmp_path / "a", dataset)), stored)


@pytest.mark.data
def test_nine_encodings_of_one_slice_give_one_array(data_folder):
    files = sorted((data_folder / "odd/dcm_qa_ts/In").glob("*.dcm"))
    if not files:
        pytest.skip("odd/dcm_qa_ts is not there")
    arrays = [pixels(f) for f in files]
    assert len(arrays) == 9
    assert all(np.array_equal(arrays[0], a) and a.dtype == np.uint16 for a in arrays)


def test_missing_preamble_and_meta_is_read_with_a_warning(tmp_path, stored):
    dataset = instance(stored)
    path = tmp_path / "bare"
    del dataset.file_meta
    dcmwrite(path, dataset, implicit_vr=True, little_endian=True, enforce_file_format=False)
    image = read_series(path)
    assert any("transfer syntax" in w for w in image.warnings)
    assert np.array_equal(image.data[0, :, :, 0].T, stored.astype(np.float32) - 1024)


def test_bits_above_bits_stored_are_removed_with_a_warning(tmp_path, stored):
    path = save(tmp_path / "a", instance(stored | np.uint16(0x8000)))
    image = read_series(path)
    assert any("above BitsStored" in w for w in image.warnings)
    assert np.array_equal(image.data[0, :, :, 0].T, stored.astype(np.float32) - 1024)


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"PixelData": b""}, "0 bytes"),
        ({"PixelData": b"\0" * 100}, "100 bytes"),
        ({"PixelData": b"\0" * 2000}, "2000 bytes"),
        ({"Rows": 0}, "Rows"),
        ({"BitsAllocated": 12}, "BitsAllocated"),
        ({"BitsStored": 17}, "BitsStored"),
        ({"Rows": 65535, "Columns": 65535}, "PixelData has"),
        ({"NumberOfFrames": "2000000000"}, "frames"),
        ({"NumberOfFrames": "-1"}, "NumberOfFrames"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "colour"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "colour"),
        ({"RescaleSlope": "0"}, "RescaleSlope"),
        ({"RescaleSlope": "abc"}, "RescaleSlope"),
        ({"RescaleSlope": "nan"}, "not finite"),
        ({"PixelSpacing": ["0", "1"]}, "PixelSpacing"),
        ({"PixelSpacing": ["-1", "1"]}, "PixelSpacing"),
        ({"ImageOrientationPatient": ["1", "0", "0", "1", "0", "0"]}, "orthonormal"),
        ({"ImagePositionPatient": ["1", "0"]}, "ImagePositionPatient"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, dict) else None,
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_damaged_headers_are_refused_in_one_line(tmp_path, stored, change, fact, monkeypatch):
    monkeypatch.setattr(pydicom.config.settings, "writing_validation_mode", pydicom.config.IGNORE)
    monkeypatch.setattr(pydicom.config.settings, "reading_validation_mode", pydicom.config.IGNORE)
    dataset = instance(stored)
    for keyword, value in change.items():
        if keyword.startswith(("Rescale", "Number")) and isinstance(value, str):
            tag = pydicom.datadict.tag_for_keyword(keyword)
            dataset[tag] = DataElement(tag, "LO", value)
        else:
            setattr(dataset, keyword, value)
    path = save(tmp_path / "a", dataset)
    with pytest.raises(MedsslError) as caught:
        read_series(path)
    assert fact in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= 200


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.9, 0.999])
def test_cut_files_are_refused(tmp_path, stored, share):
    path = save(tmp_path / "a.dcm", instance(stored))
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * share)])
    with pytest.raises(InputError):
        read_series(path)


def test_undecodable_syntax_names_uid_and_remedy(tmp_path, stored):
    dataset = instance(stored)
    dataset.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
    dataset.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.55")
    with pytest.raises(InputError, match=r"1\.2\.840\.10008\.1\.2\.4\.55 .*; convert"):
        read_series(save(tmp_path / "a", dataset))


@pytest.mark.parametrize(
    "syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless, UID("1.2.840.10008.1.2.4.70")]
)
def test_random_bytes_as_a_code_stream_are_refused(tmp_path, stored, syntax, capfd):
    dataset = instance(stored)
    junk = np.random.default_rng(1).bytes(500)
    dataset.PixelData = pydicom.encaps.encapsulate([junk])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = syntax
    with pytest.raises(InputError):
        read_series(save(tmp_path / "a", dataset))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("syntax", "plugin"), [(JPEGLSLossless, "pyjpegls"), (JPEG2000Lossless, "pylibjpeg")]
)
def test_code_stream_of_another_size_is_refused(tmp_path, stored, syntax, plugin):
    dataset = instance(stored)
    dataset.compress(syntax, encoding_plugin=plugin, generate_instance_uid=False)
    dataset.Rows = 65535
    with pytest.raises(InputError, match="header says"):
        read_series(save(tmp_path / "a", dataset))


def test_compressed_header_over_raw_pixels_is_refused(tmp_path, stored):
    path = save(tmp_path / "a", instance(stored))
    raw = path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0")
    path.write_bytes(raw)
    with pytest.raises(InputError, match="not compressed"):
        read_series(path)


def test_deep_nesting_is_refused_without_recursion(tmp_path, stored):
    path = save(tmp_path / "a", instance(stored))
    raw = path.read_bytes()
    at = raw.index(struct.pack("<HH", 0x0010, 0x0010))
    head = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF)
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    path.write_bytes(raw[:at] + (head + item) * 50_000 + raw[at:])
    start = time.perf_counter()
    with pytest.raises(InputError, match="nested"):
        read_series(path)
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    ("tail", "fact"),
    [
        (struct.pack("<HH2sHI", 0x0009, 0x1000, b"UN", 0, 0x7FFFFFFF), "claims"),
        (struct.pack("<HH2sHI", 0x0009, 0x1000, b"UT", 0, 0xFFFFFFFF), "no length"),
        (struct.pack("<HH2sHI", 0x0009, 0x1000, b"SQ", 0, 0xFFFFFFFF), "closed"),
        (struct.pack("<HH2sHI", 0x0009, 0x1000, b"SQ", 0, 0x7FFFFFFF), "reaches past"),
        (struct.pack("<HH2sH", 0x0008, 0x0001, b"US", 0), "out of order"),
        (struct.pack("<HH2sH", 0x0009, 0x0001, b"\1\2", 0), "VR"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(tmp_path, stored, tail, fact):
    path = save(tmp_path / "a", instance(stored))
    raw = path.read_bytes()
    at = raw.index(struct.pack("<HH", 0x0010, 0x0010))
    path.write_bytes(raw[:at] + tail + raw[at:])
    with pytest.raises(InputError, match=fact):
        read_series(path)


def test_a_million_tiny_elements_are_refused_soon():
    body = b"".join(
        struct.pack("<HH2sH", 0x0009 + (k >> 15) * 2, 0x1000 + (k & 0x7FFF), b"LO", 0)
        for k in range(300_000)
    )
    start = time.perf_counter()
    with pytest.raises(InputError, match="more than"):
        list(walk(body))
    assert time.perf_counter() - start < 2


def test_walk_yields_nested_elements_with_their_depth(stored):
    dataset = instance(stored)
    inner = Dataset()
    inner.CodeValue = "x"
    dataset.AnatomicRegionSequence = Sequence([inner])
    from io import BytesIO

    for implicit in (False, True):
        target = BytesIO()
        plain = Dataset(dataset)
        dcmwrite(target, plain, implicit_vr=implicit, little_endian=True)
        found = list(walk(target.getvalue(), implicit=implicit))
        assert [e.depth for e in found if e.tag == 0x00080100] == [2]
        assert found[-1].tag == PIXEL_DATA
        assert found[-1].length == stored.nbytes


def test_deflate_bomb_is_refused_under_the_limit(tmp_path, stored):
    dataset = instance(stored)
    path = save(tmp_path / "a", dataset)
    raw = path.read_bytes()
    opened = open_instance(Source(path))
    start = opened.layout.start
    meta = raw[:start].replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99")
    # Two bytes more in the syntax: its own length and that of the group grow.
    at = meta.index(b"\x02\x00\x10\x00UI")
    meta = meta[: at + 6] + struct.pack("<H", 22) + meta[at + 8 :]
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = squeeze.compress(raw[start:])
    body += b"".join(squeeze.compress(bytes(2**20)) for _ in range(64)) + squeeze.flush()
    path.write_bytes(meta + body)
    with pytest.raises(InputError, match="inflates"):
        read_series(path, limits=Limits(slack=2**20))


def test_other_files_are_passed_over(tmp_path, stored):
    folder = tmp_path / "scan"
    ct_series(folder, np.zeros((20, 24, 3)), (1, 1, 2))
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1" + bytes(500))
    (folder / "readme.txt").write_text("hello" * 100)
    with zipfile.ZipFile(folder / "x.zip", "w") as archive:
        archive.writestr("a", "b")
    os.mkfifo(folder / "fifo")
    (folder / "deep").mkdir()
    (folder / "deep" / "again").symlink_to(folder)
    image = read_series(folder)
    assert image.shape == (20, 24, 3)
    assert image.origin.skipped == 3
    assert not image.warnings


@pytest.mark.parametrize("fill", ["nothing", "text", "report"])
def test_folders_without_an_image_say_what_they_hold(tmp_path, stored, fill):
    if fill == "text":
        (tmp_path / "a.txt").write_text("no image" * 50)
    if fill == "report":
        dataset = instance(stored)
        dataset.Modality = "SR"
        del dataset.PixelData
        save(tmp_path / "a", dataset)
    with pytest.raises(InputError, match="SR" if fill == "report" else "no DICOM"):
        list_series(tmp_path)


def test_zip_is_read_in_memory(tmp_path):
    files = ct_series(
        tmp_path / "scan", np.random.default_rng(0).normal(0, 50, (20, 24, 4)), (1,) * 3
    )
    with zipfile.ZipFile(tmp_path / "scan.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for k, file in enumerate(reversed(files)):
            archive.write(file, f"study/{k}.dcm")
        archive.writestr("study/inner.zip", b"PK\3\4" + bytes(200))
    image, direct = read_series(tmp_path / "scan.zip"), read_series(tmp_path / "scan")
    assert np.array_equal(image.data, direct.data)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scan", "scan.zip"]


@pytest.mark.parametrize("name", ["../a.dcm", "/etc/a.dcm", "C:\\a.dcm", "x/../../a"])
def test_zip_members_that_point_outside_are_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(name, "x")
    with pytest.raises(InputError, match="outside"):
        sources(tmp_path / "a.zip")


def test_zip_bomb_and_damaged_member_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(20 * 2**20))
    with pytest.raises(InputError, match="inflates"):
        sources(tmp_path / "a.zip", Limits(ratio=500))
    files = ct_series(tmp_path / "s", np.zeros((20, 24, 1)), (1, 1, 1))
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.write(files[0], "a.dcm")
    raw = bytearray((tmp_path / "b.zip").read_bytes())
    raw[len(raw) // 2] ^= 255
    (tmp_path / "b.zip").write_bytes(raw)
    with pytest.raises(InputError, match="zip member is damaged"):
        read_series(tmp_path / "b.zip")


def test_pixel_shape_knows_its_limits(tmp_path, stored):
    opened = open_instance(Source(save(tmp_path / "a", instance(stored.astype(np.int16) - 2048))))
    shape = PixelShape.of(opened)
    assert (shape.lowest, shape.highest, shape.dtype) == (-2048, 2047, np.int16)
