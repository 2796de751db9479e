"""NIfTI: nothing is lost on the way through, and damaged files are refused in one line."""

import gzip
import struct
import zlib

import nibabel as nib
import numpy as np
import pytest

from medssl.core.errors import InputError, MedsslError
from medssl.io import nifti
from medssl.io.limits import Limits
from medssl.io.write import write

RNG = np.random.default_rng(1)
VOXELS = RNG.integers(0, 1000, (9, 8, 7)).astype(np.int16)


def rich_header(path, dtype=np.int16, kind=nib.Nifti1Image, shape=(6, 5, 4, 3)):
    """A 4D file whose header says as much as a header can."""
    affine = np.array([[-2, 0.1, 0, 40], [0, 2.2, 0.3, -50], [0.1, 0, 3, 7], [0, 0, 0, 1.0]])
    voxels = RNG.integers(0, 100, shape).astype(dtype)
    image = kind(voxels, affine, dtype=dtype)
    header = image.header
    header.set_sform(affine, 4)
    header.set_qform(np.diag([-2.0, 2.2, 3.0, 1.0]), 1)
    header["pixdim"][4] = 2.5
    header.set_xyzt_units("mm", "sec")
    header.set_dim_info(0, 1, 2)
    header["descrip"], header["aux_file"] = b"planted", b"aux"
    if kind is nib.Nifti1Image:
        header["db_name"] = b"db"
    header["slice_code"], header["slice_duration"], header["cal_max"] = 1, 0.1, 77
    header["intent_code"], header["intent_name"] = 0, b"why"
    header.set_slope_inter(0.5, 10)
    header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"an extension of some length"))
    nib.save(image, path)
    return path


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_an_untouched_image_comes_back_bit_for_bit(tmp_path, name, kind):
    source = rich_header(tmp_path / name, kind=kind)
    image = nifti.read(source)
    write(tmp_path / ("out" + name[1:]), image)
    before, after = source.read_bytes(), (tmp_path / ("out" + name[1:])).read_bytes()
    if name.endswith("gz"):
        before, after = gzip.decompress(before), gzip.decompress(after)
    assert after == before


def test_only_voxels_change_when_an_image_changes(tmp_path):
    source = rich_header(tmp_path / "a.nii")
    image = nifti.read(source)
    write(tmp_path / "out.nii", image.with_data(image.data + np.float32(1)))
    offset = int(nib.load(source).header["vox_offset"])
    before, after = source.read_bytes(), (tmp_path / "out.nii").read_bytes()
    assert after[:offset] == before[:offset]
    assert after[offset:] != before[offset:]
    changed = nib.load(tmp_path / "out.nii")
    assert changed.dataobj.slope == 0.5
    assert np.allclose(changed.get_fdata(), nib.load(source).get_fdata() + 1)


def test_axes_affine_and_values_are_those_of_nibabel(tmp_path):
    source = rich_header(tmp_path / "a.nii.gz")
    image, peer = nifti.read(source), nib.load(source)
    assert image.channels == "time"
    assert np.array_equal(np.moveaxis(image.data, 0, -1), peer.get_fdata(dtype=np.float32))
    assert np.array_equal(image.geometry.affine, peer.affine)
    assert any("sform and qform differ" in w for w in image.warnings)


def test_big_endian_stays_big_endian(tmp_path):
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(np.int16)
    nib.save(nib.Nifti1Image(VOXELS, np.eye(4), header), tmp_path / "a.nii")
    image = nifti.read(tmp_path / "a.nii")
    assert np.array_equal(image.data[0], VOXELS)
    write(tmp_path / "out.nii", image)
    assert (tmp_path / "out.nii").read_bytes() == (tmp_path / "a.nii").read_bytes()


def test_a_pair_of_header_and_voxels_comes_back_as_a_pair(tmp_path):
    nib.save(nib.Nifti1Pair(VOXELS, np.diag([2.0, 2, 2, 1])), tmp_path / "a.img")
    for named in ("a.img", "a.hdr"):
        image = nifti.read(tmp_path / named)
        write(tmp_path / "out.img", image, overwrite=True)
        assert (tmp_path / "out.img").read_bytes() == (tmp_path / "a.img").read_bytes()
        assert np.array_equal(nib.load(tmp_path / "out.hdr").affine, image.geometry.affine)
    write(tmp_path / "one.nii", image)
    assert np.array_equal(nib.load(tmp_path / "one.nii").get_fdata(), VOXELS)


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_every_type_keeps_its_bits(tmp_path, dtype):
    info = np.iinfo(dtype) if dtype[0] in "iu" else np.finfo(dtype)
    extremes = np.array([info.min, info.max, 0, 1], dtype).reshape(2, 2, 1)
    if dtype == "f8":
        extremes = np.array([np.pi, 1e-300, 0, -1], dtype).reshape(2, 2, 1)
    nib.save(nib.Nifti1Image(extremes, np.eye(4), dtype=extremes.dtype), tmp_path / "a.nii")
    write(tmp_path / "out.nii", nifti.read(tmp_path / "a.nii"))
    assert (tmp_path / "out.nii").read_bytes() == (tmp_path / "a.nii").read_bytes()


def test_integers_are_rounded_half_to_even_and_clipped(nifti):
    from medssl.io import nifti as nifti_io

    source = nifti(np.array([[[0, 1], [2, 250]]], np.uint8), "a.nii")
    image = nifti_io.read(source)
    changed = np.array([[[[0.5, 1.5], [-7, 300]]]], np.float32)
    written = write(source.with_name("out.nii"), image.with_data(changed))
    out = np.asarray(nib.load(source.with_name("out.nii")).dataobj)
    assert out.tolist() == [[[0, 2], [0, 255]]]
    assert written.clipped == 2


def test_nan_stays_and_is_not_valid(nifti):
    from medssl.io import nifti as nifti_io

    voxels = np.ones((4, 4, 4), np.float32)
    voxels[0, 0, 0], voxels[1, 1, 1] = np.nan, 3
    image = nifti_io.read(nifti(voxels, "a.nii"))
    assert image.valid is not None
    assert image.valid.sum() == 63
    write(image.origin.path.with_name("out.nii"), image.with_data(np.nan_to_num(image.data) + 1))
    out = nib.load(image.origin.path.with_name("out.nii")).get_fdata()
    assert np.isnan(out[0, 0, 0])
    assert out[1, 1, 1] == 4


def test_float32_on_request_has_no_scaling(tmp_path):
    image = nifti.read(rich_header(tmp_path / "a.nii"))
    write(tmp_path / "out.nii", image.with_data(image.data + np.float32(0.3)), dtype="float32")
    out = nib.load(tmp_path / "out.nii")
    assert out.get_data_dtype() == np.float32
    assert np.allclose(np.moveaxis(image.data, 0, -1) + 0.3, out.get_fdata(), atol=1e-5)
    assert out.header["descrip"].item() == b"planted"


def test_equal_voxels_give_equal_gzip_files(tmp_path):
    image = nifti.read(rich_header(tmp_path / "a.nii.gz"))
    write(tmp_path / "b.nii.gz", image)
    write(tmp_path / "c.nii.gz", image)
    assert (tmp_path / "b.nii.gz").read_bytes() == (tmp_path / "c.nii.gz").read_bytes()


def good(tmp_path, name="good.nii"):
    path = tmp_path / name
    nib.save(nib.Nifti1Image(VOXELS, np.diag([1.0, 1.5, 2.0, 1.0]), dtype=np.int16), path)
    return path


def patched(path, offset, code, *values):
    content = bytearray(path.read_bytes())
    struct.pack_into("<" + code, content, offset, *values)
    path.write_bytes(content)
    return path


def zipped(path, damage):
    target = path.with_suffix(".nii.gz")
    target.write_bytes(damage(gzip.compress(path.read_bytes(), mtime=0)))
    return target


def flip(content, at):
    changed = bytearray(content)
    changed[at] ^= 0x40
    return bytes(changed)


REFUSED = {
    "cut header": lambda p: p.write_bytes(p.read_bytes()[:200]) and p,
    "cut voxels": lambda p: p.write_bytes(p.read_bytes()[:-10]) and p,
    "cut gzip": lambda p: zipped(p, lambda c: c[:-200]),
    "cut gzip trailer": lambda p: zipped(p, lambda c: c[:-4]),
    "flipped byte in gzip": lambda p: zipped(p, lambda c: flip(c, len(c) // 2)),
    "wrong crc": lambda p: zipped(p, lambda c: flip(c, len(c) - 7)),
    "wrong length in gzip": lambda p: zipped(p, lambda c: flip(c, len(c) - 2)),
    "dim[0] is 0": lambda p: patched(p, 40, "h", 0),
    "dim[0] is 9": lambda p: patched(p, 40, "h", 9),
    "negative axis": lambda p: patched(p, 42, "h", -3),
    "terabytes": lambda p: patched(p, 40, "5h", 4, 32767, 32767, 32767, 32767),
    "rgb": lambda p: patched(p, 70, "2h", 128, 24),
    "complex": lambda p: patched(p, 70, "2h", 32, 64),
    "unknown type": lambda p: patched(p, 70, "2h", 77, 16),
    "offset in header": lambda p: patched(p, 108, "f", 300.0),
    "offset past end": lambda p: patched(p, 108, "f", 1e6),
    "offset nan": lambda p: patched(p, 108, "f", float("nan")),
    "infinite slope": lambda p: patched(p, 112, "f", float("inf")),
    "bad magic": lambda p: patched(p, 344, "4s", b"n+9\0"),
    "analyze": lambda p: patched(p, 344, "4s", b"\0\0\0\0"),
    "extension of odd length": lambda p: (
        p.write_bytes(
            (c := p.read_bytes())[:108]
            + struct.pack("<f", 384)
            + c[112:348]
            + b"\1\0\0\0"
            + struct.pack("<ii", 17, 6)
            + b"x" * 24
            + c[352:]
        )
        and p
    ),
    "singular sform": lambda p: patched(patched(p, 252, "2h", 0, 1), 280, "12f", *[0.0] * 12),
    "nan sform": lambda p: patched(patched(p, 252, "2h", 0, 1), 280, "f", float("nan")),
    "no voxel size": lambda p: patched(patched(p, 252, "2h", 0, 0), 80, "3f", 0, 0, 0),
    "bad quaternion": lambda p: patched(patched(p, 252, "2h", 1, 0), 256, "3f", 1.0, 1.0, 1.0),
}


@pytest.mark.parametrize("case", REFUSED)
def test_damaged_files_are_refused_in_one_line(tmp_path, case):
    path = REFUSED[case](good(tmp_path))
    with pytest.raises(MedsslError) as caught:
        nifti.read(path)
    line = str(caught.value)
    assert caught.value.code in (3, 5)
    assert "\n" not in line
    assert 10 < len(line) <= 200


def test_all_nan_is_refused(nifti):
    from medssl.io import nifti as nifti_io

    with pytest.raises(InputError, match="100 % of its voxels"):
        nifti_io.read(nifti(np.full((4, 4, 4), np.nan, np.float32)))


def test_a_gzip_bomb_is_not_inflated(tmp_path):
    path = good(tmp_path)
    bomb = path.read_bytes() + bytes(64 << 20)
    path.with_suffix(".nii.gz").write_bytes(gzip.compress(bomb, 9))
    with pytest.raises(InputError, match="after its voxels"):
        nifti.read(path.with_suffix(".nii.gz"), Limits(slack=1 << 20))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda p: zipped(p, lambda c: c + b"garbage at the end"), "bytes after the voxels"),
        (lambda p: patched(p, 72, "h", 99), "bitpix"),
        (lambda p: patched(p, 252, "2h", 0, 0), "no orientation"),
        (lambda p: patched(p, 280, "f", float("nan")), "the other form"),
    ],
)
def test_odd_files_are_read_with_a_warning(tmp_path, change, text):
    path = good(tmp_path)
    patched(path, 252, "2h", 1, 1)
    image = nifti.read(change(path))
    assert np.array_equal(image.data[0], VOXELS)
    assert any(text in w for w in image.warnings)


def test_zeros_after_a_gzip_stream_and_several_members_are_legal(tmp_path):
    path = good(tmp_path)
    content = path.read_bytes()
    path.with_suffix(".nii.gz").write_bytes(
        gzip.compress(content[:500]) + gzip.compress(content[500:]) + bytes(512)
    )
    image = nifti.read(path.with_suffix(".nii.gz"))
    assert np.array_equal(image.data[0], VOXELS)
    assert image.warnings == ()


def test_stored_level_of_compression_does_not_matter(tmp_path):
    path = good(tmp_path)
    made = zlib.compressobj(0, zlib.DEFLATED, 31)
    path.with_suffix(".nii.gz").write_bytes(made.compress(path.read_bytes()) + made.flush())
    assert np.array_equal(nifti.read(path.with_suffix(".nii.gz")).data[0], VOXELS)


@pytest.mark.data
def test_real_files_come_back_bit_for_bit(data_folder, tmp_path):
    paths = [p for d in ("mr", "dmri", "ct/volume") for p in (data_folder / d).rglob("*.nii*")]
    assert paths
    for path in paths:
        target = tmp_path / path.name
        write(target, nifti.read(path), overwrite=True)
        before, after = path.read_bytes(), target.read_bytes()
        if path.name.endswith(".gz"):
            before, after = gzip.decompress(before), gzip.decompress(after)
        assert after == before, path.name
