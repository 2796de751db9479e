"""How good segmentations or detections are: scores of cases, their means, intervals by patient."""

from pathlib import Path

from medssl.core.errors import UsageError
from medssl.core.progress import Progress
from medssl.engine.label_scores import segmentation
from medssl.engine.lesion_scores import lesions
from medssl.engine.scored import Asked, Evaluated
from medssl.io.limits import Limits


def evaluate(
    predicted: Path,
    reference: Path | None,
    group_by: Path | None,
    asked: Asked,
    limits: Limits,
    tell: Progress,
) -> Evaluated:
    """Score predictions.

    Args:
        predicted: File or folder; for detection also a folder of NPZ files that hold the label too.
        reference: Of the same sort; None with NPZ files.
        group_by: CSV that says whose case it is; None takes each case for a patient.
        asked: What is to be found out.
        limits: Bounds of what a file may ask for.
        tell: Told how far it is.

    Raises:
        UsageError: No reference for segmentations.
        InputError: Files that do not fit one another, or hold something else.
    """
    if asked.task == "detect":
        return lesions(predicted, reference, group_by, asked, limits, tell)
    if reference is None:
        raise UsageError("there is no reference", "name it: medssl evaluate PRED REF")
    return segmentation(predicted, reference, group_by, asked, limits, tell)
