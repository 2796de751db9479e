"""The encoders of three nets of MONAI, with its names of their weights.

MONAI is imported when a net is built, which takes seconds. Its norms are replaced by ours, which
compute the same and know of masks and ranks.

Reference: Cardoso et al. MONAI: An open-source framework for deep learning in healthcare.
arXiv 2211.02701, 2022.
"""

import itertools
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from medssl.nets.norms import adopt


@dataclass(frozen=True, kw_only=True)
class UNet:
    """The way down of `monai.networks.nets.UNet`; weights are `model.0.*`, `model.1.submodule.*`.

    The bottom and the level above it have the same sides; the bottom stands for both.
    """

    net: Literal["monai_unet"] = "monai_unet"
    axes: Literal[2, 3] = 3
    """Spatial axes."""
    in_channels: int = 1
    channels: tuple[int, ...] = (16, 32, 64, 128, 256)
    """Of each level, the last being the bottom; all but the bottom halve the sides."""
    num_res_units: int = 2
    """Convolutions of a block around which its input is added; 0 for a single one."""

    def build(self) -> "MonaiEncoder":
        """The network, untrained."""
        from monai.networks.nets.unet import UNet as Monai

        n = len(self.channels) - 1
        whole = Monai(
            self.axes,
            self.in_channels,
            1,
            self.channels,
            (2,) * n,
            num_res_units=self.num_res_units,
        )
        part: Any = whole.model
        for _ in range(n):
            del part[2]
            part = part[1].submodule
        widths = (*self.channels[: n - 1], self.channels[-1])
        return _DownUNet(self, {"model": whole.model}, widths, tuple(2**k for k in range(1, n + 1)))


@dataclass(frozen=True, kw_only=True)
class SegResNet:
    """The way down of `monai.networks.nets.SegResNet`: `convInit.*` and `down_layers.*`."""

    net: Literal["monai_segresnet"] = "monai_segresnet"
    axes: Literal[2, 3] = 3
    """Spatial axes."""
    in_channels: int = 1
    init_filters: int = 32
    """Channels of the first level; each later one has twice as many and half the sides."""
    blocks_down: tuple[int, ...] = (1, 2, 2, 4)
    """Blocks of each level."""

    def build(self) -> "MonaiEncoder":
        """The network, untrained."""
        from monai.networks.nets.segresnet import SegResNet as Monai

        whole = Monai(
            self.axes,
            self.init_filters,
            self.in_channels,
            blocks_down=self.blocks_down,
            blocks_up=(1,) * (len(self.blocks_down) - 1),
        )
        parts: dict[str, nn.Module] = {"convInit": whole.convInit, "down_layers": whole.down_layers}
        levels = tuple(2**k for k in range(len(self.blocks_down)))
        return _DownSegResNet(self, parts, tuple(self.init_filters * k for k in levels), levels)


@dataclass(frozen=True, kw_only=True)
class SwinUNETR:
    """The transformer of `monai.networks.nets.SwinUNETR`: `swinViT.*`. It has no masked form."""

    net: Literal["monai_swinunetr"] = "monai_swinunetr"
    axes: Literal[2, 3] = 3
    """Spatial axes."""
    in_channels: int = 1
    feature_size: int = 24
    """Channels of the first level, a multiple of 12; each later one has twice as many."""
    depths: tuple[int, int, int, int] = (2, 2, 2, 2)
    """Blocks of each level."""
    num_heads: tuple[int, int, int, int] = (3, 6, 12, 24)
    """Of the attention of each level."""

    def build(self) -> "MonaiEncoder":
        """The network, untrained."""
        from monai.networks.nets.swin_unetr import SwinUNETR as Monai

        whole = Monai(
            self.in_channels,
            1,
            depths=self.depths,
            num_heads=self.num_heads,
            feature_size=self.feature_size,
            spatial_dims=self.axes,
        )
        levels = tuple(2**k for k in range(len(self.depths) + 1))
        return _Swin(
            self,
            {"swinViT": whole.swinViT},
            tuple(self.feature_size * k for k in levels),
            tuple(2 * k for k in levels),
        )


class MonaiEncoder(nn.Module):
    """Images in, features out.

    Args:
        config: What it was built from.
        parts: Of a net of MONAI, under their names there.
        widths: Channels of each level of `features`.
        strides: Voxels of the image per voxel of each level.
    """

    def __init__(
        self,
        config: UNet | SegResNet | SwinUNETR,
        parts: dict[str, nn.Module],
        widths: tuple[int, ...],
        strides: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.config, self.widths, self.strides = config, widths, strides
        for name, part in parts.items():
            self.add_module(name, adopt(part))

    def features(self, image: Tensor) -> list[Tensor]:
        """Features (B, widths[k], *S / strides[k]) of an image (B, C, *S), fine to coarse."""
        raise NotImplementedError

    def forward(self, image: Tensor) -> Tensor:
        """The coarsest features."""
        return self.features(image)[-1]


class _DownUNet(MonaiEncoder):
    def features(self, image: Tensor) -> list[Tensor]:
        part: Any = self.model
        found = []
        x = image
        for _ in self.strides:
            x = part[0](x)
            found.append(x)
            part = part[1].submodule
        return [*found[:-1], part(x)]


class _DownSegResNet(MonaiEncoder):
    def features(self, image: Tensor) -> list[Tensor]:
        layers: Any = self.down_layers
        steps: Any = itertools.accumulate(
            layers, lambda x, layer: layer(x), initial=self.get_submodule("convInit")(image)
        )
        return list(steps)[1:]


class _Swin(MonaiEncoder):
    def features(self, image: Tensor) -> list[Tensor]:
        return list(self.get_submodule("swinViT")(image))
