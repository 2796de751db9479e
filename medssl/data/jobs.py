"""One function over many jobs: here, in local processes, or on a Dask cluster.

The function must be importable, and must return what went wrong instead of raising it: what a
cluster logs of a failure would hold the arguments, paths among them.
"""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from importlib import import_module
from threading import Thread
from typing import Any, TypeVar

from medssl.core.errors import MemoryLimitError, UsageError

Job = TypeVar("Job")
Result = TypeVar("Result")
PATIENCE = 20
"""Seconds in which a scheduler must answer."""
AHEAD = 4
"""Jobs for each process that are handed out before the first of them is done."""


def each(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    *,
    processes: int = 1,
    scheduler: str | None = None,
) -> Iterator[Result]:
    """Results in the order in which they are ready.

    Args:
        function: Pure: it may run twice, and anywhere.
        jobs: What it is called with.
        processes: Local ones; 1 stays in this process.
        scheduler: `tcp://host:port` of a Dask scheduler, in place of local processes.

    Raises:
        UsageError: No scheduler answers there, or Dask is not installed.
        MemoryLimitError: A process was killed from outside, or could not start.
    """
    if scheduler is not None:
        yield from _on_dask(function, jobs, scheduler)
    elif processes <= 1 or len(jobs) <= 1:
        yield from map(function, jobs)
    else:
        yield from _in_pool(function, jobs, min(processes, len(jobs)))


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def begin() -> None:
    """A process of a pool ends with the one that started it, and not before."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Leave when the parent is gone, even if nobody could tell."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _in_pool(
    function: Callable[[Job], Result], jobs: Sequence[Job], processes: int
) -> Iterator[Result]:
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), begin)
    waiting = iter(jobs)
    running: set[Future[Result]] = set()
    try:
        for job in waiting:
            running.add(pool.submit(function, job))
            if len(running) >= AHEAD * processes:
                yield from _ready(running)
        while running:
            yield from _ready(running)
    except BrokenProcessPool as error:
        raise MemoryLimitError(
            "a process of the pool was killed, as happens when memory runs out",
            "call it again with fewer --jobs; scripts need `if __name__ == '__main__'`",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _ready(running: set[Future[Result]]) -> Iterator[Result]:
    """Results of the futures that are done, which leave the set."""
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    running -= done
    for future in done:
        yield future.result()


def _on_dask(
    function: Callable[[Job], Result], jobs: Sequence[Job], scheduler: str
) -> Iterator[Result]:
    try:
        distributed: Any = import_module("distributed")
    except ImportError as error:
        raise UsageError(
            "--scheduler needs dask, which is not installed", "pip install 'medssl[archive]'"
        ) from error
    try:
        client = distributed.Client(scheduler, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"no Dask scheduler answers at {scheduler}", "start one: dask scheduler"
        ) from error
    with contextlib.closing(client):
        if not client.scheduler_info()["workers"]:
            raise UsageError(
                f"the Dask scheduler at {scheduler} has no worker",
                f"start some: dask worker {scheduler}",
            )
        futures = client.map(function, jobs, pure=False)
        try:
            for future in distributed.as_completed(futures, loop=client.loop):
                yield future.result()
                future.release()
        except distributed.scheduler.KilledWorker as error:
            raise MemoryLimitError(
                "workers were killed, as happens when memory runs out",
                "give them more memory and call it again; what is ready is kept",
            ) from error
        finally:
            client.cancel(futures)
