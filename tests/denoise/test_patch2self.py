"""Patch2Self: one inverse is all regressions, and nobody predicts themselves."""

import pytest
import torch

from medssl import config
from medssl.core.batch import Noisy
from medssl.core.errors import InputError
from medssl.core.random import stream
from medssl.denoise.patch2self import Config
from medssl.method import Facts
from medssl.metrics.image import psnr
from medssl.physics.noise import Rician
from medssl.physics.phantom import diffusion, sphere
from medssl.physics.stabilise import Stabiliser


def series(n: int = 12, shape: tuple[int, ...] = (10, 9, 8)) -> torch.Tensor:
    mixed = torch.randn(n, 4, generator=stream(0, "mix"))
    maps = torch.randn(4, *shape, generator=stream(1, "maps"))
    noise = torch.randn(n, *shape, generator=stream(2, "noise"))
    return 5 + torch.tensordot(mixed, maps, 1) + 0.5 * noise


def trust(restored: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ones_like(restored), torch.ones_like(restored)


def facts(b_values: list[float] | None, n: int) -> Facts:
    known = None if b_values is None else tuple(b_values)
    return Facts(shape=(8, 8, 8), spacing=(2.0, 2.0, 2.0), n_volumes=n, b_values=known)


@pytest.mark.parametrize("lambda_", [1e-4, 0.1])
def test_one_inverse_equals_separate_ridge_fits(lambda_):
    y = series().double()
    ours = Config(lambda_=lambda_).build().restore(Noisy(y[None]))[0]
    a = y.flatten(1).T
    a = (a - a.mean(0)) / a.std(0, correction=0)
    for j in range(len(y)):
        others = a[:, [i for i in range(len(y)) if i != j]]
        ridge = len(a) * lambda_ * torch.eye(len(y) - 1).double()
        w = torch.linalg.solve(others.T @ others + ridge, others.T @ a[:, j])
        expected = (others @ w) * y[j].std(correction=0) + y[j].mean()
        assert torch.allclose(ours[j].flatten(), expected, atol=1e-6)


def test_a_volume_is_not_predicted_from_itself():
    y = series()
    method = Config().build()
    method.settle([Noisy(y[None])], trust)
    before = method.restore(Noisy(y[None]))[0]
    y[3, 4, 4, 4] += 100
    after = method.restore(Noisy(y[None]))[0]
    assert torch.equal(before[3], after[3])
    assert not torch.equal(before[4], after[4])


def test_parts_add_up_to_the_whole():
    y = series()
    y[:, :2] = 0
    whole, parts = Config().build(), Config().build()
    whole.settle([Noisy(y[None])], trust)
    parts.settle([Noisy(piece[None]) for piece in y.split(3, dim=1)], trust)
    assert torch.allclose(whole.seen, parts.seen, rtol=1e-12)
    clean = whole.restore(Noisy(y[None]))[0]
    assert torch.equal(clean, Config().build().restore(Noisy(y[None]))[0])
    assert bool((clean[:, :2] == 0).all())


def test_the_gain_on_diffusion_is_that_of_the_recipe():
    expect = config.load("denoise", "patch2self").expect
    b_values = [0.0] * 10 + [1000.0] * 60
    truth = diffusion((40, 44, 20), torch.tensor(b_values), torch.cat([sphere(10), sphere(60)]))
    noisy = Rician(0.5 / 20).sample(truth, stream(0, "noise"))
    stabiliser = Stabiliser(Rician(0.5 / 20))
    method = Config().suited_to(facts(b_values, 70)).build()
    clean = stabiliser.inverse(method.restore(Noisy(stabiliser.forward(noisy)[None]))[0])
    weighted, where = slice(10, 70), (truth[0] > 0.1).expand(60, *truth.shape[1:])
    before, after = (
        psnr(s[weighted], truth[weighted], peak=1, where=where) for s in (noisy, clean)
    )
    assert after - before == pytest.approx(expect.value, abs=expect.tolerance)


def test_volumes_are_grouped_by_their_b_values():
    b_values = [0.0, 1000.0, 50.0, 2000.0] * 10
    first, second = Config().suited_to(facts(b_values, 40)).groups
    assert set(first) | set(second) == set(range(40))
    assert {b_values[k] for k in first} == {1000.0, 2000.0}
    assert {b_values[k] for k in second} == {0.0, 50.0}
    few = [0.0] + [1000.0] * 30
    assert Config(b0=False).suited_to(facts(few, 31)).groups == (tuple(range(1, 31)),)


@pytest.mark.parametrize(
    ("b_values", "n", "text"),
    [
        (None, 1, "is one volume, and patch2self predicts volumes of a series from each other"),
        ([0.0] + [750.0] * 6, 7, "has 7 volumes, patch2self needs 10 of a kind"),
        (None, 30, "has no b-values, by which patch2self groups the volumes"),
        ([0.0] + [750.0] * 30, 31, r"b0 volumes \(b up to 50\): 1, patch2self needs 10 of a kind"),
        ([0.0] * 10 + [750.0] * 9, 19, r"weighted volumes \(b > 50\): 9, patch2self needs 10"),
    ],
)
def test_too_little_to_learn_from_is_refused(b_values, n, text):
    with pytest.raises(InputError, match=text):
        Config().suited_to(facts(b_values, n))
