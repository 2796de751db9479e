"""Renoise: it starts between image and estimate, and learns to take the scan's own noise away."""

import dataclasses

import torch

from medssl import config
from medssl.core.batch import Noisy
from medssl.core.random import stream
from medssl.data.patches import crops
from medssl.denoise.renoise import Config, Renoise
from medssl.engine.build import restorer
from medssl.engine.fit import fit
from medssl.physics.phantom import abdomen

SIGMA = 0.015


def scan(side: int = 128) -> tuple[torch.Tensor, Noisy]:
    """A phantom in units of 4096 HU and its noisy form with white noise."""
    truth = ((abdomen((side, side), (2.4, 2.4, 3.0)) + 1024) / 4096)[None, None]
    noise = SIGMA * torch.randn(truth.shape, generator=stream(0, "noise"))
    return truth, Noisy(truth + noise, sigma=torch.full((), SIGMA))


def made() -> Renoise:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Config().build()


def test_it_starts_between_image_and_estimate():
    _, batch = scan(48)
    method = made()
    with torch.no_grad():
        x0 = method.first(batch)
        assert torch.allclose(method.restore(batch), (batch.image + x0) / 2, atol=1e-6)
        given = Noisy(batch.image, batch.sigma, estimate=torch.zeros_like(batch.image))
        assert torch.allclose(method.restore(given), batch.image / 2, atol=1e-6)


def test_the_loss_is_what_is_put_on_again():
    """At the start f is the identity, so L is the mean modulus of the removed noise."""
    _, batch = scan(48)
    with torch.no_grad():
        x0 = made().first(batch)
        ready = Noisy(batch.image, batch.sigma, generator=stream(0, "loss"), estimate=x0)
        loss = made().loss(ready)["renoised"]
    assert torch.allclose(loss, (batch.image - x0).abs().mean(), rtol=1e-4)


def test_volumes_are_slices():
    volume = 0.3 + SIGMA * torch.randn(1, 1, 20, 24, 3, generator=stream(0, "volume"))
    sigma = torch.full((), SIGMA)
    method = made()
    with torch.no_grad():
        together = method.restore(Noisy(volume, sigma))
        for k in range(3):
            alone = method.restore(Noisy(volume[..., k].contiguous(), sigma))
            assert torch.allclose(together[..., k], alone, atol=1e-6)


def test_it_learns_to_take_the_noise_away():
    truth, batch = scan()
    recipe = config.load("denoise", "renoise", {"train.steps": 60, "train.crop": 48})
    method, _ = restorer(recipe)
    with torch.no_grad():
        x0 = method.first(batch)
    words = {"size": 48, "count": 8, "steps": 60, "seed": 0}
    sigmas = [torch.full((128, 128), SIGMA)]
    pairs = zip(
        crops([batch.image[0, 0]], sigmas, **words),
        crops([x0[0, 0]], sigmas, **words),
        strict=True,
    )
    batches = (dataclasses.replace(y, estimate=x.image) for y, x in pairs)
    assert recipe.train is not None
    losses = fit(method, batches, recipe.train)
    assert losses[-1] < 0.7 * losses[0]
    with torch.no_grad():
        net = 2 * method.restore(batch) - x0  # alone, without its share of the estimate
    error = [float((x - truth).square().mean()) for x in (batch.image, net)]
    assert error[1] < error[0] / 2
