"""The journey of one image through the engine, and the kinds that the API takes and gives."""

import dataclasses
import json

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch

from medssl import api, config
from medssl.core.errors import InputError, UsageError
from medssl.core.image import Image
from medssl.core.run import Run
from medssl.core.shapes import tiles
from medssl.engine import estimate, infer
from medssl.engine.build import restorer
from medssl.engine.device import machine
from medssl.engine.restore import Request, _blocks, prepare
from medssl.io.example_series import ct_series
from medssl.io.memory import from_array
from medssl.physics.noise import NonCentralChi, Rician
from medssl.physics.phantom import head

AFFINE = np.diag([1.0, 1.0, 1.5, 1.0])


def prepared(image, **words):
    asked = estimate.asked(words.pop("noise", "auto"), words.pop("sigma", "auto"))
    request = Request.of(words.pop("method", "auto"), words, asked, None, 0)
    return prepare(image, request, machine("cpu"), Run("denoise"))


@pytest.mark.parametrize(
    ("method", "mean", "most"), [("collaborative_fast", 1e-4, 0.02), ("collaborative", 1e-3, 0.5)]
)
def test_tiles_and_the_whole_agree(brain, method, mean, most):
    ready = prepared(from_array(brain, AFFINE), noise="rician", method=method)
    whole, _ = infer.infer(ready.scale, ready.image, ready.plan)
    cut = dataclasses.replace(ready.plan, tile=(16, 16, 8), halo=ready.plan.halo)
    cut = dataclasses.replace(cut, n_tiles=len(list(tiles(brain.shape, cut.tile, cut.halo))))
    tiled, _ = infer.infer(ready.scale, ready.image, cut)
    assert cut.n_tiles > 8
    far = np.abs(tiled - whole) / ready.noise.sigma
    assert far.mean() < mean
    assert far.max() < most  # a coefficient at the threshold, or a window of a stack, may differ


def test_quality_chooses_the_recipe(brain):
    names = {
        q: api.denoise(brain, quality=q, dry_run=True).choice.recipe.name
        for q in ("fast", "standard", "high")
    }
    assert names == {
        "fast": "collaborative_fast",
        "standard": "collaborative",
        "high": "collaborative_high",
    }
    assert api.denoise(brain, dry_run=True).choice.recipe.name == "collaborative"
    with pytest.raises(UsageError, match="--quality goes with --method auto"):
        api.denoise(brain, method="collaborative", quality="fast")
    with pytest.raises(UsageError, match="unknown key 'blok'"):
        api.denoise(brain, settings={"method.blok": [4, 4, 4]})


def test_better_quality_is_closer_to_the_truth():
    truth = head((48, 48, 24))
    noisy = Rician(0.06).sample(truth, torch.Generator().manual_seed(0))
    seen = truth > 0.12
    errors = [
        float((api.denoise(noisy, quality=q).image - truth)[seen].square().mean())
        for q in ("fast", "standard", "high")
    ]
    assert errors[1] < errors[0]
    assert errors[2] < errors[1] * 1.01


def test_threads_do_not_change_the_result(brain):
    one = api.denoise(brain, noise="rician", threads=1).image
    two = api.denoise(brain, noise="rician", threads=2).image
    assert np.abs(one - two).max() < 1e-3


def test_two_runs_are_equal(brain):
    assert np.array_equal(api.denoise(brain).image, api.denoise(brain).image)


def test_a_phantom_gains_and_the_gain_is_predicted():
    truth = head((64, 64, 32))
    noisy = Rician(0.08).sample(truth, torch.Generator().manual_seed(0))
    done = api.denoise(noisy)
    where = truth > 0.16
    before = float((noisy - truth)[where].square().mean())
    after = float((done.image - truth)[where].square().mean())
    gain = 10 * np.log10(before / after)
    assert gain > 4
    assert done.noise.law.name == "rician"
    assert done.noise.sigma == pytest.approx(0.08, rel=0.1)
    assert done.qc["predicted"]["gain_db"] == pytest.approx(gain, abs=1.5)


def test_a_clean_image_is_hardly_changed():
    truth = head((48, 48, 24)).numpy()
    clean = api.denoise(truth).image
    assert np.sqrt(((clean - truth) ** 2).mean()) < 0.005


def test_zeros_and_invalid_voxels_come_back(brain):
    brain = brain.copy()
    brain[:, :18] = 0
    brain[5, 30, 5] = np.nan
    clean = api.denoise(brain).image
    assert (clean[:, :18] == 0).all()
    assert np.isnan(clean[5, 30, 5])
    assert np.isfinite(clean).sum() == brain.size - 1
    assert not np.array_equal(clean[:, 18:], brain[:, 18:])


def test_a_mask_bounds_the_change(brain):
    mask = np.zeros(brain.shape, bool)
    mask[10:20] = True
    clean = api.denoise(brain, mask=mask).image
    assert np.array_equal(clean[~mask], brain[~mask])
    assert not np.array_equal(clean[mask], brain[mask])
    with pytest.raises(InputError, match="the mask has shape"):
        api.denoise(brain, mask=mask[:5])
    with pytest.raises(InputError, match="the mask is empty"):
        api.denoise(brain, mask=np.zeros(brain.shape, bool))


def test_strength_scales_the_change(brain):
    whole, half = (api.denoise(brain, strength=s).image for s in (1.0, 0.5))
    assert np.allclose(half - brain, (whole - brain) / 2, atol=1e-4)
    assert np.array_equal(api.denoise(brain, strength=0.0).image, brain)


def test_a_series_is_filtered_volume_by_volume(brain):
    both = np.stack([brain, brain[::-1]], -1)
    clean = api.denoise(both, sigma=6, noise="rician").image
    alone = api.denoise(brain, sigma=6, noise="rician").image
    assert clean.shape == both.shape
    assert np.allclose(clean[..., 0], alone, atol=1e-4)


def test_what_goes_in_comes_out(brain, tmp_path):
    integers = np.round(brain).astype(np.int16)
    assert api.denoise(integers).image.dtype == np.int16
    tensor = torch.from_numpy(brain).double()
    assert api.denoise(tensor).image.dtype == torch.float64
    array, affine = api.denoise((brain, AFFINE)).image
    assert array.shape == brain.shape
    assert affine is AFFINE
    image = from_array(brain, AFFINE)
    assert isinstance(api.denoise(image).image, Image)
    peer = nib.Nifti1Image(integers, AFFINE)
    peer.header["descrip"] = b"kept"
    peer.header.set_sform(AFFINE, 2)
    made = api.denoise(peer).image
    assert isinstance(made, nib.Nifti1Image)
    assert made.get_data_dtype() == np.int16
    assert made.header["descrip"].item() == b"kept"
    assert int(made.header["sform_code"]) == 2
    assert np.array_equal(made.affine, AFFINE)
    assert np.array_equal(np.asarray(made.dataobj), api.denoise((integers, AFFINE)).image[0])
    nib.save(peer, tmp_path / "a.nii")
    done = api.denoise(tmp_path / "a.nii")
    assert done.image == tmp_path / "a_denoised.nii"
    assert np.array_equal(np.asarray(nib.load(done.image).dataobj), np.asarray(made.dataobj))
    with pytest.raises(InputError, match="is not a scan"):
        api.denoise(7)
    with pytest.raises(UsageError, match="out= goes with a path"):
        api.denoise(brain, tmp_path / "b.nii")


def test_dicom_data_sets_in_and_out(tmp_path):
    rng = np.random.default_rng(0)
    ct_series(tmp_path / "ct", rng.normal(40, 25, (48, 40, 5)).astype(np.float32), (1, 1, 3))
    given = [pydicom.dcmread(p) for p in sorted((tmp_path / "ct").iterdir())]
    made = api.denoise(given, sigma=25).image
    assert [d.InstanceNumber for d in made] == [d.InstanceNumber for d in given]
    assert all(m.SOPInstanceUID != g.SOPInstanceUID for m, g in zip(made, given, strict=True))
    assert all(m.ImageType[0] == "DERIVED" for m in made)
    spread = [np.mean([d.pixel_array.std() for d in series]) for series in (given, made)]
    assert spread[1] < 0.7 * spread[0]


def test_a_result_unpacks_into_image_and_maps(brain):
    image, maps = api.denoise(brain)
    assert image.shape == brain.shape
    assert maps is None


def test_the_record_is_plain_and_says_all(brain, tmp_path, nifti):
    done = api.denoise(nifti(brain), preview=False)
    record = json.loads((tmp_path / "scan_denoised.json").read_text())
    assert record == json.loads(json.dumps(done.record))
    facts = record["medssl"]
    for key in (
        "method",
        "why",
        "recipe",
        "seed",
        "noise",
        "plan",
        "qc",
        "seconds",
        "versions",
        "geometry",
        "voxels_sha256",
        "clipped",
        "complete",
    ):
        assert key in facts, key
    assert record["Sources"][0]["name"] == "scan.nii.gz"
    assert len(record["Sources"][0]["sha256"]) == 64


def test_modality_of_a_volume_without_header():
    rng = np.random.default_rng(0)
    hu = np.where(np.indices((40, 40, 6))[0] < 20, -1000, 40) + rng.normal(0, 20, (40, 40, 6))
    assert estimate.modality(from_array(hu.astype(np.int16), AFFINE)) == "CT"
    assert estimate.modality(from_array(np.abs(hu).astype(np.int16), AFFINE)) == ""


@pytest.mark.parametrize("shape", [(96, 100), (100, 96, 1), (96, 96, 6)])
def test_ct_of_any_depth(shape):
    rng = np.random.default_rng(0)
    body = np.hypot(*(np.indices(shape)[k] / shape[k] - 0.5 for k in (0, 1))) < 0.4
    truth = np.where(body, 40.0, -1000.0)
    noisy = (truth + rng.normal(0, 30, shape)).astype(np.float32)
    done = api.denoise(noisy, strength=1.0)
    assert done.record["medssl"]["geometry"]["modality"] == "CT"
    errors = [np.sqrt(((x - truth)[body] ** 2).mean()) for x in (noisy, done.image)]
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("shape", [(64, 48), (64, 48, 1), (64, 64, 8), (20, 16, 6)])
def test_ct_with_too_little_flat_tissue_is_not_made_worse(shape):
    rng = np.random.default_rng(0)
    body = np.hypot(*(np.indices(shape)[k] / shape[k] - 0.5 for k in (0, 1))) < 0.4
    truth = np.where(body, 40.0, -1000.0)
    noisy = (truth + rng.normal(0, 30, shape)).astype(np.float32)
    done = api.denoise(noisy)
    errors = [np.sqrt(((x - truth) ** 2).mean()) for x in (noisy, done.image)]
    assert errors[1] <= errors[0]
    assert done.record["warnings"]


def test_a_learned_method_fits_and_runs(brain):
    words = {"train.steps": 3, "train.crop": 16}
    clean = api.denoise(brain, method="filter2noise-scalar", settings=words).image
    assert clean.shape == brain.shape
    assert np.isfinite(clean).all()


def test_a_map_of_sigma_serves_better_than_one_number(tmp_path):
    truth = head((64, 64, 24)).numpy()
    gain = np.linspace(0.3, 1.7, 64, dtype=np.float32)[:, None, None] * np.ones_like(truth)
    sigma = 0.06 * gain
    noisy = (
        gain
        * Rician(0.06)
        .sample(torch.from_numpy(truth / gain), torch.Generator().manual_seed(0))
        .numpy()
    )
    errors = {}
    for word, given in {"map": sigma, "number": float(np.sqrt((sigma**2).mean()))}.items():
        clean = api.denoise(noisy, sigma=given, noise="rician", quality="fast").image
        errors[word] = float(((clean - truth)[truth > 0.1] ** 2).mean())
    assert errors["map"] < 0.95 * errors["number"]
    nib.save(nib.Nifti1Image(noisy, AFFINE), tmp_path / "scan.nii")
    nib.save(nib.Nifti1Image(sigma, AFFINE), tmp_path / "sigma.nii.gz")
    nib.save(nib.Nifti1Image(sigma[1:], AFFINE), tmp_path / "other.nii.gz")
    done = api.denoise(
        tmp_path / "scan.nii",
        sigma=str(tmp_path / "sigma.nii.gz"),
        noise="rician",
        quality="fast",
        noise_map=True,
        preview=False,
    )
    assert np.allclose(done.noise.sigma_map, sigma)
    with pytest.raises(InputError, match="map of sigma"):
        api.denoise(tmp_path / "scan.nii", sigma=str(tmp_path / "other.nii.gz"), overwrite=True)
    with pytest.raises(UsageError, match="not above 0"):
        api.denoise(noisy, sigma=sigma - 1)


def test_coils_are_given_or_estimated():
    truth = head((64, 64, 24))
    noisy = NonCentralChi(0.06, 6).sample(truth, torch.Generator().manual_seed(0)).numpy()
    given = api.denoise(noisy, noise="chi", coils=6, dry_run=True).noise.law
    own = api.denoise(noisy, noise="chi", dry_run=True).noise.law
    assert given.n_coils == 6
    assert given.sigma == pytest.approx(0.06, rel=0.06)
    assert own.n_coils == pytest.approx(6, rel=0.4)
    with pytest.raises(UsageError, match="--coils"):
        api.denoise(noisy, noise="rician", coils=6)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("noise2score", (40, 36, 12)),
        ("noise2score", (40, 36, 2)),
        ("r2r", (40, 36, 12)),
        ("sure", (40, 36)),
        ("cbsn", (40, 36, 2)),
    ],
)
def test_learned_methods_take_volumes_stacks_and_pictures(brain, name, shape):
    """Volumes are learnt from in cubes, thin stacks and pictures in squares."""
    scan = brain[..., 6 : 6 + shape[-1]] if len(shape) == 3 else brain[..., 12]
    words = {"train.steps": 2, "train.crop": 16}
    done = api.denoise(scan, method=name, settings=words)
    assert done.image.shape == scan.shape
    assert np.isfinite(done.image).all()


def test_a_picture_under_a_named_law_keeps_its_zero():
    counts = np.random.default_rng(0).poisson(200 * head((64, 64)).numpy() + 30)
    image = from_array(counts.astype(np.float32), np.eye(4))
    method, _ = restorer(config.load("denoise", "noise2score_natural"))
    noise = estimate.estimate(image, estimate.Asked("poisson"))
    assert infer.scaling(method, image, noise).low == 0
    assert (
        infer.scaling(method, image, estimate.estimate(image, estimate.Asked("gaussian"))).low > 0
    )


@pytest.mark.parametrize("shape", [(20, 30, 10), (200, 100, 97), (700, 700, 300)])
def test_blocks_to_learn_from_lie_inside_and_are_alike(shape):
    blocks = _blocks(shape)
    sizes = {tuple(s.stop - s.start for s in part) for part in blocks}
    assert len(sizes) == 1
    assert len(blocks) * np.prod(sizes.pop()) <= 1 << 24
    assert all(s.start >= 0 and s.stop <= n for p in blocks for s, n in zip(p, shape, strict=True))
