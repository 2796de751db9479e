r"""The noise of a series by random matrix theory: what volumes share is signal, the rest is not.

In a window of m voxels over N volumes, means over the voxels removed, the eigenvalues
:math:`l_1 \le l_2 \le \dots` of :math:`X^T X` that carry only noise of variance
:math:`\sigma^2` fill a band of known width (Marchenko, Pastur). With r = min(N, m - 1), q = max(N,
m - 1) and p = r - c components of signal, the c smallest are noise for the largest c with

.. math:: l_c - l_1 \le 4 \sqrt{c \, (q - p)} \; \sigma^2, \qquad
          \sigma^2 = \frac{l_1 + \dots + l_c}{c \, (q - p)} .

Reference: Veraart, Fieremans, Novikov. Diffusion MRI Noise Mapping Using Random Matrix Theory.
MRM 2016. Cordero-Grande, Christiaens, Hutter, Price, Hajnal. Complex Diffusion-Weighted Image
Estimation via Matrix Recovery under General Noise Models. NeuroImage 2019 (the degrees of freedom
q - p that are left beside the signal).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d, interpolate, pad

from medssl.physics.noise import Gaussian, NonCentralChi, Rician
from medssl.physics.stabilise import Stabiliser

AT_ONCE = 2_000_000
"""Numbers of windows that are held at once."""
ROUNDS = 5
"""Most rounds of stabilising with the map and correcting it."""
SETTLED = 0.01
"""Median relative change at which the rounds end."""
FEWEST = 4
"""Measured voxels from which a window is looked at."""
THICK = 5.0
"""Ratio of spacings from which windows stay in the plane."""
LEAST = 0.1
"""Share of the usual correction below which none goes; windows without noise stay above 0."""
SIGNAL = 2.0
"""Signal to noise ratio above which a window of magnitudes is tissue and not air."""
MAD = 0.674490
"""Median of |n| of a standard normal n."""
UNEVEN = 0.05
"""Relative spread of the windows, beyond their sampling error, from which noise is said to vary:
stabilised magnitudes alone spread by up to 0.04."""


def window_for(
    n_voxels: int, shape: Sequence[int], spacing: Sequence[float], *, planar: bool = False
) -> tuple[int, ...]:
    """The smallest odd cube, cut to the grid, with at least so many voxels.

    Args:
        n_voxels: Wanted, as a rule one for each volume.
        shape: Voxels along two or three axes.
        spacing: Voxel distances along them, mm.
        planar: Slices must not be mixed.
    """
    most = list(shape)
    if len(shape) == 3:
        thick = max(range(3), key=lambda axis: (spacing[axis], axis))
        if planar:
            most[2] = 1
        elif spacing[thick] > THICK * min(spacing):
            most[thick] = 1
    side = 3
    while math.prod(min(side, n) for n in most) < n_voxels and side < max(most):
        side += 2
    return tuple(min(side, n) for n in most)


def is_signal(eigenvalues: Tensor, n_voxels: Tensor, n_volumes: int) -> tuple[Tensor, Tensor]:
    """Which components carry signal, and the variance of the noise in the others.

    Args:
        eigenvalues: (windows, R) ascending, of X^T X or of X X^T, means over voxels removed.
        n_voxels: (windows,) measured voxels m, at least 2.
        n_volumes: N.

    Returns:
        (windows, R) bool, and (windows,) variance.
    """
    freedom = n_voxels.to(eigenvalues) - 1
    r, q = freedom.clamp_max(n_volumes), freedom.clamp_min(n_volumes)
    number = torch.arange(1, eigenvalues.shape[1] + 1, device=eigenvalues.device)
    c = number - (eigenvalues.shape[1] - r)[:, None]  # counts without those that must be zero
    left = c.clamp_min(1) * (q[:, None] - (r[:, None] - c.clamp_min(1)))
    real = c > 0
    lowest = torch.where(real, eigenvalues, torch.inf).amin(1, keepdim=True)
    variance = torch.where(real, eigenvalues, 0).cumsum(1) / left
    noise = real & (eigenvalues - lowest <= 4 * left.sqrt() * variance)
    last = (noise * number).amax(1, keepdim=True)
    return number > last, variance.gather(1, last - 1)[:, 0]


@dataclass(frozen=True)
class Windows:
    """All windows of a grid at a certain step, and at the far ends."""

    corners: Tensor
    """(windows,) where each begins, counted over the flattened grid."""
    offsets: Tensor
    """(voxels,) of a window, from its corner."""
    lattice: tuple[int, ...]
    """Windows along each axis."""

    @classmethod
    def of(
        cls,
        shape: Sequence[int],
        window: Sequence[int],
        step: Sequence[int],
        device: torch.device | None = None,
    ) -> Self:
        """Windows that cover a grid of this shape."""
        starts = []
        for n, w, s in zip(shape, window, step, strict=True):
            regular = list(range(0, n - w + 1, s))
            starts.append(regular if regular[-1] == n - w else [*regular, n - w])
        corners = _places(starts, shape)
        offsets = _places([range(w) for w in window], shape)
        lattice = tuple(len(s) for s in starts)
        return cls(corners.to(device), offsets.to(device), lattice)

    def chunks(self, n_volumes: int) -> Iterator[tuple[slice, Tensor]]:
        """(windows, voxels) places in the flattened grid, a bounded number at once."""
        count = max(1, AT_ONCE // (len(self.offsets) * n_volumes))
        for start in range(0, len(self.corners), count):
            part = slice(start, start + count)
            yield part, self.corners[part, None] + self.offsets


def centred(values: Tensor, measured: Tensor) -> tuple[Tensor, Tensor]:
    """Windows (windows, voxels, N) without their means over measured voxels, and these means.

    Voxels that are not `measured` (windows, voxels) become 0, so that they add nothing.
    """
    known = measured[..., None]
    mean = torch.where(known, values, 0).sum(1, keepdim=True) / known.sum(
        1, keepdim=True
    ).clamp_min(1)
    return torch.where(known, values - mean, 0), mean


def gram(x: Tensor) -> Tensor:
    """The smaller of X^T X and X X^T for (windows, voxels, N)."""
    return x.mT @ x if x.shape[2] <= x.shape[1] else x @ x.mT


def sigma_map(
    series: Tensor, law: Gaussian | Rician | NonCentralChi, window: Sequence[int]
) -> tuple[Tensor | None, float] | None:
    """Standard deviation of the noise of a series at every voxel, and its median.

    The map corrects itself until noise, stabilised with it, has unit variance. Voxels that are 0
    in all volumes, or not finite in one, take no part.

    Args:
        series: (N, *spatial) image units, two or three spatial axes, any strides.
        law: What to stabilise for; its level is not used.
        window: Voxels per axis.

    Returns:
        (*spatial) in image units, None where windows differ by no more than chance and the
        stabilisation explain; and the median over windows. None where there is no noise.
    """
    shape = tuple(series.shape[1:])
    windows = Windows.of(shape, window, window, series.device)
    used = measured(series).flatten()
    stabiliser = Stabiliser(replace(law, sigma=1.0))
    level = torch.ones(len(windows.corners), device=series.device)
    for turn in range(ROUNDS):
        found, signal = torch.zeros_like(level), torch.zeros_like(level)
        for part, places in windows.chunks(len(series)):
            known = used[places]
            enough = known.sum(1) >= max(FEWEST, len(windows.offsets) // 2)
            at: tuple[Tensor, ...] = torch.unravel_index(places[enough], shape)
            values = torch.stack([volume[at] for volume in series], -1)
            if turn > 0:
                values = stabiliser.forward(values / level[part][enough, None, None])
            x, mean = centred(values, known[enough])
            eigenvalues = torch.linalg.eigvalsh(gram(x)).clamp_min(0)
            _, variance = is_signal(eigenvalues, known[enough].sum(1), len(series))
            found[part] = found[part].masked_scatter(enough, variance.sqrt())
            signal[part] = signal[part].masked_scatter(enough, mean.mean((1, 2)))
        good = found > 0
        if turn > 0 and not isinstance(law, Gaussian):  # air says little about a magnitude's noise
            tissue = good & (stabiliser.inverse(signal) > SIGNAL)
            good = tissue if bool(tissue.any()) else good
        if not bool(good.any()):
            return None
        level *= torch.where(good, found.clamp_min(LEAST * found[good].median()), 1)
        if turn > 0 and float((found[good] - 1).abs().median()) < SETTLED:
            break
    middle = float(level[good].median())
    spread = float((level[good] / middle - 1).abs().median()) / MAD
    chance = 1 / math.sqrt(2 * len(windows.offsets) * len(series))
    if spread < math.hypot(UNEVEN, chance):
        return None, middle
    known = good.reshape(windows.lattice)
    return _at_every_voxel(level.reshape(windows.lattice), known, shape), middle


def measured(series: Tensor) -> Tensor:
    """(*spatial) where (N, *spatial) is finite in all volumes and not 0 in all."""
    some = torch.zeros(series.shape[1:], dtype=torch.bool, device=series.device)
    finite = torch.ones_like(some)
    for volume in series:
        some |= volume != 0
        finite &= volume.isfinite()
    return some & finite


def _at_every_voxel(lattice: Tensor, known: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Values of windows, smoothed in log over neighbours that are known, on the voxels' grid."""
    full = (1, 1, *lattice.shape, *[1] * (3 - lattice.ndim))
    value, weight = lattice.log().reshape(full), known.to(lattice).reshape(full)
    box = tuple(3 if n > 1 else 1 for n in full[2:])
    border = [b // 2 for b in reversed(box) for _ in range(2)]

    def averaged(x: Tensor) -> Tensor:
        return avg_pool3d(pad(x, border), box, 1)

    for turn in range(max(full)):  # what is far from anything known takes the nearest that is known
        near = averaged(weight)
        mean = averaged(value * weight) / near.clamp_min(1e-9)
        value = torch.where(weight > 0, value, mean) if turn > 0 else mean
        weight = (near > 0).to(lattice)
        if bool(weight.all()):
            break
    fine = interpolate(value, (*shape, *[1] * (3 - len(shape))), mode="trilinear")
    return fine.reshape(shape).exp()


def _places(along: Sequence[Sequence[int]], shape: Sequence[int]) -> Tensor:
    """Flattened index of every combination of positions along the axes; the last runs fastest."""
    total = torch.zeros(1, dtype=torch.long)
    for places, n in zip(along, shape, strict=True):
        total = (total[:, None] * n + torch.tensor(list(places))).flatten()
    return total
