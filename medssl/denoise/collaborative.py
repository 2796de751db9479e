r"""Collaborative filter: overlapping windows vote on every voxel, similar ones together.

Each window of the noisy image is taken to its orthonormal cosine spectrum X, where a scan is sparse
and white noise is not; with grouping, the K most similar windows around each are stacked and a Haar
transform runs across the stack. Coefficients within :math:`\tau` standard deviations s of zero are
dropped; the result serves as the pilot g of an empirical Wiener pass, and that of a second one,

.. math:: \hat x = \frac{\sum_w \omega_w T_w^{-1} a_w X_w}{\sum_w \omega_w 1_w}, \qquad
          a = \frac{g^2}{g^2 + s^2}, \quad a(0) = 1, \quad \omega = 1 \big/ \sum a^2 s^2 .

With the bank, the last pass is combined with its relatives (stacks of smaller windows, a Wiener
pass of sliding windows, guided non-local means near and wide, the noisy image) by the weights of
least estimated error (`medssl.physics.sure.let_weights`).

Departs from the papers: stacks are found on the noisy image first, not on a prefiltered one, which
groups artefacts; without grouping windows slide by one voxel; only the mean is never shrunk; s
follows a noise map and a noise spectrum where given, which for sliding windows may vary over the
image; a second Wiener pass in three dimensions.
Needs: the standard deviation of the noise (or stabilised images), and its spectrum if not white.
Reference: Dabov, Foi, Katkovnik, Egiazarian. Image Denoising by Sparse 3-D Transform-Domain
Collaborative Filtering. IEEE TIP 2007.
Reference: Maggioni, Katkovnik, Egiazarian, Foi. Nonlocal Transform-Domain Filter for Volumetric
Data Denoising and Reconstruction. IEEE TIP 2013.
Reference: Guleryuz. Weighted Overcomplete Denoising. Asilomar 2003 (the sliding form).
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from medssl.core.batch import Noisy, Spectrum
from medssl.core.random import stream
from medssl.method import Facts, Restorer, Trust, thick_axis
from medssl.nets.block_matching import Windows, filtered, match
from medssl.nets.nonlocal_means import nonlocal_means
from medssl.nets.sliding_dct import HARD, sliding_dct
from medssl.physics.sure import EPSILON, let_weights, signs

STACKED_HARD = 2.7
"""tau of stacks."""
FLAT_LIMITS = (4.8, 0.6)
"""Largest mean squared difference of stacked windows of a picture in the first pass and later, in
noise variances: noise alone makes 2. A volume has enough good matches without a limit."""


class Means(NamedTuple):
    """Non-local means of the bank."""

    search: int
    """Reach along each axis that windows have, voxels."""
    patch: int
    """Reach of a patch, voxels."""
    width: float
    """Noise standard deviations."""


MEANS = (Means(2, 1, 0.6), Means(4, 1, 0.5))


@dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters; what is None suits itself to the scan (`block_for`, `stack_for`)."""

    grouping: bool = False
    """Stack similar windows; else windows slide and stand alone."""
    bank: bool = False
    """Combine the last pass with its relatives; needs grouping."""
    block: tuple[int, ...] | None = None
    """Window, voxels per axis."""
    side: int | None = None
    """Side of sliding windows in the plane of the slices, where `block` is None."""
    step: tuple[int, ...] | int | None = None
    """Distance of windows, voxels."""
    search: tuple[int, ...] | None = None
    """Reach of the search for similar windows, voxels per axis."""
    group_size: int = 16
    """K, most windows in a stack."""
    hard: float | None = None
    """tau, the threshold of pass 1 in standard deviations; None takes the default."""

    def suited_to(self, facts: Facts) -> "Config":
        """The same with the windows that suit a scan."""
        spacing = (*facts.spacing[:2], math.inf) if facts.independent_slices else facts.spacing
        return self.settled(facts.shape, spacing, facts.correlated)

    def settled(
        self, shape: tuple[int, ...], spacing: tuple[float, ...], correlated: bool
    ) -> "Config":
        """Nothing left open.

        Args:
            shape: Voxels along two or three axes.
            spacing: Voxel distances along the same axes, mm.
            correlated: Whether the noise has a spectrum.
        """
        search: tuple[int, ...] = (0,) * len(shape)
        if self.grouping:
            block, step, search = stack_for(shape, spacing)
        else:
            block, step = block_for(shape, spacing, correlated, self.side)
        if self.block is not None:
            block, step = self.block, (1,) * len(shape)
        if isinstance(self.step, int):
            step = tuple(min(self.step, b) for b in block)
        return replace(
            self,
            block=block,
            step=self.step if isinstance(self.step, tuple) else step,
            search=self.search or search,
            hard=self.hard or (STACKED_HARD if self.grouping else HARD),
        )

    def build(self) -> "Collaborative":
        """The filter; it has nothing to learn."""
        return Collaborative(self)


class Collaborative(Restorer):
    """Hard threshold and then Wiener, in sliding windows or in stacks of similar ones."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.weights: Tensor | None = None

    def restore(self, batch: Noisy) -> Tensor:
        """Clean images (B, C, *spatial); each channel is filtered by itself."""
        y, sigma = batch.image, batch.sigma
        if sigma is not None and sigma.numel() > 1:
            sigma = sigma.expand(y.shape)
        restored = torch.empty_like(y)
        for b in range(y.shape[0]):
            for c in range(y.shape[1]):
                local = sigma if sigma is None or sigma.numel() == 1 else sigma[b, c]
                restored[b, c] = self._one(y[b, c], local, batch.spectrum)
        return restored

    def settle(self, batches: Sequence[Noisy], trust: Trust) -> None:
        """Fix the weights of the bank on parts of a scan, so that all its tiles share them."""
        if not self.config.bank or any(batch.spectrum is not None for batch in batches):
            return
        found, sizes = [], []
        for batch in batches:
            z = batch.image[0, 0] if batch.sigma is None else (batch.image / batch.sigma)[0, 0]
            config = self.config.settled(tuple(z.shape), (1.0,) * z.ndim, correlated=False)
            found.append(_weights(z, config, trust, batch.generator or stream(0, "bank")))
            sizes.append(z.numel())
        self.weights = torch.stack(found).T @ torch.tensor(sizes, dtype=torch.float64)
        self.weights /= sum(sizes)

    def halo(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Two passes of sliding windows, or one of stacks, beyond which little is left.

        Stacks of all passes could hand on a voxel three times as far; what tiles lose by leaving
        that out is below a hundredth of the noise.
        """
        config = self.config.settled(shape, (1.0,) * len(shape), correlated=False)
        reach = zip(_tuple(config.block), _tuple(config.search), strict=True)
        return tuple(2 * (b - 1 + r) + (2 if r else 0) for b, r in reach)

    def looks(self) -> int:
        """The bank is dear, and its weights come from the same estimate on more of the scan."""
        return 4 if self.config.bank else super().looks()

    def bytes_per_voxel(self) -> int:
        """Sums, weights, pilots and stacks, float32, and the borders of small tiles."""
        if self.config.bank:
            return 72
        return 32 if self.config.grouping else 20

    def _one(self, y: Tensor, sigma: Tensor | None, spectrum: Spectrum | None) -> Tensor:
        """(*spatial), one image restored."""
        config = self.config.settled(tuple(y.shape), (1.0,) * y.ndim, spectrum is not None)
        if not config.grouping:
            return _sliding(y, sigma, spectrum, config)
        if spectrum is not None:
            return _stacked(y, sigma, spectrum, config)[-1]
        z = y if sigma is None else y / sigma
        if not config.bank:
            restored = _stacked(z, None, None, config)[-1]
        else:
            weights = self.weights
            if weights is None:
                weights = _weights(z, config, _everywhere, stream(0, "bank"))
            restored = torch.zeros_like(z)
            for weight, one in zip(weights.tolist(), _bank(z, config), strict=True):
                restored += weight * one
        return restored if sigma is None else restored * sigma


def _weights(z: Tensor, config: Config, trust: Trust, generator: torch.Generator) -> Tensor:
    """(6,) weights of the bank on an image (*spatial) of unit noise."""
    probe = signs(z, generator)
    relatives = torch.stack(_bank(z, config))
    slopes = (torch.stack(_bank(z + EPSILON * probe, config)) - relatives) / EPSILON * probe
    variance, weight = trust(relatives[0])
    return let_weights(relatives, z, slopes, variance, weight)


def _everywhere(restored: Tensor) -> tuple[Tensor, Tensor]:
    """Unit noise, and each voxel counts."""
    one = torch.ones_like(restored)
    return one, one


def _sliding(
    y: Tensor,
    sigma: Tensor | None,
    spectrum: Spectrum | None,
    config: Config,
    pilot: Tensor | None = None,
) -> Tensor:
    """Windows that stand alone, on every voxel where the configuration is one of stacks."""
    block, step = _tuple(config.block), _tuple(config.step)
    return sliding_dct(
        y,
        block=block,
        step=1 if config.grouping else step,
        hard=HARD if config.grouping or config.hard is None else config.hard,
        sigma=sigma,
        coefficient_sigma=None if spectrum is None else spectrum.dct_sigma(block).to(y),
        modulation=None if spectrum is None else spectrum.modulation(block),
        pilot=pilot,
    )


def _stacked(
    y: Tensor, sigma: Tensor | None, spectrum: Spectrum | None, config: Config
) -> list[Tensor]:
    """The passes over stacks of similar windows: threshold, Wiener, and once more in volumes."""
    lead = 3 - y.ndim
    volume = y.reshape((1,) * lead + tuple(y.shape))
    wanted = (1,) * lead + _tuple(config.block)
    block = tuple(min(b, n) for b, n in zip(wanted, volume.shape, strict=True))
    flat = sum(b > 1 for b in block) < 3
    search = (0,) * lead + _tuple(config.search)
    places = math.prod(2 * r + 1 for r in search)
    windows = Windows(
        shape=tuple(volume.shape),
        block=block,
        step=(1,) * lead + _tuple(config.step),
        search=search,
        size=1 << (min(config.group_size, places).bit_length() - 1),
    )
    if sigma is not None:
        sigma = sigma.expand(y.shape).reshape(volume.shape)
    noise_power = 1.0 if sigma is None else float(sigma.square().mean())
    shape = None
    if spectrum is not None:
        shape = spectrum.dct_sigma(block[lead:]).to(y).reshape(block)
    shrink = functools.partial(
        filtered, volume, hard=config.hard or 0.0, sigma=sigma, coefficient_sigma=shape
    )
    noisy_limit, clean_limit = FLAT_LIMITS if flat else (math.inf, math.inf)
    results = [shrink(match(volume, windows, noisy_limit * noise_power))]
    wider = replace(windows, size=2 * windows.size) if flat and places > 64 else windows
    stacks = match(results[0], wider, clean_limit * noise_power)
    for _ in range(1 if flat else 2):
        results.append(shrink(stacks, pilot=results[-1]))
    return [one.reshape(y.shape) for one in results]


def _bank(z: Tensor, config: Config) -> list[Tensor]:
    """The last pass, its relatives, and the noisy image."""
    last = _stacked(z, None, None, config)[-1]
    smaller = _stacked(z, None, None, _smaller(config))[-1]
    near, wide = (
        nonlocal_means(
            z,
            last,
            search=tuple(0 if b == 1 else means.search for b in _tuple(config.block)),
            patch=tuple(0 if b == 1 else means.patch for b in _tuple(config.block)),
            width=means.width,
        )
        for means in MEANS
    )
    again = _sliding(z, None, None, config, (last + near) / 2)
    return [last, smaller, again, near, wide, z]


def _smaller(config: Config) -> Config:
    """The same with windows of three quarters of the side, at every second voxel."""
    block = tuple(max(3 * b // 4, 1) for b in _tuple(config.block))
    return replace(config, block=block, step=tuple(min(2, b) for b in block))


def _tuple(value: tuple[int, ...] | int | None) -> tuple[int, ...]:
    assert isinstance(value, tuple)
    return value


def block_for(
    shape: tuple[int, ...],
    spacing: tuple[float, ...],
    correlated: bool,
    side: int | None = None,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The sliding window that suits a scan, whichever of its axes is the thick one.

    Args:
        shape: Voxels along two or three axes.
        spacing: Voxel distances along the same axes, mm.
        correlated: Whether noise is correlated from pixel to pixel, as in CT.
        side: Of the window in the plane of the slices; None chooses it.

    Returns:
        Block and step, voxels per axis.
    """
    plane = side or 8
    if len(shape) == 2:
        return (plane, plane), (1, 1)
    thick, ratio, apart = thick_axis(shape, spacing)
    if apart:
        return _along(thick, plane, 1), (1, 1, 1)
    if correlated:
        return _along(thick, plane, 4), _along(thick, 2, 1)
    return _along(thick, side or 4, 2 if ratio > 2.5 else 4), (1, 1, 1)


def stack_for(
    shape: tuple[int, ...], spacing: tuple[float, ...]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """The windows for stacks that suit a scan: pictures have larger ones and a wider search.

    Args:
        shape: Voxels along two or three axes.
        spacing: Voxel distances along the same axes, mm.

    Returns:
        Block, step and search, voxels per axis.
    """
    if len(shape) == 2:
        return (8, 8), (3, 3), (19, 19)
    thick, ratio, apart = thick_axis(shape, spacing)
    if apart:
        return _along(thick, 8, 1), _along(thick, 3, 1), _along(thick, 19, 0)
    if ratio > 2.5:
        return _along(thick, 4, 2), _along(thick, 2, 1), _along(thick, 5, 1)
    return (4, 4, 4), (2, 2, 2), (4, 4, 4)


def _along(thick: int, plane: int, through: int) -> tuple[int, ...]:
    return tuple(through if axis == thick else plane for axis in range(3))
