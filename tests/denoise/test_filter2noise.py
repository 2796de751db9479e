import math

import numpy as np
import pytest
import torch
from torch.nn.functional import conv2d

from medssl.core.batch import Noisy
from medssl.core.errors import InputError
from medssl.core.random import stream
from medssl.denoise.filter2noise import Config
from medssl.nets.subsample import swap_most_similar
from medssl.physics.phantom import abdomen

PREDICTORS = ("attention", "scalar", "spatial")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small tensors: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(predictor="attention", seed=0, **changes):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Config(predictor=predictor, **changes).build()


def noisy(*shape, sigma=0.02, seed=0):
    clean = (abdomen(shape, (300 / shape[0],) * 2 + (3.0,) * (len(shape) - 2)) + 1024) / 4096
    return clean, clean + sigma * torch.randn(shape, generator=stream(seed, "f2n"))


def batch(image, sigma=None):
    return Noisy(image[None, None], sigma=None if sigma is None else sigma[None, None])


@pytest.mark.parametrize(("stages", "count"), [(1, 1819), (2, 3638)])
def test_number_of_parameters(stages, count):
    assert sum(p.numel() for p in build(n_stages=stages).parameters()) == count
    assert sum(p.numel() for p in build("scalar", n_stages=stages).parameters()) == 3 * stages


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_loss_against_the_equation(predictor):
    _, y = noisy(16, 16)
    sigma = torch.full((16, 16), 0.02)
    method = build(predictor, lam=400.0)

    def f(image):
        n = image.shape[0]
        return method.restore(batch(image, sigma[:n, :n]))[0, 0]

    def halves(image):
        a, b, c, d = image[::2, ::2], image[::2, 1::2], image[1::2, ::2], image[1::2, 1::2]
        return (b + c) / 2, (a + d) / 2

    x = torch.arange(-3.0, 4.0)
    narrow, wide = (torch.exp(-(x[:, None] ** 2 + x**2) / (2 * s * s)) for s in (9, 10))
    kernel = (narrow / narrow.sum() - wide / wide.sum())[None, None]

    def mean(t):
        return float(t.abs().mean())

    h = f(y)
    (g1, g2), (h1, h2) = halves(y), halves(h)
    d1, d2 = f(swap_most_similar(g1)), f(swap_most_similar(g2))
    edge = conv2d(y[None, None], kernel, padding=3).abs()
    edge = edge - conv2d(h[None, None], kernel, padding=3).abs()
    total = (mean(d1 - d2) + mean(d1 - h1) + mean(d2 - h2) + mean(h1 - h2)) / 3 + 400 * mean(edge)
    terms = method.loss(batch(y, sigma))
    assert set(terms) == {"pair", "consistency", "edge"}
    assert float(sum(terms.values()).detach()) == pytest.approx(total, rel=1e-5)


def test_loss_is_homogeneous_for_a_given_filter():
    _, y = noisy(32, 32)
    method = build("scalar", n_stages=1, window="3sigma")
    with torch.no_grad():
        method.stages[0].theta[2] = 100.0  # softplus is cut at 6: a Gaussian for both images
    one, two = method.loss(batch(y)), method.loss(batch(3 * y))
    for name, value in one.items():
        assert float(two[name].detach()) == pytest.approx(3 * float(value.detach()), rel=2e-2)


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("shape", [(37, 21), (5, 1), (16, 24, 3)])
def test_any_size_and_one_by_one(predictor, shape):
    image = torch.rand(2, 1, *shape, generator=stream(0, "sizes"))
    image[1] *= 0.1
    sigma = 0.01 + 0.02 * torch.rand(2, 1, *shape, generator=stream(0, "level"))
    method = build(predictor)
    both, maps = method.restore_with_maps(Noisy(image, sigma=sigma))
    assert both.shape == image.shape
    assert both.isfinite().all()
    assert maps.shape[:3] == (2, 2, 3)
    assert maps.ndim == image.ndim + 1
    single = [method.restore(Noisy(image[k : k + 1], sigma=sigma[k : k + 1])) for k in (0, 1)]
    assert torch.allclose(both, torch.cat(single), atol=1e-6)
    if len(shape) == 3:
        piece = method.restore(Noisy(image[..., 1], sigma=sigma[..., 1]))
        assert torch.allclose(both[..., 1], piece, atol=1e-6)
    else:
        terms = method.loss(Noisy(image, sigma=sigma))
        assert all(t.isfinite() for t in terms.values())


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("shape", [(37, 21), (16, 24, 3)])
def test_maps_give_the_same_image_again(predictor, shape):
    _, y = noisy(*shape)
    seen = batch(y, torch.full(shape, 0.02))
    method = build(predictor)
    clean, maps = method.restore_with_maps(seen)
    again, same = method.restore_with_maps(Noisy(seen.image), maps)
    assert torch.equal(clean, again)
    assert torch.equal(maps, same)
    still, _ = method.restore_with_maps(Noisy(seen.image), torch.full_like(maps, 1e-6))
    assert torch.equal(still, seen.image)


def test_refuses_maps_that_do_not_fit():
    method = build()
    image = Noisy(torch.zeros(1, 1, 24, 16))
    with pytest.raises(InputError, match=r"\(1, 2, 3, 4, 2\).*\(1, 1, 24, 16\)"):
        method.restore_with_maps(image, torch.ones(1, 2, 3, 4, 2))
    with pytest.raises(InputError, match="widths are above 0"):
        method.restore_with_maps(image, torch.zeros(1, 2, 3, 1, 1))


@pytest.mark.parametrize("window", ["paper", "3sigma"])
@pytest.mark.parametrize("predictor", ["scalar", "spatial"])
def test_halo_is_enough(predictor, window):
    _, y = noisy(64, 48, 2)
    sigma = torch.rand(y.shape, generator=stream(0, "s")) * 0.02 + 0.01
    method = build(predictor, window=window)
    rx, ry, rz = method.halo(y.shape)
    assert rz == 0
    whole = method.restore(batch(y, sigma))
    tile = method.restore(batch(y[16 : 48 + rx, : 24 + ry], sigma[16 : 48 + rx, : 24 + ry]))
    core = whole[:, :, 16 + rx : 48, :24]
    assert torch.allclose(core, tile[:, :, rx:32, :24], atol=1e-6)
    assert build("attention").halo((64, 48, 2)) == (64, 48, 0)


def test_spatial_widths_follow_the_noise():
    """G6: sd / mean of sigma_r is at least 0.2, correlation with the true noise at least 0.6."""
    clean, _ = noisy(96, 96)
    level = torch.linspace(0.005, 0.03, 96)[:, None].expand(96, 96)
    y = clean + level * torch.randn(96, 96, generator=stream(3, "gradient"))
    _, maps = build("spatial").restore_with_maps(batch(y, level))
    widths = maps[0, 0, 2]
    assert widths.std() / widths.mean() > 0.2
    assert torch.corrcoef(torch.stack([widths.flatten(), level.flatten()]))[0, 1] > 0.6


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_fit_lowers_the_loss_and_the_error(predictor):
    clean, y = noisy(64, 64)
    seen = batch(y, torch.full_like(y, 0.02))
    state = torch.get_rng_state()
    method = build(predictor, window="3sigma")
    rate = 1e-2 if predictor == "attention" else 0.08
    optimiser = torch.optim.Adam(method.parameters(), lr=rate)
    losses = []
    for _ in range(15):
        loss = torch.stack(list(method.loss(seen).values())).sum()
        optimiser.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    error = (method.restore(seen)[0, 0] - clean).square().mean()
    assert error < 0.8 * (y - clean).square().mean()
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.paper
@pytest.mark.slow
@pytest.mark.data
@pytest.mark.timeout(3600)
def test_parity_curve_of_the_published_model(data_folder):
    """Points (step: PSNR) of the published schedule on the published pair, seed 77."""
    folder = data_folder / "ct" / "filter2noise_pair"
    clean, y = (
        torch.from_numpy(np.load(folder / f"{name}.npy").astype(np.float32))
        .squeeze()
        .T.contiguous()
        for name in ("clean", "noisy")
    )
    method = build(seed=77)
    optimiser = torch.optim.AdamW(method.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, total_steps=500)
    expected = {1: 36.639, 25: 36.783, 50: 37.501, 100: 38.261, 200: 38.716, 500: 38.796}
    for step in range(1, 501):
        loss = torch.stack(list(method.loss(batch(y)).values())).sum()
        if step == 1:
            assert float(loss.detach()) == pytest.approx(0.009350, abs=2e-6)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step in expected:
            error = (method.restore(batch(y))[0, 0] - clean).square().mean()
            assert -10 * math.log10(float(error)) == pytest.approx(expected[step], abs=0.05)
