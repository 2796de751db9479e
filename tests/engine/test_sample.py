"""A few blocks stand for a scan, and what they miss is made up for."""

import numpy as np
import pytest
import torch

from medssl.core.run import Run
from medssl.denoise.collaborative import block_for
from medssl.engine import estimate
from medssl.engine.device import machine
from medssl.engine.predict import predict
from medssl.engine.restore import Request, prepare
from medssl.engine.sample import _starts
from medssl.io.memory import from_array
from medssl.nets.sliding_dct import HARD, sliding_dct


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


def test_what_one_block_misses_is_made_up_for(monkeypatch):
    """A scan that is busy at one end: the block in its middle says little of it."""
    shape = (120, 32, 32)
    generator = torch.Generator().manual_seed(0)
    busy = torch.linspace(0, 1, shape[0])[:, None, None] ** 4
    image = from_array(
        (
            20
            + 8 * busy * torch.randn(shape, generator=generator)
            + torch.randn(shape, generator=generator)
        ).numpy(),
        np.eye(4),
    )
    words = estimate.asked("gaussian", 1.0)
    request = Request.of("collaborative_fast", {}, words, None, 0)
    scale = prepare(image, request, machine("cpu"), Run("denoise")).scale
    window, step = block_for(image.shape, image.spacing, correlated=False)

    def fast(batch):
        z = batch.image[0, 0]
        return sliding_dct(z, block=window, step=step, hard=HARD)[None, None]

    monkeypatch.setattr(scale.method, "restore", fast)
    errors = []
    for looks in (1, 1000):
        monkeypatch.setattr(scale.method, "looks", lambda n=looks: n)
        errors.append(predict(scale, image, torch.device("cpu"), 0).error)
    assert errors[0] == pytest.approx(errors[1], rel=0.1)
