"""`medssl methods`: what can be asked for by name."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from ._options import Json

if TYPE_CHECKING:
    from medssl.config import Recipe


def methods(as_json: Json = False) -> None:
    """List the methods and what each one is."""
    from medssl import config

    rows = []
    for task in config.TASKS:
        titles = config.methods(task)
        for name in config.recipes(task):
            recipe = config.load(task, name)
            parts = recipe.average or (recipe,)
            modules = list(dict.fromkeys(part.method for part in parts))
            title = "; ".join(titles[module].rstrip(".") for module in modules)
            rows.append(
                {
                    "task": task,
                    "name": name,
                    "method": recipe.method,
                    "title": f"Mean of {len(parts)}: {title}" if recipe.average else title,
                    "learns": _learns(parts),
                    "reference": "; ".join(config.reference(task, m) for m in modules),
                }
            )
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    wide = max(len(str(row["name"])) for row in rows)
    for row in rows:
        learns = f"learns {row['learns']}"
        typer.echo(f"{row['task']:8} {row['name']:{wide}}  {row['title']} ({learns})")


def _learns(parts: "Sequence[Recipe]") -> str:
    """What from: many scans for those that `medssl train` alone can fit."""
    if all(part.train is None for part in parts):
        return "nothing"
    if any(part.crops is not None for part in parts):
        return "from a store"
    return "from the scan" if all(part.raw is None for part in parts) else "from many scans"
