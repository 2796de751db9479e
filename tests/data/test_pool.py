"""Crops of many scans: bounded memory, fair turns, and nothing but seed and step to decide."""

from dataclasses import dataclass

import pytest
import torch

from medssl.core.random import stream
from medssl.data.pool import Crop, Pool, Sampling, batch, batches, fixed_batch


@dataclass
class Flat:
    """A scan whose voxels all hold its number; the left half may be masked."""

    value: float
    shape: tuple[int, ...] = (32, 24, 12)
    n_volumes: int = 1
    masked: bool = False
    starts: bool = False

    def measured(self, volume, part):
        if not self.masked:
            return 1.0
        start, stop = part[0].start, part[0].stop
        return max(0, stop - max(start, self.shape[0] // 2)) / (stop - start)

    def crop(self, volume, part):
        sizes = [p.stop - p.start for p in part]
        value = torch.full(sizes, self.value)
        sigma = torch.full((), 2.0) if self.value else None
        return Crop(value, sigma, value + 1 if self.starts else None)


def sampling(**changes):
    values = {"axes": 2, "size": 16, "count": 4, "seed": 0, "device": torch.device("cpu")}
    return Sampling(**(values | changes))


def test_each_scan_comes_once_before_any_comes_twice_and_few_are_held():
    loaded = []

    def load(k):
        loaded.append(k)
        return Flat(float(k))

    pool = Pool(10, load, hold=3, turn=2, seed=0)
    assert all(len({s.value for s in pool.at(step)}) == 3 for step in range(2 * (10 - 2)))
    assert sorted(loaded) == list(range(10))
    assert loaded != sorted(loaded)


def test_a_step_depends_on_seed_and_number_alone():
    def images(start):
        pool = Pool(5, lambda k: Flat(float(k)), hold=2, turn=3, seed=1)
        return [b.image for b in batches(pool, sampling(seed=1), start, 12)]

    whole, rest = images(0), images(7)
    assert all(torch.equal(a, b) for a, b in zip(whole[7:], rest, strict=True))
    assert len({float(b.mean()) for b in whole}) > 2


@pytest.mark.parametrize(("axes", "size", "shape"), [(2, 16, (16, 16)), (3, 16, (16, 16, 12))])
def test_crops_are_slices_or_volumes(axes, size, shape):
    made = batch([Flat(1.0), Flat(0.0)], sampling(axes=axes, size=size), 0, progress=0.25)
    assert made.image.shape == (4, 1, *shape)
    assert made.sigma.shape == made.image.shape
    assert torch.equal(made.sigma == 2, made.image == 1)  # where nothing is known the noise is 1
    assert made.progress == 0.25


def test_small_scans_make_a_batch_small():
    scans = [Flat(0.0), Flat(0.0, shape=(9, 40, 5))]
    sizes = {batch(scans, sampling(count=2), k, progress=0).image.shape[2:] for k in range(20)}
    assert sizes == {(16, 16), (9, 16)}


def test_masked_parts_are_avoided():
    scan = Flat(0.0, shape=(512, 16, 4), masked=True)
    seen = []
    crop = scan.crop
    scan.crop = lambda volume, part: seen.append(part[0].start) or crop(volume, part)
    for step in range(20):
        batch([scan], sampling(), step, progress=0)
    assert sum(start >= 240 for start in seen) > 0.95 * len(seen)


def test_what_a_method_starts_from_comes_with_its_crop():
    made = batch([Flat(1.0, starts=True), Flat(2.0, starts=True)], sampling(), 0, progress=0.0)
    assert torch.equal(made.estimate, made.image + 1)
    assert batch([Flat(1.0)], sampling(), 0, progress=0.0).estimate is None


def test_the_fixed_batch_comes_from_all_and_never_changes():
    make = fixed_batch((Flat(float(k)) for k in range(3)), [(32, 24, 12)] * 3, sampling(count=6))
    one, two = make(), make()
    assert one.image[:, 0, 0, 0].tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(
        torch.rand(3, generator=one.generator), torch.rand(3, generator=two.generator)
    )
    assert one.progress == 1
    assert stream(0, "test").initial_seed() == one.generator.initial_seed()
