"""What is hidden of an image, and how well it was guessed."""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad


def enlarged(visible: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Cells (B, 1, *f) repeated to voxels (B, 1, *shape); the sides of `shape` are multiples."""
    for axis, n in enumerate(shape, 2):
        visible = visible.repeat_interleave(n // visible.shape[axis], axis)
    return visible


def padded(
    image: Tensor, valid: Tensor | None, visible: Tensor, block: tuple[int, ...]
) -> tuple[Tensor, Tensor | None]:
    """An image whose sides are those of its cells: 0 is added at their ends, and not valid.

    Args:
        image: (B, C, *S).
        valid: (B, 1, *S) bool, or None where all is.
        visible: (B, 1, *f).
        block: Sides of a cell in voxels; f * block is at least S.

    Raises:
        ValueError: The cells do not cover the image.
    """
    missing = [f * b - n for f, b, n in zip(visible.shape[2:], block, image.shape[2:], strict=True)]
    if min(missing) < 0:
        raise ValueError(
            f"{list(visible.shape[2:])} cells of {list(block)} voxels are fewer than "
            f"the image of {list(image.shape[2:])} has"
        )
    if not any(missing):
        return image, valid
    ends = [n for one in reversed(missing) for n in (0, one)]
    known = torch.ones_like(image[:, :1], dtype=torch.bool) if valid is None else valid
    return pad(image, ends), pad(known, ends)


def by_cell(image: Tensor, grid: tuple[int, ...]) -> Tensor:
    """A view (B, *f, C, *p) of (B, C, *S), where S = f * p."""
    axes = len(grid)
    for k in range(axes):
        image = image.unflatten(2 + 2 * k, (grid[k], -1))
    return image.permute(0, *range(2, 2 + 2 * axes, 2), 1, *range(3, 3 + 2 * axes, 2))


def as_cells(image: Tensor, grid: tuple[int, ...]) -> Tensor:
    """(B, C, *S) to (B, cells, C * voxels), the cells in the order of `visible.flatten(1)`."""
    return by_cell(image, grid).flatten(1 + len(grid)).flatten(1, len(grid))


def as_image(cells: Tensor, grid: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    """`as_cells` undone: (B, cells, C * voxels) to (B, *shape), where shape is (C, *S)."""
    sides = [n // f for n, f in zip(shape[1:], grid, strict=True)]
    parts = cells.unflatten(2, (shape[0], *sides)).unflatten(1, grid)
    axes = len(grid)
    order = [0, 1 + axes, *(k for j in range(axes) for k in (1 + j, 2 + axes + j))]
    return parts.permute(order).reshape(len(cells), *shape)


def hidden_error(
    guess: Tensor,
    image: Tensor,
    visible: Tensor,
    valid: Tensor | None = None,
    *,
    normalised: bool,
    min_sd: float = 0.0,
) -> Tensor:
    r"""The mean over images of the mean squared error of their hidden cells.

    With `normalised` the target of a cell x is :math:`(x - \mu) / \sqrt{\sigma^2 + 10^{-6}}`, its
    own mean and unbiased variance, and the cell weighs :math:`\sigma^2 / (\sigma^2 + s^2)`, s being
    `min_sd`: what is all but constant would otherwise ask for its noise, enlarged.

    Args:
        guess: (B, C, *S).
        image: (B, C, *S).
        visible: (B, 1, *f) bool; the sides S are multiples of f.
        valid: (B, 1, *S) bool; other voxels neither count nor enter a target. None means all.
        normalised: Whether each cell is standardised first.
        min_sd: In units of the image.
    """
    grid = tuple(visible.shape[2:])
    exact = torch.promote_types(image.dtype, torch.float32)
    x, y = as_cells(image, grid).to(exact), as_cells(guess, grid).to(exact)
    weight = (~visible).flatten(1).to(exact)
    known: Tensor | float = 1.0
    n: Tensor | float = float(math.prod(x.shape[2:]))
    if valid is not None:
        known = as_cells(valid.expand_as(image), grid).to(exact)
        n = known.sum(-1, keepdim=True).clamp_min(1)
        weight = weight * known.any(-1)
    if normalised:
        mean = (x * known).sum(-1, keepdim=True) / n
        away = (x - mean) * known
        freedom = n - 1 if isinstance(n, float) else (n - 1).clamp_min(1)
        variance = away.square().sum(-1, keepdim=True) / freedom
        x = away * torch.rsqrt(variance + 1e-6)
        if min_sd > 0:
            weight = weight * (variance / (variance + min_sd**2))[..., 0]
    error = ((y - x).square() * known).sum(-1, keepdim=True) / n
    total = (error[..., 0] * weight).sum(1) / weight.sum(1).clamp_min(torch.finfo(x.dtype).tiny)
    return total.mean()
