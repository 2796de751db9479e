"""Weights of least estimated error: better than each estimate, and careful."""

import pytest
import torch

from medssl.core.random import stream
from medssl.physics.sure import EPSILON, let_weights, signs


def smoothers(z: torch.Tensor) -> list[torch.Tensor]:
    """Two linear filters and the image itself."""
    near = (z + z.roll(1, 0) + z.roll(-1, 0)) / 3
    wide = sum(z.roll(k, 1) for k in range(-3, 4)) / 7
    return [near, wide, z]


def bank(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    probe = signs(z, stream(0, "probe"))
    now, moved = (torch.stack(smoothers(x)) for x in (z, z + EPSILON * probe))
    return now, probe * (moved - now) / EPSILON


@pytest.fixture
def scene() -> tuple[torch.Tensor, torch.Tensor]:
    """A wave along both axes, and the same with unit noise."""
    line = torch.linspace(0, 12, 96)
    truth = 3 * torch.sin(line)[:, None] * torch.cos(0.7 * line)[None] + 1
    return truth, truth + torch.randn(96, 96, generator=stream(0, "noise"))


def test_the_combination_beats_each_estimate(scene):
    truth, z = scene
    candidates, slopes = bank(z)
    weights = let_weights(candidates, z, slopes, torch.ones(()), torch.ones_like(z))
    errors = [float((c - truth).square().mean()) for c in candidates]
    combined = torch.tensordot(weights.float(), candidates, 1)
    assert weights.sum() == pytest.approx(1)
    assert float((combined - truth).square().mean()) < 0.95 * min(errors)


def test_the_noisy_image_never_counts_against_itself(scene):
    _, z = scene
    candidates, slopes = bank(z)
    weights = let_weights(candidates, z, slopes, torch.tensor(2.0), torch.ones_like(z))
    assert weights[-1] >= 0


def test_estimates_that_hardly_differ_share_no_large_weights(scene):
    _, z = scene
    candidates, slopes = bank(z)
    almost = candidates[0] + 1e-3 * torch.randn(z.shape, generator=stream(1, "almost"))
    many = torch.stack([candidates[0], almost, *candidates[1:]])
    steep = torch.stack([slopes[0], slopes[0] + 0.01, *slopes[1:]])
    weights = let_weights(many, z, steep, torch.ones(()), torch.ones_like(z))
    assert weights.abs().max() < 20


def test_without_a_gain_the_first_stays():
    z = torch.randn(64, 64, generator=stream(0, "flat"))
    candidates = torch.stack([torch.zeros_like(z), z])
    slopes = torch.stack([torch.zeros_like(z), torch.ones_like(z)])
    weights = let_weights(candidates, z, slopes, torch.ones(()), torch.ones_like(z))
    assert weights.tolist() == [1, 0]
