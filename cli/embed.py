"""`medssl embed`: scans in, features of a pretrained encoder out."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ._options import Device, Json, Memory, Overwrite, Quiet, Threads
from ._progress import progress


class Per(StrEnum):
    """What a row is of."""

    volume = "volume"
    slice = "slice"
    patch = "patch"


def embed(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="A store, a scan, or a folder of scans.")
    ],
    weights: Annotated[
        Path, typer.Option("-w", "--weights", metavar="RUN", help="What `medssl pretrain` left.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="F", help="F.parquet, F.csv or F.npz.")
    ],
    per: Annotated[Per, typer.Option(help="What a row is of.")] = Per.volume,
    overlap: Annotated[
        float, typer.Option(help="Share of a window that the next one shows again.")
    ] = 0.25,
    l2: Annotated[bool, typer.Option("--l2", help="Divide each row by its length.")] = False,
    device: Device = "auto",
    memory: Memory = None,
    threads: Threads = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Turn scans into features, one row each; rows are named by hashes."""
    from medssl import api

    with progress(quiet or as_json) as show:
        done = api.embed(
            source,
            output,
            weights=weights,
            per=per.value,
            overlap=overlap,
            unit_length=l2,
            device=device,
            memory=memory,
            threads=threads,
            overwrite=overwrite,
            progress=show,
        )
    for refusal in done.refused:
        typer.echo(f"warning: passed over: {refusal}", err=True)
    typer.echo(done.line, err=True)
    typer.echo(json.dumps(done.record, indent=2) if as_json else str(done.files[0]))
