"""SURE: the loss estimates the error, and a training that does not help leaves the filter."""

import pytest
import torch

from medssl.config import Train
from medssl.core.batch import Noisy
from medssl.core.random import stream
from medssl.data.patches import crops, one
from medssl.denoise.sure import Config
from medssl.engine.fit import fit
from medssl.nets import chain
from medssl.nets.sliding_dct import sliding_dct
from medssl.physics.phantom import head

SMALL = chain.Config(depth=3, width=12, zero_last=True)


def build(**changes):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Config(**changes).build()


def scene(seed=0):
    x = 10 * head((96, 96))
    return x, x + torch.randn(x.shape, generator=stream(seed, "noise"))


def test_an_untrained_net_is_the_filter():
    _, y = scene()
    clean = build(net=SMALL).restore(Noisy(y[None, None]))[0, 0]
    assert torch.equal(clean, sliding_dct(y, block=(8, 8), hard=2.8))


def test_the_loss_is_the_error_less_a_constant():
    x, y = scene()
    method = build(net=SMALL)
    losses = []
    with torch.no_grad():
        for k in range(8):
            batch = Noisy(y[None, None], generator=stream(k, "probe"))
            losses.append(float(sum(method.loss(batch).values())) - 1)
        error = (method.restore(Noisy(y[None, None]))[0, 0] - x).square().mean()
    assert sum(losses) / 8 == pytest.approx(float(error), abs=0.05)


@pytest.mark.parametrize("rate", [2e-3, 0.5])
def test_training_never_leaves_it_worse_on_the_held_back_probe(rate):
    x, y = scene()
    method = build(net=SMALL)

    def held():
        return one([y], [None], size=None, count=1, seed=0, step="held", progress=1.0)

    def loss():
        with torch.no_grad():
            return float(torch.stack(list(method.loss(held()).values())).sum())

    before = loss()
    train = Train(steps=24, lr=rate, check_every=8)
    fit(method, crops([y], [None], size=48, count=1, steps=24, seed=0), train, held=held)
    assert loss() <= before
    with torch.no_grad():
        clean = method.restore(Noisy(y[None, None]))[0, 0]
    plain = sliding_dct(y, block=(8, 8), hard=2.8)
    assert (clean - x).square().mean() < 1.05 * (plain - x).square().mean()
