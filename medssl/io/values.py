"""Between stored numbers and image units, one plane at a time so that no volume is doubled."""

import numpy as np
from numpy.typing import NDArray


def decode(stored: NDArray[np.generic], slope: float, intercept: float) -> NDArray[np.float32]:
    """Image units of stored numbers, float32; exact for integers below 2^24 without scaling."""
    if slope == 1.0 and intercept == 0.0:
        return stored.astype(np.float32)
    return (stored.astype(np.float64) * slope + intercept).astype(np.float32)


def encode(
    values: NDArray[np.float32],
    base: NDArray[np.generic],
    slope: float,
    intercept: float,
    limits: tuple[float, float],
    keep: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.generic], int]:
    """Stored numbers of image units, and how many had to be clipped.

    Integers are rounded half to even and clipped to `limits` before the cast. Where `values`
    equal the decoded `base`, or `keep` is True, the stored bits of `base` come back untouched.

    Args:
        values: Image units.
        base: The stored numbers that the source had there; gives shape and dtype.
        slope: Image units per stored unit.
        intercept: Image value of the stored zero.
        limits: Smallest and largest stored number allowed.
        keep: Where the source's own number must come back.
    """
    untouched = values == decode(base, slope, intercept)
    if keep is not None:
        untouched |= keep
    real = (values.astype(np.float64) - intercept) / slope
    clipped = 0
    if np.issubdtype(base.dtype, np.integer):
        rounded = np.rint(np.where(untouched, 0.0, real))
        low, high = limits
        inside = np.clip(rounded, low, _largest_below(high, base.dtype))
        clipped = int(np.count_nonzero((inside != rounded) & ~untouched))
        real = inside
    fresh = np.where(untouched, 0, real).astype(base.dtype)
    return np.where(untouched, base, fresh), clipped


def _largest_below(high: float, dtype: np.dtype[np.generic]) -> float:
    """The largest float64 that casts to `dtype`: 2^63 - 1 itself has no float64."""
    top = np.iinfo(dtype).max  # type: ignore[type-var]
    return float(np.nextafter(float(top), 0)) if high >= float(top) > top else high
