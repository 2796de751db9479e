"""Images with label maps, as an encoder sees them."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medssl.core.errors import InputError, UsageError, naming, printable
from medssl.data.prepare import canonical
from medssl.data.store import Store, Volume
from medssl.data.views import normalised, thick_axis
from medssl.engine.encoders import LoadedEncoder, volumes_of
from medssl.engine.labels import MOST_CLASSES, Label
from medssl.io.limits import Limits
from medssl.io.read import read


@dataclass(frozen=True, eq=False)
class Case:
    """An image with its label map."""

    image: Tensor
    """(C, *S), normalised as for the encoder."""
    label: Tensor
    """(*S) int64, 0 is the background."""
    group: int
    """Equal where cases may be of one patient."""
    split: str = ""


def cases_of(
    labels: Sequence[Label], store: Path | None, loaded: LoadedEncoder, limits: Limits, source: Path
) -> list[Case]:
    """Images with their label maps: volumes, or each slice that has a label.

    Args:
        labels: Whose text is the path of a label map, from where the table lies.
        store: Where the images lie; None takes the files of the table.
        loaded: Says how images are normalised, and along which axes they are seen.
        limits: Bounds of what a file may ask for.
        source: The table.

    Raises:
        UsageError: The table names no files and there is no store.
        InputError: A map does not fit its image, or its values are no classes.
    """
    opened = None if store is None else Store.open(store)
    known = {} if opened is None else {v.key: v for v in opened.volumes}
    found: list[tuple[NDArray[Any], Volume, NDArray[np.int64]]] = []
    for one in labels:
        if opened is not None:
            volume = known.get(one.id)
            if volume is None:
                raise InputError(
                    f"{printable(one.id, 16)} is not in the store", "see its volumes", file=source
                )
            array = opened.read(volume.index)
        else:
            if one.file is None:
                raise UsageError("the table names no files", "give --data STORE")
            array, volume = next(volumes_of(read(one.file, None, limits), one.id, one.id))
        if one.group:
            volume = dataclasses.replace(volume, group=one.group)
        found.append((array, volume, _label_map(source.parent / one.text, volume, limits)))
    values = np.unique(np.concatenate([np.unique(m) for _, _, m in found]))
    if len(values) > MOST_CLASSES or len(values) < 2:
        raise InputError(
            f"the label maps hold {len(values)} values", f"give 2 to {MOST_CLASSES}", file=source
        )
    groups = sorted({v.group for _, v, _ in found})
    return [
        case
        for array, volume, label in found
        for case in _cases(array, volume, np.searchsorted(values, label), groups, loaded)
    ]


def _label_map(path: Path, volume: Volume, limits: Limits) -> NDArray[np.int64]:
    """(X, Y, Z) in RAS+."""
    with naming(path):
        image = read(path, None, limits)
        data = image.data[:1] if image.data.ndim == 4 else image.data[:1, ..., None]
        turned, _ = canonical(data, image.geometry.affine)
        if turned.shape[1:] != volume.shape[1:]:
            raise InputError(
                f"has {turned.shape[1:]} voxels, its image {volume.shape[1:]}",
                "give a label map on the grid of the image",
            )
        if not np.array_equal(turned, np.rint(turned)) or turned.min() < 0:
            raise InputError("holds no whole numbers from 0 on", "give a label map")
    return turned[0].astype(np.int64)


def _cases(
    array: NDArray[Any],
    volume: Volume,
    label: NDArray[np.int64],
    groups: Sequence[str],
    loaded: LoadedEncoder,
) -> Iterator[Case]:
    x = torch.nan_to_num(normalised(array, volume, loaded.crops), nan=0.0, posinf=0.0, neginf=0.0)
    if len(x) != loaded.channels:
        x = x.mean(0, keepdim=True).expand(loaded.channels, *x.shape[1:])
    y, group = torch.from_numpy(np.ascontiguousarray(label)), groups.index(volume.group)
    thick = thick_axis(volume)
    sees = loaded.method.sees
    if sees.axes == 2:
        for z in range(y.shape[thick]):
            plane = y.select(thick, z)
            if plane.any():
                yield Case(x.select(1 + thick, z), plane, group, volume.split)
        return
    if sees.stack:
        x, y = x.movedim(1 + thick, -1), y.movedim(thick, -1)
    yield Case(x, y, group, volume.split)
