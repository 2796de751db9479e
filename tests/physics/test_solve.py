"""Solvers: they solve, start where they are told, and know their limits."""

import numpy as np
import pytest
import pywt
import torch

from medssl.core.batch import Acquired
from medssl.core.random import stream
from medssl.physics.acquisition import data_error, model, solved
from medssl.physics.coils import Sense
from medssl.physics.fourier import to_image
from medssl.physics.sampling import poisson_disc
from medssl.physics.solve import cg, fista_l1, power_iteration, tv_admm


def scene(coils, shape=(64, 64), acceleration=3.0, sigma=0.0):
    kspace, image, maps = coils(shape, sigma=sigma)
    sampling = torch.from_numpy(poisson_disc(shape, acceleration, (16, 16)))[None].float()
    return Acquired(kspace[None] * sampling, sampling[None], maps[None, None]), image


def test_conjugate_gradients_solve_and_accept_a_guess(coils):
    batch, _ = scene(coils)
    operator = model(batch)
    b = operator.adjoint(batch.kspace)

    def system(x):
        return operator.normal(x) + 0.1 * x

    x = cg(system, b, iterations=60)
    assert torch.allclose(system(x), b, atol=1e-4)
    again = cg(system, b, start=x, iterations=2)
    assert torch.allclose(again, x, atol=1e-4)


def test_the_largest_eigenvalue_is_found(coils):
    batch, _ = scene(coils)
    value = power_iteration(
        lambda x: 4 * model(batch).normal(x), batch.coil_maps[:, :, 0], stream(0, "p")
    )
    assert 3.8 < float(value) < 4.3


def l1(batch, weight, iterations=60, start=None):
    return solved(
        batch,
        lambda normal, b, s: fista_l1(
            normal, b, torch.tensor(weight), stream(0, "s"), start=s, iterations=iterations
        ),
    )


def test_wavelets_fill_in_what_was_not_measured(coils):
    batch, image = scene(coils, acceleration=6.0, sigma=0.002)
    plain = model(batch).adjoint(batch.kspace)[0, 0]
    found = l1(batch, 0.003)[0, 0]
    assert float((found - image).abs().square().mean()) < 0.4 * float(
        (plain - image).abs().square().mean()
    )
    assert torch.equal(found, l1(batch, 0.003)[0, 0])


def test_limits_of_the_weight(coils):
    batch, _ = scene(coils)
    assert float(data_error(batch, l1(batch, 0.0, 200))) < 1e-4 * float(
        batch.kspace.abs().square().sum()
    )
    flat = l1(batch, 1e3)[0, 0]
    operator = Sense(batch.coil_maps, batch.sampling)
    assert float(flat.abs().max()) < float(operator.adjoint(batch.kspace).abs().max())


def test_a_size_without_wavelet_levels_has_no_seam(coils):
    """Padding belongs at the border: through the middle it would draw a cross on the image."""
    kspace, image, maps = coils((70, 54), sigma=0.03)
    full = Acquired(kspace[None], torch.ones(1, 1, 70, 54), maps[None, None])
    error = (l1(full, 0.02)[0, 0] - image).abs()
    middle = torch.cat([error[34:36].flatten(), error[:, 26:28].flatten()])
    assert float(middle.mean()) < 1.2 * float(error.mean())


def test_slices_together_equal_slices_alone(coils):
    one, _ = scene(coils)
    kspace = torch.cat([one.kspace, 0.5 * one.kspace.flip(-1)])
    both = Acquired(
        kspace, one.sampling.expand(2, -1, -1, -1), one.coil_maps.expand(2, -1, -1, -1, -1)
    )
    second = Acquired(kspace[1:], one.sampling, one.coil_maps)
    assert torch.allclose(l1(both, 0.01)[1], l1(second, 0.01)[0], atol=1e-5)


@pytest.mark.filterwarnings("ignore:Level value")
def test_one_step_equals_that_of_the_library(coils):
    """A single iteration without acceleration: the shrinkage of a shifted gradient step."""
    kspace, _, _ = coils((64, 64), n_coils=1)
    ones = torch.ones(1, 1, 1, 64, 64, dtype=torch.complex64)
    batch = Acquired(kspace[None], torch.ones(1, 1, 64, 64), ones)
    found = l1(batch, 0.05, iterations=1)[0, 0].numpy()
    shift = torch.randint(16, (1, 2), generator=stream(0, "s"))[0].tolist()
    image = np.roll(np.fft.ifftshift(to_image(kspace[0]).numpy().astype(complex)), shift, (0, 1))
    # The library starts its periods at another pixel; the best of its shifts is ours.
    best = np.inf
    for start in range(16):
        moved = np.roll(image, (start, start), (0, 1))
        c = pywt.wavedec2(moved, "db4", mode="periodization", level=4)
        kept = [c[0]] + [
            tuple(b * np.maximum(1 - 0.05 / np.maximum(np.abs(b), 1e-12), 0) for b in level)
            for level in c[1:]
        ]
        back = pywt.waverec2(kept, "db4", mode="periodization")
        back = np.roll(back, (-start - shift[0], -start - shift[1]), (0, 1))
        best = min(best, np.abs(np.fft.fftshift(back) - found).max())
    assert best < 1e-4


def test_total_variation_flattens_noise_and_keeps_edges(coils):
    batch, image = scene(coils, acceleration=2.0, sigma=0.02)
    plain = cg(model(batch).normal, model(batch).adjoint(batch.kspace), iterations=10)[0, 0]
    found = solved(batch, lambda normal, b, s: tv_admm(normal, b, torch.tensor(0.01), start=s))[
        0, 0
    ]
    assert float((found - image).abs().square().mean()) < 0.6 * float(
        (plain - image).abs().square().mean()
    )
