"""The smallest box around what is True."""

import numpy as np
from numpy.typing import NDArray


def box(inside: NDArray[np.bool_]) -> tuple[slice, ...] | None:
    """Along each axis from the first to the last element that is True; None where none is."""
    found = []
    for axis in range(inside.ndim):
        others = tuple(k for k in range(inside.ndim) if k != axis)
        reached = np.flatnonzero(inside.any(others))
        if not reached.size:
            return None
        found.append(slice(int(reached[0]), int(reached[-1]) + 1))
    return tuple(found)
