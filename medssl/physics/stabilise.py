r"""Variance stabilisation: noise of any law becomes noise of variance 1, and back without bias.

Magnitudes are mapped by f with :math:`f(0) = 0` and, to first order,
:math:`f'(m(\nu)) = 1 / \mathrm{std}(\nu)`. That is not flat near the noise floor, so the slope is
refined by the spread it really gives,

.. math:: f'(m(\nu)) \leftarrow f'(m(\nu)) \, / \, S(\nu)^{0.7}, \qquad
          S(\nu) = \mathrm{std}(f(y) \mid \nu),

twelve times. The inverse of a denoised value D is the signal whose stabilised mean is D (the exact
unbiased inverse), not :math:`f^{-1}(D)`. Counts use Anscombe's root, speckle its logarithm.

Reference: Foi. Noise Estimation and Removal in MR Imaging: the Variance-Stabilization Approach.
ISBI 2011. Makitalo, Foi. Optimal Inversion of the Anscombe Transformation in Low-Count Poisson
Image Denoising. IEEE TIP 2011.
"""

import functools
from dataclasses import dataclass
from typing import assert_never

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special
from torch import Tensor

from medssl.physics.noise import (
    Gamma,
    Gaussian,
    Law,
    NonCentralChi,
    Poisson,
    Rician,
    magnitude_mean,
    magnitude_variance,
)

Floats = NDArray[np.float64]

DARKEST = 1e-4
"""Smallest value of speckle that is taken for a measurement, image units."""
REFINEMENTS = 12
"""Rounds in which the slope of f is corrected by the spread that it gives."""
RELAXATION = 0.7
"""Power of the spread by which the slope is corrected."""


class Stabiliser:
    """To and fro between image units and unit noise; tensors of any shape and device.

    A map of the noise is used by dividing by it first: `Stabiliser(Rician(1.0)).forward(y / map)`.

    Args:
        law: The noise, its level positive.

    Raises:
        ValueError: The level is not a positive number.
    """

    def __init__(self, law: Law) -> None:
        self.law = law
        match law:
            case Gaussian(level) | Rician(level) | NonCentralChi(level, _):
                self._unit = float(level)
            case Poisson(level):
                self._unit = float(level)
            case Gamma(level):
                self._unit = 1.0
            case _:
                assert_never(law)
        if not 0 < level < float("inf"):
            raise ValueError(f"the level of {law} is not positive")

    def forward(self, noisy: Tensor) -> Tensor:
        """Values with noise of variance 1, of the shape of `noisy`."""
        law = self.law
        match law:
            case Gaussian():
                return noisy / law.sigma
            case Rician() | NonCentralChi():
                tables = _magnitude_tables(float(law.n_coils))
                return tables.forward(noisy.clamp_min(0) / law.sigma)
            case Poisson():
                return 2 * (noisy.clamp_min(0) / law.gain + 0.375).sqrt()
            case Gamma():
                spread, _ = _log_gamma(law.looks)
                return noisy.clamp_min(DARKEST).log() / spread

    def inverse(self, mean: Tensor) -> Tensor:
        """The signal, image units, whose noisy values have this mean after `forward`."""
        law = self.law
        match law:
            case Gaussian():
                return mean * law.sigma
            case Rician() | NonCentralChi():
                return _magnitude_tables(float(law.n_coils)).inverse(mean) * law.sigma
            case Poisson():
                return _count_tables().inverse(mean) * law.gain
            case Gamma():
                spread, offset = _log_gamma(law.looks)
                return (mean * spread - offset).exp()

    def residual_variance(self, image: Tensor) -> Tensor:
        """Variance, about 1, that is left after `forward` where the signal is `image`."""
        law = self.law
        match law:
            case Gaussian() | Gamma():
                return torch.ones_like(image)
            case Rician() | NonCentralChi():
                tables = _magnitude_tables(float(law.n_coils))
                return tables.variance(image.abs() / law.sigma)
            case Poisson():
                return _count_tables().variance(image.clamp_min(0) / law.gain)


@dataclass(frozen=True)
class _Table:
    """Values at evenly spaced arguments, held constant beyond both ends."""

    first: float
    step: float
    values: Floats

    @classmethod
    def of(cls, x: Floats, y: Floats, n: int) -> "_Table":
        """A function known at increasing x, on n points."""
        grid = np.linspace(x[0], x[-1], n)
        return cls(float(x[0]), float(grid[1] - grid[0]), np.interp(grid, x, y))

    @property
    def last(self) -> float:
        """Argument of the last value."""
        return self.first + self.step * (len(self.values) - 1)

    def __call__(self, x: Tensor) -> Tensor:
        """Linear interpolation."""
        values = torch.from_numpy(self.values).to(x)
        position = ((x - self.first) / self.step).clamp_(0, len(self.values) - 1)
        index = position.nan_to_num(0).to(torch.int32).clamp_(max=len(self.values) - 2)
        position -= index
        return torch.lerp(values[index], values[index + 1], position)


@dataclass(frozen=True)
class _MagnitudeTables:
    r"""Stabilisation of a magnitude in units of sigma.

    Beyond the tables noise is nearly normal: with c = 2L - 1, :math:`f' = 1 + c / 4 y^2` and
    :math:`m = \nu + c / 2 \nu`.
    """

    odd: float
    f: _Table
    square: _Table
    """nu^2 over the stabilised mean; its root is the inverse, which is steep at the noise floor."""
    spread: _Table
    """S^2 over nu."""

    def forward(self, y: Tensor) -> Tensor:
        """f(y)."""
        top = self.f.last
        beyond = (y - top).clamp_min(0)
        return self.f(y) + beyond * (1 + self.odd / (4 * top * (top + beyond)))

    def inverse(self, mean: Tensor) -> Tensor:
        """Signal to noise ratio nu of a stabilised mean."""
        far = (mean - self.f.values[-1]).clamp_min(0) + self.f.last
        for _ in range(2):
            excess = self.forward(far) - mean
            far = torch.where(mean > self.square.last, far - excess, far)
        far = (far + (far.square() - 2 * self.odd).clamp_min(0).sqrt()) / 2
        return torch.where(mean > self.square.last, far, self.square(mean).clamp_min(0).sqrt())

    def variance(self, nu: Tensor) -> Tensor:
        """S^2 at nu."""
        return self.spread(nu)


@functools.lru_cache(maxsize=16)
def _magnitude_tables(n_coils: float) -> _MagnitudeTables:
    """Tables for L coils; they grow with the root of L, the place of the noise floor."""
    scale = max(1.0, n_coils**0.5)
    odd = 2 * n_coils - 1
    nu = np.linspace(0, 20 * scale, 401)
    y = np.linspace(0, 29 * scale, 2901)
    weight = _magnitude_density(y, nu, n_coils)
    fine = np.linspace(0, 31 * scale, 6201)
    mean = magnitude_mean(fine, n_coils)
    slope = np.interp(y, mean, magnitude_variance(fine, n_coils) ** -0.5)
    centres = np.interp(y, mean, fine)
    for _ in range(REFINEMENTS):
        _, spread = _moments(weight, _integral(slope, y))
        slope /= np.interp(centres, nu, np.r_[spread[:-1], 1.0]) ** RELAXATION
    f = _integral(slope, y)
    expected, spread = _moments(weight, f)
    top = float(np.interp(magnitude_mean(nu[-1:], n_coils), y, f)[0])
    expected = np.r_[expected[:-1], top]
    return _MagnitudeTables(
        odd=odd,
        f=_Table.of(y, f, len(y)),
        square=_Table.of(expected, nu**2, 4001),
        spread=_Table.of(nu, np.r_[spread[:-1], 1.0] ** 2, len(nu)),
    )


def _magnitude_density(y: Floats, nu: Floats, n_coils: float) -> Floats:
    """(nu, y) probabilities of y at each nu, sigma = 1, rows of sum 1."""
    nu = np.maximum(nu, 1e-3)[:, None]
    near = np.abs(y - nu) < 9 + 2 * n_coils**0.5
    order = n_coils - 1
    density = np.zeros(near.shape)
    a, b = np.broadcast_to(y, near.shape)[near], np.broadcast_to(nu, near.shape)[near]
    bessel = special.i0e(a * b) if order == 0 else special.ive(order, a * b) * (a / b) ** order
    density[near] = a * bessel * np.exp(-((a - b) ** 2) / 2)
    return density / density.sum(1, keepdims=True)


def _integral(slope: Floats, y: Floats) -> Floats:
    steps = (slope[1:] + slope[:-1]) / 2 * np.diff(y)
    return np.r_[0.0, np.cumsum(steps)]


def _moments(weight: Floats, f: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation of f under each row of probabilities."""
    mean = weight @ f
    return mean, np.sqrt(np.maximum(weight @ f**2 - mean**2, 1e-12))


@dataclass(frozen=True)
class _CountTables:
    """Anscombe's root of counts; a series beyond the table."""

    count: _Table
    spread: _Table

    def inverse(self, mean: Tensor) -> Tensor:
        """Expected counts of a stabilised mean D."""
        d = mean.clamp_min(0.5)
        root = 1.5**0.5
        series = d.square() / 4 + root / 4 / d - 11 / 8 / d**2 + 5 / 8 * root / d**3 - 1 / 8
        return torch.where(mean > self.count.last, series, self.count(mean))

    def variance(self, count: Tensor) -> Tensor:
        """Variance of the root where so many counts are expected."""
        return self.spread(count)


@functools.lru_cache(maxsize=1)
def _count_tables() -> _CountTables:
    """Moments of Anscombe's root for up to 30 expected counts, summed over the counts."""
    expected, k = np.linspace(0, 30, 1201), np.arange(121)
    weight = np.exp(
        special.xlogy(k, expected[:, None]) - expected[:, None] - special.gammaln(k + 1)
    )
    mean, spread = _moments(weight, 2 * np.sqrt(k + 0.375))
    return _CountTables(_Table.of(mean, expected, 4001), _Table.of(expected, spread**2, 1201))


def _log_gamma(looks: float) -> tuple[float, float]:
    """Standard deviation and mean of the logarithm of speckle of mean 1."""
    spread = float(np.sqrt(special.polygamma(1, looks)))
    return spread, float(special.psi(looks) - np.log(looks))
