"""SparK: what its loss looks at, and what its encoder learns."""

import pytest
import torch

from medssl.core.batch import Views
from medssl.core.errors import UsageError
from medssl.core.random import stream
from medssl.nets import monai_encoder, resenc, resnet
from medssl.pretrain import spark


def built(**values):
    """A small method whose first weights leave the global generator as it was."""
    axes = values.pop("axes", 2)
    net = values.pop(
        "net",
        resnet.Config(axes=axes, depths=(1, 1, 1), width=8, bottleneck=False, stem="small"),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return spark.Config(net=net, decoder_width=16, **values).build()


def seen(axes, side=16, batch=2, block=4, seed=0):
    """Blobs, and a third of their cells."""
    x = torch.randn(batch, 1, *(side,) * axes, generator=stream(seed, "x"))
    pool = torch.nn.functional.avg_pool2d if axes == 2 else torch.nn.functional.avg_pool3d
    image = 3 * pool(x, 5, 1, 2)
    n = (side // block) ** axes
    order = torch.rand(batch, n, generator=stream(seed, "visible")).argsort(1)
    visible = (order < n // 3).reshape(batch, 1, *(side // block,) * axes)
    return Views(image=image, visible=visible)


@pytest.mark.parametrize("axes", [2, 3])
def test_tiles_and_whole_maps_give_one_loss_and_one_gradient(axes):
    batch, gradients = seen(axes), []
    for tiles in (False, True):
        method = built(axes=axes, tiles=tiles).double()
        method.loss(Views(image=batch.image.double(), visible=batch.visible))["hidden"].backward()
        gradients.append({k: p.grad for k, p in method.named_parameters()})
    for key, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][key], atol=1e-10), key


@pytest.mark.parametrize("axes", [2, 3])
def test_the_hidden_cells_are_targets_only(axes):
    method, batch = built(axes=axes), seen(axes)
    guesses = []
    method.decoder.register_forward_hook(lambda *a: guesses.append(a[2]))
    mask = batch.visible
    for axis in range(2, 2 + axes):
        mask = mask.repeat_interleave(4, axis)
    method.loss(batch)
    method.loss(Views(image=torch.where(mask, batch.image, 7.0), visible=batch.visible))
    assert torch.allclose(*guesses, atol=1e-5)


@pytest.mark.parametrize(
    "net",
    [
        resnet.Config(depths=(1, 1, 1), width=8, bottleneck=False, stem="small"),
        resenc.Config(axes=2, depths=(1, 1, 1), widths=(8, 16, 16)),
    ],
)
def test_the_loss_falls_and_every_parameter_learns(net):
    method = built(net=net)
    optimiser = torch.optim.AdamW(method.parameters(), lr=3e-3)
    losses = []
    for step in range(40):
        loss = method.loss(seen(2, batch=8, side=32, seed=step))["hidden"]
        optimiser.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())
        optimiser.step()
        method.after_step(step / 40)
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_cells_finer_than_the_coarsest_level():
    method, batch = built(block=(2, 2)), seen(2, block=2)
    assert method.sees.multiple == 4
    assert set(method.tokens) == {"0", "1"}
    assert method.loss(batch)["hidden"].isfinite()


def test_sides_that_are_no_multiples_are_filled_up():
    method, batch = built(), seen(2)
    assert method.loss(Views(image=batch.image[..., :14, :13], visible=batch.visible))["hidden"] > 0


def test_batch_norms_ask_for_whole_images_before_they_are_used():
    method, batch = built(), seen(2)
    method.loss(batch)
    method.after_step(0.0)
    assert method.needs_calibration
    method.eval()
    images = [seen(2, seed=k).image for k in range(20)]
    method.calibrate(images)
    assert not method.needs_calibration
    method.after_step(0.5)
    assert method.needs_calibration
    first = torch.cat([method.encoder.conv1(image) for image in images])
    assert torch.allclose(method.encoder.bn1.running_mean, first.mean((0, 2, 3)), atol=1e-5)
    other = built(net=resenc.Config(axes=2, depths=(1, 1), widths=(4, 4)))
    other.after_step(0.0)
    assert not other.needs_calibration


@pytest.mark.parametrize(
    ("values", "fact"),
    [
        ({"block": (4, 4, 4)}, "block has 3 sides and the net 2 axes"),
        ({"block": (6, 6)}, "do not fit the strides"),
        ({"ratio": 1.0}, "ratio is 1.0"),
    ],
)
def test_values_that_do_not_fit_are_refused(values, fact):
    with pytest.raises(UsageError, match=fact):
        built(**values)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "net",
    [
        monai_encoder.UNet(channels=(4, 8, 8)),
        monai_encoder.SegResNet(init_filters=8, blocks_down=(1, 1)),
    ],
)
def test_the_encoders_of_monai_learn_too(net):
    method, batch = built(net=net, block=(4, 4, 4)), seen(3)
    method.loss(batch)["hidden"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())
