"""What lies beyond the border of an image: its mirror image."""

import torch
from torch import Tensor


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
