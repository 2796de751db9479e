r"""Samples off the grid: the non-uniform Fourier transform, with coil maps.

.. math:: y_c(k_m) = \frac1{\sqrt N} \sum_q S_c(q) x(q) e^{-2 \pi i k_m q / n}

for positions k in cycles per field of view. The transform is SigPy's, on the CPU; gradients flow
through its adjoint.

A^H A is a convolution, made by two Fourier transforms on a grid of twice the size.

Reference: Fessler, Sutton. Nonuniform Fast Fourier Transforms Using Min-Max Interpolation. IEEE
Transactions on Signal Processing 2003.
"""

from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from medssl.physics.coils import combine_sets
from medssl.physics.operator import Operator

OVERSAMPLING = 2.0
"""Of the grid that samples are interpolated from; error of the transform about 6e-4."""
WIDTH = 4
"""Grid points that a sample is interpolated from, along each axis."""


class SenseNufft(Operator):
    """Image sets to samples on a trajectory in all coils.

    Args:
        coil_maps: (..., set, coil, H, W) complex.
        trajectory: (shot, sample, 2) cycles per field of view.
        weights: (..., 1, shot, sample) of the samples in `normal`, 0 where there are none; None
            means 1.
    """

    bound = None

    def __init__(
        self, coil_maps: Tensor, trajectory: Tensor, weights: Tensor | None = None
    ) -> None:
        self.coil_maps = coil_maps
        self.weights = weights
        self.trajectory = trajectory.detach().cpu().double().numpy()
        n_sets, n_coils, *shape = coil_maps.shape[-4:]
        self.domain = (n_sets, *shape)
        self.codomain = (n_coils, *trajectory.shape[:-1])

    def __call__(self, x: Tensor) -> Tensor:
        """A x."""
        images = combine_sets(x, self.coil_maps)
        samples: Tensor = _Nufft.apply(images, self.trajectory)  # type: ignore[no-untyped-call]
        return samples

    def adjoint(self, y: Tensor) -> Tensor:
        """A^H y."""
        shape = tuple(self.domain[1:])
        images: Tensor = _Adjoint.apply(y, self.trajectory, shape)  # type: ignore[no-untyped-call]
        return (self.coil_maps.conj() * images[..., None, :, :, :]).sum(-3)

    def normal(self, x: Tensor) -> Tensor:
        """A^H W A x."""
        height, width = self.domain[1:]
        images = combine_sets(x, self.coil_maps)
        wide = torch.fft.fft2(images, s=(2 * height, 2 * width)) * self._kernel
        back = torch.fft.ifft2(wide)[..., :height, :width]
        return (self.coil_maps.conj() * back[..., None, :, :, :]).sum(-3)

    @cached_property
    def _kernel(self) -> Tensor:
        """(..., 1, 2H, 2W) transfer function of A^H W A for one coil."""
        height, width = self.domain[1:]
        ones = torch.ones(1, *self.trajectory.shape[:-1], dtype=self.coil_maps.dtype)
        weights = ones if self.weights is None else self.weights.cpu() * ones
        # Differences of pixels reach to +-(N - 1): their grid has twice the field of view.
        spread = _back(weights, 2 * self.trajectory, (2 * height, 2 * width)) * 2
        centre = torch.fft.ifftshift(spread, (-2, -1))
        return torch.fft.fft2(centre).to(self.coil_maps) / (height * width) ** 0.5

    @classmethod
    def example(cls, generator: torch.Generator, dtype: torch.dtype) -> Self:
        """A small one."""
        maps = torch.randn(2, 3, 9, 8, generator=generator, dtype=dtype)
        at = (torch.rand(5, 7, 2, generator=generator) - 0.5) * torch.tensor([9.0, 8.0])
        return cls(maps, at)


def density(trajectory: Tensor) -> Tensor:
    """(shot, sample) weights of samples on spokes, 1 on average: the distance from DC."""
    distance = torch.linalg.vector_norm(trajectory, dim=-1)
    ramp = distance + 0.25
    return ramp / ramp.mean()


def _forward(images: Tensor, trajectory: np.ndarray[Any, Any]) -> Tensor:
    from sigpy import fourier

    made = fourier.nufft(
        images.detach().cpu().numpy(), trajectory, oversamp=OVERSAMPLING, width=WIDTH
    )
    return torch.from_numpy(made).to(images)


def _back(samples: Tensor, trajectory: np.ndarray[Any, Any], shape: tuple[int, ...]) -> Tensor:
    from sigpy import fourier

    batch = samples.shape[: samples.ndim - trajectory.ndim + 1]
    made = fourier.nufft_adjoint(
        samples.detach().cpu().numpy(),
        trajectory,
        oshape=(*batch, *shape),
        oversamp=OVERSAMPLING,
        width=WIDTH,
    )
    return torch.from_numpy(made).to(samples)


class _Nufft(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, trajectory: np.ndarray[Any, Any]) -> Tensor:
        ctx.trajectory, ctx.shape = trajectory, tuple(images.shape[-2:])
        return _forward(images, trajectory)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _back(gradients[0], ctx.trajectory, ctx.shape), None


class _Adjoint(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, samples: Tensor, trajectory: np.ndarray[Any, Any], shape: tuple[int, ...]
    ) -> Tensor:
        ctx.trajectory = trajectory
        return _back(samples, trajectory, shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _forward(gradients[0], ctx.trajectory), None, None
