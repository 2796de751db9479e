import math

import pytest
import torch

from medssl.core.random import stream
from medssl.physics.radon import Radon, fbp, view_angles


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small tensors: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("shape", [(37, 41), (16, 16), (1, 9)])
def test_adjoint(shape):
    generator = stream(0, "radon")
    radon = Radon(shape, view_angles(15))
    x = torch.randn(3, *shape, dtype=torch.float64, generator=generator)
    y = torch.randn(3, 15, radon.n_bins, dtype=torch.float64, generator=generator)
    left, right = (radon.forward(x) * y).sum(), (x * radon.adjoint(y)).sum()
    assert abs(left - right) < 1e-10 * x.norm() * y.norm()


def test_a_view_holds_all_the_mass_even_in_the_corners():
    image = torch.zeros(32, 20)
    image[:4, :4] = image[-4:, -4:] = 1
    views = Radon((32, 20), view_angles(12)).forward(image)
    assert torch.allclose(views.sum(-1), torch.tensor(32.0), rtol=0.02)


def test_a_disk_gives_its_chords():
    x = torch.arange(128) - 63.5
    disk = torch.sigmoid(4 * (40 - (x[:, None] ** 2 + x**2).sqrt()))
    radon = Radon((128, 128), view_angles(9))
    t = torch.arange(radon.n_bins) - (radon.n_bins - 1) / 2
    chord = 2 * (1600 - t**2).clamp_min(0).sqrt()
    inside = t.abs() < 36
    assert (radon.forward(disk) - chord)[:, inside].abs().max() < 0.6


@pytest.mark.parametrize("shape", [(96, 96), (96, 71)])
@pytest.mark.parametrize("kernel", ["ramp", "hann"])
def test_fbp_inverts(shape, kernel):
    x = (torch.arange(shape[0]) - shape[0] / 2 + 8)[:, None] / 14
    y = (torch.arange(shape[1]) - shape[1] / 2) / 11
    image = torch.exp(-(x**2 + y**2) / 2)
    angles = view_angles(180)
    back = fbp(Radon(shape, angles).forward(image), angles, shape, kernel=kernel)
    assert (back - image).abs().max() < 0.02


def test_orientation_is_x_then_y():
    image = torch.zeros(33, 33)
    image[24, 16] = 1
    first, middle = Radon((33, 33), torch.tensor([0.0, math.pi / 2])).forward(image)
    centre = (len(first) - 1) // 2
    assert int(first.argmax()) - centre == 8
    assert abs(int(middle.argmax()) - centre) <= 1
