"""One method, many scans: look at each, learn from crops of all, able to stop at any time."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from medssl import config
from medssl.core.batch import Noisy
from medssl.core.errors import (
    InputError,
    MedsslError,
    MemoryLimitError,
    UsageError,
    WeightsError,
    naming,
)
from medssl.core.run import plain, versions
from medssl.data.pool import Pool, Sampling, batches, fixed_batch
from medssl.engine import choose, infer
from medssl.engine.archive import Archive, HeldScan, Look, groups_of, hold, look_at, parted, short
from medssl.engine.build import restorer
from medssl.engine.checkpoint import pack, unpack
from medssl.engine.device import Machine
from medssl.engine.fit import Fitting, go_on
from medssl.engine.predict import predict
from medssl.engine.settle import settle
from medssl.engine.stop import Stop, stopping
from medssl.engine.wanted import Wanted
from medssl.engine.weights import Compared, Seen
from medssl.io import journal, weights
from medssl.io.folder import Found
from medssl.io.limits import Limits
from medssl.io.run_folder import RunFolder
from medssl.method import Restorer
from medssl.physics.noise_level import NoiseEstimate

Progress = Callable[[str, int, int], None]
"""Told the stage, how much is done, and how much there is."""
MOST_HELD = 16
"""Scans in memory at once, if they fit."""
SHARE_OF_MEMORY = 0.25
"""Of what is free, for scans in memory."""
SLOWEST_TURN = 25
"""Steps after which another scan is read at the latest."""
TEST_CROPS = 16
"""Crops of patients that are only tested on, in one batch, if they are not too large."""
TEST_VOXELS = 1 << 19
"""Of these crops together."""
MOST_LINES = 2000
"""Of `metrics.jsonl`, about."""
LARGEST_CROP = 256
"""Side of the crops, in voxels, where the recipe takes whole slices."""
COMPARED = 2
"""Held-out scans that the default method restores too."""
GO_ON = "go on with --resume"


@dataclass(frozen=True)
class Outcome:
    """What a training left, or would do."""

    record: Mapping[str, Any]
    """What `run.json` holds."""
    refused: tuple[MedsslError, ...]
    """Why some scans were passed over."""
    warnings: tuple[str, ...]


@dataclass
class _Journey:
    """What the steps of one call share."""

    wanted: Wanted
    folder: RunFolder | None
    """None writes nothing."""
    machine: Machine
    tell: Progress
    stop: Stop
    refused: list[tuple[Found, MedsslError]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def limits(self) -> Limits:
        """Bounds of what a file may ask for."""
        return Limits(memory=self.machine.memory)


def train(
    found: Sequence[Found],
    wanted: Wanted,
    folder: RunFolder | None,
    machine: Machine,
    progress: Progress,
    *,
    resume: bool = False,
) -> Outcome:
    """Train a method on scans.

    Args:
        found: What may be scans; those that cannot be used are passed over.
        wanted: What is to be trained.
        folder: Where the run goes; None looks at the scans and writes nothing.
        machine: Where it runs.
        progress: Told how far it is.
        resume: Go on with what the folder holds, if it holds something.

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
    if not found:
        raise InputError("no scan was found", "give a folder of NIfTI, DICOM, PNG or NPY scans")
    with stopping() as stop:
        journey = _Journey(wanted, folder, machine, progress, stop)
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
        method, settled = restorer(wanted.recipe, archive.facts)
        if record.get("phase") != "learning":
            record |= _begun(journey, archive, method, settled)
            if folder is not None:
                folder.write_record(record)
        if folder is not None:
            _learn(journey, folder, archive, method, record)
        refused = tuple(error for _, error in journey.refused)
        return Outcome(record, refused, tuple(journey.warnings))


def _looked_at(journey: _Journey, found: Sequence[Found]) -> list[tuple[Found, Look]]:
    """The scans that can be used; those that an earlier call looked at are known."""
    wanted, folder = journey.wanted, journey.folder
    method, _ = restorer(wanted.recipe)
    known: dict[str, Look] = {}
    if folder is not None:
        journal.keep(folder.scans, lambda _: True)  # a kill may have torn the last line
        known = _looks(folder)
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
                look = look_at(one, groups[one.id], wanted.noise, method, journey.limits)
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
    if not scans:
        if folder is not None:
            folder.discard()
        raise InputError(
            f"none of {len(found)} scans can be learnt from, "
            f"the first because: {journey.refused[0][1].fact}",
            "give a folder of NIfTI, DICOM, PNG or NPY scans",
        )
    return sorted(scans, key=lambda scan: scan[1].id)


def _recalled(journey: _Journey, found: Sequence[Found]) -> list[tuple[Found, Look]]:
    """The scans that a run learns from, found again.

    Raises:
        InputError: Some are gone.
    """
    assert journey.folder is not None
    known = _looks(journey.folder)
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
    journey: _Journey, archive: Archive, method: Restorer, settled: dict[str, Any]
) -> dict[str, Any]:
    """What is settled before the first step and never changes."""
    wanted, looks = journey.wanted, archive.looks
    largest = max(look.n_bytes for look in looks)
    n_held = int(SHARE_OF_MEMORY * journey.limits.pixels) // largest
    if not archive.test and wanted.train.held_out > 0:
        journey.warnings.append("too few patients to keep one for testing; no held-out loss")
    unsure = sum(look.unsure for look in looks)
    if unsure:
        journey.warnings.append(
            f"the law of the noise is not sure in {unsure} of {len(looks)} scans"
        )
    return {
        "phase": "learning",
        "complete": False,
        "recipe": plain(config.as_tree(wanted.recipe, settled)),
        "seen": plain(dataclasses.asdict(Seen.of(looks, len(archive.test), method.crop_axes))),
        "failed": len(journey.refused),
        "parameters": sum(p.numel() for p in method.parameters()),
        "sampling": {
            "hold": max(1, min(MOST_HELD, n_held, len(archive.learn))),
            "turn": max(1, min(SLOWEST_TURN, wanted.train.steps // len(archive.learn))),
        },
        "device": journey.machine.device.type,
        "threads": journey.machine.threads,
        "versions": versions(),
    }


def _learn(
    journey: _Journey,
    folder: RunFolder,
    archive: Archive,
    method: Restorer,
    record: dict[str, Any],
) -> None:
    """Take the steps that are left and write the weights."""
    wanted = journey.wanted
    train = wanted.train
    if archive.test:
        train = dataclasses.replace(train, check_every=train.check_every or train.save_every)
    method.to(journey.machine.device)
    noises: dict[str, NoiseEstimate] = {}
    size = train.crop or LARGEST_CROP
    sampling = Sampling(
        axes=method.crop_axes,
        size=size,
        count=train.batch,
        seed=wanted.seed,
        device=journey.machine.device,
    )

    def held_scan(scan: tuple[Found, Look]) -> HeldScan:
        found, look = scan
        with naming(found.path):
            held = hold(found, wanted.noise, method, journey.limits, noises.get(look.id))
        if held.scale.noise.sigma_map is None and held.scale.noise.spectrum is None:
            noises[look.id] = held.scale.noise  # small, and read again at every turn
        return held

    try:
        held = None
        if archive.test:
            count = min(TEST_CROPS, max(2, TEST_VOXELS // size**method.crop_axes))
            some = archive.test[:count]
            held = fixed_batch(
                map(held_scan, some),
                [look.shape for _, look in some],
                dataclasses.replace(sampling, count=count),
            )
        fitting = Fitting(method, train, held)
        _catch_up(journey, folder, fitting, record)
        pool = Pool(
            len(archive.learn),
            lambda k: held_scan(archive.learn[k]),
            hold=int(record["sampling"]["hold"]),
            turn=int(record["sampling"]["turn"]),
            seed=wanted.seed,
        )
        go_on(
            fitting,
            batches(pool, sampling, fitting.step, train.steps),
            lambda step, steps, terms: _after(journey, folder, fitting, step, steps, terms),
        )
    except torch.OutOfMemoryError as error:
        raise MemoryLimitError(
            "one step does not fit into the memory of the device",
            "lower train.batch or train.crop with --set",
        ) from error
    lines = journal.read(folder.metrics)
    record["loss"] = {"last": lines[-1]["loss"] if lines else None}
    if fitting.best is not None:
        record["loss"] |= {"held_out": fitting.best.lowest, "held_out_at_first": fitting.best.first}
        if fitting.best.lowest >= fitting.best.first:
            journey.warnings.append("the held-out loss never fell; the weights are those of step 0")
    compared = _compared(journey, map(held_scan, archive.test[:COMPARED]))
    if compared is not None:
        record["compared"] = dataclasses.asdict(compared)
        journey.warnings += [compared.sentence] if compared.sentence is not None else []
    digest = weights.write(folder.weights, method.state_dict(), overwrite=True)
    record |= {"weights": {"sha256": digest}, "phase": "complete", "complete": True}
    record["warnings"] = journey.warnings
    folder.write_record(record)


def _compared(journey: _Journey, scans: Iterable[HeldScan]) -> Compared | None:
    """The weights beside the default method, where the check favours neither."""
    own: list[float] = []
    others: list[float] = []
    device, seed = journey.machine.device, journey.wanted.seed
    for scan in scans:
        image, noise = scan.image, scan.scale.noise
        if noise.spectrum is not None:  # the default would believe what the check believes
            continue
        journey.tell("compare", len(own), COMPARED)
        recipe = config.load("denoise", choose.default(noise, "standard"))
        default, _ = restorer(recipe, choose.facts(image, noise))
        for scale, errors in (
            (scan.scale, own),
            (infer.scaling(default.to(device), image, noise), others),
        ):
            settle(scale, image, device, seed)
            errors.append(predict(scale, image, device, seed).error)
    if not own:
        return None
    return Compared(scans=len(own), error=sum(own) / len(own), default_error=sum(others) / len(own))


def _catch_up(
    journey: _Journey, folder: RunFolder, fitting: Fitting[Noisy], record: Mapping[str, Any]
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
        now = {"device": journey.machine.device.type, "threads": journey.machine.threads}
        for key, value in now.items():
            if record.get(key) != value:
                journey.warnings.append(f"began with {key} {record.get(key)}, goes on with {value}")
        if record.get("versions") != versions():
            journey.warnings.append("goes on with other versions of packages than it began with")
    journal.keep(folder.metrics, lambda line: line.get("step", 0) <= fitting.step)


def _after(
    journey: _Journey,
    folder: RunFolder,
    fitting: Fitting[Noisy],
    step: int,
    steps: int,
    terms: Mapping[str, float],
) -> None:
    """Note the loss, save, and leave when asked to."""
    looked = fitting.best is not None and fitting.looks
    if looked or step == steps or step % max(1, steps // MOST_LINES) == 0:
        line: dict[str, Any] = {"step": step, "loss": terms["total"]}
        line |= {"terms": {k: v for k, v in terms.items() if k != "total"}}
        line["lr"] = fitting.optimiser.param_groups[0]["lr"]
        if looked and fitting.best is not None:
            line["held_out"] = fitting.best.last
        journal.append(folder.metrics, line)
    journey.tell("learn", step, steps)
    leave = journey.stop.wanted and step < steps
    if leave or step == steps or step % fitting.train.save_every == 0:
        folder.save(step, *pack(fitting))
    if leave:
        journey.stop.leave(f"stopped after step {step} of {steps}, which is saved", GO_ON)


def _looks(folder: RunFolder) -> dict[str, Look]:
    """The scans that the folder knows."""
    try:
        looks = [config.construct(Look, row, "scans.jsonl") for row in journal.read(folder.scans)]
    except UsageError as error:
        raise WeightsError("scans.jsonl is damaged", "start anew with --overwrite") from error
    return {look.id: look for look in looks}
