r"""Nets that make images of k-space: any of them takes the place of the base net of a method.

An unrolled net of K stages alternates the data and a denoiser D_k; from :math:`x_0 = A^H y`,

.. math:: z_k = x_k - a_k (A^H A x_k - A^H y) \quad\text{or}\quad
          z_k = (A^H A + \mu_k)^{-1} (A^H y + \mu_k x_k) , \qquad x_{k+1} = z_k + D_k(z_k) .

With K = 0 a single net improves :math:`A^H y` and does not look at the data again. A net that is
told the noise sigma of the samples has it as a further channel of D_k, and
:math:`\log \mu_k` is linear in :math:`\log \sigma`: noisier data are trusted less.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from medssl.core.batch import Acquired
from medssl.nets import chain, unet
from medssl.physics.acquisition import known
from medssl.physics.operator import inner
from medssl.physics.solve import IMAGE_AXES, Normal, cg

LEAST_SIGMA = 1e-3
"""Less noise than this is none."""
USUAL_SIGMA = 0.02
"""Noise for which the first mu is meant."""
UNIT = 0.02
"""Denoisers see images in units of the noise, or of this where there is less: what they have to
remove is then about 1, which is learnt in few steps."""
CHANNEL = 100.0
"""What the unit is multiplied with in the channel of a net."""
QUICK = 10.0
"""What the parameters of mu are multiplied with: they move so much faster than weights."""
Base = Callable[[Acquired], Tensor]
"""From what was measured to images (..., set, H, W)."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Size of the net."""

    stages: int = 4
    """K; the paper has 8."""
    denoiser: chain.Config | unet.Config = field(
        default_factory=lambda: chain.Config(depth=5, width=32, zero_last=True, detail=True)
    )
    """D_k; the paper has residual nets of 4 convolutions with 128 channels."""
    shared: bool = False
    """One denoiser for all stages."""
    data: Literal["gradient", "cg"] = "cg"
    """How a stage looks at the data; the paper has the gradient."""
    step: float = 1.0
    """First value of all a_k, which are learned; the paper has 2."""
    mu: float = 0.05
    """First value of all mu_k, which are learned."""
    iterations: int = 6
    """Of conjugate gradients in each stage."""
    told: bool = True
    """The net is told the noise of the scan; the paper's is not."""

    def build(self) -> "Unrolled":
        """The net, its first weights from the global generator."""
        return Unrolled(self)


class Unrolled(nn.Module):
    """k-space in, images out."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        count = 1 if config.shared else max(config.stages, 1)
        self.denoisers = nn.ModuleList(
            config.denoiser.build(2, n_in=3 if config.told else 2, n_out=2) for _ in range(count)
        )
        self.steps = self.log_mu = self.slope = None
        if config.stages and config.data == "gradient":
            self.steps = nn.Parameter(torch.full((config.stages,), config.step))
        elif config.stages:
            self.log_mu = nn.Parameter(torch.full((config.stages,), config.mu).log() / QUICK)
            if config.told:
                self.slope = nn.Parameter(torch.ones(config.stages) / QUICK)

    def forward(self, batch: Acquired) -> Tensor:
        """Images (..., set, H, W) of a batch on a grid."""
        model, sigma = known(batch), batch.level.clamp_min(LEAST_SIGMA)
        b = model.adjoint(batch.kspace)
        x = b if batch.start is None else batch.start
        for k in range(self.config.stages):
            if self.steps is not None:
                x = x - self.steps[k] * (model.normal(x) - b)
            elif self.log_mu is not None:
                log_mu = QUICK * self.log_mu[k].expand(sigma.shape)
                if self.slope is not None:
                    log_mu = log_mu + QUICK * self.slope[k] * (sigma / USUAL_SIGMA).log()
                x = pulled(model.normal, b, x, log_mu.exp(), self.config.iterations)
            x = x + self._denoised(k, x, sigma)
        return x if self.config.stages else x + self._denoised(0, x, sigma)

    def _denoised(self, k: int, x: Tensor, sigma: Tensor) -> Tensor:
        """What the k-th denoiser adds; sets of maps are images of their own."""
        unit = sigma.clamp_min(UNIT) if self.config.told else torch.full_like(sigma, UNIT)
        each = unit.expand(*x.shape[:-2], 1, 1).reshape(-1, 1, 1, 1)
        flat = torch.view_as_real(x.flatten(0, -3)).movedim(-1, 1) / each
        if self.config.told:
            flat = torch.cat([flat, (CHANNEL * each).expand_as(flat[:, :1])], 1)
        made = self.denoisers[k % len(self.denoisers)](flat) * each
        return torch.view_as_complex(made.movedim(1, -1).contiguous()).reshape(x.shape)


def pulled(normal: Normal, b: Tensor, x: Tensor, mu: Tensor, iterations: int) -> Tensor:
    """The solution z of (A^H A + mu) z = b + mu x, with the gradient of the exact solution.

    The backward pass solves the same system once more instead of remembering all iterations.

    Args:
        normal: A^H A.
        b: (..., set, H, W) A^H y, which no gradient reaches.
        x: (..., set, H, W).
        mu: (..., 1, 1, 1), positive.
        iterations: Of conjugate gradients.
    """
    return cast(Tensor, _Pulled.apply(normal, b, x, mu, iterations))  # type: ignore[no-untyped-call]


class _Pulled(torch.autograd.Function):
    """`pulled`: with G = (A^H A + mu)^-1, dz = G (mu dx + (x - z) dmu), and G = G^H."""

    @staticmethod
    def forward(
        ctx: Any, normal: Normal, b: Tensor, x: Tensor, mu: Tensor, iterations: int
    ) -> Tensor:
        z = cg(lambda v: normal(v) + mu * v, b + mu * x, x, iterations)
        ctx.save_for_backward(x, z, mu)
        ctx.normal, ctx.iterations = normal, iterations
        return z

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, Tensor, Tensor, None]:
        x, z, mu = ctx.saved_tensors
        g = cg(lambda v: ctx.normal(v) + mu * v, gradients[0], None, ctx.iterations)
        return None, None, mu * g, inner(g, x - z, IMAGE_AXES), None
