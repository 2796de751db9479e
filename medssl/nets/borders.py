"""What lies beyond the border of an image, and around its voxels."""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, avg_pool3d


def reflected(n: int, start: int, stop: int, device: torch.device) -> Tensor:
    """Voxels of an axis of n seen at positions start .. stop - 1, the edge not repeated."""
    position = torch.arange(start, stop, device=device)
    if n == 1:
        return torch.zeros_like(position)
    position = position % (2 * n - 2)
    return torch.minimum(position, 2 * n - 2 - position)


def extended(image: Tensor, multiple: int) -> Tensor:
    """Images whose last two axes are reflected to a multiple."""
    for axis in (-2, -1):
        n = image.shape[axis]
        if n % multiple:
            stop = -(-n // multiple) * multiple
            image = image.index_select(axis, reflected(n, 0, stop, image.device))
    return image


def neighbour_mean(image: Tensor) -> Tensor:
    """Mean of the voxels that touch each voxel, not of itself: (B, C, *spatial) to the same."""
    pool = avg_pool2d if image.ndim == 4 else avg_pool3d
    n = 3 ** (image.ndim - 2)
    total = n * pool(image, 3, 1, 1)
    count = n * pool(torch.ones_like(image[:1, :1]), 3, 1, 1).round(decimals=6)
    return torch.where(count > 1.5, (total - image) / (count - 1).clamp_min(1), image)
