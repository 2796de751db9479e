"""Progress: a bar on a terminal, a plain line every tenth otherwise."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID


class Shown:
    """How far the work is, on stderr."""

    def __init__(self) -> None:
        self._note = ""
        self._tenths: dict[str, int] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show the stage, how much is done, and how much there is."""
        tenth = 10 * done // max(total, 1)
        if stage not in self._tenths or tenth > self._tenths[stage]:
            self._tenths[stage] = tenth
            note = f"  {self._note}" if self._note else ""
            typer.echo((f"{stage} {10 * tenth} %" if total > 1 else stage) + note, err=True)

    def numbers(self, step: int, terms: Mapping[str, float]) -> None:
        """Keep the loss and the pace of a training for the next look at it."""
        del step
        self._note = f"loss {terms['total']:.4g}"
        if terms.get("samples_per_second"):
            self._note += f", {terms['samples_per_second']:.3g}/s"


class _Bar(Shown):
    """The same on a terminal."""

    def __init__(self, bar: "Bar") -> None:
        super().__init__()
        self._bar = bar
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Move the bar of the stage."""
        if stage not in self._tasks:
            self._tasks[stage] = self._bar.add_task(stage, total=total)
        note = f"{stage}  {self._note}" if self._note and done else stage
        self._bar.update(self._tasks[stage], completed=done, total=total, description=note)


@contextmanager
def progress(quiet: bool) -> Iterator[Shown | None]:
    """What shows how far the work is; None when nobody wants to know."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        yield from _bar()
    else:
        yield Shown()


def _bar() -> Iterator[Shown]:
    from rich import progress as rich_progress
    from rich.console import Console

    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.TaskProgressColumn(),
        rich_progress.TimeRemainingColumn(),
    )
    with rich_progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield _Bar(bar)
