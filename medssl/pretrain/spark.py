r"""SparK: guess the hidden cells of an image from the others, which alone a convolutional net sees.

An encoder of masked layers, :math:`y = m \cdot \mathrm{norm}_m(\mathrm{conv}(m \cdot x))`, makes
features F_i of the seen cells; i = 0 is the coarsest level. A token t_i takes the hidden sites,

.. math:: D_i = \phi_i\bigl(m_i\, \mathrm{norm}_i(F_i) + (1 - m_i)\, t_i\bigr), \qquad
          x_{i+1} = \mathrm{block}_i(x_i + D_i), \quad x_0 = 0 ,

and the loss is the mean squared error of the hidden cells,

.. math:: L = \frac1{|H|} \sum_{l \in H} \tfrac1{n_l} \| \hat x_l - \bar x_l \|^2 ,

where :math:`\bar x_l` is the cell, standardised by its own mean and variance in 2D and as it is in
3D.

Departs from the papers: cells that are all but constant weigh less, voxels that are not valid do
not count, volumes are computed on their seen cells alone (exactly), and the decoder of volumes is
the light one of pictures. Stages coarser than a cell see their whole maps.
Needs: crops whose sides are multiples of the cells, and `visible`. Batch norms must be calibrated
on whole images before the encoder is used.
Reference: Tian et al. Designing BERT for Convolutional Networks: Sparse and Hierarchical Masked
Modeling. ICLR 2023. In 3D: Wald et al. Revisiting MAE pre-training for 3D medical image
segmentation. CVPR 2025.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.init import trunc_normal_

from medssl.core.batch import Sees, Views
from medssl.core.errors import UsageError
from medssl.core.masked import hidden_error, padded
from medssl.method import Masked
from medssl.nets import monai_encoder, norms, resenc, resnet
from medssl.nets.light_decoder import LightDecoder
from medssl.nets.norms import BatchNorm, InstanceNorm
from medssl.nets.sparse import sparse_view


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is hidden, and the nets; the defaults are those of the paper for pictures."""

    net: resnet.Config | resenc.Config | monai_encoder.UNet | monai_encoder.SegResNet = field(
        default_factory=resnet.Config
    )
    """The encoder, a convolutional net of 2 or 3 axes."""
    ratio: float = 0.6
    """Share of the cells that are hidden; 0.75 in 3D."""
    block: tuple[int, ...] | None = None
    """Sides of a cell in voxels, each a multiple or a fraction of every stride of the net; null
    takes the stride of the coarsest level."""
    decoder_width: int = 768
    """Channels of the decoder at the coarsest level."""
    normalised: bool | None = None
    """Whether the target is standardised cell by cell; null does so in 2D."""
    min_sd: float = 0.05
    """In units of the image: cells that vary less weigh less, where targets are standardised."""
    tiles: bool | None = None
    """Whether seen cells are computed alone; null does so in 3D. The result is the same."""

    def build(self) -> "SparK":
        """The method, untrained.

        Raises:
            UsageError: Values that do not fit each other.
        """
        return SparK(self, self.net.build())


Net = resnet.ResNet | resenc.ResEnc | monai_encoder.MonaiEncoder
"""What an encoder may be."""


class SparK(Masked):
    """An encoder that sees cells, and a decoder that guesses the rest."""

    def __init__(self, config: Config, encoder: Net) -> None:
        super().__init__(encoder)
        self.config = config
        axes, strides = config.net.axes, encoder.strides
        self.block = _block(config, strides)
        self.multiple = max(*self.block, strides[-1])
        tiles = axes == 3 if config.tiles is None else config.tiles
        self.view = sparse_view(encoder, tiles=tiles)
        self.decoder = LightDecoder(axes, strides, config.decoder_width, config.net.in_channels)
        batch = norms.has_moments(encoder)
        conv = nn.Conv2d if axes == 2 else nn.Conv3d
        levels = list(zip(encoder.widths, strides, self.decoder.widths, strict=True))
        self.norms = nn.ModuleList(
            BatchNorm(width) if batch else InstanceNorm(width) for width, _, _ in levels
        )
        self.tokens = nn.ParameterDict(
            {
                str(k): trunc_normal_(torch.empty(1, width, *(1,) * axes), std=0.02)
                for k, (width, stride, _) in enumerate(levels)
                if stride <= min(self.block)
            }
        )
        self.projections = nn.ModuleList(
            _projection(conv, width, out, 1 if stride == strides[-1] else 3)
            for width, stride, out in levels
        )

    @property
    def sees(self) -> Sees:
        """Images and the pattern of their seen cells."""
        return Sees(
            axes=self.config.net.axes,
            block=self.block,
            hidden=self.config.ratio,
            multiple=self.multiple,
        )

    def loss(self, batch: Views) -> dict[str, Tensor]:
        """L, the mean over images."""
        visible = batch.visible
        if visible is None:
            raise ValueError("SparK needs `visible`")
        image, valid = padded(batch.image, batch.valid, visible, self.block)
        levels = []
        for k, found in enumerate(self.view.sites(image, visible)):
            normed = found.normed(self.norms[k])
            token = self.tokens[str(k)] if found.partial else None
            levels.append(self.projections[k](normed.dense(token)))
        config = self.config
        error = hidden_error(
            self.decoder(levels),
            image,
            visible,
            valid,
            normalised=config.net.axes == 2 if config.normalised is None else config.normalised,
            min_sd=config.min_sd,
        )
        return {"hidden": error}


def _block(config: Config, strides: tuple[int, ...]) -> tuple[int, ...]:
    """Sides of a cell, checked."""
    axes, deepest = config.net.axes, strides[-1]
    block = (deepest,) * axes if config.block is None else config.block
    if len(block) != axes:
        raise UsageError(f"block has {len(block)} sides and the net {axes} axes", "give as many")
    if not 0 < config.ratio < 1:
        raise UsageError(f"ratio is {config.ratio}", "it lies between 0 and 1")
    if any(side % stride and stride % side for side in block for stride in strides):
        raise UsageError(
            f"cells of {list(block)} voxels do not fit the strides {list(strides)}",
            f"take {deepest} or a fraction of it",
        )
    return block


def _projection(conv: type[nn.Conv2d | nn.Conv3d], width: int, out: int, size: int) -> nn.Module:
    """The convolution phi; none where there is nothing to change."""
    if size == 1 and width == out:
        return nn.Identity()
    return conv(width, out, size, padding=size // 2)
