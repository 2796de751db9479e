"""Zero-shot Noise2Noise: halves with independent noise, in pictures and in volumes."""

import pytest
import torch

from medssl.config import Train
from medssl.core.batch import Noisy
from medssl.core.random import stream
from medssl.data.patches import crops
from medssl.denoise.zs_n2n import PLANES, Config
from medssl.engine.fit import fit
from medssl.metrics.image import psnr
from medssl.nets import chain
from medssl.nets.subsample import diagonal_pair
from medssl.physics.phantom import head


def build(**changes):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Config(**changes).build()


@pytest.mark.parametrize("plane", PLANES)
def test_the_halves_carry_independent_noise(plane):
    y = torch.randn(1, 1, 96, 96, 48, generator=stream(0, "halves"))
    g_1, g_2 = diagonal_pair(y, plane)
    assert abs((g_1 * g_2).mean()) < 0.01
    assert g_1.var() == pytest.approx(0.5, rel=0.03)
    halves = [n // 2 if a - 3 in plane else n for a, n in enumerate((96, 96, 48))]
    assert list(g_1.shape[2:]) == halves


@pytest.mark.parametrize("shape", [(96, 96), pytest.param((48, 48, 16), marks=pytest.mark.slow)])
def test_one_noisy_image_is_enough(shape):
    x = 10 * head(shape)
    y = x + torch.randn(x.shape, generator=stream(0, "noise"))
    net = chain.Config(depth=3, width=24, last=1, detail=True)
    method = build(net=net, n_axes=len(shape))
    train = Train(steps=150, lr=3e-3, schedule="drops", drops=4, drop=0.5)
    fit(method, crops([y], [None], size=48, count=1, steps=150, seed=0, multiple=2), train)
    with torch.no_grad():
        clean = method.restore(Noisy(y[None, None]))[0, 0]
    assert psnr(clean, x, peak=10) > psnr(y, x, peak=10) + 2.5


def test_loss_against_the_equation():
    y = 5 + torch.randn(1, 1, 8, 6, generator=stream(0, "loss"))
    method = build(lambda_=2.0)

    def f(image):
        return image - method.net(image)

    def g(image):
        a, b, c, d = (image[..., i::2, j::2] for i in (0, 1) for j in (0, 1))
        return (b + c) / 2, (a + d) / 2

    def square(t):
        return float(t.square().mean().detach())

    (g_1, g_2), (h_1, h_2) = g(y), g(f(y))
    terms = method.loss(Noisy(y))
    pair = (square(f(g_1) - g_2) + square(f(g_2) - g_1)) / 2
    assert float(terms["pair"].detach()) == pytest.approx(pair, rel=1e-5)
    consistency = square(f(g_1) - h_1) + square(f(g_2) - h_2)
    assert float(terms["consistency"].detach()) == pytest.approx(consistency, rel=1e-5)
