"""The processes that train one method together: what they share, as differentiable functions.

The loss of a rank is the mean over its own samples, and gradients are averaged over ranks. With
the backward passes below the average is the gradient of the mean loss of all ranks. Without a
group of processes every function is the identity.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def together() -> bool:
    """Whether there is a group of processes."""
    return dist.is_available() and dist.is_initialized()


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if together() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if together() else 0


def gather_with_grad(x: Tensor) -> Tensor:
    """The rows of all ranks, in their order.

    Args:
        x: (n, ...), of the same shape on every rank.

    Returns:
        (world * n, ...).
    """
    return _Gather.apply(x) if world() > 1 else x  # type: ignore[no-untyped-call]


def sum_with_grad(x: Tensor) -> Tensor:
    """The sum over ranks, of the shape of `x`."""
    return _Sum.apply(x) if world() > 1 else x  # type: ignore[no-untyped-call]


@torch.no_grad()
def gather(x: Tensor) -> Tensor:
    """`gather_with_grad` without a gradient."""
    if world() == 1:
        return x.detach()
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world())]
    dist.all_gather(parts, x.detach().contiguous())
    return torch.cat(parts)


@torch.no_grad()
def total(x: Tensor) -> Tensor:
    """`sum_with_grad` without a gradient."""
    if world() == 1:
        return x.detach()
    summed = x.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(summed)
    return summed


def wait() -> None:
    """Until all ranks are here."""
    if world() > 1:
        dist.barrier()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.n = len(x)
        return gather(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return total(gradient)[rank() * ctx.n :][: ctx.n]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        del ctx
        return total(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        del ctx
        return total(gradient)
