"""The steps of a training and what they leave in the folder of its run, whatever the task."""

import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from medssl.core.errors import MedsslError, MemoryLimitError, WeightsError, naming
from medssl.core.progress import Progress
from medssl.core.ranks import rank, total, world
from medssl.core.run import versions
from medssl.engine.checkpoint import pack, unpack
from medssl.engine.device import Machine
from medssl.engine.distributed import whole_state
from medssl.engine.fit import Fitting, go_on
from medssl.engine.stop import Stop
from medssl.engine.wanted import Wanted
from medssl.io import journal, weights
from medssl.io.run_folder import RunFolder
from medssl.io.scalars import Scalars

MOST_LINES = 2000
"""Of `metrics.jsonl`, about."""
GO_ON = "go on with --resume"

Watch = Callable[[int, Mapping[str, float]], None]
"""Told the step, the loss terms, their `total`, and `samples_per_second`."""


@dataclass(frozen=True)
class Outcome:
    """What a training left, or would do."""

    record: Mapping[str, Any]
    """What `run.json` holds."""
    refused: tuple[MedsslError, ...]
    """Why some scans were passed over."""
    warnings: tuple[str, ...]


@dataclass
class Journey:
    """What the steps of one call share."""

    wanted: Wanted
    folder: RunFolder | None
    """None writes nothing. Of several processes, only the first writes."""
    machine: Machine
    tell: Progress
    stop: Stop
    watch: Watch | None = None
    warnings: list[str] = field(default_factory=list)
    seen_at: tuple[int, float] | None = None
    """A step, and when it was done."""

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes."""
        return self.folder is not None and rank() == 0


def learn(
    journey: Journey,
    folder: RunFolder,
    fitting: Fitting[Any],
    batches: Callable[[int], Iterable[Any]],
    record: dict[str, Any],
    *,
    before_step: Callable[[int], None] | None = None,
    measure: Callable[[], Mapping[str, float]] | None = None,
) -> None:
    """Take the steps that are left, from the last checkpoint on, and note the losses.

    Args:
        journey: What the steps share.
        folder: Of the run.
        fitting: New.
        batches: Those from a step on.
        record: What `run.json` holds; the losses come to it.
        before_step: As for `fit.go_on`.
        measure: Gives more numbers whenever the held-out batch is looked at.

    Raises:
        QualityError: The loss is not finite.
        InterruptedRunError: Stopped, and saved.
        TerminatedRunError: Stopped, and saved.
    """
    _catch_up(journey, folder, fitting, record)
    scalars = None
    if fitting.train.tensorboard and journey.writes:
        scalars = Scalars(folder.tensorboard, fitting.step)

    def after(step: int, steps: int, terms: Mapping[str, float]) -> None:
        del step, steps  # the fit knows them
        _after(journey, folder, fitting, scalars, measure, terms)

    try:
        go_on(fitting, batches(fitting.step), after, before_step)
    finally:
        if scalars is not None:
            scalars.close()
    if fitting.skipped:
        journey.warnings.append(
            f"{fitting.skipped} steps were left out, their loss was not finite or far too large"
        )
    lines = journal.read(folder.metrics)
    record["loss"] = {"last": lines[-1]["loss"] if lines else None}
    if fitting.best is not None:
        record["loss"] |= {"held_out": fitting.best.kept, "held_out_at_first": fitting.best.first}


@contextmanager
def fitting_into_memory(smaller: str) -> Iterator[None]:
    """Say in one line that a step does not fit.

    Args:
        smaller: What to do then.

    Raises:
        MemoryLimitError: It does not.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryLimitError(
            "one step does not fit into the memory of the device", smaller
        ) from error


def finish(journey: Journey, folder: RunFolder, method: Any, record: dict[str, Any]) -> None:
    """Write the weights, and the record that says that they are complete."""
    state = whole_state(method)
    if not journey.writes:
        return
    digest = weights.write(folder.weights, state, overwrite=True)
    record |= {"weights": {"sha256": digest}, "phase": "complete", "complete": True}
    record["warnings"] = journey.warnings
    folder.write_record(record)


def _catch_up(
    journey: Journey, folder: RunFolder, fitting: Fitting[Any], record: Mapping[str, Any]
) -> None:
    """Bring a fit to the last checkpoint that is whole, and the metrics with it."""
    steps = folder.steps()
    for step in reversed(steps):
        try:
            with naming(folder.path):
                unpack(fitting, *folder.load(step))
            break
        except WeightsError as error:
            if step == steps[0]:
                raise
            journey.warnings.append(f"the checkpoint of step {step} is damaged ({error.fact})")
    if steps:
        now = {
            "device": journey.machine.device.type,
            "threads": journey.machine.threads,
            "processes": world(),
        }
        for key, value in now.items():
            if record.get(key, value) != value:
                journey.warnings.append(f"began with {key} {record.get(key)}, goes on with {value}")
        if record.get("versions") != versions():
            journey.warnings.append("goes on with other versions of packages than it began with")
    if journey.writes:
        journal.keep(folder.metrics, lambda line: line.get("step", 0) <= fitting.step)


def _after(
    journey: Journey,
    folder: RunFolder,
    fitting: Fitting[Any],
    scalars: Scalars | None,
    measure: Callable[[], Mapping[str, float]] | None,
    terms: Mapping[str, float],
) -> None:
    """Note the loss, save, and leave when asked to."""
    step, steps = fitting.step, fitting.train.steps
    looked = fitting.best is not None and fitting.looks
    numbers = dict(terms) | {"samples_per_second": _pace(journey, fitting)}
    measured = dict(measure()) if looked and measure is not None else {}
    skipped = fitting.in_a_row > 0
    if journey.writes and (
        looked or skipped or step == steps or step % max(1, steps // MOST_LINES) == 0
    ):
        line: dict[str, Any] = {"step": step, "loss": terms["total"]}
        line |= {"terms": {k: v for k, v in terms.items() if k != "total"}}
        line["lr"] = fitting.optimiser.param_groups[0]["lr"]
        if looked and fitting.best is not None:
            line["held_out"] = fitting.best.last
        if measured:
            line["measured"] = measured
        if skipped:
            line["skipped"] = True
        journal.append(folder.metrics, line)
        if scalars is not None:
            scalars.add(line | {"samples_per_second": numbers["samples_per_second"]})
    if journey.watch is not None:
        journey.watch(step, numbers)
    journey.tell("learn", step, steps)
    leave = _asked_to_leave(journey) and step < steps
    if leave or step == steps or step % fitting.train.save_every == 0:
        state = pack(fitting)
        if journey.writes:
            folder.save(step, *state)
    if leave:
        journey.stop.leave(f"stopped after step {step} of {steps}, which is saved", GO_ON)


def _asked_to_leave(journey: Journey) -> bool:
    """Whether any process was asked to, so that all leave after the same step."""
    if world() == 1:
        return journey.stop.wanted
    asked = torch.tensor([int(journey.stop.wanted)], device=journey.machine.device)
    if int(total(asked)) and not journey.stop.wanted:
        journey.stop.number = signal.SIGTERM
    return journey.stop.wanted


def _pace(journey: Journey, fitting: Fitting[Any]) -> float:
    """Samples in a second, of all processes, since the last step."""
    now, before = time.monotonic(), journey.seen_at
    journey.seen_at = (fitting.step, now)
    if before is None or now <= before[1]:
        return 0.0
    return fitting.train.batch * (fitting.step - before[0]) / (now - before[1])
