r"""How strong the noise of a scan is, and by which law: from the scan alone.

The finest diagonal Haar detail h (along all axes at once) sees noise and hardly any anatomy. In the
stabilised domain its standard deviation must be 1, which fixes the level s by iteration,

.. math:: s \leftarrow s \cdot \frac{\mathrm{median} |h|}{0.6745} .

What anatomy it does see biases s upwards. So the scan is denoised with that level, the quarter of
the cells with the least gradient is kept, and the level is found again there, until it settles.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from medssl.core.errors import InputError
from medssl.core.random import stream
from medssl.physics.noise import Gamma, Gaussian, Law, NonCentralChi, Poisson, Rician, law_named
from medssl.physics.noise_psd import NoiseModel
from medssl.physics.stabilise import Stabiliser

MAD = 0.674490
"""Median of |n| of a standard normal n."""
MAD_ERROR = 1.1664
"""Relative standard error of the median estimate, times the root of the number of cells."""
VOXELS = 500_000
"""Voxels looked at in a large scan, in blocks spread evenly."""
SIDE = {2: 192, 3: 32}
"""Side of such a block by the number of axes, voxels."""
THICK = 2.5
"""Ratio of spacings from which the thick axis takes no part."""
SIGNAL = 2.0
"""Signal, in standard deviations, above which a magnitude cell is tissue and not air."""
CALM = 0.25
"""Share of the cells, those with the least gradient, on which noise is measured."""
FEW = 50
"""Cells below which there is no answer."""
ROUNDS = 10
"""Rounds for the first level."""
REFINEMENTS = 4
"""Most rounds on calm cells."""
SETTLED = 0.01
"""Relative change of the level at which the rounds end."""
BLUR = (0.0089, 0.2206, 0.5410, 0.2206, 0.0089)
"""Gaussian of standard deviation 0.7 voxel."""
LEAST_STEPS = 0.2
"""Noise, in stored steps, below which rounding hides it."""
COMMON = 0.02
"""Share of one value from which it is padding or saturation and not measured."""
CORRELATION_ERROR = 2 * math.sqrt(2)
"""Standard error of a correlation over that of the level: two variances."""
CORRELATED = 0.1
"""Lag-1 correlation from which noise is called correlated."""

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
    n_coils: float = 1.0,
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
        n_coils: L of the law `chi`.

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
    chosen, confidence, why = _choose(law, values, image.ndim, modality, n_coils)
    for value in _not_measured(values):
        usable &= image != value
        values = values[values != value]
    step = _lattice(values) if not isinstance(chosen, Poisson | Gamma) else 0.0
    axes = _haar_axes(tuple(image.shape), spacing)
    blocks = [
        _Block.of(image[part], usable[part], axes, step, k)
        for k, part in enumerate(_places(image, usable, signed=bool((values < 0).any())))
    ]
    level = _first_level(chosen.start(values), blocks) if axes and len(values) else None
    if level is not None and smooth is not None:
        level = _refined(level, blocks, smooth)
    return _report(chosen, level, step, values, confidence, why, image.ndim)


@dataclass(frozen=True)
class _Level:
    """A law whose level was found on so many cells."""

    law: Law
    n_cells: int
    correlation: tuple[float, ...] | None = None
    settled: bool = True


@dataclass(frozen=True)
class _Block:
    """A part of the scan, and which of its Haar cells consist of measured voxels."""

    image: Tensor
    cells: Tensor
    axes: tuple[int, ...]

    @classmethod
    def of(
        cls, image: Tensor, usable: Tensor, axes: tuple[int, ...], step: float, number: int
    ) -> "_Block":
        """Stored integers are dithered by one step, so that medians are not counted in steps."""
        y = image.float().masked_fill(~usable, 0)
        if step > 0:
            chance = torch.rand(y.shape, generator=stream(0, f"dither/{number}")).to(y)
            y = torch.where(usable, y + step * (chance - 0.5), y)
        return cls(y, _pooled(usable.float(), axes) > 1 - 1e-6, axes)

    def detail(self, z: Tensor) -> Tensor:
        """Finest diagonal Haar detail along all axes of the cells, of the variance of z."""
        return _differences(z, self.axes)

    def wide_detail(self, z: Tensor, along: int) -> Tensor:
        """The same with neighbours but one along one axis; NaN where these are not measured.

        Its variance exceeds that of `detail` by 1 / (1 - rho), rho the correlation of neighbours
        along that axis if the correlation ends there.
        """
        z = _differences(z, tuple(axis for axis in self.axes if axis != along))
        first, _ = _halves(z, along)
        detail = (first - first.roll(-1, along)) / math.sqrt(2)
        measured = self.cells.roll(-1, along)
        measured.narrow(along, measured.shape[along] - 1, 1).fill_(False)
        return detail.where(measured, torch.nan)


def _first_level(law: Law, blocks: list[_Block]) -> _Level | None:
    """The level at which the finest detail has unit variance; None where it vanishes."""
    n_cells = sum(int(block.cells.sum()) for block in blocks)
    if n_cells < FEW:
        return None
    spread = 1.0
    for _ in range(ROUNDS):
        forward = Stabiliser(law).forward
        details = [block.detail(forward(block.image))[block.cells] for block in blocks]
        factor = _spread(torch.cat(details))
        spread *= factor
        if spread < 1e-6:
            return None
        law = law.rescaled(factor)
        if abs(factor - 1) < SETTLED / 10:
            break
    return _Level(law, n_cells)


def _refined(level: _Level, blocks: list[_Block], smooth: Smooth) -> _Level:
    """The level on calm cells of the denoised scan."""
    for _ in range(REFINEMENTS):
        stabiliser = Stabiliser(level.law)
        details, gradients, wider = [], [], []
        for block in blocks:
            z = stabiliser.forward(block.image)
            restored = smooth(z)
            tissue = block.cells & _tissue(level.law, stabiliser, _pooled(restored, block.axes))
            details.append(block.detail(z)[tissue])
            gradients.append(_pooled(_gradient(restored, block.axes), block.axes)[tissue])
            wider.append(torch.stack([block.wide_detail(z, axis)[tissue] for axis in block.axes]))
        gradient = torch.cat(gradients)
        if len(gradient) < FEW / CALM:
            return replace(level, settled=False)
        calm = gradient <= gradient.kthvalue(max(1, int(CALM * len(gradient)))).values
        factor = _spread(torch.cat(details)[calm])
        if not factor > 1e-3:
            return replace(level, settled=False)
        correlation = [0.0] * blocks[0].image.ndim
        for axis, wide in zip(blocks[0].axes, torch.cat(wider, dim=1)[:, calm], strict=True):
            correlation[axis] = 1 - (factor / _spread(wide[wide.isfinite()])) ** 2
        level = _Level(level.law.rescaled(factor), int(calm.sum()), tuple(correlation))
        if abs(factor - 1) < SETTLED:
            break
    return level


def _tissue(law: Law, stabiliser: Stabiliser, restored: Tensor) -> Tensor:
    """Cells of a magnitude above its noise floor; everything for other laws."""
    if isinstance(law, Rician | NonCentralChi):
        return stabiliser.inverse(restored) > SIGNAL * law.sigma
    return torch.ones_like(restored, dtype=torch.bool)


def _report(
    chosen: Law,
    level: _Level | None,
    step: float,
    values: Tensor,
    confidence: float | Literal["unsure"],
    why: str,
    n_axes: int,
) -> NoiseEstimate:
    """The estimate in image units, with what the user should know."""
    nothing = (0.0,) * n_axes
    law = chosen if level is None else level.law
    if isinstance(law, Gaussian | Rician | NonCentralChi):
        variance = 0.0 if level is None else law.sigma**2 - step**2 / 12
        sigma = math.sqrt(max(variance, 0.0))
        if sigma < LEAST_STEPS * step:
            sigma = 0.0
        law = replace(law, sigma=sigma)
    elif level is None:
        sigma = 0.0
    else:
        sigma = float(law.variance(values.double().mean())) ** 0.5
    if level is None or sigma == 0:
        missing = "no noise was found: the image is constant, noise-free or already denoised"
        return NoiseEstimate(law, "unsure", why, 0.0, math.inf, nothing, warnings=(missing,))
    warnings = []
    if sigma < step:
        warnings.append(f"noise ({sigma:.3g}) is below one stored step ({step:.3g})")
    if not level.settled:
        warnings.append("too few calm cells: texture may be counted as noise")
    correlation = level.correlation or nothing
    error = MAD_ERROR / math.sqrt(level.n_cells)
    if max(correlation) > max(CORRELATED, 3 * CORRELATION_ERROR * error):
        lags = ", ".join(f"{rho:.2f}" for rho in correlation)
        warnings.append(
            f"noise is correlated (lag 1: {lags}): it is stronger than measured, and filters for "
            "white noise leave some of it"
        )
    return NoiseEstimate(law, confidence, why, sigma, error, correlation, warnings=tuple(warnings))


def _choose(
    word: str, values: Tensor, n_axes: int, modality: str, n_coils: float
) -> tuple[Law, float | Literal["unsure"], str]:
    """Law of unit level, confidence and reason."""
    if word != "auto":
        return law_named(word, n_coils=n_coils), 1.0, "it was given"
    if modality == "CT":
        return Gaussian(1.0), 0.9, "CT is reconstructed linearly"
    if bool((values < 0).any()):
        return Gaussian(1.0), 0.8, "negative values: not a magnitude"
    if modality == "PICTURE":
        return Gaussian(1.0), 0.6, "pictures are taken to have additive noise"
    if modality == "MR":
        return Rician(1.0), 0.8, "MR without negative values: a magnitude"
    if n_axes == 2:
        return Gaussian(1.0), 0.5, "one image of unknown modality"
    return Rician(1.0), 0.6, "a volume without negative values: taken for a magnitude"


def _thinned(image: Tensor) -> Tensor:
    """Every k-th voxel along each axis, about half of `VOXELS` at most."""
    k = math.ceil((2 * image.numel() / VOXELS) ** (1 / image.ndim))
    return image[(slice(None, None, k),) * image.ndim]


def _not_measured(values: Tensor) -> list[float]:
    """Zero in magnitudes, and a common smallest, largest or zero value anywhere."""
    if not len(values):
        return []
    low, high = float(values.min()), float(values.max())
    share = {v: float((values == v).float().mean()) for v in (low, high, 0.0)}
    found = [v for v, part in share.items() if part > COMMON]
    return found if low < 0 or 0.0 in found else [*found, 0.0]


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


def _spread(details: Tensor) -> float:
    """Standard deviation by the median of absolute values."""
    return float(details.abs().median()) / MAD


def _halves(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """First and second voxel of each pair along an axis; an odd last one is left out."""
    pairs = x.narrow(axis, 0, x.shape[axis] // 2 * 2).unflatten(axis, (-1, 2))
    return pairs.select(axis + 1, 0), pairs.select(axis + 1, 1)


def _differences(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Differences of pairs along each axis in turn, of the variance of x."""
    for axis in axes:
        first, second = _halves(x, axis)
        x = (first - second) / math.sqrt(2)
    return x


def _pooled(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Mean over cells."""
    for axis in axes:
        first, second = _halves(x, axis)
        x = (first + second) / 2
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
