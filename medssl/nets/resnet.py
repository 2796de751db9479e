"""Residual networks for pictures and volumes, with the names that torchvision gave their weights.

Reference: He, Zhang, Ren, Sun. Deep Residual Learning for Image Recognition. CVPR 2016.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn.functional import max_pool2d, max_pool3d, relu
from torch.nn.init import kaiming_normal_

from medssl.nets.norms import BatchNorm


@dataclass(frozen=True, kw_only=True)
class Config:
    """Depth and width; the defaults are those of ResNet-50."""

    net: Literal["resnet"] = "resnet"
    axes: Literal[2, 3] = 2
    """Spatial axes."""
    in_channels: int = 1
    depths: tuple[int, ...] = (3, 4, 6, 3)
    """Blocks of each stage."""
    width: int = 64
    """Channels of the first stage within its blocks; each later stage has twice as many."""
    bottleneck: bool = True
    """Blocks of 1, 3, 1 voxels with four times the channels at their ends; False: two of 3."""
    stem: Literal["imagenet", "small"] = "imagenet"
    """A convolution over 7 voxels with stride 2 and a maximum over 3 with stride 2, or one
    convolution over 3 voxels with stride 1, for small images."""

    def build(self) -> "ResNet":
        """The network, untrained."""
        return ResNet(self)


class ResNet(nn.Module):
    """Images in, features out. The stages are `layer1` to `layerN`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        conv = nn.Conv2d if config.axes == 2 else nn.Conv3d
        big = config.stem == "imagenet"
        size, stride = (7, 2) if big else (3, 1)
        self.conv1 = conv(
            config.in_channels, config.width, size, stride=stride, padding=size // 2, bias=False
        )
        self.bn1 = BatchNorm(config.width)
        width = config.width
        self.widths: tuple[int, ...] = ()
        """Channels of each level of `features`."""
        self.strides: tuple[int, ...] = ()
        """Voxels of the image per voxel of each level."""
        for k, depth in enumerate(config.depths):
            inner = config.width * 2**k
            layer, width = _stage(config, width, inner, depth, 1 if k == 0 else 2)
            self.add_module(f"layer{k + 1}", layer)
            self.widths += (width,)
            self.strides += ((4 if big else 1) * 2**k,)
        for part in self.modules():
            if isinstance(part, (nn.Conv2d, nn.Conv3d)):
                kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")

    @property
    def stages(self) -> tuple[nn.Module, ...]:
        """`layer1` to `layerN`."""
        return tuple(self.get_submodule(f"layer{k + 1}") for k in range(len(self.config.depths)))

    def features(self, image: Tensor) -> list[Tensor]:
        """Features (B, widths[k], *S / strides[k]) of an image (B, C, *S), fine to coarse."""
        x = relu(self.bn1(self.conv1(image)))
        if self.config.stem == "imagenet":
            pool = max_pool2d if self.config.axes == 2 else max_pool3d
            x = pool(x, 3, stride=2, padding=1)
        found = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found

    def forward(self, image: Tensor) -> Tensor:
        """The coarsest features."""
        return self.features(image)[-1]


class Block(nn.Module):
    """Two or three convolutions around which the input is added.

    Args:
        axes: Spatial axes.
        width: Channels in.
        inner: Channels within.
        stride: Of the convolution over 3 voxels that comes first.
        bottleneck: Three convolutions, the last with four times `inner` channels.
    """

    def __init__(self, axes: int, width: int, inner: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        conv = nn.Conv2d if axes == 2 else nn.Conv3d
        out = inner * (4 if bottleneck else 1)
        sizes = (1, 3, 1) if bottleneck else (3, 3)
        channels = (width, *[inner] * (len(sizes) - 1), out)
        for k, size in enumerate(sizes):
            first = k == (1 if bottleneck else 0)
            layer = conv(
                channels[k],
                channels[k + 1],
                size,
                stride=stride if first else 1,
                padding=size // 2,
                bias=False,
            )
            self.add_module(f"conv{k + 1}", layer)
            self.add_module(f"bn{k + 1}", BatchNorm(channels[k + 1]))
        self.n_convs = len(sizes)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or width != out:
            shortcut = conv(width, out, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, BatchNorm(out))

    def forward(self, x: Tensor) -> Tensor:
        """Of half the size where the stride is 2."""
        y = x
        for k in range(1, self.n_convs + 1):
            y = self.get_submodule(f"bn{k}")(self.get_submodule(f"conv{k}")(y))
            if k < self.n_convs:
                y = relu(y)
        return relu(y + (x if self.downsample is None else self.downsample(x)))


def _stage(
    config: Config, width: int, inner: int, depth: int, stride: int
) -> tuple[nn.Sequential, int]:
    """Blocks of one size, and the channels that leave them."""
    out = inner * (4 if config.bottleneck else 1)
    blocks = [
        Block(
            config.axes,
            width if k == 0 else out,
            inner,
            stride if k == 0 else 1,
            config.bottleneck,
        )
        for k in range(depth)
    ]
    return nn.Sequential(*blocks), out
