"""Planted copies are found, other scans are not."""

import itertools

import numpy as np
import pytest
from scipy.ndimage import zoom

from medssl.data.duplicates import (
    BITS,
    KEPT,
    MOST,
    NEAR,
    RUN,
    Print,
    common_slices,
    containment,
    link,
    packed,
    slice_hash,
    thinned,
    unpacked,
    voxel_sketch,
)
from medssl.data.foreground import AIR, measure
from medssl.data.store import voxel_hash
from medssl.io.read import read

SHAPE = (96, 88, 40)


def print_of(key: str, volume: np.ndarray, modality: str = "CT", rank: int = 0) -> Print:
    image = np.ascontiguousarray(volume)[None]
    sketch, every = thinned(voxel_sketch(image))
    return Print(
        key=key,
        hash=voxel_hash(image),
        n_voxels=image.size,
        rank=rank,
        sketch=sketch,
        every=every,
        slices=packed(slice_hash(image, measure(image, modality).level)),
    )


@pytest.fixture(scope="module")
def scan(body) -> np.ndarray:
    return body(SHAPE, seed=1)


def planted(scan: np.ndarray) -> dict[str, np.ndarray]:
    """Copies of a scan in every disguise."""
    rng = np.random.default_rng(7)
    shifted = np.full(scan.shape, -1000, scan.dtype)
    shifted[5:, 3:, 2:] = scan[:-5, :-3, :-2]
    fine = zoom(scan.astype(np.float32), (1, 1, 2), order=1)
    return {
        "new UIDs": scan.copy(),
        "crop": scan[11:80, 9:70, 6:35],
        "shift": shifted,
        "re-quantised": (scan // 4 * 4).astype(scan.dtype),
        "resampled": np.rint(fine).astype(scan.dtype),
        "noise": scan + rng.normal(0, 12, scan.shape).astype(np.int16),
        "real numbers": scan.astype(np.float32),
    }


COPIES = ("new UIDs", "crop", "shift", "real numbers")
"""Of these nothing new can be learnt, so the copy goes."""


def test_every_planted_copy_is_linked_and_only_real_copies_go(scan):
    for name, other in planted(scan).items():
        links, copies = link([print_of("a", scan), print_of("b", other)])
        assert [(x.a, x.b) for x in links] == [("a", "b")], name
        assert bool(copies) == (name in COPIES), name


def test_another_patient_is_not_linked(scan, body):
    others = [print_of(f"{k}", body(SHAPE, seed=k)) for k in range(2, 9)]
    assert link([print_of("a", scan), *others]) == ([], {})


def test_halves_of_one_scan_do_not_match_by_voxels_and_overlapping_crops_do(scan):
    a, b = print_of("a", scan[..., :20]), print_of("b", scan[..., 20:])
    assert containment(a, b) == 0
    a, b = print_of("a", scan[..., :26]), print_of("b", scan[..., 14:])
    links, copies = link([a, b])
    assert links[0].test == "overlap"
    assert links[0].share == pytest.approx(12 / 26, abs=0.1)
    assert not copies


def test_order_does_not_matter_and_the_larger_stays(scan):
    prints = [print_of(k, v) for k, v in planted(scan).items()] + [print_of("scan", scan)]
    found = link(prints)
    rng = np.random.default_rng(0)
    for _ in range(3):
        assert link([prints[k] for k in rng.permutation(len(prints))]) == found
    assert found[1]["crop"] in ("new UIDs", "scan", "real numbers", "resampled")


def test_pieces_find_what_the_whole_finds(scan, monkeypatch):
    prints = [print_of(k, v) for k, v in planted(scan).items()]
    found = link(prints)
    monkeypatch.setattr("medssl.data.duplicates.PIECE", 500)
    assert link(prints) == found


def test_of_equal_volumes_the_lower_rank_stays(scan):
    prints = [print_of("a", scan, rank=2), print_of("b", scan), print_of("c", scan, rank=1)]
    assert link(prints)[1] == {"a": "b", "c": "b"}


def test_the_rolling_hash_is_the_hash_of_each_run():
    rng = np.random.default_rng(0)
    image = rng.integers(-1000, 1000, (1, 300, 3, 4)).astype(np.int16)
    image[0, 100:140] = 7  # flat: no run of it says anything
    m, mix, modulus = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93, 2**64
    literal = set()
    for y, z in np.ndindex(3, 4):
        line = [int(v) for v in image[0, :, y, z]]
        for i in range(len(line) - RUN + 1):
            run = line[i : i + RUN]
            if sum(a != b for a, b in itertools.pairwise(run)) < 12:
                continue
            h = 0
            for value in run:
                h = (h * m + value) % modulus
            h = (h ^ (h >> 32)) * mix % modulus
            h ^= h >> 32
            if h % KEPT == 0:
                literal.add(h - modulus if h >= modulus // 2 else h)
    assert sorted(literal) == voxel_sketch(image).tolist()
    assert literal


def test_multiples_hash_as_well_as_other_numbers():
    image = np.random.default_rng(0).integers(0, 99, (1, 64, 64, 64)).astype(np.int32)
    expected = 49 * 64 * 64 / KEPT
    for factor in (1, 16, 4096):
        assert len(voxel_sketch(image * factor)) == pytest.approx(expected, rel=0.1)


def test_reals_that_differ_in_their_last_digits_are_copies():
    image = np.random.default_rng(0).normal(100, 20, (1, 64, 64, 20)).astype(np.float32)
    again = image * np.float32(1 + 2e-7)
    assert (again != image).mean() > 0.5
    assert containment(print_of("a", image[0], "MR"), print_of("b", again[0], "MR")) > 0.9


def test_thin_and_flat_volumes_have_a_sketch_or_none():
    rng = np.random.default_rng(0)
    assert len(voxel_sketch(rng.integers(0, 99, (1, 10, 300, 20)).astype(np.int16)))
    assert not len(voxel_sketch(rng.integers(0, 99, (1, 10, 12, 20)).astype(np.int16)))
    assert not len(voxel_sketch(np.zeros((1, 50, 50, 50), np.int16)))
    assert len(voxel_sketch(rng.integers(0, 99, (3, 200, 300, 1)).astype(np.uint8)))


def test_a_small_crop_of_a_thinned_volume_is_found():
    volume = np.random.default_rng(0).integers(0, 999, (1, 200, 120, 100)).astype(np.int16)
    sketch, every = thinned(voxel_sketch(volume))
    assert len(sketch) <= MOST
    assert every > KEPT
    a, b = print_of("a", volume[0], "MR"), print_of("b", volume[0, 30:110, 20:100, 10:70], "MR")
    assert containment(a, b) == 1


def test_slice_hashes_survive_what_a_copy_goes_through(scan, body):
    first = slice_hash(scan[None], AIR)
    assert first.shape == (SHAPE[2], BITS)
    for name in ("re-quantised", "noise"):
        other = slice_hash(planted(scan)[name][None], AIR)
        apart = (first != other).sum(1)  # more where a slice holds nothing but water and noise
        assert np.median(apart) <= NEAR / 2, name
        assert common_slices(first, other) > 0.6, name
    stranger = slice_hash(body(SHAPE, seed=99)[None], AIR)
    assert (first[:, None] != stranger[None]).sum(2).min() > 2 * NEAR


def test_slices_without_a_body_have_no_hash(scan, body):
    padded = np.full((96, 88, 60), -1000, np.int16)
    padded[..., 10:50] = scan
    shown = slice_hash(padded[None], AIR).any(1)
    assert shown[10:50].all()
    assert shown.sum() == 40
    assert not slice_hash(np.full((1, 50, 50, 9), -1000, np.int16), AIR).any()
    other = np.full((96, 88, 60), -1000, np.int16)
    other[..., 25:] = body((96, 88, 35), seed=5)
    assert link([print_of("a", padded), print_of("b", other)]) == ([], {})
    assert link([print_of("a", np.full((50, 50, 9), -1000)), print_of("b", scan)]) == ([], {})


def test_slices_must_come_in_one_order(scan):
    bits = slice_hash(scan[None], AIR)
    assert common_slices(bits, bits) == 1
    assert common_slices(bits, bits[::-1]) < 0.5
    assert common_slices(bits, bits[::2]) == 1
    assert common_slices(bits, bits[:0]) == 0


def test_slice_hashes_survive_bytes(scan):
    bits = slice_hash(scan[None], AIR)
    assert len(packed(bits)) == 32 * len(bits)
    assert np.array_equal(unpacked(packed(bits)), bits)
    assert unpacked(b"").shape == (0, BITS)


def test_a_crowd_of_crops_is_one_group(scan):
    rng = np.random.default_rng(0)
    prints = [print_of("whole", scan)]
    for k in range(70):
        x, y, z = rng.integers(0, 20, 3)
        prints.append(print_of(f"{k}", scan[x : x + 60, y : y + 60, z : z + 20]))
    _, copies = link(prints)
    assert copies == {f"{k}": "whole" for k in range(70)}


@pytest.mark.data
def test_real_copies_and_real_strangers(data_folder):
    scan = read(data_folder / "ct/volume/example_ct.nii.gz").data[0].astype(np.int16)
    series = read(data_folder / "ct/series_3mm_dicom").data[0].astype(np.int16)
    for name, other in planted(scan).items():
        if name == "shift":
            other = np.roll(scan, 3, (0, 1, 2))
        links, copies = link([print_of("a", scan), print_of("b", other)])
        assert len(links) == 1, name
        assert bool(copies) == (name in COPIES), name
    assert link([print_of("a", scan), print_of("b", series)]) == ([], {})
    low, high = print_of("a", series[..., :10]), print_of("b", series[..., 10:])
    assert containment(low, high) == 0


@pytest.mark.data
def test_dose_pairs_match_and_other_slices_do_not(data_folder):
    bits = {}
    for number in ("18", "176"):
        with np.load(data_folder / f"ct/mayo_l506/L506_{number}_HU.npz") as held:
            for name in held.files:
                plane = np.rint(held[name]).astype(np.int16).reshape(1, 512, 512, 1)
                bits[number, name] = slice_hash(plane, AIR)[0]
    names = sorted({name for _, name in bits})
    assert len(names) >= 2
    low, full = names[:2]
    assert (bits["18", low] != bits["18", full]).sum() <= NEAR
    assert (bits["18", low] != bits["176", full]).sum() > 60
