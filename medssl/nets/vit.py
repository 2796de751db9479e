r"""A plain vision transformer for pictures and volumes.

Positions are sines and cosines of the place of a patch, half or a third of the channels for each
axis, computed for the grid that an image has: nothing has to be learnt or interpolated for another
size. `scaled_to` keeps the places of the grid that a net was trained on.

Reference: Dosovitskiy et al. An Image is Worth 16x16 Words: Transformers for Image Recognition at
Scale. ICLR 2021.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention
from torch.nn.init import trunc_normal_, xavier_uniform_


@dataclass(frozen=True, kw_only=True)
class Config:
    """Size; the defaults are those of ViT-B/16."""

    net: Literal["vit"] = "vit"
    axes: Literal[2, 3] = 2
    """Spatial axes."""
    in_channels: int = 1
    patch: int = 16
    """Sides of a patch in voxels."""
    width: int = 768
    """Channels of a token."""
    depth: int = 12
    """Blocks."""
    heads: int = 12
    """Of the attention; they divide the width."""
    scaled_to: tuple[int, ...] | None = None
    """Patches along each axis over which the positions are spread whatever the grid; null counts
    patches."""

    def build(self) -> "ViT":
        """The network, untrained.

        Raises:
            ValueError: The heads do not divide the width.
        """
        return ViT(self)


class ViT(nn.Module):
    """Images in, one map of features out."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.width % config.heads:
            raise ValueError(f"{config.heads} heads do not divide {config.width} channels")
        self.config = config
        self.widths = (config.width,)
        """Channels of each level of `features`: there is one."""
        self.strides = (config.patch,)
        """Voxels of the image per voxel of each level."""
        conv = nn.Conv2d if config.axes == 2 else nn.Conv3d
        self.patch_embed = conv(config.in_channels, config.width, config.patch, config.patch)
        xavier_uniform_(self.patch_embed.weight.view(config.width, -1))
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=1e-6)

    def embedded(self, image: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """Tokens (B, patches, D) with their positions, and the patches along each axis.

        Sides that are no multiples of a patch are filled with 0 at their end.
        """
        ends = [n for side in reversed(image.shape[2:]) for n in (0, -side % self.config.patch)]
        x = self.patch_embed(pad(image, ends) if any(ends) else image)
        grid = tuple(x.shape[2:])
        where = positions(grid, self.config.width, self.config.scaled_to).to(x)
        return x.flatten(2).movedim(1, 2) + where, grid

    def encoded(self, tokens: Tensor) -> Tensor:
        """Tokens (B, n, D) of some patches or all, after all blocks."""
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    def features(self, image: Tensor) -> list[Tensor]:
        """One map (B, D, *S / patch) of an image (B, C, *S)."""
        tokens, grid = self.embedded(image)
        return [self.encoded(tokens).movedim(1, 2).unflatten(2, grid)]

    def forward(self, image: Tensor) -> Tensor:
        """The map."""
        return self.features(image)[-1]


class Block(nn.Module):
    """Attention, then two linear layers, each added to what came in.

    Args:
        width: Channels of a token.
        heads: Of the attention.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)
        self.act = nn.GELU()
        for line in (self.qkv, self.proj, self.fc1, self.fc2):
            xavier_uniform_(line.weight)
            nn.init.zeros_(line.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, n, D) to the same."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).unbind(2)
        seen = scaled_dot_product_attention(q.movedim(2, 1), k.movedim(2, 1), v.movedim(2, 1))
        x = x + self.proj(seen.movedim(1, 2).flatten(2))
        return x + self.fc2(self.act(self.fc1(self.norm2(x))))


def positions(
    grid: tuple[int, ...], width: int, scaled_to: tuple[int, ...] | None = None
) -> Tensor:
    """Sines and cosines (patches, width) of the place of each patch, at octaves down to 1 / 10000.

    Args:
        grid: Patches along each axis.
        width: Channels; those that do not come out even are 0.
        scaled_to: Patches along each axis that the places are spread over; None for `grid` itself.
    """
    each = width // (2 * len(grid))
    rate = 10000.0 ** -(torch.arange(each, dtype=torch.float64) / each)
    places = [
        (torch.arange(n, dtype=torch.float64) + 0.5) * (1.0 if to is None else to / n)
        for n, to in zip(grid, scaled_to or (None,) * len(grid), strict=True)
    ]
    angles = [at.flatten()[:, None] * rate for at in torch.meshgrid(*places, indexing="ij")]
    waves = torch.cat([part for one in angles for part in (one.sin(), one.cos())], 1)
    return pad(waves, (0, width - waves.shape[1])).float()


def mask_token(width: int) -> nn.Parameter:
    """(1, 1, width) what stands for a token that was not seen."""
    return nn.Parameter(trunc_normal_(torch.empty(1, 1, width), std=0.02))
