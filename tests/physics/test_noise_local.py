"""Local noise spectra: streaks are seen where they are, and white noise stays white."""

import pytest
import torch
from torch.nn.functional import conv2d

from medssl.core.random import stream
from medssl.nets.sliding_dct import sliding_dct
from medssl.physics.low_dose import simulate_low_dose
from medssl.physics.noise_local import local_powers, local_slices
from medssl.physics.noise_psd import WINDOW, NoiseModel, body_cells, estimate_noise
from medssl.physics.phantom import abdomen

SPACING = (1.6, 1.6, 3.0)
SIDE = 192


def white(*shape, name="white"):
    return torch.randn(shape, generator=stream(0, name))


def streaks() -> torch.Tensor:
    """Noise of variance 1 that runs along x in the left half and along y in the right one."""
    n = white(SIDE + 2, SIDE + 2)[None, None]
    line = torch.full((1, 1, 3, 1), 3**-0.5)
    along_x, along_y = conv2d(n, line)[0, 0, :, 1:-1], conv2d(n, line.mT)[0, 0, 1:-1]
    return torch.where(torch.arange(SIDE) < SIDE // 2, along_x, along_y)


def learnt(image: torch.Tensor) -> NoiseModel:
    """The noise model of one slice with its local spectra."""
    model = estimate_noise(image, SPACING)
    sigma = model.local_sigma((0, 0), tuple(image.shape))
    powers = local_powers(image, sigma, model.dct_sigma((WINDOW, WINDOW)))
    return model.with_local_powers(powers[..., None], body_cells(image)[..., None], (0,))


def test_white_noise_is_the_same_everywhere():
    model = learnt(40 + 20 * white(SIDE, SIDE))
    assert model.level == pytest.approx(20, rel=0.03)
    factors = model.varying[..., 2:-2, 2:-2, 0]
    assert factors.std() < 0.15
    assert factors.mean() == pytest.approx(1, abs=0.1)
    assert (model.local - 1).abs().max() < 0.2


def test_directions_are_found_where_they_are():
    model = learnt(40 + 20 * streaks())
    along_y, along_x = model.varying[0, 5, ..., 0], model.varying[5, 0, ..., 0]  # high frequencies
    half = SIDE // 16
    left, right = (slice(None), slice(2, half - 3)), (slice(None), slice(half + 3, -2))
    assert (along_y / along_x)[left].mean() > 1.8
    assert (along_y / along_x)[right].mean() < 1 / 1.8


def test_a_sample_has_the_local_spectra():
    model = learnt(40 + 20 * streaks())
    again = learnt(40 + model.sample((SIDE, SIDE), stream(1, "sample")))
    assert again.level == pytest.approx(model.level, rel=0.05)
    a, b = (m.varying[..., 3:-3, 3:-3, 0].log().flatten() for m in (model, again))
    assert torch.corrcoef(torch.stack([a, b]))[0, 1] > 0.7


def test_a_box_sees_what_the_whole_has():
    model = learnt(40 + 20 * streaks())
    part = (slice(50, 120), slice(20, 90))
    seen = model.within(part)
    whole = model.local_sigma((0, 0), (SIDE, SIDE))[part]
    assert torch.allclose(seen.local_sigma((0, 0), whole.shape), whole)
    block = (4, 8)
    at = [torch.arange(float(n)) for n in whole.shape]
    a, b = model.modulation(block), seen.modulation(block)
    for axis, s in enumerate(part):
        assert torch.allclose(a.weights(axis, at[axis] + s.start), b.weights(axis, at[axis]))
    assert a.factors.shape[:2] == block
    assert model.modulation((8, 8, 4)).factors.shape[:3] == (8, 8, 1)


@pytest.mark.parametrize(("kernel", "photons", "gain"), [("ramp", 2e5, 0.4), ("hann", 3e4, 0.3)])
def test_streaks_of_a_scan_are_removed_better(kernel, photons, gain):
    clean, noisy = simulate_low_dose(
        abdomen((SIDE, SIDE), SPACING),
        SPACING,
        photons=photons,
        kernel=kernel,
        generator=stream(0, "dose"),
        n_angles=180,
    )
    error = []
    for model in (estimate_noise(noisy, SPACING), learnt(noisy)):
        restored = sliding_dct(
            noisy,
            block=(8, 8),
            step=2,
            hard=2.8,
            sigma=model.local_sigma((0, 0), (SIDE, SIDE)),
            coefficient_sigma=model.dct_sigma((8, 8)),
            modulation=model.modulation((8, 8)),
        )
        error.append((restored - clean).square().mean())
    assert 10 * torch.log10(error[0] / error[1]) > gain


@pytest.mark.parametrize("shape", [(8, 8), (64, 37), (131, 70)])
def test_any_size_and_nothing_to_learn_from(shape):
    shape_ = torch.ones(WINDOW, WINDOW)
    for image in (torch.full(shape, 40.0), white(*shape)):
        powers = local_powers(image, torch.ones(shape), shape_)
        assert powers.shape == (WINDOW, WINDOW, *(-(-n // 8) for n in shape))
        assert powers.isfinite().all()


def test_slices_are_spread_over_the_scan():
    assert local_slices(1, 3.0) == (0,)
    assert len(local_slices(20, 3.0)) == 6
    assert len(local_slices(600, 1.0)) == 48
    assert local_slices(12, 5.0)[-1] < 12
