"""What a training sees of one of its scans."""

import dataclasses

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from medssl import config
from medssl.core.batch import Noisy
from medssl.engine import estimate, infer
from medssl.engine.build import restorer
from medssl.engine.noisy_scan import HeldScan
from medssl.io.memory import from_array
from medssl.physics.phantom import head


def held(noise, name="renoise"):
    truth = (1000 * head((96, 96, 4)) - 500).numpy()
    image = dataclasses.replace(from_array(truth + noise, np.eye(4)), modality="CT")
    method, _ = restorer(config.load("denoise", name))
    found = estimate.estimate(image, estimate.Asked())
    return HeldScan(image, infer.scaling(method, image, found)), truth


def test_the_first_estimate_knows_the_spectrum_of_its_scan():
    """A batch of many scans has no spectrum of its own, so each crop brings what it starts from."""
    rng = np.random.default_rng(0)
    noise = gaussian_filter(rng.normal(0, 1, (96, 96, 4)), (1, 1, 0))
    scan, truth = held((30 * noise / noise.std()).astype(np.float32))
    assert scan.scale.noise.spectrum is not None
    part = (slice(16, 80), slice(16, 80), slice(1, 2))
    crop = scan.crop(0, part)
    blind = scan.scale.method.first(
        Noisy(crop.image[None, None], crop.sigma.expand(crop.image.shape)[None, None])
    )[0, 0]
    errors = [
        float((scan.scale.outward(x) - torch.from_numpy(truth[part])).square().mean())
        for x in (crop.image, blind, crop.estimate)
    ]
    assert errors[2] < 0.8 * errors[1] < errors[0]


def test_most_methods_start_from_nothing():
    rng = np.random.default_rng(0)
    scan, _ = held(rng.normal(0, 30, (96, 96, 4)).astype(np.float32), "noise2void")
    assert scan.crop(0, (slice(0, 8), slice(0, 8), slice(0, 1))).estimate is None
