"""Stabilised noise has unit variance, and the inverse is unbiased."""

import pytest
import torch

from medssl.core.random import stream
from medssl.physics.noise import Gamma, Gaussian, Law, NonCentralChi, Poisson, Rician
from medssl.physics.stabilise import Stabiliser

DRAWS = 100_000


def drawn(law: Law, signal: float) -> torch.Tensor:
    return law.sample(torch.full((DRAWS,), signal), stream(0, "draws"))


@pytest.mark.parametrize("n_coils", [1, 2.5, 4, 8])
def test_magnitudes(n_coils: float):
    law = NonCentralChi(3.0, n_coils)
    stabiliser = Stabiliser(law)
    for nu in (0, 0.5, 1, 2, 3, 5, 19.9, 20.1, 40):
        z = stabiliser.forward(drawn(law, 3.0 * nu))
        assert 0.98 < float(z.std()) < 1.045
        variance = stabiliser.residual_variance(torch.tensor([3.0 * nu]))
        assert float(variance) == pytest.approx(float(z.var()), rel=0.03)
        if nu >= 1:
            back = stabiliser.inverse(z.double().mean().float()[None])
            assert float(back) == pytest.approx(3.0 * nu, abs=0.04)


def test_rician_is_one_coil():
    y = torch.linspace(0, 300, 500)
    rician, chi = Stabiliser(Rician(2.0)), Stabiliser(NonCentralChi(2.0, 1))
    assert torch.equal(rician.forward(y), chi.forward(y))
    assert torch.equal(rician.inverse(y), chi.inverse(y))


def test_round_trip_at_high_signal_removes_the_bias_of_the_magnitude():
    stabiliser = Stabiliser(Rician(1.0))
    y = torch.linspace(12, 5000, 3000)
    expected = y - 1 / (2 * y)
    assert (stabiliser.inverse(stabiliser.forward(y)) - expected).abs().max() < 2e-3


def test_magnitudes_rise_and_do_not_jump():
    stabiliser = Stabiliser(Rician(1.0))
    y = torch.linspace(0, 60, 60_001)
    z = stabiliser.forward(y)
    assert z[0] == 0
    assert (z.diff() > 0).all()
    assert (z.diff()[29_000 - 5 : 29_000 + 5] - 1e-3).abs().max() < 2e-5
    assert (stabiliser.inverse(z).diff() >= -1e-5).all()


@pytest.mark.parametrize("counts", [0.2, 1, 4, 12, 29, 31, 200])
def test_counts(counts: float):
    law = Poisson(0.25)
    stabiliser = Stabiliser(law)
    z = stabiliser.forward(drawn(law, 0.25 * counts))
    variance = float(stabiliser.residual_variance(torch.tensor([0.25 * counts])))
    assert variance == pytest.approx(float(z.var()), rel=0.03)
    back = float(stabiliser.inverse(z.double().mean().float()[None]))
    assert back == pytest.approx(0.25 * counts, rel=0.01, abs=0.002)


@pytest.mark.parametrize("looks", [1.0, 4.0, 50.0])
def test_speckle(looks: float):
    law = Gamma(looks)
    stabiliser = Stabiliser(law)
    for signal in (0.5, 300.0):
        z = stabiliser.forward(drawn(law, signal))
        assert float(z.std()) == pytest.approx(1.0, abs=0.01)
        back = float(stabiliser.inverse(z.double().mean().float()[None]))
        assert back == pytest.approx(signal, rel=0.01)


def test_gaussian_keeps_signs():
    stabiliser = Stabiliser(Gaussian(5.0))
    y = torch.tensor([-10.0, 0.0, 20.0])
    assert torch.allclose(stabiliser.forward(y), y / 5)
    assert torch.allclose(stabiliser.inverse(stabiliser.forward(y)), y)


@pytest.mark.parametrize("law", [Gaussian(0.0), Rician(float("nan")), Poisson(-1.0)], ids=str)
def test_refuses_no_noise(law: Law):
    with pytest.raises(ValueError, match="not positive"):
        Stabiliser(law)


def test_shape_and_type_are_kept():
    y = torch.rand(2, 3, 4, 5, generator=stream(0, "shape")) * 9
    for law in (Gaussian(1.0), Rician(1.0), NonCentralChi(1.0, 4), Poisson(1.0), Gamma(4.0)):
        stabiliser = Stabiliser(law)
        for x in (stabiliser.forward(y), stabiliser.inverse(y), stabiliser.residual_variance(y)):
            assert x.shape == y.shape
            assert x.dtype == torch.float32
