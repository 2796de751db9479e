r"""How sure a mean is that was taken over pretraining seeds, label seeds and patients.

The three are crossed: each label seed is used with each pretraining seed, and all are scored on the
same patients. The bootstrap draws n - 1 of the n units of each level with replacement, which makes
the variance of a mean unbiased where n is small (n of n would make it (n - 1)/n of that). With the
standard deviation s of the draws the interval is

.. math:: \hat\theta \pm t_{\nu} s, \qquad
          \nu = \frac{(\sum_i v_i)^2}{\sum_i v_i^2 / (n_i - 1)} ,

v_i being the variance of draws of level i alone: three pretraining seeds make a wide interval
exactly if it is they who disagree. Levels of one unit add nothing, which is said elsewhere.

Where only patients are drawn, with all cases of each, and the number is none that adds up (an area
under a curve), percentiles of its draws are the interval, for n patients those at
:math:`\Phi(\pm t_{n-1})` in place of 2.5 and 97.5: few patients know little of the spread, too. Of
two arms that were scored on the same cases, the difference under the same draws is the paired one.

Reference: Rao, Wu. Resampling inference with complex survey data. JASA 1988. Satterthwaite. An
approximate distribution of estimates of variance components. Biometrics Bulletin 1946. Hesterberg.
What teachers should know about the bootstrap. American Statistician 2015.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
DRAWS = 2000
MOST_CELLS = 1 << 24
"""Numbers that are held at once."""


@dataclass(frozen=True)
class Interval:
    """A mean and its interval, NaN at both ends where nothing says how sure it is."""

    value: float
    low: float
    high: float

    @property
    def ends(self) -> tuple[float, float]:
        """Both ends."""
        return self.low, self.high

    @property
    def text(self) -> str:
        """As in `.514 [.480, .548]`."""
        if math.isnan(self.low):
            return f"{self.value:.3f}"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def interval(
    scores: Floats,
    counts: Floats,
    generator: np.random.Generator,
    *,
    share: float = 0.95,
    draws: int = DRAWS,
) -> Interval:
    """The mean over pretraining seeds, label seeds and classes of the score per count of patients.

    Of two arms that were scored alike, the difference of their scores gives that of their means.

    Args:
        scores: (pretraining seeds, label seeds, patients, classes) sums of scores, such as hits.
        counts: Of the same shape, how many scores each sum is of; 0 where a patient has none.
            Patients without any are left out.
        generator: The source of chance.
        share: Of intervals that hold the truth.
        draws: Of the bootstrap.
    """
    seen = counts.sum((0, 1, 3)) > 0
    scores, counts = scores[:, :, seen], counts[:, :, seen]
    sizes = scores.shape[:3]
    even = [np.full((1, n), 1 / n) for n in sizes]
    value = float(_means(scores, counts, even)[0])
    drawn = [_weights(n, draws, generator) for n in sizes]
    each = []
    for level, n in enumerate(sizes):
        if n > 1:
            alone = [drawn[k] if k == level else even[k] for k in range(3)]
            each.append((float(np.nanvar(_means(scores, counts, alone))), n - 1))
    spread = math.sqrt(float(np.nanvar(_means(scores, counts, drawn)))) if each else math.nan
    if not each or math.isnan(value):
        return Interval(value, math.nan, math.nan)
    total = sum(v for v, _ in each)
    below = sum(v * v / m for v, m in each)
    freedom = total * total / below if below > 0 else math.inf
    reach = spread * float(stats.t.ppf(0.5 + share / 2, max(freedom, 1.0)))
    return Interval(value, value - reach, value + reach)


def patients_drawn(
    patient: NDArray[Any], generator: np.random.Generator, draws: int = DRAWS
) -> Floats:
    """How much each case counts in each draw of patients.

    Args:
        patient: (n,) whose case it is.
        generator: The source of chance.
        draws: Of the bootstrap.

    Returns:
        (draws, n), equal for cases of one patient; (0, n) of a single patient, who says nothing of
        others.
    """
    names, at = np.unique(patient, return_inverse=True)
    if len(names) < 2:
        return np.ones((0, len(patient)))
    return _weights(len(names), draws, generator)[:, at]


def percentiles(value: float, drawn: Floats, n: int, share: float = 0.95) -> Interval:
    """A number with percentiles of its draws; draws that say nothing (NaN) are left out.

    Args:
        value: Of all cases.
        drawn: (draws,) the same under each draw.
        n: Patients that were drawn of.
        share: Of intervals that hold the truth.
    """
    known = drawn[np.isfinite(drawn)]
    if math.isnan(value) or not known.size or n < 2:
        return Interval(value, math.nan, math.nan)
    outside = float(stats.norm.cdf(stats.t.ppf(0.5 - share / 2, n - 1)))
    low, high = np.quantile(known, [outside, 1 - outside])
    return Interval(value, float(low), float(high))


def mean_of(values: Floats, weights: Floats) -> Floats:
    """(draws,) means of (n,) values under (draws, n) weights; NaN counts for nothing."""
    there = np.isfinite(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((weights @ np.where(there, values, 0)) / (weights @ there))


def _weights(n: int, draws: int, generator: np.random.Generator) -> Floats:
    """(draws, n) shares of units in each draw."""
    if n == 1:
        return np.ones((draws, 1))
    return generator.multinomial(n - 1, np.full(n, 1 / n), draws) / (n - 1)


def _means(scores: Floats, counts: Floats, weights: list[Floats]) -> Floats:
    """The mean under each set of weights; (1, n) stands for all draws."""
    n_pre, n_label, n_patients, n_classes = scores.shape
    draws = max(len(w) for w in weights)
    flat = [a.transpose(2, 0, 1, 3).reshape(n_patients, -1) for a in (scores, counts)]
    step = max(1, MOST_CELLS // max(1, flat[0].shape[1]))
    pre, label, patients = (np.broadcast_to(w, (draws, w.shape[1])) for w in weights)
    found = []
    for start in range(0, draws, step):
        part = slice(start, start + step)
        some = patients[part] if len(weights[2]) > 1 else weights[2]
        top, bottom = (some @ a for a in flat)
        with np.errstate(invalid="ignore", divide="ignore"):
            rates = np.where(bottom > 0, top / bottom, np.nan)
        cells = rates.reshape(-1, n_pre, n_label, n_classes)
        known = np.isfinite(cells)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.where(known, cells, 0).sum(-1) / known.sum(-1)
        both = pre[part][:, :, None] * label[part][:, None]
        there = np.isfinite(mean) & (both > 0)
        mean, both = np.broadcast_arrays(mean, both)
        with np.errstate(invalid="ignore", divide="ignore"):
            sums = (np.where(there, both * np.nan_to_num(mean), 0)).sum((1, 2))
            found.append(sums / np.where(there, both, 0).sum((1, 2)))
    return np.concatenate(found)
