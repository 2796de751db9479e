"""Each law: moments of its samples, its variance, and rescaling."""

import pytest
import torch

from medssl.core.errors import UsageError
from medssl.core.random import stream
from medssl.physics.noise import (
    Gamma,
    Gaussian,
    Law,
    NonCentralChi,
    Poisson,
    Rician,
    law_named,
    magnitude_mean,
)

LAWS = [
    Gaussian(2.0),
    Rician(2.0),
    NonCentralChi(2.0, 4),
    NonCentralChi(2.0, 2.5),
    Poisson(0.5),
    Gamma(9.0),
]


@pytest.mark.parametrize("law", LAWS, ids=str)
@pytest.mark.parametrize("signal", [0.5, 6.0, 80.0])
def test_variance_is_that_of_the_samples(law: Law, signal: float):
    truth = torch.full((200_000,), signal)
    noisy = law.sample(truth, stream(0, f"{law}"))
    assert float(law.variance(truth[:1])) == pytest.approx(float(noisy.double().var()), rel=0.02)


@pytest.mark.parametrize("law", [Gaussian(2.0), Poisson(0.5), Gamma(9.0)], ids=str)
def test_unbiased_laws_have_the_truth_as_mean(law: Law):
    truth = torch.full((200_000,), 6.0)
    noisy = law.sample(truth, stream(0, "mean"))
    assert float(noisy.double().mean()) == pytest.approx(6.0, abs=0.02)


@pytest.mark.parametrize("n_coils", [1, 2.5, 8])
def test_magnitude_mean(n_coils: float):
    for nu in (0.0, 1.5, 24.9, 25.1):
        truth = torch.full((300_000,), nu)
        noisy = NonCentralChi(1.0, n_coils).sample(truth, stream(0, "magnitude"))
        expected = float(noisy.double().mean())
        assert float(magnitude_mean(torch.tensor([nu]).double().numpy(), n_coils)[0]) == (
            pytest.approx(expected, abs=0.01)
        )


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_rescaling_scales_the_standard_deviation(law: Law):
    truth = torch.full((4,), 1e4)
    ratio = law.rescaled(3.0).variance(truth) / law.variance(truth)
    assert torch.allclose(ratio, torch.full((4,), 9.0), rtol=1e-3)
    assert law.rescaled(3.0).name == law.name


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_samples_come_from_the_generator_alone(law: Law):
    truth = torch.full((3, 4, 5), 7.0)
    before = torch.random.get_rng_state()
    one, two = (law.sample(truth, stream(1, "again")) for _ in range(2))
    assert torch.equal(one, two)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_names():
    for word in ("gaussian", "rician", "chi", "poisson", "gamma"):
        assert law_named(word).name == word
    assert law_named("chi", n_coils=8) == NonCentralChi(1.0, 8)
    with pytest.raises(UsageError, match="rice"):
        law_named("rice")
