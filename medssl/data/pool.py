"""Crops of many scans: what step t sees follows from the seed and t alone.

A few scans are held in memory, and one of them is exchanged every few steps, so that an archive of
any size is read at a bounded rate into bounded memory, and each scan comes once before any comes
twice.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from medssl.core.batch import Noisy
from medssl.core.random import stream
from medssl.data.patches import window

Held = TypeVar("Held")
"""One of many scans, in memory."""
Crops = TypeVar("Crops", bound="Scan")
"""One that crops are cut from."""
LEAST_MEASURED = 0.2
"""Share of a crop that must be measured, not masked or padded."""
DRAWS = 8
"""How often a crop is drawn anew before an emptier one is taken."""


@dataclass(frozen=True, eq=False)
class Crop:
    """A part of a scan, scaled as the method wants it."""

    image: Tensor
    """(*part)."""
    sigma: Tensor | None = None
    """Its noise, broadcastable to it; None where that is 1."""
    estimate: Tensor | None = None
    """(*part) what the method starts from, where it starts from something: the scan knows the
    spectrum of its noise, a batch of many scans has none."""


class Scan(Protocol):
    """One scan, held in memory."""

    @property
    def n_volumes(self) -> int:
        """Pictures or volumes of a series; 1 for most scans."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each spatial axis."""
        ...

    def measured(self, volume: int, part: tuple[slice, ...]) -> float:
        """Share of the voxels of a part that are measured."""
        ...

    def crop(self, volume: int, part: tuple[slice, ...]) -> Crop:
        """A part."""
        ...


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How crops are drawn."""

    axes: int
    """Axes of a crop: 2 takes single slices of volumes."""
    size: int | None
    """Side of a crop; None, or more than an axis has, takes the whole axis."""
    count: int
    """Crops in a batch."""
    seed: int
    device: torch.device
    """Where the batches go."""
    multiple: int = 8
    """Crops start at multiples of it, so that patches of a net stay aligned."""

    def sizes(self, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """Of crops that fit into scans of these shapes."""
        least = [min(axis) for axis in zip(*(s[: self.axes] for s in shapes), strict=True)]
        return tuple(n if self.size is None else min(n, self.size) for n in least)


class Pool(Generic[Held]):
    """Some of many scans, in memory.

    Args:
        n_scans: How many there are.
        load: Reads one of them; the same scan gives the same crops each time.
        hold: How many are held at once.
        turn: Steps after which one of them is exchanged.
        seed: Of the order.
    """

    def __init__(
        self, n_scans: int, load: Callable[[int], Held], *, hold: int, turn: int, seed: int
    ) -> None:
        self._n, self._load, self._seed = n_scans, load, seed
        self._width, self._turn = min(hold, n_scans), turn
        self._held: dict[int, Held] = {}

    def at(self, step: int) -> list[Held]:
        """The scans that a step may draw from, read where they are not held yet."""
        wanted = self.indices(step)
        self._held = {k: v for k, v in self._held.items() if k in wanted}
        for k in wanted:
            if k not in self._held:
                self._held[k] = self._load(k)
        return [self._held[k] for k in wanted]

    def indices(self, step: int) -> list[int]:
        """Which scans a step may draw from."""
        if self._width == self._n:
            return list(range(self._n))
        first = step // self._turn
        return [self._kth(first + k) for k in range(self._width)]

    def _kth(self, k: int) -> int:
        """The k-th scan of the endless order: one random order after another."""
        epoch, place = divmod(k, self._n)
        order = torch.randperm(self._n, generator=stream(self._seed, f"order/{epoch}"))
        return int(order[place])


def batches(pool: Pool[Crops], sampling: Sampling, start: int, steps: int) -> Iterator[Noisy]:
    """The batches of the steps from `start` on."""
    for step in range(start, steps):
        yield batch(pool.at(step), sampling, step, progress=step / steps)


def batch(scans: Sequence[Scan], sampling: Sampling, step: int, *, progress: float) -> Noisy:
    """The batch of one step.

    Args:
        scans: What it may draw from, each with the same chance.
        sampling: How.
        step: Names the chance.
        progress: Share of the training that is done.

    Returns:
        Images (count, 1, *crop) with a generator of their own. Their size is that of the smallest
        where scans are smaller than a crop.
    """
    generator = stream(sampling.seed, f"crops/{step}")
    chosen = [scans[_pick(len(scans), generator)] for _ in range(sampling.count)]
    sizes = sampling.sizes([scan.shape for scan in chosen])
    cut = [_cut(scan, sizes, sampling, generator) for scan in chosen]
    return _stacked(cut, sampling, f"loss/{step}", progress)


def fixed_batch(
    scans: Iterable[Scan], shapes: Sequence[tuple[int, ...]], sampling: Sampling
) -> Callable[[], Noisy]:
    """A batch to look at and not to learn from: the same one, its chance included, at each call.

    Args:
        scans: Where it comes from; one is needed at a time, and each once.
        shapes: Of these scans.
        sampling: How; the crops are spread over the scans, each gives one at least.
    """
    sizes = sampling.sizes(shapes)
    each = max(1, sampling.count // len(shapes))
    cut = []
    for k, scan in enumerate(scans):
        generator = stream(sampling.seed, f"test crops/{k}")
        cut += [_cut(scan, sizes, sampling, generator) for _ in range(each)]
    held = _stacked(cut, sampling, "test", 1.0)
    return lambda: dataclasses.replace(
        held, generator=stream(sampling.seed, "test", sampling.device)
    )


def _stacked(cut: Sequence[Crop], sampling: Sampling, name: str, progress: float) -> Noisy:
    """Crops as a batch."""
    sigma = None
    if any(c.sigma is not None for c in cut):
        spread = [torch.ones_like(c.image) if c.sigma is None else c.sigma for c in cut]
        sigma = torch.stack(spread)[:, None].to(sampling.device)
    estimates = [c.estimate for c in cut if c.estimate is not None]
    return Noisy(
        torch.stack([c.image for c in cut])[:, None].to(sampling.device),
        sigma=sigma,
        generator=stream(sampling.seed, name, sampling.device),
        progress=progress,
        estimate=torch.stack(estimates)[:, None].to(sampling.device) if estimates else None,
    )


def _cut(
    scan: Scan, sizes: tuple[int, ...], sampling: Sampling, generator: torch.Generator
) -> Crop:
    """A crop, without the axes along which it is one voxel."""
    crop = scan.crop(*_place(scan, sizes, sampling, generator))
    whole = crop.image.shape
    return Crop(
        crop.image.reshape(sizes),
        None if crop.sigma is None else crop.sigma.expand(whole).reshape(sizes),
        None if crop.estimate is None else crop.estimate.reshape(sizes),
    )


def _place(
    scan: Scan, sizes: Sequence[int], sampling: Sampling, generator: torch.Generator
) -> tuple[int, tuple[slice, ...]]:
    """Volume and part of a crop; drawn anew while there is little to see in it."""
    best, fullest = None, -1.0
    for _ in range(DRAWS):
        volume = _pick(scan.n_volumes, generator)
        part = [
            window(n, size, sampling.multiple, generator)
            for n, size in zip(scan.shape, sizes, strict=False)
        ]
        for n in scan.shape[sampling.axes :]:
            k = _pick(n, generator)
            part.append(slice(k, k + 1))
        share = scan.measured(volume, tuple(part))
        if share > fullest:
            best, fullest = (volume, tuple(part)), share
        if fullest >= LEAST_MEASURED:
            break
    assert best is not None
    return best


def _pick(n: int, generator: torch.Generator) -> int:
    return int(torch.randint(n, (), generator=generator))
