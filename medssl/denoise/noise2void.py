r"""Noise2Void: a voxel is predicted from its neighbours, which share its signal but not its noise.

A few voxels m of the noisy image y are replaced by random neighbours, :math:`\tilde y`, and a net f
learns to give them back,

.. math:: L = \frac{1}{|m|} \sum_{i \in m} \big( f(\tilde y)_i - y_i \big)^2 .

"combine" learns a variance v beside the mean :math:`\mu`, :math:`L = \tfrac{1}{|m|} \sum_{i \in m}
(\mu_i - y_i)^2 / (v_i + 1) + \ln(v_i + 1)`, and brings the voxel itself back by Bayes' rule for
unit noise, :math:`\hat x = (\mu + y v) / (1 + v)`, where :math:`\mu` and v never saw it.

Departs from the paper: stabilised images; masked voxels may form lines along the axes on which
noise is correlated, so that neighbours do not betray its noise.
Needs: noise that is independent from voxel to voxel, or correlated along few axes over few voxels.
Reference: Krull, Buchholz, Jug. Noise2Void: Learning Denoising from Single Noisy Images. CVPR 2019.
Broaddus, Krull, Weigert, Schmidt, Myers. Removing Structured Noise with Self-Supervised Blind-Spot
Networks. ISBI 2020. Laine, Karras, Lehtinen, Aila. High-Quality Self-Supervised Deep Image
Denoising. NeurIPS 2019.
"""

import itertools
import math
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d, max_pool3d

from medssl.core.batch import Noisy
from medssl.core.errors import UsageError
from medssl.core.random import stream
from medssl.method import Facts, Restorer
from medssl.nets import chain
from medssl.nets.borders import neighbour_mean
from medssl.nets.slices import as_batch, as_volume, on_axes

CORRELATED = 0.1
"""Lag-1 correlation from which an axis is masked along."""
STRIDE = 4
"""Distance of the voxels that are masked at once when "combine" restores."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters."""

    share: float = 0.015
    """Of the voxels that are masked in a step."""
    window: int = 5
    """Side of the window that replacements come from, voxels."""
    reach: tuple[int, ...] | None = None
    """Voxels on either side, per axis, that are masked with each; null takes 2 along the axes on
    which noise is correlated and 0 elsewhere."""
    combine: bool = False
    """Bring the voxel itself back by Bayes' rule; several passes of the net."""
    net: chain.Config = field(default_factory=lambda: chain.Config(zero_last=True, detail=True))
    """Predicts what f adds to the mean of the neighbours."""
    n_axes: Literal[2, 3] | None = None
    """2 looks at slices, 3 at volumes; null follows the scan."""

    def suited_to(self, facts: Facts) -> "Config":
        """The same with the axes and the mask settled."""
        n_axes = self.n_axes or facts.net_axes
        reach = self.reach
        if reach is None:
            rho = (*facts.correlation, 0.0, 0.0, 0.0)[:n_axes]
            reach = tuple(2 if r > CORRELATED else 0 for r in rho)
        return replace(self, n_axes=n_axes, reach=reach)

    def build(self) -> "Noise2Void":
        """The method, untrained.

        Raises:
            UsageError: Numbers out of range.
        """
        if not 0 < self.share <= 0.25:
            raise UsageError(f"method.share is {self.share:g}", "give a share up to 0.25")
        if self.window < 3 or self.window % 2 == 0:
            raise UsageError(f"method.window is {self.window}", "give an odd number from 3")
        n_axes = self.n_axes or 2
        if self.reach is not None and len(self.reach) != n_axes:
            raise UsageError(
                f"method.reach is {list(self.reach)} for {n_axes} axes", "one number per axis"
            )
        return Noise2Void(self)


class Noise2Void(Restorer):
    """A net f that is blind where it learns."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.n_axes: Literal[2, 3] = config.n_axes or 2
        self.crop_axes = self.n_axes
        self.reach = config.reach or (0,) * self.n_axes
        self.net = config.net.build(self.n_axes, 1, 2 if config.combine else 1)

    def loss(self, batch: Noisy) -> dict[str, Tensor]:
        """L over the masked voxels, in units of the local noise."""
        y = batch.image / batch.level
        chance = torch.rand(y.shape, generator=batch.generator, device=y.device)
        centres = chance < max(self.config.share, 1 / y[0].numel())
        centres.view(-1)[chance.argmin()] = True
        masked = self._lines(centres)
        out = self._f(self._replaced(y, masked, batch.generator))
        error = (out[:, :1] - y).square()[centres]
        if not self.config.combine:
            return {"blind": error.mean()}
        spread = _variance(out)[centres] + 1
        return {"blind": (error / spread).mean(), "spread": spread.log().mean()}

    @torch.no_grad()
    def restore(self, batch: Noisy) -> Tensor:
        """Clean images (B, 1, *spatial)."""
        y = batch.image / batch.level
        if not self.config.combine:
            return on_axes(self.n_axes, self._f, y) * batch.level
        if y.ndim == 5 and self.n_axes == 2:
            return as_volume(self._combined(as_batch(y)), y.shape[-1]) * batch.level
        return self._combined(y) * batch.level

    def halo(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The reach of the net; with "combine" that of the replacements too, on the masks' grid."""
        own = self.net.halo(shape)
        if not self.config.combine:
            return own
        reach = self.config.window // 2
        return tuple(-(-(n + reach) // 8) * 8 if n else 0 for n in own)

    def bytes_per_voxel(self) -> int:
        """That of the net, and the masked copies."""
        return self.net.bytes_per_voxel() + 32

    def _f(self, y: Tensor) -> Tensor:
        """The mean, and with "combine" what stands for the variance, as a second channel."""
        out = self.net(y)
        return torch.cat([out[:, :1] + neighbour_mean(y), out[:, 1:]], 1)

    def _lines(self, centres: Tensor) -> Tensor:
        """Masked voxels: the centres and what lies on either side of them."""
        pool = max_pool2d if centres.ndim == 4 else max_pool3d
        side = [2 * r + 1 for r in self.reach]
        return pool(centres.float(), side, 1, list(self.reach)) > 0.5

    def _replaced(self, y: Tensor, masked: Tensor, generator: torch.Generator | None) -> Tensor:
        """y with another voxel of the window in the place of each masked one."""
        half = self.config.window // 2
        offsets = [
            o
            for o in itertools.product(range(-half, half + 1), repeat=self.n_axes)
            if any(abs(d) > r or (d and not r) for d, r in zip(o, self.reach, strict=True))
        ]
        moves = torch.tensor(offsets, device=y.device)
        picks = torch.randint(len(offsets), y.shape, generator=generator, device=y.device)
        places = list(masked.nonzero().unbind(1))
        chosen = moves[picks[masked]]
        for axis in range(self.n_axes):
            n = y.shape[axis + 2]
            there = places[axis + 2] + chosen[:, axis]
            there = torch.where(
                (there < 0) | (there >= n), places[axis + 2] - chosen[:, axis], there
            )
            places[axis + 2] = there.clamp(0, n - 1)
        result = y.clone()
        result[masked] = y[tuple(places)]
        return result

    def _combined(self, y: Tensor) -> Tensor:
        """Mean and variance that never saw the voxel, and the voxel."""
        result = torch.empty_like(y)
        strides = [max(STRIDE, 2 * r + 2) for r in self.reach]
        for corner in itertools.product(*(range(s) for s in strides)):
            centres = torch.ones_like(y, dtype=torch.bool)
            for axis, (start, stride) in enumerate(zip(corner, strides, strict=True), 2):
                places = torch.arange(y.shape[axis], device=y.device) % stride == start
                centres &= places.reshape(-1, *(1 for _ in range(y.ndim - axis - 1)))
            if not bool(centres.any()):
                continue
            rows = [
                self._replaced(one, mask, stream(0, f"void/{corner}", y.device))
                for one, mask in zip(y.split(1), self._lines(centres).split(1), strict=True)
            ]
            out = self._f(torch.cat(rows))
            v = _variance(out)
            blend = (out[:, :1] + y * v) / (1 + v)
            result[centres] = blend[centres]
        return result


def _variance(out: Tensor) -> Tensor:
    """v of the second channel, positive."""
    return (out[:, 1:] - math.log(2)).clamp(-10, 10).exp()
