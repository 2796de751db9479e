"""`medssl recon`: raw k-space in, an image that viewers open out."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from medssl.core.errors import UsageError, printable

from ._options import Change, Device, Json, Memory, Overwrite, Quiet, Seed, Threads, settings
from ._progress import progress


class To(StrEnum):
    """What kind of file comes out."""

    nii = "nii"
    dicom = "dicom"


class MapSets(StrEnum):
    """How many sets of coil maps."""

    auto = "auto"
    one = "1"
    two = "2"


class Whiten(StrEnum):
    """Whether the noise of the coils is made independent first."""

    off = "off"
    on = "on"


def recon(
    scan: Annotated[
        Path, typer.Argument(metavar="IN", help="Siemens .dat, ISMRMRD or fastMRI .h5, .cfl, .npy.")
    ],
    out: Annotated[Path | None, typer.Argument(metavar="[OUT]", help="Default: beside IN.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The same as OUT.")] = None,
    method: Annotated[
        str, typer.Option(help="auto, sense, l1-wavelet, tv, zero-shot, ...; see `medssl methods`.")
    ] = "auto",
    weights: Annotated[
        Path | None, typer.Option("--weights", metavar="RUN", help="What `medssl train` left.")
    ] = None,
    weight: Annotated[
        str,
        typer.Option(
            "--lambda", "--lam", help="Weight of the prior where images are about 1, or auto."
        ),
    ] = "auto",
    maps: Annotated[
        str, typer.Option(help="espirit, or a file of coil maps (.npy, .cfl).")
    ] = "espirit",
    map_sets: Annotated[MapSets, typer.Option(help="Sets of coil maps.")] = MapSets.auto,
    coils: Annotated[int, typer.Option(min=1, help="Virtual coils, at most.")] = 10,
    whiten: Annotated[Whiten, typer.Option(help="Make the coils' noise independent.")] = Whiten.off,
    noise_scan: Annotated[
        Path | None, typer.Option(help="Samples without signal (coil, n), .npy.")
    ] = None,
    axes: Annotated[
        str | None, typer.Option(help="Axes of an array file, as in coil,ky,kx.")
    ] = None,
    frame: Annotated[
        int | None, typer.Option(help="Which echo, repetition or set, from 0.")
    ] = None,
    trajectory: Annotated[
        str | None, typer.Option(help="radial-360, radial-180, or a file.")
    ] = None,
    to: Annotated[To, typer.Option(help="Kind of the output.")] = To.nii,
    like: Annotated[
        Path | None, typer.Option(help="DICOM series of the patient, for `--to dicom`.")
    ] = None,
    preview: Annotated[bool, typer.Option(help="Draw OUT.preview.png.")] = True,
    change: Change = None,
    device: Device = "auto",
    memory: Memory = None,
    threads: Threads = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make an image of raw k-space. Coil maps and regularisation are found from the data."""
    if out is not None and output is not None:
        raise UsageError("the output is named twice, as OUT and with -o", "name it once")
    from medssl import api

    with progress(quiet or as_json) as show:
        done = api.recon(
            scan,
            out or output,
            method=method,
            weights=weights,
            lambda_=_weight(weight),
            maps=None if maps == "espirit" else maps,
            map_sets="auto" if map_sets is MapSets.auto else 1 if map_sets is MapSets.one else 2,
            coils=coils,
            whiten=whiten is Whiten.on,
            noise_scan=noise_scan,
            axes=axes,
            frame=frame,
            trajectory=trajectory,
            to=to.value,
            like=like,
            preview=preview,
            settings=settings(change or []),
            device=device,
            memory=memory,
            threads=threads,
            seed=seed,
            overwrite=overwrite,
            progress=show,
        )
    for warning in done.record["warnings"]:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(f"{scan.name}: {done.line}", err=True)
    if as_json:
        typer.echo(json.dumps(done.record, indent=2))
    else:
        typer.echo("\n".join(str(path) for path in done.files))


def _weight(text: str) -> float | Literal["auto"]:
    """A number that is not negative, or `auto`."""
    if text == "auto":
        return "auto"
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise UsageError(f"--lambda is {printable(text)!r}", "give auto, or a number from 0 on")
    return value
