r"""G-SimCLR: images that look alike are kept out of one batch, so that they are no negatives.

First the encoder e is that of a denoising autoencoder with a decoder d, of images x and noise n of
the standard deviation :math:`\sigma`,

.. math:: L_{denoise} = \overline{(d(e(x + n)) - x)^2} .

Then k-means groups the features of all images, a batch of all ranks takes one image of each cluster
at most, and two views of an image find each other among the views of the others,

.. math:: L_{contrast} = - \overline{\log \frac{e^{s_{ij} / T}}
          {e^{s_{ij} / T} + \sum_{k: p_k \ne p_i} e^{s_{ik} / T}}} ,

with cosines s of what a head says of views, and j the other view of i.

Departs from the paper: the autoencoder and the contrast share the encoder, which begins the second
part where the first left it, instead of one net for each; images of one patient p are never
negatives; medical views.
Needs: at least as many clusters as images in a batch.
Reference: Chakraborty, Gosthipaty, Paul. G-SimCLR: Self-Supervised Contrastive Learning with Guided
Projection via Pseudo Labelling. ICDM Workshops 2020.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from medssl.core.batch import Sees, Views
from medssl.core.contrast import nt_xent
from medssl.core.errors import UsageError
from medssl.method import Encoder
from medssl.nets import encoders, resnet
from medssl.nets.clusters import Clusters
from medssl.nets.heads import mlp
from medssl.nets.light_decoder import LightDecoder


@dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters, under the paper's letters."""

    T: float = 0.1
    """Temperature."""
    clusters: int = 512
    """Groups of the images of the store, at least as many as a batch has images."""
    first: float = 0.2
    """Share of the training that the autoencoder takes."""
    sigma: float = 0.5
    """Standard deviation of its noise, where images have 1."""
    refresh: int | None = None
    """Steps between two clusterings; null keeps those that the autoencoder's features gave."""
    kmeans_iter: int = 10
    """Iterations of k-means."""
    decoder_width: int = 256
    """Channels of the decoder at the coarsest level."""
    out: int = 128
    """Width of what the head says."""
    net: encoders.Config = field(default_factory=resnet.Config)
    """The encoder."""

    def build(self) -> "GSimCLR":
        """The method, untrained.

        Raises:
            UsageError: Numbers with which nothing can be learnt.
        """
        if not self.T > 0:
            raise UsageError(f"T is {self.T:g}", "give a temperature above 0, such as 0.1")
        if self.clusters < 2:
            raise UsageError(f"clusters is {self.clusters}", "ask for 2 or more")
        if not 0 <= self.first < 1:
            raise UsageError(f"first is {self.first:g}", "give a share from 0 to below 1")
        if self.sigma < 0:
            raise UsageError(f"sigma is {self.sigma:g}", "give 0 or more, such as 0.5")
        if self.refresh is not None and self.refresh < 1:
            raise UsageError(f"refresh is {self.refresh}", "give 1 step or more, or null")
        if self.out < 2:
            raise UsageError(f"out is {self.out}", "give the head a width of 2 or more")
        encoder = self.net.build()
        if encoder.strides[-1].bit_count() != 1:
            raise UsageError(
                f"the coarsest features have a stride of {encoder.strides[-1]} voxels",
                "take a net where it is a power of 2",
            )
        return GSimCLR(self, encoder)


class GSimCLR(Encoder):
    """An encoder with a decoder at first, and a head afterwards."""

    denoises: Tensor

    def __init__(self, config: Config, encoder: encoders.Net) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        axes, width = config.net.axes, encoder.widths[-1]
        conv = nn.Conv2d if axes == 2 else nn.Conv3d
        self.decoder = LightDecoder(
            axes, encoder.strides[-1:], config.decoder_width, config.net.in_channels
        )
        self.narrow = conv(width, self.decoder.widths[-1], 1)
        self.head = mlp(width, width, config.out, 2)
        self.groups = Clusters(config.clusters, width, config.kmeans_iter)
        self.register_buffer("denoises", torch.tensor(config.first > 0))

    @property
    def sees(self) -> Sees:
        """Two views, and the image itself."""
        c = self.config
        multiple = encoders.multiple(c.net)
        return Sees(axes=c.net.axes, views=2, multiple=multiple, clusters=c.clusters)

    @property
    def refresh_every(self) -> int | None:
        """As soon as the autoencoder is done, and then as often as the recipe wants."""
        if self.denoises:
            return None
        return 1 if self.assignment is None else self.config.refresh

    @property
    def assignment(self) -> Tensor | None:
        """(images,) int64 as they were last grouped, -1 where that is not known."""
        found = self.groups.assignment
        return found if len(found) else None

    def refresh(self, bank: Tensor, index: Tensor, generator: torch.Generator) -> None:
        """Group the features of the store."""
        self.groups.find(bank, index, generator)

    def loss(self, batch: Views) -> dict[str, Tensor]:
        """The term of the part of the training that `batch.progress` lies in."""
        c = self.config
        if batch.progress < c.first:
            return {"denoise": self._denoised(batch) + _nothing(self.head)}
        z_a, z_b = self.head(self.embed(torch.cat([batch.view_a, batch.view_b]))).chunk(2)
        contrast = nt_xent(z_a, z_b, c.T, batch.patient)
        return {"contrast": contrast + _nothing(self.decoder) + _nothing(self.narrow)}

    def after_step(self, progress: float) -> None:
        """The autoencoder ends where its share of the training does."""
        self.denoises.fill_(progress < self.config.first)

    def _denoised(self, batch: Views) -> Tensor:
        """Mean squared error at the valid voxels."""
        image, chance = batch.image, batch.generator
        noise = torch.randn(image.shape, generator=chance, device=image.device, dtype=image.dtype)
        found = self.features(image + self.config.sigma * noise)[-1]
        guess = self.decoder([self.narrow(found)])
        guess = guess[(..., *(slice(n) for n in image.shape[2:]))]
        error = (guess.to(image) - image).square()
        valid = torch.ones_like(image[:, :1]) if batch.valid is None else batch.valid
        share = valid.expand_as(error).to(error).flatten(1)
        return ((error.flatten(1) * share).sum(1) / share.sum(1).clamp_min(1)).mean()


def _nothing(part: nn.Module) -> Tensor:
    """0, from which every parameter of a part that is not used gets a gradient of 0."""
    return torch.stack([(0 * p).sum() for p in part.parameters()]).sum()
