"""Predictions and references that belong together, found by their names."""

from dataclasses import dataclass
from pathlib import Path

from medssl.core.errors import InputError, printable
from medssl.io.folder import SUFFIXES
from medssl.io.limits import Limits

ENDINGS = ("_mask", "_seg", "_label", "_gt", "_pred")
"""Of names, which say what a file is and not of which case."""
SHOWN = 3
"""Names in a refusal."""


@dataclass(frozen=True)
class Pair:
    """A prediction and its reference."""

    name: str
    """Of the case."""
    predicted: Path
    reference: Path


def find_pairs(
    predicted: Path, reference: Path, limits: Limits | None = None
) -> tuple[list[Pair], int]:
    """Two files, or the files of two folders with the same names but for kind and `ENDINGS`.

    Args:
        predicted: File or folder.
        reference: Of the same sort.
        limits: Bounds of what a folder may hold.

    Returns:
        Pairs in the order of names; how many predictions have no reference.

    Raises:
        InputError: Missing, a file beside a folder, two files of one name, or a reference without
            its prediction.
    """
    for path in (predicted, reference):
        if not path.exists():
            raise InputError("does not exist", "check the path", file=path)
    if predicted.is_dir() != reference.is_dir():
        one = predicted if predicted.is_dir() else reference
        raise InputError("is a folder, the other is a file", "give two of a kind", file=one)
    if predicted.is_file():
        return [Pair(case_name(reference), predicted, reference)], 0
    limits = limits or Limits()
    ours, theirs = _named(predicted, limits), _named(reference, limits)
    lost = [name for name in theirs if name not in ours]
    if not theirs:
        raise InputError("holds no label maps", "give NIfTI, PNG, TIFF or NPY", file=reference)
    if lost:
        shown = ", ".join(printable(name, 30) for name in lost[:SHOWN])
        raise InputError(
            f"has no prediction for {len(lost)} of {len(theirs)} references ({shown})",
            "name both files of a case alike",
            file=predicted,
        )
    pairs = [Pair(name, ours[name], path) for name, path in sorted(theirs.items())]
    return pairs, len(ours) - len(pairs)


def case_name(path: Path | str) -> str:
    """The name of a file without what says its kind."""
    name = Path(path).name
    ending = max((s for s in SUFFIXES if name.lower().endswith(s)), key=len, default="")
    name = name[: len(name) - len(ending)]
    last = next((e for e in ENDINGS if name.lower().endswith(e) and len(name) > len(e)), "")
    return name[: len(name) - len(last)]


def _named(folder: Path, limits: Limits) -> dict[str, Path]:
    """Files by their place below the folder and the name of their case."""
    found: dict[str, Path] = {}
    files = [
        p
        for p in sorted(folder.rglob("*"))
        if p.name.lower().endswith(SUFFIXES) and not p.name.startswith(".") and p.is_file()
    ]
    if len(files) > limits.files:
        raise InputError(
            f"holds more than {limits.files} files", "give a smaller folder", file=folder
        )
    for path in files:
        name = str(path.relative_to(folder).parent / case_name(path))
        other = found.setdefault(name, path)
        if other != path:
            raise InputError(
                f"and {printable(other.name, 60)} are of one case", "keep one of them", file=path
            )
    return found
