"""The audit tells removed noise from removed anatomy."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from medssl import api
from medssl.core.run import Run
from medssl.engine import estimate, infer
from medssl.engine.audit import audit
from medssl.engine.device import machine
from medssl.engine.restore import Request, prepare
from medssl.io.memory import from_array
from medssl.physics.noise import Rician
from medssl.physics.phantom import head

AFFINE = np.eye(4)


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    return 100 * head((40, 40, 24)).numpy()


def ready(noisy: np.ndarray, **words):
    request = Request.of(
        "collaborative_fast", {}, estimate.asked(words.get("noise", "rician"), 5.0), None, 0
    )
    return prepare(from_array(noisy, AFFINE), request, machine("cpu"), Run("denoise"))


def looked(truth, removed_to, seed):
    noisy = Rician(5.0).sample(torch.from_numpy(truth), torch.Generator().manual_seed(seed)).numpy()
    made = ready(noisy)
    return audit(made.scale, made.image, removed_to[None].astype(np.float32), 1.0, seed)


def test_pure_noise_gives_any_p(truth):
    found = [looked(truth, truth, seed).p for seed in range(12)]
    assert min(found) > 0.01
    assert max(found) > 0.5
    assert np.mean(found) == pytest.approx(0.5, abs=0.3)


def test_anatomy_in_the_residual_is_seen(truth):
    smooth = truth.copy()
    for axis in range(3):
        smooth = (np.roll(smooth, 1, axis) + smooth + np.roll(smooth, -1, axis)) / 3
    found = looked(truth, smooth, 0)
    assert found.p == pytest.approx(0.01)
    assert any("it may hold anatomy" in w for w in found.warnings)


def test_a_run_holds_the_audit(truth):
    noisy = Rician(5.0).sample(torch.from_numpy(truth), torch.Generator().manual_seed(0))
    done = api.denoise(noisy, quality="fast")
    record = done.qc["audit"]
    assert record == json.loads(json.dumps(record))
    assert record["p"] > 0.01
    assert max(record["variance_by_intensity"]) < 1.25
    half = api.denoise(noisy, quality="fast", strength=0.5).qc["audit"]
    assert half["edge_correlation"] == pytest.approx(record["edge_correlation"], abs=0.05)


@pytest.mark.parametrize("shape", [(64, 64), (64, 64, 1), (48, 48, 5)])
def test_ct_of_any_depth(shape):
    rng = np.random.default_rng(0)
    body = np.hypot(*(np.indices(shape)[k] / shape[k] - 0.5 for k in (0, 1))) < 0.4
    noisy = (np.where(body, 40.0, -1000.0) + rng.normal(0, 30, shape)).astype(np.float32)
    request = Request.of("collaborative_fast", {}, estimate.asked("auto", "auto"), None, 0)
    made = prepare(from_array(noisy, AFFINE), request, machine("cpu"), Run("denoise"))
    data, _ = infer.infer(made.scale, made.image, made.plan)
    found = audit(made.scale, made.image, data, 1.0, 0)
    assert found is not None
    assert 0 < found.p <= 1
    few = dataclasses.replace(made.image, valid=np.zeros(made.image.data.shape, bool))
    assert audit(made.scale, few, data, 1.0, 0) is None
