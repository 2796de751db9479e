r"""LVM-Med: two views of the same images are two graphs, and one must be matched to the other.

An encoder f gives maps y (D, R, S) and z = h(pool y) of each view. The z of n images are the
vertices of a graph with edges to the k nearest; messages along them give
:math:`\hat z = \hat A\, \mathrm{relu}(\hat A z W_0) W_1`, :math:`\hat A = (A + I) / (k + 1)`. With
s and t the views, vertices and edges have the affinities

.. math:: c^v_{ia} = \alpha \cos(\hat z^s_i, \hat z^t_a)
                     + (1 - \alpha) (l_{i \to a} + l_{a \to i}), \qquad
          c^e_{ij,ab} = w \cos(\hat z^s_i - \hat z^s_j, \hat z^t_a - \hat z^t_b) ,

where :math:`l_{i \to a}` is half the sum of the mean cosines of the :math:`\gamma` cells p of i
that are closest to a cell of a, once in mm of the source image and once in features. The loss is
how far the best matching is from the identity,

.. math:: L = \overline{\sum_{ia} V_{ia} (1 - I_{ia}) + I_{ia} (1 - V_{ia})}, \qquad
          V = \arg\max_V \sum c^v_{ia} V_{ia} + \sum c^e_{ij,ab} V_{ia} V_{jb} ,

the mean over graphs and pairs of views, with w the weight of edges, Gumbel noise on c, and the
gradient of implicit maximum likelihood (`nets.matching`).

Departs from the paper: the solver is our own; edges that are short beside z count by their length,
without which second order was not seen to learn; noise is small (the matching drowns in the
paper's) and fades with the training; graphs can be of neighbouring slices of one volume, the hard
case.
Needs: views with their places. The loss is a number of wrong matches: it can be 0 and may jump.
Reference: Nguyen et al. LVM-Med: Learning Large-Scale Self-Supervised Vision Models for Medical
Imaging via Second-order Graph Matching. NeurIPS 2023.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, one_hot, relu

from medssl.core.batch import Sees, Views
from medssl.core.errors import UsageError
from medssl.core.precise import full_precision
from medssl.method import Encoder
from medssl.nets import resnet
from medssl.nets.matching import perturbed_match

TINY = 1e-12
"""Length of features below which they have no direction."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters, under the paper's letters."""

    n: int = 16
    """Images of a graph; those left over of a batch make a smaller one."""
    graph_mix: Literal["random", "volume"] = "random"
    """Graphs of any images, or of neighbouring slices of one volume."""
    k: int = 5
    """Edges that leave a vertex."""
    alpha: float = 0.8
    """Share of whole images in the affinities of vertices; the rest is that of their cells."""
    gamma: tuple[int, int] = (20, 4)
    """Cells that are compared: of two large views, and where one is small."""
    order: Literal[1, 2] = 2
    """1 leaves the affinities of edges out: what the paper compares with."""
    edge: float = 1.0
    """Weight of the affinities of edges."""
    short: float = 1.0
    """Length of an edge, over that of z, below which its direction fades; the paper has 0. The
    gradient of a direction grows as 1 over its length, and nearest neighbours are short edges."""
    beta: float = 0.05
    """Gumbel noise on affinities in the beginning, 0 in the end; the paper has 1."""
    lambda_: float = 80.0
    """Of the second solution of the implicit gradient."""
    n_iter: int = 5
    """Steps of the solver."""
    width: int = 128
    """F, channels of z."""
    small: int = 6
    """Small views, each matched with one of the two large ones."""
    net: resnet.Config = field(default_factory=resnet.Config)
    """The encoder f."""

    def build(self) -> "LVMMed":
        """The method, untrained.

        Raises:
            UsageError: Numbers with which nothing can be learnt.
        """
        if self.n < 2 or not 1 <= self.k < self.n:
            raise UsageError(
                f"graphs have n = {self.n} images with k = {self.k} edges each",
                "give n of 2 or more and k from 1 to n - 1",
            )
        if not 0 <= self.alpha <= 1:
            raise UsageError(f"alpha is {self.alpha:g}", "give a share from 0 to 1")
        if min(self.gamma) < 1:
            raise UsageError(f"gamma is {list(self.gamma)}", "compare 1 cell or more")
        if self.short < 0:
            raise UsageError(f"short is {self.short:g}", "give 0 or more")
        if self.beta < 0 or not self.lambda_ > 0:
            raise UsageError(
                f"beta is {self.beta:g} and lambda_ {self.lambda_:g}",
                "give beta of 0 or more and lambda_ above 0",
            )
        if min(self.n_iter, self.width) < 1 or self.small < 0:
            raise UsageError(
                f"n_iter, width and small are {self.n_iter}, {self.width} and {self.small}",
                "give 1, 1 and 0 or more",
            )
        if self.graph_mix == "volume" and self.net.axes == 3:
            raise UsageError(
                "graph_mix is 'volume' and the net has 3 axes", "slices need a net of 2 axes"
            )
        return LVMMed(self, self.net.build())


class LVMMed(Encoder):
    """An encoder, a linear layer, and two layers of messages."""

    def __init__(self, config: Config, encoder: resnet.ResNet) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.h = nn.Linear(encoder.widths[-1], config.width)
        self.w_0 = nn.Linear(config.width, config.width, bias=False)
        self.w_1 = nn.Linear(config.width, config.width, bias=False)

    @property
    def sees(self) -> Sees:
        """Two large views and some small ones, of images or of runs of slices."""
        c = self.config
        neighbours = c.n if c.graph_mix == "volume" else 1
        return Sees(axes=c.net.axes, views=2, small=c.small, neighbours=neighbours)

    def loss(self, batch: Views) -> dict[str, Tensor]:
        """L, the mean over graphs and pairs of views.

        Raises:
            ValueError: The views have no places.
        """
        found = self._matched(batch, self.config.beta * (1 - batch.progress))
        return {"match": torch.cat([hamming for hamming, _ in found]).mean()}

    def measures(self, batch: Views) -> dict[str, float]:
        """The share of the images whose views are matched to each other."""
        return {"matched": float(self.matches(batch).float().mean())}

    @torch.no_grad()
    def matches(self, batch: Views) -> Tensor:
        """Of which images the views are matched to each other, without noise.

        Args:
            batch: As for `loss`; its small views do not count.

        Returns:
            (images in graphs,) bool.
        """
        found = self._matched(replace(batch, small=()), 0.0)
        each = [v == torch.arange(v.shape[1], device=v.device) for _, v in found]
        return torch.cat([one.flatten() for one in each])

    def _matched(self, batch: Views, beta: float) -> list[tuple[Tensor, Tensor]]:
        """Twice the wrong vertices (g,) and the matching (g, n) of each pair of views."""
        if batch.boxes is None:
            raise ValueError("LVM-Med needs `boxes`")
        maps = self._maps(batch.views) + self._maps(batch.small)
        return self._pairs(batch.boxes, maps, beta, batch.generator)

    @full_precision
    def _pairs(
        self, boxes: Tensor, maps: list[Tensor], beta: float, generator: torch.Generator | None
    ) -> list[tuple[Tensor, Tensor]]:
        """The matchings of the two large views, and of each small one with one of them."""
        pairs = [(0, 1), *((k % 2, k) for k in range(2, len(maps)))]
        found = []
        for part, n in _parts(boxes.shape[1], self.config.n):
            graphs = [
                self._graphs(y[part].to(self.h.weight), box[part], n)
                for y, box in zip(maps, boxes[: len(maps)], strict=True)
            ]
            found += [self._match(graphs[s], graphs[t], t > 1, beta, generator) for s, t in pairs]
        return found

    def _maps(self, views: tuple[Tensor, ...]) -> list[Tensor]:
        """The coarsest features y of views of one size, which norms see together."""
        return list(self.features(torch.cat(views))[-1].chunk(len(views))) if views else []

    def _graphs(self, y: Tensor, boxes: Tensor, n: int) -> "_Graphs":
        """Graphs of n images each, of maps (B, D, *S) and the places (B, 2, axes) of the views."""
        z = self.h(y.flatten(2).mean(-1)).unflatten(0, (-1, n))
        k = min(self.config.k, n - 1)
        far = torch.cdist(z.detach(), z.detach())
        far.diagonal(dim1=1, dim2=2).fill_(torch.inf)
        heads = far.topk(k, largest=False).indices
        tails = torch.arange(n, device=y.device)[:, None].expand_as(heads)
        a_hat = (one_hot(heads, n).sum(2) + torch.eye(n, device=y.device)).to(z) / (k + 1)
        z_hat = a_hat @ self.w_1(relu(a_hat @ self.w_0(z)))
        return _Graphs(
            z=z_hat,
            edges=torch.stack([tails, heads], -1).flatten(1, 2),
            cells=y.flatten(2).mT.unflatten(0, (-1, n)).flatten(1, 2),
            places=_centres(boxes, y.shape[2:]).unflatten(0, (-1, n)).flatten(1, 2),
        )

    def _match(
        self,
        s: "_Graphs",
        t: "_Graphs",
        small: bool,
        beta: float,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor]:
        """How far the matchings of the graphs of two views are from the identity, and they."""
        c = self.config
        c_v = c.alpha * (normalize(s.z, dim=-1) @ normalize(t.z, dim=-1).mT)
        if c.alpha < 1:
            c_v = c_v + (1 - c.alpha) * _local(s, t, c.gamma[int(small)])
        if c.order == 2:
            e_s, e_t = s.edges, t.edges
        else:
            e_s, e_t = s.edges[:, :0], t.edges[:, :0]
        c_e = c.edge * (_directions(s.z, e_s, c.short) @ _directions(t.z, e_t, c.short).mT)
        return perturbed_match(
            c_v,
            c_e,
            e_s,
            e_t,
            beta=beta,
            lambda_=c.lambda_,
            n_iter=c.n_iter if c.order == 2 else 0,
            generator=generator,
        )


@dataclass(frozen=True, eq=False)
class _Graphs:
    """What one view of images becomes: g graphs of n vertices with p cells each."""

    z: Tensor
    """(g, n, F) after the messages."""
    edges: Tensor
    """(g, n k, 2) int64."""
    cells: Tensor
    """(g, n p, D) features."""
    places: Tensor
    """(g, n p, axes) centres of the cells, mm."""


def _parts(images: int, n: int) -> list[tuple[slice, int]]:
    """Runs of a batch and the size of their graphs: n, and what is left over."""
    whole = images - images % n
    found = [(slice(0, whole), n)] if whole else []
    if images - whole > 1 or not whole:
        found.append((slice(whole, images), images - whole))
    return found


def _centres(boxes: Tensor, cells: tuple[int, ...]) -> Tensor:
    """(B, p, axes) centres in mm of the cells of views whose places are (B, 2, axes)."""
    at = [(torch.arange(n, device=boxes.device) + 0.5) / n for n in cells]
    grid = torch.stack(torch.meshgrid(*at, indexing="ij"), -1).flatten(0, -2).to(boxes)
    return boxes[:, :1] + grid * boxes[:, 1:]


def _along(z: Tensor, edges: Tensor) -> Tensor:
    """z_i - z_j (g, E, F) of edges (g, E, 2) from i to j.

    Products of matrices, whose gradient is the same each time on a GPU too.
    """
    ends = one_hot(edges, z.shape[1]).to(z)
    return (ends[:, :, 0] - ends[:, :, 1]) @ z


def _directions(z: Tensor, edges: Tensor, short: float) -> Tensor:
    """Directions (g, E, F) of edges, of length 1 unless an edge is short beside z."""
    along = _along(z, edges)
    least = short * z.detach().norm(dim=-1).mean(-1)[:, None, None]
    return along / along.norm(dim=-1, keepdim=True).clamp_min(TINY).maximum(least)


def _local(s: _Graphs, t: _Graphs, gamma: int) -> Tensor:
    """l_{i -> a} + l_{a -> i}, (g, n, n)."""
    n = s.z.shape[1]
    dot = s.cells @ t.cells.mT
    size_s = s.cells.norm(dim=-1, keepdim=True)
    size_t = t.cells.norm(dim=-1, keepdim=True)
    cosine = dot / (size_s.clamp_min(TINY) * size_t.clamp_min(TINY).mT)
    with torch.no_grad():
        apart = size_s.square() + size_t.square().mT - 2 * dot
        away = torch.cdist(s.places.to(dot), t.places.to(dot))
    shape = (n, s.cells.shape[1] // n), (n, t.cells.shape[1] // n)
    cosine, apart, away = (
        x.unflatten(2, shape[1]).unflatten(1, shape[0]) for x in (cosine, apart, away)
    )
    there = _closest(cosine, away, gamma) + _closest(cosine, apart, gamma)
    cosine, apart, away = (x.permute(0, 3, 4, 1, 2) for x in (cosine, apart, away))
    back = _closest(cosine, away, gamma) + _closest(cosine, apart, gamma)
    return (there + back.mT) / 2


def _closest(cosine: Tensor, far: Tensor, gamma: int) -> Tensor:
    """Mean cosine (g, n, m) of the gamma cells p of i with the smallest distance to a cell of a.

    Args:
        cosine: (g, n, p, m, q).
        far: Distances, of the same shape.
        gamma: Cells, all at most.
    """
    nearest = far.min(-1)
    of_cells = cosine.gather(-1, nearest.indices[..., None])[..., 0]
    best = nearest.values.topk(min(gamma, far.shape[2]), dim=2, largest=False).indices
    return of_cells.gather(2, best).mean(2)
