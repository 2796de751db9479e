"""From scores to images, levels and laws, where the score is known in closed form."""

import math

import pytest
import torch

from medssl.core.random import stream
from medssl.physics.phantom import head
from medssl.physics.score import (
    bias_corrected,
    denoise_with_score,
    law_by_paper,
    law_by_slope,
    search_level,
    tweedie_mean,
)


def numeric_score(log_density, y):
    y = y.clone().double().requires_grad_()
    (score,) = torch.autograd.grad(log_density(y).sum(), y)
    return score


def test_gaussian_prior_gives_the_posterior_mean():
    """x ~ N(m, t^2), sigma known: the score is linear and Tweedie's formula the Wiener filter."""
    m, t, sigma = 0.4, 0.2, 0.1
    y = torch.linspace(-1, 2, 31, dtype=torch.float64)
    score = -(y - m) / (t**2 + sigma**2)
    wiener = m + t**2 / (t**2 + sigma**2) * (y - m)
    assert torch.allclose(denoise_with_score("gaussian", y, score, sigma), wiener)


@pytest.mark.parametrize("looks", [10.0, 50.0])
def test_gamma_gives_the_harmonic_mean(looks):
    """With an inverse gamma prior the posterior is one too: 1/x has mean (a + k) / (b + k y)."""
    a, b = 6.0, 3.0
    y = torch.linspace(0.2, 2, 19, dtype=torch.float64)
    score = numeric_score(lambda y: (looks - 1) * y.log() - (looks + a) * (b + looks * y).log(), y)
    mean_of_inverse = (looks + a) / (b + looks * y)
    assert torch.allclose(denoise_with_score("gamma", y, score, looks), 1 / mean_of_inverse)


def test_poisson_gives_the_geometric_mean():
    """With a gamma prior ln x has mean psi(a + y) - ln(b + 1), which many counts reach."""
    a, b = 60.0, 1.0
    counts = torch.linspace(40, 90, 11, dtype=torch.float64)
    score = numeric_score(
        lambda y: torch.lgamma(y + a) - torch.lgamma(y + 1) - (y + a) * math.log(b + 1), counts
    )
    expected = torch.exp(torch.special.digamma(counts + a)) / (b + 1)
    restored = denoise_with_score("poisson", counts, score, 1.0)
    assert torch.allclose(restored, expected, rtol=5e-3)


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_tweedie_formula_meets_its_three_limits(power):
    y, s, phi = torch.tensor([0.3, 0.8]), torch.tensor([2.0, -3.0]), 0.01
    close = tweedie_mean(y, s, power + 1e-3 if power < 2 else power - 1e-3, phi)
    assert torch.allclose(tweedie_mean(y, s, power, phi), close, rtol=1e-3)
    family, level = {
        0.0: ("gaussian", phi**0.5),
        1.0: ("poisson", phi),
        2.0: ("gamma", 1 / phi),
    }[power]
    assert torch.allclose(tweedie_mean(y, s, power, phi), denoise_with_score(family, y, s, level))


def test_bias_is_taken_away_at_every_brightness():
    x = torch.linspace(0.1, 1, 40_000).reshape(200, 200)
    y = x + 0.05 * torch.randn(x.shape, generator=stream(0, "bias"))
    dark = x - 0.03 * x
    assert (bias_corrected(dark, y) - x).mean().abs() < 1e-3
    assert (bias_corrected(dark, y) - x)[:40].mean().abs() < 2e-3


@pytest.mark.parametrize("sigma", [15 / 255, 30 / 255])
def test_level_search_with_the_right_score(sigma):
    x = head((96, 96))
    y = x + sigma * torch.randn(x.shape, generator=stream(0, "search"))
    found = search_level("gaussian", y, (x - y) / sigma**2)
    assert found.sure
    assert found.value == pytest.approx(sigma, rel=0.1)


@pytest.mark.parametrize(
    ("family", "level", "low"), [("poisson", 0.015, 0.7), ("gamma", 80.0, 0.85)]
)
def test_level_search_of_signal_dependent_noise(family, level, low):
    """The published objective for counts leans to the low side, more so the stronger the noise."""
    x = 0.2 + 0.7 * head((96, 96))
    generator = stream(0, "search")
    if family == "poisson":
        y = level * torch.poisson(x / level, generator)
        score = (x / (y + level / 2)).log() / level
    else:
        y = x * torch._standard_gamma(torch.full_like(x, level), generator=generator) / level
        score = (level - 1) / y - level / x
    assert torch.allclose(denoise_with_score(family, y, score, level), x, atol=1e-4)
    found = search_level(family, y, score)
    assert found.sure
    assert low * level < found.value < 1.15 * level


def test_a_score_that_says_nothing_is_not_sure():
    y = torch.rand(32, 32, generator=stream(0, "flat"))
    assert not search_level("gaussian", y, torch.zeros_like(y)).sure
    assert not search_level("gaussian", y, -10 * (y - y.mean())).sure


@pytest.mark.parametrize("family", ["gaussian", "poisson", "gamma"])
def test_law_by_slope_with_the_right_score(family):
    """The truth given, the score is that of the noise alone."""
    x = 0.15 + 0.8 * head((128, 128))[None, None]
    generator, phi = stream(0, "law"), 0.01
    if family == "gaussian":
        y = x + phi**0.5 * torch.randn(x.shape, generator=generator)
    elif family == "poisson":
        y = phi * torch.poisson(x / phi, generator)
    else:
        y = x * phi * torch._standard_gamma(torch.full_like(x, 1 / phi), generator=generator)

    def score(y):
        safe = y.clamp_min(0.02)
        if family == "gaussian":
            return (x - y) / phi
        if family == "poisson":
            return (x / safe).log() / phi - 0.5 / safe
        return (1 / phi - 1) / safe - 1 / (phi * x)

    found = law_by_slope(y, score, stream(0, "probes"))
    assert found.sure
    assert found.family == family
    assert found.level == pytest.approx(phi, rel=0.1)


def test_the_published_level_of_a_gaussian():
    """Its law is no identity on images with structure; its level is right once the law is."""
    x = 0.15 + 0.8 * head((64, 64))[None, None].double()
    y = x + 0.1 * torch.randn(x.shape, generator=stream(0, "law"), dtype=torch.float64)
    found = law_by_paper(y, lambda y: (x - y) / 0.01, stream(0, "probes"))
    if found.family == "gaussian":
        assert found.level == pytest.approx(0.01, rel=0.05)
    assert found == law_by_paper(y, lambda y: (x - y) / 0.01, stream(0, "probes"))
