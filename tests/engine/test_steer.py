"""Maps that are kept, used again and edited, and regions where a filter does more or less."""

import dataclasses
import json
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch

from medssl import api
from medssl.core.errors import InputError, UsageError
from medssl.core.run import Run
from medssl.core.shapes import tiles
from medssl.denoise import filter2noise
from medssl.engine import estimate, infer, steer
from medssl.engine.device import machine
from medssl.engine.restore import Request, prepare
from medssl.engine.steer import Gathered, Regions, SigmaMaps
from medssl.io.memory import from_array
from medssl.physics.phantom import head

METHODS = ("filter2noise", "filter2noise_scalar", "filter2noise_spatial")
AFFINE = np.diag([1.0, 1.0, 3.0, 1.0])
STEPS = {"train.steps": 4}


@pytest.fixture(scope="module")
def scan():
    truth = head((42, 36, 5)).numpy()
    noise = np.random.default_rng(0).normal(0, 30, truth.shape)
    image = from_array((1000 * truth - 500 + noise).astype(np.float32), AFFINE)
    return dataclasses.replace(image, modality="CT")


def run(image, method="filter2noise_scalar", **words):
    if "filter2noise" in method:
        words.setdefault("settings", STEPS)
    return api.denoise(image, method=method, sigma=30.0, noise="gaussian", threads=1, **words)


@pytest.fixture
def no_fit(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("something was fitted")

    monkeypatch.setattr("medssl.engine.restore.fit", refuse)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_maps_give_the_same_image_again_without_a_fit(scan, method, modality, request):
    image = dataclasses.replace(scan, modality=modality)
    first = run(image, method)
    clean, maps = first
    request.getfixturevalue("no_fit")
    again = run(image, method, sigma_maps=maps)
    assert np.array_equal(again.image.data, clean.data)
    assert np.array_equal(again.sigma_maps, maps)
    assert again.record["medssl"]["recipe"]["sigma_maps"] == "given"
    grid = {"filter2noise": (6, 5, 5), "filter2noise_scalar": (1, 1, 1)}
    assert maps.shape == (2, 3, *grid.get(method, image.shape))


def test_widths_leave_in_image_units_and_come_back_bit_for_bit():
    rng = np.random.default_rng(0)
    method = filter2noise.Config(predictor="scalar").build()
    values = rng.uniform(1e-6, 6, (2, 3, 5, 4)).astype(np.float32)
    for unit in (4096.0, 153.7, 1e-3, 3.0):
        out = SigmaMaps(values, (40, 30), 8).outward(unit)
        assert np.allclose(out[:, 2], values[:, 2] * unit)
        assert np.array_equal(out[:, :2], values[:, :2])
        assert np.array_equal(SigmaMaps.given(out, method, (40, 30), unit).values, values)


def test_parts_of_maps_are_those_of_the_whole():
    rng = np.random.default_rng(0)
    shape = (20, 11, 3)
    for grid in ((3, 2, 3), (20, 11, 3), (1, 1, 1), (1, 11, 1)):
        maps = SigmaMaps(rng.uniform(1, 2, (2, 3, *grid)).astype(np.float32), shape, 8)
        whole = maps.within(tuple(slice(0, n) for n in shape)).expand(1, 2, 3, *shape)
        part = (slice(5, 19), slice(7, 10), slice(1, 3))
        assert torch.equal(
            maps.within(part).expand(1, 2, 3, 14, 3, 2), whole[(..., *part)].contiguous()
        )


def test_maps_of_tiles_make_those_of_the_whole():
    rng = np.random.default_rng(0)
    shape = (24, 16, 5)
    for size, halo, grid, predictor in (
        ((8, 8, 4), (3, 3, 0), shape, "spatial"),
        ((8, 1, 1), (0, 0, 0), shape, "spatial"),
        ((24, 16, 2), (24, 16, 0), (3, 2, 5), "spatial"),
        ((24, 16, 1), (24, 16, 0), (3, 2, 5), "spatial"),
        ((8, 8, 4), (3, 3, 0), (1, 1, 1), "scalar"),
        ((8, 8, 1), (3, 3, 0), (1, 1, 1), "scalar"),
    ):
        method = filter2noise.Config(predictor=predictor).build()
        whole = torch.from_numpy(rng.uniform(1, 2, (1, 2, 3, *grid)).astype(np.float32))
        gathered = Gathered(method, shape, 1 << 20)
        for tile in tiles(shape, size, halo):
            at = [
                slice(None) if g in (1, 3, 2) and g != n else s
                for g, n, s in zip(grid, shape, tile.read, strict=True)
            ]
            gathered.add(tile, whole[(..., *at)])
        assert np.array_equal(gathered.maps.values, whole[0].numpy())
    small = Gathered(filter2noise.Config(predictor="spatial").build(), shape, 10)
    small.add(next(tiles(shape, shape, (0, 0, 0))), torch.ones(1, 2, 3, *shape))
    assert small.maps is None
    assert small.bytes == 4 * 6 * 24 * 16 * 5


@pytest.mark.parametrize("method", [*METHODS, "collaborative_fast", "total_variation"])
def test_a_region_changes_what_it_reaches_and_nothing_else(scan, method):
    inside = np.zeros(scan.shape, bool)
    inside[32:38, 12:20, 1:3] = True
    plain = run(scan, method).image.data[0]
    data = {
        f: run(scan, method, roi=inside, strength_in_roi=f).image.data[0] for f in (0, 1, 0.5, 2)
    }
    assert np.array_equal(data[1], plain)
    assert np.array_equal(data[0][inside], scan.data[0][inside])
    assert np.array_equal(data[0][~inside], plain[~inside])
    removed = {f: np.abs(data[f] - scan.data[0])[inside].mean() for f in data}
    assert removed[0.5] < removed[1] < removed[2]
    far = np.zeros(scan.shape, bool)
    far[:14] = True
    if "filter2noise" in method:
        far[:, :, 3:] = far[:, :, 0] = True
    for f in (0.5, 2):
        assert np.array_equal(data[f][far], plain[far])
        assert not np.array_equal(data[f], plain)


def test_a_region_is_the_same_in_tiles(scan):
    request = Request.of("filter2noise_scalar", STEPS, estimate.Asked(sigma=30.0), None, 0)
    part = (slice(14, 22), slice(12, 20), slice(1, 3))
    regions = Regions.of([part], [2.5], scan.shape)
    request = dataclasses.replace(request, regions=regions)
    ready = prepare(scan, request, machine("cpu"), Run("denoise"))
    whole, _ = infer.infer(ready.scale, ready.image, ready.plan, regions=regions)
    assert ready.plan.halo == (42, 36, 0)
    small = dataclasses.replace(ready.plan, tile=(16, 8, 2))
    small = dataclasses.replace(small, n_tiles=len(list(tiles(scan.shape, small.tile, small.halo))))
    cut, _ = infer.infer(ready.scale, ready.image, small, regions=regions)
    assert small.n_tiles > 20
    assert np.array_equal(cut, whole)


def test_tiles_are_planned_again_after_a_fit(scan, monkeypatch):
    """The reach of a fitted filter is what it learnt, so that its tiles meet without a seam."""
    halos = []

    def fitted(_ready, _whole, method, *_):
        for stage in method.stages:
            stage.theta.data.fill_(2.0)  # softplus makes it 2.13, and its window 7

    def seen(scale, image, plan, **words):
        halos.append(plan.halo)
        return infer.infer(scale, image, plan, **words)

    monkeypatch.setattr("medssl.engine.restore._fit", fitted)
    monkeypatch.setattr(
        "medssl.engine.restore.infer", SimpleNamespace(**vars(infer) | {"infer": seen})
    )
    run(scan)
    assert halos == [(14, 14, 0)]


def test_later_regions_win_and_those_that_keep_need_no_filter():
    boxes = [(slice(0, 4), slice(0, 4)), (slice(2, 6), slice(2, 6))]
    regions = Regions.of(boxes, [0.0, 2.0], (8, 8))
    whole = (slice(0, 8), slice(0, 8))
    assert regions.strength(whole)[3, 3] == 2
    assert not regions.allowed(None)[1, 1]
    assert regions.allowed(None)[3, 3]
    assert regions.change
    assert not Regions.of(boxes, [0.0, 1.0], (8, 8)).change
    assert regions.as_list() == [{"strength": 0.0, "voxels": 12}, {"strength": 2.0, "voxels": 16}]


def test_what_takes_no_local_noise_is_blended():
    rng = np.random.default_rng(0)
    series = (head((24, 24, 6)).numpy()[..., None] + rng.normal(0, 0.05, (24, 24, 6, 8))).astype(
        np.float32
    )
    words = {"method": "mppca", "sigma": 0.05, "noise": "gaussian", "threads": 1}
    plain = api.denoise(series, **words).image
    half = api.denoise(series, roi="4:20,4:20,0:6", strength_in_roi=0.5, **words).image
    inside = (slice(4, 20), slice(4, 20))
    assert np.allclose(half[inside], (series + plain)[inside] / 2, atol=1e-5)
    assert np.array_equal(half[:4], plain[:4])
    with pytest.raises(UsageError, match="mppca can only do less than it does"):
        api.denoise(series, roi="4:20,4:20", strength_in_roi=2, **words)


def test_files_bring_maps_back_and_hold_no_name(scan, tmp_path, request):
    source = tmp_path / "Doe^Jane.nii.gz"
    nib.save(nib.Nifti1Image(scan.data[0], AFFINE), source)
    words = {"preview": True, "save_sigma_maps": True}
    first = run(source, "filter2noise", **words)
    files = {p.name for p in first.files}
    assert {"Doe^Jane_denoised_sigma_maps.nii.gz", "Doe^Jane_denoised_sigma_maps.png"} <= files
    assert all(p.is_file() for p in first.files)
    assert set(first.record["outputs"]) == files
    saved = tmp_path / "Doe^Jane_denoised_sigma_maps.nii.gz"
    peer = nib.load(saved)
    assert peer.get_data_dtype() == np.float64
    assert peer.shape == (6, 5, 5, 6)
    assert peer.header.get_zooms()[:3] == (8, 8, 3)
    assert np.allclose(peer.affine[:3, 3], [3.5, 3.5, 0])
    assert np.array_equal(np.asarray(peer.dataobj)[..., 2], first.sigma_maps[0, 2])
    assert b"Doe" not in saved.read_bytes()
    assert b"Doe" not in bytes(peer.header.binaryblock)
    png = (tmp_path / "Doe^Jane_denoised_sigma_maps.png").read_bytes()
    request.getfixturevalue("no_fit")
    again = run(source, "filter2noise", sigma_maps=saved, out=tmp_path / "b.nii.gz", **words)
    load = [np.asarray(nib.load(f.image).dataobj) for f in (first, again)]
    assert np.array_equal(*load)
    assert (tmp_path / "b_sigma_maps.nii.gz").read_bytes() == saved.read_bytes()
    assert (tmp_path / "b_sigma_maps.png").read_bytes() == png
    edited = nib.Nifti1Image(np.asarray(peer.dataobj) * 2, None, peer.header)
    nib.save(edited, tmp_path / "edited.nii.gz")
    other = run(source, "filter2noise", sigma_maps=tmp_path / "edited.nii.gz", overwrite=True)
    assert not np.array_equal(np.asarray(nib.load(other.image).dataobj), load[0])


def test_maps_that_do_not_fit_are_refused_in_one_line(scan, tmp_path, nifti):
    maps = run(scan).sigma_maps

    def refused(match, kind=InputError, method="filter2noise_scalar", **words):
        with pytest.raises(kind, match=match) as caught:
            run(scan, method, **words)
        assert len(str(caught.value)) < 200

    refused("use the maps of this very image", sigma_maps=np.ones((2, 3, 7, 7, 5)))
    refused("use the maps of this very image", sigma_maps=np.ones((3, 3, 1, 1, 1)))
    refused("sigma maps hold nan", sigma_maps=maps * np.nan)
    refused("sigma maps hold -1", sigma_maps=-np.ones_like(maps))
    refused("sigma maps hold inf", sigma_maps=np.full_like(maps, np.inf))
    refused("a width of 1000 voxels", sigma_maps=np.full_like(maps, 1000.0))
    refused("needs a method with maps", UsageError, method="auto", sigma_maps=maps)
    refused("collaborative has no sigma maps", UsageError, method="collaborative", sigma_maps=maps)
    refused(
        "needs a method with maps", UsageError, method="auto", save_sigma_maps=True, settings=None
    )
    source = nifti(scan.data[0], "scan.nii")
    run(source, save_sigma_maps=True, preview=False)
    saved = tmp_path / "scan_denoised_sigma_maps.nii.gz"
    refused(
        "window 3sigma, filter2noise here has window paper", method="filter2noise", sigma_maps=saved
    )
    refused("holds no maps", sigma_maps=source)
    refused("does not exist", sigma_maps=tmp_path / "none.nii.gz")
    shifted = from_array(scan.data[0], np.diag([1.0, 1.0, 2.0, 1.0]))
    with pytest.raises(InputError, match="mm away from the image's grid"):
        run(shifted, sigma_maps=saved)
    both = from_array(np.stack([scan.data[0]] * 2, -1), AFFINE)
    with pytest.raises(InputError, match="belong to one volume, there are 2"):
        run(both, sigma_maps=maps)


def test_regions_that_are_none_are_refused_in_one_line(scan):
    def refused(match, kind=UsageError, **words):
        with pytest.raises(kind, match=match):
            run(scan, "collaborative_fast", **words)

    refused("not a part of an image of 42 x 36 x 5 voxels", roi="0:50,0:3", strength_in_roi=2)
    refused("not a part of an image", roi="5:5,0:3", strength_in_roi=2)
    refused("not a part of an image", roi="9:5,0:3", strength_in_roi=2)
    refused("--strength-in-roi is -1", roi="0:5,0:3", strength_in_roi=-1.0)
    refused("--strength-in-roi is nan", roi="0:5,0:3", strength_in_roi=float("nan"))
    refused("--roi says nothing without --strength-in-roi", roi="0:5,0:3")
    refused("--strength-in-roi says nothing without --roi", strength_in_roi=0.5)
    refused("2 regions have 3", roi=["0:5,0:3", "1:2,1:2"], strength_in_roi=[1, 2, 3])
    refused("the region is empty", InputError, roi=np.zeros(scan.shape), strength_in_roi=2)
    refused("the region has shape", InputError, roi=np.ones((3, 3, 3)), strength_in_roi=2)
    refused("does not exist", InputError, roi="nowhere.nii.gz", strength_in_roi=2)


def test_a_run_that_filters_nothing_leaves_no_maps(scan, tmp_path, nifti):
    source = nifti(scan.data[0], "scan.nii")
    stale = tmp_path / "scan_denoised_sigma_maps.nii.gz"
    stale.write_text("of another run")
    done = run(source, strength=0.0, save_sigma_maps=True, overwrite=True, preview=False)
    assert not stale.exists()
    assert stale not in done.files
    assert any("no sigma maps to save" in w for w in done.record["warnings"])
    assert stale.name not in json.dumps(done.record)


def test_boxes_are_read_in_the_order_of_the_image():
    assert steer.box("1:3,2:4", (8, 8, 8)) == (slice(1, 3), slice(2, 4), slice(0, 8))
    assert steer.box("1:3,2:4,5:6", (8, 8, 8))[2] == slice(5, 6)
    assert steer.box("mask.nii", (8, 8)) is None
    assert steer.box("C:1,2", (8, 8)) is None
