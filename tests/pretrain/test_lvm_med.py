"""LVM-Med."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize

from medssl import config
from medssl.config import Train, construct
from medssl.core.batch import Views
from medssl.core.errors import UsageError
from medssl.core.random import stream
from medssl.engine.fit import fit
from medssl.nets import resnet
from medssl.pretrain.lvm_med import Config, _centres, _directions, _local, _parts

NET = resnet.Config(width=4, depths=(1, 1), bottleneck=False, stem="small")
SMALL = Config(net=NET, small=0, width=12, gamma=(4, 2), n=8, k=3)


def built(values=SMALL, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return values.build().double()


def views(count, small=0, seed=0, noise=0.1):
    """Views that are the same random smooth images with a little noise."""
    generator = stream(seed, "views")
    coarse = torch.randn(count, 1, 4, 4, generator=generator, dtype=torch.float64)
    image = torch.nn.functional.interpolate(coarse, size=(12, 12), mode="bilinear")

    def view(side):
        crop = image[..., :side, :side]
        extra = torch.randn(crop.shape, generator=generator, dtype=torch.float64)
        return crop + noise * extra

    boxes = torch.zeros(2 + small, count, 2, 2, dtype=torch.float64)
    boxes[:2, :, 1] = 12.0
    boxes[2:, :, 1] = 6.0
    return Views(
        image=image,
        views=(view(12), view(12)),
        small=tuple(view(6) for _ in range(small)),
        boxes=boxes,
        generator=stream(seed, "loss"),
    )


def test_centres_follow_the_box_and_its_flips():
    boxes = torch.tensor([[[0.0, 10.0], [8.0, -4.0]]])
    expected = [[2.0, 9.0], [2.0, 7.0], [6.0, 9.0], [6.0, 7.0]]
    assert _centres(boxes, (2, 2))[0].tolist() == expected


def test_local_affinities_are_those_of_their_equation():
    method, batch = built(), views(3)
    maps = method._maps(batch.views)
    s, t = (method._graphs(y, b, 3) for y, b in zip(maps, batch.boxes, strict=True))
    expected = torch.zeros(3, 3, dtype=torch.float64)
    for first, second, back in ((s, t, False), (t, s, True)):
        q, r = first.cells[0].reshape(3, -1, 8), second.cells[0].reshape(3, -1, 8)
        at, to = (g.places[0].reshape(3, -1, 2) for g in (first, second))
        for i in range(3):
            for a in range(3):
                for far in (torch.cdist(at[i], to[a]), torch.cdist(q[i], r[a])):
                    nearest = far.min(1)
                    best = nearest.values.topk(4, largest=False).indices
                    one, other = q[i][best], r[a][nearest.indices[best]]
                    value = (normalize(one) * normalize(other)).sum(1).mean() / 2
                    expected[(a, i) if back else (i, a)] += value
    torch.testing.assert_close(_local(s, t, 4)[0], expected)


def test_graphs_are_of_runs_and_of_what_is_left_over():
    assert _parts(32, 16) == [(slice(0, 32), 16)]
    assert _parts(20, 16) == [(slice(0, 16), 16), (slice(16, 20), 4)]
    assert _parts(17, 16) == [(slice(0, 16), 16)]
    assert _parts(1, 16) == [(slice(0, 1), 1)]


@pytest.mark.parametrize("count", [1, 2, 8, 11, 16])
@pytest.mark.parametrize("order", [1, 2])
def test_every_batch_gives_finite_gradients(count, order):
    method = built(replace(SMALL, order=order, small=2, beta=0.5))
    (loss,) = method.loss(views(count, small=2, noise=3.0)).values()
    loss.backward()
    for name, p in method.named_parameters():
        assert p.grad is not None, name
        assert bool(p.grad.isfinite().all()), name
    if count >= 8:
        assert loss > 0
        assert all(p.grad.abs().max() > 0 for p in method.parameters())


def test_equal_views_are_matched():
    method, batch = built().eval(), views(16, noise=0.0)
    assert bool(method.matches(batch).all())
    assert method.loss(replace(batch, progress=1.0))["match"] == 0


def test_the_order_of_the_images_does_not_matter():
    method, batch = built().eval(), views(8, noise=1.0)
    order = torch.randperm(8, generator=stream(1, "order"))
    mixed = replace(batch, views=tuple(v[order] for v in batch.views), boxes=batch.boxes[:, order])
    assert torch.equal(method.matches(mixed), method.matches(batch)[order])


def test_noise_fades_and_comes_from_the_generator():
    method, batch = built(replace(SMALL, beta=5.0)).eval(), views(16, noise=0.0)
    first, again = (
        method.loss(replace(batch, generator=stream(0, "noise")))["match"] for _ in range(2)
    )
    assert first == again > 0
    assert method.loss(replace(batch, progress=1.0))["match"] == 0


def test_slices_learn_to_find_their_other_view():
    method = built(replace(SMALL, n=16, k=5), seed=1)
    unseen = [views(16, seed=100 + k, noise=0.7) for k in range(4)]

    def found():
        method.eval()
        return float(torch.cat([method.matches(b) for b in unseen]).double().mean())

    before = found()
    fit(method.train(), [views(16, seed=k, noise=0.7) for k in range(60)], Train(steps=60, lr=3e-3))
    assert found() > before + 0.1


def test_edges_between_equal_vertices_have_no_gradient_to_speak_of():
    z = torch.randn(1, 4, 6, dtype=torch.float64, generator=stream(0, "z"))
    z[:, 1] = z[:, 0] * (1 + 1e-14)
    z.requires_grad_()
    edges = torch.tensor([[[0, 1], [0, 2], [2, 3]]])
    found = _directions(z, edges, 1.0)
    found.sum().backward()
    assert float(z.grad.abs().max()) < 10 / float(z.detach().norm(dim=-1).min())
    far = _directions(z.detach(), edges, 0.0).norm(dim=-1)
    assert torch.allclose(far[:, 1:], torch.ones_like(far[:, 1:]))


def test_what_batches_must_hold():
    method = built()
    assert method.sees.neighbours == 1
    assert built(replace(SMALL, graph_mix="volume")).sees.neighbours == 8
    with pytest.raises(ValueError, match="boxes"):
        method.loss(replace(views(8), boxes=None))


@pytest.mark.parametrize("name", ["lvm_med", "lvm_med_cpu"])
def test_recipes(name):
    recipe = config.load("pretrain", name)
    found = construct(Config, recipe.values, name)
    assert recipe.train is not None
    assert recipe.train.batch % found.n == 0
    assert found.small == 0 or recipe.crops.small_size is not None


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"n": 1}, "n = 1"),
        ({"k": 8}, "k = 8"),
        ({"alpha": 1.5}, "alpha is 1.5"),
        ({"gamma": (0, 4)}, "gamma is \\[0, 4\\]"),
        ({"lambda_": 0.0}, "lambda_ 0"),
        ({"n_iter": 0}, "are 0, 12 and 0"),
        ({"graph_mix": "volume", "net": replace(NET, axes=3)}, "3 axes"),
    ],
)
def test_numbers_with_which_nothing_is_learnt_are_refused(change, fact):
    with pytest.raises(UsageError, match=fact):
        replace(SMALL, **change).build()
