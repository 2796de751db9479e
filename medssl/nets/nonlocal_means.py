r"""Guided non-local means: each voxel is averaged with those whose surroundings look alike.

.. math:: \hat x_i = \frac{\sum_j w_{ij} z_j}{\sum_j w_{ij}}, \qquad
          w_{ij} = \exp\!\big(-\| p_i(g) - p_j(g) \|^2 / (|p| h^2)\big),

with patches p of a guide g that is cleaner than z, so that few neighbours are enough.

Reference: Buades, Coll, Morel. A Non-Local Algorithm for Image Denoising. CVPR 2005.
"""

import itertools

import torch
from torch import Tensor
from torch.nn.functional import pad


def nonlocal_means(
    image: Tensor, guide: Tensor, *, search: tuple[int, ...], patch: tuple[int, ...], width: float
) -> Tensor:
    """Average an image by the likeness of patches of a guide.

    Args:
        image: (*spatial), what is averaged.
        guide: (*spatial), what is compared, in the same units.
        search: Reach along each axis, voxels; cut where an axis is shorter.
        patch: Reach of a patch along each axis, voxels.
        width: h, root mean squared difference of patches at which a weight is 1/e.

    Returns:
        (*spatial).
    """
    search = tuple(min(r, n - 1) for r, n in zip(search, image.shape, strict=True))
    patch = tuple(min(p, n - 1 - r) for p, r, n in zip(patch, search, image.shape, strict=True))
    wide = [r + p for r, p in zip(search, patch, strict=True)]
    room, looks = _reflected(image, search), _reflected(guide, wide)
    core = looks[tuple(slice(r, r + n + 2 * p) for r, p, n in _each(search, patch, image))]
    total, mass = image.clone(), torch.ones_like(image)
    scale = -1.0 / (width**2 * float(torch.tensor([2 * p + 1 for p in patch]).prod()))
    for offset in itertools.product(*(range(-r, r + 1) for r in search)):
        if not any(offset):
            continue
        start = [r + o for r, o in zip(search, offset, strict=True)]
        near = looks[tuple(slice(a, a + n) for a, n in zip(start, core.shape, strict=True))]
        square = core - near
        square *= square
        for axis, p in enumerate(patch):
            square = _sums(square, axis, 2 * p + 1)
        weight = square.mul_(scale).exp_()
        mass += weight
        weight *= room[tuple(slice(a, a + n) for a, n in zip(start, image.shape, strict=True))]
        total += weight
    return total / mass


def _each(
    search: tuple[int, ...], patch: tuple[int, ...], image: Tensor
) -> list[tuple[int, int, int]]:
    return list(zip(search, patch, image.shape, strict=True))


def _reflected(image: Tensor, reach: tuple[int, ...] | list[int]) -> Tensor:
    """An image with reflected borders."""
    if image.ndim == 2:
        return _reflected(image[None], [0, *reach])[0]
    widths = [w for r in reversed(reach) for w in (r, r)]
    return pad(image[None, None], widths, mode="reflect")[0, 0]


def _sums(x: Tensor, axis: int, count: int) -> Tensor:
    """Sums of so many neighbours along an axis."""
    if count == 1:
        return x
    length = x.shape[axis] - count + 1
    total = x.narrow(axis, 0, length) + x.narrow(axis, 1, length)
    for k in range(2, count):
        total += x.narrow(axis, k, length)
    return total
