"""C-BSN: images taken apart and put together, and correlated noise that others leave."""

import pytest
import torch
from torch.nn.functional import avg_pool2d

from medssl.config import Train
from medssl.core.batch import Noisy
from medssl.core.errors import UsageError
from medssl.core.random import stream
from medssl.data.patches import crops
from medssl.denoise.cbsn import Config, stride_for
from medssl.engine.fit import fit
from medssl.method import Facts
from medssl.metrics.image import psnr
from medssl.nets import blind_spot
from medssl.nets.subsample import apart, picked, together
from medssl.physics.phantom import head


def test_apart_and_together():
    y = torch.rand(2, 1, 12, 9, generator=stream(0, "apart"))
    parts = apart(y, 3)
    assert parts.shape == (18, 1, 4, 3)
    assert torch.equal(parts[1], y[0, :, 0::3, 1::3])
    assert torch.equal(together(parts, 3), y)


def test_one_pixel_of_each_cell_at_the_same_place_of_two_images():
    y = torch.arange(48.0).reshape(1, 1, 6, 8)
    chance = torch.rand(4, 6, 8, generator=stream(0, "picked"))
    small = picked(y, chance)
    assert small.shape == (1, 1, 3, 4)
    cells = y.unfold(2, 2, 2).unfold(3, 2, 2).flatten(-2)
    assert (cells == small[..., None]).any(-1).all()
    assert torch.equal(picked(y + 1, chance), small + 1)


def test_the_stride_follows_the_correlation():
    assert [stride_for(r) for r in (0.0, 0.3, 0.6, 0.9)] == [1, 2, 5, 5]
    facts = Facts(shape=(64, 64), spacing=(1.0, 1.0), correlation=(0.3, 0.1))
    assert Config().suited_to(facts).stride == 2
    assert Config(stride=4).suited_to(facts).stride == 4
    with pytest.raises(UsageError, match="stride is 0"):
        Config(stride=0).build()


def test_correlated_noise_is_removed():
    x = 5 * head((96, 96))
    white = torch.randn(1, 1, 97, 97, generator=stream(0, "noise"))
    noise = 2 * avg_pool2d(white, 2, 1)[0, 0]  # unit variance, correlation 1/2 at one pixel
    y = x + noise
    with torch.random.fork_rng():
        torch.manual_seed(0)
        method = Config(stride=2, net=blind_spot.Config(width=16, depth=2)).build()
    train = Train(steps=100, lr=3e-3, schedule="cosine")
    fit(method, crops([y], [None], size=48, count=2, steps=100, seed=0, multiple=2), train)
    with torch.no_grad():
        clean = method.restore(Noisy(y[None, None]))[0, 0]
    assert psnr(clean, x, peak=5) > psnr(y, x, peak=5) + 2.5
