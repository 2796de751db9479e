r"""Whether a probability of 0.8 is right four times out of five.

With probabilities p and outcomes y in {0, 1} of N voxels or cases, in bins b of equal width,

.. math:: \mathrm{ECE} = \sum_b \frac{n_b}{N} |\bar y_b - \bar p_b|, \quad
          \mathrm{Brier} = \frac1N \sum (p - y)^2, \quad
          \mathrm{NLL} = -\frac1N \sum y \ln p + (1 - y) \ln(1 - p) .

Sums of parts add up, so that many volumes need not be held at once. Background that is easy hides
everything: look at a box around the lesion as well as at the whole image.

Reference: Guo et al. On calibration of modern neural networks. ICML 2017. Brier. Verification of
forecasts expressed in terms of probability. Monthly Weather Review 1950.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
BINS = 15
LEAST = 1e-12
"""A probability of 0 that was wrong costs as much as this one, not infinitely much."""


@dataclass(frozen=True, eq=False)
class Reliability:
    """What was said and what came of it, in bins of equal width; sums of two are that of both."""

    count: Floats
    """(bins,) how often."""
    said: Floats
    """(bins,) sum of the probabilities."""
    true: Floats
    """(bins,) sum of the outcomes."""
    square: float
    """Sum of the squared errors."""
    nats: float
    """Sum of the negative log likelihoods."""

    def __add__(self, other: "Reliability") -> "Reliability":
        """That of both sets together."""
        return Reliability(
            self.count + other.count,
            self.said + other.said,
            self.true + other.true,
            self.square + other.square,
            self.nats + other.nats,
        )

    @property
    def n(self) -> int:
        """Of how many."""
        return int(self.count.sum())

    @property
    def ece(self) -> float:
        """Expected calibration error; NaN of nothing."""
        return float(np.abs(self.true - self.said).sum() / self.n) if self.n else math.nan

    @property
    def brier(self) -> float:
        """Mean squared error; NaN of nothing."""
        return self.square / self.n if self.n else math.nan

    @property
    def nll(self) -> float:
        """Mean negative log likelihood, nats; NaN of nothing."""
        return self.nats / self.n if self.n else math.nan

    def table(self) -> list[dict[str, float]]:
        """Bins that hold something: how often, the mean that was said, the share that was true."""
        return [
            {"n": int(n), "said": float(s / n), "true": float(t / n)}
            for n, s, t in zip(self.count, self.said, self.true, strict=True)
            if n
        ]


def reliability(
    probability: NDArray[np.floating], outcome: NDArray[np.bool_], bins: int = BINS
) -> Reliability:
    """Sum up probabilities by what came of them.

    Args:
        probability: Any shape, in [0, 1].
        outcome: Of the same shape.
        bins: Of equal width over [0, 1].
    """
    p = probability.ravel().astype(np.float64)
    y = outcome.ravel()
    k = np.minimum((p * bins).astype(np.int64), bins - 1)
    right = np.where(y, p, 1 - p)
    return Reliability(
        count=np.bincount(k, minlength=bins).astype(np.float64),
        said=np.bincount(k, p, bins).astype(np.float64),
        true=np.bincount(k, y, bins).astype(np.float64),
        square=float(np.square(1 - right).sum()),
        nats=float(-np.log(np.maximum(right, LEAST)).sum()),
    )
