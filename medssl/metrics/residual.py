"""What was taken away, in numbers: a good residual is noise, of the right size, without memory."""

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

PLANES = 12
"""Pairs of planes that are looked at; a whole volume is not needed for five numbers."""


@dataclass(frozen=True)
class Residual:
    """Facts about input minus output."""

    sd: float
    """Standard deviation, image units."""
    mean_shift: float
    """Mean of output minus input, image units."""
    correlation: tuple[float, ...]
    """Of neighbouring voxels along each axis; white noise has 0."""
    changed_3_sigma: float
    """Share of voxels that moved by more than three sigma, which noise removal rarely needs."""

    def as_dict(self) -> dict[str, object]:
        """Plain values, rounded to what they mean."""
        rounded = {k: v for k, v in asdict(self).items() if k != "correlation"}
        numbers: dict[str, object] = {k: float(f"{v:.4g}") for k, v in rounded.items()}
        return numbers | {"correlation": [round(c, 3) for c in self.correlation]}


def residual(before: NDArray[np.float32], after: NDArray[np.float32], sigma: float) -> Residual:
    """Describe input minus output on evenly spaced planes.

    Args:
        before: (*spatial) input; NaN where it is not valid.
        after: (*spatial) output.
        sigma: Of the noise, image units.
    """
    sums = _Sums(before.ndim)
    for pair in _pairs(before.shape):
        sums.add(np.nan_to_num(before[pair] - after[pair]), 3 * sigma)
    return sums.residual(sigma)


def _pairs(shape: tuple[int, ...]) -> list[tuple[slice, ...]]:
    """Evenly spaced pairs of neighbouring planes; a picture as a whole."""
    if len(shape) == 2:
        return [(slice(None), slice(None))]
    starts = np.unique(np.linspace(0, max(shape[-1] - 2, 0), PLANES).astype(int))
    return [(slice(None), slice(None), slice(int(k), int(k) + 2)) for k in starts]


class _Sums:
    """Moments of pieces that come one after the other."""

    def __init__(self, n_axes: int) -> None:
        self.n = self.far = 0
        self.total = self.square = 0.0
        self.products = np.zeros(n_axes)
        self.counts = np.zeros(n_axes)

    def add(self, piece: NDArray[np.float32], limit: float) -> None:
        self.n += piece.size
        self.total += float(piece.sum(dtype=np.float64))
        self.square += float(np.square(piece).sum(dtype=np.float64))
        self.far += int(np.count_nonzero(np.abs(piece) > limit))
        for axis in range(piece.ndim):
            if piece.shape[axis] > 1:
                moved = np.moveaxis(piece, axis, 0)
                self.products[axis] += float((moved[1:] * moved[:-1]).sum(dtype=np.float64))
                self.counts[axis] += moved[1:].size

    def residual(self, sigma: float) -> Residual:
        mean = self.total / self.n
        variance = max(self.square / self.n - mean**2, 0.0)
        lags = self.products / np.maximum(self.counts, 1) - mean**2 * (self.counts > 0)
        return Residual(
            sd=float(np.sqrt(variance)),
            mean_shift=-mean,
            correlation=tuple(float(c / variance) if variance > 0 else 0.0 for c in lags),
            changed_3_sigma=self.far / self.n if sigma > 0 else 0.0,
        )
