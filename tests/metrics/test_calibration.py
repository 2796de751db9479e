"""Probabilities that are right as often as they say, and some that are not."""

import math

import numpy as np
import pytest

from medssl.metrics.calibration import reliability


def test_equal_to_a_loop():
    rng = np.random.default_rng(0)
    p, y = rng.random(500), rng.random(500) < 0.3
    p[:2] = 0, 1
    ece = 0.0
    for k in range(15):
        inside = (p >= k / 15) & ((p < (k + 1) / 15) | (k == 14))
        if inside.any():
            ece += inside.mean() * abs(y[inside].mean() - p[inside].mean())
    found = reliability(p, y)
    assert found.ece == pytest.approx(ece)
    assert found.brier == pytest.approx(np.mean((p - y) ** 2))
    some = reliability(p[2:], y[2:])
    right = np.where(y, p, 1 - p)[2:]
    assert some.nll == pytest.approx(-np.log(right).mean())


def test_parts_add_up():
    rng = np.random.default_rng(1)
    p, y = rng.random((20, 30)), rng.random((20, 30)) < 0.5
    whole, parts = reliability(p, y), reliability(p[:7], y[:7]) + reliability(p[7:], y[7:])
    assert (whole.n, parts.n) == (600, 600)
    for name in ("ece", "brier", "nll"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name))
    assert sum(row["n"] for row in parts.table()) == 600


def test_calibrated_and_overconfident():
    rng = np.random.default_rng(2)
    p = rng.random(200_000)
    y = rng.random(p.size) < p
    sharp = 1 / (1 + np.exp(-3 * np.log(p / (1 - p))))
    assert reliability(p, y).ece < 0.01
    assert reliability(sharp, y).ece > 0.1
    assert reliability(sharp, y).brier > reliability(p, y).brier
    assert reliability(sharp, y).nll > reliability(p, y).nll


def test_nothing_and_certainty():
    nothing = reliability(np.zeros(0), np.zeros(0, bool))
    assert math.isnan(nothing.ece)
    assert nothing.table() == []
    wrong = reliability(np.zeros(3, np.float32), np.ones(3, bool))
    assert wrong.ece == wrong.brier == 1
    assert math.isfinite(wrong.nll)
