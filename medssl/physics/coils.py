r"""Receive coils: how they see an image, and how their noise and number are made harmless.

The model of an acquisition with coil maps S_j (several sets j where one is not enough), a sampling
pattern M and the centred orthonormal Fourier transform F is

.. math:: y = M F \sum_j S_j x_j + n .

Reference: Pruessmann et al. Advances in Sensitivity Encoding with Arbitrary k-Space Trajectories.
Magnetic Resonance in Medicine 2001; Buehrer et al. Array Compression for MRI with Large Coil
Arrays. Magnetic Resonance in Medicine 2007.
"""

from typing import Self

import torch
from torch import Tensor

from medssl.core.errors import InputError
from medssl.physics.fourier import to_image, to_kspace
from medssl.physics.operator import Operator

SPATIAL = (-2, -1)


class Sense(Operator):
    """Image sets to the k-space of all coils, on a Cartesian grid.

    The norm is at most 1 where the maps of each pixel are orthonormal or shorter.

    Args:
        coil_maps: (..., set, coil, H, W) complex.
        sampling: (..., 1, H, W), {0, 1}.
        wrapped: Images, maps, pattern and k-space have their centre at index 0, which saves two
            copies in every application.

    Raises:
        InputError: Shapes disagree.
    """

    def __init__(self, coil_maps: Tensor, sampling: Tensor, *, wrapped: bool = False) -> None:
        if coil_maps.shape[-2:] != sampling.shape[-2:]:
            raise InputError(
                f"coil maps of {tuple(coil_maps.shape[-2:])} do not fit k-space of "
                f"{tuple(sampling.shape[-2:])}",
                "estimate them on the same matrix",
            )
        self.coil_maps = coil_maps
        self.sampling = sampling.to(coil_maps.real.dtype)
        self.wrapped_order = wrapped
        n_sets, n_coils, height, width = coil_maps.shape[-4:]
        self.domain = (n_sets, height, width)
        self.codomain = (n_coils, height, width)

    def __call__(self, x: Tensor) -> Tensor:
        """A x."""
        images = combine_sets(x, self.coil_maps)
        if self.wrapped_order:
            return self.sampling * torch.fft.fft2(images, norm="ortho")
        return self.sampling * to_kspace(images)

    def adjoint(self, y: Tensor) -> Tensor:
        """A^H y."""
        y = self.sampling * y
        images = torch.fft.ifft2(y, norm="ortho") if self.wrapped_order else to_image(y)
        if self.coil_maps.shape[-4] == 1:
            return (self.coil_maps[..., 0, :, :, :].conj() * images).sum(-3, keepdim=True)
        return (self.coil_maps.conj() * images[..., None, :, :, :]).sum(-3)

    def wrapped(self) -> "Sense":
        """The same with the centre at index 0."""
        return Sense(
            torch.fft.ifftshift(self.coil_maps, SPATIAL),
            torch.fft.ifftshift(self.sampling, SPATIAL),
            wrapped=True,
        )

    @classmethod
    def example(cls, generator: torch.Generator, dtype: torch.dtype) -> Self:
        """A small one."""
        maps = torch.randn(2, 3, 9, 8, generator=generator, dtype=dtype)
        maps = maps / torch.linalg.vector_norm(maps, dim=(0, 1), keepdim=True)
        sampling = torch.rand(1, 9, 8, generator=generator, dtype=maps.real.dtype) < 0.5
        return cls(maps, sampling)


class Mixing(Operator):
    """A matrix along the coil axis: whitening, virtual coils.

    Args:
        matrix: (virtual, coil) complex.
        shape: (coil, ...) of one problem.
    """

    bound = None

    def __init__(self, matrix: Tensor, shape: tuple[int, ...]) -> None:
        if matrix.shape[1] != shape[0]:
            raise InputError(f"a matrix for {matrix.shape[1]} coils meets {shape[0]} coils")
        self.matrix = matrix
        self.domain = shape
        self.codomain = (matrix.shape[0], *shape[1:])

    def __call__(self, x: Tensor) -> Tensor:
        """A x."""
        return _mix(self.matrix, x, len(self.domain))

    def adjoint(self, y: Tensor) -> Tensor:
        """A^H y."""
        return _mix(self.matrix.mH, y, len(self.domain))

    @classmethod
    def example(cls, generator: torch.Generator, dtype: torch.dtype) -> Self:
        """A small one."""
        return cls(torch.randn(3, 5, generator=generator, dtype=dtype), (5, 4, 6))


def combine_sets(x: Tensor, coil_maps: Tensor) -> Tensor:
    """Coil images (..., coil, H, W) of image sets (..., set, H, W)."""
    if coil_maps.shape[-4] == 1:
        return coil_maps[..., 0, :, :, :] * x
    return (coil_maps * x[..., None, :, :]).sum(-4)


def magnitude(x: Tensor, coil_maps: Tensor, back: Tensor | None = None) -> Tensor:
    """Root sum of squares over the coils of what the maps make of the image.

    Args:
        x: (..., set, H, W).
        coil_maps: (..., set, coil, H, W).
        back: (coil, virtual), undoes whitening and compression, so that the shading of the
            image is that of the coils as they were; None leaves it.

    Returns:
        (..., H, W) real.
    """
    images = combine_sets(x, coil_maps)
    if back is not None:
        images = _mix(back, images, 3)
    return torch.linalg.vector_norm(images, dim=-3)


def root_sum_of_squares(kspace: Tensor) -> Tensor:
    """(..., H, W) of k-space (..., coil, H, W)."""
    return torch.linalg.vector_norm(to_image(kspace), dim=-3)


def whitening(covariance: Tensor) -> Tensor:
    r"""(coil, coil) that gives noise of unit variance in each real component: sqrt(2) L^-1.

    Args:
        covariance: (coil, coil), E[n n^H] = L L^H, positive definite.
    """
    factor = torch.linalg.cholesky(covariance)
    one = torch.eye(factor.shape[0], dtype=factor.dtype, device=factor.device)
    return 2**0.5 * torch.linalg.solve_triangular(factor, one, upper=False)


def virtual_coils(samples: Tensor, count: int) -> tuple[Tensor, float]:
    """The few combinations of coils that hold most of the signal.

    Args:
        samples: (coil, n) calibration samples.
        count: Virtual coils.

    Returns:
        (count, coil) with orthonormal rows, the strongest first, and the share of the energy that
        they keep.
    """
    wide = samples.to(torch.complex128)
    values, vectors = torch.linalg.eigh(wide @ wide.mH)
    keep = min(count, samples.shape[0])
    share = float(values[-keep:].sum() / values.sum().clamp_min(1e-300))
    return vectors.flip(1)[:, :keep].mH.contiguous().to(samples.dtype), share


def _mix(matrix: Tensor, x: Tensor, axes: int) -> Tensor:
    """The matrix along the first of the last `axes` axes."""
    flat = x.flatten(-axes + 1) if axes > 1 else x[..., None]
    return (matrix @ flat).unflatten(-1, x.shape[x.ndim - axes + 1 :])
