"""What a restoration did to a CT scan, in numbers, on a few slices and small crops."""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, gaussian_filter

from medssl.core.image import Image
from medssl.core.random import stream
from medssl.engine.infer import Scaling, batch_of, read_tile
from medssl.metrics import texture
from medssl.physics.noise_psd import BODY

SLICES = 5
SIDE = 32
"""Of a flat block, pixels."""
CROP, DEPTH = 48, 4
"""Of the crop a disk is put in, pixels and slices."""
RADIUS, BLUR = 10.0, 0.75
"""Of the disk, pixels; the blur of a scanner whose transfer is one half at half of Nyquist."""
CONTRASTS = (100.0, 300.0)
"""HU."""
SHARE = 0.15
"""Of the voxels of the scan, at most, that are filtered again."""
PLACES = 3
"""Most disks of each contrast."""
REGIONS = {
    "lung": (-950.0, -750.0),
    "fat": (-120.0, -60.0),
    "soft": (20.0, 80.0),
    "bone": (200.0, math.inf),
}
"""HU of the smoothed output."""
LEAST_VOXELS = 500
"""Of a region."""
LEAST = {"bias": 1.0, "nps": 0.75, "ttf50": 0.9}
"""Largest bias in HU, smallest ratios."""

Mask = NDArray[np.bool_]
Slice = NDArray[np.float32]
Place = tuple[int, int, int]


def report(
    scale: Scaling,
    image: Image,
    data: NDArray[np.float32],
    *,
    strength: float,
    mask: Mask | None,
    device: torch.device,
    seed: int,
) -> dict[str, Any]:
    """Quality of the final output as plain values; what does not exist is left out.

    Args:
        scale: The restorer, as it was used.
        image: The input, HU.
        data: (C, *spatial) the output, HU.
        strength: Share of the change that was applied.
        mask: (*spatial) voxels that were allowed to change; None means all.
        device: Where the restorer runs.
        seed: Of the run.
    """
    spacing = (float(image.spacing[0]), float(image.spacing[1]))
    pairs, places, regions = [], [], _Regions()
    depth = image.shape[2] if len(image.shape) == 3 else 1
    for z in np.unique(np.linspace(0, depth - 1, min(depth, SLICES) + 2).astype(int)[1:-1]):
        before, after = _slice(image.data[0], int(z)), _slice(data[0], int(z))
        good = np.isfinite(before) & np.isfinite(after)
        if image.valid is not None:
            good &= _slice(image.valid[0], int(z))
        if mask is not None:
            good &= _slice(mask, int(z))
        before, after = np.where(good, before, -1024), np.where(good, after, -1024)
        for x, y in _flat(after, good):
            at = (slice(x, x + SIDE), slice(y, y + SIDE))
            pairs.append((before[at], after[at]))
            places.append((x + SIDE // 2, y + SIDE // 2, int(z)))
        regions.add(before, after, good, int(z))
    out: dict[str, Any] = {}
    if pairs:
        old, new = (np.stack([p[k] for p in pairs]) for k in (0, 1))
        out["nps"] = _nps(old, new, spacing)
        out["correlation"] = {
            name: [round(c, 3) for c in texture.texture(blocks)]
            for name, blocks in (("before", old), ("after", new), ("removed", old - new))
        }
    out |= regions.numbers(np.random.default_rng(seed))
    edges = _edges(scale, image, places, spacing, strength, device, seed)
    if edges:
        out["ttf50_ratio"] = edges
    out["gates"] = _gates(out)
    return out


def failures(numbers: dict[str, Any]) -> list[str]:
    """One sentence for each gate that failed."""
    return [g["says"] for g in numbers["gates"] if not g["passed"]]


def lines(numbers: dict[str, Any]) -> list[str]:
    """The numbers as a short table."""
    rows = []
    if "nps" in numbers:
        n = numbers["nps"]
        rows.append(
            f"noise {n['before_hu']:g} to {n['after_hu']:g} HU, "
            f"mean frequency x {n['mean_frequency_ratio']:g}"
        )
    if "ttf50_ratio" in numbers:
        edges = (f"{k} HU x {v:g}" for k, v in numbers["ttf50_ratio"].items())
        rows.append("edges (TTF50): " + ", ".join(edges))
    if "bias_hu" in numbers:
        parts = (f"{k} {v['mean']:+.2f}" for k, v in numbers["bias_hu"].items())
        rows.append("bias, HU: " + ", ".join(parts))
    if "cnr_fat_soft" in numbers:
        c = numbers["cnr_fat_soft"]
        rows.append(f"fat to soft tissue CNR: {c['before']:g} to {c['after']:g}")
    return rows


def _slice(volume: NDArray[Any], z: int) -> NDArray[Any]:
    return volume if volume.ndim == 2 else volume[..., z]


def _flat(image: Slice, good: Mask) -> list[tuple[int, int]]:
    """Corners of the flattest fifth of the blocks that lie in the body, flattest first."""
    smooth = gaussian_filter(image, 3)
    body = good & (smooth > BODY)
    slope = np.hypot(*np.gradient(smooth))
    found = []
    for x in range(0, image.shape[0] - SIDE + 1, SIDE // 2):
        for y in range(0, image.shape[1] - SIDE + 1, SIDE // 2):
            at = (slice(x, x + SIDE), slice(y, y + SIDE))
            if body[at].all():
                found.append((float(slope[at].max()), x, y))
    found.sort()
    return [(x, y) for _, x, y in found[: max(4, len(found) // 5)]]


def _nps(old: Slice, new: Slice, spacing: tuple[float, float]) -> dict[str, Any]:
    before, after = texture.nps(old, spacing), texture.nps(new, spacing)
    out = {
        "before_hu": before.magnitude,
        "after_hu": after.magnitude,
        "before_cycles_per_mm": before.mean_frequency,
        "after_cycles_per_mm": after.mean_frequency,
        "magnitude_ratio": _ratio(after.magnitude, before.magnitude),
        "mean_frequency_ratio": _ratio(after.mean_frequency, before.mean_frequency),
    }
    return {k: float(f"{v:.4g}") for k, v in out.items()} | {"blocks": len(old)}


def _ratio(after: float, before: float) -> float:
    return after / before if before > 0 else 1.0


class _Regions:
    """Voxels of tissues, collected slice by slice."""

    def __init__(self) -> None:
        self.parts: dict[str, list[tuple[Slice, Slice, NDArray[np.int64]]]] = {}

    def add(self, before: Slice, after: Slice, good: Mask, z: int) -> None:
        smooth = gaussian_filter(after, 2)
        x, y = np.indices(before.shape)
        block = np.asarray((z * 4096 + x // 16) * 4096 + y // 16)
        for name, (low, high) in REGIONS.items():
            inside = binary_erosion((smooth >= low) & (smooth <= high) & good, iterations=3)
            self.parts.setdefault(name, []).append((before[inside], after[inside], block[inside]))

    def numbers(self, rng: np.random.Generator) -> dict[str, Any]:
        joined = {
            name: tuple(np.concatenate([p[k] for p in parts]) for k in range(3))
            for name, parts in self.parts.items()
        }
        joined = {name: r for name, r in joined.items() if r[0].size >= LEAST_VOXELS}
        out: dict[str, Any] = {}
        for name, (before, after, block) in joined.items():
            found = texture.tissue_bias(after.astype(np.float64) - before, block, rng)
            out.setdefault("bias_hu", {})[name] = {
                "mean": round(found.mean, 3),
                "interval": [round(found.low, 3), round(found.high, 3)],
                "voxels": found.voxels,
            }
        if "fat" in joined and "soft" in joined:
            pair = [texture.cnr(joined["fat"][k], joined["soft"][k]) for k in (0, 1)]
            if all(map(math.isfinite, pair)):
                out["cnr_fat_soft"] = {"before": round(pair[0], 3), "after": round(pair[1], 3)}
        return out


def _edges(
    scale: Scaling,
    image: Image,
    places: list[Place],
    spacing: tuple[float, float],
    strength: float,
    device: torch.device,
    seed: int,
) -> dict[str, float]:
    """TTF50 of disks after the filter over that before it, for each contrast in HU."""
    if min(image.shape[:2]) < CROP:
        return {}
    depth = min(DEPTH, image.shape[2]) if len(image.shape) == 3 else 1
    runs = 1 + len(CONTRASTS)
    most = int(SHARE * math.prod(image.shape) / (runs * CROP * CROP * depth))
    places = places[:: max(1, len(places) // PLACES)][: min(PLACES, most)]
    sharp, task = texture.disk(CROP, RADIUS), texture.disk(CROP, RADIUS, BLUR)
    sums = {contrast: np.zeros_like(task) for contrast in CONTRASTS}
    for x, y, z in places:
        corner = [
            min(max(c - CROP // 2, 0), n - CROP)
            for c, n in zip((x, y), image.shape[:2], strict=True)
        ]
        part = tuple(slice(c, c + CROP) for c in corner)
        middle = 0
        if len(image.shape) == 3:
            first = min(max(z - depth // 2, 0), image.shape[2] - depth)
            part, middle = (*part, slice(first, first + depth)), z - first
        # The disk is where the flat block is, also near the border of the scan.
        move = (x - corner[0] - CROP // 2, y - corner[1] - CROP // 2)
        crop = read_tile(image, 0, part)
        added = torch.from_numpy(np.roll(task, move, (0, 1)).astype(np.float32))
        added = added if crop.ndim == 2 else added[..., None]
        without = _restore(scale, crop, part, device, seed)
        for contrast in CONTRASTS:
            restored = _restore(scale, crop + contrast * added, part, device, seed)
            change = (1 - strength) * contrast * added + strength * (restored - without)
            flat = change.expand_as(crop).numpy()
            sums[contrast] += np.roll(_slice(flat, middle), (-move[0], -move[1]), (0, 1))
    if not places:
        return {}
    before = texture.ttf(task, sharp, spacing).at(0.5)
    out = {}
    for contrast, total in sums.items():
        after = texture.ttf(total / (len(places) * contrast), sharp, spacing).at(0.5)
        out[f"{contrast:g}"] = round(after / before, 3)
    return out


def _restore(
    scale: Scaling, y: torch.Tensor, part: tuple[slice, ...], device: torch.device, seed: int
) -> torch.Tensor:
    """(*part) restored, HU; equal chance for equal seeds."""
    noisy, _ = batch_of(scale, y[None].to(device), part, stream(seed, "ct report", device))
    with torch.no_grad():
        return scale.outward(scale.method.restore(noisy)[0, 0]).cpu()


def _gates(numbers: dict[str, Any]) -> list[dict[str, Any]]:
    """What passed and what did not."""
    gates = []

    def gate(name: str, value: float, passed: bool, says: str) -> None:
        gates.append({"name": name, "value": value, "passed": passed, "says": says})

    for name, bias in numbers.get("bias_hu", {}).items():
        mean, most = bias["mean"], LEAST["bias"]
        says = f"{name} moved by {mean:+.2f} HU, more than {most:g}"
        gate(f"bias {name}", mean, abs(mean) <= most, says)
    if "nps" in numbers:
        ratio, least = numbers["nps"]["mean_frequency_ratio"], LEAST["nps"]
        says = f"noise became coarser: mean frequency x {ratio:.2f}, less than {least:g}"
        gate("nps mean frequency", ratio, ratio >= least, says)
    for contrast, ratio in numbers.get("ttf50_ratio", {}).items():
        least = LEAST["ttf50"]
        says = f"edges of {contrast} HU lost sharpness: TTF50 x {ratio:.2f}, less than {least:g}"
        gate(f"ttf50 {contrast} HU", ratio, ratio >= least, says)
    for entry in gates:
        if entry["passed"]:
            del entry["says"]
    return gates
