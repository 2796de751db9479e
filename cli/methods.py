"""`medssl methods`: what can be asked for by name."""

import json

import typer

from ._options import Json


def methods(as_json: Json = False) -> None:
    """List the methods and what each one is."""
    from medssl import config

    rows = [
        {
            "task": task,
            "name": name,
            "method": recipe.method,
            "title": config.methods(task)[recipe.method].rstrip("."),
            "learns": recipe.train is not None,
            "reference": config.reference(task, recipe.method),
        }
        for task in config.TASKS
        for name in config.recipes(task)
        for recipe in (config.load(task, name),)
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    wide = max(len(str(row["name"])) for row in rows)
    for row in rows:
        learns = "learns from the scan" if row["learns"] else "learns nothing"
        typer.echo(f"{row['task']:8} {row['name']:{wide}}  {row['title']} ({learns})")
