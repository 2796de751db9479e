"""Noise2Recon, SSDU and the supervised controls: what their terms see, and that they learn."""

import dataclasses

import numpy as np
import pytest
import torch

from medssl import config
from medssl.core.errors import UsageError
from medssl.core.random import stream
from medssl.data.raw import Slice, acquired
from medssl.data.simulate import phantom, simulate_multicoil
from medssl.engine.build import reconstructor
from medssl.engine.fit import fit
from medssl.nets import chain, unet, unrolled
from medssl.physics.acquisition import known, model, parted, unexplained, with_noise
from medssl.physics.sampling import edge, poisson_disc
from medssl.recon import noise2recon, ssdu, supervised

SIDE = 32
UNIFORM = ("uniform", (4, 4))
NETS = {
    "cg": unrolled.Config(
        stages=2, denoiser=chain.Config(depth=2, width=8, zero_last=True), iterations=4
    ),
    "gradient": unrolled.Config(
        stages=2, denoiser=chain.Config(depth=2, width=8, zero_last=True), data="gradient"
    ),
    "direct U-Net": unrolled.Config(
        stages=0, denoiser=unet.Config(levels=3, down=8, up=8, head=(8, 8)), told=False
    ),
}


def seen(*, labelled=True, seed=0, generator=True, sigma=0.0):
    """A simulated slice as a step sees it."""
    made = simulate_multicoil(phantom((SIDE, SIDE), seed), seed, n_coils=4)
    data = torch.from_numpy(made.measured(sigma, seed).data)
    pattern = poisson_disc((SIDE, SIDE), 2.5, (10, 10), seed)
    own = None if labelled else 0
    one = Slice(data, made.coil_maps[None], max(sigma, 1e-4), None, own)
    batch = acquired(one, (pattern, edge(pattern)))
    return dataclasses.replace(batch, generator=stream(seed, "loss") if generator else None)


def built(kind, **values):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind.Config(net=values.pop("net", NETS["cg"]), **values).build()


class Base(torch.nn.Module):
    """Any base net will do: this one notes what it is shown."""

    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(()))
        self.shown = []

    def forward(self, batch):
        self.shown.append(batch)
        return self.gain * known(batch).adjoint(batch.kspace)


def on(settings):
    """A method with the base net of one gain."""
    with torch.random.fork_rng():
        method = settings.build()
    method.f = Base()
    return method


def test_noise_lies_where_something_was_measured_and_nowhere_else():
    batch = seen()
    wide = dataclasses.replace(
        batch,
        kspace=batch.kspace.expand(200, -1, -1, -1),
        sampling=batch.sampling.expand(200, -1, -1, -1),
    )
    noisy = with_noise(wide, (0.3, 0.3))
    added = torch.view_as_real(noisy.kspace - wide.kspace)
    at = wide.sampling[..., None].expand_as(added) > 0
    assert not added[~at].any()
    assert float(added[at].std()) == pytest.approx(0.3, rel=0.01)
    real, imaginary = added[..., 0][at[..., 0]], added[..., 1][at[..., 0]]
    assert abs(float((real * imaginary).mean())) < 0.01 * 0.09
    assert float(noisy.level[0]) == pytest.approx(np.hypot(batch.sigma, 0.3))
    levels = with_noise(wide, (0.1, 0.2)).level.flatten()
    assert len(levels.unique()) == 200
    assert 0.1 <= float(levels.min()) < 0.11
    assert 0.19 < float(levels.max()) < 0.201


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("labelled", [True, False])
def test_consistency_is_zero_without_noise(kind, labelled):
    method = built(noise2recon, net=NETS[kind], sigma=(0.0, 0.0)).eval()
    terms = method.loss(seen(labelled=labelled))
    assert float(terms["consistency"].detach()) < 1e-6


def test_no_gradient_passes_through_the_target():
    """With a base net of one gain g, |g a - sg(g b)| has another gradient than |g a - g b|."""
    method = on(noise2recon.Config(sigma=(0.3, 0.3)))
    method.loss(seen(labelled=False))["consistency"].backward()
    noisy = method.f.shown[-1]
    a = known(noisy).adjoint(noisy.kspace)
    b = known(seen()).adjoint(seen().kspace)
    gain = torch.ones((), requires_grad=True)
    (0.1 * (gain * a - b).abs().mean()).backward()
    assert float(method.f.gain.grad) == pytest.approx(float(gain.grad), rel=1e-4)
    assert not method.f.shown[1].kspace.requires_grad


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        noise2recon.Config(),
        noise2recon.Config(supervised=False),
        noise2recon.Config(ssdu=False),
        ssdu.Config(),
        supervised.Config(sigma=(0.1, 0.2)),
    ],
    ids=["n2r", "n2r-ssdu", "n2r-semi", "ssdu", "supervised"],
)
def test_points_that_are_never_measured_are_zeros_in_every_branch(settings, labelled):
    labelled = labelled or isinstance(settings, supervised.Config)
    method = on(settings)
    batch = seen(labelled=labelled)
    method.loss(batch)
    assert method.f.shown
    for shown in method.f.shown:
        assert torch.equal(shown.edge, batch.edge)
        assert not (shown.kspace * batch.edge).any()
        assert not (shown.sampling * batch.edge).any()
        used = known(shown).sampling
        assert bool((used[batch.edge > 0] == 1).all())
        assert bool((used[(shown.sampling + batch.edge) == 0] == 0).all())


def test_the_truth_holds_nothing_that_the_protocol_never_measures():
    batch = seen()
    beyond = model(dataclasses.replace(batch, sampling=batch.edge))(batch.truth)
    inside = model(dataclasses.replace(batch, sampling=1 - batch.edge))(batch.truth)
    assert float(beyond.abs().square().mean()) < 1e-3 * float(inside.abs().square().mean())


def test_ssdu_parts_what_was_measured():
    batch = seen()
    theta, aside = parted(batch, 0.4, *UNIFORM)
    assert torch.equal(theta.sampling + aside, batch.sampling)
    assert float(aside.sum() / batch.sampling.sum()) == pytest.approx(0.4, abs=0.01)
    middle = slice(SIDE // 2 - 2, SIDE // 2 + 2)
    assert not aside[..., middle, middle].any()
    assert not (theta.kspace * aside).any()
    near, far = ((_share_near(parted(batch, 0.4, k, (4, 4))[1])) for k in ("gaussian", "uniform"))
    assert near > far + 0.05
    # what is kept aside is never seen: poison there changes nothing
    base = built(ssdu).f
    changed = dataclasses.replace(batch, kspace=batch.kspace + 1e6 * aside)
    again, _ = parted(dataclasses.replace(changed, generator=stream(0, "loss")), 0.4, *UNIFORM)
    with torch.no_grad():
        assert torch.equal(base(theta), base(again))


def _share_near(aside):
    ys, xs = np.nonzero(aside[0, 0].numpy())
    return float((np.hypot(ys - SIDE // 2, xs - SIDE // 2) < SIDE / 4).mean())


def test_the_loss_of_ssdu_is_the_one_of_the_paper():
    method = on(ssdu.Config())
    batch = seen()
    loss = method.loss(batch)["ssdu"]
    theta = method.f.shown[0]
    aside = batch.sampling - theta.sampling
    with torch.no_grad():
        e = torch.view_as_real(unexplained(batch, method.f(theta), aside)).flatten()
    u = torch.view_as_real(aside * batch.kspace).flatten()
    ratios = e.abs().sum() / u.abs().sum(), e.norm() / u.norm()
    assert float(loss.detach()) == pytest.approx(float(sum(ratios)) / 2, rel=1e-5)


def test_consistency_alone_is_refused():
    with pytest.raises(UsageError, match="consistency alone"):
        noise2recon.Config(supervised=False, ssdu=False).build()
    with pytest.raises(UsageError, match="sigma"):
        noise2recon.Config(sigma=(0.2, 0.1)).build()


def test_which_terms_a_batch_brings():
    full, fast = seen(), seen(labelled=False)
    assert fast.truth is None
    both = built(noise2recon)
    assert set(both.loss(full)) == {"supervised", "consistency"}
    assert set(both.loss(fast)) == {"ssdu", "consistency"}
    semi = built(noise2recon, ssdu=False, on_labelled=False)
    assert set(semi.loss(full)) == {"supervised"}
    assert set(semi.loss(fast)) == {"consistency"}
    alone = built(noise2recon, supervised=False)
    assert set(alone.loss(full)) == {"ssdu", "consistency"}
    assert (both.learns_from, semi.learns_from, alone.learns_from) == ("none", "some", "none")


@pytest.mark.parametrize("kind", NETS)
def test_base_nets_are_interchangeable(kind):
    method = built(noise2recon, net=NETS[kind])
    for labelled in (True, False):
        total = sum(method.loss(seen(labelled=labelled)).values())
        total.backward()
    assert all(torch.isfinite(p.grad).all() for p in method.parameters())
    assert method.restore(seen()).shape == (1, 1, SIDE, SIDE)


@pytest.mark.parametrize(
    "name", ["noise2recon", "noise2recon_semi", "noise2recon_ssdu", "ssdu", "supervised"]
)
def test_every_setting_learns(name):
    small = {"stages": 2, "denoiser": {"depth": 3, "width": 8, "zero_last": True}}
    changes = {"method.net": small}
    if name.startswith("noise2recon"):
        changes["method.sigma"] = [0.0, 0.05]
    recipe = config.load("recon", name, changes)
    train = dataclasses.replace(recipe.train, steps=20, schedule="constant", lr=5e-3)
    method, _ = reconstructor(recipe)
    kinds = {"full": [True], "some": [True, False], "none": [True, False]}[method.learns_from]

    def at(step):
        batch = seen(labelled=kinds[step % len(kinds)], seed=3, sigma=0.005)
        return dataclasses.replace(batch, generator=stream(step, "loss"))

    def loss():
        with torch.no_grad():
            parts = [sum(method.loss(at(100 + k)).values()) for k in range(len(kinds))]
        return float(sum(parts))

    before = loss()
    fit(method, [at(step) for step in range(20)], train)
    assert loss() < before


def test_a_second_set_of_maps_is_reconstructed_too():
    batch = seen()
    maps = torch.cat([batch.coil_maps, 0.1 * batch.coil_maps.flip(-1)], 1)
    found = built(noise2recon).restore(dataclasses.replace(batch, coil_maps=maps))
    assert found.shape == (1, 2, SIDE, SIDE)


def test_the_implicit_gradient_is_that_of_the_solution():
    batch = seen(generator=False)
    operator = known(dataclasses.replace(batch, coil_maps=batch.coil_maps.to(torch.complex128)))
    b = operator.adjoint(batch.kspace.to(torch.complex128))
    x = torch.randn(b.shape, dtype=b.dtype, generator=stream(0, "x")).requires_grad_()
    mu = torch.full((1, 1, 1, 1), 0.3, dtype=torch.float64, requires_grad=True)
    target = torch.randn(b.shape, dtype=b.dtype, generator=stream(1, "x"))

    def loss(x, mu):
        z = unrolled.pulled(operator.normal, b, x, mu, 80)
        return (z - target).abs().square().sum()

    gx, gm = torch.autograd.grad(loss(x, mu), (x, mu))
    step, along = 1e-5, torch.randn(b.shape, dtype=b.dtype, generator=stream(2, "x"))
    with torch.no_grad():
        dx = (loss(x + step * along, mu) - loss(x - step * along, mu)) / (2 * step)
        dm = (loss(x, mu + step) - loss(x, mu - step)) / (2 * step)
    assert float(dm) == pytest.approx(float(gm), rel=1e-4)
    assert float(dx) == pytest.approx(float((gx.conj() * along).real.sum()), rel=1e-4)


def test_a_net_that_is_told_the_noise_trusts_noisy_data_less():
    f = built(noise2recon).f
    with torch.no_grad():
        calm = f(dataclasses.replace(seen(), sigma=0.001))
        loud = f(dataclasses.replace(seen(), sigma=0.3))
    assert float((calm - loud).abs().max()) > 1e-3
