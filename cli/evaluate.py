"""`medssl evaluate`: how good segmentations or detections are."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ._options import Json, Memory, Overwrite, Quiet, Seed
from ._progress import progress


class Task(StrEnum):
    """What is compared."""

    seg = "seg"
    detect = "detect"


class Empty(StrEnum):
    """What an empty mask is worth."""

    skip = "skip"
    one = "one"
    diagonal = "diagonal"


class Maps(StrEnum):
    """What is given for detection."""

    probability = "probability"
    detection = "detection"


def evaluate(
    predicted: Annotated[
        Path, typer.Argument(metavar="PRED", help="Label maps or maps: a file or a folder.")
    ],
    reference: Annotated[
        Path | None,
        typer.Argument(metavar="REF", help="True label maps; none if NPZ files hold both."),
    ] = None,
    task: Annotated[Task, typer.Option(help="Labels voxel by voxel, or lesions.")] = Task.seg,
    group_by: Annotated[
        Path | None, typer.Option(metavar="CSV", help="Columns case, patient.")
    ] = None,
    empty: Annotated[
        Empty, typer.Option(help="Leave empty masks out, count two as 1, or one as the diagonal.")
    ] = Empty.skip,
    tolerance: Annotated[float, typer.Option(metavar="MM", help="Of NSD.")] = 1.0,
    maps: Annotated[
        Maps, typer.Option(help="For detect: probabilities, or candidates with a confidence.")
    ] = Maps.probability,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="F.json", help="File to write.")
    ] = None,
    memory: Memory = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Dice, IoU, HD95, ASSD, NSD; or AUROC, AP, FROC of lesions; with intervals by patient."""
    from medssl import api

    with progress(quiet or as_json) as show:
        done = api.evaluate(
            predicted,
            reference,
            task=task.value,
            group_by=group_by,
            empty=empty.value,
            tolerance=tolerance,
            maps=maps.value,
            out=output,
            memory=memory,
            seed=seed,
            overwrite=overwrite,
            progress=show,
        )
    for warning in done.warnings:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(done.line, err=True)
    typer.echo(json.dumps(done.record, indent=2) if as_json else "\n".join(done.table))
