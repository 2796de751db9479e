"""What every linear operator of an acquisition brings: its adjoint, its shapes, and an example."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Operator(ABC):
    """A linear map between complex tensors, with its adjoint.

    Leading axes of its input are independent problems; `domain` and `codomain` are the shapes of
    one of them.
    """

    domain: tuple[int, ...]
    codomain: tuple[int, ...]
    bound: float | None = 1.0
    """Largest singular value, or a bound of it; None where it must be measured."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """A x: (..., *domain) to (..., *codomain)."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """A^H y: (..., *codomain) to (..., *domain)."""

    def normal(self, x: Tensor) -> Tensor:
        """A^H A x."""
        return self.adjoint(self(x))

    @classmethod
    @abstractmethod
    def example(cls, generator: torch.Generator, dtype: torch.dtype) -> "Operator":
        """A small one, for the test that every operator takes.

        Args:
            generator: The source of chance.
            dtype: `torch.complex64` or `torch.complex128`.
        """


def inner(a: Tensor, b: Tensor, axes: int) -> Tensor:
    """Real part of <a, b> over the last `axes` axes, which are kept with size 1."""
    product = a.real * b.real + a.imag * b.imag
    return product.sum(tuple(range(-axes, 0)), keepdim=True)


def adjoint_error(operator: Operator, generator: torch.Generator, dtype: torch.dtype) -> float:
    """|<A x, y> - <x, A^H y>| over the product of the norms, for random x and y."""
    x = torch.randn(operator.domain, generator=generator, dtype=dtype)
    y = torch.randn(operator.codomain, generator=generator, dtype=dtype)
    forward, back = operator(x), operator.adjoint(y)
    gap = torch.vdot(y.flatten(), forward.flatten()) - torch.vdot(back.flatten(), x.flatten())
    size = torch.linalg.vector_norm(forward) * torch.linalg.vector_norm(y)
    return float(gap.abs() / size.clamp_min(torch.finfo(size.dtype).tiny))
