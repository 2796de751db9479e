r"""From the score of noisy images to clean ones, and to the law and level of their noise.

With the score :math:`s(y) = \partial_y \log p(y)` of the noisy image, Tweedie's formula gives

.. math:: \text{Gaussian:}\quad & x = y + \sigma^2 s, \\
          \text{Poisson:}\quad & x = (y + g / 2) \exp(g s), \\
          \text{Gamma:}\quad & x = \frac{k y}{(k - 1) - y s}, \\
          \text{variance } \phi \mu^p:\quad & x^{1 - p} = y^{1 - p}
              + (1 - p)\, \phi \left( \frac{p}{2 y} + s \right) .

The first is the posterior mean, the second the geometric and the third the harmonic one. A level
that is not known is the one whose image is the least rough; the score is computed once for all.
The law follows from the slope of :math:`\ln(-s'(y)) \approx -p \ln y - \ln \phi`.

Reference: Kim, Ye. Noise2Score: Tweedie's Approach to Self-Supervised Image Denoising without Clean
Images. NeurIPS 2021. Kim, Kwon, Ye. Noise Distribution Adaptive Self-Supervised Image Denoising
Using Tweedie Distribution and Score Matching. CVPR 2022.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from medssl.physics.sure import signs

Family = Literal["gaussian", "poisson", "gamma"]
"""Laws whose posterior mean follows from the score alone."""
POWER: dict[Family, int] = {"gaussian": 0, "poisson": 1, "gamma": 2}
"""p of the variance phi mu^p."""
GRIDS: dict[Family, tuple[float, float, int]] = {
    "gaussian": (5 / 255, 55 / 255, 50),
    "poisson": (0.005, 0.1, 100),
    "gamma": (40.0, 120.0, 80),
}
"""First and last level that is tried, and how many; images in [0, 1]."""
CHARBONNIER = 1e-12
"""Added below the root of the roughness."""
FLAT = 1e-4
"""Range of an objective, relative to its size, below which its minimum says nothing."""
LEAST_DENOMINATOR = 0.1
"""Share of the looks; a poor score cannot brighten a voxel more than tenfold."""
DARKEST = 1e-4
"""Values below it are not divided by."""
N_PROBES = 4
"""Random directions in which the derivative of the score is looked at."""
N_BINS = 16
"""Intensity bins of the line whose slope is the law."""
PROBE = 0.05
"""Step of a probe, relative to the spread of the score's inverse."""

Score = Callable[[Tensor], Tensor]
"""(B, C, *spatial) noisy images to their score, of the same shape."""


def denoise_with_score(
    family: Family, noisy: Tensor, score: Tensor, level: Tensor | float
) -> Tensor:
    """The image whose noisy version has this score.

    Args:
        family: Law of the noise.
        noisy: Any shape.
        score: Of the noisy image in its own units, like `noisy`.
        level: sigma, gain, or looks, broadcastable to `noisy`.
    """
    if family == "gaussian":
        return noisy + level**2 * score
    if family == "poisson":
        return (noisy + level / 2) * torch.exp((level * score).clamp(-20.0, 20.0))
    looks = torch.as_tensor(level).to(noisy)
    rest = torch.maximum(looks - 1 - noisy * score, LEAST_DENOMINATOR * looks)
    return looks * noisy / rest


def tweedie_mean(noisy: Tensor, score: Tensor, power: float, level: float) -> Tensor:
    """The same for noise of variance phi mu^p.

    Args:
        noisy: Any shape; positive unless the power is 0.
        score: Of the noisy image, like `noisy`.
        power: p, 0 to 2.
        level: phi.
    """
    if power == 0:
        return noisy + level * score
    if abs(power - 1) < 1e-6:
        return (noisy + level / 2) * torch.exp((level * score).clamp(-20.0, 20.0))
    y = noisy.clamp_min(DARKEST)
    rest = 1 - power
    base = y**rest + rest * level * (power / (2 * y) + score)
    return base.maximum(LEAST_DENOMINATOR * y**rest) ** (1 / rest)


def bias_corrected(restored: Tensor, noisy: Tensor, n_bins: int = 32) -> Tensor:
    """Restored images whose mean residual is zero at every brightness.

    Args:
        restored: Any shape.
        noisy: Like it, its noise of mean zero.
        n_bins: Bins of equal numbers of voxels, between whose centres the shift is interpolated.
    """
    flat, residual = restored.flatten(), (noisy - restored).flatten()
    order = flat.argsort()
    n_bins = max(1, min(n_bins, flat.numel() // 100))
    centres = torch.stack([part.mean() for part in flat[order].chunk(n_bins)])
    shifts = torch.stack([part.mean() for part in residual[order].chunk(n_bins)])
    if len(centres) == 1:
        return restored + shifts
    right = torch.searchsorted(centres, flat).clamp(1, len(centres) - 1)
    left = right - 1
    width = (centres[right] - centres[left]).clamp_min(1e-12)
    weight = ((flat - centres[left]) / width).clamp(0, 1)
    return restored + torch.lerp(shifts[left], shifts[right], weight).reshape(restored.shape)


@dataclass(frozen=True)
class Level:
    """A level found by search."""

    value: float
    """sigma, gain, or looks."""
    sure: bool
    """There is a minimum inside the grid, and it is not flat."""


def search_level(family: Family, noisy: Tensor, score: Tensor, grid: Tensor | None = None) -> Level:
    """The level whose denoised image is the least rough and explains the noisy one.

    Args:
        family: Law of the noise.
        noisy: (*spatial) about [0, 1].
        score: Of the noisy image, like it, computed once.
        grid: Levels to try; None takes those of `GRIDS`.
    """
    if grid is None:
        first, last, count = GRIDS[family]
        grid = torch.linspace(first, last, count, dtype=torch.float64)
    values = []
    for level in grid.tolist():
        x = denoise_with_score(family, noisy, score, level)
        values.append(_objective(family, x, noisy))
    objective = torch.tensor(values, dtype=torch.float64)
    best = int(objective.argmin())
    spread = float(objective.max() - objective.min())
    inside = 0 < best < len(grid) - 1
    sure = inside and spread > FLAT * float(objective.abs().max())
    return Level(float(grid[best]), sure)


def _objective(family: Family, x: Tensor, y: Tensor) -> float:
    roughness = _roughness(x)
    if family == "gaussian":
        return roughness
    if family == "poisson":
        x = x.clamp_min(DARKEST)
        return 0.1 * roughness + float((x - y * x.log()).double().mean())
    positive = (x > DARKEST) & (y > DARKEST)
    ratio = (y[positive] / x[positive]).double()
    terms = x[positive].double().log().mean() + ratio.mean() + ratio.square().mean()
    return roughness + float(terms)


def _roughness(x: Tensor) -> float:
    """Total variation, means over voxels, summed over the axes."""
    total = 0.0
    for axis in range(x.ndim):
        if x.shape[axis] > 1:
            total += float((x.diff(dim=axis).square() + CHARBONNIER).sqrt().double().mean())
    return total


@dataclass(frozen=True)
class LawFound:
    """Law and level by the score alone."""

    family: Family
    level: float
    """phi of the variance phi mu^p: sigma squared, gain, or 1 / looks."""
    power: float
    """p before it was rounded to that of a law."""
    interval: float
    """Half of the width of the interval of p, two standard errors."""
    sure: bool
    """The interval holds the power of one law and of no other."""


def law_by_slope(noisy: Tensor, score: Score, generator: torch.Generator) -> LawFound:
    r"""Law from the slope of :math:`\ln(-s')` over brightness.

    Since :math:`-1 / s' = \sigma^2 / (1 - dE[x|y]/dy)`, the level comes out too high where images
    are textured; the slope does not.

    Args:
        noisy: (B, C, *spatial) about [0, 1].
        score: Called once and again for each probe.
        generator: The source of chance.
    """
    s = score(noisy)
    curvature = torch.zeros_like(noisy)
    step = PROBE / max(float(s.square().mean().sqrt()), 1e-6)
    for _ in range(N_PROBES):
        b = signs(noisy, generator)
        curvature -= b * (score(noisy + step * b) - s) / step / N_PROBES
    return _line(noisy.flatten(), curvature.flatten())


def _line(y: Tensor, curvature: Tensor) -> LawFound:
    """Law from values and -s' there."""
    usable = y > DARKEST * 10
    y, curvature = y[usable].double(), curvature[usable].double()
    order = y.argsort()
    centres, heights = [], []
    for ys, cs in zip(y[order].chunk(N_BINS), curvature[order].chunk(N_BINS), strict=True):
        height = float(cs.median())
        if height > 0:
            centres.append(float(ys.median()))
            heights.append(height)
    if len(centres) < 4 or centres[-1] < 1.2 * centres[0]:
        return LawFound("gaussian", _phi(centres, heights, 0), math.nan, math.inf, False)
    power, error = 0.0, math.inf
    for _ in range(2):  # the second time with the term p / 2 y^2
        lifted = [h + max(power, 0) / (2 * c * c) for c, h in zip(centres, heights, strict=True)]
        power, error = _slope(centres, lifted)
    interval = 2 * error
    within = [f for f, p in POWER.items() if abs(p - power) <= interval]
    nearest = min(POWER, key=lambda f: abs(POWER[f] - power))
    sure = len(within) == 1 or (not within and abs(POWER[nearest] - power) < 0.5)
    return LawFound(nearest, _phi(centres, heights, POWER[nearest]), power, interval, sure)


def _slope(centres: list[float], heights: list[float]) -> tuple[float, float]:
    """Minus the Theil-Sen slope of ln(heights) over ln(centres), and its standard error."""
    x = torch.tensor(centres, dtype=torch.float64).log()
    z = torch.tensor(heights, dtype=torch.float64).log()
    i, j = torch.triu_indices(len(x), len(x), 1)
    apart = (x[j] - x[i]).abs() > 1e-9
    slope = ((z[j] - z[i])[apart] / (x[j] - x[i])[apart]).median()
    rest = z - slope * x
    spread = 1.4826 * (rest - rest.median()).abs().median()
    error = 1.2 * spread / ((x - x.mean()).square().sum().sqrt())
    return -float(slope), float(error)


def _phi(centres: list[float], heights: list[float], power: int) -> float:
    """phi at a given power, median over the bins."""
    if not centres:
        return 0.0
    y = torch.tensor(centres, dtype=torch.float64)
    h = torch.tensor(heights, dtype=torch.float64)
    return float((y**-power / (h + power / (2 * y**2))).median())


def law_by_paper(noisy: Tensor, score: Score, generator: torch.Generator) -> LawFound:
    r"""Law and level as published: from two scores close to each other.

    With :math:`y' = y + \epsilon n`, :math:`a = \ln(y'/y)`, :math:`b = 2 y s` and
    :math:`w = 2 (y' s' - y s)`, p solves :math:`(2 - p)(p + b) = w / a` where
    :math:`|w / (b + 2.5)|` is small. It is no identity for images with structure; kept to compare.

    Args:
        noisy: (B, C, *spatial) about [0, 1].
        score: Called twice.
        generator: The source of chance.
    """
    e = 1e-5
    usable = noisy > DARKEST * 10
    n = torch.randn(noisy.shape, generator=generator, device=generator.device).to(noisy)
    other = noisy + e * n
    s, s_other = score(noisy), score(other)
    y, y_e, s, s_e = (t[usable].double() for t in (noisy, other, s, s_other))
    a, b, w = (y_e / y).log(), 2 * y * s, 2 * (y_e * s_e - y * s)
    root = ((b + 2).square() - 4 * w / a).clamp_min(0).sqrt()
    roots = torch.stack([(2 - b + root) / 2, (2 - b - root) / 2])
    powers = roots.gather(0, (roots - 1).abs().argmin(0, keepdim=True))[0]  # nearest to 0 to 2
    kept = powers[((w / (b + 2.5)).abs() <= 1e-6) & powers.isfinite()]
    power = float(kept.mean()) if len(kept) else math.nan
    family: Family = "gaussian" if not power >= 0.9 else "poisson" if power < 1.9 else "gamma"
    ds, step = s_e - s, y_e - y
    if family == "gaussian":
        level = float((-step / ds).median().clamp(0, 1))
    elif family == "poisson":
        level = float((-y + (y.square() - 2 * step / ds).clamp_min(0).sqrt()).median())
    else:
        c = 1 / y_e - 1 / y
        level = float((c / (ds + c)).median())
    return LawFound(family, level, power, math.inf, bool(len(kept)))
