r"""Joint image-volume learning: clusters of slices, clusters of volumes, and slices left out.

A 2D encoder makes of slice n a vector h_n, linear in its pooled levels. A transformer e over the
slices, which knows where they lie in mm, makes of a volume :math:`Z = \mathrm{unit}(\overline{
e(h)_n})`. The loss is the weighted sum of

.. math:: L_{intra} = - \overline{\textstyle\sum_k q_k \log p_k} \text{ of slices}, \qquad
          L_{inter} = - \overline{\textstyle\sum_k q_k \log p_k} \text{ of } Z, \qquad
          L_{mask} = \tfrac1D \overline{\| \mathrm{dec}(e(\tilde h))_n - h'_n \|^2}
          _{n \text{ hidden}} ,

with :math:`p = \mathrm{softmax}(c^T z / T)` over prototypes c and q what the other view says: of a
slice the code of Sinkhorn (SwAV), of a volume its cluster in the store (DeepCluster-v2) or a code
too. In :math:`\tilde h` a learnt token takes the place of hidden slices; h' is the running mean of
the encoder, which gets no gradient.

Departs from the paper: slices are the tokens of the attention, so that any number of them will do
and their distances count; views are new at each step; hidden slices alone count in L_mask, and
they are runs where a single one would be interpolated; the error is that of a channel; volumes are
told apart over the whole store.
Needs: stacks of slices. `embed` is not told of distances and takes slices to be `gap` mm apart.
Reference: Nguyen et al. Joint Self-Supervised Image-Volume Representation Learning with Intra-Inter
Contrastive Clustering. AAAI 2023.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from torch.nn.init import trunc_normal_

from medssl.core.batch import Sees, Views
from medssl.core.cluster import sinkhorn
from medssl.core.errors import UsageError
from medssl.core.precise import full_precision
from medssl.method import Encoder
from medssl.nets import deform1d, resnet
from medssl.nets.clusters import Clusters, held
from medssl.nets.deform1d import SliceTransformer, hats
from medssl.nets.heads import follow, mlp


@dataclass(frozen=True, kw_only=True)
class Config:
    """Weights of the terms, their clusters, and the nets."""

    intra: float = 1.0
    """Weight of L_intra."""
    inter: float = 1.0
    """Weight of L_inter."""
    mask: float = 1.0
    """Weight of L_mask."""
    K_intra: int = 3000
    """Prototypes of slices."""
    K_inter: tuple[int, ...] = (4, 4, 4)
    """Clusters of volumes, of each set."""
    codes: Literal["kmeans", "sinkhorn"] = "kmeans"
    """What volumes are asked for."""
    T: float = 0.1
    """Temperature."""
    epsilon: float = 0.05
    """Softness of Sinkhorn's codes."""
    n_iter: int = 3
    """Iterations of Sinkhorn."""
    frozen: float = 0.01
    """Share of the training in which prototypes do not learn; the paper has 313 steps."""
    refresh: int = 200
    """Steps between two clusterings of the volumes: an epoch of them in the paper."""
    kmeans_iter: int = 10
    """Iterations of k-means."""
    ratio: float = 0.1
    """Share of the slices that are hidden, one run at least."""
    run: int = 1
    """Neighbouring slices that are hidden together."""
    tau: float = 0.996
    """Decay of the running mean h' of the encoder."""
    hidden: int = 2048
    """Width of the hidden layer of the projector of slices."""
    out: int = 128
    """Width of what slices are projected to."""
    gap: float = 5.0
    """mm from slice to slice where nothing is known of it."""
    net: resnet.Config = field(default_factory=resnet.Config)
    """The encoder of slices."""
    slices: deform1d.Config = field(default_factory=deform1d.Config)
    """The transformer e; its width is that of h."""

    def build(self) -> "Joint":
        """The method, untrained.

        Raises:
            UsageError: Numbers with which nothing can be learnt.
        """
        if self.net.axes != 2:
            raise UsageError("the net has 3 axes", "slices need a net of 2 axes")
        if not self.K_inter or min(self.K_inter, default=0) < 2 or self.K_intra < 2:
            raise UsageError(
                f"K_intra and K_inter are {self.K_intra} and {list(self.K_inter)}",
                "give 2 prototypes or more",
            )
        for name, value in (("T", self.T), ("epsilon", self.epsilon), ("gap", self.gap)):
            if not value > 0:
                raise UsageError(f"{name} is {value:g}", "give a number above 0")
        for name, count in (("n_iter", self.n_iter), ("refresh", self.refresh), ("run", self.run)):
            if count < 1:
                raise UsageError(f"{name} is {count}", "give 1 or more")
        for name, share in (("ratio", self.ratio), ("tau", self.tau)):
            if not 0 <= share < 1:
                raise UsageError(f"{name} is {share:g}", "give a share from 0 to below 1")
        if self.slices.width % self.slices.heads:
            raise UsageError(
                f"slices.width is {self.slices.width}",
                f"give a multiple of its {self.slices.heads} heads",
            )
        return Joint(self, self.net.build())


class Joint(Encoder):
    """An encoder of slices, what relates slices, and clusters of both."""

    def __init__(self, config: Config, encoder: resnet.ResNet) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        width = config.slices.width
        self.h = nn.Linear(sum(encoder.widths) + encoder.widths[-1], width)
        self.mean_encoder = copy.deepcopy(encoder).requires_grad_(requires_grad=False)
        self.mean_h = copy.deepcopy(self.h).requires_grad_(requires_grad=False)
        self.slices: SliceTransformer = config.slices.build()
        self.token = nn.Parameter(trunc_normal_(torch.empty(width), std=0.02))
        self.decoder = nn.Linear(width, width)
        self.projector = mlp(encoder.widths[-1], config.hidden, config.out, 2)
        self.of_slices = nn.Parameter(normalize(torch.randn(config.K_intra, config.out)))
        self.of_volumes = nn.ParameterList()
        self.clusters = nn.ModuleList()
        if config.codes == "kmeans":
            self.clusters.extend(Clusters(k, width, config.kmeans_iter) for k in config.K_inter)
        else:
            self.of_volumes.extend(normalize(torch.randn(k, width)) for k in config.K_inter)

    @property
    def sees(self) -> Sees:
        """Two views of stacks of slices."""
        return Sees(axes=3, views=2, stack=True)

    @property
    def refresh_every(self) -> int | None:
        """Where volumes are asked for the clusters of k-means."""
        return self.config.refresh if self.clusters else None

    def refresh(self, bank: Tensor, index: Tensor, generator: torch.Generator) -> None:
        """Group the volumes of the store anew, each set from a start of its own."""
        for clusters in self.clusters:
            assert isinstance(clusters, Clusters)
            clusters.find(bank, index, generator)

    def features(self, image: Tensor) -> list[Tensor]:
        """Features of slices (B, C, H, W), or of each slice of stacks (B, C, H, W, N)."""
        if image.ndim == 4:
            return super().features(image)
        levels = super().features(_slices(image).flatten(0, 1))
        return [y.unflatten(0, (len(image), -1)).movedim(1, -1) for y in levels]

    def embed(self, image: Tensor) -> Tensor:
        """(B, D): of slices (B, C, H, W) their features, of stacks (B, C, H, W, N) mean e(h)."""
        if image.ndim == 4:
            return super().embed(image)
        valid = torch.ones(len(image), image.shape[-1], dtype=torch.bool, device=image.device)
        z = torch.arange(image.shape[-1], device=image.device) * self.config.gap
        h = self._h(_pooled(self.encoder, image, valid), valid)
        return self.slices(h, z.expand_as(valid).to(h)).mean(1)

    def loss(self, batch: Views) -> dict[str, Tensor]:
        """The three terms, means over the slices and volumes of this rank.

        Raises:
            ValueError: Nothing is known of where slices lie, or there is no source of chance.
        """
        c, (z, valid, generator) = self.config, _stack(batch)
        z, valid = torch.cat([z, z]), torch.cat([valid, valid])
        views = torch.cat(batch.views)
        pooled = _pooled(self.encoder, views, valid)
        h = self._h(pooled, valid)
        volumes = _mean(self.slices(h, z, valid, generator), valid)
        hidden = _hidden(valid, c.ratio, c.run, generator)
        guess = self._guess(h, z, valid, hidden, generator)
        with torch.no_grad():
            target = self._target(views, valid)
        return {
            "intra": c.intra * self._intra(self.projector(pooled[-1]), batch.progress),
            "inter": c.inter * self._inter(volumes, batch.index, batch.progress),
            "mask": c.mask * _error(guess, target, hidden).mean(),
        }

    def measures(self, batch: Views) -> dict[str, float]:
        """Error of hidden slices, and that of interpolating between their neighbours."""
        own, between = self.hidden_errors(batch)
        return {"hidden": float(own), "interpolated": float(between)}

    @torch.no_grad()
    def hidden_errors(self, batch: Views) -> tuple[Tensor, Tensor]:
        """Mean squared error of hidden slices of whole images, and that of the obvious guess.

        Args:
            batch: As for `loss`; its `image` is looked at.

        Returns:
            Means over the volumes and channels: of the guess of the net, and of interpolation
            along z between the vectors h' of the nearest seen slices.

        Raises:
            ValueError: As for `loss`.
        """
        c, (z, valid, generator) = self.config, _stack(batch)
        target = self._target(batch.image, valid)
        h = self._h(_pooled(self.encoder, batch.image, valid), valid)
        hidden = _hidden(valid, c.ratio, c.run, generator)
        between = hats(z, z, valid & ~hidden).to(target) @ target
        guess = self._guess(h, z, valid, hidden, None)
        return _error(guess, target, hidden).mean(), _error(between, target, hidden).mean()

    def after_step(self, progress: float) -> None:
        """Prototypes stay of length 1, and the running mean follows."""
        del progress
        for one in (self.of_slices, *self.of_volumes):
            one.copy_(normalize(one))
        follow(self.mean_encoder, self.encoder, self.config.tau)
        follow(self.mean_h, self.h, self.config.tau)

    def _h(self, pooled: list[Tensor], valid: Tensor, layer: nn.Module | None = None) -> Tensor:
        """h (B, N, width) of pooled levels of the valid slices; 0 where there is none."""
        found = (self.h if layer is None else layer)(_levels(pooled))
        h = found.new_zeros(*valid.shape, found.shape[1])
        return h.masked_scatter(valid[..., None], found)

    def _target(self, image: Tensor, valid: Tensor) -> Tensor:
        """h' (B, N, width)."""
        return self._h(_pooled(self.mean_encoder, image, valid), valid, self.mean_h)

    def _guess(
        self,
        h: Tensor,
        z: Tensor,
        valid: Tensor,
        hidden: Tensor,
        generator: torch.Generator | None,
    ) -> Tensor:
        """dec(e(h)) (B, N, width) with the token at hidden slices."""
        h = torch.where(hidden[..., None], self.token.to(h), h)
        return self.decoder(self.slices(h, z, valid, generator))

    @full_precision
    def _intra(self, z: Tensor, progress: float) -> Tensor:
        """Swapped prediction of slices (2 n, out), view after view."""
        prototypes = self.of_slices if progress >= self.config.frozen else held(self.of_slices)
        return self._swapped(normalize(z), prototypes)

    @full_precision
    def _inter(self, z: Tensor, index: Tensor | None, progress: float) -> Tensor:
        """Clusters of volumes (2 B, width), view after view; the mean over the sets."""
        z, losses = normalize(z), []
        for prototypes in self.of_volumes:
            learns = progress >= self.config.frozen
            losses.append(self._swapped(z, prototypes if learns else held(prototypes)))
        for clusters in self.clusters:
            assert isinstance(clusters, Clusters)
            both = torch.stack(z.detach().chunk(2)).mean(0)
            scores = z @ clusters.centroids.to(z).T / self.config.T
            losses.append(cross_entropy(scores, clusters.of(both, index).repeat(2)))
        return torch.stack(losses).mean()

    def _swapped(self, z: Tensor, prototypes: Tensor) -> Tensor:
        """The code of each view (n, D) of unit vectors (2 n, D) is asked for in the other."""
        c, (a, b) = self.config, (z @ prototypes.T).chunk(2)
        codes = [sinkhorn(s.detach(), c.epsilon, c.n_iter) for s in (b, a)]
        return cross_entropy(torch.cat([a, b]) / c.T, torch.cat(codes))


def _slices(image: Tensor) -> Tensor:
    """Slices (B, N, C, H, W) of stacks (B, C, H, W, N)."""
    return image.movedim(-1, 1)


def _stack(batch: Views) -> tuple[Tensor, Tensor, torch.Generator]:
    """Positions (B, N), where there are slices (B, N), and the source of chance."""
    if batch.slice_mm is None or batch.generator is None:
        raise ValueError("Joint needs `slice_mm` and `generator`")
    z = batch.slice_mm
    if batch.valid is None:
        return z, torch.ones_like(z, dtype=torch.bool), batch.generator
    valid = batch.valid.flatten(1, -2).any(1)
    valid[:, 0] |= ~valid.any(1)
    return z, valid, batch.generator


def _pooled(encoder: nn.Module, image: Tensor, valid: Tensor) -> list[Tensor]:
    """Means (n, D) over each level of the valid slices of stacks (B, C, H, W, N)."""
    levels: Iterable[Tensor] = encoder.features(_slices(image)[valid])  # type: ignore[operator]
    return [y.flatten(2).mean(-1) for y in levels]


@full_precision
def _levels_of(last: Tensor, pooled: list[Tensor]) -> Tensor:
    return torch.cat([normalize(y.to(last)) for y in (*pooled, last)], 1)


def _levels(pooled: list[Tensor]) -> Tensor:
    """All levels (n, D) at length 1 side by side, the coarsest twice."""
    return _levels_of(pooled[-1], pooled)


def _mean(x: Tensor, valid: Tensor) -> Tensor:
    """(B, D) of tokens (B, N, D) where valid (B, N)."""
    return (x * valid[..., None]).sum(1) / valid.sum(1, keepdim=True)


def _hidden(valid: Tensor, ratio: float, run: int, generator: torch.Generator) -> Tensor:
    """(B, N) bool, runs of the valid slices; never all of them.

    Args:
        valid: (B, N) bool, True up to some slice.
        ratio: Share of the slices, one run at least.
        run: Slices of one, fewer where there are few.
        generator: The source of chance.
    """
    n_slices = valid.shape[1]
    count = valid.sum(1, keepdim=True)
    length = (count - 1).clamp_max(run)
    runs = max(1, round(ratio * n_slices / run))
    u = torch.rand(len(valid), runs, generator=generator, device=valid.device)
    start = (u * (count - length + 1)).long()
    away = torch.arange(n_slices, device=valid.device) - start[..., None]
    hidden = ((away >= 0) & (away < length[..., None])).any(1) & valid
    none_left = ~(valid & ~hidden).any(1)
    hidden[none_left, 0] = False
    return hidden


def _error(guess: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
    """(B,) mean squared error (B, N, D) over the hidden slices and their channels."""
    each = (guess.float() - target.float()).square().mean(-1) * hidden
    return each.sum(1) / hidden.sum(1).clamp_min(1)
