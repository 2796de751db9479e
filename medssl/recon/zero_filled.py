r"""Zero filling: the Fourier transform of what was measured, coil by coil.

.. math:: x_c = F^H y_c , \qquad |x| = \sqrt{\sum_c |x_c|^2} .

Needs: nothing; what was not measured is missing from the image.
Reference: Roemer et al. The NMR Phased Array. Magnetic Resonance in Medicine 1990.
"""

from dataclasses import dataclass

from torch import Tensor

from medssl.core.batch import Acquired
from medssl.method import Reconstructor
from medssl.physics.acquisition import model


@dataclass(frozen=True, kw_only=True)
class Config:
    """It has no parameters."""

    def build(self) -> "ZeroFilled":
        """The method."""
        return ZeroFilled()


class ZeroFilled(Reconstructor):
    """Every coil is an image of its own."""

    needs_maps = False

    def restore(self, batch: Acquired) -> Tensor:
        """The coil images."""
        return model(batch).adjoint(batch.kspace)
