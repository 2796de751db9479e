"""What is asked of an evaluation, what it gives, and whose the cases are."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from medssl.core.errors import InputError, UsageError, printable
from medssl.core.image import Image
from medssl.io.features import read_csv
from medssl.io.pairs import case_name
from medssl.io.picture import PictureOrigin
from medssl.metrics.interval import Interval, patients_drawn
from medssl.metrics.overlap import Empty

Task = Literal["seg", "detect"]
Maps = Literal["probability", "detection"]
THRESHOLD = 127
"""Of 8-bit masks that hold no label values."""
MOST_LABELS = {True: 50, False: 1000}
"""Values of a label map; in pictures more are shades of grey."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be found out."""

    task: Task = "seg"
    empty: Empty = "skip"
    tolerance: float = 1.0
    """Of NSD, mm."""
    maps: Maps = "probability"
    """What is given for detection: probabilities, or candidates with their confidence."""
    seed: int = 0
    """Of the draws of patients."""

    def __post_init__(self) -> None:
        """Refuse words and numbers that cannot be."""
        words = (("task", Task), ("empty", Empty), ("maps", Maps))
        for name, known in words:
            given = getattr(self, name)
            if given not in get_args(known):
                fact = f"--{name} knows no {printable(given, 20)!r}"
                raise UsageError(fact, f"choose {', '.join(get_args(known))}")
        if not (math.isfinite(self.tolerance) and self.tolerance >= 0):
            raise UsageError(f"a tolerance of {self.tolerance:g} mm", "give 0 or more")


@dataclass(frozen=True, eq=False)
class Evaluated:
    """What was found out."""

    record: Mapping[str, Any]
    """Numbers of all cases and of each; NaN where there is none."""
    table: tuple[str, ...]
    """The same in a few lines."""
    warnings: tuple[str, ...]


def patients_of(names: Sequence[str], group_by: Path | None) -> tuple[list[str], list[str]]:
    """Whose case each is, and what the user should know of it.

    Raises:
        InputError: The table does not say it of a case, or says two things.
    """
    if group_by is None:
        said = "each case is taken for a patient; name them with --group-by FILE"
        return list(names), [said] if len(names) > 1 else []
    columns = read_csv(group_by)
    case = next((c for c in ("case", "file", "id") if c in columns), None)
    patient = next((c for c in ("patient", "group") if c in columns), None)
    if case is None or patient is None:
        raise InputError(
            f"has columns {printable(', '.join(columns), 60)}",
            "give columns case and patient",
            file=group_by,
        )
    known: dict[str, str] = {}
    for name, whose in _named(columns[case], columns[patient]):
        if known.setdefault(name, whose) != whose:
            raise InputError(
                f"gives {printable(name, 40)} two patients", "remove one of them", file=group_by
            )
    lost = [n for n in names if n not in known]
    if lost:
        raise InputError(
            f"does not name {len(lost)} of {len(names)} cases ({printable(lost[0], 40)})",
            "give a line for each case",
            file=group_by,
        )
    return [known[n] for n in names], []


def _named(cases: Sequence[str], patients: Sequence[str]) -> Iterator[tuple[str, str]]:
    for case, patient in zip(cases, patients, strict=True):
        path = Path(case)
        yield str(path.parent / case_name(path).removesuffix(".npz")), patient


def labels_of(image: Image, warnings: list[str]) -> NDArray[np.int64]:
    """(*spatial) values of a label map.

    Raises:
        InputError: It is none.
    """
    data = image.data
    if image.channels == "colour" and (data == data[:1]).all():
        data = data[:1]  # grey that was saved as colour
    if len(data) > 1:
        raise InputError(f"holds {len(data)} {image.channels} values a voxel", "give a label map")
    if image.valid is not None:
        raise InputError("holds values that are NaN or infinite", "give a label map")
    values = np.unique(data)
    origin = image.origin
    picture = isinstance(origin, PictureOrigin) and origin.kind != "npy"
    if isinstance(origin, PictureOrigin) and origin.kind == "jpeg":
        warnings.append(f"JPEG masks hold no label values: cut above {THRESHOLD}")
        return (data[0] > THRESHOLD).astype(np.int64)
    if picture and values.max() == 255 and set(values.tolist()) <= {0, 255}:
        return (data[0] > THRESHOLD).astype(np.int64)  # black and white
    if not np.array_equal(values, np.rint(values)) or values.min() < 0:
        odd = next(v for v in values.tolist() if v < 0 or v != round(v))
        raise InputError(
            f"holds the value {odd:g}, labels are whole numbers from 0 on",
            "give a label map; probabilities are for --task detect",
        )
    if len(values) > MOST_LABELS[picture]:
        raise InputError(f"holds {len(values)} different values", "give a label map")
    return data[0].astype(np.int64)


def refuse_other_grid(image: Image, truth: Image) -> None:
    """Labels are compared where they were made.

    Raises:
        InputError: The grids differ in shape, or by more than a thousandth of a mm.
    """
    ours, theirs = image.geometry, truth.geometry
    if ours.same_grid(theirs):
        return
    if ours.shape != theirs.shape:
        a, b = ("x".join(map(str, g.shape)) for g in (ours, theirs))
        fact = f"has {a} voxels, its reference {b}"
    else:
        fact = f"lies {ours.distance(theirs):.3g} mm from the grid of its reference"
    raise InputError(fact, "bring it back to the grid of the reference (nearest neighbour)")


def spelt(value: Interval) -> dict[str, float]:
    """A number and its interval as a record has them."""
    return {"value": value.value, "low": value.low, "high": value.high}


def draws_of(patients: Sequence[str], seed: int, warnings: list[str]) -> Floats:
    """(draws, cases) how much each case counts; that one patient says nothing is a warning."""
    weights = patients_drawn(np.array(patients), np.random.default_rng(seed))
    if not len(weights):
        warnings.append("cases of one patient say nothing of others: no intervals")
    return weights
