"""Intervals hold the truth as often as they say."""

import numpy as np
import pytest

from medssl.metrics.interval import interval, mean_of, patients_drawn, percentiles

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


def clustered(rng, n_patients=25, effect=0.0):
    """Scores of 1 to 4 cases of each patient, who are alike, and whose they are."""
    patient = np.repeat(np.arange(n_patients), rng.integers(1, 5, n_patients))
    own = rng.normal(0.6, 0.1, n_patients)[patient]
    return own + effect + rng.normal(0, 0.05, patient.size), patient


@pytest.mark.parametrize("n", [8, 25])
def test_coverage_when_patients_are_drawn(n):
    rng = np.random.default_rng(4)
    trials, held, naive = 500, 0, 0
    for _ in range(trials):
        values, patient = clustered(rng, n)
        weights = patients_drawn(patient, rng, 400)
        found = percentiles(values.mean(), mean_of(values, weights), n)
        held += found.low <= 0.6 <= found.high
        alone = patients_drawn(np.arange(values.size), rng, 400)
        found = percentiles(values.mean(), mean_of(values, alone), values.size)
        naive += found.low <= 0.6 <= found.high
    assert 0.92 <= held / trials <= 0.98
    assert naive < held


def test_a_paired_difference_is_narrower():
    rng = np.random.default_rng(5)
    first, patient = clustered(rng)
    second = first + 0.02 + rng.normal(0, 0.01, first.size)
    weights = patients_drawn(patient, rng)
    other = patients_drawn(patient, rng)
    paired = percentiles(0.02, mean_of(second - first, weights), 25)
    unpaired = percentiles(0.02, mean_of(second, weights) - mean_of(first, other), 25)
    assert paired.high - paired.low < (unpaired.high - unpaired.low) / 3
    assert paired.low > 0 > unpaired.low


def test_draws_repeat_and_keep_cases_of_a_patient_together():
    patient = ["b", "a", "b", "c"]
    one, two = (patients_drawn(patient, np.random.default_rng(0)) for _ in range(2))
    assert np.array_equal(one, two)
    assert np.array_equal(one[:, 0], one[:, 2])
    assert one.shape == (2000, 4)
    assert patients_drawn(["a", "a"], np.random.default_rng(0)).shape == (0, 2)


def test_what_says_nothing_is_left_out():
    values = np.array([0.2, np.nan, 0.4])
    assert mean_of(values, np.array([[1.0, 5, 1], [0, 1, 0]]))[0] == pytest.approx(0.3)
    found = percentiles(0.3, mean_of(values, np.array([[1.0, 5, 1], [0, 1, 0]])), 3)
    assert found.low == found.high == pytest.approx(0.3)
    assert np.isnan(percentiles(0.3, np.zeros(0), 3).low)
