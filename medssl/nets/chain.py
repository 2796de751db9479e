"""A short chain of convolutions: the smallest net that can learn what noise looks like."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, avg_pool3d, pad

from medssl.nets.slices import on_axes

WIDTH = {2: 48, 3: 24}
"""Channels by the number of axes, some 60 000 parameters either way."""
LARGE = 0.1
"""What values of stabilised images are multiplied with, so that they are about 1."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Size of the chain."""

    depth: int = 5
    """Convolutions."""
    width: int | None = None
    """Channels between them; null takes 48 for slices and 24 for volumes."""
    last: int = 3
    """Side of the last convolution; the others have 3."""
    slope: float = 0.1
    """Of the leaky ReLU for negative values; 0 is the plain ReLU."""
    zero_last: bool = False
    """Start the last convolution at 0, so that the chain starts at 0 (the identity if residual)."""
    detail: bool = False
    """For stabilised images, whose noise is 1 and whose signal is large: the net sees a tenth of
    the image and, beside it, the difference from the mean of the neighbours."""

    def build(self, n_axes: int, n_in: int = 1, n_out: int = 1) -> "Chain":
        """The net, its first weights from the global generator.

        Args:
            n_axes: 2 or 3.
            n_in: Channels in.
            n_out: Channels out.
        """
        return Chain(self, n_axes, n_in, n_out)


class Chain(nn.Module):
    """Convolutions with replicated borders, (B, n_in, *spatial) to (B, n_out, *spatial).

    Any size, one voxel along an axis included; a chain for slices takes a volume slice by slice.
    """

    def __init__(self, config: Config, n_axes: int, n_in: int, n_out: int) -> None:
        super().__init__()
        self.config, self.n_axes = config, n_axes
        self.width = config.width or WIDTH[n_axes]
        make = nn.Conv2d if n_axes == 2 else nn.Conv3d
        seen = 2 * n_in if config.detail else n_in
        widths = [seen, *[self.width] * (config.depth - 1), n_out]
        layers: list[nn.Module] = []
        for k, (a, b) in enumerate(pairwise(widths)):
            side = config.last if k == config.depth - 1 else 3
            layers.append(make(a, b, side, padding=side // 2, padding_mode="replicate"))
            layers.append(nn.LeakyReLU(config.slope))
        self.layers = nn.Sequential(*layers[:-1])
        order = torch.channels_last if n_axes == 2 else torch.channels_last_3d
        for conv in layers[::2]:
            assert isinstance(conv, nn.Conv2d | nn.Conv3d)
            if conv is not layers[-2]:
                nn.init.kaiming_normal_(conv.weight, a=config.slope)
            # a third faster on CPUs
            conv.weight.data = conv.weight.data.contiguous(memory_format=order)
        if config.zero_last:
            last = self.layers[-1]
            assert isinstance(last, nn.Conv2d | nn.Conv3d)
            assert last.bias is not None
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, image: Tensor) -> Tensor:
        """(B, n_in, *spatial) to (B, n_out, *spatial)."""
        return on_axes(self.n_axes, self._apply_layers, image)

    def halo(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """How far an input voxel reaches, voxels per axis."""
        reach = self.config.depth - 1 + self.config.last // 2 + self.config.detail
        return tuple(reach if axis < self.n_axes else 0 for axis in range(len(shape)))

    def bytes_per_voxel(self) -> int:
        """A map of channels in, its padded copy, and one out."""
        return 16 * self.width

    def _apply_layers(self, image: Tensor) -> Tensor:
        if self.config.detail:
            image = torch.cat([LARGE * image, image - _local_mean(image)], 1)
        return self.layers(image)


def _local_mean(image: Tensor) -> Tensor:
    """Mean of the 3^d neighbours, borders replicated."""
    pool = avg_pool2d if image.ndim == 4 else avg_pool3d
    return pool(pad(image, (1, 1) * (image.ndim - 2), mode="replicate"), 3, 1)
