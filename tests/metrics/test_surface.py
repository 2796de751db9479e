"""Distances of surfaces against all pairs of voxels, known shapes, and MONAI."""

import math

import numpy as np
import pytest
from scipy import ndimage

from medssl.metrics.overlap import overlap
from medssl.metrics.surface import surface

SPACING = (0.5, 0.7, 3.0)


def blob(rng, shape=(9, 10, 7)):
    smooth = ndimage.gaussian_filter(rng.random(shape), 1.2)
    return smooth > np.quantile(smooth, 0.8)


def by_pairs(p, r, spacing, tau):
    """Every voxel of one surface against every voxel of the other."""
    points = []
    for mask in (p, r):
        padded = np.pad(mask, 1)
        inner = ndimage.binary_erosion(padded)  # faces
        points.append(np.argwhere(padded & ~inner) * np.array(spacing))
    apart = np.linalg.norm(points[0][:, None] - points[1][None], axis=-1)
    a, b = apart.min(1), apart.min(0)
    both = np.concatenate([a, b])
    hd95 = max(np.percentile(a, 95), np.percentile(b, 95))
    return both.max(), hd95, both.mean(), (both <= tau).mean()


@pytest.mark.parametrize("seed", range(8))
def test_equal_to_all_pairs(seed):
    rng = np.random.default_rng(seed)
    p, r = blob(rng), blob(rng)
    found = surface(p, r, SPACING, tolerance=1.0)
    assert (found.hd, found.hd95, found.assd, found.nsd) == pytest.approx(
        by_pairs(p, r, SPACING, 1.0)
    )
    back = surface(r, p, SPACING, tolerance=1.0)
    assert (back.hd, back.hd95, back.assd, back.nsd) == pytest.approx(
        (found.hd, found.hd95, found.assd, found.nsd)
    )


def test_two_dimensions():
    rng = np.random.default_rng(3)
    p, r = blob(rng, (20, 17)), blob(rng, (20, 17))
    found = surface(p, r, (1.0, 2.0), tolerance=2.0)
    expected = by_pairs(p, r, (1.0, 2.0), 2.0)
    assert (found.hd, found.hd95, found.assd, found.nsd) == pytest.approx(expected)


def test_shells_of_known_distance():
    at = np.indices((41, 41, 21)) * np.array((0.5, 0.5, 1.0)).reshape(3, 1, 1, 1)
    radius = np.linalg.norm(at - at[:, 20, 20, 10].reshape(3, 1, 1, 1), axis=0)
    found = surface(radius <= 8, radius <= 5, (0.5, 0.5, 1.0))
    assert found.assd == pytest.approx(3, abs=0.4)
    assert found.hd == pytest.approx(3, abs=0.8)
    assert found.nsd == 0
    assert surface(radius <= 8, radius <= 8, (0.5, 0.5, 1.0)).nsd == 1


def test_a_shift_is_measured_in_mm():
    mask = np.zeros((12, 12, 12), bool)
    mask[3:6, 3:6, 3:6] = True
    for axis, step in enumerate(SPACING):
        moved = surface(np.roll(mask, 2, axis), mask, SPACING)
        assert moved.hd == pytest.approx(2 * step)


def test_empty_masks():
    nothing, something = np.zeros((4, 6), bool), np.ones((4, 6), bool)
    assert math.isnan(surface(nothing, nothing, (1, 1)).hd95)
    assert surface(nothing, nothing, (1, 1), empty="one").nsd == 1
    missed = surface(nothing, something, (1, 1))
    assert math.isnan(missed.assd)
    assert missed.nsd == 0
    far = surface(something, nothing, (1.5, 1), empty="diagonal")
    assert far.hd95 == pytest.approx(math.hypot(6, 6))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_equal_to_monai():
    import torch
    from monai.metrics import (
        compute_average_surface_distance,
        compute_hausdorff_distance,
        compute_surface_dice,
    )

    rng = np.random.default_rng(0)
    p, r = blob(rng, (20, 22, 9)), blob(rng, (20, 22, 9))
    a, b = (torch.from_numpy(m)[None, None].float() for m in (p, r))
    words = {"include_background": True, "spacing": list(SPACING)}
    found = surface(p, r, SPACING, tolerance=1.0)
    hd95 = compute_hausdorff_distance(a, b, percentile=95, **words)
    assert found.hd95 == pytest.approx(float(hd95), abs=1e-4)
    assd = compute_average_surface_distance(a, b, symmetric=True, **words)
    assert found.assd == pytest.approx(float(assd), abs=1e-4)
    nsd = compute_surface_dice(a, b, [1.0], **words)
    assert found.nsd == pytest.approx(float(nsd), abs=1e-4)


@pytest.mark.data
def test_two_readers_of_a_gland(data_folder):
    """The numbers were measured with MONAI 1.6.1 and a prototype."""
    import nibabel as nib

    folder = data_folder / "prostate" / "labels" / "ProstateX-0000"
    read = [nib.load(folder / f"{name}.nii.gz") for name in ("gland_bosma22b", "gland_guerbet23")]
    p, r = (np.asarray(image.dataobj) > 0 for image in read)
    spacing = [float(v) for v in read[0].header.get_zooms()]
    found = surface(p, r, spacing)
    assert overlap(p, r, 1.0).dice == pytest.approx(0.959623, abs=1e-6)
    assert found.hd == pytest.approx(4.242641, abs=1e-6)
    assert found.hd95 == pytest.approx(3.0, abs=1e-6)
    assert found.assd == pytest.approx(0.368037, abs=1e-6)
    assert found.nsd == pytest.approx(0.887589, abs=1e-6)
