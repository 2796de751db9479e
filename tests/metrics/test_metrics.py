"""Numbers about images equal their definitions."""

import numpy as np
import pytest
import torch

from medssl.metrics.image import psnr
from medssl.metrics.residual import residual


def test_psnr():
    a = torch.zeros(10, 10)
    assert psnr(a + 0.1, a, peak=1) == pytest.approx(20)
    where = torch.zeros(10, 10, dtype=torch.bool)
    where[0, 0] = True
    b = a.clone()
    b[0, 0] = 1
    assert psnr(b, a, peak=1, where=where) == pytest.approx(0)


@pytest.mark.parametrize("shape", [(60, 50), (60, 50, 24)])
def test_residual_of_known_noise(shape):
    rng = np.random.default_rng(0)
    clean = rng.normal(100, 30, shape)
    noise = rng.normal(2, 5, shape)
    noise = (noise + np.roll(noise, 1, 0)) / np.sqrt(2)
    found = residual((clean + noise).astype(np.float32), clean.astype(np.float32), sigma=5)
    assert found.sd == pytest.approx(noise.std(), rel=0.05)
    assert found.mean_shift == pytest.approx(-noise.mean(), rel=0.1)
    assert found.correlation[0] == pytest.approx(0.5, abs=0.05)
    assert abs(found.correlation[1]) < 0.05
    assert 0 < found.changed_3_sigma < 0.02


def test_nothing_removed():
    flat = np.ones((8, 8, 3), np.float32)
    found = residual(flat, flat, sigma=0)
    assert found.as_dict()["sd"] == 0
    assert found.correlation == (0, 0, 0)
