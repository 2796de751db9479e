r"""Bilateral filter whose widths are maps, with a backward pass of its own.

For voxel i, window :math:`|d_k| \le r`, widths :math:`s_k(i)` per axis k and :math:`s_r(i)` in
intensity,

.. math:: w_{ij} = \exp\Big(-\sum_k \frac{d_k^2}{2 s_k(i)^2}
                   - \frac{(x_j - x_i)^2}{2 s_r(i)^2}\Big), \quad
          y_i = \frac{\sum_j w_{ij} x_j}{Z_i}, \quad Z_i = \sum_j w_{ij} + 10^{-8},

with reflected borders. The backward pass visits the window again instead of keeping it: with g the
gradient of y and :math:`t_{ij} = w_{ij} (g_i / Z_i) (x_j - y_i)`,

.. math:: \partial s_k(i) = \sum_j t_{ij} d_k^2 / s_k(i)^3, \quad
          \partial s_r(i) = \sum_j t_{ij} (x_j - x_i)^2 / s_r(i)^3, \quad
          \partial x_j \mathrel{+}= w_{ij} g_i / Z_i + q_{ij}, \quad
          \partial x_i \mathrel{-}= q_{ij} = -t_{ij} (x_j - x_i) / s_r(i)^2,

so that memory grows with the image and not with the window.
Reference: Tomasi, Manduchi. Bilateral Filtering for Gray and Color Images. ICCV 1998.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from medssl.nets.borders import reflected

LEAST_WEIGHT = 1e-8
"""Added to the sum of weights."""


def bilateral(image: Tensor, sigma_maps: Tensor, radius: int | Sequence[int]) -> Tensor:
    """Filter images; differentiable in both arguments.

    Args:
        image: (B, 1, *spatial) with two or three spatial axes of any size.
        sigma_maps: (B, n_axes + 1, *spatial) widths above 0: one per spatial axis in voxels, in the
            order of the axes, then one in units of `image`. Axes of size 1 are shared.
        radius: Reach of the window in voxels, one for all axes or one per axis.

    Returns:
        (B, 1, *spatial).

    Raises:
        ValueError: The number of maps is not that of the spatial axes plus one.
    """
    axes = image.ndim - 2
    if sigma_maps.ndim != image.ndim or sigma_maps.shape[1] != axes + 1:
        raise ValueError(
            f"sigma_maps {tuple(sigma_maps.shape)} do not fit an image {tuple(image.shape)}"
        )
    reach = (radius,) * axes if isinstance(radius, int) else tuple(radius)
    # An axis shorter than the window has no more neighbours to offer than it has voxels.
    reach = tuple(min(r, 4 * n) for r, n in zip(reach, image.shape[2:], strict=True))
    result: Tensor = _Bilateral.apply(image, sigma_maps, reach)  # type: ignore[no-untyped-call]
    return result


class _Bilateral(Function):
    """The window, visited once forward and once backward."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, sigma_maps: Tensor, reach: tuple[int, ...]) -> Tensor:
        padded = _padded(image, reach)
        space, value = _exponents(sigma_maps)
        total = torch.full_like(image, LEAST_WEIGHT)
        summed = torch.zeros_like(image)
        for offset in _offsets(reach):
            x = _shifted(padded, offset, reach, image)
            w = _weight(x - image, offset, space, value)
            total += w
            summed.addcmul_(w, x)
        result = summed.div_(total)
        ctx.save_for_backward(image, sigma_maps, result, total)
        ctx.reach = reach
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        image, sigma_maps, result, total = ctx.saved_tensors
        reach: tuple[int, ...] = ctx.reach
        padded = _padded(image, reach)
        space, value = _exponents(sigma_maps)
        share = gradients[0] / total
        into = torch.zeros_like(padded)
        centre = torch.zeros_like(image)
        by_space = [torch.zeros_like(image) for _ in reach]
        by_value = torch.zeros_like(image)
        for offset in _offsets(reach):
            x = _shifted(padded, offset, reach, image)
            step = x - image
            wg = _weight(step, offset, space, value).mul_(share)
            t = (x - result).mul_(wg)
            for d, gradient in zip(offset, by_space, strict=True):
                if d:
                    gradient.add_(t, alpha=float(d * d))
            t *= step
            by_value.addcmul_(t, step)
            t *= value  # value = -1 / 2 s_r^2, hence q = 2 t value
            centre.sub_(t, alpha=2)
            _shifted(into, offset, reach, image).add_(wg).add_(t, alpha=2)
        for axis, r in enumerate(reach, 2):
            into = _folded(into, axis, r, image.shape[axis])
        by_map = torch.cat([*by_space, by_value], dim=1)
        by_map = _sum_to(by_map, sigma_maps.shape) / sigma_maps**3
        return into.add_(centre), by_map, None


def _exponents(sigma_maps: Tensor) -> tuple[list[Tensor], Tensor]:
    """-1 / 2 s^2 for each spatial axis, and for intensity."""
    *space, value = (-0.5 / sigma_maps.square()).split(1, dim=1)
    return space, value


def _weight(step: Tensor, offset: Sequence[int], space: list[Tensor], value: Tensor) -> Tensor:
    """The w of one place in the window, given x_j - x_i."""
    exponent = step.square().mul_(value)
    for d, s in zip(offset, space, strict=True):
        if d:
            exponent += s * float(d * d)
    return exponent.exp_()


def _offsets(reach: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """All places in the window."""
    return itertools.product(*(range(-r, r + 1) for r in reach))


def _shifted(padded: Tensor, offset: Sequence[int], reach: Sequence[int], image: Tensor) -> Tensor:
    """A view of what lies at an offset from each voxel."""
    for axis, (d, r) in enumerate(zip(offset, reach, strict=True), 2):
        padded = padded.narrow(axis, r + d, image.shape[axis])
    return padded


def _padded(image: Tensor, reach: Sequence[int]) -> Tensor:
    """The image with reflected borders."""
    for axis, r in enumerate(reach, 2):
        n = image.shape[axis]
        image = image.index_select(axis, reflected(n, -r, n + r, image.device))
    return image


def _folded(gradient: Tensor, axis: int, reach: int, n: int) -> Tensor:
    """The transpose of padding along one axis."""
    result = gradient.narrow(axis, reach, n).clone()
    source = reflected(n, -reach, n + reach, gradient.device)
    for start in (0, n + reach):
        border = gradient.narrow(axis, start, reach)
        result.index_add_(axis, source.narrow(0, start, reach), border)
    return result


def _sum_to(gradient: Tensor, shape: Sequence[int]) -> Tensor:
    """Sums over the axes that were shared."""
    shared = [k for k, n in enumerate(shape) if n == 1 and gradient.shape[k] != 1]
    return gradient.sum(shared, keepdim=True) if shared else gradient
