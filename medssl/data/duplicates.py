r"""Copies found: the same voxels again, a crop of them, the same slices resampled or with noise.

Three tests, of images in canonical orientation:

* equal hash of all voxels;
* `voxel_sketch`: hashes of all runs of 16 voxels along X that are not flat,
  :math:`h = \sum_j v_{i+j} M^{15-j} \bmod 2^{64}`, mixed; those divisible by 64 are kept. The share
  of the smaller set that is in the larger one is 1 for a crop or a shift and 0 for another scan;
* `slice_hash`: signs of the low frequencies of each slice. They survive noise, requantisation and
  resampling, not a crop inside the slice.

The first two drop the smaller copy, all three link what they find, so that no split tears it apart.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from medssl.data.foreground import box_of

RUN, CHANGES, KEPT = 16, 12, 64
"""Voxels of a run, neighbours in it that must differ, and what its hash must be divisible by."""
MOST = 2**14
"""Hashes that are kept of a volume; of larger ones every other is left out until they fit."""
FEWEST = 16
"""Hashes below which a share of them says nothing."""
COPY, OVERLAP = 0.9, 0.2
"""Share of common hashes from which a volume is a copy, and from which two are linked."""
SIDE, LOW = 32, 16
"""Of the picture that a slice is shrunk to, and of the square of frequencies that are kept."""
BITS, NEAR = LOW * LOW - 1, 16
"""Of a slice's hash, and how many may differ between copies."""
SLICES = 0.5
"""Share of the slices of the shorter volume that must be found in the other, in order."""
BANDS, WIDE = 8, 31
"""Parts of a slice's hash that candidates are found by, and their bits."""
CROWD = 50
"""Volumes with one value of which not all pairs are looked at."""
COARSE = 128
"""Pixels along a side that are enough to find the body."""
ROUNDING = 1e-4
"""Of the largest pixel: waves below it are none."""
PIECE = 2**24
"""Hashes of all volumes that are sorted at once."""
SMALLEST_SLICE = 0.01
"""Share of a slice that must be patient for it to say whose it is."""
_FACTORS = [np.uint64(pow(0x9E3779B97F4A7C15, 2**k, 2**64)) for k in range(4)]
"""M, M^2, M^4, M^8."""
_POWERS = 1 << np.arange(WIDE)
_MIX = np.uint64(0xD6E8FEB86659FD93)
_SLAB = 2**16
"""Voxels that are hashed at once; they stay in the cache."""

Test = Literal["equal", "copy", "overlap", "slices"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Print:
    """What is compared of a volume."""

    key: str
    hash: str
    n_voxels: int
    rank: int = 0
    """Of two copies of one size the lower rank stays."""
    sketch: NDArray[np.int64]
    every: int = KEPT
    """What the hashes of `sketch` are divisible by; all such of the volume are there."""
    slices: bytes
    """Hashes of slices, 32 bytes each (`packed`)."""


@dataclass(frozen=True, order=True)
class Link:
    """Two volumes that show the same anatomy."""

    a: str
    b: str
    """Keys, a < b."""
    test: Test
    share: float
    """Of hashes of voxels or of slices that they have in common."""


def voxel_sketch(image: NDArray[Any]) -> NDArray[np.int64]:
    """The hashes of runs of voxels that are divisible by 64, ascending.

    Args:
        image: (C, X, Y, Z). Whole numbers hash alike whatever their type.
    """
    values = _whole(image)
    if values.shape[1] < RUN:  # too thin along X in every copy of it
        values = values.swapaxes(1, 2)
    n, lines = values.shape[1], values.reshape(*values.shape[:2], -1)
    if n < RUN:
        return np.zeros(0, np.int64)
    found = []
    step = max(_SLAB // n, 1)
    for start in range(0, lines.shape[2], step):
        slab = lines[:, :, start : start + step]
        changes = (slab[:, 1:] != slab[:, :-1]).any(0).view(np.uint8)
        varied = _windows(changes, RUN - 1) >= CHANGES
        if not varied.any():
            continue
        run = slab[0].astype(np.int64).view(np.uint64)
        for channel in slab[1:]:
            run = run * _MIX + channel.astype(np.int64).view(np.uint64)
        for k, factor in enumerate(_FACTORS):  # of 2, 4, 8, 16 voxels
            run = run[: -(1 << k)] * factor + run[1 << k :]
        hashes = run[varied]
        hashes ^= hashes >> np.uint64(32)
        hashes *= _MIX
        hashes ^= hashes >> np.uint64(32)
        found.append(hashes[hashes % np.uint64(KEPT) == 0])
    if not found:
        return np.zeros(0, np.int64)
    return np.unique(np.concatenate(found).view(np.int64))


def thinned(sketch: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """At most `MOST` hashes, and what all of them are divisible by."""
    every = KEPT
    while len(sketch) > MOST:
        every *= 2
        sketch = sketch[sketch % every == 0]
    return sketch, every


def slice_hash(image: NDArray[Any], level: float) -> NDArray[np.bool_]:
    """Bits of each slice along Z: those of one slice and its copy differ in few.

    The body's box is shrunk to 32 x 32 by a Gaussian, and of its cosine transform the 16 x 16
    lowest frequencies but the mean are compared with their median.

    Args:
        image: (C, X, Y, Z); read fastest where slices lie as a whole.
        level: The value above which a voxel is patient (`data.foreground`).

    Returns:
        (n_slices, 255); nothing is set where a slice shows nothing.
    """
    grey = image[0] if len(image) == 1 else image.mean(0)
    skip = tuple(max(n // COARSE, 1) for n in grey.shape[:2])
    bits = np.zeros((grey.shape[2], BITS), np.bool_)
    for z in range(grey.shape[2]):
        plane = grey[:, :, z]
        coarse = plane[:: skip[0], :: skip[1]].astype(np.float32)
        inside = uniform_filter(coarse, 5, mode="nearest") > level  # a lone noisy voxel is no body
        if np.count_nonzero(inside) < SMALLEST_SLICE * inside.size:
            continue
        (x0, x1), (y0, y1) = box_of(inside)
        body = plane[x0 * skip[0] : x1 * skip[0], y0 * skip[1] : y1 * skip[1]].astype(np.float32)
        low = _shrink(body.shape[0]) @ body @ _shrink(body.shape[1]).T
        waves = (_cosines() @ (low - low.mean()) @ _cosines().T).reshape(-1)[1:]
        # what is nothing but rounding must not decide bits, which must not depend on the machine
        waves[np.abs(waves) <= ROUNDING * np.abs(low).max()] = 0
        if waves.any():
            bits[z] = waves > np.median(waves)
    return bits


def packed(slices: NDArray[np.bool_]) -> bytes:
    """Hashes of slices as 32 bytes each."""
    return np.packbits(slices, axis=1).tobytes()


def unpacked(slices: bytes) -> NDArray[np.bool_]:
    """Hashes of slices (n_slices, 255) of their bytes."""
    rows = np.frombuffer(slices, np.uint8).reshape(-1, (BITS + 7) // 8)
    return np.unpackbits(rows, axis=1, count=BITS).astype(np.bool_)


def link(prints: Iterable[Print]) -> tuple[list[Link], dict[str, str]]:
    """What shows the same anatomy, and which volumes are copies of which.

    Args:
        prints: Of all volumes, in any order.

    Returns:
        Links in the order of keys; for each copy the key of the volume that stays.
    """
    everyone = sorted(prints, key=lambda p: (-p.n_voxels, p.rank, p.key))
    links: list[Link] = []
    copies: dict[str, str] = {}
    by_hash: dict[str, str] = {}
    for one in everyone:
        first = by_hash.setdefault(one.hash, one.key)
        if first != one.key:
            links.append(_link(first, one.key, "equal", 1.0))
            copies[one.key] = first
    alone = [p for p in everyone if p.key not in copies]
    related: set[tuple[int, int]] = set()
    for i, j, share in _common_voxels(alone):
        related.add((i, j))
        if share >= COPY and alone[i].key not in copies and alone[j].key not in copies:
            copies[alone[j].key] = alone[i].key
            links.append(_link(alone[i].key, alone[j].key, "copy", share))
        else:
            links.append(_link(alone[i].key, alone[j].key, "overlap", share))
    for i, j in sorted(_candidates(alone) - related):
        share = common_slices(unpacked(alone[i].slices), unpacked(alone[j].slices))
        if share >= SLICES:
            links.append(_link(alone[i].key, alone[j].key, "slices", share))
    return sorted(links), copies


def containment(a: Print, b: Print) -> float:
    """Share of the smaller sketch that is in the larger one; 0 where they are too small."""
    every = max(a.every, b.every)
    one, other = (s.sketch[s.sketch % every == 0] for s in (a, b))
    fewer = min(len(one), len(other))
    return len(np.intersect1d(one, other, assume_unique=True)) / fewer if fewer >= FEWEST else 0.0


def common_slices(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Share of the slices of the shorter volume that are in the other one, in the same order.

    Slices that show nothing do not count.
    """
    short, long = sorted((a[a.any(1)], b[b.any(1)]), key=len)
    if not len(short):
        return 0.0
    ones = short.astype(np.float32) @ long.T.astype(np.float32)
    apart = short.sum(1)[:, None] + long.sum(1)[None, :] - 2 * ones
    best = np.zeros(len(long) + 1, np.int64)  # longest chain that ends before each slice of b
    for near in apart <= NEAR:
        best[1:] = np.maximum(best[1:], best[:-1] + near)
        best = np.maximum.accumulate(best)
    return float(best[-1] / len(short))


def _link(a: str, b: str, test: Test, share: float) -> Link:
    return Link(min(a, b), max(a, b), test, share)


def _whole(image: NDArray[Any]) -> NDArray[Any]:
    """Whole numbers as such; reals to one part in 2000, where copies agree."""
    if image.dtype.kind in "iu":
        return image
    rounded = np.rint(image)
    if np.array_equal(rounded, image) and np.abs(rounded).max() < 2**53:
        return rounded.astype(np.int64)
    return (image.astype(np.float32).view(np.int32).astype(np.int64) + (1 << 11)) >> 12


def _windows(flags: NDArray[np.uint8], n: int) -> NDArray[np.uint8]:
    """Sums over n = 2^k - 1 neighbours along the first axis."""
    total, reach = flags, 1
    while reach < n:  # 1, 3, 7, 15 neighbours: two sums and what lies between them
        middle = flags[reach : len(flags) - reach]
        total = total[: len(middle)] + middle + total[reach + 1 :]
        reach = 2 * reach + 1
    return total


@lru_cache(maxsize=1024)
def _shrink(n: int) -> NDArray[np.float32]:
    """(32, n) weights of Gaussians, each as wide as what its pixel stands for."""
    step = n / SIDE
    centres = (np.arange(SIDE) + 0.5) * step - 0.5
    spread = max(step, 1.0) / 2 * math.sqrt(2)
    weights = np.exp(-0.5 * ((np.arange(n) - centres[:, None]) / spread) ** 2)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


@lru_cache(maxsize=1)
def _cosines() -> NDArray[np.float32]:
    """(16, 32): the lowest waves of the cosine transform."""
    waves = np.cos(np.pi * np.arange(LOW)[:, None] * (np.arange(SIDE) + 0.5) / SIDE)
    return waves.astype(np.float32)


def _common_voxels(prints: Sequence[Print]) -> list[tuple[int, int, float]]:
    """Pairs i < j of prints with enough hashes in common, and their share."""
    n_pieces = sum(len(p.sketch) for p in prints) // PIECE + 1
    ends = np.linspace(-(2.0**63), 2.0**63, n_pieces + 1)[1:-1].astype(np.int64)
    cuts = [np.r_[0, np.searchsorted(p.sketch, ends), len(p.sketch)] for p in prints]
    pairs: set[tuple[int, int]] = set()
    for k in range(n_pieces):  # by value, so that no archive is sorted as a whole
        pieces = [p.sketch[c[k] : c[k + 1]] for p, c in zip(prints, cuts, strict=True)]
        pairs |= _sharing(pieces)
    found = []
    for i, j in sorted(pairs):
        share = containment(prints[i], prints[j])
        if share >= OVERLAP:
            found.append((i, j, share))
    return found


def _candidates(prints: Sequence[Print]) -> set[tuple[int, int]]:
    """Pairs i < j of prints with two slices that agree in a whole band of their bits.

    Of two slices that differ in 16 of 255 bits two thirds agree in one of the 8 bands, so of the
    slices of a copy some do; no comparison of all pairs of an archive could be paid for.
    """
    pairs: set[tuple[int, int]] = set()
    for band in range(BANDS):
        part = slice(band * WIDE, (band + 1) * WIDE)
        shown = (bits[bits.any(1), part] for bits in (unpacked(p.slices) for p in prints))
        pairs |= _sharing([bits @ _POWERS for bits in shown])
    return pairs


def _sharing(held_by: Sequence[NDArray[np.int64]]) -> set[tuple[int, int]]:
    """Pairs of owners of one value, the lower first; a connected part where many have it."""
    values = np.concatenate([np.zeros(0, np.int64), *held_by])
    owners = np.repeat(np.arange(len(held_by)), [len(v) for v in held_by])
    order = np.lexsort((owners, values))
    values, owners = values[order], owners[order]
    new = np.ones(len(values), np.bool_)
    new[1:] = (values[1:] != values[:-1]) | (owners[1:] != owners[:-1])
    values, owners = values[new], owners[new]
    first = np.flatnonzero(np.r_[True, values[1:] != values[:-1]]) if len(values) else values
    count = np.diff(np.r_[first, len(values)])
    pairs: set[tuple[int, int]] = set()
    for many in np.unique(count[count > 1]):
        held = np.unique(owners[first[count == many][:, None] + np.arange(many)], axis=0)
        a, b = np.triu_indices(many, 1)
        if many > CROWD:  # each with the largest and with its neighbour
            chosen = (a == 0) | (b == a + 1)
            a, b = a[chosen], b[chosen]
        found = np.unique(np.stack([held[:, a].ravel(), held[:, b].ravel()], 1), axis=0)
        pairs.update(map(tuple, found.tolist()))
    return pairs
