"""A short chain of convolutions: the smallest net that can learn what noise looks like."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Config:
    """Size of the chain."""

    depth: int = 5
    """Convolutions of side 3."""
    width: int = 24
    """Channels between them."""
    slope: float = 0.1
    """Of the leaky ReLU for negative values; 0 is the plain ReLU."""
    zero_last: bool = False
    """Start the last convolution at 0, so that the chain starts at 0 (the identity if residual)."""

    def build(self, n_axes: int, n_in: int = 1, n_out: int = 1) -> "Chain":
        """The net, its first weights from the global generator.

        Args:
            n_axes: 2 or 3.
            n_in: Channels in.
            n_out: Channels out.
        """
        return Chain(self, n_axes, n_in, n_out)


class Chain(nn.Module):
    """Convolutions of side 3 with replicated borders, (B, n_in, *spatial) to (B, n_out, *spatial).

    Any size, one voxel along an axis included.
    """

    def __init__(self, config: Config, n_axes: int, n_in: int, n_out: int) -> None:
        super().__init__()
        make = nn.Conv2d if n_axes == 2 else nn.Conv3d
        widths = [n_in, *[config.width] * (config.depth - 1), n_out]
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers.append(make(a, b, 3, padding=1, padding_mode="replicate"))
            layers.append(nn.LeakyReLU(config.slope))
        self.layers = nn.Sequential(*layers[:-1])
        if config.zero_last:
            last = self.layers[-1]
            assert isinstance(last, nn.Conv2d | nn.Conv3d)
            with torch.no_grad():
                last.weight.zero_()
                assert last.bias is not None
                last.bias.zero_()

    def forward(self, image: Tensor) -> Tensor:
        """(B, n_in, *spatial) to (B, n_out, *spatial)."""
        return self.layers(image)
