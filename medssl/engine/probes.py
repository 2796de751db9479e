"""Which probe of what, and its report as text."""

import csv
import dataclasses
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from medssl.core.errors import UsageError, printable
from medssl.core.progress import Progress
from medssl.engine import few_labels, probe
from medssl.engine.device import Machine
from medssl.engine.embed import Asked as AskedFeatures
from medssl.engine.embed import embed
from medssl.engine.encoders import LoadedEncoder, load_encoder
from medssl.engine.label_maps import cases_of
from medssl.engine.labels import Label, Labelled, joined, read_labels
from medssl.engine.probe import Report
from medssl.io.features import is_table, read_features
from medssl.io.limits import Limits

TASKS = ("linear", "knn", "segment")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a user asked for, see `api.probe`."""

    sources: tuple[Path, ...]
    against: tuple[Path, ...]
    labels: Path
    data: Path | None
    tasks: tuple[str, ...]
    numbers: tuple[int, ...]
    seeds: int
    twins: int
    steps: int
    longer: bool
    seed: int


def run(wanted: Wanted, machine: Machine, tell: Progress) -> tuple[Report, list[dict[str, Any]]]:
    """Make the report, and say what encoders it is of.

    Raises:
        UsageError: The words cannot be right.
        InputError: Features, scans or labels that say nothing.
        WeightsError: A run is missing, damaged, or of no encoder that is ready.
    """
    _check(wanted)
    tables = [is_table(path) for path in wanted.sources]
    if "segment" in wanted.tasks:
        return _segment(wanted, machine, tell)
    labels = read_labels(wanted.labels, "label")
    asked = probe.Asked(
        tasks=cast("tuple[probe.Task, ...]", wanted.tasks),
        per_class=wanted.numbers,
        seeds=wanted.seeds,
        seed=wanted.seed,
    )
    if all(tables):
        arms = {"pretrained": _of_tables(wanted.sources, labels, wanted.labels)}
        if wanted.against:
            arms["other"] = _of_tables(wanted.against, labels, wanted.labels)
        return probe.probe(arms, asked), []
    runs = _loaded(wanted.sources)
    arms = {"pretrained": _of_runs(runs, labels, wanted, machine, tell)}
    if wanted.against:
        arms["other"] = _of_tables(wanted.against, labels, wanted.labels)
    else:
        assert wanted.data is not None
        arms["random"] = [
            table
            for one in runs
            for twin in probe.twins(one, wanted.twins, wanted.data, machine, tell)
            for table in _of_runs([twin], labels, wanted, machine, tell)
        ]
    return probe.probe(arms, asked), [one.as_dict() for one in runs]


def as_lines(report: Report) -> Iterator[str]:
    """The report as a table of text."""
    rows = [("probe", "labels", "arm", report.rows[0].metric, "auc")]
    rows += [
        (r.probe, r.labels, r.arm, r.value.text, "" if r.auc != r.auc else f"{r.auc:.3f}")
        for r in report.rows
    ]
    widths = [max(len(row[k]) for row in rows) for k in range(5)]
    for row in rows:
        yield "  ".join(f"{cell:<{n}}" for cell, n in zip(row, widths, strict=True)).rstrip()


def as_csv(report: Report) -> str:
    """The report as CSV."""
    sink = io.StringIO()
    rows = [row.as_dict() for row in report.rows]
    writer = csv.DictWriter(sink, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return sink.getvalue()


def _check(wanted: Wanted) -> None:
    """Refuse words that cannot be right.

    Raises:
        UsageError: With the value.
    """
    strange = [t for t in wanted.tasks if t not in TASKS]
    if strange or not wanted.tasks:
        raise UsageError(
            f"--task is {printable(','.join(wanted.tasks), 30)!r}",
            f"give some of {', '.join(TASKS)}",
        )
    tables = [is_table(path) for path in wanted.sources]
    if not tables or any(tables) != all(tables):
        raise UsageError("runs and tables are mixed, or there are none", "give one kind")
    if wanted.twins < 1:
        raise UsageError(f"--twins is {wanted.twins}", "give 1 or more")
    if "segment" in wanted.tasks:
        if len(wanted.tasks) > 1:
            raise UsageError("segment goes alone", "call twice, its labels are others")
        if any(tables) or wanted.against:
            raise UsageError("segment needs runs, not features", "give folders of pretrainings")
    elif not any(tables) and wanted.data is None:
        raise UsageError("runs have no features yet", "give --data STORE, or a table of features")


def _loaded(paths: tuple[Path, ...]) -> list[LoadedEncoder]:
    """Runs that differ in their seeds alone.

    Raises:
        UsageError: They differ in more, or one is given twice.
        WeightsError: One is missing, damaged, or of no encoder that is ready.
    """
    runs = [load_encoder(path, {}) for path in paths]
    for one, path in zip(runs[1:], paths[1:], strict=True):
        same = dataclasses.replace(one.recipe, seed=runs[0].recipe.seed) == runs[0].recipe
        if not same or one.settled != runs[0].settled:
            raise UsageError(
                "is of another recipe than the first run",
                "give runs of one recipe with different seeds",
                file=path,
            )
    if len({one.sha256 for one in runs}) < len(runs):
        raise UsageError("a run is given twice", "give runs with different seeds")
    return runs


def _of_tables(paths: tuple[Path, ...], labels: list[Label], source: Path) -> list[Labelled]:
    return [joined(read_features(path), labels, source) for path in paths]


def _of_runs(
    runs: list[LoadedEncoder],
    labels: list[Label],
    wanted: Wanted,
    machine: Machine,
    tell: Progress,
) -> list[Labelled]:
    """Features of each run, of slices where slices have labels."""
    assert wanted.data is not None
    by_slice = any(one.slice is not None for one in labels)
    asked = AskedFeatures(per="slice" if by_slice else "volume")
    found = []
    for one in runs:
        table = embed(wanted.data, one, asked, machine, tell).table
        found.append(joined(table, labels, wanted.labels))
    return found


def _segment(
    wanted: Wanted, machine: Machine, tell: Progress
) -> tuple[Report, list[dict[str, Any]]]:
    runs = _loaded(wanted.sources)
    labels = read_labels(wanted.labels, "segmentation")
    limits = Limits(memory=machine.memory)
    cases = cases_of(labels, wanted.data, runs[0], limits, wanted.labels)
    asked = few_labels.Asked(
        labelled=wanted.numbers,
        steps=wanted.steps,
        seeds=wanted.seeds,
        seed=wanted.seed,
        longer=wanted.longer,
    )
    report = few_labels.segment(runs, cases, asked, machine, tell)
    return report, [one.as_dict() for one in runs]
