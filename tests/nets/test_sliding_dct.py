"""The sliding DCT against a direct loop, and the symmetries it must have."""

import itertools

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn
from torch import Tensor

from medssl.core.batch import Modulation
from medssl.core.random import stream
from medssl.nets import sliding_dct as module
from medssl.nets.sliding_dct import sliding_dct


def noise(shape: tuple[int, ...], name: str = "image") -> Tensor:
    return torch.randn(shape, generator=stream(0, name))


def direct(
    image: Tensor,
    block: tuple[int, ...],
    step: tuple[int, ...],
    hard: float,
    sigma: Tensor | None = None,
    shape: Tensor | None = None,
    *,
    varying: Modulation | None = None,
    wiener: bool = True,
) -> Tensor:
    """The definition, window by window in float64."""
    pads = [(b - s, b) for b, s in zip(block, step, strict=True)]
    x = np.pad(image.double().numpy(), pads, mode="reflect")
    s = np.ones(block) if shape is None else shape.double().numpy()
    level = np.ones(image.shape) if sigma is None else sigma.expand(image.shape).double().numpy()
    level = np.pad(level, pads, mode="reflect")
    crop = tuple(slice(p[0], p[0] + n) for p, n in zip(pads, image.shape, strict=True))
    starts = [range(0, n + b - t, t) for n, b, t in zip(image.shape, block, step, strict=True)]
    pilot = None
    for _ in range(1 + wiener):
        values, weights = np.zeros(x.shape), np.zeros(x.shape)
        for start in itertools.product(*starts):
            part = tuple(slice(p, p + b) for p, b in zip(start, block, strict=True))
            middle = tuple(
                slice(p + (b - 1) // 2, p + b // 2 + 1) for p, b in zip(start, block, strict=True)
            )
            sd = s * level[middle].mean()
            if varying is not None:
                sd = sd * at_centre(varying, start, pads, block)
            c = dctn(x[part], norm="ortho")
            if pilot is None:
                gain = (np.abs(c) > hard * sd).astype(float)
            else:
                g2 = dctn(pilot[part], norm="ortho") ** 2
                gain = g2 / (g2 + sd**2)
            gain.flat[0] = 1
            weight = 1 / (gain**2 * sd**2).sum()
            values[part] += weight * idctn(gain * c, norm="ortho")
            weights[part] += weight
        with np.errstate(invalid="ignore"):
            result = (values / weights)[crop]
        pilot = np.pad(result, pads, mode="reflect")
    return torch.from_numpy(result).float()


def at_centre(varying, start, pads, block):
    """(*block) factors in the middle of a window, by linear interpolation axis after axis."""
    values = varying.factors.double().numpy()
    for p, pad, b, nodes in zip(start, pads, block, varying.nodes, strict=True):
        centre = p - pad[0] + (b - 1) / 2
        values = np.apply_along_axis(
            lambda line, c=centre, n=nodes: np.interp(c, n, line), len(block), values
        )
    return values


@pytest.mark.parametrize(
    ("shape", "block", "step"),
    [
        ((12, 12, 12), (4, 4, 4), (1, 1, 1)),
        ((9, 7, 11), (4, 4, 2), (1, 1, 1)),
        ((7, 13, 9), (2, 4, 4), (2, 1, 2)),
        ((13, 11), (8, 8), (1, 1)),
        ((17, 14), (8, 8), (2, 2)),
        ((12, 10, 3), (8, 8, 1), (1, 1, 1)),
        ((11, 13, 9), (8, 8, 4), (2, 2, 1)),
    ],
)
@pytest.mark.parametrize("coloured", [False, True])
def test_equals_a_direct_loop(shape, block, step, coloured):
    image = 3 * noise(shape) + torch.arange(shape[-1]) * 0.7
    sigma = relative = None
    if coloured:
        sigma = 1 + 0.5 * torch.rand(shape, generator=stream(0, "map"))
        relative = 0.5 + torch.rand(block, generator=stream(0, "colour"))
    for wiener in (False, True):
        ours = sliding_dct(
            image,
            block=block,
            step=step,
            hard=2.8,
            sigma=sigma,
            coefficient_sigma=relative,
            wiener=wiener,
        )
        expected = direct(image, block, step, 2.8, sigma, relative, wiener=wiener)
        assert ours.shape == image.shape
        assert ours.is_contiguous()
        assert torch.allclose(ours, expected, atol=2e-5)


@pytest.mark.parametrize(
    ("shape", "block", "step"),
    [((23, 19), (8, 8), (1, 1)), ((11, 13, 9), (8, 8, 4), (2, 2, 1)), ((4, 12, 10), (2, 4, 4), 1)],
)
def test_spectra_that_vary_over_the_image(shape, block, step):
    image = 3 * noise(shape) + torch.arange(shape[-1]) * 0.7
    step = (step,) * len(shape) if isinstance(step, int) else step
    relative = 0.5 + torch.rand(block, generator=stream(0, "colour"))
    level = 1 + 0.5 * torch.rand(shape, generator=stream(0, "map"))
    n_nodes = [3, 2, 1][: len(shape)]
    inner = (*block[:2], 1)[: len(shape)]  # one factor for all frequencies along the third axis
    factors = 0.5 + torch.rand(*inner, *n_nodes, generator=stream(0, "factors"))
    nodes = tuple(torch.arange(float(n)) * 4 + 1 for n in n_nodes)
    varying = Modulation(factors, nodes)
    words = {"block": block, "step": step, "hard": 2.8, "coefficient_sigma": relative}
    for sigma in (None, level):
        ours = sliding_dct(image, sigma=sigma, modulation=varying, **words)
        expected = direct(image, block, step, 2.8, sigma, relative, varying=varying)
        assert torch.allclose(ours, expected, atol=2e-5)
    same = Modulation(torch.ones_like(factors), nodes)
    plain = sliding_dct(image, sigma=level, **words)
    assert torch.allclose(sliding_dct(image, sigma=level, modulation=same, **words), plain)


@pytest.mark.parametrize("shape", [(5, 6, 7), (1, 9, 9), (2, 3, 1), (1, 1), (1, 40), (3, 2)])
def test_without_a_threshold_nothing_changes(shape):
    block = (4, 4, 4)[: len(shape)]
    image = noise(shape)
    assert torch.allclose(sliding_dct(image, block=block, hard=0.0, wiener=False), image, atol=1e-5)
    assert sliding_dct(image, block=block, hard=2.8).isfinite().all()


def test_a_constant_stays():
    image = torch.full((9, 10, 11), 37.5)
    assert torch.allclose(sliding_dct(image, block=(4, 4, 4), hard=2.8), image, atol=1e-5)


def test_flips_and_axis_swaps_commute():
    image = 2 * noise((14, 11, 9))
    image[4:9, 3:7] += 8

    def clean(x: Tensor) -> Tensor:
        return sliding_dct(x, block=(4, 4, 4), hard=2.8)

    whole = clean(image)
    for axes in [(0,), (1,), (2,), (0, 1, 2)]:
        assert (clean(image.flip(axes)).flip(axes) - whole).abs().max() < 1e-5
    for order in itertools.permutations(range(3)):
        back = [order.index(k) for k in range(3)]
        assert (clean(image.permute(order)).permute(back) - whole).abs().max() < 1e-5


def test_scale_moves_through():
    image = noise((12, 11, 10)) + 5
    one = sliding_dct(image, block=(4, 4, 4), hard=2.8)
    for sigma in (torch.tensor(30.0), torch.full((1, 1, 10), 30.0)):
        many = sliding_dct(30 * image, block=(4, 4, 4), hard=2.8, sigma=sigma)
        assert torch.allclose(many / 30, one, atol=2e-5)


@pytest.mark.parametrize(("block", "step"), [((4, 4, 4), 1), ((8, 8, 4), (2, 2, 1))])
def test_chunks_and_slabs_equal_the_whole(monkeypatch, block, step):
    image = 2 * noise((48, 21, 18))
    whole = sliding_dct(image, block=block, step=step, hard=2.8)
    slab = sliding_dct(image[8:40], block=block, step=step, hard=2.8)
    halo = 2 * (block[0] - 1)
    assert torch.allclose(slab[halo:-halo], whole[8 + halo : 40 - halo], atol=1e-5)
    monkeypatch.setitem(module.CHUNK, "cpu", 1 << 15)
    small = sliding_dct(image, block=block, step=step, hard=2.8)
    assert torch.allclose(small, whole, atol=1e-5)


def test_threads_do_not_change_a_bit():
    image = noise((40, 40, 40))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = sliding_dct(image, block=(4, 4, 4), hard=2.8)
        torch.set_num_threads(2)
        two = sliding_dct(image, block=(4, 4, 4), hard=2.8)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one, two)


def test_noise_of_a_flat_image_is_removed():
    image = noise((32, 32, 32))
    assert sliding_dct(image, block=(4, 4, 4), hard=2.8).std() < 0.2


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="do not fit"):
        sliding_dct(torch.zeros(4, 4), block=(4, 4, 4), hard=1.0)
    with pytest.raises(ValueError, match="between 1 and the block"):
        sliding_dct(torch.zeros(8, 8), block=(4, 4), step=5, hard=1.0)


@pytest.mark.cuda
def test_cuda_agrees():
    image = 2 * noise((30, 31, 32))
    there = sliding_dct(image.cuda(), block=(4, 4, 4), hard=2.8).cpu()
    assert (there - sliding_dct(image, block=(4, 4, 4), hard=2.8)).abs().max() < 1e-3
