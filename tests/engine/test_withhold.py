"""Choices without a truth: samples kept aside stay unseen, and the least error is found."""

import dataclasses

import numpy as np
import pytest
import torch

from medssl.core.batch import Acquired
from medssl.engine.withhold import choose_lambda, mean_error, object_of, partings
from medssl.physics.acquisition import model
from medssl.physics.sampling import central, poisson_disc, random_lines
from medssl.recon import l1_wavelet


def scene(coils, lines=False, sigma=0.01):
    kspace, image, maps = coils((64, 64), sigma=sigma)
    pattern = random_lines((64, 64), 3, 14) if lines else poisson_disc((64, 64), 4, (16, 16))
    sampling = torch.from_numpy(pattern)[None].float()
    ys, xs = central((64, 64), (14, 14))
    batch = Acquired(kspace[None] * sampling, sampling[None], maps[None, None])
    return batch, object_of(batch.kspace[..., ys, xs], (64, 64)), image


@pytest.mark.parametrize("lines", [False, True])
def test_what_is_kept_aside_is_not_seen(coils, lines):
    batch, inside, _ = scene(coils, lines)
    parts = partings(batch, inside, 0)
    assert len(parts) == (6 if lines else 4)
    for part in parts:
        assert torch.equal(part.seen.sampling + (part.aside > 0), batch.sampling)
        poisoned = dataclasses.replace(
            batch, kspace=torch.where(part.aside > 0, torch.nan + 0j, batch.kspace)
        )
        assert torch.isnan(torch.view_as_real(poisoned.kspace)).any()
        assert not torch.isnan(torch.view_as_real(part.seen.kspace)).any()
        assert float((part.seen.kspace * (part.aside > 0)).abs().max()) == 0


def test_the_object_is_where_the_head_is(coils):
    _, inside, image = scene(coils)
    head = image.abs() > 0.3
    assert inside[0][head].float().mean() > 0.99
    assert inside.float().mean() < 0.9
    assert object_of(torch.zeros(1, 2, 8, 8, dtype=torch.complex64), (32, 32)).all()


@pytest.mark.parametrize("best", [0.0003, 0.004, 0.011, 0.3])
def test_the_least_error_is_found_beyond_the_grid_too(best):
    curve = choose_lambda(lambda weight: (np.log2(weight / best)) ** 2 + 1)
    assert abs(np.log2(curve.lambda_ * 0.8**0.5 / best)) < 0.05
    assert list(curve.tried) == sorted(curve.tried)


@pytest.mark.parametrize("sigma", [0.01, 0.04])
def test_the_weight_that_is_chosen_is_near_the_best(coils, sigma):
    batch, inside, image = scene(coils, sigma=sigma)
    parts = partings(batch, inside, 0)

    def restore(weight):
        return l1_wavelet.Config(lambda_=weight, iterations=30).build().restore

    curve = choose_lambda(lambda w: float(mean_error(restore(w), parts).sum()))

    def error(weight):
        return float((restore(weight)(batch)[0, 0] - image)[inside[0]].abs().square().mean())

    least = min(error(w) for w in curve.tried)
    assert error(curve.lambda_) < 1.08 * least  # a third of a decibel


def test_a_better_image_explains_more_of_what_it_has_not_seen(coils):
    batch, inside, _ = scene(coils)
    parts = partings(batch, inside, 0)
    plain = mean_error(lambda seen: model(seen).adjoint(seen.kspace), parts)
    good = mean_error(l1_wavelet.Config(lambda_=0.005).build().restore, parts)
    assert (good < plain).all()
