"""How much a restoration is expected to gain, without the truth."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from medssl.core.batch import Noisy
from medssl.core.image import Image
from medssl.core.random import stream
from medssl.engine.infer import Scaling, local_sigma, read_tile
from medssl.physics.sure import signs, sure

LARGEST = (96, 96, 24)
"""Voxels per axis of the part that is looked at."""
SIGNAL = 2.0
"""Magnitudes below so many sigma are background, where noise has another variance."""
MOST_NEGATIVE = 0.15
"""Noise variances; no error is below zero, and a noise estimate that says so is too high."""
LEAST_SIGNAL = 0.02
"""Share of the part that must carry signal for the background to be left out."""


@dataclass(frozen=True)
class Prediction:
    """Expected error of the restored image, in variances of the noise; the input has 1."""

    error: float
    standard_error: float
    same_model: bool
    """The filter and this check believe the same noise spectrum: the error is likely larger."""

    @property
    def doubt(self) -> str | None:
        """Why the restored image may be further from the truth; None when it should be closer."""
        if self.error < -(MOST_NEGATIVE + 2 * self.standard_error):
            return "the noise estimate contradicts itself, it is too high"
        if self.error + 2 * self.standard_error >= 1.0:
            return "no gain is expected"
        return None

    @property
    def gain_db(self) -> float | None:
        """Expected gain in PSNR; None where the error cannot be told from 0, or is optimistic."""
        if self.same_model or self.error <= 2 * self.standard_error:
            return None
        return -10 * math.log10(self.error)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the sidecar."""
        gain = self.gain_db
        return {
            "error_in_noise_variances": round(self.error, 4),
            "standard_error": round(self.standard_error, 4),
            "gain_db": None if gain is None else round(gain, 2),
            "doubt": self.doubt,
            "by": "Monte-Carlo SURE on one part; true only if sigma is",
            "optimistic": self.same_model,
        }


def predict(scale: Scaling, image: Image, device: torch.device, seed: int) -> Prediction:
    """Estimate the error on the middle of an image.

    Args:
        scale: The restorer, fitted, and its domain.
        image: What will be restored.
        device: Where it will run.
        seed: Of the run.
    """
    part = tuple(
        slice((n - min(n, m)) // 2, (n + min(n, m)) // 2)
        for n, m in zip(image.shape, LARGEST, strict=False)
    )
    channel = image.data.shape[0] // 2 if image.channels == "time" else 0
    y = read_tile(image, channel, part).to(device)
    local = local_sigma(scale.noise, part)
    z, level = scale.inward(y, None if local is None else local.to(device))
    sigma = None if level is None else level.to(device).expand(z.shape)

    def restored(x: Tensor) -> Tensor:
        batch = Noisy(
            x[None, None],
            sigma=None if sigma is None else sigma[None, None],
            spectrum=scale.noise.spectrum,
            generator=stream(seed, "predict/restore", device),
        )
        return scale.method.restore(batch)[0, 0]

    generator = stream(seed, "predict")
    spread = torch.ones_like(z) if sigma is None else sigma
    model = scale.noise.spectrum
    if model is None:
        probe = signs(z, generator) * spread
    else:
        probe = model.sample(z.shape, generator, start=[s.start for s in part]).to(z)
        probe /= scale.unit

    def where_there_is_signal(x: Tensor) -> Tensor:
        signal = (scale.outward(x) > SIGNAL * scale.noise.sigma).float()
        return signal if float(signal.mean()) > LEAST_SIGNAL else torch.ones_like(signal)

    magnitude = scale.method.domain == "stabilised" and scale.noise.law.name in ("rician", "chi")
    with torch.no_grad():
        error, deviation = sure(
            restored, z, spread.square(), probe, where_there_is_signal if magnitude else None
        )
    unit = float(spread.square().mean())
    return Prediction(error / unit, deviation / unit, model is not None)
