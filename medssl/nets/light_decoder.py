"""A small decoder from the features of an encoder to an image, for pretraining: it is not kept."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import relu6
from torch.nn.init import trunc_normal_

from medssl.nets.norms import BatchNorm


class LightDecoder(nn.Module):
    """Coarse to fine: each block doubles the sides, and the features of its level are added.

    Args:
        axes: Spatial axes.
        strides: Voxels of the image per voxel of each level that is added, fine to coarse; powers
            of 2.
        width: Channels of the coarsest level; each finer one has half as many, 8 at least.
        out_channels: Of the image.
    """

    def __init__(self, axes: int, strides: Sequence[int], width: int, out_channels: int) -> None:
        super().__init__()
        n_blocks = halvings(strides[-1])
        widths = [max(width >> k, 8) for k in range(n_blocks + 1)]
        self.places = tuple(n_blocks - halvings(stride) for stride in reversed(strides))
        """How many blocks come before each level is added, coarse to fine."""
        self.widths = tuple(widths[k] for k in reversed(self.places))
        """Channels that each level must have, fine to coarse."""
        self.blocks = nn.ModuleList(_Block(axes, widths[k], widths[k + 1]) for k in range(n_blocks))
        conv = nn.Conv2d if axes == 2 else nn.Conv3d
        self.last = conv(widths[-1], out_channels, 1)
        for part in self.modules():
            if isinstance(part, _WEIGHTED):
                trunc_normal_(part.weight, std=0.02)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """The image (B, out_channels, *S) from levels (B, widths[k], *S / strides[k])."""
        waiting = dict(zip(self.places, reversed(levels), strict=True))
        x = waiting.pop(0)
        for k, block in enumerate(self.blocks, 1):
            x = block(x)
            if k in waiting:
                x = x + waiting[k]
        return self.last(x)


_WEIGHTED = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class _Block(nn.Module):
    """A convolution that doubles the sides, and two more."""

    def __init__(self, axes: int, width: int, out: int) -> None:
        super().__init__()
        conv = nn.Conv2d if axes == 2 else nn.Conv3d
        up = nn.ConvTranspose2d if axes == 2 else nn.ConvTranspose3d
        self.up = up(width, width, 4, stride=2, padding=1)
        self.conv1 = conv(width, width, 3, padding=1, bias=False)
        self.norm1 = BatchNorm(width)
        self.conv2 = conv(width, out, 3, padding=1, bias=False)
        self.norm2 = BatchNorm(out)

    def forward(self, x: Tensor) -> Tensor:
        x = relu6(self.norm1(self.conv1(self.up(x))))
        return self.norm2(self.conv2(x))


def halvings(stride: int) -> int:
    """The n of stride = 2 ** n.

    Raises:
        ValueError: It is no power of 2.
    """
    n = stride.bit_length() - 1
    if stride != 1 << n:
        raise ValueError(f"a stride of {stride} is no power of 2")
    return n
