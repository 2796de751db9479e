r"""Noise2Score: a net learns the score of noisy images, Tweedie's formula makes them clean.

A net s learns :math:`\partial_y \log p(y)` of the noisy images y as an amortised denoising
autoencoder, with standard normal u and :math:`\sigma_a` going down,

.. math:: L = \left\| \sigma_a\, s(y + \sigma_a u) + u \right\|^2 ,

and the clean image follows in closed form for Gaussian, Poisson and Gamma noise (`physics.score`),
:math:`x = y + \sigma^2 s(y)` for the first. A level that is not known is found by search, for which
the net is called once. "adaptive" also finds the law, from the score's derivative.

Departs from the paper: a single scan is learnt from in the stabilised domain, where all laws are
Gaussian with sigma 1, with :math:`\sigma_a` of the order of sigma (small ones give hardly any
gradient); the score of Poisson images is that of the image, not of the counts; the law comes from a
robust line, `law_rule: paper` has the published rule; weights are never chosen by clean images.
Needs: noise that is independent from voxel to voxel.
Reference: Kim, Ye. Noise2Score: Tweedie's Approach to Self-Supervised Image Denoising without Clean
Images. NeurIPS 2021. Kim, Kwon, Ye. Noise Distribution Adaptive Self-Supervised Image Denoising
Using Tweedie Distribution and Score Matching. CVPR 2022.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from medssl.core.batch import Noisy
from medssl.core.errors import InputError, UsageError
from medssl.core.random import stream
from medssl.method import Domain, Facts, Restorer
from medssl.nets import chain, unet
from medssl.physics.score import (
    POWER,
    Family,
    bias_corrected,
    denoise_with_score,
    law_by_paper,
    law_by_slope,
    search_level,
    tweedie_mean,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters, under the paper's letters."""

    domain: Domain = "stabilised"
    """Unit noise for single scans and archives, or intensities of about [0, 1] as in the paper."""
    law: Family | Literal["adaptive"] = "gaussian"
    """Of the noise in that domain; "adaptive" finds it together with the level."""
    level: float | Literal["given", "blind"] = "given"
    """sigma, gain, or looks in that domain; "given" is what is known of the scan, "blind" searches
    for images in [0, 1]."""
    sigma_a: tuple[float, float] = (1.0, 0.1)
    """First and last noise that is added; the paper has 0.05 and 0.001 for images in [0, 1]."""
    order: Literal["annealed", "random"] = "annealed"
    """From first to last in equal steps, or for each image one drawn geometrically between them."""
    restarts: int = 1
    """How often the annealing runs from first to last; the paper has once per epoch."""
    law_rule: Literal["slope", "paper"] = "slope"
    """How "adaptive" finds the law."""
    bias_correct: bool = False
    """Shift brightness so that no residual mean is left: Poisson and Gamma come out too dark."""
    net: chain.Config | unet.Config = field(
        default_factory=lambda: chain.Config(zero_last=True, detail=True)
    )
    """The score s; the paper has the U-Net."""
    scale: float = 1.0
    """What the net's output is multiplied with, of the order of 1 / sigma; the paper has 1."""
    n_axes: Literal[2, 3] | None = None
    """2 looks at slices, 3 at volumes; null follows the scan."""

    def suited_to(self, facts: Facts) -> "Config":
        """The same with the axes settled."""
        if self.n_axes is not None or isinstance(self.net, unet.Config):
            return self
        return replace(self, n_axes=facts.net_axes)

    def build(self) -> "Noise2Score":
        """The method, untrained.

        Raises:
            UsageError: Fields that exclude each other.
        """
        if not 0 < self.sigma_a[1] <= self.sigma_a[0]:
            raise UsageError(
                f"method.sigma_a is {list(self.sigma_a)}", "give [first, last], falling, above 0"
            )
        if self.domain == "stabilised" and (self.law != "gaussian" or self.level != "given"):
            raise UsageError(
                f"method.law {self.law}, level {self.level} with stabilised images",
                "leave them out (the scan's own law is used), or set method.domain=unit",
            )
        if self.law in ("poisson", "gamma") and self.level == "given":
            raise UsageError(
                f"method.law is {self.law} and its level is not set",
                "set method.level to a number or to blind",
            )
        if isinstance(self.level, float) and self.level <= 0:
            raise UsageError(f"method.level is {self.level:g}", "give a number above 0")
        if self.law == "adaptive" and self.level != "given":
            raise UsageError("method.law adaptive finds its own level", "leave method.level out")
        return Noise2Score(self)


class Noise2Score(Restorer):
    """A net s for the score, and what follows from it."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.domain = config.domain
        n_axes: Literal[2, 3] = config.n_axes or 2
        self.crop_axes = n_axes
        self.net = config.net.build(n_axes)

    def loss(self, batch: Noisy) -> dict[str, Tensor]:
        """L, the mean over voxels, in units of the local noise if stabilised."""
        y, generator = self._seen(batch), batch.generator
        sigma_a = self._sigma_a(batch).to(y)
        u = torch.randn(y.shape, generator=generator, dtype=y.dtype, device=y.device)
        return {"score": (sigma_a * self.s(y + sigma_a * u) + u).square().mean()}

    def s(self, y: Tensor) -> Tensor:
        """The score of noisy images (B, 1, *spatial), of the same shape."""
        return self.config.scale * self.net(y)

    @torch.no_grad()
    def restore(self, batch: Noisy) -> Tensor:
        """Clean images (B, 1, *spatial).

        Raises:
            InputError: The level is neither given nor found.
        """
        y = self._seen(batch)
        if self.config.domain == "stabilised":
            return (y + self.s(y)) * batch.level
        if self.config.law == "adaptive":
            return torch.cat([self._adaptive(one) for one in y.split(1)])
        score, family = self.s(y), self.config.law
        if self.config.level == "blind":
            known = None if batch.sigma is None else batch.sigma.expand(y.shape)
            images = [
                self._blind(y[b], score[b], None if known is None else known[b])
                for b in range(len(y))
            ]
            return torch.stack(images)
        level = batch.sigma if self.config.level == "given" else self.config.level
        if level is None:
            raise InputError("the noise level is not known", "set method.level=blind")
        return self._finished(denoise_with_score(family, y, score, level), y)

    @property
    def follows_sigma(self) -> bool:
        """Where the level is given with the images."""
        return self.config.level == "given" and self.config.law != "adaptive"

    def halo(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The reach of the net; whole slices where something is measured on all of them."""
        if self.config.level == "blind" or self.config.law == "adaptive":
            return shape
        return self.net.halo(shape)

    def bytes_per_voxel(self) -> int:
        """That of the net."""
        return self.net.bytes_per_voxel()

    def _seen(self, batch: Noisy) -> Tensor:
        """What the net sees: stabilised images in units of their local noise."""
        return batch.image / batch.level if self.domain == "stabilised" else batch.image

    def _sigma_a(self, batch: Noisy) -> Tensor:
        """The noise to add, one number or one per image."""
        first, last = self.config.sigma_a
        shape = (len(batch.image), *(1 for _ in batch.image.shape[1:]))
        if self.config.order == "annealed":
            phase = batch.progress * self.config.restarts
            done = 1.0 if batch.progress >= 1 else phase % 1
            return torch.full(shape, first + (last - first) * done)
        generator = batch.generator
        share = torch.rand(shape, generator=generator, device=batch.image.device)
        return first * (last / first) ** share

    def _blind(self, y: Tensor, score: Tensor, sigma: Tensor | None) -> Tensor:
        """One image whose level is searched; the known one where the search is not sure."""
        family = self.config.law
        assert family != "adaptive"
        found = search_level(family, y[0], score[0])
        level: Tensor | float = found.value
        if not found.sure:
            if sigma is None or family != "gaussian":
                raise InputError(
                    f"no {family} level explains the image, the best is {found.value:.3g}",
                    "set method.level to a number",
                )
            level = sigma
        return self._finished(denoise_with_score(family, y, score, level), y)

    def _adaptive(self, y: Tensor) -> Tensor:
        """One image whose law and level come from the score."""
        rule = law_by_slope if self.config.law_rule == "slope" else law_by_paper
        found = rule(y, self.s, stream(0, "law", y.device))
        if not 0 < found.level < math.inf:
            return y  # a score that does not fall says nothing; the engine finds no gain and tells
        power = POWER[found.family]
        return self._finished(tweedie_mean(y, self.s(y), power, found.level), y)

    def _finished(self, x: Tensor, y: Tensor) -> Tensor:
        if not self.config.bias_correct:
            return x
        pairs = zip(x.split(1), y.split(1), strict=True)
        return torch.cat([bias_corrected(one, noisy) for one, noisy in pairs])
