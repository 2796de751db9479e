import pytest
import torch

from medssl.core.errors import InputError
from medssl.core.random import stream
from medssl.physics.low_dose import simulate_low_dose
from medssl.physics.phantom import abdomen

SPACING = (3.0, 3.0, 3.0)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small tensors: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def simulate(photons, *, kernel="hann", electronic_variance=0.0, shape=(128, 128, 2)):
    return simulate_low_dose(
        abdomen(shape, SPACING),
        SPACING,
        photons=photons,
        electronic_variance=electronic_variance,
        kernel=kernel,
        generator=stream(0, "dose"),
        n_angles=120,
    )


def test_tissue_keeps_its_value():
    hu = abdomen((128, 128), SPACING)
    clean, _ = simulate(1e6)
    flat = torch.nn.functional.avg_pool2d((hu[None] - 55).abs(), 5, 1, 2)[0] < 1
    assert flat.sum() > 50
    assert abs((clean[..., 0] - hu)[flat].mean()) < 5


def test_noise_falls_with_the_root_of_the_dose():
    sd = []
    for photons in (1e6, 4e6):
        clean, noisy = simulate(photons)
        sd.append((noisy - clean)[clean > -200].std())
    assert sd[0] / sd[1] == pytest.approx(2, rel=0.06)


def test_kernels_and_electronic_noise():
    def sd(clean, noisy):
        return float((noisy - clean)[clean > -200].std())

    assert sd(*simulate(1e5, kernel="ramp")) > 1.8 * sd(*simulate(1e5))
    assert sd(*simulate(2e3, electronic_variance=400.0)) > 1.05 * sd(*simulate(2e3))


def test_repeats_and_keeps_its_limits():
    a, b = simulate(1e3), simulate(1e3)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert a[1].min() >= -1024
    assert a[1].max() <= 3071
    assert simulate(1e3, shape=(48, 40))[1].shape == (48, 40)


def test_refusals():
    hu = torch.zeros(8, 8)
    with pytest.raises(InputError, match="1 x 2 mm"):
        simulate_low_dose(hu, (1.0, 2.0), photons=1e5, generator=stream(0, ""))
    with pytest.raises(InputError, match="0 photons"):
        simulate_low_dose(hu, (1.0, 1.0), photons=0, generator=stream(0, ""))
