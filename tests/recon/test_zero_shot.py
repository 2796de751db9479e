"""A net that begins as compressed sensing of what it may see, and of nothing else."""

import dataclasses

import pytest
import torch

from medssl import config
from medssl.core.batch import Acquired
from medssl.core.errors import UsageError
from medssl.core.random import stream
from medssl.engine.build import reconstructor
from medssl.physics.sampling import poisson_disc
from medssl.recon import l1_wavelet, zero_shot

SHAPE = (40, 48)
WEIGHT = {"lambda_": 0.01, "iterations": 20}


def built(**values):
    """From the recipe, so that its first weights do not come from the global generator."""
    changes = {f"method.{k}": v for k, v in (WEIGHT | values).items()}
    return reconstructor(config.load("recon", "zero-shot", changes))[0]


@pytest.fixture
def scan(coils):
    kspace, _, maps = coils(SHAPE, n_coils=4, sigma=0.01)
    sampling = torch.from_numpy(poisson_disc(SHAPE, 3, (14, 14)))[None, None].float()
    aside = sampling * (torch.rand(sampling.shape, generator=stream(0, "aside")) < 0.1)
    return Acquired(
        kspace[None] * sampling,
        sampling - aside,
        maps[None, None],
        sigma=0.01,
        aside=aside,
        generator=stream(0, "chance"),
    )


def test_it_begins_as_compressed_sensing(scan):
    method = built()
    plain = l1_wavelet.Config(**WEIGHT).build()
    seen = dataclasses.replace(scan, kspace=scan.kspace * scan.sampling, aside=None)
    with torch.no_grad():
        assert torch.equal(method.restore(scan), plain.restore(seen))


def test_what_is_kept_aside_does_not_leak(scan):
    method = built()
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=stream(0, "weights")))
        poisoned = dataclasses.replace(
            scan, kspace=torch.where(scan.aside > 0, torch.nan + 0j, scan.kspace)
        )
        assert torch.isnan(torch.view_as_real(poisoned.kspace)).any()
        assert torch.equal(method.first(poisoned), method.first(scan))
        assert torch.equal(method.restore(poisoned), method.restore(scan))


def test_the_answer_is_what_was_kept_aside(scan):
    """No other sample is asked about: its error does not count."""
    method = built(lambda_c=0.0)
    start = method.first(scan)
    other = dataclasses.replace(scan, start=start, kspace=scan.kspace + 5 * scan.sampling)
    same = dataclasses.replace(scan, start=start)
    with torch.no_grad():
        assert torch.equal(method.loss(other)["aside"], method.loss(same)["aside"])


def test_numbers_that_are_none_are_refused():
    with pytest.raises(UsageError, match="rho is 0"):
        zero_shot.Config(rho=0.0).build()
    with pytest.raises(UsageError, match="partings is 0"):
        zero_shot.Config(partings=0).build()
