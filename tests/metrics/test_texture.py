"""CT quality numbers against closed forms."""

import numpy as np
import pytest

from medssl.metrics import texture

SPACING = (0.7, 0.8)


def test_nps_integrates_to_the_variance():
    noise = np.random.default_rng(0).normal(0, 20, (400, 32, 32))
    found = texture.nps(noise + np.linspace(0, 50, 32) ** 2 / 20, SPACING)
    assert found.variance == pytest.approx(400, rel=0.02)


@pytest.mark.parametrize("s", [0.6, 1.0, 1.6])
def test_ttf_of_a_gaussian(s):
    sharp, blurred = texture.disk(64, 10), texture.disk(64, 10, s)
    found = texture.ttf(100 * blurred, 100 * sharp, (0.7, 0.7))
    f = found.frequency * 0.7
    expected = np.exp(-2 * (np.pi * s * f) ** 2)
    assert np.abs(found.value - expected).max() < 0.03
    half = np.sqrt(np.log(2) / 2) / (np.pi * s) / 0.7
    assert found.at(0.5) == pytest.approx(half, rel=0.03)


def test_cnr_and_bias():
    rng = np.random.default_rng(1)
    a, b = rng.normal(-100, 20, 20000), rng.normal(50, 20, 20000)
    assert texture.cnr(a, b) == pytest.approx(7.5, rel=0.02)
    change = rng.normal(2, 5, 20000)
    bias = texture.tissue_bias(change, np.arange(20000) // 100, rng)
    assert bias.low < 2 < bias.high
    assert bias.high - bias.low < 0.3


def test_texture_and_detectability():
    noise = np.random.default_rng(2).normal(0, 10, (200, 64, 64))
    assert np.abs(texture.texture(noise)).max() < 0.01
    task, whole = 20 * texture.disk(64, 5), np.ones((64, 64))
    white = texture.Nps(np.full((64, 64), 100 * SPACING[0] * SPACING[1]), SPACING)
    found = texture.detectability(task, whole, white)
    assert found == pytest.approx(np.sqrt((task**2).sum()) / 10, rel=1e-6)
