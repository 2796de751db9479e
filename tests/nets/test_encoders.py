"""Encoders of other packages: their names, their levels, their masked forms."""

import pytest
import torch

from medssl.core.errors import UsageError
from medssl.core.random import stream
from medssl.nets import monai_encoder, resenc, vit
from medssl.nets.sparse import ActiveTiles, SparseView


def made(make, *args, **values):
    """A net whose first weights leave the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make(*args, **values)


def built(config):
    return made(config.build)


def noise(*shape):
    return torch.randn(shape, generator=stream(0, "x"), dtype=torch.float64)


def assert_levels(net, image):
    found = net.features(image)
    assert [f.shape[1] for f in found] == list(net.widths)
    assert [image.shape[-1] // f.shape[-1] for f in found] == list(net.strides)


def assert_masked(net, image):
    axes = image.ndim - 2
    seen = torch.zeros(len(image), 2**axes, dtype=torch.bool)
    seen[:, 1] = seen[:, 2] = True
    seen = seen.reshape(-1, 1, *(2,) * axes)
    whole = SparseView(net).features(image, seen)
    tiles = ActiveTiles(net, smallest=1).features(image, seen)
    for a, b in zip(whole, tiles, strict=True):
        assert torch.allclose(a, b, atol=1e-10)
    for a, b in zip(net.features(image), SparseView(net).features(image, seen | True), strict=True):
        assert torch.allclose(a, b, atol=1e-10)


@pytest.mark.parametrize("axes", [2, 3])
def test_resenc_has_levels_and_a_masked_form(axes):
    net = built(resenc.Config(axes=axes, depths=(1, 2, 1), widths=(4, 6, 6))).double()
    image = noise(2, 1, *(16,) * axes)
    assert_levels(net, image)
    assert_masked(net, image)


def test_resenc_has_the_names_of_nnunet():
    net = built(resenc.Config(depths=(1, 2), widths=(4, 6)))
    state = resenc.nnunet_state(net.state_dict())
    for key in (
        "stem.convs.0.conv.weight",
        "stem.convs.0.all_modules.1.bias",
        "stages.0.blocks.0.conv2.norm.weight",
        "stages.1.blocks.0.skip.1.conv.weight",
        "stages.1.blocks.0.skip.1.all_modules.0.weight",
        "stages.1.blocks.1.conv1.all_modules.0.bias",
    ):
        assert key in state
    assert len(state) == 2 * len(net.state_dict())
    assert "stages.1.blocks.0.skip.1.conv.bias" not in state


def test_resenc_l_is_as_large_as_that_of_nnunet():
    with torch.device("meta"):
        net = resenc.Config().build()
    # Counted in dynamic-network-architectures 0.4.4.
    assert sum(p.numel() for p in net.parameters()) == 90_296_576


@pytest.mark.parametrize("axes", [2, 3])
def test_positions_of_a_transformer_follow_the_grid(axes):
    config = vit.Config(axes=axes, patch=4, width=24, depth=1, heads=2)
    net = built(config).double()
    assert_levels(net, noise(1, 1, *(16,) * axes))
    assert net.features(noise(1, 1, *(13,) * axes))[0].shape[2:] == (4,) * axes
    small, large = vit.positions((4,) * axes, 24), vit.positions((8,) * axes, 24)
    assert torch.equal(small.unflatten(0, (4,) * axes)[(0,) * axes], large[0])
    # Twice as many patches over the same field: their middles lie between the old ones.
    spread = vit.positions((8,), 24, (4,)).unflatten(0, (4, 2))
    angle = torch.atan2(*vit.positions((4,), 24)[:, (0, 12)].T)
    halves = torch.atan2(*spread[..., (0, 12)].movedim(-1, 0))
    assert torch.allclose(halves, torch.stack([angle - 0.25, angle + 0.25], 1), atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
class TestMonai:
    """MONAI itself says what is right; importing it takes seconds."""

    @pytest.mark.parametrize("axes", [2, 3])
    @pytest.mark.parametrize("units", [0, 2])
    def test_unet(self, axes, units):
        from monai.networks.nets import UNet

        config = monai_encoder.UNet(axes=axes, channels=(4, 6, 8), num_res_units=units)
        net = built(config).double()
        image = noise(2, 1, *(16,) * axes)
        assert_levels(net, image)
        assert_masked(net, image)
        whole = made(UNet, axes, 1, 1, (4, 6, 8), (2, 2), num_res_units=units).double()
        missing, unexpected = whole.load_state_dict(net.state_dict(), strict=False)
        assert not unexpected
        assert all(".2." in f".{key}" for key in missing)
        fine = whole.model[0](image)
        assert torch.allclose(net.features(image)[0], fine)
        below = whole.model[1].submodule
        assert torch.allclose(net.features(image)[1], below[1].submodule(below[0](fine)))

    @pytest.mark.parametrize("axes", [2, 3])
    def test_segresnet(self, axes):
        from monai.networks.nets import SegResNet

        net = built(monai_encoder.SegResNet(axes=axes, init_filters=8, blocks_down=(1, 2))).double()
        image = noise(2, 1, *(16,) * axes)
        assert_levels(net, image)
        assert_masked(net, image)
        whole = made(SegResNet, axes, 8, 1, 1, blocks_down=(1, 2), blocks_up=(1,)).double()
        _, unexpected = whole.load_state_dict(net.state_dict(), strict=False)
        assert not unexpected
        for a, b in zip(net.features(image), whole.encode(image)[1], strict=True):
            assert torch.allclose(a, b)

    @pytest.mark.parametrize("axes", [2, 3])
    def test_swin_unetr(self, axes):
        from monai.networks.nets import SwinUNETR

        net = built(monai_encoder.SwinUNETR(axes=axes, feature_size=12)).double()
        image = noise(1, 1, *(64,) * axes)
        assert_levels(net, image)
        whole = made(SwinUNETR, 1, 1, feature_size=12, spatial_dims=axes).double()
        _, unexpected = whole.load_state_dict(net.state_dict(), strict=False)
        assert not unexpected
        for a, b in zip(net.features(image), whole.swinViT(image), strict=True):
            assert torch.allclose(a, b)
        with pytest.raises(UsageError, match="no masked form"):
            SparseView(net)
