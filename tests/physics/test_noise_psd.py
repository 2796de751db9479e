import dataclasses

import pytest
import torch
from torch.nn.functional import avg_pool2d

from medssl.core.random import stream
from medssl.physics.low_dose import simulate_low_dose
from medssl.physics.noise_psd import NoiseModel, choose_slices, estimate_noise
from medssl.physics.phantom import abdomen

SPACING = (1.1, 1.1, 3.0)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small tensors: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def white(*shape, name="white"):
    return torch.randn(shape, generator=stream(0, name))


def coloured(*shape, name="coloured"):
    """Noise of standard deviation 1 whose spectrum favours low frequencies along x."""
    noise = white(*shape, name=name)
    noise = noise + noise.roll(1, 0) + 0.5 * noise.roll(1, 1)
    return noise / 1.5


def slabs(*shape):
    """Flat tissue in air."""
    image = torch.full(shape, -1000.0)
    image[8:-8, 8:-8] = 50.0
    return image


def dct(n):
    k = torch.arange(n, dtype=torch.float32)
    rows = torch.cos(torch.pi / n * (k + 0.5) * k[:, None]) * (2 / n) ** 0.5
    rows[0] = n**-0.5
    return rows


def radial(psd):
    frequency = torch.fft.fftfreq(len(psd))
    ring = ((frequency[:, None] ** 2 + frequency**2).sqrt() * len(psd)).round().long().flatten()
    total = torch.zeros(len(psd)).index_add(0, ring, psd.flatten())
    return (total / torch.bincount(ring, minlength=len(psd)))[2 : len(psd) // 2]


def correlation(a, b):
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


@pytest.fixture(scope="module")
def simulated(one_thread):
    """Clean and noisy slices of a phantom for two kernels and two doses, and white noise."""
    hu = abdomen((383, 381), SPACING)
    cases = {}
    for kernel, photons in (("ramp", 2e5), ("hann", 2e5), ("hann", 4e4)):
        cases[f"{kernel} {photons:g}"] = simulate_low_dose(
            hu,
            SPACING,
            photons=photons,
            kernel=kernel,
            generator=stream(0, kernel),
            n_angles=120,
        )
    cases["white"] = hu, hu + 30 * white(383, 381)
    return cases


def test_white_noise_is_flat():
    model = estimate_noise(slabs(256, 256, 5) + 20 * white(256, 256, 5), SPACING)
    assert model.confident
    assert model.level == pytest.approx(20, rel=0.05)
    assert model.flatness > 0.95
    assert abs(model.rho_z) < 0.05
    relative = radial(model.psd) / model.psd.mean()
    assert (relative[4:] - 1).abs().max() < 0.05
    # Flat blocks are chosen by smoothed slope, so they hold less of the lowest frequencies.
    assert (relative[:4] - 1).abs().max() < 0.3
    assert (model.dct_sigma((8, 8)) - 1).abs()[2:, 2:].max() < 0.06


def test_coloured_noise():
    model = estimate_noise(slabs(256, 256, 5) + 20 * coloured(256, 256, 5), SPACING)
    assert model.level == pytest.approx(20, rel=0.1)
    truth = torch.fft.fft2(coloured(2048, 2048, name="long"), norm="ortho").abs().square()
    truth = avg_pool2d(truth.roll((32, 32), (0, 1))[None], 64)[0]
    assert correlation(model.psd, truth) > 0.97
    assert model.psd[0, 16] > 3 * model.psd[16, 0]  # x and y are not mixed up


@pytest.mark.parametrize("case", ["ramp 200000", "hann 200000", "hann 40000", "white"])
def test_level_of_simulated_scans(simulated, case):
    """G8: the level is within 0.9-1.1 of the true root mean square over the body."""
    clean, noisy = simulated[case]
    noise, body = noisy - clean, clean > -200
    model = estimate_noise(noisy, SPACING)
    true = float(noise[body].square().mean().sqrt())
    assert model.confident
    assert 0.9 * true < model.level < 1.1 * true
    assert model.level_plain > model.level
    if case != "white":
        local = (noise.square()[None] * body)[:, :360, :360]
        share = avg_pool2d(body.float()[None, :360, :360], 24)[0]
        local = (avg_pool2d(local, 24)[0] / share.clamp_min(0.1)).sqrt()
        seen = avg_pool2d(model.local_sigma((0, 0), (360, 360))[None], 24)[0]
        assert correlation(local[share > 0.9], seen[share > 0.9]) > 0.8


def test_spectra_of_simulated_scans(simulated):
    """Radial spectra within the body; single slices keep some anatomy at the lowest frequencies."""
    for case, least in (("ramp 200000", 0.7), ("hann 40000", 0.9)):
        clean, noisy = simulated[case]
        noise, body = noisy - clean, clean > -200
        blocks = noise.unfold(0, 32, 8).unfold(1, 32, 8)
        inside = body.unfold(0, 32, 8).unfold(1, 32, 8).all(-1).all(-1)
        window = torch.hann_window(32)[:, None] * torch.hann_window(32)
        truth = torch.fft.fft2(blocks[inside] * window).abs().square().mean(0)
        model = estimate_noise(noisy, SPACING)
        assert correlation(radial(truth), radial(model.psd)) > least
        assert (model.flatness > 0.5) == (case == "ramp 200000")


def test_neighbouring_slices_that_share_noise():
    noise = white(192, 192, 14)
    noise = (noise[..., :-2] + noise[..., 1:-1] + noise[..., 2:]) / 3**0.5
    model = estimate_noise(slabs(192, 192, 12) + 25 * noise, SPACING)
    assert model.rho_z == pytest.approx(2 / 3, abs=0.05)
    assert model.psd.ndim == 3
    assert model.level == pytest.approx(25, rel=0.1)
    sigma = model.dct_sigma((8, 8, 4))
    assert float(sigma.square().mean()) == pytest.approx(1, rel=1e-4)
    along = sigma.square().mean((0, 1))
    windows = noise[:192, :192, :12].unfold(2, 4, 1) @ dct(4).T
    measured = windows.square().mean((0, 1, 2))
    assert torch.allclose(along, measured / measured.mean(), atol=0.3)
    again = model.sample((192, 192, 12), stream(1, "z"))
    shared = (again[..., 1:] * again[..., :-1]).mean() / again.square().mean()
    assert float(shared) == pytest.approx(model.rho_z, abs=0.12)


def test_dct_sigma_is_that_of_the_noise():
    model = estimate_noise(slabs(256, 256, 5) + 20 * coloured(256, 256, 5), SPACING)
    flat = dataclasses.replace(model, local=torch.ones_like(model.local))
    noise = flat.sample((2048, 2048), stream(0, "dct"))
    windows = noise.unfold(0, 8, 8).unfold(1, 8, 8)
    spectrum = torch.einsum("ui,xyij,vj->xyuv", dct(8), windows, dct(8))
    measured = spectrum.square().mean((0, 1)).sqrt()
    measured = measured / measured.square().mean().sqrt()
    assert (model.dct_sigma((8, 8)) / measured - 1).abs().max() < 0.02
    three = model.dct_sigma((8, 8, 4))
    assert torch.equal(three, model.dct_sigma((8, 8))[..., None].expand(8, 8, 4))


def test_sample_repeats_spectrum_and_strength():
    y = (
        slabs(256, 256, 5)
        + 20 * coloured(256, 256, 5) * torch.linspace(0.5, 1.5, 256)[:, None, None]
    )
    model = estimate_noise(y, SPACING)
    noise = model.sample((256, 256, 5), stream(0, "again"))
    assert torch.equal(noise, model.sample((256, 256, 5), stream(0, "again")))
    sigma = model.local_sigma((0, 0, 0), (256, 256, 5))
    assert sigma[200:230].mean() > 1.7 * sigma[26:56].mean()
    assert (noise / sigma).square().mean().sqrt() == pytest.approx(1, rel=0.02)
    stationary = (noise / sigma)[..., 2]
    spectrum = torch.fft.fft2(stationary, norm="ortho").abs().square()
    spectrum = avg_pool2d(spectrum.roll((4, 4), (0, 1))[None], 8)[0]
    assert correlation(spectrum, model.psd) > 0.9
    scaled = dataclasses.replace(model, level=2 * model.level)
    assert torch.allclose(scaled.sample((256, 256, 5), stream(0, "again")), 2 * noise, rtol=1e-4)


def test_local_sigma_of_a_tile_is_that_of_the_whole():
    y = slabs(200, 176, 9) + 20 * white(200, 176, 9) * torch.linspace(0.5, 1.5, 176)[:, None]
    model = estimate_noise(y, SPACING)
    whole = model.local_sigma((0, 0, 0), (200, 176, 9))
    assert whole.shape == (200, 176, 9)
    assert torch.equal(whole[40:90, 3:64, 4:7], model.local_sigma((40, 3, 4), (90, 64, 7)))
    held = sum(t.numel() * t.element_size() for t in (model.local, model.body, model.psd))
    assert held < 1e5


def test_padding_and_holes_are_ignored():
    y = slabs(160, 160) + 20 * coloured(160, 160)
    plain = estimate_noise(y, SPACING)
    framed = torch.full((240, 240), -2000.0)
    framed[40:200, 40:200] = y
    framed[100, 100] = torch.nan
    assert estimate_noise(framed, SPACING).level == pytest.approx(plain.level, rel=0.1)
    marked = torch.full((240, 240), 3000.0)
    marked[40:200, 40:200] = y
    valid = torch.zeros(240, 240, dtype=torch.bool)
    valid[40:200, 40:200] = True
    found = estimate_noise(marked, SPACING, valid=valid)
    assert found.level == pytest.approx(plain.level, rel=0.1)


@pytest.mark.parametrize(
    "image",
    [
        torch.full((64, 64), 40.0),
        torch.full((64, 64), torch.nan),
        torch.full((64, 64, 4), -2000.0),
        torch.full((1, 40), 3.0),
        torch.full((1, 1), 3.0),
        torch.zeros(7, 7, 2),
    ],
    ids=["constant", "nan", "padding", "1xN", "one", "7x7"],
)
def test_nothing_to_learn_from(image):
    model = estimate_noise(image, SPACING)
    assert not model.confident
    assert model.level == 0
    check(model, image.shape)


@pytest.mark.parametrize(
    "shape", [(64, 64), (40, 33), (12, 300), (61, 59, 2), (122, 101, 7), (20, 20, 30)]
)
@pytest.mark.parametrize("body", [50.0, -900.0], ids=["body", "air"])
def test_odd_shapes(shape, body):
    image = body + 20 * white(*shape)
    model = estimate_noise(image, SPACING)
    assert 12 < model.level < 25
    assert model.confident or min(shape[:2]) < 64 or body < -500
    check(model, shape)


def check(model: NoiseModel, shape):
    whole = model.local_sigma([0] * len(shape), shape)
    assert whole.shape == shape
    assert whole.isfinite().all()
    assert model.sample(shape, stream(0, "")).isfinite().all()
    for block in ((8, 8), (8, 8, 4), (4, 4, 1)):
        sigma = model.dct_sigma(block)
        assert sigma.shape == block
        assert sigma.isfinite().all()
        assert float(sigma.square().mean()) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize(("n", "expected"), [(1, (0,)), (3, (0, 1, 2)), (50, (5, 15, 25, 35, 45))])
def test_slices(n, expected):
    assert choose_slices(n) == expected
