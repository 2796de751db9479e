"""Processes that `torchrun` started together, as one group."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

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
    finally:
        dist.destroy_process_group()
