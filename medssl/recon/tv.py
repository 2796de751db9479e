r"""Total variation: images of few edges.

.. math:: \min_x \tfrac12 \|A x - y\|^2
          + \lambda \sum_q \sqrt{|\partial_1 x_q|^2 + |\partial_2 x_q|^2}

Departs from the paper: several coils by SENSE; the alternating direction method; lambda by samples
kept aside.
Needs: sampling whose aliasing looks like noise; coil maps.
Reference: Block, Uecker, Frahm. Undersampled Radial MRI with Multiple Coils. Iterative Image
Reconstruction Using a Total Variation Constraint. Magnetic Resonance in Medicine 2007.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from medssl.core.batch import Acquired
from medssl.method import Reconstructor
from medssl.physics.acquisition import solved
from medssl.physics.solve import tv_admm


@dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters."""

    lambda_: float | None = None
    """Weight of the edges where images are about 1; null is chosen."""
    iterations: int = 40

    def build(self) -> "TotalVariation":
        """The method."""
        return TotalVariation(self)


class TotalVariation(Reconstructor):
    """A solver without parameters to learn."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def restore(self, batch: Acquired) -> Tensor:
        """The minimum for each problem of the batch."""
        lambda_ = torch.tensor(self.config.lambda_ or 0.0)
        return solved(
            batch,
            lambda normal, b, start: tv_admm(
                normal, b, lambda_, start=start, iterations=self.config.iterations
            ),
        )
