"""Packed arrays come back as they were, whole or in part, or not at all."""

import contextlib
import errno
import os
import sys

import numpy as np
import pytest

from medssl.core.errors import InputError, OutputError, UsageError
from medssl.io import b2nd
from medssl.io.b2nd import open_b2nd, write_b2nd

DTYPES = ("uint8", "int16", "uint16", "int32", "int64", "float16", "float32", "float64")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_every_type_comes_back_bit_for_bit(tmp_path, dtype, codec):
    array = (np.random.default_rng(0).normal(0, 50, (1, 33, 65, 7)) + 100).astype(dtype)
    write_b2nd(tmp_path / "a.b2nd", array, codec)
    packed = open_b2nd(tmp_path / "a.b2nd")
    assert packed.shape == array.shape
    assert packed.dtype == array.dtype
    assert packed[:, :, :, :].tobytes() == array.tobytes()


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 40, 50, 1), (1, 64, 64, 64), (2, 70, 1, 129)])
def test_zeros_and_small_and_odd_shapes(tmp_path, shape):
    for name, array in (("zeros", np.zeros(shape, np.int16)), ("ones", np.ones(shape, np.uint8))):
        write_b2nd(tmp_path / name, array)
        assert np.array_equal(open_b2nd(tmp_path / name)[:, :, :, :], array)


def test_a_part_is_that_part(tmp_path):
    array = np.random.default_rng(1).integers(-1000, 1000, (2, 80, 70, 90)).astype(np.int16)
    write_b2nd(tmp_path / "a", array)
    rng = np.random.default_rng(2)
    for _ in range(20):
        starts = [int(rng.integers(0, n - 1)) for n in array.shape[1:]]
        part = tuple(
            slice(a, int(rng.integers(a + 1, n + 1)))
            for a, n in zip(starts, array.shape[1:], strict=True)
        )
        box = (slice(0, 2), *part)
        assert np.array_equal(open_b2nd(tmp_path / "a")[box], array[box])


def test_memory_and_byte_order_do_not_matter(tmp_path):
    array = np.asfortranarray(np.arange(24, dtype=">i2").reshape(1, 2, 3, 4))
    write_b2nd(tmp_path / "a", array)
    assert np.array_equal(open_b2nd(tmp_path / "a")[:, :, :, :], array)


@pytest.mark.parametrize(
    "array", [np.zeros((1, 0, 4, 4), np.int16), np.zeros((1, 2, 2, 2), complex), np.array([["a"]])]
)
def test_what_cannot_be_packed_is_refused(tmp_path, array):
    with pytest.raises(InputError, match="cannot be packed"):
        write_b2nd(tmp_path / "a", array)
    assert not list(tmp_path.iterdir())


def test_damaged_files_are_one_line_and_never_a_crash(tmp_path):
    rng, file = np.random.default_rng(3), tmp_path / "a"
    write_b2nd(file, rng.integers(0, 1000, (1, 40, 40, 40)).astype(np.int16))
    whole = file.read_bytes()
    for k in range(150):
        harmed = bytearray(whole)
        if k % 2:
            harmed = harmed[: int(rng.integers(0, len(whole)))]
        else:
            for _ in range(20):
                harmed[int(rng.integers(0, 300))] = int(rng.integers(0, 256))
        file.write_bytes(harmed)
        with contextlib.suppress(InputError):
            assert open_b2nd(file)[:, 0:40, 0:40, 0:40].ndim == 4


def test_files_that_are_no_arrays_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        open_b2nd(tmp_path / "none")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(InputError, match="damaged"):
        open_b2nd(tmp_path / "text")


def test_a_stored_expression_is_never_run(tmp_path):
    blosc2 = pytest.importorskip("blosc2")
    left = blosc2.asarray(np.arange(8.0), urlpath=str(tmp_path / "left.b2nd"), mode="w")
    (left + left).save(urlpath=str(tmp_path / "lazy.b2nd"))
    with pytest.raises(InputError):
        open_b2nd(tmp_path / "lazy.b2nd")


def test_an_existing_file_stays(tmp_path):
    write_b2nd(tmp_path / "a", np.zeros((1, 2, 2, 2), np.int16))
    with pytest.raises(OutputError, match="exists already"):
        write_b2nd(tmp_path / "a", np.ones((1, 2, 2, 2), np.int16))
    write_b2nd(tmp_path / "a", np.ones((1, 2, 2, 2), np.int16), overwrite=True)
    assert open_b2nd(tmp_path / "a")[:, :, :, :].all()


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("medssl.io.atomic.os.fsync", full)
    with pytest.raises(OutputError, match="No space left") as refusal:
        write_b2nd(tmp_path / "a", np.zeros((1, 8, 8, 8), np.int16))
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "blosc2", None)
    with pytest.raises(UsageError, match=r"medssl\[archive\]"):
        write_b2nd(tmp_path / "a", np.zeros((1, 2, 2, 2), np.int16))
    with pytest.raises(UsageError, match=r"medssl\[archive\]"):
        open_b2nd(tmp_path / "a")


def test_the_package_is_imported_when_it_is_needed():
    assert "blosc2" not in vars(b2nd)


@pytest.mark.slow
def test_more_than_two_gib(tmp_path):
    shape = (1, 1040, 1040, 1040)
    array = np.zeros(shape, np.int16)
    array[0, ::7, ::11, ::13] = 5
    array[0, -1] = np.random.default_rng(0).integers(0, 999, shape[2:])
    assert array.nbytes > 2**31
    write_b2nd(tmp_path / "a", array)
    packed = open_b2nd(tmp_path / "a")
    for k in (0, 511, 1039):
        part = (slice(0, 1), slice(k, k + 1), slice(0, 1040), slice(0, 1040))
        assert np.array_equal(packed[part], array[part])
    noise = np.random.default_rng(1).integers(-(2**31), 2**31, (1, 820, 820, 820), np.int32)
    assert noise.nbytes > 2**31  # and cannot be packed smaller
    write_b2nd(tmp_path / "b", noise)
    part = (slice(0, 1), slice(700, 820), slice(0, 50), slice(770, 820))
    assert np.array_equal(open_b2nd(tmp_path / "b")[part], noise[part])
