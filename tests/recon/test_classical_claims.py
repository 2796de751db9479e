"""What is claimed of reconstruction without training, on a real scan beside the project."""

import dataclasses

import numpy as np
import pytest
import torch

from medssl import api
from medssl.io.kspace import read_kspace
from medssl.physics.espirit import espirit
from medssl.physics.fourier import to_image, to_kspace
from medssl.physics.sampling import central, poisson_disc

SCAN = "kspace/siemens_twix/pulseq_brain_flash_16ch.dat"


@pytest.fixture(scope="module")
def brain(data_folder):
    """A fully sampled brain of 16 coils, scaled to a maximum of 1, and its image."""
    scan = read_kspace(data_folder / SCAN)
    kspace = torch.from_numpy(np.array(scan.data))
    ys, xs = central(scan.geometry.shape, (24, 24))
    maps, _ = espirit(kspace[None, ..., ys, xs], scan.geometry.shape, 1)
    image = (maps[0, 0].conj() * to_image(kspace)).sum(0).abs().numpy()
    return dataclasses.replace(scan, data=scan.data / image.max()), image / image.max()


def undersampled(scan, acceleration, sigma):
    shape = scan.geometry.shape
    sampling = poisson_disc(shape, acceleration, (24, 24), seed=int(acceleration))
    rng = np.random.default_rng(7)
    noise = rng.standard_normal((2, *scan.data.shape))
    data = (scan.data + sigma * (noise[0] + 1j * noise[1])) * sampling
    return dataclasses.replace(scan, data=data.astype(np.complex64), sampling=sampling)


def psnr(found, true):
    inside = true > 0.08
    return -10 * np.log10(np.mean((found - true)[inside] ** 2))


@pytest.mark.data
def test_the_default_beats_the_best_of_sigpy_by_a_decibel(brain):
    from sigpy.mri import app

    scan, true = brain
    less = undersampled(scan, 8, 0.01)
    words = {"show_pbar": False}
    maps = app.EspiritCalib(less.data, crop=0, max_iter=100, **words).run()
    theirs = max(
        psnr(np.abs(app.L1WaveletRecon(less.data, maps, w, max_iter=60, **words).run()), true)
        for w in (1e-3, 3e-3, 1e-2)
    )
    ours = api.recon(less, threads=1)
    assert psnr(ours.image.data[0], true) > theirs + 1.0
    assert ours.record["medssl"]["plan"]["map_sets"] == 1
    sigma = np.median(ours.record["medssl"]["noise"]["sigma"])
    assert abs(sigma / np.hypot(0.0105, 0.01) - 1) < 0.1


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("acceleration", [4, 8])
@pytest.mark.parametrize("sigma", [0.0, 0.01, 0.03])
def test_the_chosen_weight_is_nearly_the_best(brain, acceleration, sigma):
    scan, true = brain
    less = undersampled(scan, acceleration, sigma)
    auto = psnr(api.recon(less, threads=1).image.data[0], true)
    best = max(
        psnr(api.recon(less, threads=1, lambda_=0.0016 * 2 ** (k / 2)).image.data[0], true)
        for k in range(-1, 10)
    )
    assert auto > best - 0.15


@pytest.mark.data
@pytest.mark.slow
def test_a_folded_field_of_view_gets_two_sets_of_maps(brain):
    scan, _ = brain
    images = to_image(torch.from_numpy(np.array(scan.data)))
    small = images[..., 32:96] + torch.cat([images[..., 96:], images[..., :32]], -1)
    rss = torch.linalg.vector_norm(small, dim=0)
    small, true = small / rss.max(), (rss / rss.max()).numpy()
    grid = dataclasses.replace(scan.geometry, shape=(128, 64))
    whole = dataclasses.replace(
        scan, data=to_kspace(small).numpy(), geometry=grid, sampling=np.ones((128, 64), bool)
    )
    less = undersampled(whole, 4, 0.01)
    auto, one = (api.recon(less, threads=1, map_sets=s) for s in ("auto", 1))
    assert auto.record["medssl"]["plan"]["map_sets"] == 2
    assert psnr(auto.image.data[0], true) > psnr(one.image.data[0], true) + 1.5


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(("sigma", "gain"), [(0.01, 0.25), (0.03, 0.25)])
def test_a_net_learns_from_one_scan(brain, sigma, gain):
    scan, true = brain
    less = undersampled(scan, 8, sigma)
    ours = api.recon(less, method="zero-shot", threads=1)
    plain = api.recon(less, threads=1)
    assert ours.record["medssl"]["plan"]["net"]["taken"] == "net"
    assert psnr(ours.image.data[0], true) > psnr(plain.image.data[0], true) + gain
