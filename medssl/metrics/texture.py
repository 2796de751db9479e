"""CT image quality on arrays in HU and mm: noise spectrum, edges, contrast, bias, texture.

Noise power and mean frequency: ICRU Report 87. Task transfer: Richard et al., Med. Phys. 39 (2012).
Detectability: Burgess et al., J. Opt. Soc. Am. A 14 (1997), without prewhitening.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
LOWEST = 0.05
"""Cycles per pixel; below, what a quadratic surface leaves of anatomy."""
BINS = 32
"""Of radial means, from 0 to the Nyquist frequency."""


@dataclass(frozen=True, eq=False)
class Nps:
    """Noise power spectrum."""

    power: Array
    """(N, N) HU^2 mm^2, in the order of the FFT."""
    spacing: tuple[float, float]
    """mm."""

    @property
    def variance(self) -> float:
        """HU^2; the integral of the spectrum."""
        n = self.power.shape
        cell = n[0] * self.spacing[0] * n[1] * self.spacing[1]
        return float(self.power.sum() / cell)

    @property
    def magnitude(self) -> float:
        """Noise standard deviation, HU."""
        return math.sqrt(self.variance)

    @property
    def mean_frequency(self) -> float:
        """Cycles per mm, from 0.05 cycles per pixel to Nyquist; 0 without noise."""
        f = frequency(self.power.shape, self.spacing)
        used = (f >= LOWEST / max(self.spacing)) & (f <= 0.5 / max(self.spacing))
        total = float(self.power[used].sum())
        return float((f * self.power)[used].sum() / total) if total > 0 else 0.0


@dataclass(frozen=True, eq=False)
class Ttf:
    """Task transfer function of one contrast."""

    frequency: Array
    """(n,) cycles per mm."""
    value: Array
    """(n,) 1 at low frequencies for a filter that keeps the contrast."""

    def at(self, level: float) -> float:
        """Cycles per mm where it first falls to a level; the last frequency where it never does."""
        low = np.flatnonzero(self.value <= level)
        if not low.size:
            return float(self.frequency[-1])
        k = int(low[0])
        if k == 0:
            return float(self.frequency[0])
        f, v = self.frequency, self.value
        share = (v[k - 1] - level) / (v[k - 1] - v[k])
        return float(f[k - 1] + share * (f[k] - f[k - 1]))


@dataclass(frozen=True)
class Bias:
    """Mean change of a region, HU."""

    mean: float
    low: float
    high: float
    """95 % interval by a bootstrap of blocks."""
    voxels: int


def frequency(shape: tuple[int, ...], spacing: Sequence[float]) -> Array:
    """(N, M) distance from frequency 0, cycles per mm."""
    fx, fy = (np.fft.fftfreq(n, s) for n, s in zip(shape, spacing, strict=True))
    return np.asarray(np.hypot(fx[:, None], fy[None]))


def nps(blocks: Array, spacing: tuple[float, float]) -> Nps:
    """Mean noise power of blocks, each less its quadratic surface.

    The six degrees of freedom that the surface takes are given back as a factor.

    Args:
        blocks: (n, N, N) HU.
        spacing: mm along the two axes.
    """
    n, rows, columns = blocks.shape
    x, y = np.meshgrid(np.linspace(-1, 1, rows), np.linspace(-1, 1, columns), indexing="ij")
    surface = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], -1).reshape(-1, 6)
    basis, _ = np.linalg.qr(surface)
    flat = blocks.reshape(n, -1).astype(np.float64)
    rest = flat - flat @ basis @ basis.T
    power = np.abs(np.fft.fft2(rest.reshape(blocks.shape))) ** 2
    scale = spacing[0] * spacing[1] / (rows * columns - 6)
    return Nps(np.asarray(power.mean(0) * scale), spacing)


def disk(size: int, radius: float, blur: float = 0.0) -> Array:
    """(size, size) disk of height 1 in the middle, anti-aliased, then blurred.

    Args:
        size: Pixels.
        radius: Pixels.
        blur: Standard deviation of a Gaussian, pixels.
    """
    fine = 8
    at = (np.arange(size * fine) + 0.5) / fine - size / 2
    inside = (np.hypot(at[:, None], at[None]) <= radius).astype(np.float64)
    flat = inside.reshape(size, fine, size, fine).mean((1, 3))
    f = frequency(flat.shape, (1.0, 1.0))
    gain = np.exp(-2 * (np.pi * blur * f) ** 2)
    return np.asarray(np.fft.ifft2(np.fft.fft2(flat) * gain).real)


def ttf(delta: Array, task: Array, spacing: tuple[float, float]) -> Ttf:
    """How much of each frequency of an added object is found again.

    The cross spectrum of both over the power of the object, in radial bins: for a linear filter
    its transfer function, also where the object itself has zeros.

    Args:
        delta: (N, N) HU; output with the object minus output without it.
        task: (N, N) HU; the object.
        spacing: mm along the two axes.
    """
    found, asked = np.fft.fft2(delta), np.fft.fft2(task)
    f, last = frequency(task.shape, spacing), 0.5 / max(spacing)
    bin_ = np.minimum((f / last * BINS).astype(int), BINS)
    power = np.abs(asked) ** 2
    weight = np.bincount(bin_.ravel(), power.ravel(), BINS + 1)[:BINS]
    cross = np.bincount(bin_.ravel(), (found * asked.conj()).real.ravel(), BINS + 1)[:BINS]
    middle = np.bincount(bin_.ravel(), (f * power).ravel(), BINS + 1)[:BINS]
    used = weight > 0
    return Ttf(np.asarray(middle[used] / weight[used]), np.asarray(cross[used] / weight[used]))


def cnr(a: Array, b: Array) -> float:
    """Difference of the means of two regions in units of their noise; (n,), (m,) HU."""
    spread = math.sqrt((float(a.var()) + float(b.var())) / 2)
    return abs(float(a.mean()) - float(b.mean())) / spread if spread > 0 else math.inf


def tissue_bias(change: Array, block: NDArray[np.integer], rng: np.random.Generator) -> Bias:
    """Mean change with an interval that allows for neighbours being alike.

    Args:
        change: (n,) output minus input, HU.
        block: (n,) which block of neighbours each voxel is in.
        rng: Of the bootstrap.
    """
    _, at = np.unique(block, return_inverse=True)
    total, count = np.bincount(at, change), np.bincount(at)
    picks = rng.integers(0, len(count), (200, len(count)))
    means = total[picks].sum(1) / count[picks].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Bias(float(change.mean()), float(low), float(high), change.size)


def texture(blocks: Array) -> tuple[float, ...]:
    """Correlations at the lags (0,1), (1,0), (1,1), (2,0) of (n, N, M) blocks; 0 without noise."""
    rest = blocks - blocks.mean((1, 2), keepdims=True)
    variance = float((rest**2).mean())
    if variance == 0:
        return (0.0,) * 4
    n, m = rest.shape[1:]
    lags = ((0, 1), (1, 0), (1, 1), (2, 0))
    return tuple(
        float((rest[:, i:, j:] * rest[:, : n - i, : m - j]).mean()) / variance for i, j in lags
    )


def detectability(task: Array, transfer: Array, noise: Nps) -> float:
    """d' of an observer that does not prewhiten.

    Args:
        task: (N, N) HU; the object that is looked for.
        transfer: (N, N) in the order of the FFT.
        noise: Spectrum of (N, N).
    """
    dx, dy = noise.spacing
    seen = (np.abs(np.fft.fft2(task)) * dx * dy * transfer) ** 2
    cell = 1 / (task.shape[0] * dx * task.shape[1] * dy)
    below = float((seen * noise.power).sum()) * cell
    return float(seen.sum()) * cell / math.sqrt(below) if below > 0 else math.inf
