"""The map of the strength of noise: found where it varies, absent where it does not, any shape."""

import pytest
import torch

from medssl.core.random import stream
from medssl.physics.noise_map import relative_map, varies


def white(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=stream(0, "white"))


@pytest.mark.parametrize("shape", [(63, 63, 63), (95, 95, 5), (127, 127)])
def test_a_slope_is_found(shape):
    gain = torch.linspace(0.5, 1.5, shape[0]).view(-1, *[1] * (len(shape) - 1)).expand(shape)
    calm = torch.ones(shape, dtype=torch.bool)
    found = relative_map([(gain * white(*shape), calm)], tuple(n + 1 for n in shape), 0.5)
    assert found is not None
    assert found.shape == tuple(n + 1 for n in shape)
    inner = found[tuple(slice(0, n) for n in shape)]
    both = torch.stack([inner.flatten(), gain.flatten()])
    assert float(torch.corrcoef(both)[0, 1]) > 0.9


@pytest.mark.parametrize("shape", [(40, 40, 40), (39, 41, 5), (5, 5, 5), (3, 2), (60, 50, 1)])
def test_even_noise_has_no_map(shape):
    calm = torch.ones(shape, dtype=torch.bool)
    assert relative_map([(white(*shape), calm)], shape, 0.5) is None


def test_slabs_and_the_whole_agree():
    gain = torch.linspace(0.5, 1.5, 63).view(-1, 1, 1)
    detail, calm = gain * white(63, 40, 40), torch.ones(63, 40, 40, dtype=torch.bool)
    whole = relative_map([(detail, calm)], (64, 41, 41), 0.5)
    parts = [(detail[a : a + 24], calm[a : a + 24]) for a in (0, 24, 48)]
    assert varies(parts, 0.5)
    assert torch.allclose(relative_map(iter(parts), (64, 41, 41), 0.5), whole, atol=1e-5)
