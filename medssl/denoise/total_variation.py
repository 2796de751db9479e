r"""Total variation: the image nearest to the noisy one whose edges are few and short.

With weights w that follow the noise and gradients D per finest voxel distance,

.. math:: \hat x = \arg\min_x \tfrac12 \|x - y\|^2 + \sum_i w_i \|(D x)_i\|_2
          = y - D^T p, \qquad p = \arg\min_{\|p_i\|_2 \le w_i} \tfrac12 \|y - D^T p\|^2 .

The dual is minimised by projected gradients with momentum, a fixed number of steps, so that tiles
and whole volumes run alike.
Departs from the papers: the weight varies over the image (it bounds each dual vector) and is given
in standard deviations of the noise; voxels may be anisotropic.
Needs: the standard deviation of the noise (or stabilised images). Edges are kept, texture is not.
Reference: Rudin, Osher, Fatemi. Nonlinear total variation based noise removal algorithms. Physica D
1992.
Reference: Chambolle. An Algorithm for Total Variation Minimization and Applications. JMIV 2004.
Reference: Beck, Teboulle. Fast Gradient-Based Algorithms for Constrained Total Variation Image
Denoising and Deblurring Problems. IEEE TIP 2009.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from medssl.core.batch import Noisy
from medssl.method import Facts, Restorer, thick_axis

TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters."""

    weight: float = 0.6
    """w in standard deviations of the noise."""
    spacing: tuple[float, ...] | None = None
    """Voxel distances per axis; None takes those of the scan. `.inf` leaves an axis alone."""
    iterations: int = 50
    """Steps of the dual; the error falls with their square."""

    def suited_to(self, facts: Facts) -> "Config":
        """The same with the voxel distances of a scan."""
        if self.spacing is not None:
            return self
        spacing = facts.spacing
        if len(spacing) == 3:
            thick, _, apart = thick_axis(facts.shape, spacing)
            if apart or facts.independent_slices:
                thick = 2 if facts.independent_slices else thick
                spacing = tuple(math.inf if k == thick else s for k, s in enumerate(spacing))
        return replace(self, spacing=spacing)

    def build(self) -> "TotalVariation":
        """The filter; it has nothing to learn."""
        return TotalVariation(self)


class TotalVariation(Restorer):
    """Total variation in two or three dimensions."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def restore(self, batch: Noisy) -> Tensor:
        """Clean images (B, C, *spatial); each channel is filtered by itself."""
        y = batch.image
        spacing = self.config.spacing or (1.0,) * (y.ndim - 2)
        sigma = torch.ones(()).to(y) if batch.sigma is None else batch.sigma.to(y)
        bound = (self.config.weight * sigma).expand(y.shape)
        restored = torch.empty_like(y)
        for b in range(y.shape[0]):
            for c in range(y.shape[1]):
                restored[b, c] = _minimise(y[b, c], bound[b, c], spacing, self.config.iterations)
        return restored

    def halo(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Beyond 16 voxels nothing is felt; not across slices that are filtered one by one."""
        spacing = self.config.spacing or (1.0,) * len(shape)
        return tuple(16 if math.isfinite(s) else 0 for s in spacing)

    def bytes_per_voxel(self) -> int:
        """Two dual fields, image, and scratch, float32."""
        return 44


def _minimise(y: Tensor, bound: Tensor, spacing: tuple[float, ...], iterations: int) -> Tensor:
    """The minimiser x for one image (*spatial) and its bounds w."""
    finest = min(spacing)
    axes = [k for k, s in enumerate(spacing) if math.isfinite(s) and y.shape[k] > 1]
    if not axes:
        return y.clone()
    scale = [finest / spacing[k] for k in axes]
    step = 1 / sum(4 * s**2 for s in scale)
    old = y.new_zeros(len(axes), *y.shape)
    ahead = torch.zeros_like(old)
    x, length = torch.empty_like(y), torch.empty_like(y)
    momentum = 1.0
    for _ in range(iterations):
        _primal(y, ahead, axes, scale, x)
        for p, k, s in zip(ahead, axes, scale, strict=True):
            n = y.shape[k] - 1
            ahead_k = p.narrow(k, 0, n)
            ahead_k.add_(x.narrow(k, 1, n), alpha=s * step)
            ahead_k.sub_(x.narrow(k, 0, n), alpha=s * step)
        torch.mul(ahead[0], ahead[0], out=length)
        for p in ahead[1:]:
            length.addcmul_(p, p)
        torch.div(bound, length.sqrt_().clamp_min_(TINY), out=length)
        ahead *= length.clamp_max_(1)
        after = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        share = (momentum - 1) / after
        momentum = after
        # ahead, old <- p + share (p - old), p; p is what `ahead` holds now
        old.sub_(ahead).mul_(-share).add_(ahead)
        old, ahead = ahead, old
    return _primal(y, old, axes, scale, x)


def _primal(y: Tensor, p: Tensor, axes: list[int], scale: list[float], out: Tensor) -> Tensor:
    """y - D^T p, written to `out`."""
    out.copy_(y)
    for q, k, s in zip(p, axes, scale, strict=True):
        n = y.shape[k] - 1
        inner = q.narrow(k, 0, n)
        out.narrow(k, 0, n).add_(inner, alpha=s)
        out.narrow(k, 1, n).sub_(inner, alpha=s)
    return out
