r"""MP-PCA: volumes of a series share few patterns, and noise has a known band of eigenvalues.

In each window the m voxels by N volumes X, means :math:`\mu` over the voxels removed, are taken to
their principal components :math:`v_i`; those in the band of noise (`physics.marchenko_pastur`) are
dropped and the p others shrunk by what noise of variance :math:`\sigma^2` added to them,

.. math:: \hat X = \mu + \sum_{i \le p} \eta(y_i) \, X v_i v_i^T, \qquad
          y_i^2 = \frac{l_i}{q \sigma^2}, \quad
          \eta(y) = \frac{\sqrt{(y^2 - \beta - 1)^2 - 4 \beta}}{y^2}, \quad \beta = \frac rq .

Windows overlap and are averaged with weights 1 / (1 + p).

Departs from the paper: components are shrunk, not only kept; the variance counts the freedom that
signal takes; windows move by more than a voxel; magnitudes are stabilised first, with a map of the
noise found in the same way. Windows are small on time courses: a pattern that few voxels have for
themselves drowns in a large one, and loses a quarter of its height even in a small one.
Needs: a series of volumes (diffusion, function, perfusion) with noise independent from voxel to
voxel and from volume to volume.
Reference: Veraart, Novikov, Christiaens, Ades-Aron, Sijbers, Fieremans. Denoising of Diffusion MRI
Using Random Matrix Theory. NeuroImage 2016.
Reference: Gavish, Donoho. Optimal Shrinkage of Singular Values. IEEE TIT 2017 (the shrinkage).
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from medssl.core.batch import Noisy
from medssl.core.errors import InputError
from medssl.method import Facts, Restorer
from medssl.physics.marchenko_pastur import (
    FEWEST,
    Windows,
    centred,
    gram,
    is_signal,
    measured,
    window_for,
)

LOCAL = 25
"""Voxels of a window on time courses: a cube of 3, or a square of 5."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters of the local principal components."""

    window: tuple[int, ...] | None = None
    """Voxels per axis; None takes the smallest odd cube with a voxel for each volume of a diffusion
    series, and of 25 voxels for time courses, which small regions may have for themselves."""
    step: int | None = None
    """Distance of windows, voxels: 1, 2, 4 or 8; None takes 2, for the smallest windows 1."""
    shrink: bool = True
    """Whether kept components are shrunk; the paper keeps them whole."""

    def suited_to(self, facts: Facts) -> "Config":
        """The same with the window that suits a series.

        Raises:
            InputError: It is no series.
        """
        if facts.n_volumes < 2:
            raise InputError(
                "is one volume, and mppca denoises the volumes of a series together",
                "use --method auto",
            )
        if self.window is not None:
            return self
        voxels = min(facts.n_volumes, LOCAL) if facts.b_values is None else facts.n_volumes
        planar = facts.independent_slices
        return replace(self, window=window_for(voxels, facts.shape, facts.spacing, planar=planar))

    def build(self) -> "MPPCA":
        """The filter; it has nothing to learn."""
        return MPPCA(self)


class MPPCA(Restorer):
    """Local principal components of a series, without those of noise."""

    joint = True

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def restore(self, batch: Noisy) -> Tensor:
        """Clean series (B, N, *spatial); voxels that are 0 in all volumes stay 0."""
        return torch.stack([self._restored(series) for series in batch.image])

    @property
    def follows_sigma(self) -> bool:
        """The noise is found from the series."""
        return False

    def halo(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """One window, in whole steps, so that windows lie alike in every tile."""
        window = self._window(1, shape)
        return tuple(math.ceil(w / s) * s for w, s in zip(window, self._step(window), strict=True))

    def bytes_per_voxel(self) -> int:
        """Two copies of each value with volumes last, and the windows that are worked on."""
        return 16

    def _window(self, n_volumes: int, shape: tuple[int, ...]) -> tuple[int, ...]:
        """By shape alone where nobody chose it; never larger than the image."""
        window = self.config.window or window_for(n_volumes, shape, (1.0,) * len(shape))
        return tuple(min(w, n) for w, n in zip(window, shape, strict=True))

    def _step(self, window: tuple[int, ...]) -> tuple[int, ...]:
        step = self.config.step or (2 if max(window) > 3 else 1)
        return tuple(min(step, w) if w > 1 else 1 for w in window)

    def _restored(self, series: Tensor) -> Tensor:
        """One series (N, *spatial)."""
        n, shape = len(series), tuple(series.shape[1:])
        if n < 2:
            return series
        window = self._window(n, shape)
        windows = Windows.of(shape, window, self._step(window), series.device)
        values = series.reshape(n, -1).T.contiguous()
        known = measured(series).flatten()
        total = torch.zeros_like(values)
        weights = torch.zeros_like(values[:, :1])
        for _, places in windows.chunks(n):
            at = places[known[places].sum(1) >= FEWEST]
            if not len(at):
                continue
            restored, rank = self._cleaned(values[at], known[at])
            weight = 1 / (1 + rank)[:, None]
            for k in range(at.shape[1]):  # the k-th voxels of windows are different voxels
                total[at[:, k]] += weight * restored[:, k]
                weights[at[:, k]] += weight
        found = known[:, None] & (weights > 0)
        return torch.where(found, total / weights.clamp_min(1e-9), values).T.reshape(series.shape)

    def _cleaned(self, x: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """Windows (windows, voxels, N) without noise, and (windows,) how many patterns remain."""
        x, mean = centred(x, known)
        eigenvalues, v = torch.linalg.eigh(gram(x))
        eigenvalues = eigenvalues.clamp_min(0)
        n_voxels = known.sum(1)
        signal, variance = is_signal(eigenvalues, n_voxels, x.shape[2])
        share = signal.to(x)
        if self.config.shrink:
            freedom = (n_voxels - 1).to(x)[:, None]
            q, r = freedom.clamp_min(x.shape[2]), freedom.clamp_max(x.shape[2])
            y2, beta = eigenvalues / (q * variance[:, None]).clamp_min(1e-30), r / q
            inside = (y2 - beta - 1).square() - 4 * beta
            share *= torch.where(y2 > (1 + beta.sqrt()).square(), inside, 0).sqrt() / y2.clamp_min(
                1
            )
            share.clamp_(max=1)
        projection = (v * share[:, None]) @ v.mT
        clean = x @ projection if len(projection[0]) == x.shape[2] else projection @ x
        return clean + mean, signal.sum(1).to(x)
