"""`medssl export`: a pretrained encoder under the names of other tools."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ._options import Json, Overwrite


class To(StrEnum):
    """Whose names."""

    monai_unet = "monai-unet"
    monai_segresnet = "monai-segresnet"
    monai_swinunetr = "monai-swinunetr"
    nnunet_resenc = "nnunet-resenc"
    resnet50 = "resnet50"


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="What `medssl pretrain` left.")],
    to: Annotated[To, typer.Option(help="Whose net.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="F", help="F.safetensors, F.keymap.json.")
    ],
    channels: Annotated[
        int | None, typer.Option(min=1, help="Of the target's images; default: the encoder's.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write the weights of an encoder for MONAI, nnU-Net or torchvision, and list every one."""
    from medssl import api

    done = api.export(run, output, to=to.value, channels=channels, overwrite=overwrite)
    typer.echo(done.line, err=True)
    typer.echo(done.record["load"], err=True)
    text = "\n".join(str(path) for path in done.files)
    typer.echo(json.dumps(done.record, indent=2) if as_json else text)
