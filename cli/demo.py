"""`medssl demo`: the main job on two scans that need no download."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ._options import Json, Overwrite, Quiet
from ._progress import progress


def demo(
    folder: Annotated[Path, typer.Argument(help="Where the outputs go.")] = Path("demo"),
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Denoise a real MR scan and a generated low-dose CT series, and say what was gained."""
    from medssl.demo import demo as run_demo

    with progress(quiet or as_json) as show:
        shown = run_demo(folder, overwrite=overwrite, progress=show)
    typer.echo(json.dumps(shown.record, indent=2) if as_json else shown.text)
