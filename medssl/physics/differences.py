"""Differences of neighbouring pixels, periodic, for total variation."""

from typing import Self

import torch
from torch import Tensor

from medssl.physics.operator import Operator


class Differences(Operator):
    """Forward differences along the last two axes: (..., H, W) to (..., 2, H, W)."""

    bound = 8**0.5

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.domain = shape
        self.codomain = (*shape[:-2], 2, *shape[-2:])

    def __call__(self, x: Tensor) -> Tensor:
        """A x."""
        return torch.stack([x.roll(-1, axis) - x for axis in (-2, -1)], -3)

    def adjoint(self, y: Tensor) -> Tensor:
        """A^H y."""
        down, across = y.unbind(-3)
        return down.roll(1, -2) - down + across.roll(1, -1) - across

    @classmethod
    def example(cls, generator: torch.Generator, dtype: torch.dtype) -> Self:
        """A small one."""
        del generator, dtype
        return cls((2, 7, 9))
