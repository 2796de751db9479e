r"""SimCLR: two views of an image find each other among the views of other patients.

With an encoder and a head, z their output for a view, s cosines of z, and j the other view of i,

.. math:: L = - \overline{\log \frac{e^{s_{ij} / T}}
              {e^{s_{ij} / T} + \sum_{k: p_k \ne p_i} e^{s_{ik} / T}}} ,

the mean over both views of all images, k over the views of the batches of all ranks.

Version 1 drops the head. Version 2 has a head of three layers as wide as the features, of which
the first is kept: `embed` gives what comes out of it.

Departs from the papers: images of one patient p are never negatives of each other; medical views.
The distillation of version 2 needs a classifier that was fine-tuned with labels, and is no
pretraining: it is `medssl.core.contrast.distillation`. Version 2's memory of a mean encoder is left
out.
Needs: large batches, since all negatives are in them.
Reference: Chen, Kornblith, Norouzi, Hinton. A Simple Framework for Contrastive Learning of Visual
Representations. ICML 2020. Chen et al. Big Self-Supervised Models are Strong Semi-Supervised
Learners. NeurIPS 2020.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from medssl.core.batch import Sees, Views
from medssl.core.contrast import nt_xent
from medssl.core.errors import UsageError
from medssl.method import Encoder
from medssl.nets import encoders, resnet
from medssl.nets.heads import mlp


@dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters, under the paper's letters."""

    T: float = 0.1
    """Temperature."""
    head: Literal["v1", "v2"] = "v1"
    """Two layers, dropped afterwards, or three of which the first is kept."""
    out: int = 128
    """Width of z."""
    net: encoders.Config = field(default_factory=resnet.Config)
    """The encoder."""

    def build(self) -> "SimCLR":
        """The method, untrained.

        Raises:
            UsageError: A temperature that is none, or an embedding without width.
        """
        if not self.T > 0:
            raise UsageError(f"T is {self.T:g}", "give a temperature above 0, such as 0.1")
        if self.out < 2:
            raise UsageError(f"out is {self.out}", "give z a width of 2 or more")
        return SimCLR(self, self.net.build())


class SimCLR(Encoder):
    """An encoder whose views are told apart by a head."""

    def __init__(self, config: Config, encoder: encoders.Net) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        width = encoder.widths[-1]
        self.head = mlp(width, width, config.out, 2 if config.head == "v1" else 3)

    @property
    def sees(self) -> Sees:
        """Two views."""
        net = self.config.net
        return Sees(axes=net.axes, views=2, multiple=encoders.multiple(net))

    def loss(self, batch: Views) -> dict[str, Tensor]:
        """L."""
        z = self.head(super().embed(torch.cat([batch.view_a, batch.view_b])))
        z_a, z_b = z.chunk(2)
        return {"contrast": nt_xent(z_a, z_b, self.config.T, batch.patient)}

    def embed(self, image: Tensor) -> Tensor:
        """(B, D) what is kept: the features, of version 2 after the first layer of the head."""
        h = super().embed(image)
        return h if self.config.head == "v1" else self.head[:3](h)
