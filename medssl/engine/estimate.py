"""What the noise of a scan is: CT by its power spectrum, everything else by its law."""

from dataclasses import dataclass, replace
from pathlib import PurePath

import numpy as np
import torch
from torch import Tensor

from medssl.core.errors import UsageError
from medssl.core.image import Image
from medssl.denoise.collaborative import block_for
from medssl.engine.infer import read_tile
from medssl.nets.sliding_dct import sliding_dct
from medssl.physics.marchenko_pastur import SETTLED, sigma_map, window_for
from medssl.physics.noise import Gaussian, NonCentralChi, Rician, law_named
from medssl.physics.noise_level import NoiseEstimate
from medssl.physics.noise_level import estimate as estimate_level
from medssl.physics.noise_psd import estimate_noise

HU_AIR = -800.0
"""The first percentile of a CT lies below it, because there is air around a patient."""
SOFT_TISSUE = (-150.0, 150.0)
MOST_OF_RANGE = 0.5
"""Share of the range of values; with more noise there is no picture to keep."""
LONG_SERIES = 16
"""Volumes from which noise is what they do not share."""
VOXELS_FOR_VOLUME = 4
"""Voxels of a window for each volume, where noise is looked for: enough to set signal apart."""
SERIES_VOLUMES = 4
"""Volumes of a series that the noise is learnt from."""
FAST_THRESHOLD = 2.8
"""Of the filter that looks for noise, in standard deviations."""
LEAST_LEVEL = 1e-3
"""HU; keeps a constant image from dividing by zero."""


@dataclass(frozen=True)
class Asked:
    """What the user said about the noise."""

    law: str = "auto"
    sigma: float | None = None
    """Image units; None means estimate it."""


def asked(law: str, sigma: str | float) -> Asked:
    """Check the words of `--noise` and `--sigma`.

    Raises:
        UsageError: Not a positive number, or a law that has no sigma.
    """
    if sigma == "auto":
        return Asked(law)
    try:
        value = float(sigma)
    except ValueError as error:
        raise UsageError(f"--sigma is {sigma!r}", "give auto or a number in image units") from error
    if not (np.isfinite(value) and value > 0):
        raise UsageError(f"--sigma is {value:g}", "give auto or a number above 0, in image units")
    if law in ("poisson", "gamma"):
        raise UsageError(f"--noise {law} has no sigma", "leave --sigma out, its level is estimated")
    return Asked(law, value)


def modality(image: Image) -> str:
    """DICOM's word for what the image is, guessed from name and values where no header says it."""
    if image.modality:
        return image.modality
    name = PurePath(image.name).name.lower()
    if name.split(".")[0].endswith("_ct"):
        return "CT"
    part = tuple(slice(None, None, max(1, n // 64)) for n in image.shape)
    sample = image.data[0][part]
    sample = sample[np.isfinite(sample)]
    if np.percentile(sample, 1) <= HU_AIR:
        tissue = np.count_nonzero((sample > SOFT_TISSUE[0]) & (sample < SOFT_TISSUE[1]))
        if tissue > 0.05 * sample.size:
            return "CT"
    return ""


def estimate(image: Image, words: Asked) -> NoiseEstimate:
    """Law, level, local strength and spectrum of the noise of an image.

    Args:
        image: With its modality settled.
        words: What the user said; what was left open is estimated.

    Raises:
        UsageError: A given sigma is above half of the range of the values.
    """
    _check_sigma(image, words.sigma)
    if image.modality == "CT" and words.law == "auto":
        return _ct(image, words)
    if image.channels == "time" and image.data.shape[0] >= LONG_SERIES and words.sigma is None:
        shared = _series(image, words.law)
        if shared is not None:
            return shared
    channels = range(0, image.data.shape[0], max(1, image.data.shape[0] // SERIES_VOLUMES))
    found = [_one(image, channel, words.law) for channel in channels]
    middle = sorted(found, key=lambda e: e.sigma)[len(found) // 2]
    if words.sigma is None:
        return middle
    return replace(
        middle,
        law=law_named(middle.law.name).rescaled(words.sigma),
        sigma=words.sigma,
        sigma_error=0.0,
        why=f"{middle.why}; sigma as given",
    )


def _one(image: Image, channel: int, law: str) -> NoiseEstimate:
    """The noise of one volume by low-texture cells."""
    whole = tuple(slice(0, n) for n in image.shape)
    valid = None
    if image.valid is not None:
        valid = torch.from_numpy(np.ascontiguousarray(image.valid[channel]))
    block, step = block_for(image.shape, image.spacing, correlated=False)

    def smooth(z: Tensor) -> Tensor:
        return sliding_dct(z, block=block, step=step, hard=FAST_THRESHOLD)

    return estimate_level(
        read_tile(image, channel, whole),
        image.spacing,
        law=law,
        valid=valid,
        smooth=smooth,
        modality=image.modality,
    )


def _series(image: Image, law: str) -> NoiseEstimate | None:
    """The noise of many volumes by what they do not share; None where they share everything."""
    first = _one(image, image.data.shape[0] // 2, law)
    if not isinstance(first.law, Gaussian | Rician | NonCentralChi):
        return None
    planar = getattr(image.origin, "independent_slices", False)
    wanted = VOXELS_FOR_VOLUME * image.data.shape[0]
    window = window_for(wanted, image.shape, image.spacing, planar=planar)
    found = sigma_map(torch.from_numpy(image.data), replace(first.law, sigma=1.0), window)
    if found is None:
        return None
    local, sigma = found
    return replace(
        first,
        law=replace(first.law, sigma=sigma),
        why=f"{first.why}; level by what {image.data.shape[0]} volumes do not share",
        sigma=sigma,
        sigma_error=SETTLED,
        sigma_map=local,
        warnings=first.warnings if first.sigma > 0 else (),
    )


def _ct(image: Image, words: Asked) -> NoiseEstimate:
    """The noise of a CT: spectrum from flat blocks, local strength from a pilot's residual."""
    volume = torch.from_numpy(image.data[0])
    valid = None if image.valid is None else torch.from_numpy(image.valid[0])
    model = estimate_noise(volume, image.spacing, valid=valid)
    plane = tuple(slice(0, n) for n in image.shape[:2])
    residuals = []
    for z in model.slices:
        y = read_tile(image, 0, plane if len(image.shape) == 2 else (*plane, slice(z, z + 1)))
        block, step = block_for(tuple(y.shape), image.spacing, correlated=True)
        pilot = sliding_dct(
            y,
            block=block,
            step=step,
            hard=FAST_THRESHOLD,
            sigma=torch.full((), max(model.level, LEAST_LEVEL)),
            coefficient_sigma=model.dct_sigma(block),
            wiener=False,
        )
        residuals.append((y - pilot).reshape(y.shape[:2]))
    model = model.with_local_map(torch.stack(residuals, -1))
    if words.sigma is not None:
        model = replace(model, level=words.sigma)
    warnings = [] if model.confident else ["too little flat tissue to be sure of the noise"]
    return NoiseEstimate(
        law=Gaussian(max(model.level, 1e-6)),
        confidence=1.0 if model.confident else "unsure",
        why="CT in HU: spectrum and local strength from the flattest tissue",
        sigma=model.level,
        sigma_error=0.0 if words.sigma is not None else 0.1,
        sigma_map=None,
        correlation=(),
        spectrum=model,
        warnings=tuple(warnings),
    )


def _check_sigma(image: Image, sigma: float | None) -> None:
    if sigma is None:
        return
    finite = image.data[np.isfinite(image.data)] if image.valid is not None else image.data
    span = float(finite.max()) - float(finite.min())
    if sigma > MOST_OF_RANGE * span:
        raise UsageError(
            f"--sigma {sigma:g} is more than half of the image's range {span:g}",
            "give it in image units (HU for CT)",
        )
