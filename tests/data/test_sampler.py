"""What step t sees follows from seed, step and rank alone."""

import pytest
import torch

from medssl.data.sampler import Plan, repeats


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_image_comes_once_in_an_epoch_over_all_ranks(world):
    n, batch = 18, 6 // world
    plans = [Plan(3, n, batch, rank, world) for rank in range(world)]
    steps = n // (batch * world)
    seen = [d.index for step in range(steps) for plan in plans for d in plan.batch(step)]
    assert sorted(seen) == list(range(n))


def test_two_ranks_see_what_one_sees_with_the_whole_batch():
    whole = Plan(0, 10, 4)
    halves = [Plan(0, 10, 2, rank, 2) for rank in range(2)]
    for step in range(7):
        assert whole.batch(step) == halves[0].batch(step) + halves[1].batch(step)


def test_epochs_differ_and_places_never_come_twice():
    plan = Plan(1, 8, 8)
    first, second = plan.batch(0), plan.batch(1)
    assert [d.index for d in first] != [d.index for d in second]
    assert len({d.place for d in first + second}) == 16
    assert plan.batch(1) == second


def test_a_batch_of_all_ranks_repeats_no_cluster():
    clusters = torch.arange(40) % 10
    clusters[:5] = -1
    plans = [Plan(0, 40, 4, rank, 2) for rank in range(2)]
    for step in range(20):
        drawn = [d.index for plan in plans for d in plan.apart(step, clusters)]
        found = clusters[drawn]
        assert len(drawn) == 8
        assert len(found.unique()) == 8
        assert (found >= 0).all()


def test_rare_kinds_come_more_often_within_bounds():
    kinds = ["CT"] * 12 + ["MR"] * 6 + ["US"]
    times = repeats(kinds, 3)
    assert times == [1] * 12 + [2] * 6 + [3]
