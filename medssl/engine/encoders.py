"""Encoders of an earlier pretraining: what they are, and images as they see them."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medssl import config
from medssl.config import Crops, Recipe
from medssl.core.errors import InputError, UsageError, WeightsError, naming
from medssl.core.image import Image
from medssl.data.foreground import measure
from medssl.data.prepare import canonical
from medssl.data.store import Volume
from medssl.engine.build import channels, encoder
from medssl.engine.checkpoint import fill
from medssl.engine.weights import task_of
from medssl.io import weights as files
from medssl.io.run_folder import RECORD, RunFolder
from medssl.method import Encoder

AGAIN = "pretrain again"


@dataclass(frozen=True, eq=False)
class LoadedEncoder:
    """A pretrained encoder and what is known of it."""

    method: Encoder
    """In its evaluation mode."""
    recipe: Recipe
    settled: Mapping[str, Any]
    """Its `Config` with nothing left open."""
    record: Mapping[str, Any]
    """What the `run.json` of its pretraining holds."""
    sha256: str
    """Of the file of weights."""

    @property
    def crops(self) -> Crops:
        """How its images were cut and normalised."""
        assert self.recipe.crops is not None
        return self.recipe.crops

    @property
    def channels(self) -> int:
        """Of the images that it takes."""
        return channels(self.settled)

    def untrained(self, seed: int) -> Encoder:
        """The same method with weights that are drawn anew."""
        made, _ = encoder(dataclasses.replace(self.recipe, seed=seed))
        return made.eval()

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a sidecar."""
        return {
            "recipe": self.recipe.name,
            "method": self.recipe.method,
            "config": dict(self.settled),
            "sha256": self.sha256,
            "seed": self.record.get("wanted", {}).get("seed", self.recipe.seed),
        }


def load_encoder(run: Path, changes: Mapping[str, Any]) -> LoadedEncoder:
    """The encoder in the folder of a pretraining.

    Args:
        run: The folder, or the file of weights in it.
        changes: Dotted keys of the recipe with other values.

    Raises:
        WeightsError: Missing, not complete, damaged, of another task, not of the recipe, or with
            norms that know masked images alone.
        UsageError: A key that the recipe does not have.
    """
    folder = RunFolder(run.parent if run.is_file() else run)
    record = folder.record()
    with naming(folder.path):
        task = task_of(record)
        if task not in ("pretrain", ""):
            raise WeightsError(
                f"the training is of a {task} recipe", "give a run of `medssl pretrain`"
            )
        if record.get("complete") is not True:
            raise WeightsError(
                "the pretraining is not complete", "go on with medssl pretrain --resume"
            )
        try:
            sha256 = str(record["weights"]["sha256"])
            recipe = config.recorded(record["recipe"], {}, RECORD)
            method, settled = encoder(recipe)
        except (KeyError, TypeError, ValueError, UsageError) as error:
            raise WeightsError(
                "its run.json is damaged or of another version of medssl", AGAIN
            ) from error
        if changes:
            recipe = config.recorded(record["recipe"], changes, RECORD)
            method, settled = encoder(recipe)
        if recipe.crops is None:
            raise WeightsError("its run.json says nothing of its images", AGAIN)
        fill(method, files.read(folder.weights, sha256))
        if method.needs_calibration:
            raise WeightsError(
                "its norms know masked images alone", "end the pretraining: medssl pretrain"
            )
    return LoadedEncoder(method.eval(), recipe, settled, record, sha256)


def volumes_of(image: Image, key: str, group: str) -> Iterator[tuple[NDArray[Any], Volume]]:
    """A scan in the form in which a store holds it: voxels (C, X, Y, Z), and what is said of them.

    Args:
        image: The scan; each volume of a series comes by itself, as `<key>-<number>`.
        key: Its name, a hash.
        group: Equal for scans that may be of one patient.

    Raises:
        InputError: Values are not finite.
    """
    if image.channels == "colour" or len(image.data) == 1:
        yield _as_stored(image, image.data, image.valid, key, group)
        return
    for k in range(len(image.data)):
        valid = None if image.valid is None else image.valid[k : k + 1]
        yield _as_stored(image, image.data[k : k + 1], valid, f"{key}-{k}", group)


def _as_stored(
    image: Image,
    data: NDArray[np.float32],
    valid: NDArray[np.bool_] | None,
    key: str,
    group: str,
) -> tuple[NDArray[Any], Volume]:
    if valid is not None:
        valid = np.logical_and.reduce(valid, 0, keepdims=True)
    if data.ndim == 3:
        data, valid = data[..., None], None if valid is None else valid[..., None]
    turned, affine = canonical(data, image.geometry.affine)
    known = None if valid is None else canonical(valid, image.geometry.affine)[0][0]
    if not np.isfinite(turned if known is None else turned[:, known]).all():
        raise InputError("has values that are not finite", "repair the file")
    found = measure(turned, image.modality, known)
    x, y, z = (float(s) for s in np.linalg.norm(affine[:3, :3], axis=0))
    c, *sides = turned.shape
    volume = Volume(
        index=0,
        key=key,
        kind="",
        modality=image.modality,
        shape=(c, sides[0], sides[1], sides[2]),
        spacing=(x, y, z),
        affine=tuple(float(v) for v in affine.reshape(-1)),
        percentiles=found.percentiles,
        mean=found.mean,
        sd=found.sd,
        foreground=found.box,
        group=group,
        patient="",
        split="",
        series=key,
    )
    return turned, volume
