r"""Masked autoencoding: guess the hidden cells of an image from the others.

With the cells x_l of an image, of which those in H are hidden, and a decoder g,

.. math:: L = \frac1{|H|} \sum_{l \in H} \tfrac1{n_l} \| g(f(x_{\bar H}))_l - \bar x_l \|^2 ,

where :math:`\bar x_l` is the cell, standardised by its own mean and variance in 2D and as it is in
3D. A transformer f is given the seen cells alone, as tokens, and g is a smaller one in which a
learned token stands for each hidden cell. Any other net is given the whole image with 0 in the
hidden cells, and g is a small convolutional decoder of all its levels.

Departs from the papers: cells that are all but constant weigh less, voxels that are not valid do
not count, and there is no class token.
Needs: images of about mean 0, crops whose sides are multiples of the cells, and `visible`.
Reference: He, Chen, Xie, Li, Dollár, Girshick. Masked Autoencoders Are Scalable Vision Learners.
CVPR 2022. For convolutional nets: Wald et al. Revisiting MAE pre-training for 3D medical image
segmentation. CVPR 2025.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from medssl.core.batch import Sees, Views
from medssl.core.errors import UsageError
from medssl.core.masked import as_image, enlarged, hidden_error, padded
from medssl.method import Masked
from medssl.nets import monai_encoder, resenc, resnet, vit
from medssl.nets.light_decoder import LightDecoder


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is hidden, and the nets; the defaults are those of the paper for pictures."""

    net: (
        vit.Config
        | resnet.Config
        | resenc.Config
        | monai_encoder.UNet
        | monai_encoder.SegResNet
        | monai_encoder.SwinUNETR
    ) = field(default_factory=vit.Config)
    """The encoder f."""
    ratio: float = 0.75
    """Share of the cells that are hidden."""
    block: int = 16
    """Sides of a cell in voxels; those of a transformer are its patches."""
    decoder_width: int = 512
    """Channels of the decoder's tokens, or of its coarsest level."""
    decoder_depth: int = 8
    """Blocks of a transformer's decoder."""
    decoder_heads: int = 16
    """Of the attention of a transformer's decoder."""
    normalised: bool | None = None
    """Whether the target is standardised cell by cell; null does so in 2D."""
    min_sd: float = 0.05
    """In units of the image: cells that vary less weigh less, where targets are standardised."""

    def build(self) -> "MAE":
        """The method, untrained.

        Raises:
            UsageError: Values that do not fit each other.
        """
        if not 0 < self.ratio < 1:
            raise UsageError(f"ratio is {self.ratio}", "it lies between 0 and 1")
        if isinstance(self.net, vit.Config):
            if self.block != self.net.patch:
                fact = f"cells have {self.block} voxels and patches {self.net.patch}"
                raise UsageError(fact, "give method.block and method.net.patch one value")
            encoder = self.net.build()
            return MAE(self, encoder, _Tokens(self, encoder))
        other = self.net.build()
        return MAE(self, other, _Maps(self, other.widths, other.strides))


class MAE(Masked):
    """An encoder, and a decoder that guesses what it did not see.

    Args:
        config: What is hidden.
        encoder: Is kept.
        decoder: `forward(encoder, image, visible)` to the guess, of the shape of the image.
    """

    def __init__(self, config: Config, encoder: nn.Module, decoder: "_Tokens | _Maps") -> None:
        super().__init__(encoder)
        self.config, self.decoder = config, decoder
        self.block = (config.block,) * config.net.axes

    @property
    def sees(self) -> Sees:
        """Images and the pattern of their seen cells."""
        return Sees(
            axes=self.config.net.axes,
            block=self.block,
            hidden=self.config.ratio,
            multiple=self.decoder.multiple,
        )

    def loss(self, batch: Views) -> dict[str, Tensor]:
        """L, the mean over images."""
        visible = batch.visible
        if visible is None:
            raise ValueError("MAE needs `visible`")
        image, valid = padded(batch.image, batch.valid, visible, self.block)
        config = self.config
        error = hidden_error(
            self.decoder(self.encoder, image, visible),
            image,
            visible,
            valid,
            normalised=config.net.axes == 2 if config.normalised is None else config.normalised,
            min_sd=config.min_sd,
        )
        return {"hidden": error}


class _Tokens(nn.Module):
    """The decoder of a transformer."""

    def __init__(self, config: Config, encoder: vit.ViT) -> None:
        super().__init__()
        width, net = config.decoder_width, encoder.config
        if width % config.decoder_heads:
            raise UsageError(
                f"decoder_heads {config.decoder_heads} do not divide decoder_width {width}",
                "change one of them",
            )
        self.multiple, self.scaled_to = net.patch, net.scaled_to
        self.into = nn.Linear(net.width, width)
        self.token = vit.mask_token(width)
        self.blocks = nn.ModuleList(
            vit.Block(width, config.decoder_heads) for _ in range(config.decoder_depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.last = nn.Linear(width, net.in_channels * net.patch**net.axes)

    def forward(self, encoder: vit.ViT, image: Tensor, visible: Tensor) -> Tensor:
        tokens, grid = encoder.embedded(image)
        order, k = _order(visible)
        seen = tokens.gather(1, _rows(order[:, :k], tokens))
        known = self.into(encoder.encoded(seen))
        rest = self.token.to(known.dtype).expand(len(known), order.shape[1] - k, -1)
        y = torch.cat([known, rest], 1)
        y = y.gather(1, _rows(order.argsort(1), y))
        y = y + vit.positions(grid, y.shape[2], self.scaled_to).to(y)
        for block in self.blocks:
            y = block(y)
        return as_image(self.last(self.norm(y)), grid, tuple(image.shape[1:]))


class _Maps(nn.Module):
    """The decoder of any other net."""

    def __init__(self, config: Config, widths: tuple[int, ...], strides: tuple[int, ...]) -> None:
        super().__init__()
        axes = config.net.axes
        if config.block % strides[-1] and strides[-1] % config.block:
            fact = f"cells of {config.block} voxels do not fit the strides {list(strides)}"
            raise UsageError(fact, f"take a multiple or a fraction of {strides[-1]}")
        self.multiple = max(config.block, strides[-1])
        self.decoder = LightDecoder(axes, strides, config.decoder_width, config.net.in_channels)
        conv = nn.Conv2d if axes == 2 else nn.Conv3d
        self.into = nn.ModuleList(
            conv(width, out, 1) for width, out in zip(widths, self.decoder.widths, strict=True)
        )

    def forward(
        self,
        encoder: resnet.ResNet | resenc.ResEnc | monai_encoder.MonaiEncoder,
        image: Tensor,
        visible: Tensor,
    ) -> Tensor:
        shape = tuple(image.shape[2:])
        levels = encoder.features(image * enlarged(visible, shape))
        return self.decoder([conv(f) for conv, f in zip(self.into, levels, strict=True)])


def _order(visible: Tensor) -> tuple[Tensor, int]:
    """(B, cells) the seen cells of each image and then the others, and how many are seen.

    Raises:
        ValueError: The images have different numbers of seen cells.
    """
    seen = visible.flatten(1)
    counts = seen.sum(1)
    if bool((counts != counts[0]).any()):
        raise ValueError(f"images of {counts.tolist()} seen cells in one batch; make them equal")
    return (~seen).to(torch.uint8).argsort(stable=True, dim=1), int(counts[0])


def _rows(index: Tensor, tokens: Tensor) -> Tensor:
    """(B, n) rows of tokens as `gather` wants them."""
    return index[:, :, None].expand(-1, -1, tokens.shape[2])
