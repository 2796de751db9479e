"""Attention over slices."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from medssl.core.random import stream
from medssl.nets.deform1d import Config, dropped, hats

SMALL = Config(width=16, hidden=20, layers=2, heads=4, reach=6.0)


def net(config=SMALL, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return config.build().double()


def stack(n, batch=3, width=16):
    x = torch.randn(batch, n, width, generator=stream(n, "x"), dtype=torch.float64)
    gaps = 0.5 + 3 * torch.rand(batch, n, generator=stream(n, "z"), dtype=torch.float64)
    return x, gaps.cumsum(1)


def test_hats_are_linear_interpolation_between_known_slices():
    _, z = stack(9)
    known = torch.rand(3, 9, generator=stream(0, "known")) > 0.4
    known[:, 4] = True
    at = 30 * torch.rand(3, 40, generator=stream(0, "at"), dtype=torch.float64) - 5
    values = torch.randn(9, generator=stream(0, "values"), dtype=torch.float64)
    found = hats(at, z, known) @ values
    for b in range(3):
        expected = np.interp(at[b], z[b][known[b]], values[known[b]])
        np.testing.assert_allclose(found[b], expected, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 5, 33])
def test_any_number_of_slices_will_do(n):
    x, z = stack(n)
    x.requires_grad_()
    method = net()
    y = method(x, z)
    assert y.shape == x.shape
    y.square().sum().backward()
    for name, p in method.named_parameters():
        assert p.grad is not None, name
        assert bool(p.grad.isfinite().all()), name


def test_only_ratios_of_lengths_count():
    x, z = stack(11)
    config = replace(SMALL, reach=2 * SMALL.reach, unit=2 * SMALL.unit)
    torch.testing.assert_close(net(config)(x, 2 * z), net()(x, z))
    assert (net()(x, 2 * z) - net()(x, z)).abs().max() > 1e-3


def test_only_distances_count():
    x, z = stack(11)
    torch.testing.assert_close(net()(x, z + 300), net()(x, z))


def test_padding_is_not_looked_at():
    x, z = stack(13)
    valid = torch.arange(13).expand(3, 13) < torch.tensor([[7], [13], [1]])
    noisy = torch.where(valid[..., None], x, 100.0)
    found, other = net()(x, z, valid), net()(noisy, z, valid)
    torch.testing.assert_close(found[valid], other[valid])
    torch.testing.assert_close(found[0, :7], net()(x[:1, :7], z[:1, :7])[0])


def test_volumes_do_not_see_each_other():
    x, z = stack(6)
    torch.testing.assert_close(net()(x, z)[1:2], net()(x[1:2], z[1:2]))


def test_what_is_dropped_is_drawn_from_the_generator():
    x, z = stack(8)
    method = net().train()
    state = torch.random.get_rng_state()
    a, b = (method(x, z, None, stream(1, "drop")) for _ in range(2))
    assert torch.equal(a, b)
    assert not torch.equal(a, method(x, z))
    assert torch.equal(method.eval()(x, z, None, stream(1, "drop")), method(x, z))
    assert torch.equal(state, torch.random.get_rng_state())
    ones = dropped(torch.ones(20000), 0.3, stream(0, "drop"))
    assert abs(float((ones == 0).float().mean()) - 0.3) < 0.02
    assert abs(float(ones.mean()) - 1) < 0.02
