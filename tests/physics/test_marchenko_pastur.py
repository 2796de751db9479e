"""The noise of a series by its eigenvalues."""

import pytest
import torch

from medssl.core.random import stream
from medssl.physics.marchenko_pastur import (
    Windows,
    centred,
    gram,
    is_signal,
    sigma_map,
    window_for,
)
from medssl.physics.noise import Gaussian, Rician
from medssl.physics.phantom import diffusion, sphere

SHAPE = (20, 20, 15)


def white(n: int, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.randn(n, *shape, generator=stream(seed, "white"))


def low_rank(n: int, rank: int) -> torch.Tensor:
    """Smooth maps times courses, of about the size of unit noise and far above it."""
    generator = stream(0, "low rank")
    courses = torch.randn(n, rank, generator=generator)
    axes = torch.meshgrid(*[torch.linspace(-1, 1, k) for k in SHAPE], indexing="ij")
    maps = torch.stack([torch.sin((k + 2) * axes[k % 3] + k) for k in range(rank)])
    return 10 * torch.einsum("nr,rxyz->nxyz", courses, maps)


@pytest.mark.parametrize("n", [16, 30, 65])
@pytest.mark.parametrize("rank", [0, 3, 6])
def test_sigma_of_white_noise_is_within_three_percent(n, rank):
    series = 7 * white(n) + (low_rank(n, rank) if rank else 0)
    window = window_for(4 * n, SHAPE, (2.0, 2.0, 2.0))
    local, sigma = sigma_map(series, Gaussian(1.0), window)
    assert sigma == pytest.approx(7, rel=0.03)
    assert local is None


def test_components_of_signal_are_counted():
    x, _ = centred(white(20, shape=(200, 1, 1)).flatten(1).T[None], torch.ones(1, 200).bool())
    strong = torch.linalg.qr(torch.randn(20, 3, generator=stream(1, "directions"))).Q
    loads = torch.randn(1, 200, 3, generator=stream(2, "loads"))
    x = x + 20 * (loads - loads.mean(1, keepdim=True)) @ strong.T
    signal, variance = is_signal(torch.linalg.eigvalsh(gram(x)), torch.tensor([200]), 20)
    assert int(signal.sum()) == 3
    assert float(variance) == pytest.approx(1, rel=0.05)


def test_more_volumes_than_voxels_count_the_other_way():
    x, _ = centred(white(60, shape=(27, 1, 1)).flatten(1).T[None], torch.ones(1, 27).bool())
    signal, variance = is_signal(torch.linalg.eigvalsh(gram(x)), torch.tensor([27]), 60)
    assert int(signal.sum()) <= 1
    assert float(variance) == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("snr", [10, 30])
def test_sigma_of_magnitudes_is_within_three_percent(snr):
    b_values = torch.tensor([0.0] * 4 + [1000.0] * 20)
    truth = diffusion((24, 28, 14), b_values, torch.cat([sphere(4), sphere(20)]))
    noisy = Rician(0.5 / snr).sample(truth, stream(0, "noise"))
    _, sigma = sigma_map(noisy, Rician(1.0), (3, 3, 3))
    assert sigma == pytest.approx(0.5 / snr, rel=0.03)


def test_noise_that_varies_gives_a_map():
    truth = torch.linspace(1, 2, 24)[:, None, None].expand(24, 20, 15)
    series = 30 + low_rank(24, 3)[:, :1].expand(24, 24, 20, 15) + truth * white(24, 0, (24, 20, 15))
    local, _ = sigma_map(series, Gaussian(1.0), (3, 3, 3))
    assert float((local / truth - 1).abs().mean()) < 0.05


def test_what_was_not_measured_takes_no_part():
    series = 7 * white(20) + 100
    series[:, :10] = 0
    series[3, 15, 5, 5] = torch.nan
    _, sigma = sigma_map(series, Gaussian(1.0), (3, 3, 3))
    assert sigma == pytest.approx(7, rel=0.03)


def test_equal_volumes_have_no_noise_of_their_own():
    assert sigma_map(torch.zeros(20, 6, 6, 6), Gaussian(1.0), (3, 3, 3)) is None


@pytest.mark.parametrize(
    ("n", "shape", "spacing", "window"),
    [
        (65, (96, 96, 60), (2, 2, 2), (5, 5, 5)),
        (16, (96, 96, 60), (2, 2, 2), (3, 3, 3)),
        (65, (96, 96, 1), (2, 2, 2), (9, 9, 1)),
        (65, (96, 96, 20), (1, 1, 6), (9, 9, 1)),
        (65, (20, 96, 96), (6, 1, 1), (1, 9, 9)),
        (65, (96, 96), (1, 1), (9, 9)),
        (300, (5, 5, 5), (1, 1, 1), (5, 5, 5)),
    ],
)
def test_windows_have_a_voxel_for_each_volume(n, shape, spacing, window):
    assert window_for(n, shape, spacing) == window


@pytest.mark.parametrize("step", [1, 2, 4])
def test_windows_cover_the_grid(step):
    windows = Windows.of((9, 6, 5), (3, 3, 3), (step, min(step, 3), 1))
    assert len(windows.corners) == torch.tensor(windows.lattice).prod()
    places = torch.cat([p.flatten() for _, p in windows.chunks(1000)])
    missing = set(range(9 * 6 * 5)) - set(places.tolist())
    assert bool(missing) == (step > 3)
