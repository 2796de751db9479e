r"""How strong the noise of a scan is, and by which law: from the scan alone.

The finest diagonal Haar detail (along all axes at once) sees noise and hardly any anatomy. Its
spread over the signal, measured where the denoised scan is flat, says which law the noise follows
and how strong it is (`medssl.physics.noise_law`).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medssl.core.errors import InputError
from medssl.core.random import stream
from medssl.physics.noise import Gaussian, Law, LawName, NonCentralChi, Poisson, Rician, law_named
from medssl.physics.noise_law import (
    MAD_ERROR,
    SURE,
    Profile,
    Verdict,
    fitted,
    judged,
    profile,
)
from medssl.physics.noise_map import GRID, Slab, relative_map, varies
from medssl.physics.noise_psd import NoiseModel
from medssl.physics.stabilise import Stabiliser

VOXELS = 500_000
"""Voxels looked at in a large scan, in blocks spread evenly."""
SIDE = {2: 192, 3: 32}
"""Side of such a block by the number of axes, voxels."""
THICK = 2.5
"""Ratio of spacings from which the thick axis takes no part."""
CALM = 0.25
"""Share of the cells, those with the least gradient, on which correlation is measured."""
FEW = 50
"""Cells below which there is no answer."""
CALM_SLOPE = 0.1
"""Squared gradient of the denoised scan, in noise variances, below which a cell is calm."""
BLURRED_SLOPE = 0.3
"""The same for the blurred scan, which keeps some noise."""
ADDITIVE = ("gaussian", "rician", "chi")
"""Laws whose strength may vary over the scan."""
VAGUE = 0.1
"""Relative error of the level from which texture may be counted as noise."""
BLUR = (0.0089, 0.2206, 0.5410, 0.2206, 0.0089)
"""Gaussian of standard deviation 0.7 voxel."""
SLAB = 2_000_000
"""Voxels of a large scan that are looked at together for a map of its noise."""
SLAB_HALO = 8
"""Voxels by which the blur and the gradient reach beyond."""
WIDE = (0.0625, 0.25, 0.375, 0.25, 0.0625)
"""Gaussian of standard deviation 1 voxel, applied twice."""
LEAST_STEPS = 0.2
"""Noise, in stored steps, below which rounding hides it."""
COMMON = 0.02
"""Share of one value from which it is padding or saturation and not measured."""
CORRELATED = 0.1
"""Lag-1 correlation from which noise is called correlated."""
CLUMPED = 0.75
"""Share of neighbours with the same value from which that value is padding."""

Smooth = Callable[[Tensor], Tensor]
"""(*spatial) image of noise variance 1 to the same, denoised."""


@dataclass(frozen=True)
class NoiseEstimate:
    """What is known of the noise of one scan."""

    law: Law
    """The law at the level found; the level is 0 where no noise was found."""
    confidence: float | Literal["unsure"]
    """How sure the law is, 0 to 1."""
    why: str
    """One clause: what the law was chosen by."""
    sigma: float
    """Standard deviation of the noise, image units; at the mean signal if it varies with signal."""
    sigma_error: float
    """Relative standard error of sigma by the number of cells; texture may add to it."""
    correlation: tuple[float, ...]
    """Correlation of the noise of neighbours along each axis; 0 where not measured."""
    sigma_map: Tensor | None = None
    """(*spatial) local standard deviation; None where one number holds."""
    spectrum: NoiseModel | None = None
    """Power spectrum of correlated noise; not estimated for magnitudes."""
    warnings: tuple[str, ...] = ()
    """What the user should know, one sentence each."""


def estimate(
    image: Tensor,
    spacing: Sequence[float],
    *,
    law: str = "auto",
    valid: Tensor | None = None,
    smooth: Smooth | None = None,
    modality: str = "",
    n_coils: float | None = None,
) -> NoiseEstimate:
    """Law and level of the noise of one picture or volume.

    Voxels that are not finite, exact zeros, padding and saturated values take no part.

    Args:
        image: (*spatial) two or three axes, image units.
        spacing: Distances of voxels along each axis, mm.
        law: A word of `LawName`, or `auto`.
        valid: (*spatial) bool, what may be looked at; None means everywhere.
        smooth: A fast filter for images of unit noise; without it texture is not excluded.
        modality: DICOM's word, or `PICTURE`.
        n_coils: L of the law `chi`; None fits it.

    Returns:
        The estimate; sigma is 0 with a warning where no noise is found.

    Raises:
        InputError: The image has not two or three axes.
    """
    if image.ndim not in (2, 3) or len(spacing) != image.ndim:
        raise InputError(
            f"noise is estimated on 2 or 3 axes; image {tuple(image.shape)}, spacing {spacing}"
        )
    image = image.detach()
    usable = image.isfinite() if valid is None else image.isfinite() & valid
    values = _thinned(image)[_thinned(usable)].float()
    padding, clipped = _not_measured(image, usable, values)
    for value in (*padding, *clipped):
        usable &= image != value
        values = values[values != value]
    step = _lattice(values)
    axes = _haar_axes(tuple(image.shape), spacing)
    middle = float(values.median()) if len(values) else 0.0
    places = _places(image, usable, signed=bool((values < 0).any()))
    blocks = [
        _Block.of(image[part], usable[part], axes, step, k, middle) for k, part in enumerate(places)
    ]
    seen, restored = _seen(blocks, smooth, step) if axes and len(values) else (None, [])
    seen = None if seen is None else seen.away_from(clipped, step)
    if seen is None:
        missing = "no noise was found: the image is constant, noise-free or already denoised"
        chosen = _silent(law, modality, n_coils)
        why = "there is nothing to choose by" if law == "auto" else "it was given"
        nothing = (0.0,) * image.ndim
        return NoiseEstimate(chosen, "unsure", why, 0.0, math.inf, nothing, warnings=(missing,))
    verdict, confidence, why, doubts = _choose(law, seen, values, step, modality, n_coils)
    strength = None
    if smooth is not None and modality not in ("CT", "PICTURE"):
        additive = fitted(seen, "gaussian" if values.min() < 0 else "rician").law
        if isinstance(verdict.law, Gaussian | Rician | NonCentralChi):
            additive = verdict.law
        strength = _local_strength(image, usable, additive, blocks, restored, middle)
    if strength is not None:
        # Noise that varies over the scan looks like noise that varies with the signal.
        flat = [
            replace(block, image=block.image / strength[part])
            for block, part in zip(blocks, places, strict=True)
        ]
        even, clean = _seen(flat, smooth, step)
        again = None if even is None else _choose(law, even, values, step, modality, n_coils)
        explained = again is not None and again[0].chi2 < max(verdict.chi2, len(seen.mean))
        if even is None or again is None or not explained or again[0].law.name not in ADDITIVE:
            strength = None
        else:
            (verdict, confidence, why, doubts), seen = again, even
            blocks, restored = flat, clean
    correlation, error = _correlation(blocks, restored)
    found = _report(verdict.law, seen, step, values, confidence, why, doubts, correlation, error)
    if strength is None or found.sigma == 0:
        return found
    return replace(found, sigma_map=strength * found.sigma)


@dataclass(frozen=True)
class _Block:
    """A part of the scan, and which of its cells of 2 x 2 (x 2) voxels were measured."""

    image: Tensor
    usable: Tensor
    axes: tuple[int, ...]

    @classmethod
    def of(
        cls,
        image: Tensor,
        usable: Tensor,
        axes: tuple[int, ...],
        step: float,
        number: int,
        middle: float,
    ) -> "_Block":
        """Stored integers are dithered by one step, so that medians are not counted in steps."""
        y = image.float().nan_to_num(middle, middle, middle)
        if step > 0:
            chance = torch.rand(y.shape, generator=stream(0, f"dither/{number}")).to(y)
            y = torch.where(usable, y + step * (chance - 0.5), y)
        return cls(y, usable, axes)

    @property
    def cells(self) -> Tensor:
        """Whether all voxels of a cell were measured; cells overlap."""
        return _means(self.usable.float(), self.axes) > 1 - 1e-6


def _seen(
    blocks: list[_Block], smooth: Smooth | None, step: float
) -> tuple[Profile | None, list[Tensor]]:
    """The strength of the noise over the signal, and the denoised blocks.

    A blur gives a first answer; with it the noise is made even, whatever its law, for the filter.
    """
    restored = [_blurred(block.image, block.axes) for block in blocks]
    seen = _profile(blocks, restored, step)
    if seen is None or smooth is None:
        return seen, restored
    forward, back = _even(seen, blocks)
    restored = [back(smooth(forward(block.image))) for block in blocks]
    return _profile(blocks, restored, step), restored


def _profile(blocks: list[_Block], restored: list[Tensor], step: float) -> Profile | None:
    """Cells of all blocks, sorted by the denoised scan."""
    details, means, gradients = [], [], []
    for block, clean in zip(blocks, restored, strict=True):
        keep, axes = block.cells, block.axes
        details.append(_differences(block.image, axes)[keep])
        means.append(torch.stack([_means(clean, axes)[keep], _means(block.image, axes)[keep]], 1))
        gradients.append(_means(_gradient(clean, axes).square(), axes)[keep])
    detail = torch.cat(details).double().cpu().numpy()
    if len(detail) < FEW:
        return None
    mean, gradient = (torch.cat(x).double().cpu().numpy() for x in (means, gradients))
    share = (2 / 3) ** len(blocks[0].axes)  # what overlapping differences add to disjoint ones
    return profile(detail, mean, gradient, share, step**2 / 12)


def _even(seen: Profile, blocks: list[_Block]) -> tuple[Smooth, Smooth]:
    """Values to values with noise of variance 1 by the profile alone, and back."""
    image = torch.cat([block.image[block.usable] for block in blocks]).double().cpu().numpy()
    lowest, highest = min(image.min(), 0.0), max(image.max(), 0.0)
    nodes = np.r_[np.linspace(lowest, highest, 2001), np.quantile(image, np.linspace(0, 1, 2001))]
    nodes = np.unique(nodes)
    spread = np.exp(np.interp(nodes, *seen.curve()))
    slope = 1 / np.maximum(spread, 1e-3 * spread.max())
    even = np.r_[0.0, np.cumsum((slope[1:] + slope[:-1]) / 2 * np.diff(nodes))]

    def along(x: Tensor, given: NDArray[np.float64], wanted: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(np.interp(x.cpu().numpy(), given, wanted)).to(x)

    return lambda y: along(y, nodes, even), lambda z: along(z, even, nodes)


def _correlation(blocks: list[_Block], restored: list[Tensor]) -> tuple[tuple[float, ...], float]:
    """Correlation of neighbours along each axis on the calmest cells, and its standard error.

    The detail between next but one voxels along an axis exceeds that between neighbours by
    1 / (1 - rho) in variance, if the correlation ends there.
    """
    axes = blocks[0].axes
    calm = [
        _means(_gradient(clean, axes).square(), axes).masked_fill(~block.cells, torch.inf)
        for block, clean in zip(blocks, restored, strict=True)
    ]
    gradient = torch.cat([g[g.isfinite()] for g in calm])
    limit = gradient.kthvalue(max(1, int(CALM * len(gradient)))).values
    found = [0.0] * blocks[0].image.ndim
    n_least = len(gradient)
    for axis in axes:
        near, wide = [], []
        for block, slope in zip(blocks, calm, strict=True):
            flat_cells = slope <= limit
            flat = _differences(block.image, tuple(a for a in axes if a != axis))
            n = flat.shape[axis]
            both = flat_cells.narrow(axis, 0, n - 2) & flat_cells.narrow(axis, 1, n - 2)
            near.append((flat.narrow(axis, 0, n - 2) - flat.narrow(axis, 1, n - 2))[both])
            wide.append((flat.narrow(axis, 0, n - 2) - flat.narrow(axis, 2, n - 2))[both])
        close, apart = torch.cat(near).abs(), torch.cat(wide).abs()
        if len(close) < FEW:
            continue
        n_least = min(n_least, len(close))
        found[axis] = 1 - float(close.median() / apart.median().clamp_min(1e-30)) ** 2
    share = (2 / 3) ** len(axes)
    return tuple(found), 2 * math.sqrt(2) * MAD_ERROR / math.sqrt(share * n_least)


def _local_strength(
    image: Tensor,
    usable: Tensor,
    law: Law,
    blocks: list[_Block],
    restored: list[Tensor],
    middle: float,
) -> Tensor | None:
    """(*spatial) strength of the noise relative to its level; None where it is the same.

    A large scan is looked at with a blur, and only if the noise of its sampled blocks varies.
    """
    stabiliser, axes = Stabiliser(law), blocks[0].axes
    share = (2 / 3) ** len(axes)

    def seen(block: _Block, clean: Tensor, most: float) -> Slab:
        slope = _means(_gradient(stabiliser.forward(clean), axes).square(), axes)
        detail = _differences(stabiliser.forward(block.image), axes)
        return detail, block.cells & (slope < most)

    if len(blocks) == 1 and blocks[0].image.shape == image.shape:
        return relative_map([seen(blocks[0], restored[0], CALM_SLOPE)], tuple(image.shape), share)
    pairs = zip(blocks, restored, strict=True)
    if not varies((seen(block, clean, CALM_SLOPE) for block, clean in pairs), share):
        return None

    def slabs() -> Iterator[Slab]:
        n, plane = image.shape[0], math.prod(image.shape[1:])
        rows = max(SLAB // plane // GRID, 1) * GRID
        for first in range(0, n, rows):
            start = max(first - SLAB_HALO, 0)
            part = slice(start, min(first + rows + SLAB_HALO, n))
            y = image[part].float().nan_to_num(middle, middle, middle)
            block = _Block(y, usable[part], axes)
            detail, calm = seen(block, _blurred(y, axes), BLURRED_SLOPE)
            core = slice(first - start, first - start + rows)
            if len(detail[core]):
                yield detail[core], calm[core]

    return relative_map(slabs(), tuple(image.shape), share)


def _silent(word: str, modality: str, n_coils: float | None) -> Law:
    """The law named for a scan without noise."""
    if word != "auto":
        return law_named(word, n_coils=n_coils or 1.0)
    return Gaussian(1.0) if modality in ("CT", "PICTURE") else Rician(1.0)


def _choose(
    word: str,
    seen: Profile,
    values: Tensor,
    step: float,
    modality: str,
    n_coils: float | None,
) -> tuple[Verdict, float | Literal["unsure"], str, list[str]]:
    """Law at its level, confidence, reason, and what is doubtful about it."""
    if word != "auto":
        return fitted(seen, _law_name(word), n_coils), 1.0, "it was given", []
    if modality == "CT":
        return fitted(seen, "gaussian"), 0.9, "CT is reconstructed linearly", []
    negatives = float((values < 0).float().mean())
    verdict = judged(seen, modality, negatives, step)
    name = verdict.law.name
    if verdict.odds >= SURE:
        why = {
            "gaussian": "its strength does not vary with the signal",
            "rician": "it weakens in the dark as that of a magnitude",
            "chi": "it weakens in the dark as that of a magnitude of several coils",
            "poisson": "its variance grows with the signal",
            "gamma": "its strength grows with the signal",
        }[name]
        if name == "gaussian" and negatives > 0:
            why = "negative values: not a magnitude"
        return verdict, min(1 - 1 / (1 + verdict.odds), 0.99), why, []
    plausible = (name, *verdict.rivals)
    wanted: LawName = "gaussian" if modality == "PICTURE" or values.min() < 0 else "rician"
    if wanted in plausible:
        verdict = fitted(seen, wanted)
    others = " or ".join(other for other in plausible if other != verdict.law.name)
    doubt = f"the noise law is unsure: {verdict.law.name} is used, {others} fits as well"
    return verdict, "unsure", "several laws fit alike", [doubt]


def _law_name(word: str) -> LawName:
    return law_named(word).name


def _report(
    law: Law,
    seen: Profile,
    step: float,
    values: Tensor,
    confidence: float | Literal["unsure"],
    why: str,
    doubts: list[str],
    correlation: tuple[float, ...],
    correlation_error: float,
) -> NoiseEstimate:
    """The estimate in image units, with what the user should know."""
    nothing = (0.0,) * len(correlation)
    if isinstance(law, Gaussian | Rician | NonCentralChi):
        sigma = law.sigma if law.sigma >= LEAST_STEPS * step else 0.0
        law = replace(law, sigma=sigma)
    else:
        sigma = float(law.variance(values.double().mean())) ** 0.5
    if sigma <= 1e-6 * float(values.max() - values.min()):
        missing = "no noise was found: the image is constant, noise-free or already denoised"
        return NoiseEstimate(law, "unsure", why, 0.0, math.inf, nothing, warnings=(missing,))
    warnings = list(doubts)
    if sigma < step and not isinstance(law, Poisson):
        warnings.append(f"noise ({sigma:.3g}) is below one stored step ({step:.3g})")
    if seen.level_error > VAGUE:
        warnings.append("too few calm cells: texture may be counted as noise")
    if max(correlation) > max(CORRELATED, 3 * correlation_error):
        lags = ", ".join(f"{rho:.2f}" for rho in correlation)
        warnings.append(
            f"noise is correlated (lag 1: {lags}): it is stronger than measured, and filters for "
            "white noise leave some of it"
        )
    return NoiseEstimate(
        law, confidence, why, sigma, seen.level_error, correlation, warnings=tuple(warnings)
    )


def _thinned(image: Tensor) -> Tensor:
    """Every k-th voxel along each axis, about half of `VOXELS` at most."""
    k = math.ceil((2 * image.numel() / VOXELS) ** (1 / image.ndim))
    return image[(slice(None, None, k),) * image.ndim]


def _not_measured(image: Tensor, usable: Tensor, values: Tensor) -> tuple[list[float], list[float]]:
    """Values of padding, whose neighbours are alike, and at which a common extreme was clipped.

    Zeros of counts or of coarsely stored magnitudes are alone or few, and are measurements.
    """
    if not len(values):
        return [], []
    low, high = float(values.min()), float(values.max())
    padding, clipped = [], []
    for value in {low, high, 0.0}:
        if float((values == value).float().mean()) <= COMMON:
            continue
        same = (image == value) & usable
        together = [
            float((same.narrow(axis, 1, n - 1) & same.narrow(axis, 0, n - 1)).sum())
            / max(float(same.narrow(axis, 0, n - 1).sum()), 1.0)
            for axis, n in enumerate(image.shape)
            if n > 1
        ]
        if together and sum(together) / len(together) > CLUMPED:
            padding.append(value)
        elif value != 0 or low < 0:
            clipped.append(value)
    return padding, clipped


def _lattice(values: Tensor) -> float:
    """Distance of stored values when all lie on one lattice, else 0."""
    levels = values.double().unique()
    if len(levels) < 2 or len(levels) > len(values) / 4:
        return 0.0
    step = float(levels.diff().min())
    position = (levels - levels[0]) / step
    on = (position - position.round()).abs() < 1e-3 + 1e-6 * position
    return step if bool(on.all()) else 0.0


def _haar_axes(shape: tuple[int, ...], spacing: Sequence[float]) -> tuple[int, ...]:
    """Axes along which neighbours are close enough to be compared."""
    near = min(spacing)
    short = 4 if len(shape) == 3 else 2
    return tuple(
        axis
        for axis, (n, distance) in enumerate(zip(shape, spacing, strict=True))
        if n >= short and distance <= THICK * near
    )


def _places(image: Tensor, usable: Tensor, *, signed: bool) -> list[tuple[slice, ...]]:
    """The whole of a small scan, or blocks spread evenly over what is not air."""
    if image.numel() <= 1.3 * VOXELS:
        return [tuple(slice(None) for _ in image.shape)]
    side = SIDE[image.ndim]
    corners = [range(0, max(n - side, 0) + 1, side) for n in image.shape]
    every = [
        tuple(slice(int(c), int(c) + side) for c in corner)
        for corner in torch.cartesian_prod(*[torch.tensor(list(c)) for c in corners])
    ]
    coarse = (slice(None, None, 4),) * image.ndim
    share = torch.stack([usable[part][coarse].float().mean() for part in every])
    sums = [torch.where(usable[part][coarse], image[part][coarse], 0) for part in every]
    mean = torch.stack([x.float().mean() for x in sums]) / share.clamp_min(1e-6)
    good = share > 0.5
    if not signed:
        good &= mean > 0.5 * (mean * share).sum() / share.sum().clamp_min(1e-6)
    chosen = good.nonzero().flatten()
    if not len(chosen):
        chosen = share.argsort(descending=True)
    count = max(1, VOXELS // image[every[0]].numel())
    picks = torch.linspace(0, len(chosen) - 1, min(count, len(chosen))).round().long()
    return [every[int(k)] for k in chosen[picks]]


def _differences(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Differences of neighbours along each axis in turn, of the variance of x."""
    for axis in axes:
        x = x.diff(dim=axis) / math.sqrt(2)
    return x


def _means(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Means of neighbours along each axis: of cells, which overlap."""
    for axis in axes:
        n = x.shape[axis]
        x = (x.narrow(axis, 0, n - 1) + x.narrow(axis, 1, n - 1)) / 2
    return x


def _blurred(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """A denoised image for want of a better one."""
    for axis in axes:
        x = _filtered(_filtered(x, WIDE, axis), WIDE, axis)
    return x


def _gradient(image: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Sobel gradient magnitude of the slightly blurred image."""
    for axis in axes:
        image = _filtered(image, BLUR, axis)
    total = torch.zeros_like(image)
    for along in axes:
        slope = image
        for axis in axes:
            slope = _filtered(slope, (-0.5, 0, 0.5) if axis == along else (0.25, 0.5, 0.25), axis)
        total += slope.square()
    return total.sqrt()


def _filtered(x: Tensor, kernel: tuple[float, ...], axis: int) -> Tensor:
    """Weighted sum of neighbours along one axis, edges repeated."""
    n, radius = x.shape[axis], len(kernel) // 2
    places = torch.arange(n, device=x.device)
    total = torch.zeros_like(x)
    for k, weight in enumerate(kernel):
        if weight:
            total += weight * x.index_select(axis, (places + k - radius).clamp(0, n - 1))
    return total
