"""`medssl denoise`: a noisy scan in, the same scan with less noise out."""

import json
from pathlib import Path
from typing import Annotated

import typer

from medssl.core.errors import UsageError

from ._options import (
    Change,
    Device,
    Dtype,
    Json,
    Law,
    Memory,
    Overwrite,
    Quality,
    Quiet,
    Scan,
    Seed,
    Series,
    Threads,
    To,
    settings,
)
from ._progress import progress


def denoise(
    scan: Scan,
    out: Annotated[Path | None, typer.Argument(metavar="[OUT]", help="Default: beside IN.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The same as OUT.")] = None,
    method: Annotated[str, typer.Option(help="auto, or a name from `medssl methods`.")] = "auto",
    quality: Annotated[
        Quality | None, typer.Option(help="How much time it is worth; default: standard.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Folder that `medssl train` wrote.")
    ] = None,
    sigma: Annotated[
        str, typer.Option(help="Noise in image units, a NIfTI map, or auto.")
    ] = "auto",
    noise: Annotated[Law, typer.Option(help="Noise law.")] = Law.auto,
    coils: Annotated[
        float | None, typer.Option(help="Coils of --noise chi; default: estimated.")
    ] = None,
    strength: Annotated[
        float | None, typer.Option(help="0 (nothing) to 1 (all); default: the recipe's.")
    ] = None,
    sigma_maps: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Filter with saved maps; fit nothing.")
    ] = None,
    roi: Annotated[
        list[str] | None,
        typer.Option(metavar="REGION", help="Voxels x0:x1,y0:y1,z0:z1, or a mask; repeatable."),
    ] = None,
    strength_in_roi: Annotated[
        list[float] | None,
        typer.Option(help="Of the filter in --roi: 0 (keep), 1 (as elsewhere), up to 10."),
    ] = None,
    mask: Annotated[Path | None, typer.Option(help="Change voxels only where it is not 0.")] = None,
    series: Series = None,
    bval: Annotated[
        Path | None, typer.Option(help="b-values of a diffusion series; default: beside IN.")
    ] = None,
    allow_gaps: Annotated[
        bool,
        typer.Option("--allow-gaps", help="Take a series with missing slices, slice by slice."),
    ] = False,
    to: Annotated[To, typer.Option(help="Kind of the output.")] = To.same,
    like: Annotated[
        Path | None, typer.Option(help="DICOM series whose headers `--to dicom` takes.")
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Stored type of the output.")] = Dtype.same,
    noise_map: Annotated[
        bool, typer.Option("--noise-map", help="Also write the noise's standard deviation.")
    ] = False,
    residual: Annotated[
        bool, typer.Option("--residual", help="Also write input minus output.")
    ] = False,
    save_sigma_maps: Annotated[
        bool,
        typer.Option("--save-sigma-maps", "--maps", help="Also write the method's maps of widths."),
    ] = False,
    preview: Annotated[bool, typer.Option(help="Draw OUT.preview.png.")] = True,
    change: Change = None,
    device: Device = "auto",
    memory: Memory = None,
    threads: Threads = None,
    seed: Seed = 0,
    strict: Annotated[
        bool, typer.Option("--strict", help="Write nothing if a CT quality gate fails (exit 7).")
    ] = False,
    overwrite: Overwrite = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Remove noise from a scan. Needs no weights, no network, no training data."""
    if out is not None and output is not None:
        raise UsageError("the output is named twice, as OUT and with -o", "name it once")
    from medssl import api

    with progress(quiet or as_json) as show:
        done = api.denoise(
            scan,
            out or output,
            method=method,
            quality=None if quality is None else quality.value,
            weights=weights,
            sigma=sigma,
            noise=noise.value,
            coils=coils,
            strength=strength,
            sigma_maps=sigma_maps,
            roi=roi,
            strength_in_roi=strength_in_roi,
            mask=mask,
            series=series,
            bval=bval,
            allow_gaps=allow_gaps,
            to=to.value,
            like=like,
            dtype=dtype.value,
            noise_map=noise_map,
            residual=residual,
            save_sigma_maps=save_sigma_maps,
            preview=preview,
            settings=settings(change or []),
            device=device,
            memory=memory,
            threads=threads,
            seed=seed,
            strict=strict,
            overwrite=overwrite,
            dry_run=dry_run,
            progress=show,
        )
    for warning in done.record["warnings"]:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(f"{scan.name}: {done.line}", err=True)
    for row in done.table:
        typer.echo(f"  {row}", err=True)
    if as_json:
        typer.echo(json.dumps(done.record, indent=2))
    else:
        typer.echo("\n".join(str(path) for path in done.files))
