"""How well label maps agree with references, label by label."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medssl.core.boxes import box
from medssl.core.errors import naming
from medssl.core.progress import Progress
from medssl.engine.scored import (
    Asked,
    Evaluated,
    draws_of,
    labels_of,
    patients_of,
    refuse_other_grid,
    spelt,
)
from medssl.io.limits import Limits
from medssl.io.pairs import find_pairs
from medssl.io.read import read
from medssl.metrics import detection
from medssl.metrics.interval import Interval, mean_of, percentiles
from medssl.metrics.overlap import overlap
from medssl.metrics.surface import surface

Floats = NDArray[np.float64]
SHOWN = {
    "dice": "Dice",
    "iou": "IoU",
    "hd95": "HD95 mm",
    "assd": "ASSD mm",
    "nsd": "NSD",
    "volume_error": "volume ml",
}
"""Numbers of the table."""


def segmentation(
    predicted: Path,
    reference: Path,
    group_by: Path | None,
    asked: Asked,
    limits: Limits,
    tell: Progress,
) -> Evaluated:
    """Compare label maps by value on the grid of the reference, case by case.

    Nothing is resampled, which would change small lesions.

    Args:
        predicted: File or folder.
        reference: Of the same sort, with the same names.
        group_by: CSV that says whose case it is; None takes each case for a patient.
        asked: What is to be found out.
        limits: Bounds of what a file may ask for.
        tell: Told how far it is.

    Raises:
        InputError: Files that do not fit one another, or are no label maps.
    """
    pairs, unused = find_pairs(predicted, reference, limits)
    names = [pair.name for pair in pairs]
    patients, warnings = patients_of(names, group_by)
    if unused:
        warnings.append(f"{unused} predictions have no reference and are not scored")
    cases: list[dict[int, dict[str, float]]] = []
    values: set[int] = set()
    known: set[int] = set()
    for k, pair in enumerate(pairs):
        tell("compare", k, len(pairs))
        with naming(pair.predicted):
            image = read(pair.predicted, None, limits)
            ours = labels_of(image, warnings)
        with naming(pair.reference):
            truth = read(pair.reference, None, limits)
            theirs = labels_of(truth, warnings)
        with naming(pair.predicted):
            refuse_other_grid(image, truth)
        if truth.modality == "PICTURE":
            warnings.append("pictures have no spacing: read mm as pixels, ml as 1000 pixels")
        found = _scores(ours, theirs, truth.spacing, asked)
        known |= set(np.unique(theirs).tolist())
        values |= set(found)
        cases.append(found)
    tell("compare", len(pairs), len(pairs))
    for value in sorted(values - known):
        n = sum(value in case for case in cases)
        warnings.append(f"label {value} is in {n} predictions and in no reference")
    if not values:
        warnings.append("there is no label but 0, in predictions or references")
    blank = _blank(asked)
    full = [{v: case.get(v, blank) for v in sorted(values)} for case in cases]
    weights, whose = draws_of(patients, asked.seed, warnings), np.array(patients)
    labels = {v: _summary([case[v] for case in full], weights, whose) for v in sorted(values)}
    each = [_mean_label(case) for case in full if case]
    over_labels = _summary(each, weights, whose) if each else {}
    record = {
        "task": "seg",
        "cases": len(pairs),
        "patients": len(set(patients)),
        "empty": asked.empty,
        "tolerance_mm": asked.tolerance,
        "labels": labels,
        "mean": over_labels,
        "case": [
            {"case": name, "patient": patient, "labels": case}
            for name, patient, case in zip(names, patients, full, strict=True)
        ],
    }
    return Evaluated(record, _table(labels), tuple(dict.fromkeys(warnings)))


def _scores(
    ours: NDArray[np.int64], theirs: NDArray[np.int64], spacing: Sequence[float], asked: Asked
) -> dict[int, dict[str, float]]:
    """The numbers of each label that is in one of two maps."""
    voxel = math.prod(spacing)
    found = {}
    for value in sorted({*np.unique(ours).tolist(), *np.unique(theirs).tolist()} - {0}):
        p, r = ours == value, theirs == value
        around = box(p | r)
        assert around is not None
        counts = overlap(p[around], r[around], voxel, empty=asked.empty)
        apart = surface(p, r, spacing, tolerance=asked.tolerance, empty=asked.empty)
        rows = detection.match(p[around].astype(np.float32), r[around])
        lesions = [row.confidence > 0 for row in rows if row.lesion]
        found[value] = {
            **dataclasses.asdict(counts),
            **dataclasses.asdict(apart),
            "lesion_sensitivity": float(np.mean(lesions)) if lesions else math.nan,
            "predicted_ml": float(np.count_nonzero(p)) * voxel / 1000,
            "reference_ml": float(np.count_nonzero(r)) * voxel / 1000,
        }
    return found


def _blank(asked: Asked) -> dict[str, float]:
    """The numbers of a label that is in neither map."""
    nothing = np.zeros((1, 1), bool)
    return {
        **dataclasses.asdict(overlap(nothing, nothing, 0.0, empty=asked.empty)),
        **dataclasses.asdict(surface(nothing, nothing, (1.0, 1.0), empty=asked.empty)),
        "lesion_sensitivity": math.nan,
        "predicted_ml": 0.0,
        "reference_ml": 0.0,
    }


def _mean_label(case: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """The mean over labels of each number of a case."""
    rows = list(case.values())
    return {name: _mean([row[name] for row in rows]) for name in rows[0]}


def _mean(values: Sequence[float]) -> float:
    known = [v for v in values if not math.isnan(v)]
    return float(np.mean(known)) if known else math.nan


def _summary(
    rows: Sequence[Mapping[str, float]], weights: Floats, whose: NDArray[np.str_]
) -> dict[str, Any]:
    """Means over cases with intervals, and how many cases each mean is of."""
    found: dict[str, Any] = {}
    for name in rows[0]:
        values = np.array([row[name] for row in rows])
        known = int(np.isfinite(values).sum())
        n_patients = len(np.unique(whose[np.isfinite(values)]))
        value = percentiles(_mean(values.tolist()), mean_of(values, weights), n_patients)
        found[name] = spelt(value) | {"cases": known, "left_out": len(rows) - known}
        if not known:
            found[name]["reason"] = "no case has what it is counted on; see --empty"
    return found


def _table(labels: Mapping[int, Mapping[str, Any]]) -> tuple[str, ...]:
    lines = [f"{'label':<7}{'number':<12}{'mean [95 %]':<26}cases"]
    for label, numbers in labels.items():
        for name, word in SHOWN.items():
            one = numbers[name]
            text = Interval(one["value"], one["low"], one["high"]).text
            text = "none" if math.isnan(one["value"]) else text
            left = f", {one['left_out']} left out" if one["left_out"] else ""
            lines.append(f"{label:<7}{word:<12}{text:<26}{one['cases']}{left}")
    return tuple(lines)
