r"""Which law the noise follows: by how its strength varies with the signal, from one scan.

Cells of a scan are sorted by their mean and, within slices of equal mean, by the gradient of the
denoised scan. Each group k gives the spread :math:`v_k` of the finest diagonal detail. A law of
level s predicts :math:`V(\mu_k; s)`; anatomy can only add to that, at most about what the gradient
g allows, so that with :math:`r_k = \ln v_k - \tfrac12 \ln V`

.. math:: \chi^2 = \sum_k \min\Big(9, \frac{r_k^2}{e_k^2 + [r_k > 0]\, b_k^2}\Big), \qquad
          b_k = \tfrac12 \ln\Big(1 + 2 \frac{\langle g^2 \rangle_k}{v_k^2}\Big),

e the sampling error; what is too low for a law is never cut. The least :math:`\chi^2` over s is the
evidence for a law, divided by the misfit of the best one, beside what else is known: negative
values, a lattice of counts, the floor below which no magnitude has its mean, and the modality.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from medssl.physics.noise import (
    Gamma,
    Gaussian,
    Law,
    LawName,
    NonCentralChi,
    Poisson,
    Rician,
    magnitude_mean,
    magnitude_variance,
)

Floats = NDArray[np.float64]

MAD = 0.674490
"""Median of |n| of a standard normal n."""
MAD_ERROR = 1.1664
"""Relative standard error of the median estimate, times the root of the number of cells."""
SLICES = 24
"""Most slices of equal mean."""
SLICE_CELLS = 600
"""Independent cells in a slice where there are few."""
GROUPS = (0.0, 0.125, 0.25, 0.5, 1.0)
"""Shares of a slice, by rising gradient, between which its groups lie."""
SLACK = 0.01
"""Relative error of the tables and of means over a group."""
ROUGHNESS = 2.0
"""Variance of the finest detail of anatomy over its squared gradient, at most."""
CAP = 9.0
"""Of one group's share in chi^2 where anatomy may have added to it."""
FLOOR_ERROR = 0.03
"""Relative error of the mean of a slice as far as the noise floor is concerned."""
CLIPPING = 2.5
"""Standard deviations from the end of the range within which noise is cut off."""
COILS = tuple(float(c) for c in np.geomspace(1.25, 32, 15))
"""L tried for magnitudes of several coils."""
FLOORS = (0.0, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Constant variance beside counts or speckle, over theirs at the median signal."""
FREE_PARAMETER = 1.0
"""What one more parameter must gain in log likelihood."""
LATTICE = 4.0
"""Log odds for counts when their gain, not fitted, is the distance of the values."""
DECISIVE = 50.0
"""Log odds of evidence that settles a matter."""
SURE = 3.0
"""Odds of the best law over the next below which the answer is `unsure`."""
PRIORS: dict[str, dict[LawName, float]] = {
    "MR": {"gaussian": 0.2, "rician": 0.4, "chi": 0.2, "poisson": 0.1, "gamma": 0.1},
    "PICTURE": {"gaussian": 0.35, "rician": 0.02, "chi": 0.01, "poisson": 0.25, "gamma": 0.25},
    "": {"gaussian": 0.25, "rician": 0.25, "chi": 0.15, "poisson": 0.2, "gamma": 0.15},
}
"""Of the laws by modality; no modality rules one out."""


@dataclass(frozen=True)
class Profile:
    """Strength of the noise over the signal; one entry per group of cells, all (K,)."""

    mean: Floats
    """Mean value, image units."""
    spread: Floats
    """Standard deviation of the finest detail, image units."""
    error: Floats
    """Relative sampling error of `spread`."""
    texture: Floats
    """b of the module: how much anatomy may have added to the logarithm of `spread`."""
    n_cells: Floats
    """Independent cells."""

    @property
    def weight(self) -> Floats:
        """How much each group says."""
        return np.asarray(1 / (self.error**2 + self.texture**2))

    @property
    def level_error(self) -> float:
        """Relative standard error of one level for all groups."""
        return float(1 / np.sqrt(self.weight.sum()))

    def away_from(self, clipped: Sequence[float], step: float) -> "Profile":
        """Without groups whose noise was cut off, unless values are about as coarse as the noise.

        Args:
            clipped: Values at which the scan ends.
            step: Distance of stored values.
        """
        keep = np.ones(len(self.mean), bool)
        for value in clipped:
            near = np.abs(self.mean - value) < CLIPPING * self.spread
            keep &= ~near | (self.spread < 2 * step)
        if keep.all() or keep.sum() < len(GROUPS):
            return self
        parts = (self.mean, self.spread, self.error, self.texture, self.n_cells)
        return Profile(*(part[keep] for part in parts))

    def curve(self) -> tuple[Floats, Floats]:
        """Mean and log spread of each slice, rising in the mean, for any law."""
        m, v, w = (x.reshape(-1, len(GROUPS) - 1) for x in (self.mean, self.spread, self.weight))
        mean, spread = (m * w).sum(1) / w.sum(1), (np.log(v) * w).sum(1) / w.sum(1)
        order = np.argsort(mean)
        mean, spread = mean[order], spread[order]
        if len(spread) > 2:
            inner = np.median(np.stack([spread[:-2], spread[1:-1], spread[2:]]), axis=0)
            spread = np.r_[spread[0], inner, spread[-1]]
        return mean, spread


@dataclass(frozen=True)
class Verdict:
    """The law of a profile, at its level."""

    law: Law
    odds: float
    """Of the law over the next best; infinite when it was given."""
    rivals: tuple[LawName, ...] = ()
    """Laws that fit nearly as well."""
    chi2: float = 0.0
    """How badly it fits."""


def profile(
    detail: Floats, mean: Floats, gradient: Floats, share: float, rounding: float = 0.0
) -> Profile | None:
    """Group the cells of a scan.

    Args:
        detail: (n,) finest diagonal detail of each cell, of the variance of the noise.
        mean: (n, 2) of the denoised cell, by which cells are sorted, and of its noisy values.
        gradient: (n,) squared gradient of the denoised scan, per voxel.
        share: Independent cells over cells, which overlap.
        rounding: Variance that dithering of stored integers added.

    Returns:
        The profile; None where most details vanish or there are too few cells for one group.
    """
    if len(detail) * share < 4 * (len(GROUPS) - 1) or np.median(np.abs(detail)) == 0:
        return None
    place, value = mean[:, 0], mean[:, 1]
    order = np.argsort(place, kind="stable")
    count = int(np.clip(len(order) * share / SLICE_CELLS, 4, SLICES))
    slices: list[tuple[NDArray[np.intp], float, float]] = []
    for part in np.array_split(order, count):
        spread, centre = _spread(detail[part]), float(place[part].mean())
        # Cells sorted more finely than their noise would be sorted by their noise.
        if slices and abs(centre - slices[-1][1]) < max(spread, slices[-1][2]):
            part = np.r_[slices[-1][0], part]
            spread, centre = max(spread, slices[-1][2]), float(place[part].mean())
            slices.pop()
        slices.append((part, centre, spread))
    groups = []
    for part, _, _ in slices:
        part = part[np.argsort(gradient[part], kind="stable")]
        ends = (len(part) * np.array(GROUPS)).astype(int)
        for a, b in itertools.pairwise(ends):
            one = part[a:b]
            found = (np.median(value[one]), _spread(detail[one]), gradient[one].mean(), len(one))
            groups.append(found)
    m, v, g, n = np.array(groups, float).T
    v = np.sqrt(np.maximum(v**2 - rounding, np.maximum(0.1 * rounding, 1e-8 * (v**2).max())))
    n = n * share
    texture = 0.5 * np.log1p(ROUGHNESS * g / v**2)
    return Profile(m, v, np.hypot(MAD_ERROR / np.sqrt(n), SLACK), texture, n)


def fitted(seen: Profile, name: LawName, n_coils: float | None = None) -> Verdict:
    """The level of a law that is known.

    Args:
        seen: The profile of the scan.
        name: The law.
        n_coils: L of the law `chi`; None fits it.
    """
    fit = _fit(seen, name, n_coils)
    return Verdict(fit.law, math.inf, (), fit.chi2)


def judged(
    seen: Profile,
    modality: str,
    negatives: float,
    step: float,
    allowed: Sequence[LawName] = ("gaussian", "rician", "chi", "poisson", "gamma"),
) -> Verdict:
    """The law that explains a profile best.

    Args:
        seen: The profile of the scan.
        modality: DICOM's word, or `PICTURE`.
        negatives: Share of the values that are negative.
        step: Distance of the lattice of values; 0 where there is none.
        allowed: Laws to choose from.
    """
    fits = {name: _fit(seen, name) for name in allowed}
    misfit = max(1.0, min(f.chi2 for f in fits.values()) / max(len(seen.mean) - 2, 1))
    prior = PRIORS.get(modality, PRIORS[""])
    score = {name: math.log(prior[name]) - f.chi2 / 2 / misfit for name, f in fits.items()}
    if "chi" in fits:
        score["chi"] -= FREE_PARAMETER
    if "poisson" in fits and step > 0:
        counts = Poisson(step)
        chi2 = float(_chi2(seen, 0.5 * np.log(_above(seen.mean) * step)[None])[0])
        bonus = LATTICE + math.log(prior["poisson"]) - chi2 / 2 / misfit
        if bonus > score["poisson"]:
            score["poisson"], fits["poisson"] = bonus, _Fit(counts, chi2)
    below, expected = _negatives(seen, fits, negatives)
    for name in fits:
        if name != "gaussian" and below >= 3 and below > 0.3 * expected:
            score[name] -= DECISIVE
        if name == "gaussian" and below < expected:
            missing = 2 * (math.sqrt(expected) - math.sqrt(below)) ** 2
            score[name] -= min(missing, DECISIVE)
    ranked = sorted(score, key=lambda name: -score[name])
    odds = math.exp(min(score[ranked[0]] - score[ranked[1]], DECISIVE)) if ranked[1:] else math.inf
    rivals = tuple(n for n in ranked[1:] if score[ranked[0]] - score[n] < math.log(SURE))
    return Verdict(fits[ranked[0]].law, odds, rivals, fits[ranked[0]].chi2)


@dataclass(frozen=True)
class _Fit:
    law: Law
    chi2: float


def _spread(detail: Floats) -> float:
    return float(np.median(np.abs(detail))) / MAD


def _above(mean: Floats) -> Floats:
    """Means, kept above zero for laws whose variance vanishes there."""
    return np.asarray(np.maximum(mean, 1e-6 * np.abs(mean).max()))


def _negatives(seen: Profile, fits: dict[LawName, _Fit], negatives: float) -> tuple[float, float]:
    """Independent negative values that were seen, and that additive noise would give."""
    n = seen.n_cells.sum()
    gaussian = fits.get("gaussian")
    if gaussian is None:
        return negatives * n, 0.0
    assert isinstance(gaussian.law, Gaussian)
    return negatives * n, float((ndtr(-seen.mean / gaussian.law.sigma) * seen.n_cells).sum())


def _chi2(seen: Profile, log_spread: Floats) -> Floats:
    """(S,) misfit of predicted log spreads (S, K)."""
    excess = np.log(seen.spread) - log_spread
    error = np.where(excess > 0, seen.error**2 + seen.texture**2, seen.error**2)
    share = excess**2 / error
    return np.asarray(np.where(excess > 0, np.minimum(share, CAP), share).sum(1))


def _fit(seen: Profile, name: LawName, n_coils: float | None = None) -> _Fit:
    match name:
        case "gaussian":
            level, chi2 = _least(seen, np.zeros_like(seen.mean))
            return _Fit(Gaussian(level), chi2)
        case "rician":
            level, chi2 = _least_magnitude(seen, 1.0)
            return _Fit(Rician(level), chi2)
        case "chi":
            tried = (1.0, *COILS) if n_coils is None else (n_coils,)
            found = [(*_least_magnitude(seen, coils), coils) for coils in tried]
            level, chi2, coils = min(found, key=lambda f: f[1])
            return _Fit(NonCentralChi(level, coils), chi2)
        case "poisson":
            level, chi2 = _least_with_floor(seen, 1)
            return _Fit(Poisson(level**2), chi2)
        case "gamma":
            level, chi2 = _least_with_floor(seen, 2)
            return _Fit(Gamma(1 / level**2), chi2)


def _least(seen: Profile, shape: Floats) -> tuple[float, float]:
    """Level and misfit of a law whose spread is the level times exp(shape)."""
    return _search(seen, shape, lambda log: _chi2(seen, shape[None] + log[:, None]))


def _least_with_floor(seen: Profile, power: int) -> tuple[float, float]:
    """The same for variances that grow like a power of the mean, with a constant beside them."""
    middle = float(np.median(np.abs(seen.mean))) or 1.0
    best = (1.0, math.inf)
    for floor in FLOORS:
        shape = 0.5 * np.log((_above(seen.mean) / middle) ** power + floor)
        level, chi2 = _least(seen, shape)
        chi2 += 2 * FREE_PARAMETER * (floor > 0)
        if chi2 < best[1]:
            best = (level / middle ** (power / 2), chi2)
    return best


def _least_magnitude(seen: Profile, n_coils: float) -> tuple[float, float]:
    """The same for magnitudes; no mean lies below that of pure noise."""
    mean, log_spread = _magnitude_curve(n_coils)
    floor_error = np.hypot(FLOOR_ERROR, 1 / np.sqrt(seen.n_cells) / mean[0])

    def misfit(log: Floats) -> Floats:
        ratio = seen.mean[None] / np.exp(log)[:, None]
        chi2 = _chi2(seen, np.interp(ratio, mean, log_spread) + log[:, None])
        missing = np.log(np.maximum(mean[0] / np.maximum(ratio, 1e-3), 1))
        return np.asarray(chi2 + ((missing / floor_error) ** 2).sum(1))

    return _search(seen, np.zeros_like(seen.mean), misfit)


def _search(
    seen: Profile, shape: Floats, misfit: Callable[[Floats], Floats]
) -> tuple[float, float]:
    """Least misfit over the logarithm of the level, coarse and then fine."""
    centre = np.average(np.log(seen.spread) - shape, weights=seen.weight)
    for width, count in ((1.5, 151), (0.03, 31)):
        log = centre + np.linspace(-width, width, count)
        chi2 = misfit(log)
        centre = log[chi2.argmin()]
    return math.exp(centre), float(chi2.min())


@functools.lru_cache(maxsize=32)
def _magnitude_curve(n_coils: float) -> tuple[Floats, Floats]:
    """Log spread over the mean of magnitudes, both in sigma."""
    nu = np.r_[np.linspace(0, 25, 1001), np.geomspace(25.1, 1e5, 200)]
    return magnitude_mean(nu, n_coils), 0.5 * np.log(magnitude_variance(nu, n_coils))
