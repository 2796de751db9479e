r"""Collaborative filter, sliding form: overlapping windows vote on every voxel.

Each window of the noisy image is taken to its orthonormal cosine spectrum X, where a scan is sparse
and white noise is not. Coefficients within :math:`\tau` standard deviations s of zero are dropped;
the result serves as the pilot g of a second, empirical Wiener pass

.. math:: \hat x = \frac{\sum_w \omega_w T_w^{-1} a_w X_w}{\sum_w \omega_w 1_w}, \qquad
          a = \frac{g^2}{g^2 + s^2}, \quad a(0) = 1, \quad \omega = 1 \big/ \sum a^2 s^2 .

Departs from the papers: windows slide by one voxel in two or three dimensions and are not matched;
all frequencies but the mean are shrunk; s follows a noise map and a noise spectrum where given.
Needs: the standard deviation of the noise (or stabilised images), and its spectrum if not white.
Reference: Guleryuz. Weighted Overcomplete Denoising. Asilomar 2003.
Reference: Yu, Sapiro. DCT Image Denoising: a Simple and Effective Image Denoising Algorithm.
IPOL 2011.
Reference: Dabov, Foi, Katkovnik, Egiazarian. Image Denoising by Sparse 3-D Transform-Domain
Collaborative Filtering. IEEE TIP 2007 (the second pass).
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from medssl.core.batch import Noisy
from medssl.method import Facts, Restorer
from medssl.nets.sliding_dct import sliding_dct

THIN = 4
"""Slices below which a volume is a stack of pictures."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters of the sliding filter."""

    block: tuple[int, ...] | None = None
    """Window, voxels per axis; None chooses by shape, spacing and spectrum (`block_for`)."""
    step: tuple[int, ...] | int = 1
    """Distance of windows, voxels; used with a given block."""
    hard: float = 2.8
    """tau, the threshold of the first pass in standard deviations."""

    def suited_to(self, facts: Facts) -> "Config":
        """The same with the window that suits a scan."""
        if self.block is not None:
            return self
        spacing = (*facts.spacing[:2], math.inf) if facts.independent_slices else facts.spacing
        block, step = block_for(facts.shape, spacing, facts.correlated)
        return replace(self, block=block, step=step)

    def build(self) -> "Collaborative":
        """The filter; it has nothing to learn."""
        return Collaborative(self)


class Collaborative(Restorer):
    """Sliding cosine filter, hard threshold and then Wiener."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def restore(self, batch: Noisy) -> Tensor:
        """Clean images (B, C, *spatial); each channel is filtered by itself."""
        y = batch.image
        block, step = self._windows(tuple(y.shape[2:]), batch.spectrum is not None)
        shape = None if batch.spectrum is None else batch.spectrum.dct_sigma(block).to(y)
        sigma = batch.sigma
        if sigma is not None and sigma.numel() > 1:
            sigma = sigma.expand(y.shape)
        restored = torch.empty_like(y)
        for b in range(y.shape[0]):
            for c in range(y.shape[1]):
                restored[b, c] = sliding_dct(
                    y[b, c],
                    block=block,
                    step=step,
                    hard=self.config.hard,
                    sigma=sigma if sigma is None or sigma.numel() == 1 else sigma[b, c],
                    coefficient_sigma=shape,
                )
        return restored

    def halo(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Each of the two passes reaches one window less a voxel."""
        return tuple(2 * (n - 1) for n in self._windows(shape, False)[0])

    def bytes_per_voxel(self) -> int:
        """Numerator, denominator and pilot, float32, and the borders of small tiles."""
        return 20

    def _windows(
        self, shape: tuple[int, ...], correlated: bool
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Block and step; by shape alone where nobody chose them."""
        block, step = self.config.block, self.config.step
        if block is None:
            return block_for(shape, (1.0,) * len(shape), correlated)
        return block, (step,) * len(block) if isinstance(step, int) else step


def block_for(
    shape: tuple[int, ...], spacing: tuple[float, ...], correlated: bool
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The window that suits a scan, whichever of its axes is the thick one.

    Args:
        shape: Voxels along two or three axes.
        spacing: Voxel distances along the same axes, mm.
        correlated: Whether noise is correlated from pixel to pixel, as in CT.

    Returns:
        Block and step, voxels per axis.
    """
    n_axes = len(shape)
    pixel = 2 if correlated else 1
    if n_axes == 2:
        return (8, 8), (pixel, pixel)
    thick = max(range(3), key=lambda axis: (shape[axis] < THIN, spacing[axis], axis))
    ratio = spacing[thick] / min(spacing)
    apart = shape[thick] < THIN or ratio > 5

    def along(plane: int, through: int) -> tuple[int, ...]:
        return tuple(through if axis == thick else plane for axis in range(3))

    if apart:
        return along(8, 1), along(pixel, 1)
    if correlated:
        return along(8, 4), along(pixel, 1)
    return along(4, 2 if ratio > 2.5 else 4), (1, 1, 1)
