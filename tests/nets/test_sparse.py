"""Encoders that see cells: whole maps, tiles, and the literal form agree."""

import copy

import pytest
import torch
from torch import nn

from medssl.core.errors import UsageError
from medssl.core.random import stream
from medssl.nets import resnet
from medssl.nets.norms import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, adopt
from medssl.nets.sparse import ActiveTiles, SparseView, sparse_view


class Excited(nn.Module):
    """A map times what its mean asks for."""

    def __init__(self, axes, width):
        super().__init__()
        self.ones = (1,) * axes
        self.pool = nn.AdaptiveAvgPool2d(1) if axes == 2 else nn.AdaptiveAvgPool3d(1)
        self.line = nn.Linear(width, width)

    def forward(self, x):
        b, c = x.shape[:2]
        return x * self.line(self.pool(x).view(b, c)).sigmoid().view(b, c, *self.ones)


class Small(nn.Module):
    """Kernels of 1, 3 and 7, strides of 1 and 2, pools, a shortcut, and a mean over all sites."""

    def __init__(self, axes, norm, slope=0.0):
        super().__init__()
        conv = nn.Conv2d if axes == 2 else nn.Conv3d
        self.first = nn.Sequential(conv(1, 4, 7 if axes == 2 else 5, padding=3 if axes == 2 else 2))
        self.norms = nn.ModuleList(norm(4) for _ in range(4))
        self.act = nn.LeakyReLU(slope, inplace=True)
        self.pool = getattr(nn, f"MaxPool{axes}d")(3, stride=2, padding=1)
        self.mean = getattr(nn, f"AvgPool{axes}d")(2)
        self.second = conv(4, 4, 3, stride=1, padding=1)
        self.excited = Excited(axes, 4)
        self.down = conv(4, 4, 3, stride=2, padding=1, bias=False)
        self.one = conv(4, 4, 1)
        self.last = conv(4, 4, 3, padding=1)

    def features(self, image):
        x = self.act(self.norms[0](self.first(image)))
        fine = self.excited(self.norms[1](self.second(x)) + x)
        x = self.act(self.norms[2](self.down(self.pool(fine))))
        x = x + self.mean(self.mean(self.one(fine)))
        return [fine, x, self.norms[3](self.last(x))]


NORMS = {
    "batch": BatchNorm,
    "instance": InstanceNorm,
    "group": lambda width: GroupNorm(2, width),
    "layer": LayerNorm,
}


def built(make):
    """A net whose first weights leave the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


def visible(batch, grid, keep, seed=0):
    """The same number of cells in each image."""
    order = torch.rand(batch, torch.Size(grid).numel(), generator=stream(seed, "visible")).argsort(
        1
    )
    return (order < keep).reshape(batch, 1, *grid)


def image(batch, axes, side, dtype=torch.float64):
    shape = (batch, 1, *(side,) * axes)
    return torch.randn(shape, generator=stream(0, "image"), dtype=dtype)


def outcome(view, x, seen):
    """Features, and the gradients of parameters and image for a fixed weighting of them."""
    view.encoder.zero_grad()
    x = x.clone().requires_grad_()
    found = view.features(x, seen)
    weights = [torch.randn(f.shape, generator=stream(0, "weights"), dtype=f.dtype) for f in found]
    sum((f * w).sum() for f, w in zip(found, weights, strict=True)).backward()
    return found, {k: p.grad for k, p in view.encoder.named_parameters()} | {"image": x.grad}


def assert_equal(one, other, tolerance):
    for a, b in zip(one[0], other[0], strict=True):
        assert (a - b).abs().max() <= tolerance * a.abs().max()
    largest = max(g.abs().max() for g in one[1].values())
    for key, a in one[1].items():
        scale = max(float(a.abs().max()), 1e-3 * float(largest))
        assert (a - other[1][key]).abs().max() <= tolerance * scale, key


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("axes", "slope"), [(2, 0.0), (3, 0.2)])
def test_tiles_are_the_whole_maps(axes, norm, slope):
    encoder = built(lambda: Small(axes, NORMS[norm], slope)).double()
    x, seen = image(2, axes, 16), visible(2, (2,) * axes, 2**axes // 2)
    tiles = ActiveTiles(encoder, smallest=1)
    assert_equal(outcome(SparseView(encoder), x, seen), outcome(tiles, x, seen), 1e-10)


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("stem", ["small", "imagenet"])
def test_a_resnet_in_tiles(axes, stem):
    config = resnet.Config(axes=axes, depths=(1, 1, 1), width=4, bottleneck=axes == 2, stem=stem)
    encoder = built(config.build).double()
    for seed in range(2):
        x, seen = image(2, axes, 32), visible(2, (2, 4, 4)[:axes], 3, seed)
        whole, tiles = (sparse_view(encoder, tiles=t) for t in (False, True))
        assert_equal(outcome(whole, x, seen), outcome(tiles, x, seen), 1e-9)


def test_a_volume_in_tiles_to_1e_5_in_single_precision():
    config = resnet.Config(axes=3, depths=(1, 1), width=8, bottleneck=False, stem="small")
    encoder = built(config.build)
    x, seen = image(1, 3, 32, torch.float32), visible(1, (2, 2, 2), 2)
    whole, tiles = (sparse_view(encoder, tiles=t) for t in (False, True))
    assert_equal(outcome(whole, x, seen), outcome(tiles, x, seen), 1e-5)


def literal(encoder, x, seen):
    """Masked by hand: gather, norm, scatter, for a net of a convolution, batch norm and ReLU."""
    found = []
    for conv, norm in zip(encoder.convs, encoder.norms, strict=True):
        mask = seen
        while mask.shape[2:] != x.shape[2:]:
            mask = mask.repeat_interleave(2, 2).repeat_interleave(2, 3)
        y = conv(x * mask)
        fine = seen.repeat_interleave(y.shape[2] // seen.shape[2], 2)
        fine = fine.repeat_interleave(y.shape[3] // seen.shape[3], 3)
        active = y.movedim(1, -1)[fine[:, 0]]
        normed = torch.zeros_like(y)
        normed.movedim(1, -1)[fine[:, 0]] = norm(active)
        x = normed.relu()
        found.append(x)
    return found


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=s, padding=1) for a, b, s in ((1, 4, 1), (4, 6, 2), (6, 5, 2))
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(n) for n in (4, 6, 5))

    def features(self, x):
        found = []
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm(conv(x)).relu()
            found.append(x)
        return found


def test_masked_moments_are_the_literal_form_in_double_precision():
    plain = built(Plain).double()
    ours = adopt(copy.deepcopy(plain))
    x, seen = image(3, 2, 32), visible(3, (4, 4), 6)
    for view in (SparseView(ours), ActiveTiles(copy.deepcopy(ours), smallest=1)):
        for a, b in zip(
            literal(copy.deepcopy(plain), x, seen), view.features(x, seen), strict=True
        ):
            assert (a - b).abs().max() < 1e-12


@pytest.mark.parametrize("tiles", [False, True])
def test_all_visible_is_the_dense_net(tiles):
    encoder = built(lambda: Small(3, InstanceNorm)).double()
    x, seen = image(1, 3, 16), torch.ones(1, 1, 2, 2, 2, dtype=torch.bool)
    for a, b in zip(
        encoder.features(x), sparse_view(encoder, tiles=tiles).features(x, seen), strict=True
    ):
        assert torch.allclose(a, b, atol=1e-10)


@pytest.mark.parametrize("tiles", [False, True])
def test_what_is_hidden_has_no_influence_and_order_none_either(tiles):
    encoder = built(lambda: Small(2, InstanceNorm)).double()
    view = sparse_view(encoder, tiles=tiles)
    x, seen = image(2, 2, 16), visible(2, (2, 2), 2)
    mask = seen.repeat_interleave(8, 2).repeat_interleave(8, 3)
    other = torch.where(mask, x, 1e3 * torch.ones_like(x))
    found = view.features(x, seen)
    for a, b in zip(found, view.features(other, seen), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(found, view.features(x.flip(0), seen.flip(0)), strict=True):
        assert torch.allclose(a, b.flip(0), atol=1e-12)


def test_maps_coarser_than_the_cells_are_whole():
    encoder = built(resnet.Config(depths=(1, 1, 1), width=4, bottleneck=False, stem="small").build)
    x, seen = image(2, 2, 16, torch.float32), visible(2, (8, 8), 16)
    for tiles in (False, True):
        found = sparse_view(encoder, tiles=tiles).sites(x, seen)
        assert [one.partial for one in found] == [True, True, False]
        assert found[-1].dense() is found[-1].x
        assert [one.shape for one in found] == [(16, 16), (8, 8), (4, 4)]


def test_a_view_has_the_names_and_the_parameters_of_its_encoder():
    encoder = built(resnet.Config(depths=(1,), width=4, stem="small").build)
    view = sparse_view(encoder)
    assert view.state_dict().keys() == encoder.state_dict().keys()
    twin = copy.deepcopy(view)
    assert twin.encoder is not encoder
    assert twin.steps == view.steps


def test_a_view_compiles_without_a_break():
    encoder = built(resnet.Config(depths=(1, 1), width=4, bottleneck=False, stem="small").build)
    view = SparseView(encoder)
    x, seen = image(2, 2, 16, torch.float32), visible(2, (4, 4), 6)
    compiled = torch.compile(view.features, fullgraph=True, backend="eager")
    for a, b in zip(view.features(x, seen), compiled(x, seen), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_unequal_numbers_of_seen_cells_are_refused():
    encoder = built(resnet.Config(depths=(1,), width=4, stem="small").build)
    seen = torch.tensor([[True, False, False, False], [True, True, False, False]])
    with pytest.raises(ValueError, match=r"images of \[1, 2\] seen cells"):
        sparse_view(encoder, tiles=True).features(image(2, 2, 16), seen.reshape(2, 1, 2, 2))


class Odd(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def features(self, x):
        return [self.layer(x)]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Upsample(scale_factor=2),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.AdaptiveAvgPool2d(2),
        built(lambda: nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect")),
        nn.BatchNorm2d(1),
        torch.nn.functional.softmax,
    ],
)
def test_a_layer_without_a_masked_form_is_refused(layer):
    with pytest.raises(UsageError, match="of the encoder has no masked form"):
        sparse_view(Odd(layer))


@pytest.mark.cuda
def test_tiles_are_the_whole_maps_on_a_gpu():
    encoder = built(resnet.Config(axes=3, depths=(1, 1), width=8, stem="small").build).cuda()
    x, seen = image(1, 3, 32, torch.float32).cuda(), visible(1, (2, 2, 2), 2).cuda()
    whole, tiles = (sparse_view(encoder, tiles=t) for t in (False, True))
    for a, b in zip(whole.features(x, seen), tiles.features(x, seen), strict=True):
        assert (a - b).abs().max() <= 1e-5 * a.abs().max()
