"""Total variation: its optimality conditions, its weights, and slabs that agree."""

import math

import pytest
import torch

from medssl.core.batch import Noisy
from medssl.core.random import stream
from medssl.denoise.total_variation import Config
from medssl.method import Facts
from medssl.physics.phantom import abdomen


def noise(*shape, name="noise"):
    return torch.randn(shape, generator=stream(0, name))


def restored(image, sigma=None, **words):
    method = Config(**words).build()
    level = None if sigma is None else sigma[None, None]
    return method.restore(Noisy(image[None, None], sigma=level))[0, 0]


def gradients(x, spacing):
    finest, steps = min(spacing), []
    for k, s in enumerate(spacing):
        last = x.narrow(k, -1, 1)
        steps.append(x.diff(dim=k, append=last) * (finest / s))
    return torch.stack(steps)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (1.0, 2.5), (1.0, 1.5, 3.0)])
def test_nothing_near_has_a_smaller_objective(spacing):
    y = noise(*(20, 17, 9)[: len(spacing)]).double() + 3
    weight = 0.5 + torch.rand(y.shape, generator=stream(0, "weight")).double()

    def objective(x):
        return float(
            (x - y).square().sum() / 2 + (weight * gradients(x, spacing).norm(dim=0)).sum()
        )

    x = restored(y, weight, weight=1.0, spacing=spacing, iterations=2000)
    best = objective(x)
    assert best < objective(y)
    assert best < objective(torch.full_like(y, float(y.mean())))
    for k in range(20):
        step = 0.01 * noise(*y.shape, name=f"step {k}").double()
        assert objective(x + step) > best
    few = restored(y, weight, weight=1.0, spacing=spacing)
    assert objective(few) < best * 1.01


def test_a_step_of_one_dimension_has_its_closed_form():
    """Two levels of n voxels each move towards each other by w / n."""
    y = torch.cat([torch.zeros(30), torch.full((30,), 10.0)])[:, None].expand(60, 4)
    x = restored(y.contiguous(), weight=6.0, iterations=3000)
    assert torch.allclose(x[:30], torch.full((30, 4), 0.2), atol=1e-3)
    assert torch.allclose(x[30:], torch.full((30, 4), 9.8), atol=1e-3)


def test_noise_goes_where_it_is_and_means_stay():
    sigma = torch.where(torch.arange(64) < 32, 1.0, 4.0).expand(48, 64)
    image = 40 + sigma * noise(48, 64)
    x = restored(image, sigma)
    for half in (slice(0, 28), slice(36, 64)):
        assert x[:, half].std() < 0.35 * image[:, half].std()
    assert float(x.mean()) == pytest.approx(float(image.mean()), abs=1e-4)
    assert torch.allclose(restored(7 * image, 7 * sigma), 7 * x, atol=1e-3)


def test_a_phantom_gains():
    truth = abdomen((160, 160), (2.0, 2.0, 3.0))
    noisy = truth + 30 * noise(160, 160)
    x = restored(noisy, torch.full_like(noisy, 30.0))
    gain = 10 * torch.log10((noisy - truth).square().mean() / (x - truth).square().mean())
    assert gain > 7


def test_slabs_agree_with_the_whole():
    """0.1 HU, as the specification asks, at a noise of 30 HU."""
    volume = 30 * noise(40, 36, 70) + abdomen((40, 36, 70), (8.0, 8.0, 3.0))
    method = Config(spacing=(1.0, 1.0, 2.0)).build()
    halo = method.halo(tuple(volume.shape))
    sigma = torch.full((1, 1, 1, 1, 1), 30.0)
    whole = method.restore(Noisy(volume[None, None], sigma=sigma))[0, 0]
    part = slice(24 - halo[2], 40 + halo[2])
    slab = method.restore(Noisy(volume[None, None, ..., part].contiguous(), sigma=sigma))[0, 0]
    inner = slab[..., halo[2] : halo[2] + 16]
    assert (inner - whole[..., 24:40]).abs().max() < 0.1


def test_slices_that_do_not_belong_together_are_filtered_alone():
    far = Facts(shape=(64, 64, 20), spacing=(1.0, 1.0, 9.0))
    assert Config().suited_to(far).spacing == (1.0, 1.0, math.inf)
    assert Config().suited_to(far).build().halo(far.shape)[2] == 0
    near = Facts(shape=(64, 64, 20), spacing=(1.0, 1.0, 3.0))
    assert Config().suited_to(near).spacing == near.spacing
    stack = Facts(shape=(64, 64, 20), spacing=(1.0, 1.0, 3.0), independent_slices=True)
    method = Config().suited_to(stack).build()
    volume = noise(20, 18, 3)
    alone = [restored(volume[..., k].contiguous(), spacing=(1.0, 1.0)) for k in range(3)]
    together = method.restore(Noisy(volume[None, None]))[0, 0]
    assert torch.allclose(together, torch.stack(alone, -1), atol=1e-6)
