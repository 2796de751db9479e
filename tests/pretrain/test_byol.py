"""BYOL and DirectPred."""

import math
from dataclasses import replace

import pytest
import torch

from medssl.core.errors import UsageError
from medssl.core.random import stream
from medssl.pretrain.byol import LEAST, Config, apart, direct_predictor

NET = {"width": 4, "depths": [1], "bottleneck": False, "stem": "small"}
SMALL = {"net": NET, "hidden": 8, "out": 6}


def test_the_loss_is_0_for_equal_directions_and_4_for_opposite_ones():
    z = torch.randn(5, 6, generator=stream(0, "z"), dtype=torch.float64)
    assert apart(2 * z, z) == pytest.approx(0, abs=1e-12)
    assert apart(-z, 3 * z) == pytest.approx(4, abs=1e-12)


def test_the_predictor_has_the_eigenvalues_of_its_equation():
    u = torch.linalg.qr(torch.randn(5, 5, generator=stream(0, "u"), dtype=torch.float64)).Q
    values = torch.tensor([4.0, 1.0, 0.25, 0.0, -1e-9], dtype=torch.float64)
    w = direct_predictor((u * values) @ u.T, 0.1)
    torch.testing.assert_close(w, w.T)
    found = torch.linalg.eigvalsh(w)
    expected = torch.tensor([0.1, 0.1, 0.25 + 0.1, 0.5 + 0.1, 1.1], dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=0)
    torch.testing.assert_close(w @ u[:, 0], 1.1 * u[:, 0])
    assert torch.linalg.eigvalsh(direct_predictor(torch.zeros(3, 3), 0.0)) == pytest.approx(LEAST)


def test_the_correlation_moves_by_its_share(two_ranks):
    case = two_ranks.Case("byol", SMALL | {"predictor": "direct", "rho": 0.25})
    method = two_ranks.built(case)
    batch = two_ranks.phantom_views(method.sees, case)
    method.loss(batch)
    z = torch.cat([method.projector(method.embed(v)) for v in batch.views]).detach()
    torch.testing.assert_close(method.correlation, 0.75 * z.T @ z / len(z))
    method.after_step(0.0)
    torch.testing.assert_close(method.direct, direct_predictor(method.correlation, 0.1))
    before = method.correlation.clone()
    method.eval().loss(batch)
    assert torch.equal(before, method.correlation)


@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
def test_the_running_means_follow_more_slowly_in_the_end(two_ranks, progress):
    method = two_ranks.built(two_ranks.Case("byol", SMALL | {"tau": 0.9}))
    with torch.no_grad():
        for p in method.encoder.parameters():
            p += 1
        before = [p.clone() for p in method.mean_encoder.parameters()]
        method.after_step(progress)
    tau = 1 - 0.1 * (math.cos(math.pi * progress) + 1) / 2
    for old, p in zip(before, method.mean_encoder.parameters(), strict=True):
        torch.testing.assert_close(p - old, torch.full_like(p, 1 - tau))
        assert not p.requires_grad


def test_the_loss_says_nothing_to_what_is_guessed(two_ranks):
    case = two_ranks.Case("byol", SMALL)
    method = two_ranks.built(case)
    method.loss(two_ranks.phantom_views(method.sees, case))["prediction"].backward()
    assert all(p.grad is None for p in method.mean_encoder.parameters())
    assert all(p.grad is not None for p in method.predictor.parameters())


def test_halves_of_layers_change_the_loss_little(two_ranks):
    case = two_ranks.Case("byol", SMALL | {"predictor": "direct"})
    method = two_ranks.built(case).float()
    batch = two_ranks.phantom_views(method.sees, case)
    batch = replace(batch, views=tuple(v.float() for v in batch.views))
    full = method.loss(batch)["prediction"].detach()
    with torch.autocast("cpu", torch.bfloat16):
        half = method.loss(batch)["prediction"]
    assert half.dtype == method.correlation.dtype == torch.float32
    torch.testing.assert_close(half.detach(), full, rtol=0.02, atol=0)


@pytest.mark.parametrize(("field", "value"), [("tau", 1.0), ("rho", -0.1), ("eps", -1.0)])
def test_numbers_that_are_none_are_refused(field, value):
    with pytest.raises(UsageError, match=f"{field} is {value:g}"):
        Config(**{field: value}).build()
