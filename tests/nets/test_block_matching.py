"""Block matching: copies are found, nothing is lost, and noise goes."""

import math

import pytest
import torch

from medssl.core.random import stream
from medssl.nets import block_matching
from medssl.nets.block_matching import Windows, filtered, match
from medssl.nets.nonlocal_means import nonlocal_means

WINDOWS = Windows((12, 14, 10), (4, 4, 4), (2, 2, 2), (3, 3, 3), 8)


def noise(*shape: int, name: str = "noise") -> torch.Tensor:
    return torch.randn(shape, generator=stream(0, name))


def test_planted_copies_are_found():
    image = noise(1, 40, 40)
    image[0, 20:28, 24:32] = image[0, 9:17, 12:20]
    stacks = match(image, Windows((1, 40, 40), (1, 8, 8), (1, 3, 3), (0, 13, 13), 2))
    offsets = stacks.windows.offsets
    found = offsets[stacks.order[0, 3, 4].long()]  # the window that starts at (9, 12)
    assert found.tolist() == [[0, 0, 0], [0, 11, 12]]


def test_the_nearest_is_first_and_ties_go_to_the_nearer():
    stacks = match(torch.zeros(12, 14, 10), WINDOWS)
    assert stacks.order[..., 0].eq(0).all()
    inner = stacks.order[2, 2, 1]
    assert inner.tolist() == sorted(inner.tolist())


def test_stacks_agree_with_a_direct_search():
    image = noise(*WINDOWS.shape)
    stacks = match(image, WINDOWS)
    offsets, last = WINDOWS.offsets, [n - 4 for n in WINDOWS.shape]
    starts = [WINDOWS.starts(axis) for axis in range(3)]
    for at in [(0, 0, 0), (2, 3, 1), tuple(n - 1 for n in WINDOWS.count)]:
        first = torch.tensor([s[k] for s, k in zip(starts, at, strict=True)])
        here = image[tuple(slice(int(a), int(a) + 4) for a in first)]
        distances = []
        for offset in offsets:
            place = first + offset
            outside = any(p < 0 or p > n for p, n in zip(place.tolist(), last, strict=True))
            there = image[tuple(slice(int(a), int(a) + 4) for a in place)]
            distances.append(math.inf if outside else float((here - there).square().sum()))
        expected = torch.tensor(distances).argsort()[:8]
        assert set(stacks.order[at].tolist()) == set(expected.tolist())


@pytest.mark.parametrize("shape", [(12, 14, 10), (4, 4, 4), (5, 9, 4)])
def test_without_a_threshold_the_image_comes_back(shape):
    image = noise(*shape)
    windows = Windows(shape, (4, 4, 4), (2, 2, 2), (3, 3, 3), 8)
    assert torch.allclose(filtered(image, match(image, windows), hard=0.0), image, atol=1e-5)


def test_a_limit_leaves_a_window_alone():
    image = noise(*WINDOWS.shape)
    assert match(image, WINDOWS, 1e-3).size.eq(0).all()
    assert match(image, WINDOWS).size.float().mean() > 2


def test_boxes_do_not_change_the_result(monkeypatch):
    image = noise(18, 17, 16)
    windows = Windows((18, 17, 16), (4, 4, 4), (2, 2, 2), (3, 3, 3), 8)
    whole = match(image, windows)
    result = filtered(image, whole, hard=2.7)
    monkeypatch.setitem(block_matching.CHUNK, "cpu", 30_000)
    parts = match(image, windows)
    assert torch.equal(parts.order, whole.order)
    assert torch.allclose(filtered(image, parts, hard=2.7), result, atol=1e-5)


def test_threads_do_not_change_a_bit():
    image = noise(30, 30, 30)
    windows = Windows((30, 30, 30), (4, 4, 4), (2, 2, 2), (3, 3, 3), 16)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(filtered(image, match(image, windows), hard=2.7))
    assert torch.equal(*results)


def test_local_noise_is_read_where_the_window_is():
    z = noise(*WINDOWS.shape)
    stacks, scale = match(z, WINDOWS), torch.full(WINDOWS.shape, 7.0)
    number, plane = (filtered(7 * z, stacks, sigma=s) for s in (torch.tensor(7.0), scale))
    assert torch.allclose(number, plane, atol=1e-4)
    assert torch.allclose(number / 7, filtered(z, stacks), atol=1e-5)


def test_coefficients_have_their_own_noise():
    z = noise(*WINDOWS.shape)
    stacks = match(z, WINDOWS)
    shape = torch.ones(4, 4, 4)
    assert torch.allclose(
        filtered(z, stacks, coefficient_sigma=shape), filtered(z, stacks), atol=1e-6
    )
    spread = filtered(z, stacks, coefficient_sigma=2 * shape).std()
    assert spread < filtered(z, stacks).std()


def test_noise_goes_and_structure_stays():
    truth = torch.zeros(24, 24, 24)
    truth[6:18, 6:18, 6:18] = 20
    noisy = truth + noise(24, 24, 24)
    windows = Windows((24, 24, 24), (4, 4, 4), (2, 2, 2), (3, 3, 3), 16)
    pilot = filtered(noisy, match(noisy, windows))
    clean = filtered(noisy, match(pilot, windows), pilot=pilot)
    assert (pilot - truth).square().mean() < 0.06
    assert (clean - truth).square().mean() < (pilot - truth).square().mean()


def test_misfits_are_refused():
    with pytest.raises(ValueError, match="does not fit"):
        Windows((3, 9, 9), (4, 4, 4), (2, 2, 2), (3, 3, 3), 8)
    with pytest.raises(ValueError, match="power of two"):
        Windows((9, 9, 9), (4, 4, 4), (2, 2, 2), (3, 3, 3), 12)


@pytest.mark.cuda
def test_cpu_and_cuda_agree():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    image = noise(30, 30, 30)
    windows = Windows((30, 30, 30), (4, 4, 4), (2, 2, 2), (3, 3, 3), 16)
    cpu, cuda = (filtered(x, match(x, windows)) for x in (image, image.cuda()))
    assert torch.allclose(cpu, cuda.cpu(), atol=1e-3)


@pytest.mark.parametrize("shape", [(9, 8), (7, 6, 5), (3, 1, 2), (1, 1)])
def test_means_agree_with_a_direct_loop(shape):
    image, guide = noise(*shape), noise(*shape, name="guide")
    found = nonlocal_means(
        image, guide, search=(2,) * len(shape), patch=(0,) * len(shape), width=0.8
    )
    reach = [min(2, n - 1) for n in shape]
    at = tuple(0 for _ in shape)
    total = mass = 0.0
    for offset in torch.cartesian_prod(*[torch.arange(-r, r + 1) for r in reach]).reshape(
        -1, len(shape)
    ):
        near = tuple(abs(int(k)) for k in offset)  # reflected at the first voxel
        weight = math.exp(-float((guide[at] - guide[near]) ** 2) / 0.64)
        total, mass = total + weight * float(image[near]), mass + weight
    assert float(found[at]) == pytest.approx(total / mass, abs=1e-5)


def test_means_keep_a_constant_and_use_the_guide():
    flat = torch.full((6, 6, 6), 3.0)
    assert torch.allclose(
        nonlocal_means(flat, flat, search=(2, 2, 2), patch=(1, 1, 1), width=0.6), flat
    )
    guide = torch.zeros(10, 10)
    guide[:, 5:] = 100
    image = guide + noise(10, 10)
    clean = nonlocal_means(image, guide, search=(3, 3), patch=(1, 1), width=0.6)
    assert (clean - guide).square().mean() < 0.3
