"""Norms that see active sites: what they compute, and what they leave as torch has it."""

import copy

import pytest
import torch
from torch import nn

from medssl.core.random import stream
from medssl.nets.norms import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, adopt, calibrate


def images(axes, width=6, side=4, offset=50.0):
    x = torch.randn(3, width, *(side,) * axes, generator=stream(0, "x"), dtype=torch.float64)
    return offset + x


def pattern(axes, side=4):
    return torch.rand(3, 1, *(side,) * axes, generator=stream(0, "mask")) < 0.4


def gathered(x, mask, groups, eps=1e-5):
    """The literal form: collect the active sites of each image, standardise, put them back."""
    result = torch.zeros_like(x)
    for b in range(len(x)):
        active = x[b].movedim(0, -1)[mask[b, 0]].unflatten(1, (groups, -1))
        mean = active.mean((0, 2), keepdim=True)
        variance = active.var((0, 2), unbiased=False, keepdim=True)
        y = ((active - mean) / (variance + eps).sqrt()).flatten(1)
        result[b].movedim(0, -1)[mask[b, 0]] = y
    return result


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("groups", [2, 6])
def test_group_norms_are_the_gathered_form_with_its_gradient(axes, groups):
    norm = (GroupNorm(2, 6) if groups == 2 else InstanceNorm(6)).double()
    x, mask = images(axes).requires_grad_(), pattern(axes)
    weight = torch.randn(x.shape, generator=stream(0, "weight"), dtype=torch.float64) * mask
    ours, literal = norm(x, mask) * mask, gathered(x, mask, groups)
    assert torch.allclose(ours, literal, atol=1e-12)
    given = torch.autograd.grad((ours * weight).sum(), x)[0]
    expected = torch.autograd.grad((literal * weight).sum(), x)[0]
    assert torch.allclose(given, expected, atol=1e-11)


def test_gradients_hold_where_inactive_sites_are_used_all_the_same():
    norm, mask = InstanceNorm(2, affine=False).double(), pattern(2)
    x = images(2, width=2, offset=0.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: norm(x, mask), x)


@pytest.mark.parametrize("groups", [2, 6])
def test_the_parts_of_an_image_are_normalised_together(groups):
    norm = GroupNorm(groups, 6).double()
    whole = images(2)
    parts = whole.unflatten(3, (2, 2)).movedim(3, 1).flatten(0, 1)
    y = norm(parts, None, 2).unflatten(0, (3, 2)).movedim(1, 3).flatten(3, 4)
    assert torch.allclose(y, norm(whole))


@pytest.mark.parametrize("axes", [2, 3])
def test_torch_norms_are_adopted_with_their_names_and_results(axes):
    kinds = (
        getattr(nn, f"BatchNorm{axes}d")(6),
        nn.GroupNorm(3, 6),
        getattr(nn, f"InstanceNorm{axes}d")(6, affine=True),
        getattr(nn, f"InstanceNorm{axes}d")(6),
    )
    net = nn.Sequential(*kinds).double()
    for p in net.parameters():
        nn.init.uniform_(p, generator=stream(0, "p"))
    ours = adopt(copy.deepcopy(net))
    assert [type(part) for part in ours] == [BatchNorm, GroupNorm, InstanceNorm, InstanceNorm]
    assert ours.state_dict().keys() == net.state_dict().keys()
    assert torch.allclose(ours(images(axes)), net(images(axes)))


def test_a_layer_norm_sees_one_site():
    norm, x = LayerNorm(6).double(), images(3)
    expected = nn.LayerNorm(6, eps=1e-6).double()(x.movedim(1, -1)).movedim(-1, 1)
    assert torch.allclose(norm(x, pattern(3)), expected)
    assert norm.state_dict().keys() == nn.LayerNorm(6).state_dict().keys()


def test_calibrated_moments_are_means_over_images_and_nothing_else_changes():
    net = nn.Sequential(BatchNorm(2), nn.Dropout(0.5), BatchNorm(2)).double()
    net[0].running_mean += 7
    net[1].eval()
    batches = [images(2, width=2, offset=k) for k in (10.0, 20.0, 60.0)]
    calibrate(net, net, batches)
    means = torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0)
    variances = torch.stack([b.var((0, 2, 3)) for b in batches]).mean(0)
    assert torch.allclose(net[0].running_mean, means)
    assert torch.allclose(net[0].running_var, variances)
    assert [part.training for part in net] == [True, False, True]
    assert net[0].momentum == 0.1
