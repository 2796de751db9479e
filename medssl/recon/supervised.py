r"""Supervised: a net learns from fully sampled scans what undersampling hides.

.. math:: L = \overline{| f(y + M n) - x |}

with x the image of the fully sampled scan, y what is left of its k-space under a pattern M, f the
base net, the mean over pixels, and n = 0, or complex normal noise with
:math:`\sigma \sim U(\sigma_{min}, \sigma_{max})` where the net shall learn noise by augmentation.

Departs from the paper: the base net is any of `nets`; the noise.
Needs: fully sampled scans of the same kind; noise and acceleration as in the training.
Reference: Hammernik et al. Learning a Variational Network for Reconstruction of Accelerated MRI
Data. Magnetic Resonance in Medicine 2018.
"""

from dataclasses import dataclass, field

from torch import Tensor, nn

from medssl.core.batch import Acquired
from medssl.core.errors import UsageError
from medssl.method import Reconstructor, Truth
from medssl.nets import unrolled
from medssl.physics.acquisition import with_noise


@dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters."""

    sigma: tuple[float, float] = (0.0, 0.0)
    """Least and largest noise that is added, where images are about 1; 0 and 0 adds none."""
    net: unrolled.Config = field(default_factory=unrolled.Config)
    """The base net f."""

    def build(self) -> "Supervised":
        """The method, untrained.

        Raises:
            UsageError: The range of the noise is none.
        """
        if not 0 <= self.sigma[0] <= self.sigma[1]:
            raise UsageError(f"sigma is {self.sigma}", "give the least and the largest, 0 or more")
        return Supervised(self, self.net.build())


class Supervised(Reconstructor):
    """A base net f that learns from pairs."""

    def __init__(self, config: Config, f: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.f = f

    @property
    def learns_from(self) -> Truth:
        """Every scan must have a truth."""
        return "full"

    @property
    def adds_noise(self) -> tuple[float, float]:
        """The range of sigma."""
        return self.config.sigma

    def loss(self, batch: Acquired) -> dict[str, Tensor]:
        """The one term."""
        assert batch.truth is not None
        seen = with_noise(batch, self.config.sigma) if self.config.sigma[1] > 0 else batch
        return {"supervised": (self.f(seen) - batch.truth).abs().mean()}

    def restore(self, batch: Acquired) -> Tensor:
        """Images (..., set, H, W)."""
        return self.f(batch)
