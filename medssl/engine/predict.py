r"""How much a restoration is expected to gain, without the truth.

In the domain where noise has variance v, a filter F leaves the error (Stein)

.. math:: e = \frac{\langle w\, (F(z) - z)^2 \rangle}{\langle w\, v \rangle\, r^2} - 1
              + 2\, \frac{\langle w\, b\, (F(z + \epsilon b) - F(z)) \rangle}
                        {\epsilon\, \langle w\, v \rangle}

in variances of the noise, b a probe of variance v, w the squared slope of the way back to image
units, and r the true sigma over the one that was used: what is not known of sigma moves e most.

Filters that are slow are run on a few blocks only. What these blocks miss of the rest is made up
for by a fast filter, which is run on the blocks and on a larger sample.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from medssl.core.batch import Noisy
from medssl.core.image import Image
from medssl.core.random import stream
from medssl.core.shapes import cell_sums
from medssl.denoise.collaborative import block_for
from medssl.engine.infer import Scaling, read_batch
from medssl.engine.sample import Part, blocks, middle_channel, volumes_looked_at
from medssl.nets.sliding_dct import HARD, sliding_dct
from medssl.physics.noise_level import NoiseEstimate
from medssl.physics.sure import CELL, EPSILON, signs

BLOCK = 24**3
"""Voxels of one block; smaller ones have too much border."""
SERIES_VALUES = 1_600_000
"""The same for a method that sees all volumes at once, counting each value of them."""
SERIES_BLOCKS = 4
"""Blocks that these values make up."""
FAST = (16 * BLOCK, 40 * BLOCK)
"""Voxels that the fast filter is run on, twice: at least, at most, a tenth of the scan between."""
MOST_NEGATIVE = 0.15
"""Noise variances; no error is below zero, and a noise estimate that says so is too high."""
TEXTURE_ERROR = 0.03
"""Relative error of an estimated sigma by fine anatomy that passes for noise; a guess."""


@dataclass(frozen=True)
class Prediction:
    """Expected error of the restored image, in variances of the noise; the input has 1."""

    removed: float
    """Mean square of what is taken away."""
    divergence: float
    """Share of the noise that is kept."""
    standard_error: float
    """Of the error, by the number of voxels looked at."""
    sigma_error: float
    """Relative; what sigma may be off."""
    same_model: bool
    """The filter and this check believe the same noise spectrum: the error is likely larger."""

    def error_at(self, ratio: float) -> float:
        """The error where the true sigma is so many times the one that was used."""
        return self.removed / ratio**2 - 1 + 2 * self.divergence

    @property
    def error(self) -> float:
        """The error where sigma is right; may be negative by chance."""
        return self.error_at(1.0)

    @property
    def interval(self) -> tuple[float, float]:
        """Smallest and largest error within two standard errors and what sigma may be off."""
        low = self.error_at(1 + self.sigma_error) - 2 * self.standard_error
        high = self.error_at(1 / (1 + self.sigma_error)) + 2 * self.standard_error
        return max(low, 0.0), max(high, 0.0)

    @property
    def doubt(self) -> str | None:
        """Why the restored image may be further from the truth; None when it should be closer."""
        if self.error < -(MOST_NEGATIVE + 2 * self.standard_error):
            return "the noise estimate contradicts itself, it is too high"
        if self.interval[1] >= 1.0:
            return "no gain is expected"
        return None

    @property
    def gain_db(self) -> float | None:
        """Expected gain in PSNR; None where the error cannot be told from 0, or is optimistic."""
        if self.same_model or self.error <= 2 * self.standard_error:
            return None
        return -10 * math.log10(self.error)

    @property
    def says(self) -> str:
        """The gain in words, as an interval."""
        low, high = (None if e <= 0 else -10 * math.log10(e) for e in reversed(self.interval))
        if self.same_model or low is None:
            return "expected gain unknown"
        if high is None:
            return f"expected gain at least {low:.1f} dB"
        return f"expected gain {low:.1f} to {high:.1f} dB"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the sidecar."""
        low, high = self.interval
        gain = self.gain_db
        ends = [None if self.same_model or e <= 0 else -10 * math.log10(e) for e in (high, low)]
        return {
            "error_in_noise_variances": round(self.error, 4),
            "error_interval": [round(low, 4), round(high, 4)],
            "standard_error": round(self.standard_error, 4),
            "sigma_relative_error": round(self.sigma_error, 4),
            "gain_db": None if gain is None else round(gain, 2),
            "gain_interval_db": [None if e is None else round(e, 2) for e in ends],
            "says": self.says,
            "doubt": self.doubt,
            "by": "Monte-Carlo SURE on a sample of the scan; the interval allows for sigma",
            "optimistic": self.same_model,
        }


def predict(
    scale: Scaling, image: Image, device: torch.device, seed: int, strength: float = 1.0
) -> Prediction:
    """Estimate the error of what a method makes of an image.

    Args:
        scale: The restorer, fitted, and its domain.
        image: What will be restored.
        device: Where it will run.
        seed: Of the run.
        strength: Share of the change that will be applied.
    """
    channel, model = middle_channel(image), scale.noise.spectrum
    volumes = volumes_looked_at(scale.method, image)

    def seen(parts: list[Part], restore: Callable[[Noisy], Tensor]) -> "_Seen":
        return _Seen.of([_look(scale, image, volumes, p, restore, device, seed) for p in parts])

    floor = scale.floor
    voxels = min(scale.method.looks() * BLOCK, SERIES_VALUES // (volumes.stop - volumes.start))
    size = min(BLOCK, voxels // SERIES_BLOCKS) if scale.method.joint else BLOCK
    few = blocks(image, channel, voxels=voxels, size=size, floor=floor)
    found = seen(few, scale.method.restore)
    removed, divergence, variance = found.removed, found.divergence, found.variance()
    alone, part_of_it = not scale.method.joint, few != [tuple(slice(0, n) for n in image.shape)]
    if alone and part_of_it and model is None and scale.method.domain == "stabilised":
        most = min(max(math.prod(image.shape) // 10, FAST[0]), FAST[1])
        many = blocks(image, channel, voxels=most, size=BLOCK, floor=floor)
        window, step = block_for(image.shape, image.spacing, correlated=False)

        def fast(batch: Noisy) -> Tensor:
            z = batch.image[0, 0]
            return sliding_dct(z, block=window, step=step, hard=HARD)[None, None]

        same, wide = seen(few, fast), seen(many, fast)
        removed += wide.removed - same.removed
        divergence += wide.divergence - same.divergence
        variance = wide.variance() + found.variance(same)
    return Prediction(
        removed=strength**2 * removed,
        divergence=1 - strength * (1 - divergence),
        standard_error=strength * math.sqrt(variance),
        sigma_error=_sigma_error(scale.noise),
        same_model=model is not None,
    )


@dataclass(frozen=True, eq=False)
class _Seen:
    """What a filter did to some blocks."""

    removed: float
    divergence: float
    influence: Tensor
    """(cells,) what each cell does to the error; they sum to 0."""
    counts: tuple[int, ...]
    """Cells of each block."""

    @classmethod
    def of(cls, looks: list[Tensor]) -> "_Seen":
        """From the sums of `_look`, one per block."""
        removed, noise, kept = torch.cat(looks).unbind(1)
        total = float(noise.sum())
        a, d = float(removed.sum()) / total, float(kept.sum()) / total
        influence = (removed + 2 * kept - (a + 2 * d) * noise) / total
        return cls(a, d, influence, tuple(len(look) for look in looks))

    def variance(self, other: "_Seen | None" = None) -> float:
        """Of the error, or of its difference to that of another filter on the same blocks.

        Blocks count as one each where they differ by more than their cells tell.
        """
        influence = self.influence if other is None else self.influence - other.influence
        by_block = torch.stack([part.sum() for part in influence.split(self.counts)])
        n = len(by_block)
        between = float(by_block.square().sum()) * n / (n - 1) if n > 1 else 0.0
        return max(float(influence.square().sum()), between)


def _look(
    scale: Scaling,
    image: Image,
    volumes: slice,
    part: Part,
    restore: Callable[[Noisy], Tensor],
    device: torch.device,
    seed: int,
) -> Tensor:
    """(cells, 3) float64 sums over one block: removed, noise, and how much of the noise is kept."""
    batch, _ = read_batch(scale, image, volumes, part, device)
    z = batch.image[0]
    name = f"predict/{[s.start for s in part]}"

    def restored(x: Tensor) -> Tensor:
        generator = stream(seed, f"{name}/restore", device)
        with torch.no_grad():
            return restore(replace(batch, image=x[None], generator=generator))[0]

    f = restored(z)
    variance, weight = scale.trust(f)
    if batch.sigma is not None:
        variance = variance * batch.sigma[0].square()
    generator = stream(seed, name)
    if scale.noise.spectrum is None:
        probe = signs(z, generator) * variance.sqrt()
    else:
        start = [s.start for s in part]
        sample = scale.noise.spectrum.sample
        probe = torch.stack([sample(z.shape[1:], generator, start=start) for _ in z]).to(z)
        probe /= scale.unit
    change = (restored(z + EPSILON * probe) - f) / EPSILON
    terms = weight * torch.stack([(f - z).square(), variance, probe * change])
    return cell_sums(terms.double().sum(1), CELL, first=1).flatten(1).T


def _sigma_error(noise: NoiseEstimate) -> float:
    """Relative; two standard errors and what texture may add; 0 where sigma was given."""
    if noise.spectrum is not None or noise.sigma_error == 0:
        return noise.sigma_error
    return math.hypot(2 * noise.sigma_error, TEXTURE_ERROR)
