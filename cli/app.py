"""All verbs under one name."""

from importlib.metadata import version
from typing import Annotated, Any

import typer

from . import (
    archive,
    demo,
    denoise,
    doctor,
    embed,
    evaluate,
    export,
    info,
    methods,
    pretrain,
    probe,
    recon,
    train,
)
from ._verbs import Verbs

app = typer.Typer(
    cls=Verbs,
    help="Denoise medical images without clean or labelled data. Research use only.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (
    denoise,
    recon,
    train,
    pretrain,
    embed,
    probe,
    evaluate,
    export,
    info,
    methods,
    doctor,
    demo,
):
    app.command(verb.__name__.rpartition(".")[2])(getattr(verb, verb.__name__.rpartition(".")[2]))
app.add_typer(archive.app, name="archive")


def _print_version(value: bool) -> None:
    if value:
        typer.echo(version("medssl"))
        raise typer.Exit


@app.callback()
def common(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Denoise medical images without clean or labelled data. Research use only."""
    del show_version, debug


def command() -> Any:
    """The command behind the verbs."""
    return typer.main.get_command(app)
