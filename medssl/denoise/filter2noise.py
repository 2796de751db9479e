r"""Filter2Noise: bilateral filters that learn their own widths from one noisy image.

A chain of stages f, each a bilateral filter with widths :math:`\sigma = (\sigma_x, \sigma_y,
\sigma_r)` that a small attention over 8x8 patches P of its input predicts,

.. math:: F = \mathrm{softmax}(Q K^T / \sqrt 8)\, V, \qquad
          \sigma = \min(\mathrm{softplus}(W\,\mathrm{LN}(T)), 6) + 10^{-6},

Q, K, V linear in P and T the same once more on F, is fitted on the diagonal pair g of y. With s
the swap of most similar neighbours, :math:`d_i = f(s(g_i(y)))`, h = f(y), D a difference of
Gaussians and means over pixels,

.. math:: L = \tfrac13 \big[ |d_1 - d_2| + |d_1 - g_1(h)| + |d_2 - g_2(h)| + |g_1(h) - g_2(h)| \big]
              + \lambda\, \big|\, |D * y| - |D * h|\, \big| .

Departs from the paper: "scalar" has one width per stage and channel and no attention (the learnt
maps hardly vary), "spatial" scales :math:`\sigma_r` with the known local noise; any size; slices of
a volume are filtered one by one with shared parameters.
Needs: noise that differs between neighbouring pixels. On smooth kernels a large lambda is the
identity.
Reference: Sun, Yang, Huang, Preibisch, Maier. Filter2Noise: Interpretable Self-Supervised
Single-Image Denoising for Low-Dose CT with Attention-Guided Bilateral Filtering. 2025.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, scaled_dot_product_attention, softplus

from medssl.core.batch import Noisy
from medssl.core.errors import InputError
from medssl.method import Domain, Mapped
from medssl.nets.bilateral import bilateral
from medssl.nets.borders import extended
from medssl.nets.slices import as_batch, as_volume
from medssl.nets.subsample import diagonal_pair, swap_most_similar

LEAST_SIGMA = 1e-6
"""Added to each width."""
LARGEST_EDIT = 10
"""Times the largest width that is predicted; wider maps are refused, they would filter for ever."""
LARGEST_RADIUS = 8
"""Voxels; reach of the window "3sigma"."""
START = (0.8, 0.8, 0.5)
"""Widths before the fit where they are learnt as numbers."""
MULTIPLE = 16
"""Training images are reflected to this multiple: halves of them must hold whole patches."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters, under the paper's letters."""

    predictor: Literal["attention", "scalar", "spatial"] = "attention"
    """Where the widths come from; the paper has attention."""
    n_stages: int = 2
    """Bilateral filters in a row."""
    patch: int = 8
    """Side of a token, pixels."""
    hidden: int = 8
    """Channels of the attention."""
    lam: float = 400.0
    """lambda, weight of the edge term. Smooth kernels want 30."""
    sigma_max: float = 6.0
    """Largest width, voxels or units of intensity."""
    window: Literal["paper", "3sigma"] = "paper"
    """Reach of the filter: the largest width rounded up, or three times it, at most 8 voxels."""
    sigma_0: float = 0.01
    """Noise for which "spatial" takes its width as it is (41 HU), in units of intensity; elsewhere
    the width is scaled by the local noise over it."""

    def build(self) -> "Filter2Noise":
        """The method, untrained; attention draws its start from the global generator."""
        return Filter2Noise(self)


class Filter2Noise(Mapped):
    """A chain f of bilateral filters."""

    domain: Domain = "unit"

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        make = _Attention if config.predictor == "attention" else _Constant
        self.stages = nn.ModuleList(make(config) for _ in range(config.n_stages))

    @property
    def map_stages(self) -> int:
        """Bilateral filters in a row."""
        return self.config.n_stages

    @property
    def map_patch(self) -> int:
        """Side of a token."""
        return self.config.patch

    @property
    def map_shared(self) -> bool:
        """Widths that are numbers, and follow no noise."""
        return self.config.predictor == "scalar"

    @property
    def map_words(self) -> str:
        """The reach of the filter."""
        return f"window {self.config.window}"

    @property
    def follows_sigma(self) -> bool:
        """Where the width in intensity is scaled by it."""
        return self.config.predictor == "spatial"

    def loss(self, batch: Noisy) -> dict[str, Tensor]:
        """The terms of L on images (B, 1, x, y), means over pixels."""
        y, noise = extended(batch.image, MULTIPLE), self._strength(batch)
        g1, g2 = diagonal_pair(y)
        halves = torch.cat([swap_most_similar(g1), swap_most_similar(g2)])
        half_noise = None
        if noise is not None:
            noise = extended(noise, MULTIPLE)
            half_noise = avg_pool2d(noise, 2).repeat(2, 1, 1, 1)
        d1, d2 = self._filter(halves, half_noise)[0].chunk(2)
        h = self._filter(y, noise)[0]
        h1, h2 = diagonal_pair(h)
        consistency = [(a - b).abs().mean() for a, b in ((d1, h1), (d2, h2), (h1, h2))]
        return {
            "pair": (d1 - d2).abs().mean() / 3,
            "consistency": torch.stack(consistency).sum() / 3,
            "edge": self.config.lam * (_edges(y).abs() - _edges(h).abs()).abs().mean(),
        }

    def restore(self, batch: Noisy) -> Tensor:
        """Clean images (B, 1, *spatial); the slices of a volume (x, y, z) one by one."""
        return self.restore_with_maps(batch, batch.sigma_maps)[0]

    @torch.no_grad()
    def restore_with_maps(
        self, batch: Noisy, sigma_maps: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Clean images and the widths that made them.

        Args:
            batch: Images (B, 1, x, y) or (B, 1, x, y, z); `sigma` matters to "spatial" alone.
            sigma_maps: (B, n_stages, 3, *grid) to filter with, nothing is predicted; channels x and
                y in voxels, r in units of intensity. An axis of the grid is as long as that of the
                image, or as its patches, or 1.

        Returns:
            Images like those of `batch`; the maps, as given or on the natural grid: patches of each
            slice for attention, voxels for spatial, 1 for scalar. They filter to the same result
            bit for bit.

        Raises:
            InputError: Maps that do not fit the image.
        """
        image = batch.image
        if sigma_maps is not None:
            sigma_maps = sigma_maps.to(image)
            self._check(sigma_maps, image)
        if image.ndim == 4:
            given = None if sigma_maps is None else list(sigma_maps.unbind(1))
            clean, maps = self._filter(image, self._strength(batch), given)
            return clean, torch.stack(maps, dim=1)
        depth, noise = image.shape[-1], self._strength(batch)
        given = None
        if sigma_maps is not None:
            deep = sigma_maps.expand(*sigma_maps.shape[:-1], depth)
            given = [as_batch(stage) for stage in deep.unbind(1)]
        flat = None if noise is None else as_batch(noise)
        clean, maps = self._filter(as_batch(image), flat, given)
        clean = as_volume(clean, depth)
        if sigma_maps is not None:
            return clean, sigma_maps
        if self.map_shared:
            return clean, torch.stack([as_volume(m[::depth], 1) for m in maps], dim=1)
        return clean, torch.stack([as_volume(m, depth) for m in maps], dim=1)

    def reach(self, sigma_maps: Tensor) -> int:
        """The windows of all stages, one after the other."""
        return sum(self._radius(stage) for stage in sigma_maps.split(1))

    def halo(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Whole slices for attention, else the reach of all stages; nothing across slices."""
        if self.config.predictor == "attention":
            return self.whole_slices(shape)
        constants = [stage for stage in self.stages if isinstance(stage, _Constant)]
        reach = sum(self._radius(c.widths().detach()[None, :, None, None]) for c in constants)
        return (reach, reach, *(0 for _ in shape[2:]))

    def bytes_per_voxel(self) -> int:
        """Padded image, window sums, widths and their exponents."""
        return 64

    def _filter(
        self, image: Tensor, noise: Tensor | None, given: list[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """All stages on images (B, 1, x, y), and the widths (B, 3, *grid) of each."""
        maps = []
        for k, stage in enumerate(self.stages):
            widths = stage(image, noise) if given is None else given[k]
            image = self._stage(image, widths)
            maps.append(widths)
        return image, maps

    def _stage(self, image: Tensor, widths: Tensor) -> Tensor:
        """One bilateral filter; images whose windows differ are filtered apart."""
        radii = [self._radius(one) for one in widths.detach().split(1)]
        spread = _spread(widths, image, self.config.patch)
        if len(set(radii)) == 1:
            return bilateral(image, spread, radii[0])
        parts = zip(image.split(1), spread.split(1), radii, strict=True)
        return torch.cat([bilateral(x, s, r) for x, s, r in parts])

    def _radius(self, widths: Tensor) -> int:
        """Reach of the window for widths (1, 3, *grid), voxels."""
        largest = float(widths[:, :2].max())
        if self.config.window == "3sigma":
            return min(math.ceil(3 * largest), LARGEST_RADIUS)
        return math.ceil(largest)

    def _strength(self, batch: Noisy) -> Tensor | None:
        """Local noise relative to `sigma_0`, of the shape of the images; None when not used."""
        if self.config.predictor != "spatial" or batch.sigma is None:
            return None
        return (batch.sigma / self.config.sigma_0).expand(batch.image.shape)

    def _check(self, sigma_maps: Tensor, image: Tensor) -> None:
        """Refuse maps of another image."""
        spatial, grid = image.shape[2:], sigma_maps.shape[3:]
        patches = [-(-n // self.config.patch) for n in spatial[:2]]
        lawful = [{1, n} for n in spatial]
        for allowed, n in zip(lawful, patches, strict=False):
            allowed.add(n)
        head = (image.shape[0], len(self.stages), 3)
        fits = len(grid) == len(spatial) and all(
            g in allowed for g, allowed in zip(grid, lawful, strict=True)
        )
        if tuple(sigma_maps.shape[:3]) != head or not fits:
            raise InputError(
                f"sigma maps {tuple(sigma_maps.shape)} do not fit an image {tuple(image.shape)}",
                "use the maps of this very image",
            )
        self.check_maps(sigma_maps.flatten(0, 1))

    def check_maps(self, sigma_maps: Tensor) -> None:
        """Refuse maps (n, 3, *grid) with what is no width, or would take for ever."""
        if not bool((sigma_maps > 0).all() & torch.isfinite(sigma_maps).all()):
            odd = sigma_maps[~((sigma_maps > 0) & torch.isfinite(sigma_maps))]
            raise InputError(f"sigma maps hold {float(odd[0]):g}", "widths are above 0")
        widest, most = float(sigma_maps[:, :2].max()), LARGEST_EDIT * self.config.sigma_max
        if widest > most * (1 + 1e-6):
            raise InputError(
                f"sigma maps hold a width of {widest:g} voxels", f"widths are at most {most:g}"
            )


class _Attention(nn.Module):
    """Widths from two attentions over patches."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        tokens, hidden = config.patch**2, config.hidden
        self.first = nn.ModuleList(nn.Linear(tokens, hidden) for _ in "qkv")
        self.second = nn.ModuleList(nn.Linear(hidden, hidden) for _ in "qkv")
        self.norm = nn.LayerNorm(hidden)
        self.out = nn.Linear(hidden, 3)

    def forward(self, image: Tensor, noise: Tensor | None) -> Tensor:
        """Images (B, 1, x, y) to widths (B, 3, patches x, patches y)."""
        del noise
        p = self.config.patch
        whole = extended(image, p)
        grid = [n // p for n in whole.shape[2:]]
        patches = whole.reshape(-1, grid[0], p, grid[1], p).permute(0, 1, 3, 4, 2)
        f = patches.reshape(len(image), grid[0] * grid[1], p * p)
        for qkv in (self.first, self.second):
            q, k, v = (linear(f)[:, None] for linear in qkv)
            f = scaled_dot_product_attention(q, k, v)[:, 0]
        widths = _width(self.out(self.norm(f)), self.config.sigma_max)
        return widths.transpose(1, 2).reshape(len(image), 3, *grid)


class _Constant(nn.Module):
    """One width per channel; the one in intensity follows the local noise where it is known."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.theta = nn.Parameter(torch.tensor(START).expm1().log())

    def widths(self) -> Tensor:
        """(3,) widths where the noise is that of `sigma_0`."""
        return _width(self.theta, self.config.sigma_max)

    def forward(self, image: Tensor, noise: Tensor | None) -> Tensor:
        """Images (B, 1, x, y) to widths (B, 3, 1, 1), or (B, 3, x, y) given the noise."""
        widths = self.widths()[None, :, None, None].expand(len(image), 3, 1, 1)
        if noise is None:
            return widths
        space = widths[:, :2].expand(-1, -1, *image.shape[2:])
        return torch.cat([space, widths[:, 2:] * noise + LEAST_SIGMA], dim=1)


def _width(raw: Tensor, largest: float) -> Tensor:
    """Widths min(softplus(o), largest) + 1e-6."""
    return softplus(raw).clamp_max(largest) + LEAST_SIGMA


def _spread(widths: Tensor, image: Tensor, patch: int) -> Tensor:
    """Widths (B, 3, *grid) of patches on the voxels of images; size 1 stays."""
    for axis in (2, 3):
        n = image.shape[axis]
        if widths.shape[axis] not in (1, n):
            index = torch.arange(n, device=image.device) // patch
            widths = widths.index_select(axis, index)
    return widths


def _edges(image: Tensor) -> Tensor:
    """Difference of two normalised 7x7 Gaussians, zeros around the image."""
    line = torch.arange(-3.0, 4.0).to(image).square()
    square = line[:, None] + line
    narrow, wide = (torch.exp(-square / (2 * s**2)) for s in (9, 10))
    kernel = narrow / narrow.sum() - wide / wide.sum()
    return conv2d(image, kernel[None, None], padding=3)
