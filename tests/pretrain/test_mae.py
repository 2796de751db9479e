"""MAE: a transformer that sees tokens, other nets that see zeros."""

import pytest
import torch

from medssl.core.batch import Views
from medssl.core.errors import UsageError
from medssl.core.random import stream
from medssl.nets import monai_encoder, resenc, resnet, vit
from medssl.pretrain import mae

NETS = {
    "vit": vit.Config(patch=4, width=24, depth=2, heads=2),
    "vit-3d": vit.Config(axes=3, patch=4, width=24, depth=1, heads=2),
    "resnet": resnet.Config(depths=(1, 1, 1), width=8, bottleneck=False, stem="small"),
    "resenc-3d": resenc.Config(depths=(1, 1, 1), widths=(4, 8, 8)),
}


def built(net, **values):
    """A small method whose first weights leave the global generator as it was."""
    values = {"block": 4, "decoder_width": 24, "decoder_depth": 1, "decoder_heads": 2} | values
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return mae.Config(net=net, **values).build()


def seen(axes, side=16, batch=2, seed=0):
    """Blobs, and a quarter of their cells."""
    x = torch.randn(batch, 1, *(side,) * axes, generator=stream(seed, "x"))
    pool = torch.nn.functional.avg_pool2d if axes == 2 else torch.nn.functional.avg_pool3d
    n = (side // 4) ** axes
    order = torch.rand(batch, n, generator=stream(seed, "visible")).argsort(1)
    visible = (order < n // 4).reshape(batch, 1, *(side // 4,) * axes)
    return Views(image=3 * pool(x, 5, 1, 2), visible=visible)


@pytest.mark.parametrize("name", NETS)
def test_the_hidden_cells_are_targets_only_and_every_parameter_learns(name):
    net = NETS[name]
    method, batch = built(net), seen(net.axes)
    guesses = []
    method.decoder.register_forward_hook(lambda *a: guesses.append(a[2]))
    method.loss(batch)["hidden"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())
    mask = batch.visible
    for axis in range(2, 2 + net.axes):
        mask = mask.repeat_interleave(4, axis)
    method.loss(Views(image=torch.where(mask, batch.image, 7.0), visible=batch.visible))
    assert torch.equal(*guesses)
    assert guesses[0].shape == batch.image.shape


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_the_loss_falls(name):
    method = built(NETS[name], normalised=False)
    optimiser = torch.optim.AdamW(method.parameters(), lr=3e-3)
    losses = []
    for step in range(60):
        loss = method.loss(seen(2, batch=16, seed=step))["hidden"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_a_transformer_is_given_seen_tokens_in_their_places():
    method, batch = built(NETS["vit"]), seen(2)
    given = []
    method.encoder.blocks[0].register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    method.loss(batch)
    tokens, _ = method.encoder.embedded(batch.image)
    assert torch.equal(given[0].flatten(0, 1), tokens[batch.visible.flatten(1)])


def test_guesses_lie_where_their_cells_do():
    method, batch = built(NETS["vit"], decoder_depth=0), seen(2)
    guesses = []
    method.decoder.register_forward_hook(lambda *a: guesses.append(a[2]))
    method.loss(batch)
    moved = Views(image=batch.image.flip(0), visible=batch.visible.flip(0))
    method.loss(moved)
    assert torch.allclose(guesses[0], guesses[1].flip(0), atol=1e-6)


def test_a_batch_norm_asks_for_whole_images():
    method = built(NETS["resnet"])
    method.after_step(0.0)
    assert method.needs_calibration
    method.calibrate([seen(2).image])
    assert not method.needs_calibration
    other = built(NETS["vit"])
    other.after_step(0.0)
    assert not other.needs_calibration


@pytest.mark.parametrize(
    ("name", "values", "fact"),
    [
        ("vit", {"block": 8}, "cells have 8 voxels and patches 4"),
        ("vit", {"decoder_heads": 5}, "decoder_heads 5 do not divide"),
        ("resnet", {"block": 6}, "do not fit the strides"),
        ("resnet", {"ratio": 0.0}, "ratio is 0.0"),
    ],
)
def test_values_that_do_not_fit_are_refused(name, values, fact):
    with pytest.raises(UsageError, match=fact):
        built(NETS[name], **values)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_swin_transformer_of_monai_learns_too():
    net = monai_encoder.SwinUNETR(axes=2, feature_size=12)
    method, batch = built(net), seen(2, side=64)
    method.loss(batch)["hidden"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())
