"""What the paper claims: a net that was trained with consistency is calm when a scan is noisy."""

import numpy as np
import pytest

from medssl import api
from medssl.core.geometry import Geometry
from medssl.core.kspace import KSpace
from medssl.data.simulate import phantom, simulate_multicoil
from medssl.physics.sampling import poisson_disc

SIDE = 64
STEPS = 120


def scan(k, sigma):
    """An undersampled scan that no training saw, and its picture."""
    made = simulate_multicoil(phantom((2 * SIDE, 2 * SIDE), k), k, shape=(SIDE, SIDE))
    pattern = poisson_disc((SIDE, SIDE), 3.0, (16, 16), k)
    bright = float(np.quantile(made.image.abs().numpy(), 0.95))
    data = made.measured(sigma * bright, k).data * pattern
    return KSpace(data, Geometry((SIDE, SIDE), np.eye(4)), pattern), made.image.abs().numpy()


@pytest.mark.paper
def test_consistency_keeps_noise_out_at_no_price_without_noise(tmp_path):
    settings = {"raw.simulated": 16, "raw.size": SIDE, "raw.acceleration": [2.5, 3.5]}
    (tmp_path / "empty").mkdir()
    gains = {}
    for name in ("supervised", "noise2recon"):
        run = tmp_path / name
        words = {"steps": STEPS, "settings": settings, "threads": 1}
        api.train(tmp_path / "empty", run, f"recon/{name}", **words)
        for sigma in (0.005, 0.08):
            errors = []
            for k in range(900, 904):
                kspace, truth = scan(k, sigma)
                image = api.recon(kspace, weights=run, threads=1).image.data[0]
                inside = truth > 0.05
                errors.append(np.square(image - truth)[inside].mean())
            gains[name, sigma] = -10 * np.log10(np.mean(errors))
    assert gains["noise2recon", 0.08] > gains["supervised", 0.08] + 1.5
    assert gains["noise2recon", 0.005] > gains["supervised", 0.005] - 0.3
