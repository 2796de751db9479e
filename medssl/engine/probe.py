"""Is an encoder any good: simple classifiers of its features, with few labels and with all.

Labels are drawn class by class from the groups that are learnt from; all scores are from other
groups. Beside the pretrained features stand those of an encoder with random weights whose norms
were calibrated on the same images, or those of another table.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medssl.core.errors import InputError, MedsslError, UsageError
from medssl.core.progress import Progress
from medssl.data.store import Volume
from medssl.engine import classify
from medssl.engine.device import Machine
from medssl.engine.embed import BATCH, Scans, windows
from medssl.engine.encoders import LoadedEncoder
from medssl.engine.labels import Labelled
from medssl.io.limits import Limits
from medssl.metrics.interval import Interval, interval
from medssl.nets.norms import calibrate

Task = Literal["linear", "knn"]
ALL = 0
"""Labels of each class; stands for all there are."""
TESTED = 3
"""One of so many groups is tested on where no split is known."""
TRIES = 200
"""Partings that are drawn until each class is on both sides."""
CALIBRATED_ON = 24
"""Batches of images for the norms of random weights, see `engine.pretrain`."""
ACCURACY = "balanced accuracy"
ENOUGH_RUNS = 3
"""Pretraining seeds from which on an interval says something of others."""
RANDOM = 10_000
"""Added to the seed of a run for its random twin."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be found out."""

    tasks: tuple[Task, ...] = ("linear", "knn")
    per_class: tuple[int, ...] = (5, 20, 100, ALL)
    """Labels of each class that are learnt from; `ALL` takes all."""
    seeds: int = 5
    """Draws of labels for each number of them."""
    seed: int = 0


@dataclass(frozen=True)
class Row:
    """One number of a report."""

    probe: str
    labels: str
    """Of each class, or `all`."""
    arm: str
    """`pretrained`, what it is compared with, or the gain over that."""
    metric: str
    """`balanced accuracy`, the mean over classes of the share that is recognised, or `dice`."""
    value: Interval
    auc: float = math.nan
    """Mean over classes, draws and runs of the area under the curve; a difference for the gain."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "probe": self.probe,
            "labels": self.labels,
            "arm": self.arm,
            "metric": self.metric,
            "value": self.value.value,
            "low": self.value.low,
            "high": self.value.high,
            "auc": self.auc,
        }


@dataclass(frozen=True)
class Report:
    """What probes found."""

    rows: tuple[Row, ...]
    facts: Mapping[str, Any]
    """Runs, draws, rows, groups and classes behind the numbers."""
    warnings: tuple[str, ...]


def probe(arms: Mapping[str, Sequence[Labelled]], asked: Asked) -> Report:
    """Learn classifiers on few labels and on all, and score them on other groups.

    Args:
        arms: Features of the same rows by name of the arm, the pretrained ones first, one table
            for each pretraining seed. The other arm has as many for each of these, one after the
            other, whose scores are averaged. Of two arms the difference is reported too.
        asked: What is to be found out.

    Raises:
        UsageError: Numbers that cannot be.
        InputError: Too few groups or labels.
    """
    if asked.seeds < 1 or min(asked.per_class, default=1) < 0 or not asked.tasks:
        raise UsageError(
            f"{asked.seeds} seeds and {list(asked.per_class)} labels", "give numbers from 1 on"
        )
    ours = next(iter(arms.values()))
    first, n_runs = ours[0], len(ours)
    if any(len(tables) % n_runs for tables in arms.values()):
        raise UsageError(
            f"there are {[len(t) for t in arms.values()]} tables of the arms",
            "give as many to compare with, or a multiple",
        )
    for one in itertools.chain(*arms.values()):
        same = np.array_equal(one.y, first.y) and np.array_equal(one.group, first.group)
        if not same or one.classes != first.classes:
            raise InputError("tables hold other rows", "embed the same scans with each encoder")
    known = _known_split(first)
    parted = [known or _drawn_split(first, asked.seed + k) for k in range(asked.seeds)]
    warnings = doubts(n_runs)
    if known is None and "train" in first.split:
        warnings.append("tested on scans that the pretraining may have seen, without their labels")
    rows: list[Row] = []
    for task, n in itertools.product(asked.tasks, _useful(first, parted, asked.per_class)):
        draws = parted[:1] if known is not None and n == ALL else parted
        scored = {
            name: _scored(tables, n_runs, task, n, draws, asked.seed)
            for name, tables in arms.items()
        }
        rows += _rows(scored, task, "all" if n == ALL else str(n), asked.seed)
    n_groups = len(np.unique(first.group))
    facts = {
        "arms": {name: len(tables) for name, tables in arms.items()},
        "draws": asked.seeds,
        "rows": len(first.y),
        "groups": n_groups,
        "classes": {c: int((first.y == k).sum()) for k, c in enumerate(first.classes)},
        "split": "of the store" if known is not None else "drawn",
    }
    return Report(tuple(rows), facts, tuple(warnings))


def twins(
    loaded: LoadedEncoder, count: int, source: Path, machine: Machine, tell: Progress
) -> Iterator[LoadedEncoder]:
    """The same encoder with random weights, several times, its norms calibrated on the source.

    How well random weights do differs from one draw to the next, so that some are averaged.

    Args:
        loaded: The pretrained one.
        count: How many.
        source: A store or scans, as for `embed`.
        machine: Where it runs.
        tell: Told how far it is.
    """
    seed = RANDOM * (1 + int(loaded.as_dict()["seed"]))
    images = list(_images(source, loaded, machine))
    for k in range(count):
        tell("calibrate random weights", k, count)
        fresh = loaded.untrained(seed + k).to(machine.device)
        calibrate(fresh, fresh.embed, images)
        yield dataclasses.replace(loaded, method=fresh.eval(), sha256="")


def _images(source: Path, loaded: LoadedEncoder, machine: Machine) -> Iterator[Tensor]:
    """Batches of windows, spread over scans that are not tested on."""
    scans = Scans.of(source, Limits(memory=machine.memory))
    size = max(2, BATCH[loaded.method.sees.axes])
    usable = list(range(len(scans)))
    if scans.store is not None:
        usable = [v.index for v in scans.store.volumes if v.split != "test"]
    some = usable[:: max(1, len(usable) // CALIBRATED_ON)][:CALIBRATED_ON]
    each = -(-CALIBRATED_ON * size // max(1, len(some)))
    for k in some:
        with suppress(MedsslError):  # of a damaged scan `embed` tells
            for array, volume in scans.volumes(k):
                held = _spread(array, volume, loaded, each)
                for start in range(0, len(held), size):
                    yield torch.stack(held[start : start + size]).to(machine.device)


def _spread(array: NDArray[Any], volume: Volume, loaded: LoadedEncoder, count: int) -> list[Tensor]:
    """So many windows of a volume, drawn evenly; no more than these are held at once."""
    rng = np.random.default_rng(0)
    found: list[Tensor] = []
    full = (
        w.image
        for w in windows(array, volume, loaded.crops, loaded.method, loaded.channels, 0.0)
        if w.share >= loaded.crops.foreground
    )
    for k, image in enumerate(full):
        if k < count:
            found.append(image)
        elif (place := int(rng.integers(k + 1))) < count:
            found[place] = image
    return found


Parting = tuple[Ints, Ints]
"""Rows that are learnt from, and those that are tested on."""


def _known_split(held: Labelled) -> Parting | None:
    """The split of the store, where its test part has every class."""
    test = np.array([s == "test" for s in held.split])
    inside = [len(np.unique(held.y[side])) == len(held.classes) for side in (test, ~test)]
    return (np.flatnonzero(~test), np.flatnonzero(test)) if all(inside) else None


def _drawn_split(held: Labelled, seed: int) -> Parting:
    """A third of the groups is tested on; drawn anew until each class is on both sides.

    Raises:
        InputError: It never is.
    """
    names = np.unique(held.group)
    if len(names) < 2:
        raise InputError(
            "all labels are of one patient or group", "give labels of two patients or more"
        )
    rng = np.random.default_rng(seed)
    count = max(1, round(len(names) / TESTED))
    for _ in range(TRIES):
        test = np.isin(held.group, rng.permutation(names)[:count])
        if all(len(np.unique(held.y[s])) == len(held.classes) for s in (test, ~test)):
            return np.flatnonzero(~test), np.flatnonzero(test)
    raise InputError(
        f"no {count} of {len(names)} groups leave each class on both sides",
        "give labels of more patients, or leave out the rare class",
    )


def _useful(held: Labelled, parted: Sequence[Parting], wanted: Sequence[int]) -> list[int]:
    """Numbers of labels that differ from all there are."""
    most = max(int(np.bincount(held.y[train]).max()) for train, _ in parted)
    return [n for n in wanted if n == ALL or n < most] or [ALL]


def doubts(n_runs: int) -> list[str]:
    """What a user should know of intervals over so many pretraining seeds."""
    if n_runs >= ENOUGH_RUNS:
        return []
    return [
        f"{n_runs} pretraining seed{'s' if n_runs > 1 else ''}: intervals say little of others; "
        f"give {ENOUGH_RUNS} runs or more"
    ]


@dataclass(frozen=True, eq=False)
class _Scored:
    """Of one arm."""

    hits: Floats
    """(runs, draws, groups, classes)."""
    counts: Floats
    auc: float


def _scored(
    tables: Sequence[Labelled],
    n_runs: int,
    task: Task,
    n: int,
    draws: Sequence[Parting],
    seed: int,
) -> _Scored:
    held, each = tables[0], len(tables) // n_runs
    n_groups, n_classes = int(held.group.max()) + 1, len(held.classes)
    shape = (n_runs, len(draws), n_groups, n_classes)
    hits, counts, areas = np.zeros(shape), np.zeros(shape), []
    for place, table in enumerate(tables):
        p = place // each
        for k, (train, test) in enumerate(draws):
            chosen = _few(held.y, train, n, seed + k)
            scores = _classifier(task)(table, chosen, test)
            right = scores.argmax(1) == table.y[test]
            at = table.group[test], table.y[test]
            np.add.at(hits[p, k], at, right / each)
            np.add.at(counts[p, k], at, 1 / each)
            areas.append(classify.area_under_curve(scores, table.y[test]))
    return _Scored(hits, counts, float(np.nanmean(areas)))


def _few(y: Ints, train: Ints, n: int, seed: int) -> Ints:
    """At most n rows of each class; the same ones for every arm and run."""
    if n == ALL:
        return train
    rng = np.random.default_rng([seed, n])
    found = [rng.permutation(train[y[train] == c])[:n] for c in np.unique(y[train])]
    return np.sort(np.concatenate(found))


def _classifier(task: Task) -> Callable[[Labelled, Ints, Ints], Floats]:
    def by_line(held: Labelled, train: Ints, test: Ints) -> Floats:
        return classify.linear(
            held.x[train], held.y[train], held.group[train], held.x[test], len(held.classes)
        )

    def by_neighbours(held: Labelled, train: Ints, test: Ints) -> Floats:
        return classify.neighbours(held.x[train], held.y[train], held.x[test], len(held.classes))

    return by_line if task == "linear" else by_neighbours


def _rows(scored: Mapping[str, _Scored], task: str, labels: str, seed: int) -> list[Row]:
    rng = np.random.default_rng(seed)
    found = [
        Row(task, labels, name, ACCURACY, interval(one.hits, one.counts, rng), one.auc)
        for name, one in scored.items()
    ]
    if len(scored) == 2:
        ours, other = scored.values()
        gain = interval(ours.hits - other.hits, ours.counts, rng)
        found.append(Row(task, labels, "gain", ACCURACY, gain, ours.auc - other.auc))
    return found
