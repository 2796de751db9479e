"""One method, many scans: look at each, learn from crops of all, able to stop at any time."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medssl import config
from medssl.core.errors import (
    InputError,
    MedsslError,
    UsageError,
    WeightsError,
    naming,
)
from medssl.core.progress import Progress
from medssl.core.run import plain, versions
from medssl.engine.archive import Archive, Looked, groups_of, parted, short
from medssl.engine.course import Course
from medssl.engine.device import Machine
from medssl.engine.fit import Fitting
from medssl.engine.learn import GO_ON, Journey, Outcome, Watch, finish, fitting_into_memory, learn
from medssl.engine.learn_denoise import DenoiseCourse
from medssl.engine.learn_recon import ReconCourse
from medssl.engine.stop import stopping
from medssl.engine.wanted import Wanted
from medssl.io import journal
from medssl.io.folder import Found
from medssl.io.run_folder import RunFolder
from medssl.method import Method


@dataclass
class _Journey(Journey):
    """With what differs by task, and the scans that are of no use."""

    course: Course[Any, Any] = field(kw_only=True)
    refused: list[tuple[Found, MedsslError]] = field(default_factory=list)


def train(
    data: Path,
    wanted: Wanted,
    folder: RunFolder | None,
    machine: Machine,
    progress: Progress,
    *,
    resume: bool = False,
    watch: Watch | None = None,
) -> Outcome:
    """Train a method on scans.

    Args:
        data: Folder of what may be scans; those that cannot be used are passed over.
        wanted: What is to be trained.
        folder: Where the run goes; None looks at the scans and writes nothing.
        machine: Where it runs.
        progress: Told how far it is.
        resume: Go on with what the folder holds, if it holds something.
        watch: Told the numbers of each step.

    Returns:
        The record of the run.

    Raises:
        InputError: No scan can be used, or one that was used is gone.
        UsageError: The folder holds a run of something else.
        WeightsError: What the folder holds is damaged.
        MemoryLimitError: A step does not fit.
        QualityError: The loss is not finite.
        InterruptedRunError: Stopped, and saved.
        TerminatedRunError: Stopped, and saved.
    """
    course = _course(wanted, machine, progress)
    found = course.find(data)
    if not found and course.needs_scans:
        raise InputError("no scan was found", course.remedy)
    with stopping() as stop:
        journey = _Journey(wanted, folder, machine, progress, stop, watch, course=course)
        record: dict[str, Any] = {"wanted": wanted.as_tree(), "phase": "looking"}
        if folder is not None and resume and folder.begun:
            record = folder.record()
            wanted.refuse_another(record)
            folder.tidy()
        elif folder is not None:
            folder.begin(record)
        if record.get("phase") == "complete":
            return Outcome(record, (), ("the training was complete already",))
        if record.get("phase") == "learning":
            scans = _recalled(journey, found)
        else:
            scans = _looked_at(journey, found)
        archive = parted(scans, wanted.train.held_out)
        try:
            method, settled = course.method(archive)
        except InputError:
            if folder is not None and record.get("phase") == "looking":
                folder.discard()
            raise
        if record.get("phase") != "learning":
            record |= _begun(journey, archive, method, settled)
            if folder is not None:
                folder.write_recipe(config.text_of(record["recipe"]))
                folder.write_record(record)
        if folder is not None:
            _learn(journey, folder, archive, method, record)
        refused = tuple(error for _, error in journey.refused)
        return Outcome(record, refused, tuple(journey.warnings))


def _course(wanted: Wanted, machine: Machine, tell: Progress) -> Course[Any, Any]:
    """What its task brings."""
    if wanted.recipe.task == "denoise":
        return DenoiseCourse(wanted, machine, tell)
    return ReconCourse(wanted, machine, tell)


def _looked_at(journey: _Journey, found: Sequence[Found]) -> list[tuple[Found, Looked]]:
    """The scans that can be used; those that an earlier call looked at are known."""
    course, folder = journey.course, journey.folder
    known: dict[str, Looked] = {}
    if folder is not None:
        journal.keep(folder.scans, lambda _: True)  # a kill may have torn the last line
        known = _looks(folder, course)
    groups = groups_of(found)
    scans = []
    for k, one in enumerate(found):
        if journey.stop.wanted:
            journey.stop.leave(f"stopped after a look at {k} of {len(found)} scans", GO_ON)
        journey.tell("look at scans", k, len(found))
        if short(one.id) in known:
            scans.append((one, known[short(one.id)]))
            continue
        try:
            with naming(one.path):
                look = course.look(one, groups[one.id])
        except MedsslError as error:
            journey.refused.append((one, error))
            continue
        scans.append((one, look))
        if folder is not None:
            journal.append(folder.scans, dataclasses.asdict(look))
    journey.tell("look at scans", len(found), len(found))
    if folder is not None:
        used = {look.id for _, look in scans}
        journal.keep(folder.scans, lambda row: row.get("id") in used)
        journal.keep(folder.failures, lambda _: False)
        for one, refusal in journey.refused:
            fact = {"code": refusal.code, "fact": refusal.fact, "remedy": refusal.remedy}
            journal.append(folder.failures, {"id": short(one.id)} | fact)
    if not scans and course.needs_scans:
        if folder is not None:
            folder.discard()
        raise InputError(
            f"none of {len(found)} scans can be learnt from, "
            f"the first because: {journey.refused[0][1].fact}",
            course.remedy,
        )
    return sorted(scans, key=lambda scan: scan[1].id)


def _recalled(journey: _Journey, found: Sequence[Found]) -> list[tuple[Found, Looked]]:
    """The scans that a run learns from, found again.

    Raises:
        InputError: Some are gone.
    """
    assert journey.folder is not None
    known = _looks(journey.folder, journey.course)
    here = {short(one.id): one for one in found}
    gone = known.keys() - here.keys()
    if gone:
        raise InputError(
            f"{len(gone)} of the {len(known)} scans of this run are gone or changed",
            "bring them back, or start anew with --overwrite",
        )
    failed = {row.get("id") for row in journal.read(journey.folder.failures)}
    new = len(here.keys() - known.keys() - failed)
    if new:
        journey.warnings.append(f"{new} scans are new since the run began and are not used")
    return [(here[key], known[key]) for key in sorted(known)]


def _begun(
    journey: _Journey, archive: Archive[Looked], method: Method[Any], settled: dict[str, Any]
) -> dict[str, Any]:
    """What is settled before the first step and never changes."""
    journey.warnings += journey.course.doubts(archive)
    return {
        "phase": "learning",
        "complete": False,
        "recipe": plain(config.as_tree(journey.wanted.recipe, settled)),
        "failed": len(journey.refused),
        "parameters": sum(p.numel() for p in method.parameters()),
        **plain(journey.course.facts(archive, method)),
        "device": journey.machine.device.type,
        "threads": journey.machine.threads,
        "versions": versions(),
    }


def _learn(
    journey: _Journey,
    folder: RunFolder,
    archive: Archive[Looked],
    method: Method[Any],
    record: dict[str, Any],
) -> None:
    """Take the steps that are left and write the weights."""
    course, train = journey.course, journey.wanted.train
    method.to(journey.machine.device)
    with fitting_into_memory(course.smaller):
        held = course.held(archive, method)
        if held is not None:
            train = dataclasses.replace(train, check_every=train.check_every or train.save_every)
        fitting = Fitting(method, train, held)
        learn(
            journey,
            folder,
            fitting,
            lambda start: course.batches(archive, method, record, start),
            record,
        )
    if fitting.best is not None and fitting.best.lowest >= fitting.best.first:
        journey.warnings.append("the held-out loss never fell; the weights are those of step 0")
    compared = course.compared(archive, method)
    if compared is not None:
        record["compared"] = dataclasses.asdict(compared)
        journey.warnings += [compared.sentence] if compared.sentence is not None else []
    finish(journey, folder, method, record)


def _looks(folder: RunFolder, course: Course[Any, Any]) -> dict[str, Looked]:
    """The scans that the folder knows."""
    try:
        rows = journal.read(folder.scans)
        looks = [config.construct(course.look_type, row, "scans.jsonl") for row in rows]
    except UsageError as error:
        raise WeightsError("scans.jsonl is damaged", "start anew with --overwrite") from error
    return {look.id: look for look in looks}
