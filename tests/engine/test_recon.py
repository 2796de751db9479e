"""From a raw scan to an image: every default is chosen, every oddity is said or refused."""

import numpy as np
import pytest
import torch

from medssl import api
from medssl.core.errors import InputError, UsageError
from medssl.core.geometry import Geometry
from medssl.core.kspace import KSpace
from medssl.physics.coils import root_sum_of_squares
from medssl.physics.fourier import to_image, to_kspace
from medssl.physics.sampling import poisson_disc, random_lines

QUICK = {"method.iterations": 20}


def raw(kspace, sampling, **words):
    data = (kspace.numpy() * sampling).astype(np.complex64)
    grid = Geometry.from_spacing(data.shape[1:], (1.0,) * (data.ndim - 1))
    return KSpace(data, grid, np.broadcast_to(sampling, data.shape[1:]), **words)


def recon(scan, **words):
    """On one thread: pictures this small do not gain from two."""
    return api.recon(scan, threads=1, **words)


def psnr(found, true):
    return -10 * np.log10(np.mean((found - true) ** 2) / true.max() ** 2)


@pytest.fixture
def head(coils):
    kspace, image, _ = coils((72, 64), sigma=0.005)
    return kspace, image.abs().numpy()


def test_an_undersampled_scan_without_an_option(head):
    kspace, true = head
    done = recon(raw(kspace, poisson_disc((72, 64), 4, (20, 20))), settings=QUICK)
    assert psnr(done.image.data[0], true) > psnr(done.zero_filled, true) + 3
    assert done.qc["acceleration"] == pytest.approx(4, rel=0.02)
    assert 0.3 < done.qc["chi2"] < 1.4
    assert done.record["medssl"]["plan"]["map_sets"] == 1
    assert done.line.startswith("l1_wavelet, R 4, sigma 0.0")
    assert "withheld k-space" in done.line
    again = recon(raw(kspace, poisson_disc((72, 64), 4, (20, 20))), settings=QUICK)
    assert np.array_equal(done.image.data, again.image.data)


@pytest.mark.parametrize(("method", "weight"), [("sense", 0.02), ("tv", 0.003)])
def test_other_methods_with_a_given_weight(head, method, weight):
    kspace, true = head
    sampling = poisson_disc((72, 64), 4, (18, 18))
    done = recon(raw(kspace, sampling), method=method, lambda_=weight, settings=QUICK)
    assert psnr(done.image.data[0], true) > psnr(done.zero_filled, true)
    assert done.record["medssl"]["recipe"]["method"]["lambda_"] == weight


@pytest.mark.parametrize(
    ("method", "app", "most"),
    [
        ("sense", "SenseRecon", 1e-5),
        ("l1-wavelet", "L1WaveletRecon", 1e-5),
        ("tv", "TotalVariationRecon", 5e-3),  # its step size starts from the global generator
    ],
)
def test_the_applications_of_sigpy_are_called_as_they_are(coils, method, app, most):
    from sigpy.mri import app as apps

    kspace, _, maps = coils((48, 40), n_coils=4, sigma=0.005)
    sampling = poisson_disc((48, 40), 3, (12, 12))
    known = {"method.iterations": 5}
    done = recon(
        raw(kspace, sampling),
        method=f"sigpy-{method}",
        maps=maps.numpy(),
        lambda_=0.01,
        settings=known,
    )
    scale = done.record["medssl"]["plan"]["scale"]
    data = (kspace.numpy() * sampling / scale).astype(np.complex64)
    words = {"lamda": 0.01, "weights": sampling.astype("f"), "max_iter": 5, "show_pbar": False}
    theirs = np.abs(getattr(apps, app)(data, maps.numpy(), **words).run()) * scale
    assert np.abs(done.image.data[0] - theirs).max() < most * theirs.max()


def test_zero_filling_is_the_root_sum_of_squares(head):
    kspace, _ = head
    sampling = poisson_disc((72, 64), 3, (16, 16))
    done = recon(raw(kspace, sampling), method="zero-filled")
    wanted = root_sum_of_squares(kspace * torch.from_numpy(sampling)).numpy()
    assert np.allclose(done.image.data[0], wanted, atol=1e-5 * wanted.max())


def test_the_shading_survives_whitening_and_compression(head):
    kspace, _ = head
    sampling = np.ones((72, 64), bool)
    wanted = root_sum_of_squares(kspace).numpy()
    inside = wanted > 0.3
    for words in ({}, {"whiten": True}, {"coils": 6}):
        done = recon(raw(kspace, sampling), method="sense", lambda_=0.0, **words)
        assert np.median(np.abs(done.image.data[0] / wanted - 1)[inside]) < 0.03


def test_a_folded_scan_gets_two_sets_of_maps_and_is_the_better_for_it(coils):
    kspace, _, _ = coils((72, 96), sigma=0.003)
    images = to_image(kspace)
    narrow = images[..., 22:74].clone()
    narrow[..., -22:] += images[..., :22]
    narrow[..., :22] += images[..., 74:]
    small = to_kspace(narrow)
    true = root_sum_of_squares(small).numpy()
    scan = raw(small, poisson_disc((72, 52), 3, (20, 20)))
    auto = recon(scan, settings=QUICK)
    one = recon(scan, map_sets=1, settings=QUICK)
    assert auto.record["medssl"]["plan"]["map_sets"] == 2
    assert psnr(auto.image.data[0], true) > psnr(one.image.data[0], true) + 1.5


def test_a_volume_is_done_slice_by_slice(coils):
    slices = torch.stack([coils((48, 40), n_coils=5, sigma=0.003, seed=s)[0] for s in range(6)], 1)
    plane = poisson_disc((48, 40), 2.5, (16, 16))
    volume = to_kspace(slices, (1,))
    scan = raw(volume, np.broadcast_to(plane, (6, 48, 40)))
    done = recon(scan, lambda_=0.003, settings=QUICK)
    stack = raw(
        slices.movedim(1, 3), np.repeat(plane[..., None], 6, 2), encoded=(True, True, False)
    )
    same = recon(stack, lambda_=0.003, settings=QUICK)
    assert done.image.data.shape == (1, 6, 48, 40)
    assert same.image.data.shape == (1, 48, 40, 6)
    moved = np.moveaxis(same.image.data, 3, 1)
    assert np.abs(moved - done.image.data).max() < 0.05 * done.image.data.max()


def test_maps_of_the_user_are_used(head, coils):
    kspace, true = head
    maps = coils((72, 64))[2].numpy()
    lines = random_lines((72, 64), 3, 4)
    with pytest.raises(InputError, match="fully sampled centre"):
        recon(raw(kspace, lines))
    done = recon(raw(kspace, lines), maps=maps, lambda_=0.002, settings=QUICK)
    assert psnr(done.image.data[0], true) > psnr(done.zero_filled, true) + 2
    with pytest.raises(InputError, match="do not fit"):
        recon(raw(kspace, lines), maps=maps[:, :-1])


def test_dead_coils_are_left_out_and_broken_ones_refused(head):
    kspace, _ = head
    sampling = poisson_disc((72, 64), 3, (16, 16))
    dead = kspace.clone()
    dead[3] = 0
    done = recon(raw(dead, sampling), lambda_=0.003, settings=QUICK)
    assert any("coils without a signal are left out: 3" in w for w in done.image.warnings)
    dead[3, 30, 30] = torch.nan
    with pytest.raises(InputError, match="coil 3"):
        recon(raw(dead, np.ones((72, 64), bool)))
    with pytest.raises(InputError, match="zeros only"):
        recon(raw(0 * kspace, sampling))


def test_lines_that_the_header_promises_must_be_there(head):
    kspace, _ = head
    with pytest.raises(InputError, match="lines are missing"):
        recon(raw(kspace, random_lines((72, 64), 4, 8), stated_acceleration=2.0))


def test_one_coil_is_allowed_and_said(coils):
    kspace, _, _ = coils((64, 64), n_coils=1)
    done = recon(raw(kspace, poisson_disc((64, 64), 2, (16, 16))), lambda_=0.003)
    assert any("one coil" in w for w in done.image.warnings)


def test_words_that_cannot_be_right(head):
    scan = raw(head[0], np.ones((72, 64), bool))
    for words, text in (
        ({"method": "l2"}, "l2"),
        ({"to": "dicom"}, "--like"),
        ({"out": "x.nii"}, "goes with a path"),
    ):
        with pytest.raises(UsageError, match=text):
            recon(scan, **words)
