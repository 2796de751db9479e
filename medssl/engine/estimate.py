"""What the noise of a scan is: CT by its power spectrum, everything else by its law."""

from dataclasses import dataclass, replace
from pathlib import PurePath

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medssl.core.errors import UsageError
from medssl.core.image import Image
from medssl.denoise.collaborative import block_for
from medssl.engine.infer import read_tile
from medssl.nets.sliding_dct import HARD, sliding_dct
from medssl.physics.marchenko_pastur import SETTLED, sigma_map, window_for
from medssl.physics.noise import Gaussian, Law, NonCentralChi, Rician, law_named
from medssl.physics.noise_level import NoiseEstimate
from medssl.physics.noise_level import estimate as estimate_level
from medssl.physics.noise_local import local_powers, local_slices
from medssl.physics.noise_psd import WINDOW, NoiseModel, body_cells, estimate_noise

HU_AIR = -800.0
"""The first percentile of a CT lies below it, because there is air around a patient."""
SOFT_TISSUE = (-150.0, 150.0)
MOST_OF_RANGE = 0.5
"""Share of the range of values; with more noise there is no picture to keep."""
LONG_SERIES = 16
"""Volumes from which noise is what they do not share."""
VOXELS_FOR_VOLUME = 4
"""Voxels of a window for each volume, where noise is looked for: enough to set signal apart."""
MOST_COILS = 64
"""L beyond which nobody sums coils."""
SERIES_VOLUMES = 4
"""Volumes of a series that the noise is learnt from."""
LEAST_LEVEL = 1e-3
"""HU; keeps a constant image from dividing by zero."""


@dataclass(frozen=True)
class Asked:
    """What the user said about the noise."""

    law: str = "auto"
    sigma: float | None = None
    """Image units; None means estimate it."""
    n_coils: float | None = None
    """L of the law `chi`; None means estimate it."""
    sigma_map: Tensor | None = None
    """(*spatial) image units, instead of one number."""


def asked(law: str, sigma: str | float, n_coils: float | None = None) -> Asked:
    """Check the words of `--noise`, `--sigma` and `--coils`.

    Raises:
        UsageError: Not a positive number, a law that has no sigma or no coils, no such law.
    """
    if law != "auto":
        law_named(law)
    if n_coils is not None and law != "chi":
        raise UsageError(f"--coils goes with --noise chi, not {law}", "say --noise chi")
    if n_coils is not None and not MOST_COILS >= n_coils >= 1:
        raise UsageError(f"--coils is {n_coils:g}", f"give 1 to {MOST_COILS}")
    if sigma == "auto":
        return Asked(law, n_coils=n_coils)
    try:
        value = float(sigma)
    except ValueError as error:
        raise UsageError(
            f"--sigma is {sigma!r}", "give auto, a number in image units, or a NIfTI map"
        ) from error
    if not (np.isfinite(value) and value > 0):
        raise UsageError(f"--sigma is {value:g}", "give auto or a number above 0, in image units")
    _has_sigma(law)
    return Asked(law, value, n_coils)


def with_map(words: Asked, sigma_map: NDArray[np.float32]) -> Asked:
    """The same with the noise at each voxel.

    Args:
        words: What else was said.
        sigma_map: (*spatial) standard deviation on the grid of the image, image units.

    Raises:
        UsageError: Values that are not positive numbers, or a law that has no sigma.
    """
    _has_sigma(words.law)
    worst = float(np.min(np.where(np.isfinite(sigma_map), sigma_map, -np.inf)))
    if not worst > 0:
        raise UsageError(
            "the map of --sigma has values that are not above 0", "fill it with a positive sigma"
        )
    return replace(words, sigma_map=torch.from_numpy(np.ascontiguousarray(sigma_map)))


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
    given = words.sigma is not None or words.sigma_map is not None
    if image.channels == "time" and image.data.shape[0] >= LONG_SERIES and not given:
        shared = _series(image, words)
        if shared is not None:
            return shared
    channels = range(0, image.data.shape[0], max(1, image.data.shape[0] // SERIES_VOLUMES))
    found = [_one(image, channel, words) for channel in channels]
    middle = sorted(found, key=lambda e: e.sigma)[len(found) // 2]
    if words.sigma_map is not None:
        level = float(words.sigma_map.square().mean().sqrt())
    elif words.sigma is not None:
        level = words.sigma
    else:
        return middle
    return replace(
        middle,
        law=_at(middle.law, level),
        sigma=level,
        sigma_error=0.0,
        sigma_map=words.sigma_map,
        why=f"{middle.why}; sigma as given",
    )


def _at(law: Law, sigma: float) -> Law:
    """A law at a given sigma; for counts and speckle, which have none, additive noise instead."""
    if isinstance(law, Gaussian | Rician | NonCentralChi):
        return replace(law, sigma=sigma)
    return Gaussian(sigma)


def _has_sigma(law: str) -> None:
    if law in ("poisson", "gamma"):
        raise UsageError(f"--noise {law} has no sigma", "leave --sigma out, its level is estimated")


def _one(image: Image, channel: int, words: Asked) -> NoiseEstimate:
    """The noise of one volume by low-texture cells."""
    whole = tuple(slice(0, n) for n in image.shape)
    valid = None
    if image.valid is not None:
        valid = torch.from_numpy(np.ascontiguousarray(image.valid[channel]))
    block, step = block_for(image.shape, image.spacing, correlated=False)

    def smooth(z: Tensor) -> Tensor:
        return sliding_dct(z, block=block, step=step, hard=HARD)

    return estimate_level(
        read_tile(image, channel, whole),
        image.spacing,
        law=words.law,
        valid=valid,
        smooth=smooth,
        modality=image.modality,
        n_coils=words.n_coils,
    )


def _series(image: Image, words: Asked) -> NoiseEstimate | None:
    """The noise of many volumes by what they do not share; None where they share everything."""
    first = _one(image, image.data.shape[0] // 2, words)
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
    model = _with_local_spectra(model, image)
    level = words.sigma
    if words.sigma_map is not None:
        level = float(words.sigma_map.square().mean().sqrt())
    if level is not None:
        model = replace(model, level=level)
    warnings = [] if model.confident else ["too little flat tissue to be sure of the noise"]
    return NoiseEstimate(
        law=Gaussian(max(model.level, 1e-6)),
        confidence=1.0 if model.confident else "unsure",
        why="CT in HU: spectrum and local strength from the flattest tissue",
        sigma=model.level,
        sigma_error=0.1 if level is None else 0.0,
        sigma_map=words.sigma_map,
        correlation=(),
        spectrum=model,
        warnings=tuple(warnings),
    )


def _with_local_spectra(model: NoiseModel, image: Image) -> NoiseModel:
    """The model with what varies over slices spread over the scan, where there is noise at all."""
    if model.level <= LEAST_LEVEL or min(image.shape[:2]) < WINDOW:
        return model
    plane = tuple(slice(0, n) for n in image.shape[:2])
    depth = image.shape[2] if len(image.shape) == 3 else 1
    slices = local_slices(depth, image.spacing[2] if len(image.shape) == 3 else 1.0)
    shape = model.dct_sigma((WINDOW, WINDOW))
    powers, bodies = [], []
    for z in slices:
        y = read_tile(image, 0, plane if depth == 1 else (*plane, slice(z, z + 1)))
        y = y.reshape(y.shape[:2])
        sigma = model.local_sigma((0, 0, z), (*y.shape, z + 1))[..., 0]
        powers.append(local_powers(y, sigma, shape))
        bodies.append(body_cells(y))
    return model.with_local_powers(torch.stack(powers, -1), torch.stack(bodies, -1), slices)


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
