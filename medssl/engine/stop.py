"""Asked to end, a run finishes its step first."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import current_thread, main_thread
from types import FrameType
from typing import Any, NoReturn

from medssl.core.errors import InterruptedRunError, TerminatedRunError


@dataclass
class Stop:
    """Whether the run was asked to end."""

    number: int | None = None
    """Of the signal."""

    @property
    def wanted(self) -> bool:
        """A signal came."""
        return self.number is not None

    def leave(self, fact: str, remedy: str) -> NoReturn:
        """End the run.

        Raises:
            InterruptedRunError: It was interrupted from the keyboard.
            TerminatedRunError: The system asked for it.
        """
        if self.number == signal.SIGINT:
            raise InterruptedRunError(fact, remedy)
        raise TerminatedRunError(fact, remedy)


@contextmanager
def stopping() -> Iterator[Stop]:
    """Keep the first SIGINT or SIGTERM for the run to see; the second one acts as it always did."""
    stop = Stop()
    if current_thread() is not main_thread():  # where Python takes no signals
        yield stop
        return
    old: dict[signal.Signals, Any] = {
        n: signal.getsignal(n) or signal.SIG_DFL for n in (signal.SIGINT, signal.SIGTERM)
    }

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        stop.number = number
        _restore(old)  # the second one acts as it always did

    for number in old:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        _restore(old)


def _restore(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
