r"""Zero-shot Noise2Noise: the diagonals of 2x2 blocks are two noisy copies of one image.

With the diagonal means :math:`g_1(y), g_2(y)` of the noisy image y and a denoiser f,

.. math:: L = \tfrac12 \sum_{i \ne j} \|f(g_i(y)) - g_j(y)\|^2
            + \tfrac\lambda2 \sum_i \|f(g_i(y)) - g_i(f(y))\|^2 .

Departs from the paper: lambda may differ from 1; in a volume the blocks lie in a plane that is
drawn anew for each step, and f looks along all three axes.
Needs: noise that is independent from voxel to voxel. Correlated noise (CT, interpolated MR) stays.
Reference: Mansour, Heckel. Zero-Shot Noise2Noise: Efficient Image Denoising without any Data.
CVPR 2023.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import mse_loss as mse

from medssl.core.batch import Noisy
from medssl.method import Facts, Restorer
from medssl.nets import chain
from medssl.nets.subsample import diagonal_pair

PLANES = ((-2, -1), (-3, -1), (-3, -2))
"""Axes of the blocks in a volume."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters, under the paper's letters."""

    lambda_: float = 1.0
    """Weight of the consistency term; the paper has 1."""
    net: chain.Config = field(default_factory=lambda: chain.Config(depth=3, last=1, detail=True))
    """Predicts the noise y - f(y); 48 channels for slices as in the paper, 24 for volumes."""
    n_axes: Literal[2, 3] | None = None
    """2 looks at slices, 3 at volumes; null follows the scan."""

    def suited_to(self, facts: Facts) -> "Config":
        """The same with the axes settled."""
        return self if self.n_axes is not None else replace(self, n_axes=facts.net_axes)

    def build(self) -> "ZeroShotN2N":
        """The method, untrained."""
        return ZeroShotN2N(self)


class ZeroShotN2N(Restorer):
    """A denoiser f that learns from the image it restores."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        n_axes: Literal[2, 3] = config.n_axes or 2
        self.crop_axes = n_axes
        self.net = config.net.build(n_axes)

    def loss(self, batch: Noisy) -> dict[str, Tensor]:
        """The two terms of L, means over voxels."""
        y = batch.image / batch.level
        plane = self._plane(batch)
        g_1, g_2 = diagonal_pair(y, plane)
        h_1, h_2 = diagonal_pair(self._f(y), plane)
        d_1, d_2 = self._f(g_1), self._f(g_2)
        return {
            "pair": (mse(d_1, g_2) + mse(d_2, g_1)) / 2,
            "consistency": self.config.lambda_ * (mse(d_1, h_1) + mse(d_2, h_2)) / 2,
        }

    def restore(self, batch: Noisy) -> Tensor:
        """Clean images, of the shape of the noisy ones."""
        return self._f(batch.image / batch.level) * batch.level

    def halo(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The reach of the net."""
        return self.net.halo(shape)

    def bytes_per_voxel(self) -> int:
        """That of the net."""
        return self.net.bytes_per_voxel()

    def _f(self, y: Tensor) -> Tensor:
        return y - self.net(y)

    def _plane(self, batch: Noisy) -> tuple[int, int]:
        """Where the blocks lie; not across an axis of one voxel."""
        shape = batch.image.shape
        planes = [p for p in PLANES if p[0] >= 2 - len(shape) and min(shape[a] for a in p) > 1]
        if len(planes) < 2:
            return planes[0] if planes else PLANES[0]
        device = batch.image.device
        pick = torch.randint(len(planes), (), generator=batch.generator, device=device)
        return planes[int(pick)]
