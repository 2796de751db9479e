"""`medssl pretrain`: a store in, an encoder out, without labels."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ._options import (
    Change,
    Device,
    DryRun,
    Json,
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


def pretrain(
    data: Annotated[
        Path, typer.Option("--data", metavar="STORE", help="What `medssl archive prepare` made.")
    ],
    output: Run,
    recipe: Annotated[
        str | None, typer.Option(help="pretrain/NAME, NAME, or a YAML file; --resume knows.")
    ] = None,
    steps: Steps = None,
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
    """Learn an encoder without labels. Also under torchrun; Ctrl-C saves, --resume goes on."""
    from medssl import api
    from medssl.engine.distributed import is_first

    with progress(quiet or as_json or not is_first()) as show:
        done = api.pretrain(
            data,
            output,
            recipe,
            steps=steps,
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
    if not is_first():
        return
    for warning in done.warnings:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(done.line, err=True)
    typer.echo(json.dumps(done.record, indent=2) if as_json else str(done.run))
