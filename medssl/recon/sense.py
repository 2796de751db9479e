r"""SENSE: the image that explains the coils best, kept small where they say little.

.. math:: \min_x \|A x - y\|^2 + \lambda \|x\|^2 , \qquad (A^H A + \lambda) x = A^H y .

Departs from the paper: Cartesian patterns of any kind; lambda by samples kept aside.
Needs: coil maps.
Reference: Pruessmann, Weiger, Boernert, Boesiger. Advances in Sensitivity Encoding with Arbitrary
k-Space Trajectories. Magnetic Resonance in Medicine 2001.
"""

from dataclasses import dataclass

from torch import Tensor

from medssl.core.batch import Acquired
from medssl.method import Reconstructor
from medssl.physics.acquisition import solved
from medssl.physics.solve import cg


@dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters."""

    lambda_: float | None = None
    """Weight of the size of the image; null is chosen."""
    iterations: int = 30
    """Of conjugate gradients, at most."""

    def build(self) -> "CgSense":
        """The method."""
        return CgSense(self)


class CgSense(Reconstructor):
    """A solver without parameters to learn."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def restore(self, batch: Acquired) -> Tensor:
        """The minimum for each problem of the batch."""
        weight = self.config.lambda_ or 0.0
        return solved(
            batch,
            lambda normal, b, start: cg(
                lambda x: normal(x) + weight * x, b, start, self.config.iterations
            ),
        )
