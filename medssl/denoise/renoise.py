r"""Renoise: a net learns to undo the scan's own noise, put once more on an estimate of it.

From an estimate :math:`x_0` of the noisy image y and its local noise :math:`\sigma`, the removed
noise :math:`z = (y - x_0)/\sigma` of one place is put on another, with a turned sign or mirrored,

.. math:: L = \big\| f(x_0 + \sigma\, T z) - x_0 \big\|_1, \qquad
          \hat x = \tfrac12 \big(f(y) + x_0\big) ,

so that the net sees the noise as it is, whatever its spectrum, and what the estimate looks like.
Departs from the idea's usual form: z moves between crops of one batch; there are no rotations,
since streaks have directions; the estimate is the sliding cosine filter's where none is handed in.
Needs: the local standard deviation of the noise (and its spectrum, for the estimate).
Reference: Pang, Zheng, Quan, Ji. Recorrupted-to-Recorrupted: Unsupervised Deep Learning for Image
Denoising. CVPR 2021 (noise put on again).
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import l1_loss

from medssl.core.batch import Noisy
from medssl.method import Domain, Restorer
from medssl.nets import chain
from medssl.nets.slices import on_axes
from medssl.nets.sliding_dct import HARD, sliding_dct

GAIN = 5.0
"""Of the net's input; its output counts a fifth of it, so that first steps are small."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters."""

    net: chain.Config = field(
        default_factory=lambda: chain.Config(depth=5, width=24, slope=0.0, zero_last=True)
    )
    """What is added to the noisy image."""
    side: int = 8
    """Of the windows of the filter that makes the estimate, pixels."""

    def build(self) -> "Renoise":
        """The method, untrained; it starts as the identity."""
        return Renoise(self, self.net.build(2))


class Renoise(Restorer):
    """A residual net f for slices; volumes are restored slice by slice."""

    domain: Domain = "unit"

    def __init__(self, config: Config, net: chain.Chain) -> None:
        super().__init__()
        self.config = config
        self.net = net

    def first(self, batch: Noisy) -> Tensor:
        """The estimate x_0 (B, C, *spatial)."""
        if batch.estimate is not None:
            return batch.estimate
        y, spectrum = batch.image, batch.spectrum
        thick = (1,) * (y.ndim - 4)
        block = (self.config.side, self.config.side, *thick)
        sigma = None if batch.sigma is None else batch.sigma.expand(y.shape)
        estimate = torch.empty_like(y)
        for b in range(y.shape[0]):
            for c in range(y.shape[1]):
                estimate[b, c] = sliding_dct(
                    y[b, c],
                    block=block,
                    step=(2, 2, *thick),
                    hard=HARD,
                    sigma=None if sigma is None else sigma[b, c],
                    coefficient_sigma=None if spectrum is None else spectrum.dct_sigma(block).to(y),
                    modulation=None if spectrum is None else spectrum.modulation(block),
                )
        return estimate

    def loss(self, batch: Noisy) -> dict[str, Tensor]:
        """L on crops (B, 1, x, y)."""
        y, x0 = batch.image, self.first(batch)
        sigma = torch.ones(()).to(y) if batch.sigma is None else batch.sigma
        z = (y - x0) / sigma
        generator = batch.generator
        device = y.device if generator is None else generator.device
        turn = torch.randint(0, 2, (3,), generator=generator, device=device).tolist()
        z = z.roll(1, 0) * (1 - 2 * turn[0])
        z = z.flip([axis for axis, t in ((2, turn[1]), (3, turn[2])) if t])
        return {"renoised": l1_loss(self._net(x0 + sigma * z), x0)}

    def restore(self, batch: Noisy) -> Tensor:
        """Clean images (B, 1, *spatial): the mean of net and estimate."""
        y, x0 = batch.image, self.first(batch)
        return (on_axes(2, self._net, y) + x0) / 2

    def halo(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Reach of net or estimate; nothing across slices."""
        reach = max(self.config.net.depth, 2 * (self.config.side - 1))
        return (reach, reach, *(0 for _ in shape[2:]))

    def bytes_per_voxel(self) -> int:
        """Two layers of the net."""
        return 8 * self.net.width + 24

    def _net(self, y: Tensor) -> Tensor:
        return y + self.net(GAIN * y) / GAIN**2
