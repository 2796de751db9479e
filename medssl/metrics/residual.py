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
    n = before.shape[-1]
    starts = np.unique(np.linspace(0, max(n - 2, 0), PLANES).astype(int))
    if before.ndim == 2:
        pieces = [before[..., None] - after[..., None]]
    else:
        pieces = [before[..., k : k + 2] - after[..., k : k + 2] for k in starts]
    stack = np.nan_to_num(np.stack([p.astype(np.float64) for p in pieces]))
    sd = float(stack.std())
    limit = 3 * sigma
    return Residual(
        sd=sd,
        mean_shift=-float(stack.mean()),
        correlation=tuple(_lag_one(stack, axis + 1) for axis in range(before.ndim)),
        changed_3_sigma=float((np.abs(stack) > limit).mean()) if sigma > 0 else 0.0,
    )


def _lag_one(stack: NDArray[np.float64], axis: int) -> float:
    if stack.shape[axis] < 2:
        return 0.0
    centred = stack - stack.mean()
    here = np.take(centred, range(stack.shape[axis] - 1), axis)
    next_ = np.take(centred, range(1, stack.shape[axis]), axis)
    scale = float(np.sqrt((here**2).mean() * (next_**2).mean()))
    return float((here * next_).mean() / scale) if scale > 0 else 0.0
