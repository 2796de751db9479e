"""Simulated raw scans, and what a step sees of raw scans."""

import itertools

import numpy as np
import pytest
import torch

from medssl.config import Raw
from medssl.data.pool import Pool
from medssl.data.raw import BANK, Drawing, Patterns, Scan, Slice, batches, centre_of, fixed_batch
from medssl.data.simulate import phantom, simulate_multicoil
from medssl.physics.coils import Sense
from medssl.physics.espirit import espirit
from medssl.physics.fourier import to_kspace
from medssl.physics.sampling import central, radius

RAW = Raw(acceleration=(2.0, 3.0), center=10)
BANK_OF_ALL = Patterns(RAW, 0)


def one(seed=0, labelled=True, shape=(32, 32), coils=3):
    made = simulate_multicoil(phantom(shape, seed), seed, n_coils=coils)
    return Slice(made.kspace, made.coil_maps[None], 1e-3, None, None if labelled else seed)


def drawing(count=1):
    return Drawing(patterns=BANK_OF_ALL, count=count, seed=0, device=torch.device("cpu"))


def pool(slices, hold=None):
    scans = [Scan((s,)) for s in slices]
    return Pool(len(scans), scans.__getitem__, hold=hold or len(scans), turn=1, seed=0)


def test_a_simulated_scan_is_what_the_model_says():
    made = simulate_multicoil(phantom((40, 36), 3), 3, n_coils=5)
    assert made.kspace.shape == (5, 40, 36)
    power = made.coil_maps.abs().square().sum(0)
    assert torch.allclose(power, torch.ones_like(power), atol=1e-5)
    assert torch.allclose(made.kspace, to_kspace(made.coil_maps * made.image), atol=1e-5)
    model = Sense(made.coil_maps[None], torch.ones(1, 40, 36))
    back = model.adjoint(made.kspace)[0]
    assert torch.allclose(back, made.image, atol=1e-5)
    assert float(made.image.angle().std()) > 0.1
    same = simulate_multicoil(phantom((40, 36), 3), 3, n_coils=5)
    assert torch.equal(same.kspace, made.kspace)
    other = simulate_multicoil(phantom((40, 36), 3), 4, n_coils=5)
    assert not torch.equal(other.kspace, made.kspace)
    assert {len(simulate_multicoil(np.ones((8, 8)), k).kspace) for k in range(40)} <= {
        *range(8, 17)
    }


def test_noise_of_a_simulated_scan_has_the_level_and_is_correlated():
    made = simulate_multicoil(phantom((64, 64), 1), 1, n_coils=8)
    noise = made.measured(0.1, 1).data - made.kspace.numpy()
    parts = np.stack([noise.real, noise.imag]).reshape(2, 8, -1)
    assert float(np.sqrt((parts**2).mean())) == pytest.approx(0.1, rel=0.02)
    flat = noise.reshape(8, -1)
    correlation = np.abs(np.corrcoef(flat))
    assert 0.1 < (correlation - np.eye(8)).max() < 0.9


def test_a_smaller_matrix_keeps_the_picture():
    fine = phantom((128, 128), 2)
    made = simulate_multicoil(fine, 2, shape=(64, 64))
    mean = fine.reshape(64, 2, 64, 2).mean((1, 3))
    inside = mean > 0.2
    error = np.abs(made.image.abs().numpy() - mean)[inside]
    assert np.median(error) < 0.05


def test_espirit_finds_the_simulated_coils():
    made = simulate_multicoil(phantom((64, 64), 5), 5, n_coils=6)
    ys, xs = central((64, 64), (24, 24))
    maps = espirit(made.kspace[None, :, ys, xs], (64, 64), 1)[0][0, 0]
    alike = (maps.conj() * made.coil_maps).sum(0).abs()[made.image.abs() > 0.2]
    assert float(alike.median()) > 0.99


def test_phantoms_differ_and_lie_inside_the_field_of_view():
    some = [phantom((64, 64), k) for k in range(6)]
    for a, b in itertools.combinations(some, 2):
        assert np.abs(a - b).mean() > 0.02
    for image in some:
        assert image.min() == 0
        assert image.max() == pytest.approx(1)
        assert 0.2 < (image > 0.02).mean() < 0.9
        assert image[0].max() == 0


@pytest.mark.parametrize("pattern", ["poisson", "lines", "both"])
def test_patterns_are_those_of_the_recipe(pattern):
    raw = Raw(acceleration=(3.0, 4.0), pattern=pattern, center=12)
    bank = Patterns(raw, 0)
    centre = centre_of((64, 48), raw)
    for k in range(6):
        found, outside = bank.at((64, 48), k)
        assert 2.8 < found.size / found.sum() < 4.3
        assert not (found & outside).any()
        assert found[central((64, 48), centre)].all()
    assert bank.at((64, 48), 1)[0] is bank.at((64, 48), 1 + BANK)[0]
    again = Patterns(raw, 0).at((64, 48), 3)[0]
    assert np.array_equal(again, bank.at((64, 48), 3)[0])
    assert not np.array_equal(bank.at((64, 48), 4)[0], again)


def test_a_scan_with_a_truth_is_measured_anew_and_one_without_never():
    full = list(batches([pool([one()])], drawing(), 0, 6))
    assert len({b.sampling.numpy().tobytes() for b in full}) > 3
    assert all(b.truth is not None for b in full)
    fast = list(batches([pool([one(labelled=False)])], drawing(), 0, 6))
    assert len({b.kspace.numpy().tobytes() for b in fast}) == 1
    assert all(b.truth is None for b in fast)
    assert len({b.generator.initial_seed() for b in fast}) == 6
    for b in full + fast:
        assert not (b.kspace * (1 - b.sampling)).any()
        start = Sense(b.coil_maps, b.sampling).adjoint(b.kspace).abs()
        assert float(start.flatten().quantile(0.95)) == pytest.approx(1, rel=1e-4)


def test_corners_that_no_scan_of_the_protocol_measures_stay_zeros():
    made = simulate_multicoil(phantom((32, 32), 0), 0, n_coils=3)
    ellipse = torch.from_numpy(radius((32, 32)) <= 0.9)
    cropped = Slice(made.kspace * ellipse, made.coil_maps[None], 1e-3)
    for b in batches([pool([cropped])], drawing(), 0, 3):
        assert not (b.sampling[0, 0] > 0)[~ellipse].any()
        assert bool((b.edge[0, 0] > 0)[~ellipse].all())


@pytest.mark.parametrize(("n", "m"), list(itertools.product(range(1, 6), repeat=2)))
def test_kinds_alternate_whatever_their_numbers(n, m):
    labelled = [one(k) for k in range(n)]
    unlabelled = [one(10 + k, labelled=False) for k in range(m)]
    steps = 2 * n * m
    bank = drawing()
    made = list(batches([pool(labelled), pool(unlabelled)], bank, 0, steps))
    assert [b.truth is not None for b in made] == [True, False] * (n * m)
    for kind, slices in ((made[::2], labelled), (made[1::2], unlabelled)):
        counts = {id(s): 0 for s in slices}
        for b in kind:
            counts[next(id(s) for s in slices if torch.equal(s.coil_maps, b.coil_maps[0]))] += 1
        assert len(set(counts.values())) == 1  # each as often as any other


def test_a_batch_holds_slices_of_one_size():
    sizes = [(32, 32), (32, 32), (24, 40), (24, 40), (32, 32)]
    slices = [one(k, shape=s) for k, s in enumerate(sizes)]
    shapes = [tuple(b.kspace.shape) for b in batches([pool(slices)], drawing(2), 0, 10)]
    assert set(shapes) == {(2, 3, 32, 32), (2, 3, 24, 40)}


def test_steps_follow_from_the_seed_and_their_number():
    slices = [one(k) for k in range(3)]
    whole = list(batches([pool(slices, 2)], drawing(), 0, 6))
    rest = list(batches([pool(slices, 2)], drawing(), 4, 6))
    assert torch.equal(whole[4].kspace, rest[0].kspace)
    assert whole[4].generator.initial_seed() == rest[0].generator.initial_seed()
    held = fixed_batch(slices, drawing())
    assert torch.equal(held().kspace, held().kspace)
    assert held().kspace.shape[0] == 3
