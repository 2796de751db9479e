"""Processes that `torchrun` started together, as one group."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from medssl.core.errors import UsageError
from medssl.core.ranks import together

STARTED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What `torchrun` tells each process."""


def is_first() -> bool:
    """Whether this process speaks for all; true where it is alone."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def joined(device: str) -> Iterator[str]:
    """Join the other processes, if there are any, for as long as the work takes.

    Args:
        device: What was asked for: `auto`, `cpu`, `cuda`, ...

    Yields:
        The device of this process: each takes a GPU of its own.

    Raises:
        UsageError: A device by number, or more processes than GPUs.
    """
    if not all(name in os.environ for name in STARTED) or os.environ["WORLD_SIZE"] == "1":
        yield device
        return
    if together():
        yield device
        return
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(
            f"--device is {device!r} for {os.environ['WORLD_SIZE']} processes", "use cuda or cpu"
        )
    on_gpu = device != "cpu" and torch.cuda.is_available()
    local = int(os.environ["LOCAL_RANK"])
    if on_gpu and local >= torch.cuda.device_count():
        raise UsageError(
            f"{local + 1} processes for {torch.cuda.device_count()} GPUs",
            "start as many as there are, or use --device cpu",
        )
    if on_gpu:
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield f"cuda:{local}" if on_gpu else "cpu"
        dist.barrier()  # who leaves early takes the connections of the others along
    finally:
        dist.destroy_process_group()


def shared_out(method: nn.Module) -> None:
    """Spread the weights of a method over the processes; each block is gathered when it is used.

    `loss` may be called as before, and everything else inside `gathered`.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for part in method.modules():
        if isinstance(part, nn.ModuleList):
            for block in part:
                fully_shard(block)
    fully_shard(method)
    register_fsdp_forward_method(method, "loss")


@contextmanager
def gathered(method: nn.Module) -> Iterator[None]:
    """Every process has all weights for a while."""
    if not together():
        yield
        return
    from torch.distributed.fsdp import FSDPModule

    parts = [part for part in method.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.unshard()
    yield
    for part in parts:
        part.reshard()


def whole(value: Tensor) -> Tensor:
    """A tensor that may be spread over the processes, all of it on each; all must ask."""
    if not together():
        return value
    from torch.distributed.tensor import DTensor

    return value.full_tensor() if isinstance(value, DTensor) else value


def whole_state(method: nn.Module) -> dict[str, Tensor]:
    """The state of a method, none of it spread; all processes must ask."""
    return {key: whole(value) for key, value in method.state_dict().items()}


def spread_like(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, spread over the processes as another one of its shape is.

    All processes must ask for the same tensors in the same order.
    """
    if not together():
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def load_state(method: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a method its whole state, of which each process keeps its part."""
    present = method.state_dict()
    method.load_state_dict({k: spread_like(tensors[k], v) for k, v in present.items()})
