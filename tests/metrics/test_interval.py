"""Intervals hold the truth as often as they say."""

import numpy as np
import pytest

from medssl.metrics.interval import interval

SPREADS = {
    "seeds agree": (0.0, 0.02, 0.1),
    "seeds disagree": (0.1, 0.02, 0.02),
    "all differ": (0.05, 0.05, 0.1),
}


@pytest.mark.parametrize("spreads", SPREADS.values(), ids=SPREADS)
def test_coverage_on_simulated_data(spreads):
    """Three pretraining seeds, five label seeds, 20 patients, noise of each cell."""
    rng = np.random.default_rng(0)
    held = 0
    trials = 300
    for _ in range(trials):
        parts = [rng.normal(0, s, n) for s, n in zip(spreads, (3, 5, 20), strict=True)]
        scores = 0.6 + np.add.outer(np.add.outer(parts[0], parts[1]), parts[2])
        scores = (scores + rng.normal(0, 0.1, scores.shape))[..., None]
        found = interval(scores, np.ones_like(scores), rng, draws=300)
        held += found.low <= 0.6 <= found.high
    assert held / trials >= 0.91


def test_it_is_not_needlessly_wide():
    rng = np.random.default_rng(1)
    scores = 0.5 + rng.normal(0, 0.1, (1, 1, 50, 1))
    found = interval(scores, np.ones_like(scores), rng)
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.1 / 50**0.5, rel=0.35)


def test_patients_who_are_not_tested_change_nothing():
    scores = np.random.default_rng(1).normal(0.5, 0.1, (2, 3, 8, 2))
    wide, counts = np.zeros((2, 3, 12, 2)), np.zeros((2, 3, 12, 2))
    wide[:, :, 4:], counts[:, :, 4:] = scores, 1
    a = interval(scores, np.ones_like(scores), np.random.default_rng(0))
    assert a == interval(wide, counts, np.random.default_rng(0))


def test_balanced_over_classes_and_blind_to_empty_cells():
    scores, counts = np.zeros((1, 1, 3, 2)), np.zeros((1, 1, 3, 2))
    counts[0, 0, :, 0], scores[0, 0, :, 0] = (10, 20, 30), (10, 20, 30)
    counts[0, 0, 0, 1], scores[0, 0, 0, 1] = 5, 0
    assert interval(scores, counts, np.random.default_rng(0)).value == pytest.approx(0.5)


def test_one_of_each_has_no_interval():
    one = np.ones((1, 1, 1, 1))
    found = interval(one, one, np.random.default_rng(0))
    assert found.value == 1
    assert np.isnan(found.low)
    assert found.text == "1.000"
