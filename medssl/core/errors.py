"""One family of refusals: a fact with its value, the remedy, and an exit code."""

import contextlib
from collections.abc import Iterator
from pathlib import PurePath
from typing import ClassVar

LONGEST_LINE = 200
"""Characters of a printed refusal; longer facts are cut."""


def printable(text: object, longest: int = 64) -> str:
    """Text that is safe on a terminal and in a message: one line, no control characters, cut."""
    clean = "".join(c if c.isprintable() else " " for c in str(text))
    clean = " ".join(clean.split())
    return clean if len(clean) <= longest else clean[: longest - 3] + "..."


class MedsslError(Exception):
    """A refusal that a user can act on.

    Args:
        fact: What was found, with its value.
        remedy: What to do next; may be empty when the fact says it all.
        file: Name of the file concerned; only its last component is ever shown.
    """

    code: ClassVar[int] = 70
    kind: ClassVar[str] = "internal"

    def __init__(self, fact: str, remedy: str = "", *, file: str | PurePath | None = None) -> None:
        super().__init__(fact)
        self.fact = fact
        self.remedy = remedy
        self.file = None if file is None else printable(PurePath(file).name)

    def __str__(self) -> str:
        """The one line: `file: fact; remedy`, never longer than `LONGEST_LINE`."""
        head = f"{self.file}: " if self.file else ""
        tail = f"; {printable(self.remedy, 120)}" if self.remedy else ""
        return head + printable(self.fact, LONGEST_LINE - len(head) - len(tail)) + tail

    def as_dict(self) -> dict[str, object]:
        """The same as JSON for `--json`."""
        return {
            "code": self.code,
            "kind": self.kind,
            "file": self.file,
            "fact": printable(self.fact, LONGEST_LINE),
            "remedy": self.remedy,
        }


class UsageError(MedsslError):
    """The words of the call cannot be right, whatever the data."""

    code = 2
    kind = "usage"


class InputError(MedsslError):
    """A file or an array that cannot be processed without inventing something."""

    code = 3
    kind = "input"


class WeightsError(MedsslError):
    """Weights that are missing, damaged, or made for something else."""

    code = 4
    kind = "weights"


class MemoryLimitError(MedsslError):
    """The work does not fit, even in the smallest tiles."""

    code = 5
    kind = "memory"


class OutputError(MedsslError):
    """The result cannot be put where it should go."""

    code = 6
    kind = "output"


class QualityError(MedsslError):
    """A quality check refused the result (`--strict`)."""

    code = 7
    kind = "quality"


class InterruptedRunError(MedsslError):
    """A run that was interrupted from the keyboard and can be taken up again."""

    code = 130
    kind = "interrupted"


class TerminatedRunError(MedsslError):
    """A run that the system asked to end and that can be taken up again."""

    code = 143
    kind = "terminated"


@contextlib.contextmanager
def naming(file: str | PurePath) -> Iterator[None]:
    """Add the file's name to a refusal raised inside, unless it names one already."""
    try:
        yield
    except MedsslError as error:
        if error.file is None:
            error.file = printable(PurePath(file).name)
        raise
