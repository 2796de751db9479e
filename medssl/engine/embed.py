"""Scans in, features out: one row for each volume, slice or patch."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medssl.config import Crops
from medssl.core.errors import InputError, MedsslError, MemoryLimitError, UsageError, naming
from medssl.core.progress import Progress
from medssl.data.store import Store, Volume, is_store
from medssl.data.views import (
    filled_up,
    finite,
    foreground_share,
    normalised,
    resized,
    thick_axis,
)
from medssl.engine.archive import groups_of, short
from medssl.engine.device import Machine
from medssl.engine.encoders import LoadedEncoder, volumes_of
from medssl.io.features import Features
from medssl.io.folder import find_scans, read_found
from medssl.io.limits import Limits
from medssl.method import Encoder

Per = Literal["volume", "slice", "patch"]
BATCH = {2: 32, 3: 1}
"""Windows that are looked at together, by their axes."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What features are wanted."""

    per: Per = "volume"
    overlap: float = 0.25
    """Share of a window that the next one shows again, at least."""
    unit_length: bool = False
    """Whether each row is divided by its length."""


@dataclass(frozen=True, eq=False)
class Window:
    """A part of a volume as the encoder sees it."""

    image: Tensor
    """(C, *size)."""
    slice: int | None
    """Along the axis of slices; None for three axes."""
    start: tuple[int, int, int]
    """First voxel."""
    share: float
    """Of its voxels that are foreground."""


@dataclass(frozen=True, eq=False)
class Embedded:
    """Features and what could not be embedded."""

    table: Features
    refused: tuple[MedsslError, ...]


def embed(
    source: Path, loaded: LoadedEncoder, asked: Asked, machine: Machine, tell: Progress
) -> Embedded:
    """Features of all scans; those that cannot be used are passed over.

    Args:
        source: A store, a scan, or a folder of scans.
        loaded: The encoder.
        asked: What features are wanted.
        machine: Where it runs.
        tell: Told how far it is.

    Raises:
        UsageError: Slices of an encoder of volumes, or an overlap that cannot be.
        InputError: No scan can be used.
        MemoryLimitError: A window does not fit.
    """
    check(asked, loaded.method)
    scans = Scans.of(source, Limits(memory=machine.memory))
    method = loaded.method.to(machine.device)
    rows: list[_Row] = []
    refused: list[MedsslError] = []
    for k in range(len(scans)):
        tell("embed", k, len(scans))
        try:
            for array, volume in scans.volumes(k):
                rows += _rows(array, volume, method, loaded, asked, machine.device)
        except MedsslError as error:
            refused.append(error)
    tell("embed", len(scans), len(scans))
    if not rows:
        raise InputError(
            f"none of {len(scans)} scans can be embedded, the first because: {refused[0].fact}",
            refused[0].remedy,
        )
    return Embedded(_table(rows, asked), tuple(refused))


def check(asked: Asked, method: Encoder) -> None:
    """Refuse wishes that cannot be.

    Raises:
        UsageError: With the value.
    """
    if not 0 <= asked.overlap < 1:
        raise UsageError(f"--overlap is {asked.overlap:g}", "give 0 to less than 1")
    if asked.per == "slice" and method.sees.axes == 3:
        raise UsageError("the encoder sees volumes, not slices", "use --per volume or patch")


@dataclass(frozen=True, eq=False)
class Scans:
    """The scans of a store or below a folder, read one after the other."""

    store: Store | None
    found: Sequence[Any]
    groups: dict[str, str]
    limits: Limits

    @classmethod
    def of(cls, source: Path, limits: Limits) -> "Scans":
        """Find them.

        Raises:
            InputError: There are none.
        """
        if is_store(source):
            store = Store.open(source)
            return cls(store, store.volumes, {}, limits)
        found = find_scans(source, limits)
        if not found:
            raise InputError(
                "no scan was found", "give a store, a scan or a folder of scans", file=source
            )
        return cls(None, found, groups_of(found), limits)

    def __len__(self) -> int:
        """Volumes of a store, scans of a folder."""
        return len(self.found)

    def volumes(self, k: int) -> Iterator[tuple[NDArray[Any], Volume]]:
        """Voxels (C, X, Y, Z) of the volumes of a scan, and what is known of them.

        Raises:
            InputError: It cannot be read.
            MemoryLimitError: It does not fit.
        """
        if self.store is not None:
            yield self.store.read(k), self.store.volumes[k]
            return
        one = self.found[k]
        with naming(one.path):
            if one.refusal is not None:
                raise one.refusal
            image = read_found(one, self.limits)
            yield from volumes_of(image, short(one.id), self.groups[one.id])


def windows(
    array: NDArray[Any],
    volume: Volume,
    crops: Crops,
    method: Encoder,
    channels: int,
    overlap: float,
) -> Iterator[Window]:
    """Windows over the foreground of a volume, of the size that the encoder was pretrained on.

    They lie evenly, as few as cover it with the overlap that is wanted; beyond the border they are
    padded as in pretraining.

    Args:
        array: (C, X, Y, Z).
        volume: What is known of it.
        crops: Of the recipe.
        method: Says along which axes it looks.
        channels: Of the images that it takes.
        overlap: Share of a window.
    """
    thick, sees = thick_axis(volume), method.sees
    if sees.axes == 2:
        order = tuple(a for a in range(3) if a != thick)
        for z in range(*volume.foreground[thick]):
            plane = array.take(z, axis=1 + thick)
            yield from _cut(plane, volume, crops, channels, overlap, order, (thick, z))
        return
    order = (*(a for a in range(3) if a != thick), thick) if sees.stack else (0, 1, 2)
    turned = array.transpose(0, *(1 + a for a in order))
    yield from _cut(turned, volume, crops, channels, overlap, order, None)


def _cut(
    array: NDArray[Any],
    volume: Volume,
    crops: Crops,
    channels: int,
    overlap: float,
    order: tuple[int, ...],
    slice_at: tuple[int, int] | None,
) -> Iterator[Window]:
    """Windows of an array (C, *S) whose axes are those of `order`."""
    box = [volume.foreground[a] for a in order]
    size = crops.size
    if crops.whole:
        corners, extent = [tuple(low for low, _ in box)], tuple(high - low for low, high in box)
    else:
        extent = tuple(min(n, m) for n, m in zip(size, array.shape[1:], strict=True))
        sides = zip(box, extent, array.shape[1:], strict=True)
        firsts = [starts(low, high, n, side, overlap) for (low, high), n, side in sides]
        corners = list(itertools.product(*firsts))
    for corner in corners:
        part = tuple(slice(a, a + n) for a, n in zip(corner, extent, strict=True))
        voxels = array[(slice(None), *part)]
        x = finite(normalised(voxels, volume, crops), channels)
        x = resized(x, size) if crops.whole else x
        start = dict(zip(order, corner, strict=True))
        if slice_at is not None:
            start[slice_at[0]] = slice_at[1]
        yield Window(
            image=filled_up(x, size),
            slice=None if slice_at is None else slice_at[1],
            start=(start[0], start[1], start[2]),
            share=foreground_share(voxels, volume),
        )


def starts(low: int, high: int, size: int, side: int, overlap: float) -> list[int]:
    """First voxels of windows along an axis that cover low to high and stay within the side."""
    if high - low <= size:
        return [max(0, min((low + high - size) // 2, side - size))]
    count = 1 + math.ceil((high - low - size) / max(1.0, size * (1 - overlap)))
    return [round(v) for v in np.linspace(low, high - size, count)]


@dataclass(frozen=True, eq=False)
class _Row:
    volume: Volume
    slice: int | None
    start: tuple[int, int, int] | None
    values: NDArray[np.float32]
    share: float = 1.0
    """Of the voxels of a window that are foreground."""


def _rows(
    array: NDArray[Any],
    volume: Volume,
    method: Encoder,
    loaded: LoadedEncoder,
    asked: Asked,
    device: torch.device,
) -> list[_Row]:
    """Of one volume."""
    source = windows(array, volume, loaded.crops, method, loaded.channels, asked.overlap)
    seen = [
        _Row(volume, window.slice, window.start, values, window.share)
        for some in batched(source, BATCH[method.sees.axes])
        for window, values in zip(
            some, embedded(method, [w.image for w in some], device), strict=True
        )
    ]
    if asked.per == "patch":
        return seen
    least = loaded.crops.foreground
    if asked.per == "slice":
        return [
            _Row(volume, z, None, _mean(list(group), least))
            for z, group in itertools.groupby(seen, key=lambda row: row.slice)
        ]
    return [_Row(volume, None, None, _mean(seen, least))]


def embedded(
    method: Encoder, images: Sequence[Tensor], device: torch.device
) -> NDArray[np.float32]:
    """(n, D) features of images (C, *S).

    Raises:
        MemoryLimitError: They do not fit.
    """
    try:
        with torch.no_grad():
            values = method.embed(torch.stack(list(images)).to(device)).float().cpu().numpy()
    except torch.OutOfMemoryError as error:
        raise MemoryLimitError(
            "a window does not fit into the memory of the device", "use --device cpu"
        ) from error
    if not np.isfinite(values).all():
        raise InputError("has features that are not finite", "pretrain again with a lower train.lr")
    return values


def batched(source: Iterator[Window], n: int) -> Iterator[list[Window]]:
    """At most n at once."""
    while some := list(itertools.islice(source, n)):
        yield some


def _mean(seen: Sequence[_Row], least: float) -> NDArray[np.float32]:
    """Over windows; those with little of the patient count only where no other does."""
    full = [row.values for row in seen if row.share >= least] or [row.values for row in seen]
    return np.asarray(np.mean(full, axis=0, dtype=np.float64), np.float32)


def _table(rows: Sequence[_Row], asked: Asked) -> Features:
    values = np.stack([r.values for r in rows])
    if asked.unit_length:
        values = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    place = None
    if asked.per == "patch":
        place = np.array([r.start for r in rows], np.int32)

    def text(pick: Callable[[Volume], str]) -> tuple[str, ...]:
        return tuple(pick(r.volume) for r in rows)

    return Features(
        id=text(lambda v: v.key),
        group=text(lambda v: v.group),
        split=text(lambda v: v.split),
        modality=text(lambda v: v.modality),
        slice=tuple(r.slice for r in rows),
        values=values,
        place=place,
    )
