"""A store gives back what was put in, and refuses what is no store."""

import json
import pickle
import time

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from medssl.core.errors import InputError, OutputError
from medssl.data.foreground import distribution, measure, threshold
from medssl.data.store import Made, Store, read_rows, write_store


def phantom(seed: int, shape=(70, 64, 40)) -> np.ndarray:
    """Air and a block of water with noise, HU."""
    image = np.full((1, *shape), -1000, np.int16)
    image[:, 10:50, 8:50, 5:35] = 40
    return image + np.random.default_rng(seed).normal(0, 12, image.shape).astype(np.int16)


@pytest.fixture
def store(tmp_path) -> Store:
    made = (
        Made(image=phantom(k), key=f"{k:032x}", modality="CT", spacing=(1, 1, 2.5), patient=p)
        for k, p in ((2, "b"), (0, "a"), (1, "a"))
    )
    return write_store(tmp_path / "store", made)


def test_what_was_put_in_comes_out(store):
    assert [v.key for v in store.volumes] == [f"{k:032x}" for k in range(3)]
    assert [v.index for v in store.volumes] == [0, 1, 2]
    for k, volume in enumerate(store.volumes):
        assert np.array_equal(store.read(k), phantom(k))
        assert volume.shape == (1, 70, 64, 40)
        assert volume.spacing == (1, 1, 2.5)
        assert volume.foreground == ((10, 50), (8, 50), (5, 35))
        assert volume.mean == pytest.approx(40, abs=0.5)
        assert volume.sd == pytest.approx(12, abs=0.7)
    assert [v.group for v in store.volumes] == ["a", "a", "b"]


def test_a_crop_is_the_crop_and_keeps_its_type(store):
    part = (slice(3, 9), slice(60, 64), slice(0, 40))
    crop = store.read(1, part)
    assert crop.dtype == np.int16
    assert np.array_equal(crop, phantom(1)[(slice(None), *part)])


def test_the_digest_follows_the_voxels_and_nothing_else(store, tmp_path):
    same = [
        Made(
            image=store.read(v.index), key=v.key, modality="CT", spacing=v.spacing, patient=v.group
        )
        for v in store.volumes
    ]
    assert write_store(tmp_path / "again", same[::-1], codec="lz4").sha256 == store.sha256
    same[0].image[0, 0, 0, 0] += 1
    assert write_store(tmp_path / "other", same).sha256 != store.sha256


def test_a_store_travels_to_other_processes(store):
    there = pickle.loads(pickle.dumps(store))
    assert there == store
    assert np.array_equal(there.read(2), store.read(2))


def test_rows_survive_the_table(store):
    rows = read_rows(store.path)
    assert [r.shape for r in rows] == [(1, 70, 64, 40)] * 3
    assert rows[0].dtype == "int16"


def test_no_store_is_refused(tmp_path, store):
    with pytest.raises(InputError, match="no store"):
        Store.open(tmp_path)
    with pytest.raises(InputError, match="no volume"):
        write_store(tmp_path / "empty", [])
    with pytest.raises(OutputError, match="exists already"):
        write_store(store.path, [])
    (store.path / "volumes.parquet").write_bytes(b"PAR1 no table")
    with pytest.raises(InputError, match="table"):
        Store.open(store.path)
    (store.path / "manifest.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(InputError, match="format 99"):
        Store.open(store.path)
    (store.path / "manifest.json").write_text("[")
    with pytest.raises(InputError, match="damaged"):
        Store.open(store.path)


def test_a_volume_that_is_not_what_the_table_says_is_refused(store):
    files = sorted((store.path / "volumes").iterdir())
    files[0].unlink()
    with pytest.raises(InputError, match="does not exist"):
        store.read(0)
    files[1].write_bytes(b"")
    with pytest.raises(InputError, match="damaged"):
        store.read(1)


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_the_threshold_finds_dark_tissue_beside_air(scale):
    rng = np.random.default_rng(0)
    air = np.hypot(*rng.normal(0, 5, (2, 40, 40, 40)))
    image = np.hypot(rng.normal(0, 5, air.shape) + 60, rng.normal(0, 5, air.shape))
    image[:20] = np.hypot(rng.normal(0, 5, (20, 40, 40)) + 200, 0)
    image[:, :20] = air[:, :20]
    bright = scale * image > threshold(*distribution(scale * image))
    assert bright[:, 20:].mean() > 0.97
    assert bright[:, :20].mean() < 0.03


def test_nothing_around_the_patient_is_nothing():
    image = np.zeros((1, 30, 30, 30), np.float32)
    image[:, 5:20, 4:9, 3:30] = np.random.default_rng(0).uniform(1, 9, (1, 15, 5, 27))
    measured = measure(image, "MR")
    assert measured.box == ((5, 20), (4, 9), (3, 30))
    assert measured.share == pytest.approx(15 * 5 * 27 / 30**3)


def test_zeros_around_the_field_of_view_do_not_make_air_a_patient():
    rng = np.random.default_rng(0)
    image = np.hypot(*rng.normal(0, 15, (2, 60, 60, 20)))
    image[15:45, 20:50] = rng.normal(900, 200, (30, 30, 20)).clip(300)
    image = np.rint(image)
    image[:5], image[:, 55:] = 0, 0
    measured = measure(image[None].astype(np.int16), "MR")
    assert measured.share == pytest.approx(0.25, abs=0.01)
    assert measured.mean == pytest.approx(900, rel=0.05)


def test_integers_and_reals_measure_alike():
    image = phantom(0)
    for modality in ("CT", "MR", "PICTURE"):
        assert measure(image, modality) == measure(image.astype(np.float32), modality)


def test_padding_is_in_no_number():
    image, valid = phantom(0), np.ones((70, 64, 40), np.bool_)
    valid[:, :30] = False
    image[:, ~valid] = 30000
    assert measure(image, "CT", valid).percentiles[2] < 100
    assert measure(image, "MR", valid).box[1][0] == 30


@pytest.mark.paper
def test_a_random_patch_is_read_25_times_faster_than_from_a_zipped_nifti(tmp_path):
    rng = np.random.default_rng(0)
    smooth = gaussian_filter(rng.normal(0, 1, (256, 256, 256)).astype(np.float32), 6)
    noisy = smooth * (300 / smooth.std()) + rng.normal(0, 12, smooth.shape)
    volume = np.rint(noisy).astype(np.int16)
    nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / "a.nii.gz")
    store = write_store(tmp_path / "store", [Made(image=volume[None], key="a")])
    taken = {"store": [], "nii.gz": []}
    for start in rng.integers(0, 160, (12, 3)):
        part = tuple(slice(int(a), int(a) + 96) for a in start)
        before = time.process_time()
        ours = store.read(0, part)[0]
        between = time.process_time()
        theirs = np.asarray(nib.load(tmp_path / "a.nii.gz").dataobj[part])
        taken["store"].append(between - before)
        taken["nii.gz"].append(time.process_time() - between)
        assert np.array_equal(ours, theirs)
    ratio = np.median(taken["nii.gz"]) / np.median(taken["store"])
    assert ratio >= 25, f"nii.gz takes {ratio:.1f} times as long as the store"
