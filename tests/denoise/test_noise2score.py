"""Noise2Score: the score is learnt, the level found with one call of the net, misuse refused."""

import dataclasses

import pytest
import torch

from medssl import config
from medssl.config import Train
from medssl.core.batch import Noisy
from medssl.core.errors import InputError, UsageError
from medssl.core.random import stream
from medssl.data.patches import crops
from medssl.denoise.noise2score import Config
from medssl.engine.build import restorer
from medssl.engine.fit import fit
from medssl.method import Facts
from medssl.metrics.image import psnr
from medssl.nets import chain
from medssl.physics.phantom import head


def build(**changes):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Config(**changes).build()


def learn(method, image, **changes):
    train = Train(steps=120, lr=4e-3, schedule="cosine", ema=0.9, crop=48, batch=2)
    train = dataclasses.replace(train, **changes)
    batches = crops(
        [image], [None], size=train.crop, count=train.batch, steps=train.steps, seed=0, multiple=1
    )
    return fit(method, batches, train)


def test_the_score_of_a_gaussian_toy_is_recovered():
    """x ~ N(5, 2^2), unit noise, sigma_a 1/2 in the end: s(y) = -(y - 5) / 5.25."""
    method = build(net=chain.Config(width=12, depth=3, last=1, detail=True), sigma_a=(1.0, 0.5))
    y = 5 + 5**0.5 * torch.randn(96, 96, generator=stream(0, "toy"))
    learn(method, y, steps=200, lr=8e-3, batch=4)
    fresh = 5 + 5**0.5 * torch.randn(1, 1, 96, 96, generator=stream(0, "fresh"))
    score = method.s(fresh).detach()
    expected = -(fresh - 5) / 5.25
    assert (score - expected).square().mean() < 0.1 * expected.square().mean()
    posterior = 5 + 0.8 * (fresh - 5)
    error = (method.restore(Noisy(fresh)) - posterior).square().mean()
    assert error < 0.05  # of unit noise


def test_one_noisy_image_is_enough():
    x = 10 * head((96, 96))
    y = x + torch.randn(x.shape, generator=stream(0, "noise"))
    method = build(net=chain.Config(width=16, zero_last=True, detail=True))
    learn(method, y)
    clean = method.restore(Noisy(y[None, None]))[0, 0]
    assert psnr(clean, x, peak=10) > psnr(y, x, peak=10) + 3.5


class Counted(torch.nn.Module):
    """The right score of a known image, and how often it was asked for."""

    def __init__(self, x, sigma):
        super().__init__()
        self.x, self.sigma, self.calls = x, sigma, 0

    def forward(self, y):
        self.calls += 1
        return (self.x - y) / self.sigma**2


@pytest.mark.parametrize("sigma", [15 / 255, 40 / 255])
def test_a_blind_level_costs_one_call_of_the_net(sigma):
    x = head((96, 96))[None, None]
    y = x + sigma * torch.randn(x.shape, generator=stream(0, "noise"))
    method = build(domain="unit", level="blind")
    method.net = Counted(x, sigma)
    clean = method.restore(Noisy(y, sigma=None))
    assert method.net.calls == 1
    found = ((clean - y) / (x - y)).median() ** 0.5 * sigma
    assert found == pytest.approx(sigma, rel=0.1)


def test_an_unsure_level_is_not_used():
    y = torch.rand(1, 1, 32, 32, generator=stream(0, "unsure"))
    method = build(domain="unit", level="blind", net=chain.Config(zero_last=True))
    assert torch.equal(method.restore(Noisy(y, sigma=torch.tensor(0.1))), y)
    with pytest.raises(InputError, match="no gaussian level explains"):
        method.restore(Noisy(y))


@pytest.mark.parametrize("power", [0, 1, 2])
def test_adaptive_finds_law_and_level(power):
    phi, generator = 0.01, stream(0, "noise")
    x = 0.15 + 0.8 * head((96, 96))[None, None]
    if power == 0:
        y = x + phi**0.5 * torch.randn(x.shape, generator=generator)
    elif power == 1:
        y = phi * torch.poisson(x / phi, generator)
    else:
        y = x * phi * torch._standard_gamma(torch.full_like(x, 1 / phi), generator=generator)

    class Score(torch.nn.Module):
        def forward(self, noisy):
            v = noisy.clamp_min(0.02)
            return (
                (x - noisy) / phi,
                (x / v).log() / phi - 0.5 / v,
                (1 / phi - 1) / v - 1 / (phi * x),
            )[power]

    method = build(domain="unit", law="adaptive")
    method.net = Score()
    clean = method.restore(Noisy(y))
    assert (clean - x).square().mean() < 0.05 * (y - x).square().mean()


def test_annealing_follows_the_progress_of_the_training():
    method = build(sigma_a=(1.0, 0.2), restarts=2)
    y = torch.zeros(1, 1, 4, 4)
    noise = [float(method._sigma_a(Noisy(y, progress=p))) for p in (0.0, 0.25, 0.5, 1.0)]
    assert noise == pytest.approx([1.0, 0.6, 1.0, 0.2])


def test_axes_follow_the_scan():
    volume = Facts(shape=(64, 64, 20), spacing=(1.0, 1.0, 1.5))
    assert restorer(config.load("denoise", "noise2score"), volume)[0].crop_axes == 3
    for other in (
        dataclasses.replace(volume, shape=(64, 64, 3)),
        dataclasses.replace(volume, spacing=(1.0, 1.0, 6.0)),
        dataclasses.replace(volume, independent_slices=True),
        Facts(shape=(64, 64), spacing=(1.0, 1.0)),
    ):
        assert restorer(config.load("denoise", "noise2score"), other)[0].crop_axes == 2


def test_the_natural_recipe_has_the_net_of_the_paper():
    method, _ = restorer(config.load("denoise", "noise2score_natural"))
    assert sum(p.numel() for p in method.parameters()) == 698_017


@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        ({"sigma_a": (0.1, 1.0)}, "sigma_a"),
        ({"law": "poisson"}, "stabilised"),
        ({"level": "blind"}, "stabilised"),
        ({"law": "gamma", "domain": "unit"}, "level is not set"),
        ({"level": -1.0, "domain": "unit"}, "method.level is -1"),
        ({"law": "adaptive", "domain": "unit", "level": 0.1}, "finds its own level"),
    ],
)
def test_wrong_usage_is_refused(changes, fact):
    with pytest.raises(UsageError, match=fact):
        Config(**changes).build()
