"""Counts of voxels against counts by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl.metrics.overlap import overlap


def masks(*counts):
    """Masks in a row: predicted alone, both, reference alone, neither."""
    alone, both, missed, none = counts
    p = [1] * (alone + both) + [0] * (missed + none)
    r = [0] * alone + [1] * (both + missed) + [0] * none
    return np.array(p, bool), np.array(r, bool)


def test_by_hand():
    found = overlap(*masks(2, 3, 1, 4), voxel_mm3=500.0)
    assert found.dice == pytest.approx(6 / 9)
    assert found.iou == pytest.approx(3 / 6)
    assert found.precision == pytest.approx(3 / 5)
    assert found.recall == pytest.approx(3 / 4)
    assert found.volume_error == pytest.approx(0.5)
    assert found.volume_error_percent == pytest.approx(25)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=4, max_size=4))
def test_dice_is_symmetric_and_follows_from_iou(counts):
    p, r = masks(*counts)
    one, other = overlap(p, r, 1.0), overlap(r, p, 1.0)
    assert one.dice == other.dice or (math.isnan(one.dice) and math.isnan(other.dice))
    if not math.isnan(one.dice):
        assert one.dice == pytest.approx(2 * one.iou / (1 + one.iou))


def test_empty_masks():
    nothing, something = np.zeros((3, 3), bool), np.ones((3, 3), bool)
    assert math.isnan(overlap(nothing, nothing, 1.0).dice)
    assert math.isnan(overlap(nothing, nothing, 1.0, empty="diagonal").dice)
    assert overlap(nothing, nothing, 1.0, empty="one").dice == 1
    for empty in ("skip", "one", "diagonal"):
        missed = overlap(nothing, something, 1.0, empty=empty)
        assert (missed.dice, missed.iou, missed.recall) == (0, 0, 0)
        assert math.isnan(missed.precision)
        assert math.isnan(overlap(something, nothing, 1.0, empty=empty).volume_error_percent)
