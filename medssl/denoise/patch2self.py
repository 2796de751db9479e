r"""Patch2Self: each volume of a diffusion series is predicted from all the others.

Noise of one volume cannot be told from other volumes, signal can. With the standardised volumes as
columns of A (voxels by N) all N ridge regressions come from one inverse,

.. math:: P = (A^T A + n \lambda I)^{-1}, \qquad
          \hat x_j = \sum_{i \ne j} -\frac{P_{ij}}{P_{jj}} \, a_i ,

n the number of voxels. Volumes with and without diffusion weighting are regressed apart.

Departs from the paper: one inverse in place of N fits, no sketching of the voxels, patches of one
voxel only; magnitudes are stabilised first, which matters near the noise floor.
Needs: b-values, at least ten volumes of each kind, and noise independent from volume to volume.
Reference: Fadnavis, Batson, Garyfallidis. Patch2Self: Denoising Diffusion MRI with Self-Supervised
Learning. NeurIPS 2020.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from medssl.core.batch import Noisy
from medssl.core.errors import InputError
from medssl.method import Facts, Restorer, Trust
from medssl.physics.marchenko_pastur import measured

UNWEIGHTED = 50.0
"""s/mm^2 up to which a volume counts as not diffusion-weighted."""
FEWEST = 10
"""Volumes of a kind from which they predict each other."""
AT_ONCE = 4_000_000
"""Values whose products are taken at once, float64."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters of the regression."""

    lambda_: float = 1e-4
    """Weight of the ridge, as a share of the variance of a volume."""
    b0: bool = True
    """Whether volumes without diffusion weighting are denoised; else they stay as they are."""
    groups: tuple[tuple[int, ...], ...] | None = None
    """Volumes that predict each other, counted from 0; None goes by the b-values."""

    def suited_to(self, facts: Facts) -> "Config":
        """The same with the groups that the b-values of a series say.

        Raises:
            InputError: It is no series, its b-values are not known, or a group is too small.
        """
        if facts.n_volumes < 2:
            raise InputError(
                "is one volume, and patch2self predicts volumes of a series from each other",
                "use --method auto",
            )
        if self.groups is not None:
            return self
        if facts.n_volumes < FEWEST:
            raise InputError(
                f"has {facts.n_volumes} volumes, patch2self needs {FEWEST} of a kind to predict "
                "one from the others",
                "use --method auto or mppca",
            )
        if facts.b_values is None:
            raise InputError(
                "has no b-values, by which patch2self groups the volumes",
                "give --bval FILE, or use --method mppca",
            )
        return replace(self, groups=_groups(facts.b_values, self.b0))

    def build(self) -> "Patch2Self":
        """The regression, not fitted."""
        return Patch2Self(self)


class Patch2Self(Restorer):
    """Ridge regressions of each volume on the others of its group."""

    joint = True
    seen: Tensor
    """(N + 1, N + 1) products of the volumes and 1, from `settle`; empty before."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("seen", torch.zeros(0, 0, dtype=torch.float64))

    def settle(self, batches: Sequence[Noisy], trust: Trust) -> None:
        """Regress on parts of the series instead of on every tile by itself."""
        del trust
        self.seen = torch.stack([_products(batch.image[0]) for batch in batches]).sum(0)

    def restore(self, batch: Noisy) -> Tensor:
        """Clean series (B, N, *spatial), by what was settled, else each by itself."""
        restored = batch.image.clone()
        for series, noisy in zip(restored, batch.image, strict=True):
            seen = self.seen if self.seen.numel() else _products(noisy)
            where = measured(noisy)
            for group in self.config.groups or (tuple(range(len(noisy))),):
                if len(group) < 2:
                    continue
                weights, offset = _regression(seen, group, self.config.lambda_)
                members = noisy[list(group)]
                predicted = torch.tensordot(weights.to(noisy), members, 1)
                predicted += offset.to(noisy).reshape(-1, *[1] * where.ndim)
                series[list(group)] = torch.where(where, predicted, members)
        return restored

    @property
    def follows_sigma(self) -> bool:
        """What other volumes do not tell is noise, however strong it is."""
        return False

    def bytes_per_voxel(self) -> int:
        """The members of a group, their prediction, and the restored series."""
        return 16


def _products(series: Tensor) -> Tensor:
    """(N + 1, N + 1) float64 inner products of (N, *spatial) and 1, where anything was measured."""
    n = len(series)
    total = torch.zeros(n + 1, n + 1, dtype=torch.float64, device=series.device)
    values = series.reshape(n, -1)[:, measured(series).flatten()]
    for part in values.split(AT_ONCE // n, dim=1):
        a = torch.cat([part.double(), torch.ones_like(part[:1], dtype=torch.float64)])
        total += a @ a.T
    return total


def _regression(seen: Tensor, group: Sequence[int], lambda_: float) -> tuple[Tensor, Tensor]:
    """(n, n) weights with zero diagonal, and (n,) offsets, of each member on the others."""
    one, picks = len(seen) - 1, list(group)
    count = seen[one, one].clamp_min(1)
    mean = seen[picks, one] / count
    covariance = seen[picks][:, picks] / count - mean[:, None] * mean
    spread = covariance.diagonal().clamp_min(0).sqrt()
    spread = torch.where(spread > 0, spread, 1)
    correlation = covariance / (spread[:, None] * spread)
    ridge = lambda_ * torch.eye(len(picks), dtype=seen.dtype, device=seen.device)
    p = torch.linalg.inv(correlation + ridge)
    weights = -p / p.diagonal()[:, None]
    weights.fill_diagonal_(0)
    weights = weights * spread[:, None] / spread
    return weights, mean - weights @ mean


def _groups(b_values: Sequence[float], b0: bool) -> tuple[tuple[int, ...], ...]:
    """Volumes with and without diffusion weighting, counted from 0."""
    unweighted = tuple(k for k, b in enumerate(b_values) if b <= UNWEIGHTED)
    weighted = tuple(k for k, b in enumerate(b_values) if b > UNWEIGHTED)
    groups = {"weighted": weighted} | ({"b0": unweighted} if b0 else {})
    for kind, members in groups.items():
        if 0 < len(members) < FEWEST:
            remedy = "use --method mppca"
            side = ">" if kind == "weighted" else "up to"
            raise InputError(
                f"{kind} volumes (b {side} {UNWEIGHTED:g}): {len(members)}, patch2self needs "
                f"{FEWEST} of a kind to predict one from the others",
                remedy
                if kind == "weighted"
                else f"{remedy}, or leave b0 out: --set method.b0=false",
            )
    return tuple(members for members in groups.values() if members)
