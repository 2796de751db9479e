"""Tiles through a restorer: stabilise, restore, undo, blend, within a memory plan."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool3d

from medssl.core.batch import Noisy
from medssl.core.errors import MemoryLimitError
from medssl.core.image import Image
from medssl.core.random import stream
from medssl.core.shapes import Tile, tile_size, tiles
from medssl.engine.device import MIB, Machine
from medssl.engine.steer import Regions, SigmaMaps
from medssl.method import Mapped, Restorer
from medssl.physics.noise import NonCentralChi, Rician
from medssl.physics.noise_level import NoiseEstimate
from medssl.physics.noise_psd import BODY, NoiseModel
from medssl.physics.stabilise import Stabiliser

LEAST_TILE_BYTES = 64 * MIB
"""Tiles may always take this much; below it halos cost more than they save."""
BYTES_AROUND = 32
"""Each voxel of a tile as read, filled, its noise, stabilised, restored, undone, blended, kept."""
LONG_HALO = 12
"""Voxels; methods that look further want larger tiles, or halos cost more than the rest."""
LARGER = 4
"""Times the least tile for those."""
SHARE_OF_VOLUME = 0.5
"""What tiles may take beyond that, as a share of the float32 volume."""
SIGNAL = 2.0
"""Magnitudes below so many sigma are background, where noise has another variance."""
LEAST_SIGNAL = 0.02
"""Share of the voxels that must carry signal for the background to be left out."""
SLOPE_STEP = 0.05
"""Step for the slope of the way back, standard deviations."""
FILLED = 5
"""Side of the box whose mean replaces a voxel that is not valid, for filtering only."""

LEAST_WIDTH = 1e-6
"""Voxels or units of intensity; such a filter is the identity."""

OnTile = Callable[[int, int], None]
"""Told how many tiles are done and how many there are."""
OnMaps = Callable[[Tile, Tensor], None]
"""Told the maps (1, n_stages, 3, *grid) that restored what a tile read."""


@dataclass(frozen=True)
class Plan:
    """How a volume is cut so that the work fits."""

    tile: tuple[int, ...]
    halo: tuple[int, ...]
    n_tiles: int
    bytes: int
    """Of the largest tile while it is worked on."""
    device: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the sidecar."""
        return {
            "tile": list(self.tile),
            "halo": list(self.halo),
            "tiles": self.n_tiles,
            "tile_mib": round(self.bytes / MIB, 1),
            "device": self.device,
        }


@dataclass(frozen=True)
class Scaling:
    """Between image units and what a restorer sees."""

    method: Restorer
    noise: NoiseEstimate
    stabiliser: Stabiliser
    low: float
    high: float
    maps: SigmaMaps | None = None
    """What steers the restorer, where it is given."""

    @property
    def unit(self) -> float:
        """Image units in one unit of the restorer's domain, for additive noise."""
        return self.noise.sigma if self.method.domain == "stabilised" else self.high - self.low

    @property
    def divided(self) -> bool:
        """Whether stabilised images were divided by the strength of their noise at each voxel."""
        mapped = self.noise.sigma_map is not None and self.noise.spectrum is None
        return mapped and self.method.domain == "stabilised"

    @property
    def floor(self) -> float:
        """Image units; what is not brighter is air."""
        if self.noise.spectrum is not None:
            return BODY
        law = self.noise.law
        return SIGNAL * law.sigma if isinstance(law, Rician | NonCentralChi) else -math.inf

    @property
    def level(self) -> float:
        """The noise as a share of the range of values."""
        return self.noise.sigma / (self.high - self.low)

    @property
    def brightest(self) -> float:
        """The upper end of the range of values in the restorer's domain."""
        return float(self.inward(torch.full((1,), self.high), None)[0])

    def inward(self, y: Tensor, sigma: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Image and noise standard deviation in the restorer's domain.

        Args:
            y: (..., *spatial) image units.
            sigma: (*spatial) noise in image units where it varies, else None. A map of the noise
                goes into the stabilisation, the local strength of a spectrum to the restorer.
        """
        relative = None if sigma is None else sigma / self.noise.sigma
        if self.method.domain == "stabilised":
            if relative is not None and self.divided:
                return self.stabiliser.forward(y / relative), None
            return self.stabiliser.forward(y), relative
        span = self.high - self.low
        level = torch.full((), self.noise.sigma / span) if relative is None else sigma
        assert level is not None
        return (y - self.low) / span, level if relative is None else level / span

    def outward(self, x: Tensor) -> Tensor:
        """The inverse of `inward` for a restored image."""
        if self.method.domain == "stabilised":
            return self.stabiliser.inverse(x)
        return x * (self.high - self.low) + self.low

    def trust(self, restored: Tensor) -> tuple[Tensor, Tensor]:
        """Variance of noise that was of unit level, and how much each voxel matters.

        A voxel matters by the squared slope of the way back to image units; the background of a
        magnitude, where the law fits least, is left out unless there is hardly anything else.

        Args:
            restored: (*spatial) in the restorer's domain.

        Returns:
            Two tensors (*spatial): about 1 in the stabilised domain, 1 in others; 0 or more.
        """
        one = torch.ones_like(restored)
        if self.method.domain != "stabilised":
            return one, one
        signal = self.outward(restored)
        ahead, behind = self.outward(restored + SLOPE_STEP), self.outward(restored - SLOPE_STEP)
        weight = ((ahead - behind) / (2 * SLOPE_STEP * self.unit)).square()
        if isinstance(self.noise.law, Rician | NonCentralChi):
            seen = signal > SIGNAL * self.noise.sigma
            weight = weight * seen if float(seen.float().mean()) > LEAST_SIGNAL else weight
        return self.stabiliser.residual_variance(signal), weight


def scaling(method: Restorer, image: Image, noise: NoiseEstimate) -> Scaling:
    """Scale for a restorer: CT has fixed bounds, other images their own range.

    Counts and speckle keep their zero, without which they would obey another law.
    """
    if image.modality == "CT":
        low, high = -1024.0, 3072.0
    else:
        part = tuple(slice(None, None, max(1, n // 128)) for n in image.shape)
        sample = image.data[(slice(None), *part)]
        sample = sample[np.isfinite(sample)]
        low, high = float(sample.min()), float(np.percentile(sample, 99.9))
        if noise.law.name in ("poisson", "gamma"):
            low = 0.0
        high = high if high > low else low + 1.0
    return Scaling(method, noise, Stabiliser(noise.law), low, high)


def plan(method: Restorer, image: Image, machine: Machine, *, whole_slices: bool = False) -> Plan:
    """Cut a volume so that its tiles fit.

    Args:
        method: What restores them.
        image: The volume.
        machine: Where it runs.
        whole_slices: Of a method with maps: they are given or edited, its windows follow them.

    Raises:
        MemoryLimitError: Not even the smallest tile fits.
    """
    far = method.halo(image.shape)
    if whole_slices and isinstance(method, Mapped):
        far = method.whole_slices(image.shape)
    halo = tuple(min(h, n) for h, n in zip(far, image.shape, strict=True))
    together = image.data.shape[0] if method.joint else 1
    per_voxel = together * (method.bytes_per_voxel() + BYTES_AROUND)
    free = machine.free
    least = LEAST_TILE_BYTES * (LARGER if max(halo) >= LONG_HALO else 1)
    voxels = together * np.prod(image.shape, dtype=np.float64)
    wanted = int(least + SHARE_OF_VOLUME * 4 * voxels)
    if machine.device.type == "cuda":
        wanted = free // 2
    size = tile_size(image.shape, halo, max(min(wanted, free), 0) // per_voxel)
    held = per_voxel * int(
        np.prod([min(s + 2 * h, n) for s, h, n in zip(size, halo, image.shape, strict=True)])
    )
    if held > free:
        raise MemoryLimitError(
            f"the smallest tile needs {held / MIB:.0f} MiB, {max(free, 0) / MIB:.0f} MiB are free",
            "raise --memory or close other programs",
        )
    count = len(list(tiles(image.shape, size, halo)))
    return Plan(size, halo, count, held, str(machine.device))


def infer(
    scale: Scaling,
    image: Image,
    plan_: Plan,
    *,
    strength: float = 1.0,
    mask: NDArray[np.bool_] | None = None,
    regions: Regions | None = None,
    seed: int = 0,
    on_tile: OnTile | None = None,
    on_maps: OnMaps | None = None,
) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """Restore an image tile by tile.

    Args:
        scale: The restorer and its domain.
        image: What to restore.
        plan_: How to cut it.
        strength: Share of the change that is applied, 0 to 1.
        mask: (*spatial) voxels that may change; None means all.
        regions: Where the filter is stronger or weaker.
        seed: Of the run.
        on_tile: Told about progress.
        on_maps: Told the maps of a method that has them, before they are edited in `regions`.

    Returns:
        (C, *spatial) float32, equal to the input bit for bit where nothing was to change; and
        what was done when memory ran out.

    Raises:
        MemoryLimitError: Even small tiles on the CPU do not fit.
    """
    out = np.empty_like(image.data)  # keeps the memory order of the file
    notes: list[str] = []
    batches = batches_of(scale.method, image)
    total = plan_.n_tiles * len(batches)
    done = 0
    zeros_are_background = scale.noise.law.name != "gaussian"  # a mask, not a measurement
    scale.method.to(plan_.device)
    for volumes in batches:
        for tile in tiles(image.shape, plan_.tile, plan_.halo):
            at: tuple[Any, ...] = (volumes, *tile.core)
            while True:
                try:
                    fresh, maps = _restored(scale, image, volumes, tile, plan_, seed, regions)
                    break
                except (torch.OutOfMemoryError, MemoryError) as error:
                    plan_ = _smaller(plan_, error)
                    notes.append(f"memory ran out; went on on the {plan_.device}")
                    scale.method.to(plan_.device)
            old = image.data[at]
            result = old + np.float32(strength) * (fresh - old) if strength < 1 else fresh
            if regions is not None and not steered(scale.method):
                share = regions.strength(tile.core)
                blend = old + np.float32(strength) * share * (fresh - old)
                result = np.where(share != 1, blend, result)
            keep = ~np.isfinite(result)
            if zeros_are_background:
                keep |= old == 0
            if image.valid is not None:
                keep |= ~image.valid[at]
            if mask is not None:
                keep |= ~mask[tile.core]
            out[at] = np.where(keep, old, result)
            done += 1
            if on_maps is not None and maps is not None:
                on_maps(tile, maps)
            if on_tile is not None:
                on_tile(done, total)
    return out, tuple(dict.fromkeys(notes))


def steered(method: Restorer) -> bool:
    """Whether a method can do more or less in a region; the result of others is blended there."""
    return isinstance(method, Mapped) or method.follows_sigma


def batches_of(method: Restorer, image: Image) -> list[slice]:
    """The volumes that a restorer sees at once: all, or one after the other."""
    n = image.data.shape[0]
    return [slice(0, n)] if method.joint else [slice(k, k + 1) for k in range(n)]


def local_sigma(noise: NoiseEstimate, part: tuple[slice, ...]) -> Tensor | None:
    """(*part) noise standard deviation in image units; None where one number says it all."""
    if noise.sigma_map is not None:
        return noise.sigma_map[part]
    if noise.spectrum is None:
        return None
    return noise.spectrum.local_sigma([s.start for s in part], [s.stop for s in part])


def seen_from(noise: NoiseEstimate, part: tuple[slice, ...]) -> NoiseModel | None:
    """The spectrum of the noise for a part of the image; None where the noise is white."""
    return None if noise.spectrum is None else noise.spectrum.within(part)


def read_tile(image: Image, channel: int, part: tuple[slice, ...]) -> Tensor:
    """(*part) float32, contiguous, voxels that are not valid filled from their neighbours."""
    y = torch.from_numpy(np.ascontiguousarray(image.data[channel][part]))
    if image.valid is None:
        return y
    return _filled(y, torch.from_numpy(np.ascontiguousarray(image.valid[channel][part])))


def read_batch(
    scale: Scaling,
    image: Image,
    volumes: slice,
    part: tuple[slice, ...],
    device: torch.device,
    generator: torch.Generator | None = None,
) -> tuple[Noisy, Tensor | None]:
    """A part (1, volumes, *part) in the restorer's domain, and its noise in image units."""
    picks = range(*volumes.indices(image.data.shape[0]))
    y = torch.stack([read_tile(image, k, part) for k in picks]).to(device)
    return batch_of(scale, y, part, generator)


def batch_of(
    scale: Scaling, y: Tensor, part: tuple[slice, ...], generator: torch.Generator | None = None
) -> tuple[Noisy, Tensor | None]:
    """Values (volumes, *part) in image units as `read_batch` gives those of an image."""
    sigma = local_sigma(scale.noise, part)
    sigma = None if sigma is None else sigma.to(y.device)
    z, level = scale.inward(y, sigma)
    level = None if level is None else level.to(y.device).expand(z.shape)[None]
    maps = None if scale.maps is None else scale.maps.within(part).to(y.device)
    spectrum = seen_from(scale.noise, part)
    return Noisy(z[None], level, spectrum, generator, sigma_maps=maps), sigma


def _restored(
    scale: Scaling,
    image: Image,
    volumes: slice,
    tile: Tile,
    plan_: Plan,
    seed: int,
    regions: Regions | None,
) -> tuple[NDArray[np.float32], Tensor | None]:
    """(volumes, *core) of one tile in image units, and the maps of what it read."""
    device = torch.device(plan_.device)

    def chance() -> torch.Generator:
        return stream(seed, f"restore/{volumes.start}/{tile.core}", device)

    batch, sigma = read_batch(scale, image, volumes, tile.read, device, chance())
    core = (slice(None), *tile.inner)
    method, maps = scale.method, None
    with torch.no_grad():
        if isinstance(method, Mapped):
            clean, maps = method.restore_with_maps(batch, batch.sigma_maps)
        else:
            clean = method.restore(batch)
        z = clean[0][core]
        if regions is not None and steered(method) and regions.near(tile):
            again = dataclasses.replace(batch, generator=chance())
            edited, where = _edited(method, again, maps, regions, tile, plan_)
            z = torch.where(where, edited[0][core], z)
        x = scale.outward(z)
        if scale.divided:
            assert sigma is not None
            x *= sigma[tile.inner].to(x) / scale.noise.sigma
    return x.cpu().numpy(), maps


def _edited(
    method: Restorer,
    batch: Noisy,
    maps: Tensor | None,
    regions: Regions,
    tile: Tile,
    plan_: Plan,
) -> tuple[Tensor, Tensor]:
    """What a tile read, restored with the strength of its regions, and (*core) where that counts.

    Elsewhere a wider filter anywhere would change the result everywhere: its window grows.
    """
    strength = torch.from_numpy(regions.strength(tile.read)).to(batch.image)
    if isinstance(method, Mapped):
        assert maps is not None
        shape = tuple(batch.image.shape[2:])
        here = SigmaMaps(maps[0].cpu().numpy(), shape, method.map_patch)
        whole = here.within(tuple(slice(0, n) for n in shape)).to(strength)
        wanted = (whole * strength).clamp_min(LEAST_WIDTH)
        clean, _ = method.restore_with_maps(batch, wanted)
        far = method.reach(wanted[0])
        reach: tuple[int, ...] = (far, far, *(0 for _ in shape[2:]))
    else:
        level = strength if batch.sigma is None else batch.sigma * strength
        clean = method.restore(dataclasses.replace(batch, sigma=level.expand(batch.image.shape)))
        reach = plan_.halo
    return clean, torch.from_numpy(regions.touched(tile, reach)).to(clean.device)


def _filled(y: Tensor, valid: Tensor) -> Tensor:
    """Values for filtering where there are none: mean of valid neighbours, else their median."""
    if bool(valid.all()):
        return y
    known = torch.where(valid, y, 0.0)
    shape = y.shape if y.ndim == 3 else (*y.shape, 1)
    weight = valid.float().reshape(1, 1, *shape)
    box = tuple(FILLED if n > 1 else 1 for n in shape)
    pad = tuple(b // 2 for b in box)
    near = avg_pool3d(weight, box, 1, pad)
    mean = avg_pool3d(known.reshape(1, 1, *shape), box, 1, pad) / near.clamp_min(1e-6)
    middle = float(y[valid].median()) if bool(valid.any()) else 0.0
    fill = torch.where(near > 0, mean, middle).reshape(y.shape)
    return torch.where(valid, y, fill)


def _smaller(plan_: Plan, error: BaseException) -> Plan:
    """After memory ran out on an accelerator: the CPU, which swaps rather than fails."""
    if plan_.device == "cpu":
        raise MemoryLimitError(
            f"tiles of {plan_.tile} do not fit", "set a lower --memory, so that they are smaller"
        ) from error
    torch.cuda.empty_cache()
    return dataclasses.replace(plan_, device="cpu")
