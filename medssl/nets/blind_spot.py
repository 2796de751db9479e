"""A dilated net whose output pixel sees its surroundings, and its own input only if asked to."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from medssl.nets.borders import neighbour_mean
from medssl.nets.slices import on_axes

SIDES = (3, 5)
"""Of the first kernels of the two branches; their dilations 2 and 3 keep the centre unseen."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Size of the net."""

    width: int = 24
    """Channels."""
    depth: int = 3
    """Dilated modules in each branch."""

    def build(self) -> "BlindSpot":
        """The net, its first weights from the global generator."""
        return BlindSpot(self)


class BlindSpot(nn.Module):
    """(B, 1, *spatial) to the same; a volume slice by slice.

    A branch is a kernel whose centre can be masked, and residual modules of 3x3 convolutions with a
    dilation of half its side rounded up, which never lead back to the centre; their sum corrects
    the mean of the neighbours. Borders are zero: mirrored ones would show the pixel itself.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.first = nn.Conv2d(1, width, 1)
        self.branches = nn.ModuleList(_Branch(width, config.depth, side) for side in SIDES)
        self.head = nn.Sequential(nn.Conv2d(2 * width, width, 1), nn.ReLU(), nn.Conv2d(width, 1, 1))

    def forward(self, image: Tensor, blind: bool) -> Tensor:
        """The net with its blind spot, or without."""

        def look(slices: Tensor) -> Tensor:
            x = torch.relu(self.first(slices))
            seen = torch.cat([branch(x, blind) for branch in self.branches], 1)
            return neighbour_mean(slices) + self.head(seen)

        return on_axes(2, look, image)

    def halo(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """How far an input pixel reaches, voxels per axis."""
        reach = max(side // 2 + _dilation(side) * self.config.depth for side in SIDES)
        return (reach, reach, *(0 for _ in shape[2:]))

    def bytes_per_voxel(self) -> int:
        """Maps of channels of both branches."""
        return 24 * self.config.width


class _Branch(nn.Module):
    """A kernel with a centre that can be masked, and dilated modules."""

    def __init__(self, width: int, depth: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.first = nn.Conv2d(width, width, side, padding=side // 2)
        self.steps = nn.ModuleList(_Module(width, _dilation(side)) for _ in range(depth))

    def forward(self, x: Tensor, blind: bool) -> Tensor:
        weight = self.first.weight
        if blind:
            mask = torch.ones(self.side, self.side, dtype=weight.dtype, device=weight.device)
            mask[self.side // 2, self.side // 2] = 0
            weight = weight * mask
        x = torch.relu(conv2d(pad(x, (self.side // 2,) * 4), weight, self.first.bias))
        for step in self.steps:
            x = step(x)
        return x


class _Module(nn.Module):
    """x + conv 1x1 (conv 3x3 dilated (x))."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def _dilation(side: int) -> int:
    """Steps of so many pixels from outside the centre never reach it within the kernel's side."""
    return side // 2 + 1
