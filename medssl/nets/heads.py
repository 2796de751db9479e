"""Small networks on top of an encoder, that training needs and nobody keeps."""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from medssl.nets.norms import BatchNorm


def mlp(width: int, hidden: int, out: int, layers: int, *, last_norm: bool = False) -> nn.Sequential:
    """Linear layers, each but the last followed by a batch norm over all ranks and a ReLU.

    Args:
        width: Of what it is given, (B, width).
        hidden: Of the layers within.
        out: Of what comes back, (B, out).
        layers: How many linear layers, 1 or more.
        last_norm: Whether a batch norm ends it too.
    """
    parts: list[nn.Module] = []
    for k in range(layers):
        last = k == layers - 1
        wide = out if last else hidden
        parts.append(nn.Linear(width, wide, bias=last and not last_norm))
        if not last:
            parts += [BatchNorm(wide), nn.ReLU(inplace=True)]
        elif last_norm:
            parts.append(BatchNorm(wide))
        width = wide
    return nn.Sequential(*parts)


class Decoder(nn.Module):
    """Coarse features back to images: twice the size and half the channels, stage by stage.

    Args:
        axes: Spatial axes.
        width: Channels of the features.
        stride: Voxels of the image per voxel of the features, a power of 2.
        out_channels: Of the images.
        least: Channels that no stage goes below.
    """

    def __init__(
        self, axes: int, width: int, stride: int, out_channels: int, least: int = 16
    ) -> None:
        super().__init__()
        conv = nn.Conv2d if axes == 2 else nn.Conv3d
        self.mode = "bilinear" if axes == 2 else "trilinear"
        self.stages = nn.ModuleList()
        for _ in range(stride.bit_length() - 1):
            half = max(least, width // 2)
            layer = conv(width, half, 3, padding=1, bias=False)
            self.stages.append(nn.Sequential(layer, BatchNorm(half), nn.ReLU(inplace=True)))
            width = half
        self.last = conv(width, out_channels, 1)

    def forward(self, features: Tensor, size: torch.Size) -> Tensor:
        """Images (B, out_channels, *size) of features (B, width, *f)."""
        x = features
        for k, stage in enumerate(self.stages):
            last = k == len(self.stages) - 1
            sides = tuple(size) if last else tuple(2 * n for n in x.shape[2:])
            x = stage(interpolate(x, size=sides, mode=self.mode, align_corners=False))
        return self.last(x)
