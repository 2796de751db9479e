r"""Noise2Recon: what a net makes of a scan should not change when noise is added to it.

With a base net f, undersampled k-space y on a pattern M, and complex normal noise n with
:math:`\sigma \sim U(\sigma_{min}, \sigma_{max})` at the measured points,

.. math:: L_{cons} = \overline{| f(y + M n) - \mathrm{sg}\, f(y) |} ,

sg passing no gradient on. It joins one of two terms, or both where some scans have a truth x,

.. math:: L_{sup} = \overline{| f(y) - x |} , \qquad
          L_{ssdu} = \overline{| \Lambda (F S f(\Theta y) - y) |} , \qquad
          L = L_{sup} + L_{ssdu} + \lambda_c L_{cons} ,

the latter with the measured points parted at random into :math:`\Theta` and :math:`\Lambda`. Alone
the consistency would be met by any constant f. Settings of the paper: supervised with consistency;
semi-supervised, where scans without truth bring the consistency only (`ssdu: false`); and
self-supervised, N2R-SSDU (`supervised: false`).

Departs from the paper: the default takes what there is, with the supervised term on scans with a
truth and the self-supervised one on the others; points that the protocol never measures count as
measured zeros in every term, the consistency included; the base net may be told the noise. The
recipes are of a size for one CPU; the paper takes Adam, 1e-3 (unrolled 1e-4), batches of 16, 40 000
steps, R = 12 to 16, and a weight of 0.1, which counts for little in few steps.
Needs: noise in the range of sigma; scans of the same kind.
Reference: Desai et al. Noise2Recon: Enabling SNR-Robust MRI Reconstruction with Semi-Supervised and
Self-Supervised Learning. Magnetic Resonance in Medicine 2023.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from medssl.core.batch import Acquired
from medssl.core.errors import UsageError
from medssl.method import Reconstructor, Truth
from medssl.nets import unrolled
from medssl.physics.acquisition import parted, unexplained, with_noise
from medssl.physics.sampling import Parting


@dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters, under the paper's letters."""

    supervised: bool = True
    """Learn from the truth of scans that have one."""
    ssdu: bool = True
    """Learn from scans without truth by parting their samples."""
    lambda_c: float = 0.1
    """Weight of the consistency."""
    on_labelled: bool = True
    """Ask for consistency on scans with a truth too; the authors' code does not by default."""
    sigma: tuple[float, float] = (0.0, 0.2)
    """Least and largest noise that is added, where images are about 1; the paper has 0.2 and 0.5,
    for scans that are much noisier."""
    rho: float = 0.4
    """Share of the measured points in Lambda."""
    kind: Parting = "uniform"
    """How Lambda is drawn."""
    keep: tuple[int, int] = (4, 4)
    """Central block that is always in Theta."""
    net: unrolled.Config = field(default_factory=unrolled.Config)
    """The base net f."""

    def build(self) -> "Noise2Recon":
        """The method, untrained.

        Raises:
            UsageError: Consistency alone, or numbers that are none.
        """
        if not (self.supervised or self.ssdu):
            raise UsageError(
                "consistency alone is met by an empty image",
                "set method.supervised or method.ssdu",
            )
        if not 0 <= self.sigma[0] <= self.sigma[1]:
            raise UsageError(f"sigma is {self.sigma}", "give the least and the largest, 0 or more")
        if not 0 < self.rho < 1:
            raise UsageError(f"rho is {self.rho:g}", "give a share between 0 and 1")
        return Noise2Recon(self, self.net.build())


class Noise2Recon(Reconstructor):
    """A base net f that learns to be calm about noise."""

    def __init__(self, config: Config, f: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.f = f

    @property
    def learns_from(self) -> Truth:
        """Scans without truth alone are enough where their samples are parted."""
        return "none" if self.config.ssdu else "some"

    @property
    def adds_noise(self) -> tuple[float, float]:
        """The range of sigma."""
        return self.config.sigma

    def loss(self, batch: Acquired) -> dict[str, Tensor]:
        """The terms that the batch allows."""
        c = self.config
        terms: dict[str, Tensor] = {}
        target: Tensor | None = None
        if c.supervised and batch.truth is not None:
            image = self.f(batch)
            terms["supervised"] = (image - batch.truth).abs().mean()
            if not c.on_labelled:
                return terms
            target = image.detach()
        elif c.ssdu:
            theta, aside = parted(batch, c.rho, c.kind, c.keep)
            terms["ssdu"] = unexplained(batch, self.f(theta), aside).abs().mean()
        if target is None:
            with torch.no_grad():
                target = self.f(batch)
        noisy = self.f(with_noise(batch, c.sigma))
        terms["consistency"] = c.lambda_c * (noisy - target).abs().mean()
        return terms

    def restore(self, batch: Acquired) -> Tensor:
        """Images (..., set, H, W)."""
        return self.f(batch)
