"""The U-Net of Noise2Noise with shared middle blocks, for pictures and slices."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medssl.nets.borders import extended
from medssl.nets.slices import on_axes


@dataclass(frozen=True, kw_only=True)
class Config:
    """Size of the U-Net; the defaults have 698 017 parameters for one channel."""

    levels: int = 5
    """Halvings of the image."""
    down: int = 48
    """Channels on the way down."""
    up: int = 96
    """Channels on the way up."""
    head: tuple[int, int] = (64, 32)
    """Channels of the last two hidden convolutions."""
    slope: float = 0.1
    """Of the leaky ReLU for negative values."""
    spread: float = 0.02
    """Standard deviation of the first weights, whose mean is 0; biases start at 0."""

    def build(self, n_axes: int = 2, n_in: int = 1, n_out: int = 1) -> "UNet":
        """The net, its first weights from the global generator.

        Args:
            n_axes: 2; there is no other.
            n_in: Channels in.
            n_out: Channels out.
        """
        if n_axes != 2:
            raise ValueError(f"the U-Net sees 2 axes, not {n_axes}")
        return UNet(self, n_in, n_out)


class UNet(nn.Module):
    """(B, n_in, x, y) to (B, n_out, x, y); sides are reflected to multiples of 2 ** levels.

    One block serves for all levels below the first on the way down, and one for all but the lowest
    and the head on the way up.
    """

    def __init__(self, config: Config, n_in: int, n_out: int) -> None:
        super().__init__()
        self.config = config
        down, up, head = config.down, config.up, config.head
        act, pool = nn.LeakyReLU(config.slope), nn.MaxPool2d(2)
        self.first = nn.Sequential(_conv(n_in, down), act, _conv(down, down), act, pool)
        self.encode = nn.Sequential(_conv(down, down), act, pool)
        self.bottom = nn.Sequential(_conv(down, down), act, _double(down))
        self.lowest = nn.Sequential(_conv(2 * down, up), act, _conv(up, up), act, _double(up))
        self.decode = nn.Sequential(_conv(up + down, up), act, _conv(up, up), act, _double(up))
        self.head = nn.Sequential(
            _conv(up + n_in, head[0]), act, _conv(head[0], head[1]), act, _conv(head[1], n_out)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(module.weight, 0.0, config.spread)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, image: Tensor) -> Tensor:
        """(B, n_in, *spatial) to (B, n_out, *spatial), any size; a volume slice by slice."""
        return on_axes(2, self._slice, image)

    def halo(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Whole slices: where the halvings begin decides the result."""
        return (*shape[:2], *(0 for _ in shape[2:]))

    def bytes_per_voxel(self) -> int:
        """The widest two maps of channels at full resolution."""
        return 8 * (2 * self.config.up + self.config.down)

    def _slice(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        x = extended(image, 2**self.config.levels)
        pooled = [x, self.first(x)]
        for _ in range(self.config.levels - 1):
            pooled.append(self.encode(pooled[-1]))
        x = self.bottom(pooled.pop())
        x = self.lowest(torch.cat([x, pooled.pop()], 1))
        for _ in range(self.config.levels - 2):
            x = self.decode(torch.cat([x, pooled.pop()], 1))
        return self.head(torch.cat([x, pooled.pop()], 1))[..., :height, :width]


def _conv(n_in: int, n_out: int) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, 3, padding=1)


def _double(n: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(n, n, 3, stride=2, padding=1, output_padding=1)
