r"""Several methods, one image: the mean of their results, and who may add to it.

Methods fail in different ways, so their mean is often better than each of them. Some help only on
some scans. Stein's estimate of the error of a mean :math:`\bar f`,

.. math:: \Big\langle (\bar f(y) - y)^2 - \sigma^2
          + 2 b\, \frac{\bar f(y + \epsilon b) - \bar f(y)}{\epsilon} \Big\rangle,

b a draw of the noise model, is compared with and without each addition on blocks of the scan: an
addition joins where it lowers the estimate by more than chance, and the noise model, may be wrong.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, avg_pool3d

from medssl.core.batch import Noisy
from medssl.core.random import stream
from medssl.method import Domain, Restorer, Trust
from medssl.physics.sure import signs

EPSILON = 0.1
"""Length of the probe in standard deviations of the noise."""
STANDARD_ERRORS = 2.0
"""By which an addition must lower the error."""
LEAST_GAIN = 0.05
"""Share of the error that an addition must take away, since the noise model is one, too."""
CELL = 16
"""Voxels per axis whose mean counts as one observation: neighbours are dependent."""


@dataclass(frozen=True)
class Judged:
    """What is expected of the mean with an addition, against the mean without it."""

    name: str
    change: float
    """Of the error, in noise variances; negative is better."""
    standard_error: float
    joined: bool


class Ensemble(Restorer):
    """The mean of restorers of any domain, for additive noise."""

    domain: Domain = "unit"

    def __init__(
        self,
        base: Sequence[Restorer],
        additions: Sequence[Restorer] = (),
        names: Sequence[str] = (),
    ) -> None:
        """Put together.

        Args:
            base: Averaged always.
            additions: Each counts as much as the whole base where it joins; they see the mean of
                the base as `Noisy.estimate`.
            names: Of the additions.
        """
        super().__init__()
        self.base = list(base)
        self.additions = dict(zip(names, additions, strict=True))
        self.parts = nn.ModuleList([*base, *additions])
        self.judged: tuple[Judged, ...] = ()
        """Before `settle` no addition has been judged, and none joins."""

    def restore(self, batch: Noisy) -> Tensor:
        """Clean images (B, C, *spatial)."""
        joined = [self.additions[j.name] for j in self.judged if j.joined]
        return torch.stack(self._results(batch, joined)).mean(0) if joined else self._mean(batch)

    def first(self, batch: Noisy) -> Tensor:
        """What additions improve on: the mean of the base."""
        return self._mean(batch)

    def settle(self, batches: Sequence[Noisy], trust: Trust) -> None:
        """Let the members settle, then the additions join one by one."""
        for member in self.base:
            member.settle([_inward(member, batch)[0] for batch in batches], trust)
        for member in self.additions.values():
            with_estimate = [self._with_estimate(batch) for batch in batches]
            member.settle([_inward(member, batch)[0] for batch in with_estimate], trust)
        if not self.additions:
            return
        looks = [self._look(batch) for batch in batches]
        chosen, judged = [0], []
        for k, name in enumerate(self.additions, 1):
            verdict = _judge(name, looks, chosen, [*chosen, k])
            judged.append(verdict)
            chosen = [*chosen, k] if verdict.joined else chosen
        self.judged = tuple(judged)

    @property
    def follows_sigma(self) -> bool:
        """Where all members do."""
        return all(m.follows_sigma for m in (*self.base, *self.additions.values()))

    def halo(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """That of the member that looks farthest, and additions look through the base."""
        base = [max(h) for h in zip(*(m.halo(shape) for m in self.base), strict=True)]
        more = [m.halo(shape) for m in self.additions.values()]
        return tuple(b + max((h[k] for h in more), default=0) for k, b in enumerate(base))

    def bytes_per_voxel(self) -> int:
        """One member at a time, and the results."""
        held = 4 * (2 + len(self.additions))
        return held + max(m.bytes_per_voxel() for m in (*self.base, *self.additions.values()))

    def as_dict(self) -> list[dict[str, Any]]:
        """The verdicts as plain values."""
        return [
            {
                "name": j.name,
                "change_in_noise_variances": round(j.change, 5),
                "standard_error": round(j.standard_error, 5),
                "joined": j.joined,
            }
            for j in self.judged
        ]

    def _mean(self, batch: Noisy) -> Tensor:
        """What the base makes of images."""
        total = torch.zeros_like(batch.image)
        for member in self.base:
            total += _restored(member, batch)
        return total / len(self.base)

    def _with_estimate(self, batch: Noisy) -> Noisy:
        return dataclasses.replace(batch, estimate=self._mean(batch))

    def _results(self, batch: Noisy, additions: Sequence[Restorer]) -> list[Tensor]:
        """The mean of the base, then each addition."""
        batch = self._with_estimate(batch)
        assert batch.estimate is not None
        return [batch.estimate, *(_restored(a, batch) for a in additions)]

    def _look(self, batch: Noisy) -> "_Look":
        """What the base and the additions make of a block, and of a little more noise on it."""
        y = batch.image
        sigma = torch.ones(()).to(y) if batch.sigma is None else batch.sigma
        level = sigma.square().mean().sqrt()
        generator = batch.generator or stream(0, "ensemble")
        if batch.spectrum is None:
            probe = signs(y, generator) * sigma
        else:
            probe = batch.spectrum.sample(tuple(y.shape[2:]), generator).to(y)[None, None]
            probe = probe * (level / probe.square().mean().sqrt().clamp_min(1e-30))
        additions = list(self.additions.values())
        still = torch.cat(self._results(batch, additions))
        louder = dataclasses.replace(batch, image=y + EPSILON * probe)
        moved = torch.cat(self._results(louder, additions))
        slopes = probe * (moved - still) / EPSILON
        variance = level.square()
        return _Look((still - y)[:, 0] / level, slopes[:, 0] / variance)


@dataclass(frozen=True, eq=False)
class _Look:
    """Of one block, in units of the noise."""

    residuals: Tensor
    """(members, *spatial) restored minus noisy."""
    slopes: Tensor
    """(members, *spatial) probe times the change that it makes."""

    def errors(self, chosen: Sequence[int]) -> Tensor:
        """(cells,) error of the mean of some members in noise variances."""
        removed = self.residuals[list(chosen)].mean(0).square()
        term = (removed - 1 + 2 * self.slopes[list(chosen)].mean(0))[None]
        pool = avg_pool3d if term.ndim == 4 else avg_pool2d
        return pool(term, [min(CELL, n) for n in term.shape[1:]]).flatten().double()


def _judge(name: str, looks: Sequence[_Look], without: list[int], with_it: list[int]) -> Judged:
    """Whether an addition lowers the error of the mean."""
    before = torch.cat([look.errors(without) for look in looks])
    change = torch.cat([look.errors(with_it) for look in looks]) - before
    mean = float(change.mean())
    spread = math.inf if len(change) < 2 else float(change.std()) / math.sqrt(len(change))
    least = max(STANDARD_ERRORS * spread, LEAST_GAIN * float(before.mean()))
    return Judged(name, mean, spread, mean < -least)


def _inward(member: Restorer, batch: Noisy) -> tuple[Noisy, float]:
    """The batch in the domain of a member, and what its result is multiplied by."""
    if member.domain == "unit" or batch.sigma is None:
        return batch, 1.0
    level = float(batch.sigma.square().mean().sqrt()) or 1.0
    estimate = None if batch.estimate is None else batch.estimate / level
    return dataclasses.replace(
        batch, image=batch.image / level, sigma=batch.sigma / level, estimate=estimate
    ), level


def _restored(member: Restorer, batch: Noisy) -> Tensor:
    """What a member makes of images, in their own units."""
    inward, level = _inward(member, batch)
    return member.restore(inward) * level
