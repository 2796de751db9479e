"""A few blocks stand for a scan."""

import numpy as np
import pytest

from medssl.engine.sample import _starts


@pytest.mark.parametrize("n", [1, 23, 24, 25, 47, 48, 49, 100])
def test_blocks_leave_no_gap(n):
    side = min(n, 24)
    starts = _starts(n, side)
    assert len(starts) == -(-n // side)
    seen = np.zeros(n, bool)
    for first in starts:
        seen[first : first + side] = True
    assert seen.all()
    assert starts[-1] + side == n
