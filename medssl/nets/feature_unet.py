"""A decoder that turns the features of any encoder into a map of classes.

Reference: Ronneberger, Fischer, Brox. U-Net: Convolutional Networks for Biomedical Image
Segmentation. MICCAI 2015.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from medssl.nets.norms import InstanceNorm

WIDEST = 64
"""Channels of the decoder, at most."""


class FeatureUNet(nn.Module):
    """An encoder and the way back up.

    Args:
        encoder: With `features`, `widths` and `strides`.
        axes: Spatial axes.
        in_channels: Of images; they join the features at the sides of the image.
        n_classes: Of the map.
    """

    def __init__(self, encoder: nn.Module, axes: int, in_channels: int, n_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.mode = "bilinear" if axes == 2 else "trilinear"
        conv = nn.Conv2d if axes == 2 else nn.Conv3d
        widths: tuple[int, ...] = encoder.widths  # type: ignore[assignment]
        skips = (in_channels, *widths[:-1])
        x = widths[-1]
        blocks = []
        for skip in reversed(skips):
            out = min(max(skip, 16), WIDEST)
            blocks.append(nn.Sequential(*_layer(conv, x + skip, out), *_layer(conv, out, out)))
            x = out
        self.blocks = nn.ModuleList(blocks)
        """From the coarsest level to the image."""
        self.head = conv(x, n_classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, n_classes, *S) of images (B, C, *S)."""
        *fine, x = self.encoder.features(image)  # type: ignore[operator]
        for block, skip in zip(self.blocks, [*reversed(fine), image], strict=True):
            if x.shape[2:] != skip.shape[2:]:
                x = interpolate(x, skip.shape[2:], mode=self.mode, align_corners=False)
            x = block(torch.cat([x, skip], 1))
        return self.head(x)


def _layer(conv: type[nn.Conv2d] | type[nn.Conv3d], width: int, out: int) -> list[nn.Module]:
    return [conv(width, out, 3, padding=1, bias=False), InstanceNorm(out), nn.LeakyReLU(0.01)]
