r"""GroCo: the views of an image come before its hardest strangers when similarities are sorted.

For each view, its similarities to the K most similar negatives and to the other views of its image
are put in a row: negatives first, each group ascending. An odd-even network sorts the row softly.
Where neighbours a, b meet it keeps their order with the weight

.. math:: w = \tfrac12 + \tfrac1\pi \arctan(\beta (b - a)) ,

and the product P of its layers holds the share of item i in rank r. With the ranks of the positives
the last ones,

.. math:: m_i = \sum_{r \in \mathrm{last}} P_{ri} , \qquad
          L = \overline{\mathrm{BCE}(m_i, [i \text{ is positive}])} .

Similarities are cosines, whose gradient goes to the anchor alone. Negatives are views of other
patients, on all ranks, of the anchor's own number.

Departs from the paper: where an image has fewer than K strangers, directions opposite to it fill
the row, and do not count.
Needs: beta of about 1; more makes the order harder and its gradient shorter in reach.
Reference: Shvetsova, Petersen, Kukleva, Schiele, Kuehne. Learning by Sorting: Self-supervised
Learning with Group Ordering Constraints. ICCV 2023.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy, normalize

from medssl.core.batch import Sees, Views
from medssl.core.errors import UsageError
from medssl.core.precise import full_precision
from medssl.core.ranks import gather, rank
from medssl.method import Encoder
from medssl.nets import encoders, resnet
from medssl.nets.heads import mlp


@dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters, under the paper's letters."""

    K: int = 10
    """Negatives in a row."""
    beta: float = 1.0
    """Steepness of the soft comparison."""
    views: int = 2
    """Of each image; all but the anchor are positives."""
    hidden: int = 2048
    """Width of the hidden layer of the projector."""
    out: int = 128
    """Width of z."""
    net: encoders.Config = field(default_factory=resnet.Config)
    """The encoder."""

    def build(self) -> "GroCo":
        """The method, untrained.

        Raises:
            UsageError: Numbers with which nothing can be sorted.
        """
        if self.K < 1:
            raise UsageError(f"K is {self.K}", "sort 1 negative or more, such as 10")
        if not self.beta > 0:
            raise UsageError(f"beta is {self.beta:g}", "give a number above 0, such as 1")
        if self.views < 2:
            raise UsageError(f"there are {self.views} views", "give 2 or more")
        return GroCo(self, self.net.build())


class GroCo(Encoder):
    """An encoder and its projector."""

    def __init__(self, config: Config, encoder: encoders.Net) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.projector = mlp(encoder.widths[-1], config.hidden, config.out, 2)

    @property
    def sees(self) -> Sees:
        """Some views."""
        net = self.config.net
        return Sees(axes=net.axes, views=self.config.views, multiple=encoders.multiple(net))

    def loss(self, batch: Views) -> dict[str, Tensor]:
        """L, the mean over all views of the images."""
        c = self.config
        z = self.projector(self.embed(torch.cat(batch.views)))
        return {"order": _order(z.unflatten(0, (c.views, -1)), batch.patient, c.K, c.beta)}


@full_precision
def group_order(negatives: Tensor, positives: Tensor, beta: float) -> Tensor:
    """The share of each item in the ranks of the positives, m of the row of negatives, positives.

    Args:
        negatives: (n, K) similarities, each row ascending.
        positives: (n, P) similarities, each row ascending.
        beta: Steepness of the soft comparison.

    Returns:
        (n, K + P) from 0 to 1.
    """
    row = torch.cat([negatives, positives], 1)
    n, length = row.shape
    share = torch.eye(length, dtype=row.dtype, device=row.device).expand(n, -1, -1)
    for layer in range(length):
        first = layer % 2
        met = (length - first) // 2
        if met == 0:
            continue
        end = first + 2 * met
        pairs = row[:, first:end].unflatten(1, (met, 2))
        w = 0.5 + torch.atan(beta * (pairs[..., 1] - pairs[..., 0])) / math.pi
        swap = torch.stack([torch.stack([w, 1 - w], -1), torch.stack([1 - w, w], -1)], -2)
        moved = (swap @ pairs[..., None]).flatten(1)
        shared = (swap @ share[:, first:end].unflatten(1, (met, 2))).flatten(1, 2)
        row = torch.cat([row[:, :first], moved, row[:, end:]], 1)
        share = torch.cat([share[:, :first], shared, share[:, end:]], 1)
    return share[:, -positives.shape[1] :].sum(1).clamp(0, 1)


@full_precision
def _order(z: Tensor, patient: Tensor | None, most: int, beta: float) -> Tensor:
    """L of embeddings (views, B, D)."""
    anchors = normalize(z, dim=-1)
    everyone = torch.stack([gather(one) for one in anchors])
    views, n, _ = z.shape
    place = torch.arange(n, device=z.device) + n * rank()
    who = place if patient is None else patient
    same = who[:, None] == gather(who)
    strangers = (anchors @ everyone.mT).masked_fill(same, -torch.inf)
    hardest = strangers.topk(min(most, strangers.shape[-1] - 1)).values.flip(-1)
    counts = torch.isfinite(hardest)
    hardest = hardest.masked_fill(~counts, -1)
    own = everyone[:, place]
    losses = []
    for k in range(views):
        others = [t for t in range(views) if t != k]
        friends = (anchors[k] * own[others]).sum(-1).T.sort(1).values
        m = group_order(hardest[k], friends, beta)
        truth = torch.zeros_like(m)
        truth[:, -friends.shape[1] :] = 1
        weight = torch.cat([counts[k].to(m), torch.ones_like(friends)], 1)
        error = binary_cross_entropy(m, truth, reduction="none") * weight
        losses.append((error.sum(1) / weight.sum(1)).mean())
    return torch.stack(losses).mean()
