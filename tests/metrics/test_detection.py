"""Candidates and scores against slow versions of the same rules, and numbers of public tools."""

import math

import numpy as np
import pytest
from scipy import ndimage

from medssl.metrics.detection import (
    auroc,
    average_precision,
    extract_candidates,
    froc,
    is_detection_map,
    match,
)

TOUCHING = np.ones((3, 3, 3))


def slowly(prob, n=5, factor=2.5, least=10, stop=0.01):
    """The rule as it is written, over the whole map, component after component."""
    left, detected, found = prob.copy(), np.zeros_like(prob), []
    while len(found) < n and left.max() >= stop:
        threshold = left.dtype.type(left.max() / factor)
        labels, count = ndimage.label(left >= threshold, TOUCHING)
        parts = [labels == k for k in range(1, count + 1)]
        parts = [part for part in parts if part.sum() > least]
        if not parts:
            left[left > threshold] = 0
            continue
        best = max(parts, key=lambda part: left[part].max())  # the first of equal ones
        if not (ndimage.binary_dilation(detected > 0, TOUCHING) & best).any():
            detected[best] = left[best].max()
            found.append(left[best].max())
        left[best] = 0
    return detected, found


def random_map(rng, dtype=np.float32):
    shape = tuple(rng.integers(4, 16, 3))
    smooth = ndimage.gaussian_filter(rng.random(shape), rng.uniform(0.5, 1.5))
    smooth = ((smooth - smooth.min()) / np.ptp(smooth)) ** rng.uniform(1, 6)
    if rng.random() < 0.4:  # ties
        smooth = np.round(smooth * 12) / 12
    return smooth.astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_candidates_equal_the_slow_rule(dtype):
    rng = np.random.default_rng(0)
    for _ in range(60):
        prob = random_map(rng, dtype)
        expected, peaks = slowly(prob.astype(np.float32) if dtype == np.float16 else prob)
        detected, found = extract_candidates(prob)
        assert np.array_equal(detected, expected)
        assert [c.confidence for c in found] == [float(v) for v in peaks]
        assert is_detection_map(detected)


def cube(prob, corner, size, value):
    prob[tuple(slice(c, c + size) for c in corner)] = value


def test_regions_that_are_too_small_or_touch():
    prob = np.zeros((20, 20, 20), np.float32)
    cube(prob, (0, 0, 0), 2, 0.9)  # eight voxels, the highest peak
    cube(prob, (8, 8, 8), 3, 0.5)
    cube(prob, (11, 11, 11), 3, 0.15)  # at the corner of the one before
    cube(prob, (16, 2, 2), 3, 0.1)
    detected, found = extract_candidates(prob)
    assert [round(c.confidence, 4) for c in found] == [0.5, 0.1]
    assert [c.voxels for c in found] == [27, 27]
    assert detected[0, 0, 0] == detected[12, 12, 12] == 0


def test_nothing_to_find():
    for value in (0.0, 0.009):
        detected, found = extract_candidates(np.full((5, 5, 5), value, np.float32))
        assert found == []
        assert not detected.any()


def test_peaks_of_ten_voxels_hide_nothing():
    """Small regions alone at first: the next threshold is looked at, not the end."""
    prob = np.zeros((20, 20, 20), np.float32)
    for k in range(3):
        cube(prob, (6 * k, 0, 0), 2, 0.8)
    cube(prob, (10, 10, 10), 4, 0.05)
    assert [round(c.confidence, 3) for c in extract_candidates(prob)[1]] == [0.05]


def row_of(*lengths):
    """Lesion alone, both, candidate alone, in a row."""
    alone, both, extra = lengths
    label = np.array([1] * (alone + both) + [0] * extra + [0] * 3)
    detected = np.array([0] * alone + [0.7] * (both + extra) + [0] * 3, np.float32)
    return detected.reshape(1, 1, -1), label.reshape(1, 1, -1)


def test_an_overlap_of_a_tenth_is_a_hit():
    (hit,) = match(*row_of(5, 1, 4))
    assert (hit.lesion, hit.iou) == (True, 0.1)
    assert hit.confidence == pytest.approx(0.7)
    rows = match(*row_of(6, 1, 4))
    assert [(r.lesion, r.confidence > 0) for r in rows] == [(True, False), (False, True)]


def test_a_second_candidate_on_a_lesion():
    label = np.zeros((1, 1, 20), int)
    label[..., 2:12] = 1
    detected = np.zeros((1, 1, 20), np.float32)
    detected[..., 2:7], detected[..., 9:12], detected[..., 15:17] = 0.4, 0.9, 0.2
    rows = match(detected, label)
    assert [(r.lesion, round(r.confidence, 2)) for r in rows] == [(True, 0.4), (False, 0.2)]
    rows = match(detected, label, extra_is_false=True)
    assert [round(r.confidence, 2) for r in rows] == [0.4, 0.9, 0.2]


def test_as_many_matches_as_can_be():
    """The first candidate overlaps both lesions, best the second, which the other needs."""
    label = np.zeros((1, 1, 40), int)
    label[..., :10], label[..., 12:32] = 1, 1
    detected = np.zeros((1, 1, 40), np.float32)
    detected[..., 4:20], detected[..., 22:30] = 0.9, 0.5
    rows = match(detected, label)
    assert [(r.lesion, round(r.confidence, 2)) for r in rows] == [(True, 0.9), (True, 0.5)]
    assert [r.iou for r in rows] == pytest.approx([6 / 20, 8 / 20])


def pooled(rng, n=40, ties=True):
    confidence = rng.random(n)
    confidence = np.round(confidence * 8) / 8 if ties else confidence
    lesion = rng.random(n) < 0.4
    confidence[~lesion & (confidence == 0)] = 0.125
    return confidence, lesion


@pytest.mark.parametrize("seed", range(5))
def test_areas_by_pairs_and_by_thresholds(seed):
    rng = np.random.default_rng(seed)
    c, y = pooled(rng)
    pairs = [(a > b) + (a == b) / 2 for a in c[y] for b in c[~y]]
    assert auroc(c, y)[0] == pytest.approx(np.mean(pairs))
    area = recall = 0.0
    for t in sorted(set(c), reverse=True):
        now = (y & (c >= t)).sum() / y.sum()
        area += (now - recall) * (y[c >= t].mean() if t > 0 else 0)
        recall = now
    assert average_precision(c, y)[0] == pytest.approx(area)
    at = (0.5, 1, 2)
    expected = []
    for limit in at:
        fair = [t for t in [*set(c[c > 0]), 2.0] if (~y & (c >= t)).sum() / 10 <= limit]
        expected.append(max((y & (c >= t)).sum() / y.sum() for t in fair))
    assert froc(c, y, 10, at=at)[0] == pytest.approx(expected)


def test_a_weight_counts_a_row_as_often():
    rng = np.random.default_rng(9)
    c, y = pooled(rng, 25)
    times = rng.integers(0, 4, 25)
    w = times[None].astype(float)
    again, truth = np.repeat(c, times), np.repeat(y, times)
    assert auroc(c, y, w)[0] == pytest.approx(auroc(again, truth)[0])
    assert average_precision(c, y, w)[0] == pytest.approx(average_precision(again, truth)[0])
    n = np.array([5.0])
    assert froc(c, y, n, w)[0] == pytest.approx(froc(again, truth, 5)[0])


def test_one_class_has_no_area():
    c = np.array([0.1, 0.5])
    assert math.isnan(auroc(c, np.array([True, True]))[0])
    assert math.isnan(average_precision(c, np.array([False, False]))[0])
    assert np.isnan(froc(c, np.array([False, False]), 2)).all()
    nothing = np.zeros(0)
    assert math.isnan(average_precision(nothing, nothing.astype(bool))[0])
    assert average_precision(np.array([0.0]), np.array([True]))[0] == 0


GOLDEN = [
    ((0.104614, 0.087280), 0.693478),
    ((0.422119, 0.022018), None),
    ((0.917969, 0.013321), 0.811270),
    ((0.061401, 0.019058), None),
    ((0.655094, 0.027383, 0.019981, 0.013020), None),
    ((0.723145, 0.508301, 0.174561, 0.010361, 0.010300), 0.577320),
    ((), None),
    ((), None),
    ((0.018585,), None),
]
"""Candidates of report_guided_annotation (dynamic-v2), overlaps of picai_eval 1.4.13."""


@pytest.mark.data
def test_nine_cases(data_folder):
    files = sorted((data_folder / "prostate" / "detection").glob("*.npz"))
    for file, (confidences, iou) in zip(files, GOLDEN, strict=True):
        with np.load(file) as held:
            prob, label = held["softmax"], held["label"]
        detected, found = extract_candidates(prob)
        assert [c.confidence for c in found] == pytest.approx(confidences, abs=1e-6)
        assert is_detection_map(detected)
        hits = [r.iou for r in match(detected, label) if r.iou]
        assert hits == pytest.approx([] if iou is None else [iou], abs=1e-6)
