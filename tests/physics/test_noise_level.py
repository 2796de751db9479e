"""The level of the noise of phantoms; real scans are in tests/denoise/test_collaborative.py."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from medssl.core.errors import InputError
from medssl.core.random import stream
from medssl.nets.sliding_dct import sliding_dct
from medssl.physics.noise import Gamma, Gaussian, NonCentralChi, Poisson, Rician
from medssl.physics.noise_level import NoiseEstimate, estimate
from medssl.physics.phantom import head


def smooth(z: Tensor) -> Tensor:
    return sliding_dct(z, block=(4,) * z.ndim, hard=2.8)


def phantom(shape: tuple[int, ...]) -> Tensor:
    """Nested balls in air."""
    axes = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in shape], indexing="ij")
    radius = sum(a.square() for a in axes)
    image = torch.zeros(shape)
    for limit, value in ((0.9, 0.6), (0.5, 0.9), (0.1, 0.3)):
        image[radius < limit] = value
    return image


def found(image: Tensor, spacing: tuple[float, ...] | None = None, **known: str) -> NoiseEstimate:
    return estimate(image, spacing or (1.0,) * image.ndim, smooth=smooth, **known)


SHAPE = (48, 48, 40)


@pytest.mark.parametrize("sigma", [0.01, 0.05, 0.1])
def test_rician_phantom(sigma: float):
    noise = found(Rician(sigma).sample(phantom(SHAPE), stream(0, "noise")))
    assert isinstance(noise.law, Rician)
    assert noise.sigma == pytest.approx(sigma, rel=0.08)
    assert noise.sigma_error < 0.05
    assert noise.warnings == ()


def test_units_do_not_matter():
    noisy = Rician(0.05).sample(phantom(SHAPE), stream(0, "noise"))
    assert found(noisy * 3e4).sigma / 3e4 == pytest.approx(found(noisy).sigma, rel=1e-3)


@pytest.mark.parametrize("hidden", ["half", "air"])
def test_zeros_take_no_part(hidden: str):
    truth = phantom(SHAPE)
    noisy = Rician(0.05).sample(truth, stream(0, "noise"))
    whole = found(noisy)
    if hidden == "half":
        noisy[:24] = 0
    else:
        noisy[truth == 0] = 0
    part = found(noisy)
    error = math.hypot(whole.sigma_error, part.sigma_error)
    assert part.sigma == pytest.approx(whole.sigma, rel=2 * error)


def test_bad_voxels_and_masks_take_no_part():
    noisy = Rician(0.05).sample(phantom(SHAPE), stream(0, "noise"))
    whole = found(noisy).sigma
    spoilt = noisy.clone()
    spoilt[3, 3, 3], spoilt[20, 20, 20] = float("nan"), float("inf")
    assert found(spoilt).sigma == pytest.approx(whole, rel=0.01)
    valid = torch.ones(SHAPE, dtype=torch.bool)
    valid[:10] = False
    noisy[:10] = 1e5
    hidden = estimate(noisy, (1, 1, 1), smooth=smooth, valid=valid)
    assert hidden.sigma == pytest.approx(whole, rel=0.06)


@pytest.mark.parametrize("steps", [1.0, 2.0, 6.0])
def test_stored_integers(steps: float):
    noisy = Rician(0.05).sample(phantom(SHAPE), stream(0, "noise"))
    stored = (noisy / 0.05 * steps).round() * 6.4824
    assert found(stored).sigma / 6.4824 == pytest.approx(steps, rel=0.1)


def test_noise_below_one_step_is_said():
    noisy = Rician(0.05).sample(phantom(SHAPE), stream(0, "noise"))
    noise = found((noisy / 0.05 * 0.5).round())
    assert any("below one stored step" in warning for warning in noise.warnings)


@pytest.mark.parametrize(
    "image",
    [
        torch.zeros(20, 20, 20),
        torch.full((20, 20, 20), 5.0),
        torch.full((20, 20, 20), float("nan")),
        phantom(SHAPE),
        (phantom(SHAPE) > 0.5).float() * 255,
        (phantom(SHAPE) * 100).round(),
        torch.ones(1, 1, 1),
        torch.rand(3, 3, 3, generator=stream(0, "few")),
    ],
    ids=["zeros", "constant", "nan", "clean", "mask", "stored", "voxel", "few"],
)
def test_nothing_is_found_where_nothing_is(image: Tensor):
    noise = found(image)
    assert noise.sigma == 0
    assert noise.confidence == "unsure"
    assert "no noise was found" in noise.warnings[0]


def test_law_by_evidence():
    noise = torch.randn(SHAPE, generator=stream(0, "signed"))
    signed = found(phantom(SHAPE) - 0.5 + 0.05 * noise)
    assert isinstance(signed.law, Gaussian)
    assert "negative" in signed.why
    assert signed.sigma == pytest.approx(0.05, rel=0.05)
    hu = (phantom(SHAPE) * 1000 - 1000 + 20 * noise).round().clamp_min(-1024)
    assert found(hu, modality="CT").sigma == pytest.approx(20, rel=0.06)
    picture = phantom((160, 160)) + 1 + 0.05 * torch.randn(160, 160, generator=stream(0, "2D"))
    flat = found(picture, modality="PICTURE")
    assert isinstance(flat.law, Gaussian)
    assert flat.sigma == pytest.approx(0.05, rel=0.08)
    assert found(phantom((9, 9, 9)), law="rician").why == "it was given"


def test_other_laws():
    truth = phantom(SHAPE) + 0.1
    counts = found(Poisson(0.01).sample(truth, stream(0, "p")), law="poisson")
    assert isinstance(counts.law, Poisson)
    assert counts.law.gain == pytest.approx(0.01, rel=0.15)
    speckle = found(Gamma(50.0).sample(truth, stream(0, "g")), law="gamma")
    assert isinstance(speckle.law, Gamma)
    assert speckle.law.looks == pytest.approx(50, rel=0.15)
    coils = NonCentralChi(0.05, 4).sample(truth, stream(0, "c"))
    chi = estimate(coils, (1, 1, 1), law="chi", n_coils=4, smooth=smooth)
    assert chi.sigma == pytest.approx(0.05, rel=0.08)


@pytest.mark.parametrize("thick", [0, 1, 2])
def test_the_thick_axis_takes_no_part(thick: int):
    shape = tuple(10 if axis == thick else 64 for axis in range(3))
    spacing = tuple(6.0 if axis == thick else 1.0 for axis in range(3))
    noisy = Rician(0.05).sample(phantom(shape), stream(0, "noise"))
    gains = 1 + 0.5 * (torch.arange(10) % 2)
    noisy = noisy * gains.reshape([10 if axis == thick else 1 for axis in range(3)])
    noise = found(noisy, spacing, law="rician")
    assert 0.045 < noise.sigma < 0.08
    assert noise.correlation[thick] == 0


def test_correlation_is_seen_and_said():
    noise = torch.randn(SHAPE, generator=stream(0, "white"))
    along = (noise + 0.6 * noise.roll(1, 0)) / 1.36**0.5
    seen = found(phantom(SHAPE) - 0.5 + 0.05 * along)
    assert seen.correlation[0] == pytest.approx(0.6 / 1.36, abs=0.15)
    assert max(seen.correlation[1:]) < 0.15
    assert any("correlated" in warning for warning in seen.warnings)


def test_large_volumes_are_sampled():
    seen: list[int] = []

    def counting(z: Tensor) -> Tensor:
        seen.append(z.numel())
        return z

    truth = phantom((160, 160, 160))
    noisy = Rician(0.05).sample(truth, stream(0, "noise"))
    noise = estimate(noisy, (1, 1, 1), smooth=counting)
    assert sum(seen) <= 4 * 520_000
    assert noise.sigma == pytest.approx(0.05, rel=0.1)


def test_refuses_series():
    with pytest.raises(InputError, match="2 or 3 axes"):
        estimate(torch.zeros(4, 4, 4, 4), (1, 1, 1))


def g_factor(shape: tuple[int, int, int]) -> Tensor:
    """Noise that is strongest in the middle, root mean square 1."""
    x, y = (torch.linspace(-1, 1, n) for n in shape[:2])
    radius = (x[:, None, None] / 0.5).square() + (y[None, :, None] / 0.5).square()
    gain = 0.5 + 1.2 * torch.exp(-radius).expand(shape)
    return gain / gain.square().mean().sqrt()


def test_noise_that_varies_is_mapped_and_constant_noise_is_not():
    truth = head((80, 80, 48))
    gain = g_factor((80, 80, 48))
    noisy = gain * Rician(0.04).sample(truth / gain, stream(0, "map"))
    noise = found(noisy, modality="MR")
    assert noise.sigma_map is not None
    assert isinstance(noise.law, Rician)
    pair = torch.stack([noise.sigma_map.flatten(), gain.flatten()])
    assert float(torch.corrcoef(pair)[0, 1]) > 0.85
    assert float((noise.sigma_map / gain).median()) == pytest.approx(0.04, rel=0.12)
    assert found(Rician(0.04).sample(truth, stream(0, "flat")), modality="MR").sigma_map is None


PLANTED = {
    "gaussian": Gaussian(0.05),
    "rician": Rician(0.05),
    "chi": NonCentralChi(0.05, 4),
    "poisson": Poisson(0.05**2),
    "gamma": Gamma(1 / 0.05**2),
}


@pytest.mark.parametrize("modality", ["", "MR"])
@pytest.mark.parametrize("name", PLANTED)
def test_the_law_is_found_whatever_the_modality(name: str, modality: str):
    truth = head((96, 96, 64))[:, :, 20:44]
    noise = found(PLANTED[name].sample(truth, stream(1, name)), modality=modality)
    assert noise.law.name == name
    # Counts and speckle of this phantom differ in few calm cells.
    assert name == "poisson" or (noise.confidence != "unsure" and noise.confidence > 0.75)


def test_laws_that_cannot_be_told_apart_are_not_guessed():
    bright = 0.6 + 0.3 * phantom(SHAPE)
    noise = found(Rician(0.01).sample(bright, stream(0, "bright")), modality="MR")
    assert noise.confidence == "unsure"
    assert isinstance(noise.law, Rician)
    assert noise.sigma == pytest.approx(0.01, rel=0.06)
    assert "gaussian" in noise.warnings[0]


@pytest.mark.parametrize("n_coils", [1.0, 4.0, 12.0])
def test_coils_are_counted_in_the_air(n_coils: float):
    truth = head((72, 72, 48))[:, :, 12:36]
    noise = found(NonCentralChi(0.05, n_coils).sample(truth, stream(0, "coils")), law="chi")
    assert isinstance(noise.law, NonCentralChi)
    assert noise.law.n_coils == pytest.approx(n_coils, rel=0.3)
    assert noise.sigma == pytest.approx(0.05, rel=0.06)


def test_counts_are_known_by_their_lattice():
    truth = 0.2 + 0.8 * phantom((96, 96))
    noise = found(Poisson(0.01).sample(truth, stream(0, "counts")), modality="PICTURE")
    assert isinstance(noise.law, Poisson)
    assert noise.law.gain == pytest.approx(0.01, rel=0.05)


@pytest.mark.data
@pytest.mark.parametrize(
    ("folder", "law"),
    [("g25", Gaussian(25 / 255)), ("poisson_0.01", Poisson(0.01)), ("gamma_100", Gamma(100.0))],
    ids=["g25", "poisson", "gamma"],
)
@pytest.mark.parametrize("picture", ["01", "07", "12"])
def test_pictures_with_noise_of_others(folder: str, law, picture: str, data_folder: Path):
    path = data_folder / "natural" / "Set12_noisy" / folder / f"{picture}.npy"
    if not path.is_file():
        pytest.skip(f"{path.name} is not there")
    noisy = torch.from_numpy(np.load(path).astype(np.float32)).squeeze()
    noise = estimate(noisy, (1, 1), smooth=lambda z: sliding_dct(z, block=(8, 8), hard=2.8))
    one = torch.ones(1)
    assert noise.law.name == law.name
    assert float((noise.law.variance(one) / law.variance(one)).sqrt()) == pytest.approx(1, abs=0.1)
