"""The chain of convolutions: any size, and a start at zero where asked."""

import pytest
import torch

from medssl.core.random import stream
from medssl.nets.chain import Config


@pytest.mark.parametrize("shape", [(2, 1, 9, 7), (1, 1, 1, 5), (1, 1, 6, 5, 4), (1, 1, 6, 5, 1)])
def test_any_shape(shape):
    with torch.random.fork_rng():
        net = Config(width=4).build(len(shape) - 2, 1, 3)
    assert net(torch.randn(shape, generator=stream(0, "chain"))).shape == (shape[0], 3, *shape[2:])


def test_it_may_start_at_zero():
    with torch.random.fork_rng():
        net = Config(width=4, zero_last=True).build(2)
    assert not net(torch.ones(1, 1, 8, 8)).any()
