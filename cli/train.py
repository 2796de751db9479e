"""`medssl train`: many scans in, weights for `medssl denoise` and `medssl recon` out."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ._options import (
    Change,
    Device,
    DryRun,
    Json,
    Law,
    Memory,
    Overwrite,
    Quiet,
    Resume,
    Run,
    Seed,
    Steps,
    Threads,
    settings,
)
from ._progress import progress


def train(
    data: Annotated[
        Path, typer.Option("--data", metavar="DIR", help="Folder of scans, at any depth.")
    ],
    output: Run,
    recipe: Annotated[
        str | None, typer.Option(help="denoise/NAME, recon/NAME, or a YAML file; --resume knows.")
    ] = None,
    steps: Steps = None,
    noise: Annotated[Law, typer.Option(help="Noise law of all images.")] = Law.auto,
    change: Change = None,
    device: Device = "auto",
    memory: Memory = None,
    threads: Threads = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    resume: Resume = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Learn from many scans; needs no clean ones. Ctrl-C saves, --resume goes on."""
    from medssl import api

    with progress(quiet or as_json) as show:
        done = api.train(
            data,
            output,
            recipe,
            steps=steps,
            noise=noise.value,
            settings=settings(change or []),
            device=device,
            memory=memory,
            threads=threads,
            seed=seed,
            overwrite=overwrite,
            resume=resume,
            dry_run=dry_run,
            progress=show,
            watch=None if show is None else show.numbers,
        )
    for refusal in done.refused:
        typer.echo(f"warning: passed over: {refusal}", err=True)
    for warning in done.warnings:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(done.line, err=True)
    typer.echo(json.dumps(done.record, indent=2) if as_json else str(done.run))
