import itertools
import math

import pytest
import torch

from medssl.core.random import stream
from medssl.nets.bilateral import bilateral


def example(*spatial, dtype=torch.float64, batch=2):
    generator = stream(0, f"bilateral/{spatial}")
    image = torch.rand(batch, 1, *spatial, dtype=dtype, generator=generator)
    maps = 0.4 + torch.rand(batch, len(spatial) + 1, *spatial, dtype=dtype, generator=generator)
    return image, maps


def mirrored(index, n):
    while not 0 <= index < n:
        index = -index if index < 0 else 2 * (n - 1) - index
        if n == 1:
            return 0
    return index


def naive(image, maps, radius):
    result = torch.empty_like(image)
    spatial = image.shape[2:]
    for b in range(len(image)):
        x, s = image[b, 0], maps[b]
        for i in itertools.product(*map(range, spatial)):
            total, summed = 1e-8, 0.0
            for d in itertools.product(range(-radius, radius + 1), repeat=len(spatial)):
                j = tuple(mirrored(a + k, n) for a, k, n in zip(i, d, spatial, strict=True))
                exponent = (x[j] - x[i]) ** 2 / (2 * s[-1][i] ** 2)
                for axis, k in enumerate(d):
                    exponent = exponent + k * k / (2 * s[axis][i] ** 2)
                w = math.exp(-exponent)
                total, summed = total + w, summed + w * x[j]
            result[(b, 0, *i)] = summed / total
    return result


@pytest.mark.parametrize(
    ("spatial", "radius"), [((6, 5), 2), ((2, 7), 3), ((1, 5), 1), ((3, 4, 3), 1)]
)
def test_equals_a_double_loop(spatial, radius):
    image, maps = example(*spatial)
    assert (bilateral(image, maps, radius) - naive(image, maps, radius)).abs().max() < 1e-6


@pytest.mark.parametrize(("spatial", "radius"), [((5, 4), 2), ((2, 5), 3), ((3, 3, 2), 1)])
def test_gradients(spatial, radius):
    image, maps = (t.requires_grad_() for t in example(*spatial, batch=1))
    assert torch.autograd.gradcheck(lambda x, s: bilateral(x, s, radius), (image, maps))


def test_gradients_of_shared_maps():
    image, maps = example(5, 4)
    shared = maps.mean((2, 3), keepdim=True).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, s: bilateral(x, s, 1), (image.requires_grad_(), shared)
    )


def test_shared_maps_equal_expanded_ones():
    image, maps = example(9, 8)
    shared = maps[:, :, :1, :1]
    wide = bilateral(image, shared.expand_as(maps).contiguous(), 2)
    assert torch.allclose(bilateral(image, shared, 2), wide, atol=1e-12)


def test_vanishing_widths_return_the_input_exactly():
    image, maps = example(16, 16, dtype=torch.float32)
    assert torch.equal(bilateral(image, torch.full_like(maps, 1e-6), 1), image)


def test_large_range_width_is_a_gaussian():
    image, _ = example(20, 20)
    maps = torch.tensor([1.2, 0.7, 1e6], dtype=torch.float64).reshape(1, 3, 1, 1).expand(2, 3, 1, 1)
    line = torch.arange(-3.0, 4.0, dtype=torch.float64).square()
    kernel = torch.exp(-line[:, None] / (2 * 1.2**2) - line / (2 * 0.7**2))
    kernel /= kernel.sum()
    padded = torch.nn.functional.pad(image, (3, 3, 3, 3), mode="reflect")
    expected = torch.nn.functional.conv2d(padded, kernel[None, None])
    assert (bilateral(image, maps, 3) - expected).abs().max() < 1e-7


def test_radius_per_axis():
    image, maps = example(7, 6)
    narrow = maps.clone()
    narrow[:, 1] = 1e-6
    assert torch.allclose(bilateral(image, maps, (2, 0)), bilateral(image, narrow, 2), atol=1e-12)


def test_refuses_maps_of_another_image():
    with pytest.raises(ValueError, match=r"\(1, 2, 4, 4\)"):
        bilateral(torch.zeros(1, 1, 4, 4), torch.ones(1, 2, 4, 4), 1)
