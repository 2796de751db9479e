"""Progress: a bar on a terminal, a plain line every tenth otherwise."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

Progress = Callable[[str, int, int], None]
"""Told the stage, how much is done, and how much there is."""


@contextmanager
def progress(quiet: bool) -> Iterator[Progress | None]:
    """A function that shows how far the work is, on stderr; None when nobody wants to know."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        with _bar() as show:
            yield show
    else:
        yield _lines()


@contextmanager
def _bar() -> Iterator[Progress]:
    from rich import progress as rich_progress
    from rich.console import Console

    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.TaskProgressColumn(),
        rich_progress.TimeRemainingColumn(),
    )
    with rich_progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, rich_progress.TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=total)

        yield show


def _lines() -> Progress:
    tenths: dict[str, int] = {}

    def show(stage: str, done: int, total: int) -> None:
        tenth = 10 * done // max(total, 1)
        if stage not in tenths or tenth > tenths[stage]:
            tenths[stage] = tenth
            typer.echo(f"{stage} {10 * tenth} %" if total > 1 else stage, err=True)

    return show
