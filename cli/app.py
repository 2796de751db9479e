"""All verbs under one name."""

from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from . import demo, denoise, doctor, info, methods, pretrain, recon, train


class _Verbs(TyperGroup):
    """A group that says what a misspelt verb may have meant."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        from medssl.config import nearest
        from medssl.core.errors import UsageError, printable

        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            known = self.list_commands(ctx)
            hint = nearest(args[0], known) or f"verbs: {', '.join(known)}"
            raise UsageError(f"there is no verb {printable(args[0])!r}", hint.strip())
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_Verbs,
    help="Denoise medical images without clean or labelled data. Research use only.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (denoise, recon, train, pretrain, info, methods, doctor, demo):
    app.command(verb.__name__.rpartition(".")[2])(getattr(verb, verb.__name__.rpartition(".")[2]))


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
