"""Joint image-volume learning."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from medssl import config
from medssl.config import Train, construct
from medssl.core.batch import Views
from medssl.core.errors import UsageError
from medssl.core.random import stream
from medssl.engine.fit import fit
from medssl.nets import deform1d, resnet
from medssl.pretrain.joint import Config, _error, _hidden

NET = resnet.Config(width=4, depths=(1, 1), bottleneck=False, stem="small")
SLICES = deform1d.Config(width=16, hidden=20, layers=2, heads=2)
SMALL = Config(net=NET, slices=SLICES, K_intra=5, K_inter=(2, 3), hidden=8, out=6, run=2, tau=0.5)


def built(values=SMALL, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return values.build().double()


def stacks(count=3, n=8, seed=0):
    """Smooth random volumes whose slices change with a wave, and two views with noise."""
    generator = stream(seed, "stacks")
    coarse = torch.randn(count, 1, 3, 3, 3, generator=generator, dtype=torch.float64)
    image = torch.nn.functional.interpolate(coarse, size=(8, 8, n), mode="trilinear")
    a, b = (
        image + 0.1 * torch.randn(image.shape, generator=generator, dtype=torch.float64)
        for _ in range(2)
    )
    return Views(
        image=image,
        views=(a, b),
        slice_mm=3.0 * torch.arange(n, dtype=torch.float64).repeat(count, 1),
        index=torch.arange(count),
        generator=stream(seed, "loss"),
        progress=0.5,
    )


@pytest.mark.parametrize("n", [1, 2, 7, 20])
@pytest.mark.parametrize("codes", ["kmeans", "sinkhorn"])
def test_any_number_of_slices_gives_finite_gradients(n, codes):
    method = built(replace(SMALL, codes=codes))
    terms = method.loss(stacks(n=n))
    assert list(terms) == ["intra", "inter", "mask"]
    torch.stack(list(terms.values())).sum().backward()
    for name, p in method.named_parameters():
        if p.requires_grad:
            assert p.grad is not None, name
            assert bool(p.grad.isfinite().all()), name
        else:
            assert name.startswith("mean_"), name
            assert p.grad is None


def test_terms_have_weights():
    batch = stacks()
    one = built().loss(replace(batch, generator=stream(0, "x")))
    heavy = built(replace(SMALL, intra=2.0, inter=3.0, mask=0.0))
    two = heavy.loss(replace(batch, generator=stream(0, "x")))
    for name, weight in (("intra", 2.0), ("inter", 3.0), ("mask", 0.0)):
        torch.testing.assert_close(two[name], weight * one[name])


def test_padded_slices_do_not_count():
    short = stacks(n=6)
    valid = torch.arange(9) < 6
    long = replace(
        short,
        views=tuple(torch.cat([v, 5 + 0 * v[..., :3]], -1) for v in short.views),
        slice_mm=3.0 * torch.arange(9, dtype=torch.float64).repeat(3, 1),
        valid=valid.expand(3, 1, 8, 8, 9),
    )
    values = replace(SMALL, slices=replace(SLICES, dropout=0.0), ratio=0.0)
    found = [built(values).loss(replace(b, generator=stream(0, "x"))) for b in (short, long)]
    for name in ("intra", "inter", "mask"):
        torch.testing.assert_close(found[1][name], found[0][name])


@pytest.mark.parametrize(("run", "ratio"), [(1, 0.1), (3, 0.1), (3, 0.5), (9, 0.9)])
def test_runs_of_valid_slices_are_hidden_but_never_all(run, ratio):
    valid = torch.arange(16).expand(200, 16) < 1 + torch.arange(200)[:, None] % 16
    hidden = _hidden(valid, ratio, run, stream(0, "hidden"))
    assert not bool((hidden & ~valid).any())
    assert bool((valid & ~hidden).any(1).all())
    assert bool(hidden.any(1)[valid.sum(1) > 1].all())
    once = max(1, round(ratio * 16 / run)) == 1
    if once:
        expected = (valid.sum(1) - 1).clamp_max(run)
        assert torch.equal(hidden.sum(1), expected)


def test_only_hidden_slices_count_in_the_error():
    guess = torch.zeros(2, 5, 3)
    target = torch.arange(5.0)[None, :, None].expand(2, 5, 3)
    hidden = torch.zeros(2, 5, dtype=torch.bool)
    hidden[0, [1, 3]] = True
    assert _error(guess, target, hidden).tolist() == [5.0, 0.0]


def test_the_obvious_guess_is_linear_interpolation():
    method, batch = built().eval(), stacks(n=9)
    own, obvious = method.hidden_errors(replace(batch, generator=stream(5, "x")))
    valid = torch.ones(3, 9, dtype=torch.bool)
    hidden = _hidden(valid, 0.1, 2, stream(5, "x"))
    with torch.no_grad():
        h = method._target(batch.image, valid)
    errors = []
    for b in range(3):
        seen = ~hidden[b]
        z = np.arange(9.0)
        guess = [np.interp(z, z[seen], h[b, seen, d]) for d in range(16)]
        away = torch.tensor(np.array(guess)).T - h[b]
        errors.append(away[hidden[b]].square().mean())
    torch.testing.assert_close(obvious.double(), torch.stack(errors).mean(), rtol=1e-4, atol=1e-8)
    assert own > 0


def test_the_running_mean_follows():
    method = built()
    with torch.no_grad():
        for p in method.encoder.parameters():
            p += 1
        before = [p.clone() for p in method.mean_encoder.parameters()]
        method.after_step(0.5)
    pairs = zip(before, method.mean_encoder.parameters(), strict=True)
    assert all(torch.allclose(new, old + 0.5) for old, new in pairs)
    lengths = method.of_slices.norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(5, dtype=torch.float64))


def test_clusters_are_those_of_volumes_of_the_store():
    method = built()
    assert method.refresh_every == SMALL.refresh
    assert built(replace(SMALL, codes="sinkhorn")).refresh_every is None
    bank = method.eval().embed(stacks(count=9).image).detach()
    method.refresh(bank, torch.arange(9) * 2, stream(0, "refresh"))
    assert [len(c.assignment) for c in method.clusters] == [17, 17]
    with torch.no_grad():
        batch = replace(stacks(), index=torch.arange(3) * 2)
        one = method.loss(batch)["inter"]
        for clusters in method.clusters:
            clusters.assignment.copy_((clusters.assignment + 1) % len(clusters.centroids))
        assert method.loss(replace(batch, generator=stream(0, "loss")))["inter"] > one


def test_slices_and_stacks_are_embedded():
    method, image = built().eval(), stacks(n=5).image
    assert method.embed(image).shape == (3, 16)
    assert method.embed(image[..., 2]).shape == (3, 8)
    stack, single = method.features(image), method.features(image[..., 2])
    assert [y.shape for y in stack] == [(3, 4, 8, 8, 5), (3, 8, 4, 4, 5)]
    for y, one in zip(stack, single, strict=True):
        torch.testing.assert_close(y[..., 2], one)
    assert method.sees.stack
    assert method.sees.axes == 3


def test_one_seed_is_one_result():
    state = torch.random.get_rng_state()
    found = []
    for _ in range(2):
        method = built()
        fit(method, [stacks(seed=k) for k in range(3)], Train(steps=3, lr=1e-3))
        found.append(method.state_dict())
    assert all(torch.equal(found[0][k], found[1][k]) for k in found[0])
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("missing", ["slice_mm", "generator"])
def test_what_batches_must_hold(missing):
    with pytest.raises(ValueError, match="slice_mm"):
        built().loss(replace(stacks(), **{missing: None}))


@pytest.mark.parametrize("name", ["joint", "joint_cpu"])
def test_recipes(name):
    recipe = config.load("pretrain", name)
    found = construct(Config, recipe.values, name)
    assert found.run == 3
    assert len(recipe.crops.size) == 3


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"net": replace(NET, axes=3)}, "3 axes"),
        ({"K_inter": ()}, "K_inter are 5 and \\[\\]"),
        ({"K_intra": 1}, "K_intra and K_inter are 1"),
        ({"T": 0.0}, "T is 0"),
        ({"run": 0}, "run is 0"),
        ({"ratio": 1.0}, "ratio is 1"),
        ({"slices": replace(SLICES, heads=3)}, "slices.width is 16"),
    ],
)
def test_numbers_with_which_nothing_is_learnt_are_refused(change, fact):
    with pytest.raises(UsageError, match=fact):
        replace(SMALL, **change).build()
