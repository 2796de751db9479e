r"""Laws of noise: how a measured value y scatters about the true value x.

Each law knows its samples, its variance, and the same law at another strength, so that a level can
be found by rescaling until stabilised noise has unit variance (`medssl.physics.noise_level`).

Magnitudes of L coils with complex noise of standard deviation sigma have, with :math:`\nu = x /
\sigma`, the mean and variance

.. math:: m(\nu) = \sqrt2 \, \frac{\Gamma(L + 1/2)}{\Gamma(L)} \,
              {}_1F_1(-\tfrac12; L; -\tfrac{\nu^2}{2}), \qquad 2L + \nu^2 - m^2 .
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special
from torch import Tensor

from medssl.core.errors import UsageError

LawName = Literal["gaussian", "rician", "chi", "poisson", "gamma"]
"""Words for the laws on the command line and in recipes."""
FAR = 25.0
"""Signal to noise ratio beyond which the mean of a magnitude is its asymptotic series."""


@dataclass(frozen=True)
class Gaussian:
    """y = x + sigma n, n standard normal.

    Args:
        sigma: Standard deviation, image units.
    """

    sigma: float
    name: ClassVar[LawName] = "gaussian"

    def sample(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """A noisy copy of an image of any shape."""
        return image + self.sigma * _normal(image, generator)

    def variance(self, image: Tensor) -> Tensor:
        """Variance of y where the truth is `image`, image units squared."""
        return torch.full_like(image, self.sigma**2)

    def rescaled(self, factor: float) -> "Gaussian":
        """The law with `factor` times the standard deviation."""
        return replace(self, sigma=self.sigma * factor)

    def start(self, noisy: Tensor) -> "Gaussian":
        """The law at a first guess of its level: a tenth of the spread."""
        return replace(self, sigma=_tenth_of_spread(noisy))


@dataclass(frozen=True)
class NonCentralChi:
    r"""y = sqrt((x + sigma n_1)^2 + sigma^2 sum_{i=2}^{2L} n_i^2): L coils, sum of squares.

    Args:
        sigma: Standard deviation of the real and of the imaginary part, image units.
        n_coils: L, real because correlated coils act like fewer.
    """

    sigma: float
    n_coils: float
    name: ClassVar[LawName] = "chi"

    def sample(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """A noisy copy of an image of any shape."""
        along = image + self.sigma * _normal(image, generator)
        across = 2 * _gamma(torch.full_like(image, self.n_coils - 0.5), generator)
        return (along.square() + self.sigma**2 * across).sqrt()

    def variance(self, image: Tensor) -> Tensor:
        """Variance of y where the truth is `image`, image units squared."""
        return _magnitude_variance(image, self.sigma, self.n_coils)

    def rescaled(self, factor: float) -> "NonCentralChi":
        """The law with `factor` times the standard deviation."""
        return replace(self, sigma=self.sigma * factor)

    def start(self, noisy: Tensor) -> "NonCentralChi":
        """The law at a first guess of its level: a tenth of the spread."""
        return replace(self, sigma=_tenth_of_spread(noisy))


@dataclass(frozen=True)
class Rician:
    """y = |x + sigma (n_1 + i n_2)|: the magnitude of one complex image.

    Args:
        sigma: Standard deviation of the real and of the imaginary part, image units.
    """

    sigma: float
    name: ClassVar[LawName] = "rician"
    n_coils: ClassVar[float] = 1.0

    def sample(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """A noisy copy of an image of any shape."""
        real = image + self.sigma * _normal(image, generator)
        return torch.hypot(real, self.sigma * _normal(image, generator))

    def variance(self, image: Tensor) -> Tensor:
        """Variance of y where the truth is `image`, image units squared."""
        return _magnitude_variance(image, self.sigma, 1.0)

    def rescaled(self, factor: float) -> "Rician":
        """The law with `factor` times the standard deviation."""
        return replace(self, sigma=self.sigma * factor)

    def start(self, noisy: Tensor) -> "Rician":
        """The law at a first guess of its level: a tenth of the spread."""
        return replace(self, sigma=_tenth_of_spread(noisy))


@dataclass(frozen=True)
class Poisson:
    """y = gain k, k counts of mean x / gain.

    Args:
        gain: Image units per count.
    """

    gain: float
    name: ClassVar[LawName] = "poisson"

    def sample(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """A noisy copy of a non-negative image of any shape."""
        return self.gain * torch.poisson(image.clamp_min(0) / self.gain, generator)

    def variance(self, image: Tensor) -> Tensor:
        """Variance of y where the truth is `image`, image units squared."""
        return self.gain * image.clamp_min(0)

    def rescaled(self, factor: float) -> "Poisson":
        """The law with `factor` times the standard deviation: the gain times its square."""
        return replace(self, gain=self.gain * factor**2)

    def start(self, noisy: Tensor) -> "Poisson":
        """The law at a first guess of its level: a tenth of the spread at the mean."""
        return replace(self, gain=_tenth_of_spread(noisy) ** 2 / _positive_mean(noisy))


@dataclass(frozen=True)
class Gamma:
    """y = x g / looks, g of the gamma distribution of shape `looks`: speckle.

    Args:
        looks: Independent looks averaged; the relative variance is 1 / looks.
    """

    looks: float
    name: ClassVar[LawName] = "gamma"

    def sample(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """A noisy copy of a non-negative image of any shape."""
        return image / self.looks * _gamma(torch.full_like(image, self.looks), generator)

    def variance(self, image: Tensor) -> Tensor:
        """Variance of y where the truth is `image`, image units squared."""
        return image.square() / self.looks

    def rescaled(self, factor: float) -> "Gamma":
        """The law with `factor` times the standard deviation: the looks over its square."""
        return replace(self, looks=self.looks / factor**2)

    def start(self, noisy: Tensor) -> "Gamma":
        """The law at a first guess of its level: a tenth of the spread at the mean."""
        spread = _tenth_of_spread(noisy)
        return replace(self, looks=(_positive_mean(noisy) / spread) ** 2)


Law = Gaussian | Rician | NonCentralChi | Poisson | Gamma
"""Any law of this file."""


def law_named(name: str, *, n_coils: float = 1.0) -> Law:
    """The law of unit level that a word of the command line means.

    Args:
        name: One of `LawName`.
        n_coils: L of the word `chi`.

    Returns:
        sigma 1, gain 1, or 1 look.

    Raises:
        UsageError: No such law.
    """
    laws: dict[str, Law] = {
        "gaussian": Gaussian(1.0),
        "rician": Rician(1.0),
        "chi": NonCentralChi(1.0, n_coils),
        "poisson": Poisson(1.0),
        "gamma": Gamma(1.0),
    }
    if name not in laws:
        raise UsageError(f"there is no noise law {name!r}", f"use one of {', '.join(laws)}")
    return laws[name]


def magnitude_mean(nu: NDArray[np.float64], n_coils: float) -> NDArray[np.float64]:
    """Mean m of a magnitude of L coils at signal to noise ratio nu, for sigma = 1; any shape."""
    near = np.minimum(nu, FAR)
    t = near**2 / 2
    if n_coils == 1:
        mean = np.sqrt(np.pi / 2) * ((1 + t) * special.i0e(t / 2) + t * special.i1e(t / 2))
    else:
        scale = np.sqrt(2) * np.exp(special.gammaln(n_coils + 0.5) - special.gammaln(n_coils))
        mean = scale * special.hyp1f1(-0.5, n_coils, -t)
    far, odd = np.maximum(nu, FAR), 2 * n_coils - 1
    series = far + odd / (2 * far) - odd * (odd - 2) / (8 * far**3)
    return np.where(nu < FAR, mean, series)


def magnitude_variance(nu: NDArray[np.float64], n_coils: float) -> NDArray[np.float64]:
    """Variance of a magnitude of L coils at signal to noise ratio nu, for sigma = 1."""
    far, odd = np.maximum(nu, FAR), 2 * n_coils - 1
    series = 1 - odd / (2 * far**2)
    near = 2 * n_coils + nu**2 - magnitude_mean(nu, n_coils) ** 2
    return np.where(nu < FAR, near, series)


def _magnitude_variance(image: Tensor, sigma: float, n_coils: float) -> Tensor:
    nu = (image / sigma).abs().double().cpu().numpy()
    variance = torch.from_numpy(np.asarray(sigma**2 * magnitude_variance(nu, n_coils)))
    return variance.to(image)


def _normal(image: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(image.shape, generator=generator, dtype=image.dtype, device=image.device)


def _gamma(shape: Tensor, generator: torch.Generator) -> Tensor:
    """Variates of the gamma distribution; the public sampler of torch takes no generator."""
    return torch._standard_gamma(shape, generator=generator)


def _tenth_of_spread(noisy: Tensor) -> float:
    spread = float(noisy.double().std(correction=0)) / 10
    return spread if spread > 0 else 1.0


def _positive_mean(noisy: Tensor) -> float:
    mean = float(noisy.double().clamp_min(0).mean())
    return mean if mean > 0 else 1.0
