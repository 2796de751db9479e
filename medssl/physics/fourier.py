"""The Fourier transform as scanners mean it: centred, orthonormal, DC at index N // 2."""

from typing import Self

import torch
from torch import Tensor

from medssl.physics.operator import Operator


def to_kspace(image: Tensor, axes: tuple[int, ...] = (-2, -1)) -> Tensor:
    """The centred orthonormal Fourier transform along some axes."""
    shifted = torch.fft.fftn(torch.fft.ifftshift(image, axes), dim=axes, norm="ortho")
    return torch.fft.fftshift(shifted, axes)


def to_image(kspace: Tensor, axes: tuple[int, ...] = (-2, -1)) -> Tensor:
    """The inverse of `to_kspace`, which is also its adjoint."""
    shifted = torch.fft.ifftn(torch.fft.ifftshift(kspace, axes), dim=axes, norm="ortho")
    return torch.fft.fftshift(shifted, axes)


class Fourier(Operator):
    """`to_kspace` as an operator.

    Args:
        shape: Of one problem.
        axes: Which of its axes are transformed, counted from the end.
    """

    def __init__(self, shape: tuple[int, ...], axes: tuple[int, ...] = (-2, -1)) -> None:
        self.domain = self.codomain = shape
        self.axes = axes

    def __call__(self, x: Tensor) -> Tensor:
        """A x."""
        return to_kspace(x, self.axes)

    def adjoint(self, y: Tensor) -> Tensor:
        """A^H y."""
        return to_image(y, self.axes)

    @classmethod
    def example(cls, generator: torch.Generator, dtype: torch.dtype) -> Self:
        """A small one."""
        del generator, dtype
        return cls((3, 9, 12))
