"""How well lesions are found, over all cases."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medssl.core.boxes import box
from medssl.core.errors import InputError, naming
from medssl.core.progress import Progress
from medssl.engine.scored import (
    Asked,
    Evaluated,
    Maps,
    draws_of,
    labels_of,
    patients_of,
    refuse_other_grid,
    spelt,
)
from medssl.io.limits import Limits
from medssl.io.npz import MapCase, read_case
from medssl.io.pairs import find_pairs
from medssl.io.read import read
from medssl.metrics import detection
from medssl.metrics.calibration import Reliability, reliability
from medssl.metrics.interval import Interval, percentiles

NEAR = 10.0
"""mm around lesions where calibration is looked at again: far away every map is right."""

Floats = NDArray[np.float64]
Source = tuple[str, Path, Callable[[], MapCase]]
"""Name of a case, its file, and what reads it."""


def lesions(
    predicted: Path,
    reference: Path | None,
    group_by: Path | None,
    asked: Asked,
    limits: Limits,
    tell: Progress,
) -> Evaluated:
    """Compare candidates with lesions, all cases together; probabilities become candidates first.

    Args:
        predicted: File or folder of maps of one class; of NPZ files that hold the label too, where
            there is no reference.
        reference: Label maps with the same names, or None.
        group_by: CSV that says whose case it is; None takes each case for a patient.
        asked: What is to be found out.
        limits: Bounds of what a file may ask for.
        tell: Told how far it is.

    Raises:
        InputError: Files that do not fit one another, or hold something else.
    """
    sources, warnings = _sources(predicted, reference, limits)
    names = [name for name, _, _ in sources]
    patients, doubts = patients_of(names, group_by)
    warnings = doubts + warnings
    scores, positive, rows, of_case, cases = [], [], [], [], []
    everywhere = near = reliability(np.zeros(0), np.zeros(0, bool))
    for k, (name, file, load) in enumerate(sources):
        tell("look for lesions", k, len(sources))
        with naming(file):
            case = load()
            detected = _candidates(case, asked.maps)
        found = detection.match(detected, case.label)
        if asked.maps == "probability":
            outcome = case.label != 0
            everywhere += reliability(case.map, outcome)
            around = _around(outcome, case.spacing)
            near += reliability(case.map[around], outcome[around])
        scores.append(float(detected.max()))
        positive.append(bool(case.label.any()))
        rows += found
        of_case += [k] * len(found)
        cases.append(
            {
                "case": name,
                "patient": patients[k],
                "score": scores[-1],
                "lesions": sum(row.lesion for row in found),
                "rows": [dataclasses.asdict(row) for row in found],
            }
        )
    tell("look for lesions", len(sources), len(sources))
    weights = draws_of(patients, asked.seed, warnings)
    numbers = _numbers(
        np.array(scores),
        np.array(positive),
        rows,
        np.array(of_case, np.int64),
        weights,
        len(set(patients)),
    )
    lost = numbers.pop("draws_of_one_class")
    if lost and "auroc" not in numbers["reasons"]:
        warnings.append(
            f"{lost} of {len(weights)} draws of patients hold one class and are left out of AUROC"
        )
    record = {
        "task": "detect",
        **numbers,
        "cases": len(sources),
        "positive": sum(positive),
        "patients": len(set(patients)),
        "lesions": sum(row.lesion for row in rows),
        "maps": asked.maps,
        "calibration": {"everywhere": _calibrated(everywhere), "near_lesions": _calibrated(near)},
        "case": cases,
    }
    return Evaluated(record, _table(record), tuple(dict.fromkeys(warnings)))


def _sources(
    predicted: Path, reference: Path | None, limits: Limits
) -> tuple[list[Source], list[str]]:
    """The cases, not yet read."""
    if reference is not None:
        pairs, unused = find_pairs(predicted, reference, limits)
        said = f"{unused} predictions have no reference and are not scored"
        found: list[Source] = [
            (p.name, p.predicted, partial(_both, p.predicted, p.reference, limits)) for p in pairs
        ]
        return found, [said] if unused else []
    if not predicted.exists():
        raise InputError("does not exist", "check the path", file=predicted)
    files = sorted(predicted.rglob("*.npz")) if predicted.is_dir() else [predicted]
    if not files:
        raise InputError(
            "holds no NPZ files with map and label",
            "give such a folder, or one of maps and one of labels",
            file=predicted,
        )
    root = predicted if predicted.is_dir() else predicted.parent
    return [
        (str(p.relative_to(root).with_suffix("")), p, partial(read_case, p, limits)) for p in files
    ], []


def _both(predicted: Path, reference: Path, limits: Limits) -> MapCase:
    """A map and its label from two files."""
    image = read(predicted, None, limits)
    with naming(reference):
        truth = read(reference, None, limits)
        label = labels_of(truth, [])
    refuse_other_grid(image, truth)
    if len(image.data) > 1:
        raise InputError(f"holds {len(image.data)} values a voxel", "give the map of one class")
    return MapCase(image.data[0], label, truth.spacing)


def _candidates(case: MapCase, maps: Maps) -> NDArray[np.floating]:
    """The detection map of a case.

    Raises:
        InputError: The map is not what it was said to be.
    """
    image = case.map
    low, high = float(image.min()), float(image.max())
    if not (low >= 0 and high <= 1):  # NaN too
        raise InputError(
            f"holds values from {low:.3g} to {high:.3g}, not from 0 to 1",
            "give probabilities, the softmax or sigmoid of logits",
        )
    if maps == "probability":
        return detection.extract_candidates(image)[0]
    if not detection.is_detection_map(image):
        raise InputError(
            "holds more than one value in a candidate, as probabilities do",
            "give --maps probability",
        )
    return image


def _around(outcome: NDArray[np.bool_], spacing: tuple[float, ...] | None) -> tuple[slice, ...]:
    """The box around lesions with `NEAR` mm on each side; nothing where there is none."""
    inside = box(outcome)
    if inside is None or spacing is None:
        return (slice(0, 0),) * outcome.ndim
    reach = [math.ceil(NEAR / s) for s in spacing]
    return tuple(slice(max(0, s.start - r), s.stop + r) for s, r in zip(inside, reach, strict=True))


def _calibrated(sums: Reliability) -> dict[str, Any]:
    return {
        "voxels": sums.n,
        "ece": sums.ece,
        "brier": sums.brier,
        "nll": sums.nll,
        "bins": sums.table(),
    }


def _numbers(
    scores: Floats,
    positive: NDArray[np.bool_],
    rows: Sequence[detection.Row],
    of_case: NDArray[np.int64],
    weights: Floats,
    n_patients: int,
) -> dict[str, Any]:
    """Areas and rates with intervals; a number that does not exist has a reason.

    Args:
        scores: (cases,).
        positive: (cases,) whether there is a lesion.
        rows: Of all cases.
        of_case: (rows,) index of the case.
        weights: (draws, cases) how much each case counts in each draw.
        n_patients: Of all cases.
    """
    confidence = np.array([row.confidence for row in rows])
    lesion = np.array([row.lesion for row in rows], bool)

    def under(w: Floats) -> dict[str, Floats]:
        each = w[:, of_case]
        area = detection.auroc(scores, positive, w)
        precision = detection.average_precision(confidence, lesion, each)
        found = detection.froc(confidence, lesion, w.sum(1), each)
        by_rate = {f"froc {k}": found[:, k] for k in range(found.shape[1])}
        return {"auroc": area, "ap": precision, "score": (area + precision) / 2, **by_rate}

    once, drawn = under(np.ones((1, len(scores)))), under(weights)
    numbers = {k: percentiles(float(v[0]), drawn[k], n_patients) for k, v in once.items()}
    reasons = {}
    if positive.all() or not positive.any():
        which = "every" if positive.all() else "no"
        reasons["auroc"] = f"{which} case has a lesion: there is nothing to tell apart"
    if not lesion.any():
        reasons["ap"] = reasons["froc"] = "no case has a lesion that could be found"
    if reasons:
        reasons["score"] = "; ".join(dict.fromkeys(reasons.values()))
    areas: dict[str, Any] = {}
    for name in ("auroc", "ap", "score"):
        areas |= {name: numbers[name].value, f"{name}_interval": numbers[name].ends}
    return {
        **areas,
        "froc": [
            {"false_positives_per_case": at} | spelt(numbers[f"froc {k}"])
            for k, at in enumerate(detection.FALSE_POSITIVES)
        ],
        "reasons": reasons,
        "draws_of_one_class": int(np.isnan(drawn["auroc"]).sum()),
    }


def _table(record: Mapping[str, Any]) -> tuple[str, ...]:
    lines = [f"{'number':<28}value [95 %]"]
    for name, word in (("auroc", "AUROC"), ("ap", "AP"), ("score", "score")):
        low, high = record[f"{name}_interval"]
        text = Interval(record[name], low, high).text
        text = f"none: {record['reasons'][name]}" if name in record["reasons"] else text
        lines.append(f"{word:<28}{text}")
    if "froc" not in record["reasons"]:
        for one in record["froc"]:
            text = Interval(one["value"], one["low"], one["high"]).text
            word = f"sensitivity at {one['false_positives_per_case']:g} FP"
            lines.append(f"{word:<28}{text}")
    return tuple(lines)
