"""The sliding collaborative filter: its windows, its symmetries, and what it gains."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.fft import dctn
from torch import Tensor

from medssl.core.batch import Noisy
from medssl.core.random import stream
from medssl.denoise.collaborative import Config, block_for, stack_for
from medssl.physics.noise import Rician
from medssl.physics.noise_level import estimate
from medssl.physics.stabilise import Stabiliser
from medssl.physics.sure import signs, sure

FILTER = Config().build()
STACKS = Config(grouping=True).build()
BANK = Config(grouping=True, bank=True).build()


def smooth(z: Tensor) -> Tensor:
    return FILTER.restore(Noisy(z[None, None]))[0, 0]


def disks(shape: tuple[int, ...]) -> Tensor:
    axes = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in shape], indexing="ij")
    radius = sum(a.square() for a in axes)
    return (radius < 0.8) * 0.5 + (radius < 0.3) * 0.5


@pytest.mark.parametrize(
    ("shape", "spacing", "correlated", "block", "step"),
    [
        ((64, 64), (1, 1), False, (8, 8), (1, 1)),
        ((64, 64), (1, 1), True, (8, 8), (1, 1)),
        ((64, 64, 40), (1, 1, 1), False, (4, 4, 4), (1, 1, 1)),
        ((64, 64, 40), (1, 1, 3), False, (4, 4, 2), (1, 1, 1)),
        ((40, 64, 64), (3, 1, 1), False, (2, 4, 4), (1, 1, 1)),
        ((64, 40, 64), (1, 6, 1), False, (8, 1, 8), (1, 1, 1)),
        ((3, 64, 64), (1, 1, 1), False, (1, 8, 8), (1, 1, 1)),
        ((64, 64, 1), (1, 1, 1), True, (8, 8, 1), (1, 1, 1)),
        ((512, 512, 90), (0.7, 0.7, 3), True, (8, 8, 4), (2, 2, 1)),
        ((90, 512, 512), (3, 0.7, 0.7), True, (4, 8, 8), (1, 2, 2)),
        ((512, 512, 90), (0.7, 0.7, 5), True, (8, 8, 1), (1, 1, 1)),
        ((512, 512, 90), (1, 1, 1), True, (8, 8, 4), (2, 2, 1)),
    ],
)
def test_windows_follow_the_scan(shape, spacing, correlated, block, step):
    assert block_for(shape, spacing, correlated) == (block, step)


@pytest.mark.parametrize(
    ("shape", "spacing", "block", "search"),
    [
        ((64, 64), (1, 1), (8, 8), (19, 19)),
        ((64, 64, 40), (1, 1, 1), (4, 4, 4), (4, 4, 4)),
        ((40, 64, 64), (3, 1, 1), (2, 4, 4), (1, 5, 5)),
        ((64, 40, 64), (1, 6, 1), (8, 1, 8), (19, 0, 19)),
        ((3, 64, 64), (1, 1, 1), (1, 8, 8), (0, 19, 19)),
    ],
)
def test_stacks_follow_the_scan(shape, spacing, block, search):
    found, _, reach = stack_for(shape, spacing)
    assert (found, reach) == (block, search)


def test_stacks_gain_on_windows_and_the_bank_on_stacks():
    truth = 20 * disks((32, 32, 24))
    noisy = truth + torch.randn(truth.shape, generator=stream(0, "noise"))
    errors = [
        float((f.restore(Noisy(noisy[None, None]))[0, 0] - truth).square().mean())
        for f in (FILTER, STACKS, BANK)
    ]
    assert errors[1] < 0.85 * errors[0]
    assert errors[2] < errors[1] + 1e-3


@pytest.mark.parametrize("method", [STACKS, BANK])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1), (2, 3, 5), (7, 1), (1, 30, 31)])
def test_stacks_of_any_shape(method, shape):
    image = torch.randn(shape, generator=stream(0, "shape"))
    assert method.restore(Noisy(image[None, None]))[0, 0].isfinite().all()


def test_a_settled_bank_keeps_its_weights():
    noisy = (10 * disks((24, 24, 16)) + torch.randn(24, 24, 16, generator=stream(0, "n")))[None]
    bank = Config(grouping=True, bank=True).build()
    seen = Noisy(noisy[None], generator=stream(0, "settle"))
    bank.settle([seen], lambda x: (torch.ones_like(x), torch.ones_like(x)))
    weights = bank.weights.clone()
    whole = bank.restore(seen)
    assert torch.equal(bank.weights, weights)
    assert weights.sum() == pytest.approx(1)
    assert torch.equal(whole, bank.restore(seen))


def test_stacks_scale_with_a_noise_map():
    noisy = (10 * disks((16, 16, 16)) + torch.randn(16, 16, 16, generator=stream(0, "n")))[None]
    sigma = torch.full((1, 1, 16, 16, 16), 3.0)
    for method in (STACKS, BANK):
        plain = method.restore(Noisy(noisy[None]))
        assert torch.allclose(method.restore(Noisy(3 * noisy[None], sigma)) / 3, plain, atol=1e-3)


def test_stacks_use_the_spectrum_of_correlated_noise():
    truth = disks((64, 64)) * 10
    noisy = (truth + blurred_noise(64, "image"))[None, None]
    white, coloured = (STACKS.restore(Noisy(noisy, spectrum=s)) for s in (None, Blurred()))
    errors = [float((x - truth).square().mean()) for x in (white, coloured)]
    assert errors[1] < 0.8 * errors[0]


def test_side_and_step_leave_the_thick_axis_alone():
    assert block_for((64, 64), (1, 1), True, 6) == ((6, 6), (1, 1))
    assert block_for((64, 64, 40), (1, 1, 3), True, 12) == ((12, 12, 4), (2, 2, 1))
    fast = Config(step=2)
    assert fast.settled((64, 64, 40), (1, 1, 2), True).step == (2, 2, 2)
    assert fast.settled((64, 64, 40), (1, 1, 9), True).step == (2, 2, 1)


def test_batch_equals_one_by_one():
    images = torch.randn(2, 3, 9, 10, 11, generator=stream(0, "batch"))
    sigma = 0.5 + torch.rand(2, 1, 9, 10, 11, generator=stream(0, "sigma"))
    together = FILTER.restore(Noisy(images, sigma))
    assert together.shape == images.shape
    for b in range(2):
        for c in range(3):
            alone = FILTER.restore(Noisy(images[b : b + 1, c : c + 1], sigma[b : b + 1]))
            assert torch.equal(together[b, c], alone[0, 0])


def test_scale_moves_through_sigma():
    image = 3 * disks((20, 20)) + torch.randn(20, 20, generator=stream(0, "scale"))
    many = FILTER.restore(Noisy(30 * image[None, None], torch.tensor(30.0)))
    assert torch.allclose(many[0, 0] / 30, smooth(image), atol=1e-5)


def blurred_noise(n: int, name: str) -> Tensor:
    """(n, n) noise of variance 1, each value shared by neighbours."""
    white = torch.randn(n, n, generator=stream(0, name))
    white = (white + white.roll(1, 0)) / 2**0.5
    return (white + white.roll(1, 1)) / 2**0.5


class Blurred:
    """The spectrum of that noise, from a sample."""

    def dct_sigma(self, block: tuple[int, ...]) -> Tensor:
        (b, c), noise = block, blurred_noise(256, "spectrum").numpy()
        blocks = noise.reshape(256 // b, b, 256 // c, c)
        coefficients = dctn(blocks, axes=(1, 3), norm="ortho")
        return torch.from_numpy((coefficients**2).mean((0, 2)) ** 0.5)

    def modulation(self, block: tuple[int, ...]) -> None:
        del block


def test_a_spectrum_removes_correlated_noise():
    truth = disks((64, 64)) * 10
    noisy = (truth + blurred_noise(64, "image"))[None, None]
    white, coloured = (FILTER.restore(Noisy(noisy, spectrum=s)) for s in (None, Blurred()))
    errors = [float((x - truth).square().mean()) for x in (white, coloured)]
    assert errors[1] < 0.8 * errors[0]


def test_halo_covers_the_windows():
    assert FILTER.halo((40, 40)) == (14, 14)
    assert Config(block=(4, 4, 2)).build().halo((40, 40, 40)) == (6, 6, 2)
    image = 3 * torch.randn(40, 12, 12, generator=stream(0, "halo"))
    cut = Config(block=(4, 4, 4)).build()
    whole = cut.restore(Noisy(image[None, None]))[0, 0]
    slab = cut.restore(Noisy(image[None, None, 10:]))[0, 0]
    assert torch.allclose(slab[6:], whole[16:], atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1), (2, 3, 5), (7, 1), (1, 30, 31)])
def test_any_shape(shape):
    assert smooth(torch.randn(shape, generator=stream(0, "shape"))).isfinite().all()


@pytest.mark.parametrize("shape", [(64, 64), (32, 32, 24)])
@pytest.mark.parametrize("sigma", [0.01, 0.05, 0.15])
def test_a_phantom_improves_by_its_own_level(shape, sigma):
    truth = disks(shape)
    noisy = Rician(sigma).sample(truth, stream(0, "noise"))
    level = estimate(noisy, (1.0,) * len(shape), law="rician", smooth=smooth)
    stabiliser = Stabiliser(level.law)
    clean = stabiliser.inverse(smooth(stabiliser.forward(noisy)))
    assert (clean - truth).square().mean() < 0.4 * (noisy - truth).square().mean()


def test_sure_predicts_the_error():
    truth = 20 * disks((32, 32, 24))
    noisy = truth + torch.randn(truth.shape, generator=stream(0, "noise"))
    probe = signs(noisy, stream(0, "probe"))
    predicted, error = sure(smooth, noisy, torch.ones(()), probe)
    actual = float((smooth(noisy) - truth).square().mean())
    assert predicted == pytest.approx(actual, abs=4 * error)
    assert error < 0.05


def test_sure_is_exact_for_a_linear_filter():
    noisy = torch.randn(24, 24, 24, generator=stream(0, "linear")) + 3
    probe = signs(noisy, stream(0, "probe"))

    def half(z: Tensor) -> Tensor:
        return z / 2

    value, _ = sure(half, noisy, torch.ones(()), probe)
    expected = float((0.25 * noisy.double().square()).mean()) - 1 + 2 * 0.5
    assert value == pytest.approx(expected, abs=1e-4)
    weight = torch.zeros(24, 24, 24)
    with pytest.raises(ValueError, match="sum to 0"):
        sure(half, noisy, torch.ones(()), probe, lambda _: weight)
    weight[:12] = 1
    part, _ = sure(half, noisy, torch.ones(()), probe, lambda _: weight)
    assert part == pytest.approx(float((0.25 * noisy[:12].double().square()).mean()), abs=1e-4)


# The protocol of the specification denoise-noise2score.md, section 4.1.
CROPS = {
    "T1": ("chris_t1.nii.gz", np.s_[16:96, 90:170, 95:119]),
    "Gd": ("MR_Gd.nii.gz", np.s_[48:128, 60:140, 60:84]),
    "body": ("example_mr_sm.nii.gz", np.s_[:]),
}


def scan(folder: Path, name: str) -> np.ndarray:
    nib = pytest.importorskip("nibabel")
    file, crop = CROPS[name]
    values = np.clip(nib.load(folder / "mr" / file).get_fdata()[crop], 0, None)
    return np.minimum(values / np.percentile(values, 99.9), 1)


def with_noise(x: np.ndarray, sigma: float) -> Tensor:
    rng = np.random.default_rng(0)
    real = x + sigma * rng.standard_normal(x.shape)
    return torch.from_numpy(np.hypot(real, sigma * rng.standard_normal(x.shape)).astype("f4"))


def psnr(image: Tensor, x: np.ndarray) -> float:
    seen = x > 0.1
    return float(-10 * np.log10(((image.numpy() - x)[seen] ** 2).mean()))


def denoised(noisy: Tensor, sigma: float) -> Tensor:
    stabiliser = Stabiliser(Rician(sigma))
    return stabiliser.inverse(smooth(stabiliser.forward(noisy)))


@pytest.mark.data
def test_the_protocol(data_folder: Path):
    x = scan(data_folder, "T1")
    noisy = with_noise(x, 0.07)
    assert x.mean() == pytest.approx(0.65658, abs=1e-5)
    assert x[40, 40, 12] == pytest.approx(0.84967, abs=1e-5)
    assert float(noisy[0, 0, 0]) == pytest.approx(0.74877, abs=1e-5)
    assert float(noisy[40, 40, 12]) == pytest.approx(0.92964, abs=1e-5)
    assert psnr(noisy, x) == pytest.approx(23.11, abs=0.005)


@pytest.mark.data
def test_t1_at_seven_percent(data_folder: Path):
    x = scan(data_folder, "T1")
    noisy = with_noise(x, 0.07)
    assert psnr(denoised(noisy, 0.07), x) == pytest.approx(29.51, abs=0.05)
    assert psnr(denoised(noisy, estimate(noisy, (1, 1, 1), smooth=smooth).sigma), x) > 29.2


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "percent", "most"),
    [
        ("T1", 1, 1.3), ("T1", 3, 1.1), ("T1", 12, 1.1),
        ("Gd", 1, 1.2), ("Gd", 3, 1.1), ("Gd", 12, 1.1),
        ("body", 1, 1.6), ("body", 3, 1.1), ("body", 12, 1.1),
    ],
)  # fmt: skip
def test_own_level_is_as_specified_and_never_harms(name, percent, most, data_folder: Path):
    x = scan(data_folder, name)
    noisy = with_noise(x, percent / 100)
    level = estimate(noisy, (1, 1, 1), smooth=smooth, modality="MR")
    assert 0.9 <= level.sigma / (percent / 100) <= most
    assert psnr(denoised(noisy, level.sigma), x) > psnr(noisy, x)


@pytest.mark.data
def test_t1_in_stacks(data_folder: Path):
    x = scan(data_folder, "T1")
    stabiliser = Stabiliser(Rician(0.07))
    z = stabiliser.forward(with_noise(x, 0.07))[None, None]
    clean = stabiliser.inverse(STACKS.restore(Noisy(z))[0, 0])
    assert psnr(clean, x) == pytest.approx(30.38, abs=0.05)


@pytest.mark.slow
@pytest.mark.data
def test_t1_by_the_bank(data_folder: Path):
    x = scan(data_folder, "T1")
    stabiliser = Stabiliser(Rician(0.07))
    z = stabiliser.forward(with_noise(x, 0.07))
    bank = Config(grouping=True, bank=True).build()

    def trust(restored: Tensor) -> tuple[Tensor, Tensor]:
        signal = stabiliser.inverse(restored)
        return stabiliser.residual_variance(signal), (signal > 0.14).float()

    bank.settle([Noisy(z[None, None])], trust)
    clean = stabiliser.inverse(bank.restore(Noisy(z[None, None]))[0, 0])
    assert psnr(clean, x) == pytest.approx(30.74, abs=0.05)
