"""Recorrupted pairs: unbiased, independent given the truth, and together the noisy image."""

import pytest
import torch

from medssl.core.random import stream
from medssl.physics.noise import Gamma, Gaussian, Poisson
from medssl.physics.recorrupt import gamma_pair, gaussian_pair, poisson_pair

CASES = [
    (Gaussian(0.1), lambda y, a, g: gaussian_pair(y, 0.1, a, g)),
    (Poisson(0.02), lambda y, a, g: poisson_pair(y, 0.02, a, g)),
    (Gamma(30.0), lambda y, a, g: gamma_pair(y, 30.0, a, g)),
]


@pytest.mark.parametrize(("law", "pair"), CASES, ids=lambda c: getattr(c, "name", ""))
@pytest.mark.parametrize("alpha", [0.2, 0.5])
def test_pairs(law, pair, alpha):
    x = torch.full((400_000,), 0.7)
    y = law.sample(x, stream(0, "noise"))
    y_1, y_2 = pair(y, alpha, stream(0, "pair"))
    assert torch.allclose((1 - alpha) * y_1 + alpha * y_2, y, atol=1e-5)
    variance = float(law.variance(x).mean())
    for image, share in ((y_1, 1 - alpha), (y_2, alpha)):
        assert image.mean() == pytest.approx(0.7, abs=0.003)
        assert image.var() == pytest.approx(variance / share, rel=0.02)
    correlation = torch.corrcoef(torch.stack([y_1, y_2]))[0, 1]
    assert abs(correlation) < 0.01
