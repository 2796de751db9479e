"""`medssl info`: what a file or a folder holds."""

import json
from typing import Annotated, Any

import typer

from ._options import Json, Scan, Series


def info(
    scan: Scan,
    series: Series = None,
    axes: Annotated[
        str | None, typer.Option(help="Axes of raw data in an array file, as in coil,ky,kx.")
    ] = None,
    trajectory: Annotated[
        str | None, typer.Option(help="Of raw data: radial-360, radial-180, or a file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show a scan and check that it is whole, list the series of a folder, or what a run holds."""
    from medssl import api

    found = api.info(scan, series, axes=axes, trajectory=trajectory)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    elif "series" in found:
        _table(found["series"])
    elif "run" in found:
        typer.echo("\n".join(_run_lines(found["run"])))
    elif "kspace" in found:
        typer.echo("\n".join(_raw_lines(found["kspace"])))
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


def _raw_lines(facts: dict[str, Any]) -> list[str]:
    """Raw data: what was measured, by how many coils, and where it lies."""

    def times(numbers: list[float]) -> str:
        return " x ".join(f"{n:g}" for n in numbers)

    if facts["shots"] is not None:
        measured = f"{facts['shots']} shots of {facts['samples_per_shot']} samples"
    else:
        stated = facts["acceleration_in_header"]
        said = f", {stated:g} in the header" if stated is not None else ""
        measured = f"R {facts['acceleration']:.3g}{said}"
    grid = "" if facts["grid"] == facts["matrix"] else f", cut from {times(facts['grid'])}"
    lines = [
        f"coils        {facts['coils']}",
        f"matrix       {times(facts['matrix'])}{grid}",
        f"spacing      {times(facts['spacing_mm'])} mm",
        f"view         {times(facts['field_of_view_mm'])} mm",
        f"measured     {measured}",
        f"oversampling {facts['readout_oversampling']:g} along the readout",
        f"noise scan   {'yes' if facts['noise_scan'] else 'no'}",
        f"frames       {facts['frames']}",
        f"geometry     {facts['geometry']}",
    ]
    return lines + [f"warning      {w}" for w in facts["warnings"]]


def _run_lines(run: dict[str, Any]) -> list[str]:
    recipe = run.get("recipe") or run["wanted"]["recipe"]
    lines = [f"recipe       {recipe['name']} ({recipe['method']['name']})"]
    if "seen" in run:
        seen = run["seen"]
        lines.append(f"learnt from  {seen['learnt']} scans, {seen['tested']} more for testing")
        kinds = {"recon": _scan_lines, "pretrain": _view_lines}
        lines += kinds.get(recipe["task"], _image_lines)(seen)
        lines.append(f"parameters   {run['parameters']}")
    if "held_out" in run.get("loss", {}):
        first, lowest = run["loss"]["held_out_at_first"], run["loss"]["held_out"]
        lines.append(f"held-out     loss {first:.4g} at first, {lowest:.4g} in the end")
    if run.get("complete"):
        lines.append(f"weights      whole, sha256 {run['weights']['sha256'][:12]}")
    else:
        steps = run["checkpoints"][-1] if run["checkpoints"] else 0
        lines.append(f"weights      not complete: {steps} of {recipe['train']['steps']} steps")
    return lines


def _image_lines(seen: dict[str, Any]) -> list[str]:
    """What a method that removes noise has seen."""
    kinds = ", ".join(f"{n} {name or 'not CT'}" for name, n in seen["modalities"].items())
    laws = ", ".join(f"{n} {name}" for name, n in seen["laws"].items())
    low, high = seen["level"]
    return [
        f"scans        {kinds}",
        f"noise        {laws}; {low:.2g} to {high:.2g} of the range of values",
        f"crops        along {seen['axes']} axes",
    ]


def _view_lines(seen: dict[str, Any]) -> list[str]:
    """What an encoder has seen."""
    kinds = ", ".join(f"{n} {name or 'unknown'}" for name, n in seen["modalities"].items())
    return [
        f"scans        {kinds}",
        f"images       {seen['images']} of {seen['patients']} patients, along {seen['axes']} axes",
    ]


def _scan_lines(seen: dict[str, Any]) -> list[str]:
    """What a method that makes images of raw data has seen."""
    low, high = seen["acceleration"]
    return [
        f"scans        {seen['generated']} generated, {seen['pictures']} of magnitude images, "
        f"{seen['labelled']} with a truth",
        f"sampling     R {low:.2g} to {high:.2g}",
        f"noise        up to {seen['sigma'][1]:.2g} where images are about 1",
    ]
