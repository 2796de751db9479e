"""What differs by task when a method learns from many scans; `engine.train` has what does not."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic

from medssl.core.progress import Progress
from medssl.engine.archive import Archive, Look
from medssl.engine.device import Machine
from medssl.engine.wanted import Wanted
from medssl.engine.weights import Compared
from medssl.io.folder import Found
from medssl.io.limits import Limits
from medssl.method import Batch, Method


class Course(ABC, Generic[Look, Batch]):
    """How the scans of one task are found, looked at, and learnt from.

    Args:
        wanted: What is to be trained.
        machine: Where it runs.
        tell: Told how far it is.
    """

    look_type: type[Look]
    """Of a line of `scans.jsonl`."""
    remedy: ClassVar[str]
    """What to give where there is nothing to learn from."""
    smaller: ClassVar[str] = "lower train.batch or train.crop with --set"
    """What to do where a step does not fit."""

    def __init__(self, wanted: Wanted, machine: Machine, tell: Progress) -> None:
        self.wanted, self.machine, self.tell = wanted, machine, tell

    @property
    def limits(self) -> Limits:
        """Bounds of what a file may ask for."""
        return Limits(memory=self.machine.memory)

    @property
    def needs_scans(self) -> bool:
        """Whether it learns nothing without a scan of the user."""
        return True

    @abstractmethod
    def find(self, root: Path) -> list[Found]:
        """What may be scans below a folder."""

    @abstractmethod
    def look(self, found: Found, group: str) -> Look:
        """Read a scan, and learn of it what is kept.

        Args:
            found: Where it lies.
            group: What it must not be parted from.

        Raises:
            MedsslError: It cannot be learnt from.
        """

    @abstractmethod
    def method(self, archive: Archive[Look]) -> tuple[Method[Batch], dict[str, Any]]:
        """The method, untrained, and its settled `Config`.

        Raises:
            InputError: These scans are not what it can learn from.
        """

    @abstractmethod
    def facts(self, archive: Archive[Look], method: Method[Batch]) -> dict[str, Any]:
        """What the record says of the scans: `seen`, `sampling`."""

    @abstractmethod
    def doubts(self, archive: Archive[Look]) -> list[str]:
        """What a user should know before the first step."""

    @abstractmethod
    def held(self, archive: Archive[Look], method: Method[Batch]) -> Callable[[], Batch] | None:
        """The batch that is looked at and not learnt from; None where no scan can be spared."""

    @abstractmethod
    def batches(
        self,
        archive: Archive[Look],
        method: Method[Batch],
        record: Mapping[str, Any],
        start: int,
    ) -> Iterator[Batch]:
        """One for each step from `start` on."""

    def compared(self, archive: Archive[Look], method: Method[Batch]) -> Compared | None:
        """The weights beside the default method; None where that is not known."""
        del archive, method
        return None
