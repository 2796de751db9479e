"""The CT report of a filter that does nothing, and of one that blurs; `--strict`."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from medssl.core.image import Image
from medssl.core.random import stream
from medssl.engine import ct_report
from medssl.io.memory import from_array
from medssl.physics.phantom import abdomen


class _Scale:
    """A filter in HU without a noise spectrum."""

    noise = SimpleNamespace(sigma_map=None, spectrum=None)
    maps = None

    def __init__(self, blur):
        def restore(noisy):
            y = noisy.image.numpy()
            return torch.from_numpy(gaussian_filter(y, (0, 0, blur, blur, 0)))

        self.method = SimpleNamespace(restore=restore)

    def inward(self, y, sigma):
        return y, sigma

    def outward(self, x):
        return x


@pytest.fixture(scope="module")
def scan() -> Image:
    hu = abdomen((192, 192, 8), (2.0, 2.0, 3.0)).float()
    hu = hu + 15 * torch.randn(hu.shape, generator=stream(0, "scan"))
    return from_array(hu.numpy(), np.diag([2.0, 2.0, 3.0, 1.0]))


def made(scan, blur, seed=0, strength=1.0):
    y = scan.data
    x = (y + strength * (gaussian_filter(y, (0, blur, blur, 0)) - y)).astype(np.float32)
    return ct_report.report(
        _Scale(blur), scan, x, strength=strength, mask=None, device=torch.device("cpu"), seed=seed
    )


def test_identity_changes_nothing(scan):
    found = made(scan, 0)
    assert found["nps"]["magnitude_ratio"] == found["nps"]["mean_frequency_ratio"] == 1
    assert set(found["ttf50_ratio"]) == {"100", "300"}
    assert all(r == pytest.approx(1, abs=1e-3) for r in found["ttf50_ratio"].values())
    assert found["bias_hu"]
    assert all(b["mean"] == 0 for b in found["bias_hu"].values())
    assert not ct_report.failures(found)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_blur_fails_and_is_reproducible(scan):
    found = made(scan, 2)
    assert found == made(scan, 2)
    assert any("edges of 100 HU" in s for s in ct_report.failures(found))
    assert any("coarser" in s for s in ct_report.failures(found))
    weaker = made(scan, 2, strength=0.3)
    assert weaker["ttf50_ratio"]["100"] > found["ttf50_ratio"]["100"]
    assert 2 <= len(ct_report.lines(found)) <= 5


def test_strict_refuses_before_writing(medssl, nifti, tmp_path, monkeypatch, scan):
    monkeypatch.setattr(ct_report, "LEAST", {"bias": -1.0, "nps": 2.0, "ttf50": 2.0})
    source = nifti(np.round(scan.data[0]).astype(np.int16))
    before = set(tmp_path.iterdir())
    words = ("denoise", source, "--method", "collaborative-fast", "--no-preview", "--strict")
    code, _, err = medssl(*words)
    assert code == 7, err
    assert set(tmp_path.iterdir()) == before
    code, _, err = medssl(*words[:-1])
    assert code == 0, err
    assert "warning: noise became coarser" in err
