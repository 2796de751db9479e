"""The U-Net of the papers: its size, any picture, volumes slice by slice."""

import pytest
import torch

from medssl.core.random import stream
from medssl.nets.unet import Config


@pytest.mark.parametrize(("channels", "count"), [(1, 698_017), (3, 700_611)])
def test_number_of_parameters(channels, count):
    with torch.random.fork_rng():
        net = Config().build(2, channels, channels)
    assert sum(p.numel() for p in net.parameters()) == count


@pytest.mark.parametrize("shape", [(2, 1, 32, 64), (1, 1, 33, 7), (1, 1, 1, 5), (1, 1, 9, 8, 3)])
def test_any_shape(shape):
    with torch.random.fork_rng():
        net = Config(down=4, up=8, head=(6, 4)).build(2)
    image = torch.randn(shape, generator=stream(0, "unet"))
    out = net(image)
    assert out.shape == shape
    assert out.isfinite().all()
    if len(shape) == 5:
        assert torch.allclose(out[..., 1], net(image[..., 1]), atol=1e-6)


def test_there_is_no_volume_form():
    with pytest.raises(ValueError, match="2 axes, not 3"):
        Config().build(3)
