"""Crops of a store as an encoder sees them: cut, normalised, changed, hidden in part.

What is drawn for one image depends on its place in the order of draws alone (`data.sampler`), so
that batches are the same on any number of threads and after any restart.
"""

import hashlib
import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool3d, conv1d, grid_sample, interpolate, pad

from medssl.config import Crops
from medssl.core.batch import Sees, Views
from medssl.core.random import stream
from medssl.data.duplicates import unpacked
from medssl.data.sampler import repeats
from medssl.data.store import Store, Volume, slice_hashes

DRAWS = 6
"""How often a crop is drawn anew before an emptier one is taken."""
AROUND = 1.5
"""Sides of the part that the views of a crop are taken from, over those of the crop."""
SKEW = 4 / 3
"""Largest ratio of the sides of a view, relative to those of what it is cut from."""
BODY = -500.0
"""HU above which a voxel is patient."""
MOST_REPEATS = 3
"""Times that an image of a rare modality comes in an epoch."""
CT = "CT"


@dataclass(frozen=True)
class Item:
    """One image of a store."""

    index: int
    """Unique over the store: of the volume, or of the slice."""
    volume: int
    """Index of its volume."""
    at: int | None = None
    """Slice along the axis of slices, or the first of a run of them; None is the whole volume."""


@dataclass(frozen=True, eq=False)
class Sample:
    """What is drawn of one image; see `core.batch.Views`."""

    image: Tensor
    valid: Tensor
    visible: Tensor | None
    views: tuple[Tensor, ...]
    small: tuple[Tensor, ...]
    boxes: tuple[Tensor, ...]
    index: int
    patient: int
    spacing: tuple[float, ...]
    slice_mm: Tensor | None


def normalised(array: NDArray[Any], volume: Volume, crops: Crops) -> Tensor:
    """Voxels as an encoder sees them, about mean 0 and standard deviation 1.

    CT is cut to the window of the recipe, which becomes -1 to 1. Other images are clipped to the
    outer percentiles of their foreground, less its mean, over its standard deviation.

    Args:
        array: (C, *S) of the store.
        volume: What the store says of it.
        crops: Of the recipe.

    Returns:
        (C, *S) float32; what is not finite stays so.
    """
    x = torch.from_numpy(np.ascontiguousarray(array, np.float32))
    if volume.modality == CT:
        low, high = crops.window
        return (x.clamp(low, high) - low) * (2 / (high - low)) - 1
    low, _, high = volume.percentiles
    return (x.clamp(low, high) - volume.mean) / max(volume.sd, 1e-6 * max(abs(volume.mean), 1.0))


def finite(image: Tensor, channels: int) -> Tensor:
    """An image (C, *S) that was normalised, 0 where it is not finite.

    Args:
        image: What `normalised` gave.
        channels: That are wanted: grey images are repeated, colours averaged.
    """
    image = torch.nan_to_num(image, nan=0.0, posinf=0.0, neginf=0.0)
    if len(image) == channels:
        return image
    return image.mean(0, keepdim=True).expand(channels, *image.shape[1:])


def filled_up(image: Tensor, size: tuple[int, ...]) -> Tensor:
    """An image (C, *S) with zeros beyond its ends, (C, *size)."""
    short = [n - m for n, m in zip(size, image.shape[1:], strict=True)]
    return pad(image, [v for n in reversed(short) for v in (0, n)]) if any(short) else image


def foreground_share(voxels: NDArray[Any], volume: Volume) -> float:
    """Of voxels (C, *S) of a volume that are foreground."""
    least = BODY if volume.modality == CT else volume.percentiles[0]
    return float((voxels >= least).any(axis=0).mean())


def thick_axis(volume: Volume) -> int:
    """The axis of slices: that of the largest spacing, and Z where none stands out."""
    spacing, sides = volume.spacing, volume.shape[1:]
    if 1 in sides:
        return 2 - sides[::-1].index(1)
    return max(range(3), key=lambda axis: (round(spacing[axis] / min(spacing), 2), axis))


class Source:
    """Voxels of a store, whole volumes in memory as long as they fit.

    Args:
        store: The store.
        memory: Bytes that volumes may take.
    """

    def __init__(self, store: Store, memory: int) -> None:
        self.store, self._memory = store, memory
        self._held: OrderedDict[int, NDArray[Any]] = OrderedDict()
        self._lock = threading.Lock()

    def part(self, index: int, box: tuple[slice, slice, slice]) -> NDArray[Any]:
        """(C, *box) of a volume."""
        with self._lock:
            whole = self._held.get(index)
            if whole is not None:
                self._held.move_to_end(index)
        if whole is None:
            n_bytes = 8 * math.prod(self.store.volumes[index].shape)
            if n_bytes > self._memory // 8:
                return self.store.read(index, box)
            whole = self.store.read(index)
            with self._lock:
                self._held[index] = whole
                while sum(v.nbytes for v in self._held.values()) > self._memory:
                    self._held.popitem(last=False)
        return whole[(slice(None), *box)]


def items(store: Store, split: str, sees: Sees, crops: Crops) -> list[Item]:
    """The images of a split of a store.

    Args:
        store: The store.
        split: `train`, `val` or `test`.
        sees: Whole volumes, slices, or runs of them.
        crops: `thin_bits` decides which slices are too like their neighbours.
    """
    volumes = [v for v in store.volumes if v.split == split]
    if sees.axes == 3:
        return [Item(v.index, v.index) for v in volumes]
    return _slices(store, volumes, sees, crops)


def balanced(found: Sequence[Item], store: Store) -> list[Item]:
    """The same with those of rare modalities several times."""
    times = repeats([store.volumes[i.volume].modality for i in found], MOST_REPEATS)
    return [item for item, n in zip(found, times, strict=True) for _ in range(n)]


def _slices(store: Store, volumes: Sequence[Volume], sees: Sees, crops: Crops) -> list[Item]:
    """Slices in the foreground that differ from the last one kept, or starts of runs of them."""
    first = np.cumsum([0, *(max(v.shape[1:]) for v in store.volumes)])
    hashes = slice_hashes(store.path) if crops.thin_bits else {}
    found = []
    for v in volumes:
        axis = thick_axis(v)
        low, high = v.foreground[axis]
        if sees.neighbours > 1:
            if v.shape[1 + axis] >= sees.neighbours:
                starts = range(0, v.shape[1 + axis] - sees.neighbours + 1, sees.neighbours)
                found += [Item(int(first[v.index]) + z, v.index, z) for z in starts]
            continue
        bits, last = unpacked(hashes.get(v.key, b"")), None
        known = axis == 2 and len(bits) == v.shape[3]
        for z in range(low, high):
            if known:
                if last is not None and int((bits[z] != last).sum()) <= crops.thin_bits:
                    continue
                last = bits[z]
            found.append(Item(int(first[v.index]) + z, v.index, z))
    return found


class Cutter:
    """Makes batches of a store.

    Args:
        source: Where voxels come from.
        sees: What they hold.
        channels: Of the images: grey ones are repeated, colours averaged.
        crops: How images are cut, from the recipe.
        seed: Of all chance.
    """

    def __init__(self, source: Source, sees: Sees, channels: int, crops: Crops, seed: int) -> None:
        self.source, self.sees, self.channels = source, sees, channels
        self.crops, self.seed = crops, seed

    def sample(self, item: Item, name: str) -> list[Sample]:
        """One image, or a run of neighbouring ones.

        Args:
            item: Which.
            name: Of its chance.
        """
        generator = stream(self.seed, f"sample/{name}")
        if self.sees.neighbours == 1:
            return [self._one(item, item.at, item.index, generator)]
        volume = self.source.store.volumes[item.volume]
        n_slices, run = volume.shape[1 + thick_axis(volume)], self.sees.neighbours
        assert item.at is not None
        spare = min(n_slices - run, item.at + run - 1)
        start = item.at + int(torch.randint(max(1, spare - item.at + 1), (), generator=generator))
        base = item.index - item.at
        return [self._one(item, z, base + z, generator) for z in range(start, start + run)]

    def _one(self, item: Item, at: int | None, index: int, generator: torch.Generator) -> Sample:
        sees, crops = self.sees, self.crops
        volume = self.source.store.volumes[item.volume]
        thick = thick_axis(volume)
        order = [axis for axis in range(3) if axis != thick]
        if sees.axes == 3:
            order = [*order, thick] if sees.stack else [0, 1, 2]
        frame = _Frame(volume, tuple(order), None if at is None else (thick, at), sees.stack)
        size = crops.size
        parent = self._parent(frame, size, generator)
        full = (
            parent.extent
            if crops.whole
            else tuple(min(n, m) for n, m in zip(size, frame.sides, strict=True))
        )
        plain = _drawn(parent, full, crops.scale, frame, generator, skew=False)
        image, valid = self._cut(frame, plain, size)
        if sees.views == 0:
            image, valid, plain = _flipped(image, valid, plain, crops.flip, generator, frame)
        views, boxes = [], []
        for k in range(sees.views + sees.small):
            big = k < sees.views
            wanted = size if big else (crops.small_size or size)
            scale = crops.scale if big else crops.small_scale
            box = _drawn(parent, full, scale, frame, generator, skew=True)
            view, seen = self._cut(frame, box, wanted)
            view, _, box = _flipped(view, seen, box, crops.flip, generator, frame)
            view = _turned(view, crops.rotate, generator)
            views.append(changed(view, crops.change, volume.modality == CT, generator))
            boxes.append(_in_mm(box, frame))
        visible = None
        if sees.block is not None:
            cells = tuple(n // b for n, b in zip(size, sees.block, strict=True))
            visible = pattern(cells, sees.hidden, generator)
        slice_mm = None
        if sees.stack:
            start = plain.start[-1]
            slice_mm = (start + torch.arange(size[-1], dtype=torch.float32)) * frame.spacing[-1]
        return Sample(
            image=image,
            valid=valid,
            visible=visible,
            views=tuple(views[: sees.views]),
            small=tuple(views[sees.views :]),
            boxes=tuple(boxes),
            index=index,
            patient=_number(volume.group),
            spacing=tuple(frame.spacing),
            slice_mm=slice_mm,
        )

    def _parent(self, frame: "_Frame", size: tuple[int, ...], generator: torch.Generator) -> "_Box":
        """The part that crops are cut from; drawn anew while there is little to see in it."""
        best, fullest = None, -1.0
        around = AROUND if self.sees.views else 1.0
        wanted = [round(n * around * math.sqrt(max(1.0, self.crops.scale[1]))) for n in size]
        if frame.stack:
            wanted[-1] = size[-1]
        for _ in range(DRAWS):
            start: list[int] = []
            extent: list[int] = []
            for side, n, (low, high) in zip(frame.sides, wanted, frame.foreground, strict=True):
                if self.crops.whole and not (frame.stack and len(start) == len(size) - 1):
                    start.append(low)
                    extent.append(high - low)
                    continue
                n = min(n, side)
                least = max(0, min(low, high - n))
                most = min(side - n, max(low, high - n))
                start.append(least + int(torch.randint(most - least + 1, (), generator=generator)))
                extent.append(n)
            box = _Box(tuple(start), tuple(extent), (True,) * len(start))
            if self.crops.foreground <= 0:
                return box
            share = self._share(frame, box)
            if share > fullest:
                best, fullest = box, share
            if fullest >= self.crops.foreground:
                break
        assert best is not None
        return best

    def _share(self, frame: "_Frame", box: "_Box") -> float:
        """Of a part that is foreground, looked at coarsely."""
        volume = frame.volume
        part = frame.read(self.source, box)
        steps = tuple(slice(None, None, max(1, n // 32)) for n in part.shape[1:])
        some = part[(slice(None), *steps)]
        return foreground_share(some, volume)

    def _cut(self, frame: "_Frame", box: "_Box", size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """A part at another size: the image (C, *size), and where it is valid (1, *size)."""
        x = normalised(frame.read(self.source, box), frame.volume, self.crops)
        valid = torch.isfinite(x).all(0, keepdim=True)
        x = finite(x, self.channels)
        n_mixed = len(size) - int(frame.stack)
        target = tuple(
            min(n, e) if exact and not (self.crops.whole and k < n_mixed) else n
            for k, (n, e, exact) in enumerate(zip(size, box.extent, box.exact, strict=True))
        )
        x = resized(x, target)
        valid = resized(valid.float(), target) > 0.5
        return filled_up(x, size), filled_up(valid, size)


@dataclass(frozen=True)
class _Box:
    """A part of an image in voxels; a negative extent is flipped, its start the far end."""

    start: tuple[int, ...]
    extent: tuple[int, ...]
    exact: tuple[bool, ...]
    """Per axis, whether a crop that is larger is padded; else the part is enlarged."""


@dataclass(frozen=True, eq=False)
class _Frame:
    """A volume, or a slice of it, with the axes in the order in which they are seen."""

    volume: Volume
    order: tuple[int, ...]
    """Axes of the volume."""
    slice: tuple[int, int] | None
    """Axis and place of a slice."""
    stack: bool
    """The last axis is that of slices, which are never mixed."""

    @property
    def sides(self) -> tuple[int, ...]:
        return tuple(self.volume.shape[1 + axis] for axis in self.order)

    @property
    def spacing(self) -> tuple[float, ...]:
        return tuple(self.volume.spacing[axis] for axis in self.order)

    @property
    def foreground(self) -> tuple[tuple[int, int], ...]:
        return tuple(self.volume.foreground[axis] for axis in self.order)

    def read(self, source: Source, box: _Box) -> NDArray[Any]:
        """(C, *extent)."""
        part = [slice(None)] * 3
        for axis, start, extent in zip(self.order, box.start, box.extent, strict=True):
            part[axis] = slice(start, start + extent)
        if self.slice is not None:
            axis, at = self.slice
            part[axis] = slice(at, at + 1)
        found = source.part(self.volume.index, (part[0], part[1], part[2]))
        if self.slice is not None:
            found = found.take(0, axis=1 + self.slice[0])
            return found if self.order[0] < self.order[1] else found.swapaxes(1, 2)
        return found.transpose(0, *(1 + axis for axis in self.order))


def _drawn(
    parent: _Box,
    full: tuple[int, ...],
    scale: tuple[float, float],
    frame: _Frame,
    generator: torch.Generator,
    *,
    skew: bool,
) -> _Box:
    """A part of a share of `full` within the parent."""
    share = scale[0] + (scale[1] - scale[0]) * _uniform(generator)
    n_axes = len(full) - int(frame.stack)
    side = share ** (1 / n_axes)
    skews = [1.0] * n_axes
    if skew and scale[0] < scale[1]:
        skews = [SKEW ** (_uniform(generator) - 0.5) for _ in range(n_axes)]
    extent, start = [], []
    for k, (low, room) in enumerate(zip(parent.start, parent.extent, strict=True)):
        fixed = k >= n_axes
        n = full[k] if fixed else max(1, min(room, round(full[k] * side * skews[k])))
        n = min(n, room)
        extent.append(n)
        start.append(low if fixed else low + int(_uniform(generator) * (room - n + 1)))
    exact = (tuple(scale) == (1.0, 1.0),) * n_axes + (True,) * int(frame.stack)
    return _Box(tuple(start), tuple(extent), exact)


def _flipped(
    image: Tensor,
    valid: Tensor,
    box: _Box,
    chance: float,
    generator: torch.Generator,
    frame: _Frame,
) -> tuple[Tensor, Tensor, _Box]:
    """Flip axes, but never the order of the slices of a stack."""
    n_axes = len(box.extent) - int(frame.stack)
    axes = [k for k in range(n_axes) if _uniform(generator) < chance]
    start = tuple(
        s + e if k in axes else s
        for k, (s, e) in enumerate(zip(box.start, box.extent, strict=True))
    )
    extent = tuple(-e if k in axes else e for k, e in enumerate(box.extent))
    along = [1 + k for k in axes]
    return image.flip(along), valid.flip(along), _Box(start, extent, box.exact)


def _in_mm(box: _Box, frame: _Frame) -> Tensor:
    """(2, axes) start and extent."""
    spacing = torch.tensor(frame.spacing)
    return torch.stack([torch.tensor(box.start) * spacing, torch.tensor(box.extent) * spacing])


def resized(image: Tensor, size: tuple[int, ...]) -> Tensor:
    """An image (C, *S) at another size (C, *size): means of whole voxels, then linear."""
    if tuple(image.shape[1:]) == size:
        return image
    sides = image.shape[1:]
    whole = [max(1, n // m) for n, m in zip(sides, size, strict=True)]
    spare = [1] * (3 - len(size))
    x = image.reshape(1, image.shape[0], *sides, *spare)
    if max(whole) > 1:
        x = avg_pool3d(x, (*whole, *spare), ceil_mode=True, count_include_pad=False)
    x = interpolate(x, (*size, *spare), mode="trilinear", align_corners=False)
    return x.reshape(image.shape[0], *size)


def pattern(cells: tuple[int, ...], hidden: float, generator: torch.Generator) -> Tensor:
    """Random cells (1, *cells), True where they are seen; their number is always the same."""
    n = math.prod(cells)
    kept = max(1, round(n * (1 - hidden)))
    visible = torch.zeros(n, dtype=torch.bool)
    visible[torch.randperm(n, generator=generator)[:kept]] = True
    return visible.reshape(1, *cells)


def changed(view: Tensor, strength: float, ct: bool, generator: torch.Generator) -> Tensor:
    """A view (C, *S) with another contrast, brightness, bias field, sharpness and noise.

    The changes are those of scanners and protocols; colour is never turned.

    Args:
        view: Normalised.
        strength: 1 is usual, 0 changes nothing.
        ct: Without a bias field, which CT has not.
        generator: The source of chance.
    """
    if strength <= 0:
        return view
    axes = view.ndim - 1
    u = torch.rand(12, generator=generator).tolist()
    low, high = view.amin(), view.amax()
    span = (high - low).clamp_min(1e-6)
    gamma = math.exp(0.4 * strength * (2 * u[0] - 1))
    view = ((view - low) / span) ** gamma * span + low
    view = view * (1 + 0.4 * strength * (2 * u[1] - 1)) + 0.3 * strength * (2 * u[2] - 1)
    if not ct and u[3] < 0.5:
        grid = [torch.linspace(-1, 1, n) for n in view.shape[1:]]
        slope = [(2 * v - 1) * 0.3 * strength for v in u[4 : 4 + axes]]
        field = sum(
            s * g.reshape([-1 if k == j else 1 for j in range(axes)])
            for k, (s, g) in enumerate(zip(slope, grid, strict=True))
        )
        bottom = view.amin()
        view = (view - bottom) * torch.exp(torch.as_tensor(field)) + bottom
    if u[7] < 0.5:
        view = blurred(view, 0.3 + 1.2 * strength * u[8])
    if u[9] < 0.5:
        noise = torch.randn(view.shape, generator=generator)
        view = view + 0.15 * strength * u[10] * noise
    return view


def blurred(view: Tensor, sigma: float) -> Tensor:
    """A view (C, *S) under a Gaussian of so many voxels."""
    radius = max(1, round(3 * sigma))
    at = torch.arange(-radius, radius + 1, dtype=view.dtype)
    kernel = torch.exp(-0.5 * (at / sigma) ** 2)
    kernel = (kernel / kernel.sum()).reshape(1, 1, -1)
    for axis in range(1, view.ndim):
        if view.shape[axis] == 1:
            continue
        rows = view.movedim(axis, -1)
        flat = pad(rows.reshape(-1, 1, rows.shape[-1]), (radius, radius), mode="replicate")
        view = conv1d(flat, kernel).reshape(rows.shape).movedim(-1, axis)
    return view


def _turned(view: Tensor, most: float, generator: torch.Generator) -> Tensor:
    """A view turned in the plane of its first two axes, its border repeated."""
    if most <= 0:
        return view
    angle = math.radians(most * (2 * _uniform(generator) - 1))
    n, m = view.shape[1:3]
    y, x = torch.meshgrid(torch.linspace(-1, 1, n) * n, torch.linspace(-1, 1, m) * m, indexing="ij")
    turned_x = (math.cos(angle) * x - math.sin(angle) * y) / m
    turned_y = (math.sin(angle) * x + math.cos(angle) * y) / n
    planes = view.reshape(1, view.shape[0], n, m, -1).movedim(-1, 1).flatten(1, 2)
    turned = grid_sample(
        planes,
        torch.stack([turned_x, turned_y], -1)[None],
        padding_mode="border",
        align_corners=True,
    )
    return turned.reshape(1, -1, view.shape[0], n, m).movedim(1, -1).reshape(view.shape)


def assembled(
    samples: Sequence[Sample], generator: torch.Generator, progress: float, device: torch.device
) -> Views:
    """Samples as a batch on a device."""
    first = samples[0]

    def stack(parts: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(parts)).to(device)

    boxes = None
    if first.boxes:
        boxes = torch.stack([torch.stack(list(s.boxes)) for s in samples], 1).to(device)
    return Views(
        image=stack([s.image for s in samples]),
        valid=stack([s.valid for s in samples]),
        visible=stack([s.visible for s in samples if s.visible is not None])
        if first.visible is not None
        else None,
        views=tuple(stack([s.views[k] for s in samples]) for k in range(len(first.views))),
        small=tuple(stack([s.small[k] for s in samples]) for k in range(len(first.small))),
        boxes=boxes,
        index=torch.tensor([s.index for s in samples], device=device),
        patient=torch.tensor([s.patient for s in samples], device=device),
        spacing=torch.tensor([s.spacing for s in samples], device=device),
        slice_mm=stack([s.slice_mm for s in samples if s.slice_mm is not None])
        if first.slice_mm is not None
        else None,
        generator=generator,
        progress=progress,
    )


def _number(group: str) -> int:
    """A whole number for the hash that names a group."""
    digest = hashlib.blake2b(group.encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))
