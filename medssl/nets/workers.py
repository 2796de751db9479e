"""Pieces of one job side by side on the cores of the CPU, one after the other on a device."""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

MOST_THREADS = 16
"""Pieces worked on at once."""
_ALONE = threading.Lock()

Piece = TypeVar("Piece")
Result = TypeVar("Result")


def each(
    work: Callable[[Piece], Result],
    pieces: Iterable[Piece],
    add: Callable[[Result], None],
    device: torch.device,
) -> None:
    """Work on pieces and hand the results on in the order of the pieces.

    On a CPU each piece runs on one core: hundreds of short operations that each wait for all cores
    crawl on a busy machine, so torch's own threads rest meanwhile. The order of sums, hence every
    bit, is the same for any number of threads.

    Args:
        work: From a piece to its result; may run in another thread.
        pieces: Taken as they are needed.
        add: Called in this thread.
        device: Where the tensors lie.
    """
    if device.type != "cpu":
        for piece in pieces:
            add(work(piece))
        return
    with _ALONE:
        n_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            if n_threads == 1:
                for piece in pieces:
                    add(work(piece))
                return
            with ThreadPoolExecutor(min(n_threads, MOST_THREADS)) as pool:
                waiting: deque[Future[Result]] = deque()
                for piece in pieces:
                    waiting.append(pool.submit(work, piece))
                    if len(waiting) > 2 * n_threads:
                        add(waiting.popleft().result())
                while waiting:
                    add(waiting.popleft().result())
        finally:
            torch.set_num_threads(n_threads)
