"""ResNets and their norm."""

import pytest
import torch

from medssl.core.random import stream
from medssl.nets import resnet
from medssl.nets.norms import BatchNorm


def built(**values):
    """A net whose first weights leave the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        return resnet.Config(**values).build()


def test_resnet_50_has_the_names_and_sizes_of_torchvision():
    net = built(in_channels=3)
    state = net.state_dict()
    assert sum(p.numel() for p in net.parameters()) == 23_508_032
    for key in ("conv1.weight", "bn1.running_var", "layer1.0.downsample.1.bias"):
        assert key in state
    assert state["layer4.2.conv3.weight"].shape == (2048, 512, 1, 1)


@pytest.mark.parametrize("axes", [2, 3])
def test_features_come_fine_to_coarse(axes):
    net = built(axes=axes, depths=(1, 1), width=4, bottleneck=False, stem="small")
    found = net.features(torch.zeros(2, 1, *(16,) * axes))
    assert [f.shape[1] for f in found] == list(net.widths)
    assert [16 // f.shape[-1] for f in found] == list(net.strides)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_the_norm_is_that_of_torch_and_sees_what_is_active(axes):
    x = 100 + torch.randn(4, 3, *(6,) * axes, generator=stream(0, "x"), dtype=torch.float64)
    mask = torch.rand(4, 1, *(6,) * axes, generator=stream(0, "mask")) < 0.3
    torch_norm = getattr(torch.nn, f"BatchNorm{axes}d")(3).double()
    ours, masked = BatchNorm(3).double(), BatchNorm(3).double()
    assert torch.allclose(ours(x), torch_norm(x))
    assert ours.state_dict().keys() == torch_norm.state_dict().keys()
    y = masked(x, mask)
    active = x.movedim(1, -1)[mask[:, 0]]
    expected = (active - active.mean(0)) / (active.var(0, unbiased=False) + 1e-5).sqrt()
    assert torch.allclose(y.movedim(1, -1)[mask[:, 0]], expected, atol=1e-9)
    assert torch.allclose(masked.running_var, 0.9 + 0.1 * active.var(0))


def test_a_single_active_site_falls_back_to_the_running_moments():
    norm = BatchNorm(2)
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., 0, 0] = 1
    y = norm(torch.full((1, 2, 4, 4), 5.0), mask)
    assert torch.allclose(y, torch.full_like(y, 5.0), atol=1e-3)
    assert torch.equal(norm.running_mean, torch.zeros(2))
