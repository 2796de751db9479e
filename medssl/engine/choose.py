"""Which method, why, and whether to leave the scan alone."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from medssl.config import Recipe
from medssl.core.image import Image
from medssl.engine.estimate import LONG_SERIES, MOST_OF_RANGE
from medssl.method import Facts
from medssl.physics.noise_level import NoiseEstimate

Quality = Literal["fast", "standard", "high"]
"""How much time a scan is worth."""
DEFAULTS: dict[Quality, str] = {
    "fast": "collaborative_fast",
    "standard": "collaborative",
    "high": "collaborative_high",
}
"""Recipes by quality."""
CT_DEFAULTS: dict[Quality, str] = {
    "fast": "ct_fast",
    "standard": "ct_auto",
    "high": "ct_high",
}
"""The same for CT, whose noise has a spectrum."""
SERIES = "mppca"
"""What is tried first on a series of enough volumes."""
LEAST_CT_LEVEL = 2.0
"""HU; a CT with less noise is left alone."""
UNSURE_STRENGTH = 0.5
CT_STRENGTH = 0.85
"""Share of the change for CT, which keeps some of the texture that readers are used to."""


@dataclass(frozen=True)
class Choice:
    """A recipe and the reason for it."""

    recipe: Recipe
    strength: float
    why: str
    named: bool
    """The user named the method, so it is not second-guessed."""


def default(noise: NoiseEstimate, quality: Quality) -> str:
    """The recipe for a scan with such noise.

    Args:
        noise: What was found about the noise.
        quality: What was asked for.
    """
    return DEFAULTS[quality] if noise.spectrum is None else CT_DEFAULTS[quality]


def choose(noise: NoiseEstimate, recipe: Recipe, named: bool, strength: float | None) -> Choice:
    """How much of a recipe is applied to a scan, and why.

    Args:
        noise: What was found about the noise.
        recipe: Asked for, or the default.
        named: Asked for.
        strength: Share of the change; None means the recipe's, less for CT and unsure noise.
    """
    share = recipe.strength if strength is None else strength
    if strength is None and noise.spectrum is not None:
        share = min(share, CT_STRENGTH if noise.confidence != "unsure" else UNSURE_STRENGTH)
    return Choice(recipe, share, "as asked" if named else noise.why, named)


def together(image: Image, noise: NoiseEstimate) -> bool:
    """Whether the volumes of a series are enough, and their noise white, to be seen at once."""
    many = image.channels == "time" and image.data.shape[0] >= LONG_SERIES
    return many and noise.spectrum is None


def facts(image: Image, noise: NoiseEstimate) -> Facts:
    """What a method may need to know before it is built."""
    return Facts(
        shape=image.shape,
        spacing=image.spacing,
        correlated=noise.spectrum is not None,
        correlation=noise.correlation,
        n_volumes=image.data.shape[0] if image.channels == "time" else 1,
        b_values=image.b_values,
        independent_slices=getattr(image.origin, "independent_slices", False),
    )


def reason_to_decline(image: Image, noise: NoiseEstimate) -> str | None:
    """Why a scan is better left as it is; None when there is noise to remove."""
    low, high = float(np.nanmin(image.data)), float(np.nanmax(image.data))
    if low == high:
        return f"every voxel is {low:g}"
    if noise.spectrum is not None and noise.sigma < LEAST_CT_LEVEL:
        return f"the noise is {noise.sigma:.2g} HU, which is not worth a change"
    if noise.sigma > MOST_OF_RANGE * (high - low):
        return f"the noise ({noise.sigma:.3g}) fills the range of values ({high - low:.3g})"
    if noise.sigma <= 1e-6 * (high - low):
        return "no noise was found"
    return None
