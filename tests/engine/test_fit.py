"""The training loop: running mean, bounded gradients, and the best weights on a held-back batch."""

import dataclasses
import itertools

import pytest
import torch

from medssl.config import Train
from medssl.core.batch import Noisy
from medssl.core.random import stream
from medssl.engine.fit import fit
from medssl.method import Method

TRAIN = Train(steps=40, lr=0.1)


class Level(Method):
    """Learns the mean of what it sees."""

    def __init__(self):
        super().__init__()
        self.value = torch.nn.Parameter(torch.zeros(()))

    def loss(self, batch):
        return {"square": (batch.image - self.value).square().mean()}


def batches(n, level=1.0):
    for k in range(n):
        yield Noisy(level + torch.randn(1, 1, 4, 4, generator=stream(k, "level")))


def fitted(held=None, level=1.0, **changes):
    method = Level()
    train = dataclasses.replace(TRAIN, **changes)
    fit(method, batches(train.steps, level), train, held=held)
    return float(method.value.detach())


def test_the_running_mean_is_kept():
    values = []
    method = Level()
    fit(method, batches(40), TRAIN, lambda *_: values.append(float(method.value.detach())))
    mean = 0.0
    for step, value in enumerate(values):
        decay = min(0.9, (1 + step) / (10 + step))
        mean = decay * mean + (1 - decay) * value
    assert fitted(ema=0.9) == pytest.approx(mean, rel=1e-5)


def test_gradients_are_bounded():
    """Adam's step does not depend on the size of gradients, so look at them."""
    method = Level()
    fit(method, batches(1, 100.0), dataclasses.replace(TRAIN, steps=1, clip=0.5))
    assert method.value.grad.abs() <= 0.5 + 1e-5


def test_the_best_weights_on_a_held_back_batch_are_kept():
    def held():
        return Noisy(torch.full((1, 1, 2, 2), 0.5))

    assert fitted() > 0.8
    assert fitted(held) > 0.8
    assert fitted(held, check_every=1) == pytest.approx(0.5, abs=0.1)
    assert fitted(lambda: Noisy(-torch.ones(1, 1, 2, 2)), check_every=5) == 0.0


def test_the_rate_drops_evenly():
    method, values = Level(), [0.0]
    train = dataclasses.replace(TRAIN, steps=30, lr=0.01, schedule="drops", drops=2, drop=0.1)
    fit(method, batches(30, 100.0), train, lambda *_: values.append(float(method.value.detach())))
    steps = [b - a for a, b in itertools.pairwise(values)]
    assert steps[5] == pytest.approx(0.01, rel=0.05)
    assert steps[15] == pytest.approx(0.001, rel=0.05)
    assert steps[25] == pytest.approx(0.0001, rel=0.05)
