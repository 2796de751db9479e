"""Noise2Void: masks that hide what they must, and an image that is better for it."""

import pytest
import torch

from medssl.config import Train
from medssl.core.batch import Noisy
from medssl.core.errors import UsageError
from medssl.core.random import stream
from medssl.data.patches import crops
from medssl.denoise.noise2void import Config
from medssl.engine.fit import fit
from medssl.method import Facts
from medssl.metrics.image import psnr
from medssl.nets import chain
from medssl.physics.phantom import head


def build(**changes):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Config(**changes).build()


def learn(method, y, steps=200):
    train = Train(steps=steps, lr=4e-3, schedule="cosine", ema=0.9)
    fit(method, crops([y], [None], size=64, count=2, steps=steps, seed=0, multiple=1), train)
    return method.restore(Noisy(y[None, None]))[0, 0]


def test_masked_voxels_are_replaced_by_others_and_the_rest_stays():
    method = build()
    y = torch.arange(400.0).reshape(1, 1, 20, 20)
    masked = torch.zeros_like(y, dtype=torch.bool)
    masked[0, 0, ::4, ::4] = True
    other = method._replaced(y, masked, stream(0, "replace"))
    assert torch.equal(other[~masked], y[~masked])
    assert (other[masked] != y[masked]).all()
    steps = (other - y)[masked]
    assert (torch.round(steps / 20).abs() <= 2).all()


def test_masks_follow_the_correlation():
    facts = Facts(shape=(64, 64), spacing=(1.0, 1.0), correlation=(0.0, 0.4))
    assert Config().suited_to(facts).reach == (0, 2)
    method = build(reach=(0, 2))
    centres = torch.zeros(1, 1, 9, 9, dtype=torch.bool)
    centres[0, 0, 4, 4] = True
    lines = method._lines(centres)[0, 0]
    assert lines.sum() == 5
    assert lines[4, 2:7].all()


def test_one_noisy_image_is_enough():
    x = 10 * head((96, 96))
    y = x + torch.randn(x.shape, generator=stream(0, "noise"))
    net = chain.Config(width=16, depth=4, detail=True)
    clean = learn(build(net=net, share=0.05), y)
    assert psnr(clean, x, peak=10) > psnr(y, x, peak=10) + 2


def test_the_voxel_itself_is_worth_something():
    x = 10 * head((96, 96))
    y = x + torch.randn(x.shape, generator=stream(0, "noise"))
    method = build(net=chain.Config(width=16, depth=4, detail=True), share=0.05, combine=True)
    clean = learn(method, y)
    gain = psnr(clean, x, peak=10) - psnr(y, x, peak=10)
    assert gain > 2


@pytest.mark.parametrize(
    ("changes", "fact"),
    [({"share": 0.9}, "share"), ({"window": 4}, "window"), ({"reach": (1,)}, "reach")],
)
def test_wrong_usage_is_refused(changes, fact):
    with pytest.raises(UsageError, match=fact):
        Config(**changes).build()
