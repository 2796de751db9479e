r"""SURE: a net that corrects a filter, trained on the error that can be estimated without truth.

A net corrects the sliding cosine filter A of the stabilised image z,
:math:`f(z) = A(z) + \mathrm{net}(z, A(z), z - A(z))`. Its expected squared error, less a constant,
is estimated with a probe b of random signs that is new in every step,

.. math:: L = \langle (f(z) - z)^2 \rangle
              + 2 \left\langle b\, \frac{f(z + \epsilon b) - f(z)}{\epsilon} \right\rangle .

Departs from the literature: probes that stay are learnt by heart, so they do not stay; a held-back
probe decides which weights are kept, the first ones (the filter itself) included.
Needs: noise that is independent from voxel to voxel, and its level.
Reference: Soltanayev, Chun. Training Deep Learning Based Denoisers without Ground Truth Data.
NeurIPS 2018. Ramani, Blu, Unser. Monte-Carlo SURE. IEEE TIP 2008.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from medssl.core.batch import Noisy
from medssl.method import THIN, Facts, Restorer
from medssl.nets import chain
from medssl.nets.chain import LARGE
from medssl.nets.slices import as_batch, as_volume
from medssl.nets.sliding_dct import sliding_dct
from medssl.physics.sure import EPSILON, signs

BLOCK = {2: 8, 3: 4}
"""Side of the windows of A by the number of axes."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters."""

    hard: float = 2.8
    """Threshold of A in standard deviations."""
    net: chain.Config = field(default_factory=lambda: chain.Config(depth=4, zero_last=True))
    """The correction."""
    n_axes: Literal[2, 3] | None = None
    """2 looks at slices, 3 at volumes; null follows the scan."""

    def suited_to(self, facts: Facts) -> "Config":
        """The same with the axes settled."""
        return self if self.n_axes is not None else replace(self, n_axes=facts.net_axes)

    def build(self) -> "Sure":
        """The method, untrained: the filter A."""
        return Sure(self)


class Sure(Restorer):
    """A filter and its correction."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.n_axes: Literal[2, 3] = config.n_axes or 2
        self.crop_axes = self.n_axes
        self.net = config.net.build(self.n_axes, 3)

    def loss(self, batch: Noisy) -> dict[str, Tensor]:
        """The two terms of L, means over voxels, in units of the local noise."""
        z, generator = batch.image / batch.level, batch.generator
        b = signs(z, generator or torch.Generator(z.device))
        f = self._f(z)
        change = (self._f(z + EPSILON * b) - f) / EPSILON
        return {"residual": (f - z).square().mean(), "divergence": 2 * (b * change).mean()}

    def restore(self, batch: Noisy) -> Tensor:
        """Clean images (B, 1, *spatial)."""
        z = batch.image / batch.level
        if z.ndim == 5 and self.n_axes == 2:
            return as_volume(self._f(as_batch(z)), z.shape[-1]) * batch.level
        return self._f(z) * batch.level

    def halo(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """That of the net, and the two passes of A."""
        reach = 2 * (BLOCK[self.n_axes] - 1)
        own = self.net.halo(shape)
        return tuple(n + reach if n else 0 for n in own)

    def bytes_per_voxel(self) -> int:
        """That of the net, and the arrays of A."""
        return self.net.bytes_per_voxel() + 32

    def _f(self, z: Tensor) -> Tensor:
        """A and its correction."""
        a = torch.stack([self._a(image[0])[None] for image in z])
        return a + self.net(torch.cat([LARGE * z, LARGE * a, z - a], 1))

    def _a(self, z: Tensor) -> Tensor:
        """The filter on (*spatial); windows are flat along a thin axis."""
        block = tuple(BLOCK[z.ndim] if n >= THIN else 1 for n in z.shape)
        return sliding_dct(z, block=block, hard=self.config.hard)
