r"""Recorrupted-to-recorrupted: more noise makes two images whose noises are independent.

From y come :math:`y_1` and :math:`y_2` with independent noise (`physics.recorrupt`), for unit
normal noise :math:`y_1 = y + a u`, :math:`y_2 = y - u / a`. A denoiser f of the first meets the
second, and answers with the mean over several draws:

.. math:: L = \| f(y_1) - y_2 \|^2, \qquad \hat x = \frac1n \sum_{i=1}^n f(y_1^{(i)}) .

Departs from the paper: stabilised images, so that one f serves all laws; the general form for
counts and speckle needs their level.
Needs: noise that is independent from voxel to voxel, and its level.
Reference: Pang, Zheng, Quan, Ji. Recorrupted-to-Recorrupted: Unsupervised Deep Learning for Image
Denoising. CVPR 2021. Monroy, Bacca, Tachella. Generalized Recorrupted-to-Recorrupted. CVPR 2025.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from medssl.core.batch import Noisy
from medssl.core.errors import UsageError
from medssl.core.random import stream
from medssl.method import Domain, Facts, Restorer
from medssl.nets import chain, unet
from medssl.physics.recorrupt import gamma_pair, gaussian_pair, poisson_pair


@dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters, under the paper's letters."""

    domain: Domain = "stabilised"
    """Unit noise, or intensities of about [0, 1]."""
    law: Literal["gaussian", "poisson", "gamma"] = "gaussian"
    """Of the noise in that domain."""
    level: float | None = None
    """Gain or looks of the noise in that domain; null for Gaussian noise takes the scan's."""
    alpha: float = 0.2
    """Share of y_2, a = sqrt(alpha / (1 - alpha)); the paper has a = 0.5."""
    draws: int = 4
    """n, recorruptions that are averaged; the paper has 50."""
    net: chain.Config | unet.Config = field(
        default_factory=lambda: chain.Config(zero_last=True, detail=True)
    )
    """Predicts f(y) - y."""
    n_axes: Literal[2, 3] | None = None
    """2 looks at slices, 3 at volumes; null follows the scan."""

    def suited_to(self, facts: Facts) -> "Config":
        """The same with the axes settled."""
        if self.n_axes is not None or isinstance(self.net, unet.Config):
            return self
        return replace(self, n_axes=facts.net_axes)

    def build(self) -> "R2R":
        """The method, untrained.

        Raises:
            UsageError: Fields out of range, or that exclude each other.
        """
        if not 0 < self.alpha < 1:
            raise UsageError(f"method.alpha is {self.alpha:g}", "give a share between 0 and 1")
        if self.draws < 1:
            raise UsageError(f"method.draws is {self.draws}", "give 1 or more")
        if self.law != "gaussian" and self.domain == "stabilised":
            raise UsageError(
                f"method.law is {self.law} with stabilised images",
                "leave it out (the scan's own law is used), or set method.domain=unit",
            )
        if self.law != "gaussian" and not (self.level or 0) > 0:
            raise UsageError(
                f"method.law is {self.law}, method.level is {self.level}", "give its level"
            )
        return R2R(self)


class R2R(Restorer):
    """A denoiser f with a residual net."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.domain = config.domain
        n_axes: Literal[2, 3] = config.n_axes or 2
        self.crop_axes = n_axes
        self.net = config.net.build(n_axes)

    def loss(self, batch: Noisy) -> dict[str, Tensor]:
        """L, the mean over voxels, in units of the local noise if stabilised."""
        y, sigma = self._seen(batch)
        y_1, y_2 = self._pair(y, sigma, batch.generator)
        return {"pair": (self._f(y_1) - y_2).square().mean()}

    @torch.no_grad()
    def restore(self, batch: Noisy) -> Tensor:
        """Clean images (B, 1, *spatial); every image meets the same draws."""
        y, sigma = self._seen(batch)
        total = torch.zeros_like(y)
        for k in range(self.config.draws):
            for b in range(len(y)):
                # drawn on the CPU, so that all devices agree
                chance = stream(0, f"r2r/{k}")
                level = sigma[b : b + 1].cpu() if isinstance(sigma, Tensor) else sigma
                y_1, _ = self._pair(y[b : b + 1].cpu(), level, chance)
                total[b] += self._f(y_1.to(y))[0]
        scale = batch.level if self.domain == "stabilised" else 1.0
        return total / self.config.draws * scale

    @property
    def follows_sigma(self) -> bool:
        """Where images are scaled by it; elsewhere the net knows one level."""
        return self.domain == "stabilised"

    def halo(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The reach of the net."""
        return self.net.halo(shape)

    def bytes_per_voxel(self) -> int:
        """That of the net, and the draws."""
        return self.net.bytes_per_voxel() + 16

    def _f(self, y: Tensor) -> Tensor:
        return y + self.net(y)

    def _seen(self, batch: Noisy) -> tuple[Tensor, Tensor | float]:
        """Images, and the standard deviation of their noise."""
        if self.domain == "stabilised":
            return batch.image / batch.level, 1.0
        known = self.config.level if self.config.level is not None else batch.level
        if isinstance(known, Tensor):
            known = known.expand(batch.image.shape)
        return batch.image, known

    def _pair(
        self, y: Tensor, sigma: Tensor | float, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        alpha, level = self.config.alpha, self.config.level
        if self.config.law == "gaussian" or level is None:
            return gaussian_pair(y, sigma, alpha, generator)
        make = poisson_pair if self.config.law == "poisson" else gamma_pair
        return make(y, level, alpha, generator)
