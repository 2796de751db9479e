"""The residual encoder of nnU-Net, with the names of its weights.

A weight that is `encoder.stem.convs.0.conv.weight` in nnU-Net is `stem.convs.0.conv.weight` here,
and so on. nnU-Net has each under a second name, which `nnunet_state` adds, and all of them once
more below `decoder.encoder.`.

Reference: Isensee et al. nnU-Net Revisited: A Call for Rigorous Validation in 3D Medical Image
Segmentation. MICCAI 2024.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn.init import kaiming_normal_

from medssl.nets.norms import InstanceNorm

SLOPE = 0.01
"""Of the leaky ReLU for negative values."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Depth and width; the defaults are those of ResEnc-L."""

    net: Literal["resenc"] = "resenc"
    axes: Literal[2, 3] = 3
    """Spatial axes."""
    in_channels: int = 1
    depths: tuple[int, ...] = (1, 3, 4, 6, 6, 6)
    """Blocks of each stage. The first stage has the sides of the image, each later one half."""
    widths: tuple[int, ...] = (32, 64, 128, 256, 320, 320)
    """Channels of each stage."""

    def build(self) -> "ResEnc":
        """The network, untrained.

        Raises:
            ValueError: Not as many widths as depths.
        """
        return ResEnc(self)


class ResEnc(nn.Module):
    """Images in, features out: a `stem` of one convolution, then `stages`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.widths = config.widths
        """Channels of each level of `features`."""
        self.strides = tuple(2**k for k in range(len(config.depths)))
        """Voxels of the image per voxel of each level."""
        width, stages = config.widths[0], []
        self.stem = _Convs(_Layer(config.axes, config.in_channels, width, act=True))
        for k, (depth, out) in enumerate(zip(config.depths, config.widths, strict=True)):
            blocks = []
            for j in range(depth):
                blocks.append(_Block(config.axes, width, out, 2 if k > 0 and j == 0 else 1))
                width = out
            stages.append(_Stage(*blocks))
        self.stages = nn.Sequential(*stages)
        for part in self.modules():
            if isinstance(part, nn.Conv2d | nn.Conv3d):
                kaiming_normal_(part.weight, a=SLOPE)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)

    def features(self, image: Tensor) -> list[Tensor]:
        """Features (B, widths[k], *S / strides[k]) of an image (B, C, *S), fine to coarse."""
        x = self.stem(image)
        found = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found

    def forward(self, image: Tensor) -> Tensor:
        """The coarsest features."""
        return self.features(image)[-1]


class _Layer(nn.Module):
    """A convolution, its norm, and a leaky ReLU."""

    def __init__(
        self, axes: int, width: int, out: int, *, size: int = 3, stride: int = 1, act: bool
    ) -> None:
        super().__init__()
        conv = nn.Conv2d if axes == 2 else nn.Conv3d
        self.conv = conv(width, out, size, stride=stride, padding=size // 2, bias=size > 1)
        self.norm = InstanceNorm(out)
        self.nonlin = nn.LeakyReLU(SLOPE, inplace=True) if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.nonlin(self.norm(self.conv(x)))


class _Block(nn.Module):
    """Two layers around which the input is added, as the mean of voxels where sides are halved."""

    def __init__(self, axes: int, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _Layer(axes, width, out, stride=stride, act=True)
        self.conv2 = _Layer(axes, out, out, act=False)
        self.nonlin2 = nn.LeakyReLU(SLOPE, inplace=True)
        pool = nn.AvgPool2d if axes == 2 else nn.AvgPool3d
        skip: list[nn.Module] = [pool(stride)] if stride > 1 else []
        if width != out:
            skip.append(_Layer(axes, width, out, size=1, act=False))
        self.skip = nn.Sequential(*skip)

    def forward(self, x: Tensor) -> Tensor:
        return self.nonlin2(self.conv2(self.conv1(x)) + self.skip(x))


class _Convs(nn.Module):
    """Layers under the name that nnU-Net has for them."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.convs = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.convs(x)


class _Stage(nn.Module):
    """Blocks under the name that nnU-Net has for them."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


def nnunet_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of this net with those names that nnU-Net has beside: `all_modules.0` and `.1`."""
    twins = {}
    for key, value in state.items():
        match = re.fullmatch(r"(.+)\.(conv|norm)\.(weight|bias)", key)
        if match:
            place = {"conv": 0, "norm": 1}[match[2]]
            twins[f"{match[1]}.all_modules.{place}.{match[3]}"] = value
    return {**state, **twins}
