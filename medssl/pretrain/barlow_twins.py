r"""Barlow Twins: the parts of an embedding agree between views, and say different things.

With z_a, z_b the outputs of a projector for two views, each part standardised over the batches of
all ranks, and N images,

.. math:: C = \tfrac1N z_a^T z_b , \qquad
          L = \sum_i (1 - C_{ii})^2 + \lambda \sum_{i \ne j} C_{ij}^2 .

The first term is the invariance, the second the redundancy. No image is a negative of another.

Departs from the paper: medical views.
Needs: batches of some hundred images, since C is a correlation over them.
Reference: Zbontar, Jing, Misra, LeCun, Deny. Barlow Twins: Self-Supervised Learning via Redundancy
Reduction. ICML 2021.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from medssl.core.batch import Sees, Views
from medssl.core.errors import UsageError
from medssl.core.precise import full_precision
from medssl.core.ranks import sum_with_grad, world
from medssl.method import Encoder
from medssl.nets import encoders, resnet
from medssl.nets.heads import mlp

EPS = 1e-5
"""Added to variances."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters, under the paper's letters."""

    lambda_: float = 5e-3
    """Weight of the redundancy."""
    width: int = 8192
    """Of the layers of the projector, and of z."""
    layers: int = 3
    """Of the projector."""
    net: encoders.Config = field(default_factory=resnet.Config)
    """The encoder."""

    def build(self) -> "BarlowTwins":
        """The method, untrained.

        Raises:
            UsageError: Numbers with which nothing can be learnt.
        """
        if self.lambda_ < 0:
            raise UsageError(f"lambda_ is {self.lambda_:g}", "give 0 or more, such as 5.0e-3")
        if self.width < 2 or self.layers < 1:
            raise UsageError(
                f"the projector has {self.layers} layers of {self.width}",
                "give it 1 layer or more, 2 wide or more",
            )
        return BarlowTwins(self, self.net.build())


class BarlowTwins(Encoder):
    """An encoder and its projector."""

    def __init__(self, config: Config, encoder: encoders.Net) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.projector = mlp(encoder.widths[-1], config.width, config.width, config.layers)

    @property
    def sees(self) -> Sees:
        """Two views."""
        net = self.config.net
        return Sees(axes=net.axes, views=2, multiple=encoders.multiple(net))

    def loss(self, batch: Views) -> dict[str, Tensor]:
        """The two terms of L."""
        z_a = self.projector(self.embed(batch.view_a))
        z_b = self.projector(self.embed(batch.view_b))
        invariance, redundancy = both_terms(correlation(z_a, z_b))
        return {"invariance": invariance, "redundancy": self.config.lambda_ * redundancy}


@full_precision
def correlation(z_a: Tensor, z_b: Tensor) -> Tensor:
    """C (D, D) of embeddings (B, D), over the images of all ranks."""
    n = len(z_a) * world()
    return sum_with_grad(_standardised(z_a, n).T @ _standardised(z_b, n)) / n


def both_terms(c: Tensor) -> tuple[Tensor, Tensor]:
    """How far the diagonal of C (D, D) is from 1, and the rest from 0: sums of squares."""
    on = c.diagonal()
    return (1 - on).square().sum(), c.square().sum() - on.square().sum()


def _standardised(z: Tensor, n: int) -> Tensor:
    """Mean 0 and variance 1 of each part over the n images of all ranks."""
    away = z - sum_with_grad(z.sum(0)) / n
    return away * torch.rsqrt(sum_with_grad(away.square().sum(0)) / n + EPS)
