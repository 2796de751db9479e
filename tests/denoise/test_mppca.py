"""MP-PCA: what a series gains, what it keeps, and what it leaves alone."""

import importlib.util
import warnings

import pytest
import torch
from torch import Tensor

from medssl import config
from medssl.core.batch import Noisy
from medssl.core.errors import InputError
from medssl.core.random import stream
from medssl.denoise.mppca import Config
from medssl.method import Facts
from medssl.metrics.image import psnr
from medssl.physics.noise import Gaussian, Rician
from medssl.physics.phantom import activation, diffusion, sphere
from medssl.physics.stabilise import Stabiliser

B_VALUES = torch.tensor([0.0] * 5 + [1000.0] * 60)
DIRECTIONS = torch.cat([sphere(5), sphere(60)])
WEIGHTED = slice(5, 65)


def facts(n: int, shape: tuple[int, ...], b_values: tuple[float, ...] | None = None) -> Facts:
    return Facts(shape=shape, spacing=(2.0,) * len(shape), n_volumes=n, b_values=b_values)


def restored(series: Tensor, law: Rician | Gaussian, settings: Config) -> Tensor:
    stabiliser = Stabiliser(law)
    method = settings.build()
    return stabiliser.inverse(method.restore(Noisy(stabiliser.forward(series)[None]))[0])


def test_the_gain_on_diffusion_is_that_of_the_recipe():
    expect = config.load("denoise", "mppca").expect
    truth = diffusion((40, 44, 20), B_VALUES, DIRECTIONS)[..., 7:13]
    noisy = Rician(0.5 / 20).sample(truth, stream(0, "noise"))
    settings = Config().suited_to(facts(65, truth.shape[1:], tuple(B_VALUES.tolist())))
    assert settings.window == (5, 5, 5)
    clean = restored(noisy, Rician(0.5 / 20), settings)
    where = (truth[0] > 0.1).expand(truth[WEIGHTED].shape)
    before, after = (
        psnr(s[WEIGHTED], truth[WEIGHTED], peak=1, where=where) for s in (noisy, clean)
    )
    assert after - before == pytest.approx(expect.value, abs=expect.tolerance)


def test_a_series_of_few_patterns_without_noise_is_kept():
    truth = diffusion((16, 16, 8), B_VALUES, DIRECTIONS) + 0.5
    clean = Config(window=(5, 5, 5)).build().restore(Noisy(100 * truth[None]))[0] / 100
    assert float((clean - truth).abs().max()) < 1e-2


def test_responses_to_a_task_are_kept_better_than_they_are_measured():
    truth, region, course = activation((40, 44, 12), 48)
    truth, region = truth[..., 4:8], region[..., 4:8]
    noisy = Rician(0.02).sample(truth, stream(0, "noise"))
    settings = Config().suited_to(facts(48, truth.shape[1:]))
    assert settings.window == (3, 3, 3)
    clean = restored(noisy, Rician(0.02), settings)

    def response(series: Tensor) -> Tensor:
        found = []
        for owned, one in zip(region, course, strict=True):
            task = one - one.mean()
            change = torch.tensordot(task, series, 1) / task.square().sum() / series.mean(0)
            found.append(change[(owned > 0.5) & (truth[0] > 0.1)])
        return torch.cat(found)

    expected = response(truth)
    kept = float(response(clean) @ expected / (expected @ expected))
    assert kept > 0.7
    error, before = (float((response(s) - expected).square().mean()) for s in (clean, noisy))
    assert error < 0.4 * before


def test_voxels_without_a_measurement_stay_and_do_not_disturb():
    series = 50 + torch.randn(20, 12, 10, 8, generator=stream(0, "series"))
    series[:, :5] = 0
    method = Config(window=(3, 3, 3)).build()
    clean = method.restore(Noisy(series[None]))[0]
    assert bool((clean[:, :5] == 0).all())
    alone = method.restore(Noisy(series[None, :, 5:]))[0]
    inside = slice(8, None)  # windows that touch the edge see it with other neighbours
    assert torch.allclose(clean[:, inside], alone[:, 3:], atol=0.5)
    assert float((clean[:, 5:] - 50).square().mean()) < 0.3


@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 1), (1, 9, 7), (4, 4, 4), (2, 2, 2)])
def test_flat_and_tiny_series_are_restored(shape):
    series = torch.randn(20, *shape, generator=stream(0, "series"))
    settings = Config().suited_to(facts(20, shape))
    clean = settings.build().restore(Noisy(series[None]))[0]
    assert clean.shape == series.shape
    assert float(clean.square().mean()) < float(series.square().mean())


def test_one_volume_is_refused():
    with pytest.raises(InputError, match="is one volume, and mppca"):
        Config().suited_to(facts(1, (8, 8, 8)))


@pytest.mark.skipif(importlib.util.find_spec("dipy") is None, reason="dipy is not installed")
def test_without_shrinkage_it_matches_dipy():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from dipy.denoise.localpca import mppca

        truth = diffusion((16, 16, 8), B_VALUES[:30], DIRECTIONS[:30])
        noisy = Gaussian(0.025).sample(truth, stream(0, "noise"))
        peer = torch.from_numpy(mppca(noisy.movedim(0, -1).numpy())).movedim(-1, 0)
    ours = Config(window=(5, 5, 5), step=1, shrink=False).build().restore(Noisy(noisy[None]))[0]
    where = (truth[0] > 0.1).expand(truth.shape)
    theirs, mine = (psnr(s, truth, peak=1, where=where) for s in (peer, ours))
    assert mine > theirs - 0.1
