"""A group of verbs that says what a misspelt one may have meant."""

from typing import Any

from typer.core import TyperGroup


class Verbs(TyperGroup):
    """A group that says what a misspelt verb may have meant."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        from medssl.config import nearest
        from medssl.core.errors import UsageError, printable

        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            known = self.list_commands(ctx)
            hint = nearest(args[0], known) or f"verbs: {', '.join(known)}"
            raise UsageError(f"there is no verb {printable(args[0])!r}", hint.strip())
        return super().resolve_command(ctx, args)
