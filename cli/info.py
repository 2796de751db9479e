"""`medssl info`: what a file or a folder holds."""

import json
from typing import Any

import typer

from ._options import Json, Scan, Series


def info(scan: Scan, series: Series = None, as_json: Json = False) -> None:
    """Show the header of a scan and check that it is whole, or list the series of a folder."""
    from medssl import api

    found = api.info(scan, series)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    elif "series" in found:
        _table(found["series"])
    else:
        typer.echo("\n".join(_lines(found["image"])))


def _table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("number", "modality", "description", "voxels", "spacing mm", "images", box=None)
    for row in rows:
        voxels = " x ".join(map(str, row["shape"]))
        spacing = " x ".join(f"{v:g}" for v in row["spacing_mm"])
        description = row["description"] if row["refused"] is None else f"refused: {row['refused']}"
        cells = (row["number"], row["modality"], description, voxels, spacing, str(row["images"]))
        table.add_row(*map(escape, cells))
    Console(highlight=False).print(table, soft_wrap=True)


def _lines(facts: dict[str, Any]) -> list[str]:
    shape = " x ".join(map(str, facts["shape"]))
    several = f", {facts['channels']} of them ({facts['channels_are']})"
    scale = f"slope {facts['slope']:g}, intercept {facts['intercept']:g}"
    lines = [
        f"voxels       {shape}{several if facts['channels'] > 1 else ''}",
        f"spacing      {' x '.join(f'{v:g}' for v in facts['spacing_mm'])} mm",
        f"orientation  {facts['orientation']}",
        f"modality     {facts['modality'] or 'not said'}",
        f"stored       {facts['stored']}, {scale}"
        + (", varies by slice" if facts["scaling_varies"] else ""),
    ]
    return lines + [f"warning      {w}" for w in facts["warnings"]]
