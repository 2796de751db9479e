r"""Compressed sensing: images that few wavelets describe, wherever their grid is laid.

.. math:: \min_x \tfrac12 \|A x - y\|^2 + \lambda \|W T_s x\|_1

with the model A of coils and sampling and a wavelet transform W behind a shift :math:`T_s`, drawn
anew in every iteration, which removes the blocks that a fixed grid leaves.

Departs from the paper: several coils by SENSE; a random shift; lambda by samples kept aside.
Needs: sampling whose aliasing looks like noise; coil maps.
Reference: Lustig, Donoho, Pauly. Sparse MRI: The Application of Compressed Sensing for Rapid MR
Imaging. Magnetic Resonance in Medicine 2007.
"""

from dataclasses import dataclass

from torch import Tensor

from medssl.core.batch import Acquired
from medssl.method import Reconstructor
from medssl.physics.acquisition import few_wavelets


@dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters, under the paper's letters."""

    lambda_: float | None = None
    """Weight of the wavelets where images are about 1; null is chosen."""
    iterations: int = 60
    levels: int = 4
    """Of the wavelet transform."""
    seed: int = 0
    """Of the shifts."""

    def build(self) -> "L1Wavelet":
        """The method."""
        return L1Wavelet(self)


class L1Wavelet(Reconstructor):
    """A solver without parameters to learn."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def restore(self, batch: Acquired) -> Tensor:
        """The minimum for each problem of the batch."""
        c = self.config
        return few_wavelets(
            batch, c.lambda_ or 0.0, seed=c.seed, iterations=c.iterations, levels=c.levels
        )
