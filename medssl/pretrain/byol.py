r"""BYOL and DirectPred: guess what a running mean of yourself says of the other view.

With the embedding z of an encoder and a projector, z' that of their running means, and a predictor
p,

.. math:: L = \bigl(2 - 2 \cos(p(z_a), \mathrm{sg}\, z'_b)\bigr)
            + \bigl(2 - 2 \cos(p(z_b), \mathrm{sg}\, z'_a)\bigr) , \qquad
          \theta' \leftarrow \tau \theta' + (1 - \tau) \theta ,

:math:`\tau` rising from its first value to 1 along a cosine. No image is a negative of another.

DirectPred has no predictor that learns. A linear one, W, follows from the embeddings of both views
and all ranks after each step, so that no small step has to find it:

.. math:: F \leftarrow \rho F + (1 - \rho) \overline{z z^T} = U \Lambda U^T , \qquad
          W = U \mathrm{diag}(p) U^T , \qquad
          p_j = \max\bigl(\sqrt{\max(\lambda_j, 0) / \lambda_{max}} + \epsilon,\ 10^{-4}\bigr) .

Departs from the papers: medical views; DirectPred's :math:`\epsilon` is a share of the largest p.
Needs: a predictor that is near its best at all times; `direct` sees to it, the others want a larger
learning rate.
Reference: Grill et al. Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning.
NeurIPS 2020. Tian, Chen, Ganguli. Understanding Self-Supervised Learning Dynamics without
Contrastive Pairs. ICML 2021.
"""

import copy
import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, linear

from medssl.core.batch import Sees, Views
from medssl.core.errors import UsageError
from medssl.core.precise import full_precision
from medssl.core.ranks import total, world
from medssl.method import Encoder
from medssl.nets import encoders, resnet
from medssl.nets.heads import follow, mlp

LEAST = 1e-4
"""Of the eigenvalues of a predictor."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters, under the papers' letters."""

    predictor: Literal["mlp", "linear", "direct"] = "mlp"
    """Two layers, one, or the one that follows from the embeddings."""
    tau: float = 0.996
    """First decay of the running means."""
    rho: float = 0.3
    """Share of what F was."""
    eps: float = 0.1
    """Added to the eigenvalues of the predictor."""
    hidden: int = 4096
    """Width of the hidden layers of projector and predictor."""
    out: int = 256
    """Width of z."""
    net: encoders.Config = field(default_factory=resnet.Config)
    """The encoder."""

    def build(self) -> "BYOL":
        """The method, untrained.

        Raises:
            UsageError: Numbers that are none.
        """
        for name, value in (("tau", self.tau), ("rho", self.rho)):
            if not 0 <= value < 1:
                raise UsageError(f"{name} is {value:g}", "give a share from 0 to below 1")
        if self.eps < 0:
            raise UsageError(f"eps is {self.eps:g}", "give 0 or more, such as 0.1")
        if min(self.hidden, self.out) < 2:
            raise UsageError(
                f"hidden and out are {self.hidden} and {self.out}", "give widths of 2 or more"
            )
        return BYOL(self, self.net.build())


class BYOL(Encoder):
    """An encoder that learns, one that follows, and what predicts the second from the first."""

    correlation: Tensor
    direct: Tensor

    def __init__(self, config: Config, encoder: encoders.Net) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.projector = mlp(encoder.widths[-1], config.hidden, config.out, 2)
        self.mean_encoder = _follower(encoder)
        self.mean_projector = _follower(self.projector)
        self.predictor: nn.Module | None = None
        if config.predictor == "direct":
            self.register_buffer("correlation", torch.zeros(config.out, config.out))
            self.register_buffer("direct", torch.eye(config.out))
        elif config.predictor == "linear":
            self.predictor = nn.Linear(config.out, config.out, bias=False)
        else:
            self.predictor = mlp(config.out, config.hidden, config.out, 2)

    @property
    def sees(self) -> Sees:
        """Two views."""
        net = self.config.net
        return Sees(axes=net.axes, views=2, multiple=encoders.multiple(net))

    def loss(self, batch: Views) -> dict[str, Tensor]:
        """L, the mean over images."""
        z = [self.projector(self.embed(view)) for view in batch.views]
        with torch.no_grad():
            z_mean = [self._mean_projected(view) for view in batch.views]
        if self.predictor is not None:
            p_a, p_b = (self.predictor(one) for one in z)
        else:
            p_a, p_b = (linear(one, self.direct.to(one)) for one in z)
            if self.training:
                self._correlate(torch.cat(z))
        return {"prediction": apart(p_a, z_mean[1]) + apart(p_b, z_mean[0])}

    def after_step(self, progress: float) -> None:
        """The running means follow, and the predictor that learns nothing is made anew."""
        tau = 1 - (1 - self.config.tau) * (math.cos(math.pi * progress) + 1) / 2
        follow(self.mean_encoder, self.encoder, tau)
        follow(self.mean_projector, self.projector, tau)
        if self.predictor is None:
            self.direct.copy_(direct_predictor(self.correlation, self.config.eps))

    def _mean_projected(self, view: Tensor) -> Tensor:
        """z' (B, D)."""
        return self.mean_projector(self.mean_encoder(view).flatten(2).mean(-1))

    @torch.no_grad()
    @full_precision
    def _correlate(self, z: Tensor) -> None:
        """Move F towards the mean of z z' over the rows (n, D) of all ranks."""
        z = z.to(self.correlation)
        now = total(z.T @ z) / (len(z) * world())
        self.correlation.lerp_(now, 1 - self.config.rho)


@full_precision
def apart(p: Tensor, z: Tensor) -> Tensor:
    """2 - 2 cos of the rows (B, D), the mean over them."""
    return (2 - 2 * cosine_similarity(p, z, dim=1)).mean()


def direct_predictor(correlation: Tensor, eps: float) -> Tensor:
    """W (D, D) of F (D, D).

    The eigenvectors are found on the CPU, where all ranks find the same.
    """
    values, vectors = torch.linalg.eigh(correlation.cpu())
    least = torch.finfo(values.dtype).tiny
    share = values.clamp_min(0) / values[-1].clamp_min(least)
    p = (share.sqrt() + eps).clamp_min(LEAST)
    return ((vectors * p) @ vectors.T).to(correlation)


def _follower(net: nn.Module) -> nn.Module:
    """A copy that gets no gradients."""
    return copy.deepcopy(net).requires_grad_(requires_grad=False)
