r"""Orthogonal wavelets of complex pictures, periodised: Daubechies with four vanishing moments.

One level along an axis of even length N is an orthogonal matrix; its first N / 2 rows make the low
band, the others the high band:

.. math:: a_n = \sum_k h_k x_{(2n + k) \bmod N}, \qquad
          d_n = \sum_k g_k x_{(2n + k) \bmod N}, \qquad g_k = (-1)^k h_{7 - k} .

A picture is multiplied from both sides; the next level takes the low-low quadrant. For pictures of
some hundred pixels these products cost less than strided convolutions.

Reference: Daubechies. Orthonormal Bases of Compactly Supported Wavelets. Communications on Pure
and Applied Mathematics 1988, table 1, N = 4.
"""

from typing import Self

import torch
from torch import Tensor

from medssl.core.errors import InputError
from medssl.physics.operator import Operator

DB4 = (
    0.23037781330885523,
    0.71484657055254153,
    0.63088076792959036,
    -0.02798376941698385,
    -0.18703481171888114,
    0.03084138183598697,
    0.03288301166698295,
    -0.01059740178499728,
)
"""The low-pass filter h."""


class Wavelet(Operator):
    """The transform as an operator, its coefficients laid out as quadrants of a picture.

    Args:
        shape: (..., H, W) of one problem; H and W divisible by 2^levels.
        levels: How often the low band is divided.
        like: Its real type and device are those of the matrices.

    Raises:
        InputError: A size is not divisible.
    """

    def __init__(self, shape: tuple[int, ...], levels: int, like: Tensor) -> None:
        if any(n % 2**levels for n in shape[-2:]):
            raise InputError(
                f"a picture of {shape[-2:]} has no {levels} wavelet levels",
                f"pad it to a multiple of {2**levels}",
            )
        self.domain = self.codomain = shape
        self.levels = [
            (_matrix(shape[-2] >> level, like), _matrix(shape[-1] >> level, like).T.contiguous())
            for level in range(levels)
        ]

    def __call__(self, x: Tensor) -> Tensor:
        """A x."""
        return _complex(self._analyse(_real(x)))

    def adjoint(self, y: Tensor) -> Tensor:
        """A^H y."""
        return _complex(self._synthesise(_real(y)))

    def shrink(self, x: Tensor, threshold: Tensor) -> Tensor:
        r"""W^H soft(W x): complex soft threshold of the detail bands, the low band left alone.

        Args:
            x: (..., H, W) complex.
            threshold: Broadcastable to x, with axes of H and W of size 1.
        """
        c = self._analyse(_real(x))
        size = torch.sqrt(c[0].square() + c[1].square())
        kept = (1 - threshold / size.clamp_min(torch.finfo(size.dtype).tiny)).clamp_min_(0)
        height, width = (n >> len(self.levels) for n in x.shape[-2:])
        kept[..., :height, :width] = 1
        return _complex(self._synthesise(c * kept))

    def _analyse(self, parts: Tensor) -> Tensor:
        out = parts.clone()
        for down, across in self.levels:
            low = out[..., : down.shape[0], : across.shape[0]]
            out[..., : down.shape[0], : across.shape[0]] = down @ low @ across
        return out

    def _synthesise(self, parts: Tensor) -> Tensor:
        out = parts.clone()
        for down, across in reversed(self.levels):
            low = out[..., : down.shape[0], : across.shape[0]]
            out[..., : down.shape[0], : across.shape[0]] = down.T @ low @ across.T
        return out

    @classmethod
    def example(cls, generator: torch.Generator, dtype: torch.dtype) -> Self:
        """A small one."""
        del generator
        return cls((2, 32, 48), 3, torch.empty((), dtype=dtype))


def _real(x: Tensor) -> Tensor:
    """(2, ...) real and imaginary parts."""
    return torch.stack([x.real, x.imag])


def _complex(parts: Tensor) -> Tensor:
    return torch.complex(parts[0], parts[1])


def _matrix(n: int, like: Tensor) -> Tensor:
    """(n, n) of one level along an axis."""
    h = torch.tensor(DB4, dtype=torch.float64)
    g = h.flip(0) * torch.tensor([1.0, -1.0] * (len(DB4) // 2), dtype=torch.float64)
    at = (2 * torch.arange(n // 2)[:, None] + torch.arange(len(DB4))) % n
    made = torch.zeros(n, n, dtype=torch.float64)
    rows = torch.arange(n // 2)[:, None].expand_as(at)
    made.index_put_((rows, at), h.expand(at.shape), accumulate=True)
    made.index_put_((rows + n // 2, at), g.expand(at.shape), accumulate=True)
    return made.to(device=like.device, dtype=like.real.dtype)
