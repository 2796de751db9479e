"""Recorrupted-to-recorrupted: one noisy image is enough, under any of its laws."""

import pytest
import torch

from medssl.config import Train
from medssl.core.batch import Noisy
from medssl.core.errors import UsageError
from medssl.core.random import stream
from medssl.data.patches import crops
from medssl.denoise.r2r import Config
from medssl.engine.fit import fit
from medssl.metrics.image import psnr
from medssl.nets import chain
from medssl.physics.noise import Gamma, Poisson
from medssl.physics.phantom import head

SMALL = chain.Config(width=16, zero_last=True, detail=True)


def build(**changes):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Config(**changes).build()


def learn(method, image):
    train = Train(steps=120, lr=4e-3, schedule="cosine", ema=0.9)
    batches = crops([image], [None], size=48, count=2, steps=120, seed=0, multiple=1)
    fit(method, batches, train)


def test_one_noisy_image_is_enough():
    x = 10 * head((96, 96))
    y = x + torch.randn(x.shape, generator=stream(0, "noise"))
    method = build(net=SMALL)
    learn(method, y)
    clean = method.restore(Noisy(y[None, None]))[0, 0]
    assert psnr(clean, x, peak=10) > psnr(y, x, peak=10) + 3.5


@pytest.mark.parametrize(("law", "level"), [("poisson", 0.02), ("gamma", 40.0)])
def test_signal_dependent_noise_without_a_stabiliser(law, level):
    x = 0.1 + 0.8 * head((96, 96))
    noise = Poisson(level) if law == "poisson" else Gamma(level)
    y = noise.sample(x, stream(0, "noise"))
    method = build(domain="unit", law=law, level=level, net=chain.Config(width=16, zero_last=True))
    learn(method, y)
    clean = method.restore(Noisy(y[None, None]))[0, 0]
    assert psnr(clean, x, peak=1) > psnr(y, x, peak=1) + 2.5


def test_more_draws_average_out():
    y = 10 * head((48, 48))[None, None]
    few, many = (build(draws=n, net=SMALL).restore(Noisy(y)) for n in (1, 16))
    assert (many - y).square().mean() < 0.2 * (few - y).square().mean()


@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        ({"alpha": 1.0}, "alpha is 1"),
        ({"draws": 0}, "draws is 0"),
        ({"law": "gamma", "level": 4.0}, "stabilised"),
        ({"law": "gamma", "domain": "unit"}, "level is None"),
    ],
)
def test_wrong_usage_is_refused(changes, fact):
    with pytest.raises(UsageError, match=fact):
        Config(**changes).build()
