"""`medssl info`: what a file or a folder holds."""

import json
from typing import Any

import typer

from ._options import Json, Scan, Series


def info(scan: Scan, series: Series = None, as_json: Json = False) -> None:
    """Show a scan and check that it is whole, list the series of a folder, or what a run holds."""
    from medssl import api

    found = api.info(scan, series)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    elif "series" in found:
        _table(found["series"])
    else:
        lines = _run_lines(found["run"]) if "run" in found else _lines(found["image"])
        typer.echo("\n".join(lines))


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


def _run_lines(run: dict[str, Any]) -> list[str]:
    recipe = run.get("recipe") or run["wanted"]["recipe"]
    lines = [f"recipe       {recipe['name']} ({recipe['method']['name']})"]
    if "seen" in run:
        seen = run["seen"]
        kinds = ", ".join(f"{n} {name or 'not CT'}" for name, n in seen["modalities"].items())
        laws = ", ".join(f"{n} {name}" for name, n in seen["laws"].items())
        low, high = seen["level"]
        lines += [
            f"learnt from  {seen['learnt']} scans, {seen['tested']} more for testing",
            f"scans        {kinds}",
            f"noise        {laws}; {low:.2g} to {high:.2g} of the range of values",
            f"crops        along {seen['axes']} axes",
            f"parameters   {run['parameters']}",
        ]
    if "held_out" in run.get("loss", {}):
        first, lowest = run["loss"]["held_out_at_first"], run["loss"]["held_out"]
        lines.append(f"held-out     loss {first:.4g} at first, {lowest:.4g} in the end")
    if run.get("complete"):
        lines.append(f"weights      whole, sha256 {run['weights']['sha256'][:12]}")
    else:
        steps = run["checkpoints"][-1] if run["checkpoints"] else 0
        lines.append(f"weights      not complete: {steps} of {recipe['train']['steps']} steps")
    return lines
