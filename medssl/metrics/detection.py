r"""Lesions found, missed and invented: candidates of a probability map and their scores.

Candidates follow the dynamic rule: take the highest probability t that is left, keep what is
connected at t / 2.5, take the component with the highest peak, remove it, go on. Connected means
across faces, edges and corners. Each candidate has its peak as confidence.

A candidate and a lesion may be matched where their intersection over union is 0.1 or more; of all
pairings the one with most matches is taken, then the one with the largest sum of overlaps. Rows
(lesion?, confidence) of all cases are pooled: a match (1, c), a missed lesion (1, 0), a candidate
that overlaps no lesion (0, c). Over their distinct confidences from high to low

.. math:: \mathrm{AP} = \sum_k (r_k - r_{k-1}) p_k,

with precision p and recall r, p being 0 at a confidence of 0: what was missed cannot be found by
saying yes to all. AUROC is that of the highest confidence of a case,

.. math:: \mathrm{AUROC} = P(s_+ > s_-) + \tfrac12 P(s_+ = s_-) .

FROC is the share of lesions that are found where there are so many false positives in a case on
average. Here it is taken from all thresholds; tools that replace the lowest one by infinity lose a
point where no lesion is missed.

Reference: Bosma et al. Semisupervised learning with report-guided pseudo labels for deep learning-
based prostate cancer detection using biparametric MRI. Radiol. Artif. Intell. 2023. Saha et al.
Artificial intelligence and radiologists in prostate cancer detection on MRI (PI-CAI). Lancet Oncol.
2024. Hanley, McNeil. The meaning and use of the area under a ROC curve. Radiology 1982.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from medssl.core.boxes import box

Floats = NDArray[np.float64]
Map = NDArray[np.floating]
LEAST_IOU = 0.1
FALSE_POSITIVES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""In a case, at which FROC is read."""
HAIR = 0.999
"""Of the lowest threshold, so that rounding never cuts a voxel off."""


@dataclass(frozen=True)
class Candidate:
    """A lesion that was proposed."""

    confidence: float
    voxels: int


@dataclass(frozen=True)
class Row:
    """A lesion, a candidate, or both where they were matched."""

    lesion: bool
    confidence: float
    """0 of a missed lesion."""
    iou: float
    """0 without a match."""


def extract_candidates(
    prob: Map, n: int = 5, factor: float = 2.5, min_voxels: int = 10, stop: float = 0.01
) -> tuple[Map, list[Candidate]]:
    """The most suspicious regions of a probability map.

    Args:
        prob: (*spatial) in [0, 1]; half precision is taken as single.
        n: Candidates at most.
        factor: A candidate reaches down to its peak over this.
        min_voxels: A region of so many voxels or fewer is none.
        stop: Peaks below are not looked at.

    Returns:
        The detection map, of the shape of `prob`: the confidence inside a candidate, 0 elsewhere.
        The candidates, in the order in which they were found.
    """
    prob = prob.astype(np.float32) if prob.dtype == np.float16 else prob
    detected = np.zeros_like(prob)
    whole = box(prob >= HAIR * stop / factor)
    found: list[Candidate] = []
    if whole is None:
        return detected, found
    work, inside = prob[whole].copy(), detected[whole]
    while len(found) < n:
        top = work.max()
        if top < stop:
            break
        threshold = work.dtype.type(top / factor)  # in the map's own precision: ties depend on it
        high = work >= threshold
        part = box(high)
        assert part is not None
        labels, count = ndimage.label(high[part], _touching(prob.ndim))
        sizes = np.bincount(labels.ravel(), minlength=count + 1)
        peaks = np.zeros(count + 1, work.dtype)
        np.maximum.at(peaks, labels[high[part]], work[part][high[part]])
        peaks[sizes <= min_voxels] = 0
        peaks[0] = 0
        chosen = int(peaks.argmax())  # the first of equal ones
        if peaks[chosen] == 0:
            work[work > threshold] = 0
            continue
        around = tuple(
            slice(max(0, p.start + s.start - 1), p.start + s.stop + 1)
            for p, s in zip(part, ndimage.find_objects(labels, chosen)[chosen - 1], strict=True)
        )
        mine = np.zeros(work.shape, bool)
        mine[part] = labels == chosen
        grown = ndimage.binary_dilation(mine[around], _touching(prob.ndim))
        if not (inside[around][grown] > 0).any():
            inside[mine] = peaks[chosen]
            found.append(Candidate(float(peaks[chosen]), int(sizes[chosen])))
        work[mine] = 0
    return detected, found


def is_detection_map(image: Map) -> bool:
    """Whether each connected region has one value, as candidates have and probabilities do not."""
    labels, count = ndimage.label(image > 0, _touching(image.ndim))
    index = np.arange(1, count + 1)
    return bool(
        np.array_equal(ndimage.maximum(image, labels, index), ndimage.minimum(image, labels, index))
    )


def match(detected: Map, label: NDArray[Any], *, extra_is_false: bool = False) -> list[Row]:
    """Compare the candidates of a case with its lesions.

    Args:
        detected: (*spatial) detection map, 0 where there is no candidate.
        label: (*spatial) a lesion is a connected region that is not 0.
        extra_is_false: Whether a candidate counts as false whose lesion is matched to another.
    """
    shape = _touching(detected.ndim)
    theirs, n_lesions = ndimage.label(label != 0, shape)
    ours, n_found = ndimage.label(detected > 0, shape)
    index = np.arange(1, n_found + 1)
    peaks = np.atleast_1d(ndimage.maximum(detected, ours, index)) if n_found else np.zeros(0)
    confidence = [float(np.float32(c)) for c in peaks]
    pairs = np.bincount(
        (theirs.ravel().astype(np.int64) * (n_found + 1) + ours.ravel()),
        minlength=(n_lesions + 1) * (n_found + 1),
    ).reshape(n_lesions + 1, n_found + 1)
    both = pairs[1:, 1:].astype(np.float64)
    iou = both / (pairs.sum(1)[1:, None] + pairs.sum(0)[None, 1:] - both)
    near = iou >= LEAST_IOU
    lesions, candidates = linear_sum_assignment(np.where(near, 1 + iou, 0), maximize=True)
    hits = {int(i): int(j) for i, j in zip(lesions, candidates, strict=True) if near[i, j]}
    rows = [
        Row(True, confidence[hits[i]], float(iou[i, hits[i]])) if i in hits else Row(True, 0.0, 0.0)
        for i in range(n_lesions)
    ]
    taken = set(hits.values())
    false = [
        j for j in range(n_found) if j not in taken and (extra_is_false or not near[:, j].any())
    ]
    return rows + [Row(False, confidence[j], 0.0) for j in false]


def auroc(scores: Floats, positive: NDArray[np.bool_], weights: Floats | None = None) -> Floats:
    """Area under the receiver operating characteristic, NaN where a class is missing.

    Args:
        scores: (n,) of cases.
        positive: (n,).
        weights: (draws, n) how often each case counts in each draw; None counts each once.

    Returns:
        (draws,), or (1,) without weights.
    """
    w = np.ones((1, scores.size)) if weights is None else weights
    values, at = np.unique(scores, return_inverse=True)
    yes, no = (_by_value(w * side, at, values.size) for side in (positive, ~positive))
    below = np.cumsum(no, 1) - no
    pairs = yes.sum(1) * no.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((yes * (below + no / 2)).sum(1) / pairs)


def average_precision(
    confidence: Floats, lesion: NDArray[np.bool_], weights: Floats | None = None
) -> Floats:
    """Area under precision over recall, NaN where there is no lesion.

    Args:
        confidence: (n,) of the pooled rows.
        lesion: (n,).
        weights: (draws, n) how often each row counts in each draw; None counts each once.

    Returns:
        (draws,), or (1,) without weights.
    """
    w = np.ones((1, confidence.size)) if weights is None else weights
    values, at = np.unique(-confidence, return_inverse=True)
    hits = _by_value(w * lesion, at, values.size)
    true, said = np.cumsum(hits, 1), np.cumsum(_by_value(w, at, values.size), 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where((said > 0) & (values < 0), true / said, 0)
        return np.asarray((hits * precision).sum(1) / hits.sum(1))


def froc(
    confidence: Floats,
    lesion: NDArray[np.bool_],
    n_cases: float | Floats,
    weights: Floats | None = None,
    at: Sequence[float] = FALSE_POSITIVES,
) -> Floats:
    """Share of lesions that are found at so many false positives in a case; NaN without lesions.

    Args:
        confidence: (n,) of the pooled rows.
        lesion: (n,).
        n_cases: That the rows are of, those without rows too; (draws,) with weights.
        weights: (draws, n) how often each row counts in each draw; None counts each once.
        at: (m,) false positives in a case, at most.

    Returns:
        (draws, m), or (1, m) without weights.
    """
    w = np.ones((1, confidence.size)) if weights is None else weights
    values, where = np.unique(-confidence, return_inverse=True)
    hits, wrong = (_by_value(w * side, where, values.size) for side in (lesion, ~lesion))
    total, said = hits.sum(1, keepdims=True), values < 0
    none = np.zeros((len(w), 1))
    found = np.concatenate([none, np.cumsum(hits[:, said], 1)], 1)
    false = np.concatenate([none, np.cumsum(wrong[:, said], 1)], 1)
    false /= np.atleast_1d(n_cases)[:, None]
    last = np.stack([(false <= limit).sum(1) - 1 for limit in at], 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.take_along_axis(found, last, 1) / total)


def _by_value(weights: Floats, at: NDArray[np.intp], n: int) -> Floats:
    """(draws, n values) sums of weights (draws, n rows) over rows of the same value."""
    order = np.argsort(at, kind="stable")
    starts = np.searchsorted(at[order], np.arange(n))
    return np.add.reduceat(weights[:, order], starts, axis=1) if n else weights


def _touching(n_axes: int) -> NDArray[np.bool_]:
    """Neighbours across faces, edges and corners."""
    return np.ones((3,) * n_axes, bool)
