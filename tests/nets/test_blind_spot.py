"""The blind-spot net sees everything around a pixel, and the pixel itself only if asked to."""

import pytest
import torch

from medssl.core.random import stream
from medssl.nets.blind_spot import Config


@pytest.mark.parametrize("blind", [True, False])
def test_what_a_pixel_sees(blind):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Config(width=6, depth=3).build().double()
    image = torch.randn(1, 1, 41, 41, generator=stream(0, "spot"), dtype=torch.float64)
    image.requires_grad_()
    (seen,) = torch.autograd.grad(net(image, blind)[0, 0, 20, 20], image)
    assert (seen[0, 0, 20, 20] == 0) == blind
    reach = net.halo((41, 41))[0]
    near = seen[0, 0, 20 - reach : 21 + reach, 20 - reach : 21 + reach]
    assert seen.count_nonzero() == near.count_nonzero()
    assert near.count_nonzero() > 0.4 * near.numel()
