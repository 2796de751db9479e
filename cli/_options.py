"""Options that several verbs share, and the choices behind their words."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from medssl.core.errors import UsageError, printable

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; default: all cores.")]
Memory = Annotated[str | None, typer.Option(help="Upper bound, as in 4GB; default: what is free.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing outputs.")]
Series = Annotated[
    str | None, typer.Option(help="DICOM series: number from `medssl info`, UID, or description.")
]
Change = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a recipe's value.")
]
Seed = Annotated[int, typer.Option(help="Of every random number.")]
Run = Annotated[Path, typer.Option("-o", "--output", metavar="RUN", help="Folder to write.")]
Steps = Annotated[
    int | None, typer.Option("--steps", "--max-steps", help="In all; default: the recipe's.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where RUN stopped, if it was begun.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Look at the data; write nothing.")]
Scan = Annotated[
    Path, typer.Argument(metavar="IN", help="NIfTI, DICOM (file, folder, zip), PNG, ...")
]


class To(StrEnum):
    """What kind of file comes out."""

    same = "same"
    nii = "nii"
    dicom = "dicom"
    dicom_classic = "dicom-classic"


class Quality(StrEnum):
    """How much time a scan is worth."""

    fast = "fast"
    standard = "standard"
    high = "high"


class Dtype(StrEnum):
    """How voxels are stored in the output."""

    same = "same"
    float32 = "float32"


class Law(StrEnum):
    """Noise laws that can be asked for."""

    auto = "auto"
    gaussian = "gaussian"
    rician = "rician"
    chi = "chi"
    poisson = "poisson"
    gamma = "gamma"


def settings(pairs: list[str]) -> dict[str, object]:
    """`--set key=value` pairs as values of a recipe.

    Raises:
        UsageError: Not of the form key=value.
    """
    from medssl.config import scalar

    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"--set is {printable(pair)!r}", "write key=value")
        found[key] = scalar(value)
    return found
