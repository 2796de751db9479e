"""`medssl probe`: what a pretrained encoder is worth where labels are few."""

import json
from pathlib import Path
from typing import Annotated

import typer

from medssl.core.errors import UsageError, printable

from ._options import Device, Json, Memory, Overwrite, Quiet, Seed, Threads
from ._progress import progress


def probe(
    source: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Pretrainings with different seeds, or features."),
    ],
    labels: Annotated[
        Path, typer.Option(metavar="CSV", help="Columns id or file, label; slice, group.")
    ],
    task: Annotated[str, typer.Option(help="linear,knn or segment.")] = "linear,knn",
    data: Annotated[
        Path | None, typer.Option(metavar="STORE", help="Store or scans that runs are tried on.")
    ] = None,
    against: Annotated[
        list[Path] | None, typer.Option(help="Features to compare with, not random weights.")
    ] = None,
    numbers: Annotated[
        str, typer.Option("--n", help="Labels of each class, or labelled images.")
    ] = "5,20,100,all",
    seeds: Annotated[int, typer.Option(min=1, help="Draws of labels.")] = 5,
    twins: Annotated[
        int, typer.Option(min=1, help="Draws of random weights that each run is compared with.")
    ] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Of a fine-tuning.")] = 200,
    longer: Annotated[
        bool, typer.Option(help="For segment: also train with the compute of the pretraining.")
    ] = True,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="F", help="Writes F.json and F.csv.")
    ] = None,
    device: Device = "auto",
    memory: Memory = None,
    threads: Threads = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare pretrained features with random ones on few labels and on all, with intervals."""
    from medssl import api

    with progress(quiet or as_json) as show:
        done = api.probe(
            source,
            labels,
            task=[t.strip() for t in task.split(",") if t.strip()],
            data=data,
            against=against,
            numbers=_numbers(numbers),
            seeds=seeds,
            twins=twins,
            steps=steps,
            longer=longer,
            out=output,
            device=device,
            memory=memory,
            threads=threads,
            seed=seed,
            overwrite=overwrite,
            progress=show,
        )
    for warning in done.warnings:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(done.line, err=True)
    typer.echo(json.dumps(done.record, indent=2) if as_json else "\n".join(done.table))


def _numbers(text: str) -> list[int]:
    """`5,20,all` as numbers, 0 for all."""
    words = [w.strip() for w in text.split(",")]
    if not all(w == "all" or (w.isdecimal() and int(w) > 0) for w in words):
        raise UsageError(f"--n is {printable(text, 30)!r}", "write it like 5,20,all")
    return [0 if w == "all" else int(w) for w in words]
