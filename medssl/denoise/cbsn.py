r"""C-BSN: a blind-spot net for correlated noise that is used with and without its blind spot.

One dilated net works with the centre of its first kernels masked, :math:`f_M`, or not, f. The
blind one learns on images taken apart with stride s, :math:`PD_s`, where noise is no longer
correlated; the seeing one learns to give y back and to agree with the blind one on images
:math:`RS_2` of one random pixel per 2x2 cell, with sg the stopped gradient:

.. math:: L = w \big( |f(y) - y|_1 + \lambda\, |RS_2(f(y)) - \mathrm{sg} f_M(RS_2(y))|_1 \big)
              + |PD_s^{-1} f_M(PD_s(y)) - y|_1 , \quad w: 0 \to 1 .

Departs from the paper: the stride follows the measured correlation; few channels, so that one scan
suffices; slices of a volume one by one. Written from the equations.
Needs: noise whose correlation ends within a few pixels.
Reference: Jang, Park, Jang, Park, Cho. Self-supervised Image Denoising with Downsampled Invariance
Loss and Conditional Blind-Spot Network. ICCV 2023.
"""

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from medssl.core.batch import Noisy
from medssl.core.errors import UsageError
from medssl.method import Facts, Restorer
from medssl.nets import blind_spot
from medssl.nets.chain import LARGE
from medssl.nets.subsample import apart, picked, together

FADED = 0.1
"""Correlation that no longer matters; the stride is the lag at which it has fallen so far."""
LARGEST_STRIDE = 5


@dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters, under the paper's letters."""

    stride: int | None = None
    """s, pixels; the paper has 5 for photographs; null follows the measured correlation."""
    lambda_: float = 2.0
    """Weight of the downsampled invariance."""
    net: blind_spot.Config = field(default_factory=blind_spot.Config)
    """f; the paper has 128 channels and 9 modules."""

    def suited_to(self, facts: Facts) -> "Config":
        """The same with the stride settled."""
        if self.stride is not None:
            return self
        rho = max((*facts.correlation[:2], 0.0))
        return replace(self, stride=stride_for(rho))

    def build(self) -> "CBSN":
        """The method, untrained.

        Raises:
            UsageError: A stride below 1.
        """
        if self.stride is not None and self.stride < 1:
            raise UsageError(f"method.stride is {self.stride}", "give 1 or more")
        return CBSN(self)


class CBSN(Restorer):
    """A net with a blind spot that can be opened."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.stride = config.stride or 2
        self.f = config.net.build()

    def loss(self, batch: Noisy) -> dict[str, Tensor]:
        """The three terms of L on slices (B, 1, x, y), means over pixels."""
        y = batch.image / batch.level
        w, s = batch.progress, self.stride
        size = [max(s, n // s * s) if n >= s else n for n in y.shape[2:]]
        y = y[..., : size[0], : size[1]]
        s = s if min(size) >= s else 1
        seen = self._f(y, blind=False)
        chance = batch.generator
        cells = torch.rand((4, *y.shape[2:]), generator=chance, device=y.device)
        small = picked(y, cells)
        with torch.no_grad():
            target = self._f(small, blind=True)
        blind = together(self._f(apart(y, s), blind=True), s)
        return {
            "self": w * (seen - y).abs().mean(),
            "invariance": w * self.config.lambda_ * (picked(seen, cells) - target).abs().mean(),
            "blind": (blind - y).abs().mean(),
        }

    def restore(self, batch: Noisy) -> Tensor:
        """Clean images (B, 1, *spatial); the slices of a volume one by one."""
        return self._f(batch.image / batch.level, blind=False) * batch.level

    def halo(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The reach of the net."""
        return self.f.halo(shape)

    def bytes_per_voxel(self) -> int:
        """That of the net."""
        return self.f.bytes_per_voxel()

    def _f(self, y: Tensor, *, blind: bool) -> Tensor:
        """The net on stabilised images, whose values are large."""
        return self.f(LARGE * y, blind) / LARGE


def stride_for(rho: float) -> int:
    """Pixels after which noise of this correlation between neighbours has faded, 1 to 5."""
    if rho <= FADED:
        return 1
    return min(LARGEST_STRIDE, math.ceil(math.log(FADED) / math.log(min(rho, 0.99))))
