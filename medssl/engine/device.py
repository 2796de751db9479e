"""Where the work runs, and how much memory it may take."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import torch

from medssl.core.errors import MemoryLimitError, UsageError
from medssl.data.jobs import cores

MIB = 2**20
UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class Machine:
    """The device of a run and its bounds."""

    device: torch.device
    memory: int | None
    """Bytes that the user allows for the whole run; None means what is free."""
    threads: int

    @property
    def free(self) -> int:
        """Bytes that tiles may still take on the device."""
        if self.device.type == "cuda":
            return int(torch.cuda.mem_get_info(self.device)[0])
        return self.free_on_host

    @property
    def free_on_host(self) -> int:
        """Bytes that the run may still take of the memory of the computer."""
        available = int(0.8 * psutil.virtual_memory().available)
        if self.memory is None:
            return available
        return min(available, self.memory - psutil.Process().memory_info().rss)


def machine(device: str = "auto", memory: str | None = None, threads: int | None = None) -> Machine:
    """Choose the device and set the thread count of this process.

    Args:
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
        memory: For example `4GB`; None means what is free.
        threads: CPU threads; None means all cores of the machine that this process may use.

    Raises:
        UsageError: No such device, or a number that cannot be right.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"--threads is {threads}", "give 1 or more")
    count = threads or cores()
    torch.set_num_threads(count)
    return Machine(_device(device), None if memory is None else n_bytes(memory), count)


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Have torch take only kernels that give the same result each time, if that is wanted."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(wanted or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def n_bytes(text: str) -> int:
    """Bytes of a text such as `4GB`, `512MiB` or `1e9`.

    Raises:
        UsageError: Not a size.
        MemoryLimitError: Less than this program needs to start.
    """
    stripped = text.strip().upper()
    digits = stripped.rstrip("KMGIB")
    try:
        size = float(digits) * UNITS[stripped[len(digits) :] or "B"]
    except (KeyError, ValueError) as error:
        raise UsageError(f"--memory is {text!r}", "write it like 4GB or 512MiB") from error
    if not size >= 64 * MIB:
        raise MemoryLimitError(f"--memory is {size / MIB:.3g} MiB", "no scan fits below 64 MiB")
    return int(size)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device is {name!r}", "use auto, cpu, cuda, cuda:1 or mps") from error
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise UsageError(f"--device is {name!r}, {count} CUDA devices are here", "use auto")
    elif device.type == "mps":
        if not torch.backends.mps.is_available():
            raise UsageError("--device is 'mps', which is not here", "use auto")
    elif device.type != "cpu":
        raise UsageError(f"--device is {name!r}", "use auto, cpu, cuda, cuda:1 or mps")
    return device
