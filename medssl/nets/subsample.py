"""Pairs of noisy images from one: diagonals of 2x2 blocks, and a swap that hides the pixel."""

import torch
from torch import Tensor

PAIRS = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))
"""Pixels of a 2x2 block [[0, 1], [2, 3]], two by two."""


def diagonal_pair(image: Tensor, plane: tuple[int, int] = (-2, -1)) -> tuple[Tensor, Tensor]:
    """Two half-size images from the diagonals of blocks [[a, b], [c, d]].

    Args:
        image: Any shape; an odd last row or column is left out.
        plane: The two axes, counted from the end, that the blocks lie in.

    Returns:
        (b + c) / 2 and (a + d) / 2, half as long along both axes.
    """
    a, b, c, d = _quarters(image.movedim(plane, (-2, -1)))
    first, second = (b + c) / 2, (a + d) / 2
    return first.movedim((-2, -1), plane), second.movedim((-2, -1), plane)


def swap_most_similar(image: Tensor) -> Tensor:
    """Swap the two pixels of each 2x2 block that differ least, the first such pair in `PAIRS`.

    Edges stay where they are, while a pixel no longer predicts itself.

    Args:
        image: (..., H, W); an odd last row or column stays.
    """
    height, width = image.shape[-2] // 2 * 2, image.shape[-1] // 2 * 2
    pixels = torch.stack(_quarters(image), dim=-1)
    first, second = (torch.tensor(side, device=image.device) for side in zip(*PAIRS, strict=True))
    distance = (pixels[..., first] - pixels[..., second]).square()
    least = distance.argmin(dim=-1)
    at = torch.stack([first[least], second[least]], dim=-1)
    swapped = pixels.scatter(-1, at, pixels.gather(-1, at).flip(-1))
    result = image.clone()
    rows = swapped.reshape(*swapped.shape[:-1], 2, 2).transpose(-3, -2)
    result[..., :height, :width] = rows.reshape(*image.shape[:-2], height, width)
    return result


def apart(image: Tensor, stride: int) -> Tensor:
    """(B, C, s h, s w) to (B s s, C, h, w): every s-th pixel along both axes, from each start."""
    b, c, height, width = image.shape
    cells = image.reshape(b, c, height // stride, stride, width // stride, stride)
    return cells.permute(0, 3, 5, 1, 2, 4).reshape(-1, c, height // stride, width // stride)


def together(parts: Tensor, stride: int) -> Tensor:
    """The inverse of `apart`."""
    _, c, h, w = parts.shape
    cells = parts.reshape(-1, stride, stride, c, h, w)
    return cells.permute(0, 3, 4, 1, 5, 2).reshape(-1, c, h * stride, w * stride)


def picked(image: Tensor, chance: Tensor) -> Tensor:
    """One pixel of each 2x2 cell.

    Args:
        image: (..., H, W); an odd last row or column is left out.
        chance: (4, H, W) numbers; the largest of the four at a cell's first pixel picks.

    Returns:
        (..., H // 2, W // 2).
    """
    height, width = image.shape[-2] // 2 * 2, image.shape[-1] // 2 * 2
    which = chance[:, 0:height:2, 0:width:2].argmax(0)
    pixels = torch.stack(_quarters(image), dim=-1)
    return pixels.gather(-1, which.expand(pixels.shape[:-1])[..., None])[..., 0]


def _quarters(image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four pixels of each 2x2 block, each (..., H // 2, W // 2)."""
    height, width = image.shape[-2] // 2 * 2, image.shape[-1] // 2 * 2
    rows = image[..., 0:height:2, :], image[..., 1:height:2, :]
    a, b = rows[0][..., 0:width:2], rows[0][..., 1:width:2]
    c, d = rows[1][..., 0:width:2], rows[1][..., 1:width:2]
    return a, b, c, d
