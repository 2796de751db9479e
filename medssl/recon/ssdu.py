r"""SSDU: a net learns from undersampled scans alone, by what one part of them says of the other.

The measured points :math:`\Omega` are parted at random into :math:`\Theta`, which the base net f
sees, and :math:`\Lambda`, of which it is asked,

.. math:: L = \tfrac12 \left( \frac{\|e\|_1}{\|u\|_1} + \frac{\|e\|_2}{\|u\|_2} \right) , \quad
          u = \Lambda y , \quad e = \Lambda (F S f(\Theta y) - y) .

Afterwards f sees all of :math:`\Omega`.

Departs from the paper: the base net is any of `nets`; norms are taken over a batch, of complex
values.
Needs: undersampled scans of the same kind, whose points are drawn at random.
Reference: Yaman et al. Self-Supervised Learning of Physics-Guided Reconstruction Neural Networks
without Fully Sampled Reference Data. Magnetic Resonance in Medicine 2020.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from medssl.core.batch import Acquired
from medssl.core.errors import UsageError
from medssl.method import Reconstructor
from medssl.nets import unrolled
from medssl.physics.acquisition import parted, unexplained
from medssl.physics.sampling import Parting


@dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters, under the paper's letters."""

    rho: float = 0.4
    """Share of the measured points in Lambda."""
    kind: Parting = "uniform"
    """How Lambda is drawn; the paper has found the Gaussian to be a little better."""
    keep: tuple[int, int] = (4, 4)
    """Central block that is always in Theta."""
    net: unrolled.Config = field(default_factory=unrolled.Config)
    """The base net f."""

    def build(self) -> "Ssdu":
        """The method, untrained.

        Raises:
            UsageError: The share is none.
        """
        if not 0 < self.rho < 1:
            raise UsageError(f"rho is {self.rho:g}", "give a share between 0 and 1")
        return Ssdu(self, self.net.build())


class Ssdu(Reconstructor):
    """A base net f that learns without truth."""

    def __init__(self, config: Config, f: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.f = f

    def loss(self, batch: Acquired) -> dict[str, Tensor]:
        """The one term."""
        c = self.config
        theta, aside = parted(batch, c.rho, c.kind, c.keep)
        e = torch.view_as_real(unexplained(batch, self.f(theta), aside))
        u = torch.view_as_real(aside * batch.kspace)
        ratios = [
            torch.linalg.vector_norm(e, p) / torch.linalg.vector_norm(u, p).clamp_min(1e-12)
            for p in (1, 2)
        ]
        return {"ssdu": sum(ratios, torch.zeros_like(ratios[0])) / 2}

    def restore(self, batch: Acquired) -> Tensor:
        """Images (..., set, H, W)."""
        return self.f(batch)
