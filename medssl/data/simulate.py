r"""Raw scans that nobody measured: pictures as several coils would see them.

Pictures are generated, or magnitude images. These have lost phase, coils and noise, so this does
not bring raw data back: it makes examples from which nets learn how k-space becomes an image.

A picture m is given a phase, seen by coils S_c outside the field of view, and transformed:

.. math:: y_c = F (S_c \, m \, e^{i \varphi}) + n_c , \qquad
          |S_c(q)| \propto \frac{1}{1 + |q - p_c|^2 / w^2} , \quad \sum_c |S_c|^2 = 1 .
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from medssl.core.geometry import Geometry
from medssl.core.kspace import KSpace
from medssl.physics.fourier import to_image, to_kspace

Array = NDArray[np.float32]
FINE = 2
"""Generated pictures are drawn on a grid this much finer; scanners see no more than their k-space
holds, so what is sharper becomes ringing, as in real scans."""
COILS = (8, 16)
"""Fewest and most coils."""
WIDTHS = (0.6, 1.0)
"""w, in half fields of view."""
ROUGH_PHASE = 0.5
"""Standard deviation of the smooth random part of the phase, rad."""
PARTS = (60, 400)
"""Fewest and most parts of a generated picture."""
SIZES = (0.012, 0.5)
"""Radii of the smallest and the largest part, half fields of view."""
BEND = 0.25
"""How far a part may be bent out of its place, half fields of view."""
BLUR = 0.6
"""Largest standard deviation of the blur of a generated picture, pixels."""
LARGEST_PHASE = math.pi
"""Of the polynomial part, rad."""


@dataclass(frozen=True, eq=False)
class Simulated:
    """A fully sampled scan of one slice, and what it was made of.

    Args:
        kspace: (coil, H, W) complex64, without noise.
        coil_maps: (coil, H, W) complex64, of unit length.
        image: (H, W) complex64, its largest modulus about 1.
    """

    kspace: Tensor
    coil_maps: Tensor
    image: Tensor

    def measured(self, sigma: float, seed: int) -> KSpace:
        """The scan with noise, as if it came from a scanner.

        Args:
            sigma: Standard deviation of each real component, mean over the coils, whose noise is
                correlated; the image is about 1.
            seed: Of the noise.
        """
        rng = np.random.default_rng((seed, 1))
        coils, *shape = self.kspace.shape
        # half of the noise of neighbouring coils is shared, and some are noisier than others
        mixing = np.eye(coils) + 0.5 * np.roll(np.eye(coils), 1, 1) * rng.random((coils, 1))
        mixing = mixing * rng.uniform(0.8, 1.25, (coils, 1))
        mixing /= np.sqrt((mixing**2).sum(1).mean())
        white = rng.standard_normal((2, coils, math.prod(shape)))
        noise = (mixing @ (white[0] + 1j * white[1])).reshape(self.kspace.shape)
        return KSpace(
            (self.kspace.numpy() + sigma * noise).astype(np.complex64),
            Geometry((shape[0], shape[1]), np.eye(4)),
            np.ones((1, 1), np.bool_),
            name="simulated",
        )


def simulate_multicoil(
    picture: Array | Tensor,
    seed: int = 0,
    *,
    n_coils: int | None = None,
    shape: tuple[int, int] | None = None,
) -> Simulated:
    """A fully sampled scan of a picture; the same one for the same seed.

    Args:
        picture: (H, W) magnitudes, 0 or more.
        seed: Of phase and coils.
        n_coils: None draws 8 to 16.
        shape: Of the scan; None is that of the picture. The part of the picture's k-space about DC
            is kept, or zeros are added around it.
    """
    rng = np.random.default_rng(seed)
    magnitude = np.asarray(picture, np.float64)
    magnitude = magnitude / max(float(magnitude.max()), 1e-30)
    drawn = int(rng.integers(COILS[0], COILS[1] + 1))
    phase = _phase(magnitude.shape, rng)
    image = torch.from_numpy((magnitude * np.exp(1j * phase)).astype(np.complex64))
    if shape is not None:
        image = _resized(image, shape)
    coil_maps = torch.from_numpy(_coils(tuple(image.shape), n_coils or drawn, rng))
    return Simulated(to_kspace(coil_maps * image), coil_maps, image)


def phantom(shape: tuple[int, int], seed: int = 0) -> Array:
    """A generated picture: a body with a rim, full of bent ellipses and polygons of all sizes.

    Sizes follow a power law, as in pictures of the world, and every part has a texture.

    Args:
        shape: (H, W).
        seed: Of everything.

    Returns:
        (H, W) in [0, 1], 0 outside the body.
    """
    rng = np.random.default_rng((seed, 2))
    y, x = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij")
    y = y + 0.04 * _smooth(shape, 0.008, rng)
    x = x + 0.04 * _smooth(shape, 0.008, rng)
    centre, axes = rng.uniform(-0.08, 0.08, 2), rng.uniform(0.6, 0.92, 2)
    radius = np.hypot((y - centre[0]) / axes[0], (x - centre[1]) / axes[1])
    image = np.zeros(shape, np.float32)
    edges = np.cumsum(rng.uniform(0.02, 0.08, 3))
    for level in (0.0, *edges[: rng.integers(0, 4)]):
        image[radius < 1 - level] = rng.uniform(0.05, 1)
    # what lies inside is bent more, as folded tissue is
    bend = rng.uniform(0, 0.03)
    y = y + bend * _smooth(shape, 0.03, rng)
    x = x + bend * _smooth(shape, 0.03, rng)
    inside = radius < 1 - float(edges[-1])
    middle, contrast = rng.uniform(0.3, 0.8), rng.uniform(0.4, 1.4)
    image[inside] = middle
    for _ in range(round(math.exp(rng.uniform(*np.log(PARTS))))):
        size = _size(rng)
        _paint(image, (y, x), inside, size, middle + contrast * rng.uniform(-0.5, 0.5), rng)
    texture = _smooth(shape, 0.5, rng) + _smooth(shape, 0.2, rng) + _smooth(shape, 0.08, rng)
    image *= np.clip(1 + rng.uniform(0, 0.15) * texture, 0, 2)
    shading = 1 + rng.uniform(0, 0.15) * _smooth(shape, 0.02, rng)
    image = np.clip(image * np.clip(shading, 0.3, 2), 0, None)
    image = ndimage.gaussian_filter(image, rng.uniform(0, BLUR))
    return image / max(float(image.max()), 1e-30)


def _size(rng: np.random.Generator) -> float:
    """Radius of a part in half fields of view: a power law, so that no scale is special."""
    low, high = SIZES
    return float(1 / (1 / high + rng.random() * (1 / low - 1 / high)))


def _paint(
    image: Array,
    position: tuple[Array, Array],
    inside: NDArray[np.bool_],
    size: float,
    value: float,
    rng: np.random.Generator,
) -> None:
    """A turned ellipse or polygon of one value with a weak slope, over what is there."""
    y, x = position
    centre = rng.uniform(-0.75, 0.75, 2)
    stretch = np.exp(rng.uniform(-1.2, 1.2))
    turn = rng.uniform(0, math.pi)
    reach = size * max(stretch, 1 / stretch) * 1.5 + BEND
    part = tuple(
        slice(max(0, int((c - reach + 1) / 2 * n)), min(n, int((c + reach + 1) / 2 * n) + 1))
        for c, n in zip(centre, image.shape, strict=True)
    )
    u = (y[part] - centre[0]) * math.cos(turn) + (x[part] - centre[1]) * math.sin(turn)
    v = (x[part] - centre[1]) * math.cos(turn) - (y[part] - centre[0]) * math.sin(turn)
    u, v = u / (size * stretch), v / size * stretch
    if rng.random() < 0.6:
        covered = np.hypot(u, v) < 1
    else:
        covered = np.ones(u.shape, bool)
        for angle in np.sort(rng.uniform(0, 2 * math.pi, int(rng.integers(3, 7)))):
            covered &= u * math.cos(angle) + v * math.sin(angle) < rng.uniform(0.5, 1)
        covered &= np.hypot(u, v) < 1.4
    covered &= inside[part]
    values = np.clip(value + rng.uniform(-0.1, 0.1) * u, 0, 1)
    image[part] = np.where(covered, values, image[part])


def _phase(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float64]:
    """A polynomial of degree 3 at most, and a smooth random part, rad."""
    y, x = (np.linspace(-1, 1, n) for n in shape)
    degree = int(rng.integers(0, 4))
    terms = [
        rng.standard_normal() * np.outer(y**a, x**b)
        for a in range(degree + 1)
        for b in range(degree + 1 - a)
    ]
    total = np.sum(terms, axis=0)
    bound = rng.uniform(0, LARGEST_PHASE)
    total *= bound / max(float(np.abs(total).max()), 1e-30)
    return np.asarray(total + ROUGH_PHASE * _smooth((shape[0], shape[1]), 0.03, rng))


def _coils(shape: tuple[int, ...], n_coils: int, rng: np.random.Generator) -> NDArray[np.complex64]:
    """(coil, H, W) sensitivities of coils around the field of view."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    angles = 2 * math.pi * (np.arange(n_coils) + rng.uniform(-0.3, 0.3, n_coils)) / n_coils
    angles += rng.uniform(0, 2 * math.pi)
    maps = []
    for angle in angles:
        distance, width = rng.uniform(1.05, 1.4), rng.uniform(*WIDTHS)
        centre = distance * math.sin(angle), distance * math.cos(angle)
        far = (y - centre[0]) ** 2 + (x - centre[1]) ** 2
        slope = rng.uniform(-1, 1, 2)
        phase = slope[0] * y + slope[1] * x + rng.uniform(-math.pi, math.pi)
        maps.append(np.exp(1j * phase) / (1 + far / width**2))
    found = np.stack(maps)
    return (found / np.linalg.norm(found, axis=0)).astype(np.complex64)


def _smooth(shape: tuple[int, int], frequency: float, rng: np.random.Generator) -> Array:
    """Random field of unit variance without parts above a frequency, in cycles per pixel."""
    low = [max(4, 2 * math.ceil(n * frequency)) for n in shape]
    coarse = rng.standard_normal(low).astype(np.float32)
    factors = [n / m for n, m in zip(shape, low, strict=True)]
    field = ndimage.zoom(coarse, factors, order=1 if frequency > 0.1 else 3, mode="nearest")
    return np.asarray((field - field.mean()) / max(float(field.std()), 1e-6), np.float32)


def _resized(image: Tensor, shape: tuple[int, int]) -> Tensor:
    """The same field of view on another grid, its modulus kept."""
    kspace = to_kspace(image)
    result = kspace.new_zeros(shape)
    cut, place = [], []
    for n, m in zip(image.shape, shape, strict=True):
        k = min(n, m)
        cut.append(slice(n // 2 - k // 2, n // 2 - k // 2 + k))
        place.append(slice(m // 2 - k // 2, m // 2 - k // 2 + k))
    result[place[0], place[1]] = kspace[cut[0], cut[1]]
    return to_image(result) * math.sqrt(math.prod(shape) / image.numel())
