"""One noisy scan of many: what is kept of it, and how it is held in memory."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from medssl.core.batch import Noisy
from medssl.core.errors import InputError
from medssl.core.image import Image
from medssl.data.pool import Crop
from medssl.engine import choose, estimate, infer
from medssl.engine.archive import short
from medssl.io.folder import Found, read_found
from medssl.io.limits import Limits
from medssl.method import Facts, Restorer
from medssl.physics.noise_level import NoiseEstimate


@dataclass(frozen=True, kw_only=True)
class Look:
    """What is kept of one scan: a line of `scans.jsonl`, without names."""

    id: str
    """First digits of the hash of its content."""
    group: str
    """Equal for scans that must not be parted between learning and testing."""
    modality: str
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    volumes: int
    correlated: bool
    correlation: tuple[float, ...]
    """Of the noise of neighbours along each axis; empty where not measured."""
    independent_slices: bool
    law: str
    unsure: bool
    """The law was not clear, and a usual one was taken."""
    sigma: float
    """Image units."""
    level: float
    """sigma over the range of values."""
    brightest: float
    """99.9th percentile in the domain of the method; in standard deviations of the noise there if
    that is the stabilised one."""
    n_bytes: int
    """In memory."""


class HeldScan:
    """One scan in memory, cut and scaled on demand.

    Args:
        image: With its modality settled.
        scale: Its noise and domain.
    """

    def __init__(self, image: Image, scale: infer.Scaling) -> None:
        self.image, self.scale = image, scale
        self._zeros_are_masked = scale.noise.law.name != "gaussian"

    @property
    def n_volumes(self) -> int:
        """Volumes of a series, colours of a picture."""
        return self.image.data.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each spatial axis."""
        return self.image.shape

    def measured(self, volume: int, part: tuple[slice, ...]) -> float:
        """Share of a part that is neither padding nor masked."""
        at: tuple[Any, ...] = (volume, *part)
        data = self.image.data[at]
        known = np.ones(data.shape, np.bool_)
        if self.image.valid is not None:
            known &= self.image.valid[at]
        if self._zeros_are_masked:
            known &= data != 0
        return float(known.mean())

    def crop(self, volume: int, part: tuple[slice, ...]) -> Crop:
        """A part in the domain of the method."""
        y = infer.read_tile(self.image, volume, part)
        z, sigma = self.scale.inward(y, infer.local_sigma(self.scale.noise, part))
        level = None if sigma is None else sigma.expand(z.shape)[None, None]
        seen = Noisy(z[None, None], level, infer.seen_from(self.scale.noise, part))
        with torch.no_grad():
            estimate = self.scale.method.first(seen)
        return Crop(z, sigma, None if estimate is None else estimate[0, 0])


def facts_of(looks: Sequence[Look]) -> Facts:
    """What a method can count on in each of some scans."""
    axes = min(len(one.shape) for one in looks)
    flattest = max(looks, key=lambda one: one.spacing[-1] / min(one.spacing))
    return Facts(
        shape=tuple(min(one.shape[k] for one in looks) for k in range(axes)),
        spacing=flattest.spacing[:axes],
        correlated=any(one.correlated for one in looks),
        correlation=max(
            (one.correlation for one in looks), key=lambda c: max(map(abs, c), default=0.0)
        )[:axes],
        independent_slices=any(one.independent_slices for one in looks),
    )


def look_at(
    found: Found, group: str, words: estimate.Asked, method: Restorer, limits: Limits
) -> Look:
    """Read a scan and learn what its noise is.

    Args:
        found: Where it lies.
        group: What it must not be parted from.
        words: What the user said about the noise.
        method: Whose domain counts.
        limits: Bounds of what the file may ask for.

    Raises:
        InputError: Damaged, or nothing can be learnt from it.
        MemoryLimitError: It does not fit.
    """
    image, noise = _open(found, words, limits)
    declined = choose.reason_to_decline(image, noise)
    if declined is not None:
        raise InputError(declined, "it teaches nothing")
    scale = infer.scaling(method, image, noise)
    facts = choose.facts(image, noise)
    return Look(
        id=short(found.id),
        group=group,
        modality=image.modality,
        shape=image.shape,
        spacing=tuple(float(s) for s in image.spacing),
        volumes=image.data.shape[0],
        correlated=facts.correlated,
        correlation=tuple(float(c) for c in facts.correlation),
        independent_slices=facts.independent_slices,
        law=noise.law.name,
        unsure=noise.confidence == "unsure",
        sigma=float(noise.sigma),
        level=scale.level,
        brightest=scale.brightest,
        n_bytes=image.data.nbytes + (0 if image.valid is None else image.valid.nbytes),
    )


def hold(
    found: Found,
    words: estimate.Asked,
    method: Restorer,
    limits: Limits,
    known: NoiseEstimate | None = None,
) -> HeldScan:
    """Read a scan that was looked at, to learn from it.

    Args:
        found: Where it lies.
        words: What the user said about the noise.
        method: Whose domain counts.
        limits: Bounds of what the file may ask for.
        known: Its noise, of an earlier call; None estimates it.

    Raises:
        InputError: It is not what it was.
    """
    image, noise = _open(found, words, limits, known)
    return HeldScan(image, infer.scaling(method, image, noise))


def _open(
    found: Found,
    words: estimate.Asked,
    limits: Limits,
    known: NoiseEstimate | None = None,
) -> tuple[Image, NoiseEstimate]:
    """A scan and its noise."""
    if found.refusal is not None:
        raise found.refusal
    image = read_found(found, limits)
    image = dataclasses.replace(image, modality=estimate.modality(image))
    return image, known or estimate.estimate(image, words)
