r"""SwAV and DeepCluster-v2: every view of an image belongs to the same prototype.

With z the normalised output of a projector, and prototypes :math:`c_k` of length 1,

.. math:: L = - \overline{\sum_k q_k \log p_k} , \qquad
          p = \mathrm{softmax}(z^T C / T) ,

the mean over views, large and small, and what q they are asked for:

- `codes: sinkhorn` (SwAV): the code of each large view is asked for in all other views. Codes are
  Sinkhorn's over the batches of all ranks, :math:`Q = \mathrm{Sinkhorn}(Z^T C / \epsilon)`, which
  share the images out equally. Prototypes learn, except in the beginning. A queue of earlier
  embeddings helps where the batch is smaller than the number of prototypes.
- `codes: kmeans` (DeepCluster-v2): the cluster of the image, from k-means over the store, in all
  views. Prototypes are the centroids.

Several sets of prototypes are several such losses, of which the mean is taken.

Departs from the papers: medical views; embeddings of the store are made anew for the clusters
instead of kept from the last epoch; an image that was in no clustering yet belongs to the centroid
nearest to its large views.
Needs: a batch, with the queue, of the size of the number of prototypes or not far below.
Reference: Caron et al. Unsupervised Learning of Visual Features by Contrasting Cluster Assignments.
NeurIPS 2020, its appendix for DeepCluster-v2.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from medssl.core.batch import Sees, Views
from medssl.core.cluster import sinkhorn
from medssl.core.errors import UsageError
from medssl.core.precise import full_precision
from medssl.core.ranks import gather, rank, world
from medssl.method import Encoder
from medssl.nets import encoders, resnet
from medssl.nets.clusters import Clusters, held
from medssl.nets.heads import mlp


@dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters, under the paper's letters."""

    codes: Literal["sinkhorn", "kmeans"] = "sinkhorn"
    """What views are asked for."""
    K: tuple[int, ...] = (3000,)
    """Prototypes of each set; DeepCluster-v2 has three sets of 3000."""
    T: float = 0.1
    """Temperature."""
    epsilon: float = 0.05
    """Softness of Sinkhorn's codes."""
    n_iter: int = 3
    """Iterations of Sinkhorn."""
    frozen: float = 0.0025
    """Share of the training in which prototypes do not learn; the paper has one epoch of 400."""
    queue: int = 0
    """Earlier embeddings of each large view that join in Sinkhorn's codes; the paper has 3840
    where its batch is 256."""
    queue_from: float = 0.075
    """Share of the training after which they do; the paper has 15 epochs of 200."""
    refresh: int = 1000
    """Steps between two clusterings of the store: an epoch of it in the paper."""
    kmeans_iter: int = 10
    """Iterations of k-means."""
    views: int = 2
    """Large views."""
    small: int = 6
    """Small views."""
    hidden: int = 2048
    """Width of the hidden layer of the projector."""
    out: int = 128
    """Width of z."""
    net: encoders.Config = field(default_factory=resnet.Config)
    """The encoder."""

    def build(self) -> "SwAV":
        """The method, untrained.

        Raises:
            UsageError: Numbers with which nothing can be learnt.
        """
        if not self.K or min(self.K) < 2:
            raise UsageError(f"K is {list(self.K)}", "give each set 2 prototypes or more")
        for name, value in (("T", self.T), ("epsilon", self.epsilon)):
            if not value > 0:
                raise UsageError(f"{name} is {value:g}", "give a number above 0")
        for name, count in (("n_iter", self.n_iter), ("refresh", self.refresh)):
            if count < 1:
                raise UsageError(f"{name} is {count}", "give 1 or more")
        if self.views < 1 or self.views + self.small < 2 or self.small < 0:
            raise UsageError(
                f"there are {self.views} large and {self.small} small views",
                "give 1 large view or more, and 2 views or more",
            )
        if self.queue and (self.queue < 0 or self.codes == "kmeans"):
            raise UsageError(f"queue is {self.queue}", "give 0, or use it with codes: sinkhorn")
        return SwAV(self, self.net.build())


class SwAV(Encoder):
    """An encoder, its projector, and prototypes."""

    queue: Tensor
    queued: Tensor

    def __init__(self, config: Config, encoder: encoders.Net) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.projector = mlp(encoder.widths[-1], config.hidden, config.out, 2)
        self.prototypes = nn.ParameterList()
        self.clusters = nn.ModuleList()
        if config.codes == "kmeans":
            self.clusters.extend(Clusters(k, config.out, config.kmeans_iter) for k in config.K)
        else:
            self.prototypes.extend(normalize(torch.randn(k, config.out)) for k in config.K)
        if config.queue:
            self.register_buffer("queue", torch.zeros(config.views, config.queue, config.out))
            self.register_buffer("queued", torch.zeros((), dtype=torch.long))

    @property
    def sees(self) -> Sees:
        """Large and small views."""
        c = self.config
        multiple = encoders.multiple(c.net)
        return Sees(axes=c.net.axes, views=c.views, small=c.small, multiple=multiple)

    @property
    def refresh_every(self) -> int | None:
        """Where clusters are those of k-means."""
        return self.config.refresh if self.clusters else None

    def refresh(self, bank: Tensor, index: Tensor, generator: torch.Generator) -> None:
        """Group the projected embeddings of the store anew, each set from a start of its own."""
        was_training = self.projector.training
        z = self.projector.eval()(bank)
        self.projector.train(was_training)
        for clusters in self.clusters:
            assert isinstance(clusters, Clusters)
            clusters.find(z, index, generator)

    def loss(self, batch: Views) -> dict[str, Tensor]:
        """L, the mean over the images."""
        z = [self._projected(views) for views in (batch.views, batch.small) if views]
        views = torch.cat(z)
        if self.clusters:
            return {"cluster": self._asked_for_clusters(views, batch.index)}
        return {"swap": self._asked_for_codes(views, batch.progress)}

    def after_step(self, progress: float) -> None:
        """Prototypes stay of length 1."""
        del progress
        for c in self.prototypes:
            c.copy_(normalize(c))

    def _projected(self, views: tuple[Tensor, ...]) -> Tensor:
        """(views, B, D) of views of one size, which norms see together."""
        return self.projector(self.embed(torch.cat(views))).unflatten(0, (len(views), -1))

    @full_precision
    def _asked_for_codes(self, z: Tensor, progress: float) -> Tensor:
        """SwAV's loss of embeddings (views, B, D)."""
        c, z = self.config, normalize(z, dim=-1)
        earlier = self._earlier(progress)
        losses = []
        for prototypes in self.prototypes:
            if progress < c.frozen:
                prototypes = held(prototypes)
            scores = z @ prototypes.T
            before = None if earlier is None else earlier @ prototypes.detach().T
            for k in range(c.views):
                given = scores[k] if before is None else torch.cat([before[k], scores[k]])
                q = sinkhorn(given.detach(), c.epsilon, c.n_iter)[-z.shape[1] :]
                others = [t for t in range(len(z)) if t != k]
                losses.append(_cross_entropy(scores[others], q, c.T))
        if c.queue and self.training:
            self._remember(z[: c.views].detach())
        return torch.stack(losses).mean()

    @full_precision
    def _asked_for_clusters(self, z: Tensor, index: Tensor | None) -> Tensor:
        """DeepCluster-v2's loss of embeddings (views, B, D)."""
        c, z = self.config, normalize(z, dim=-1)
        large = z[: c.views].detach().mean(0)
        losses = []
        for clusters in self.clusters:
            assert isinstance(clusters, Clusters)
            scores = z @ clusters.centroids.to(z).T
            losses.append(_cross_entropy(scores, clusters.of(large, index), c.T))
        return torch.stack(losses).mean()

    def _earlier(self, progress: float) -> Tensor | None:
        """(views, n, D) of the queue, the part that falls to this rank; None while it fills."""
        c = self.config
        if not c.queue or progress < c.queue_from or int(self.queued) < c.queue:
            return None
        return self.queue[:, rank() :: world()]

    @torch.no_grad()
    def _remember(self, z: Tensor) -> None:
        """Put the z (views, B, D) of all ranks at the head of the queue, and drop its end."""
        new = torch.stack([gather(one) for one in z]).to(self.queue)
        self.queue.copy_(torch.cat([new, self.queue], 1)[:, : self.config.queue])
        self.queued += new.shape[1]


def _cross_entropy(scores: Tensor, q: Tensor, temperature: float) -> Tensor:
    """Of scores (views, B, K), asked for codes q (B, K) or clusters (B,); the mean over all."""
    return cross_entropy(scores.flatten(0, 1) / temperature, torch.cat([q] * len(scores)))
