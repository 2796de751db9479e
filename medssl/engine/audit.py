r"""Was it noise that went? What was removed, compared with what noise alone would look like.

The residual r = (y - x) / sigma(x), y the input and x the result at full strength, is noise if the
filter did its job: of variance at most 1 at every intensity, without memory, and no larger where x
has edges. For the last, the correlation of \|r\| with the gradient of x is compared with that of
noise drawn on x by the same law,

.. math:: p = \frac{1 + \#\{T_k \ge T\}}{1 + K}, \qquad T = \mathrm{corr}(|r|, |\nabla x|) .

A filter that keeps some noise at edges makes T smaller than chance, anatomy in the residual makes
it larger.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medssl.core.image import Image
from medssl.core.random import stream
from medssl.engine.infer import Scaling, local_sigma
from medssl.engine.sample import Part, blocks, middle_channel

VOXELS = 6 * 20**3
"""Voxels that are looked at."""
BLOCK = 20**3
"""Voxels of one block."""
DRAWS = 99
"""K, draws of noise on the result."""
SAMPLES = 5
"""Samples of coloured noise, which are dear; draws are these, moved around by chance."""
BINS = 5
"""Groups of equal size by intensity."""
SURE = 0.01
"""p at which the residual is said to hold anatomy."""
LEAST_EFFECT = 0.05
"""Correlation below which it hardly matters however sure it is."""
FULL = 1.25
"""Residual variance over that of the noise beyond which more than noise was removed."""
FEW = 500
"""Voxels below which nothing is said."""


@dataclass(frozen=True)
class Audit:
    """Facts about the residual, all relative to the noise that was estimated."""

    edge_correlation: float
    """T."""
    edge_correlation_of_noise: float
    """Mean of T over the draws."""
    p: float
    """Chance of such a T, or a larger one, where only noise was removed."""
    draws: int
    variance_by_intensity: tuple[float, ...]
    """Mean r^2 from the darkest to the brightest group."""
    intensities: tuple[float, ...]
    """Mean of the result in these groups, image units."""
    voxels: int

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know, one sentence each."""
        found = []
        if self.p <= SURE and self.edge_correlation > LEAST_EFFECT:
            found.append(
                f"what was removed follows edges (correlation {self.edge_correlation:.2f}, "
                f"p {self.p:.2g}): it may hold anatomy; look at --residual or lower --strength"
            )
        most = max(self.variance_by_intensity, default=0.0)
        if most > FULL:
            at = self.intensities[self.variance_by_intensity.index(most)]
            found.append(
                f"around intensity {at:.4g}, {most:.2g} times the noise power was removed: "
                "the noise is stronger there than estimated, or anatomy went with it"
            )
        return tuple(found)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the sidecar."""
        return {
            key: [float(f"{v:.4g}") for v in value]
            if isinstance(value, tuple)
            else float(f"{value:.4g}")
            for key, value in asdict(self).items()
        }


def audit(
    scale: Scaling, image: Image, data: NDArray[np.float32], strength: float, seed: int
) -> Audit | None:
    """Look at what was taken from a scan.

    Args:
        scale: The noise and its domain.
        image: The input.
        data: (C, *spatial) the result.
        strength: Share of the change that was applied, above 0.
        seed: Of the run.

    Returns:
        None where hardly anything is measured.
    """
    channel = middle_channel(image)
    looks = []
    for k, part in enumerate(blocks(image, channel, voxels=VOXELS, size=BLOCK, floor=scale.floor)):
        seen = _look(scale, image, data, (channel, part), strength, stream(seed, f"audit/{k}"))
        if seen is not None:
            looks.append(seen)
    total = sum(len(look.edge) for look in looks)
    if total < FEW:
        return None
    edge, level, residual = (
        torch.cat([getattr(look, name) for look in looks]) for name in ("edge", "level", "residual")
    )
    null = torch.cat([look.null for look in looks], dim=1)
    found = float(_correlation(residual.abs()[None], edge)[0])
    chance = _correlation(null.abs(), edge)
    order = level.argsort()
    groups = [g for g in order.tensor_split(BINS) if len(g)]
    return Audit(
        edge_correlation=found,
        edge_correlation_of_noise=float(chance.mean()),
        p=(1 + int((chance >= found).sum())) / (1 + DRAWS),
        draws=DRAWS,
        variance_by_intensity=tuple(float(residual[g].square().mean()) for g in groups),
        intensities=tuple(float(level[g].mean()) for g in groups),
        voxels=total,
    )


@dataclass(frozen=True, eq=False)
class _Look:
    """One block: (n,) values of its measured voxels, and (DRAWS, n) residuals of drawn noise."""

    edge: Tensor
    level: Tensor
    residual: Tensor
    null: Tensor


def _look(
    scale: Scaling,
    image: Image,
    data: NDArray[np.float32],
    where: tuple[int, Part],
    strength: float,
    generator: torch.Generator,
) -> _Look | None:
    channel, part = where
    before = np.ascontiguousarray(image.data[channel][part])
    after = np.ascontiguousarray(data[channel][part])
    known = np.isfinite(before) & np.isfinite(after)
    if image.valid is not None:
        known &= image.valid[channel][part]
    y, x = (torch.from_numpy(np.where(known, v, 0)) for v in (before, after))
    x = y + (x - y) / strength
    good = torch.from_numpy(known) & (x > scale.floor)
    if not math.isfinite(scale.floor):
        good &= y != 0
    law, local = scale.noise.law, local_sigma(scale.noise, part)
    sd = law.variance(x).clamp_min(0).sqrt() if local is None else local
    good &= sd > 0
    if not bool(good.any()):
        return None
    sd = torch.where(good, sd, torch.ones_like(sd))
    spectrum, draws, samples = scale.noise.spectrum, [], []
    if spectrum is not None:
        start = [s.start for s in part]
        samples = [spectrum.sample(x.shape, generator, start=start) / sd for _ in range(SAMPLES)]
    for k in range(DRAWS):
        if samples:
            moved = [int(torch.randint(n, (), generator=generator)) for n in x.shape]
            draws.append(samples[k % SAMPLES].roll(moved, tuple(range(x.ndim)))[good])
        elif local is not None:
            draws.append(torch.randn(x.shape, generator=generator)[good])
        else:
            draws.append(((law.sample(x, generator) - x) / sd)[good])
    return _Look(_gradient(x)[good], x[good], ((y - x) / sd)[good], torch.stack(draws))


def _gradient(x: Tensor) -> Tensor:
    """Modulus of central differences, borders repeated."""
    total = torch.zeros_like(x)
    for axis, n in enumerate(x.shape):
        if n < 2:
            continue
        index = torch.arange(n)
        ahead = x.index_select(axis, (index + 1).clamp_max(n - 1))
        behind = x.index_select(axis, (index - 1).clamp_min(0))
        total += (ahead - behind).square()
    return total.sqrt()


def _correlation(values: Tensor, other: Tensor) -> Tensor:
    """(k,) of the rows of (k, n) with (n,); 0 where one is constant."""
    a = values.double() - values.double().mean(1, keepdim=True)
    b = other.double() - other.double().mean()
    size = a.norm(dim=1) * b.norm()
    return (a @ b) / size.clamp_min(1e-30)
