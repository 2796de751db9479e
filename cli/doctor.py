"""`medssl doctor`: is everything here that a run needs."""

import json

import typer

from ._options import Json


def doctor(as_json: Json = False) -> None:
    """Check packages, device, codecs, memory, disk, and denoise a phantom. Needs no network."""
    from medssl.doctor import examine

    checks = examine()
    failed = [c for c in checks if not c.passed]
    if as_json:
        typer.echo(json.dumps([c.as_dict() for c in checks], indent=2))
    else:
        for check in checks:
            typer.echo(check.line)
    raise typer.Exit(1 if failed else 0)
