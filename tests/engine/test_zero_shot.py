"""One scan is enough to learn from, and what was learnt is only kept where it is better."""

import dataclasses

import numpy as np
import pytest
import torch

from medssl import api
from medssl.config import Train, load
from medssl.core.batch import Acquired
from medssl.core.errors import InputError, UsageError
from medssl.core.geometry import Geometry
from medssl.core.kspace import KSpace
from medssl.engine.build import reconstructor
from medssl.engine.withhold import folds, object_of
from medssl.engine.zero_shot import choose_better, first_of, learn
from medssl.physics.sampling import central, line_axis, poisson_disc, random_lines

SHAPE = (48, 40)
FEW = {"method.iterations": 20, "method.partings": 3, "train.steps": 4, "train.check_every": 2}
TRAIN = Train(steps=6, lr=1.0e-3, check_every=2)


def scene(coils, lines=False):
    """A scan (1, ...), its object and its truth."""
    kspace, image, maps = coils(SHAPE, n_coils=5, sigma=0.01)
    pattern = random_lines(SHAPE, 2, 14) if lines else poisson_disc(SHAPE, 3, (14, 14))
    sampling = torch.from_numpy(pattern)[None, None].float()
    batch = Acquired(kspace[None] * sampling, sampling, maps[None, None], sigma=0.01)
    ys, xs = central(SHAPE, (14, 14))
    return batch, object_of(batch.kspace[..., ys, xs], SHAPE), image[None, None]


def method():
    recipe = load("recon", "zero-shot", {"method.lambda_": 0.005, "method.iterations": 20})
    return reconstructor(recipe)[0]


def begun(batch, inside):
    made = method()
    parts = folds(batch, inside, 0)
    starts = [made.first(p.seen) for p in parts]
    return [
        dataclasses.replace(p, seen=dataclasses.replace(p.seen, start=s))
        for p, s in zip(parts, starts, strict=True)
    ]


@pytest.mark.parametrize("lines", [False, True])
def test_folds_have_nothing_in_common(coils, lines):
    batch, inside, _ = scene(coils, lines)
    parts = folds(batch, inside, 0)
    assert len(parts) >= 4
    total = sum((p.aside > 0).float() for p in parts)
    assert total.max() == 1
    assert 0.1 < float(total.sum() / batch.sampling.sum()) < 0.25
    for part in parts:
        assert torch.equal(part.seen.sampling + (part.aside > 0), batch.sampling)
        if lines:
            kept = part.aside[0, 0].numpy() > 0
            axis = line_axis(batch.sampling[0, 0].numpy() > 0)
            assert np.array_equal(kept.any(1 - axis).sum(), 1)


def test_the_truth_is_taken_and_a_net_of_chance_is_not(coils):
    batch, inside, true = scene(coils)
    parts = begun(batch, inside)
    judged = choose_better(first_of, lambda b: true, parts)
    assert judged.gained
    assert judged.net < judged.first
    assert judged.partings == 4
    assert judged.words.startswith("net (withheld error -")
    chance = method()
    with torch.no_grad():
        for p in chance.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    judged = choose_better(first_of, chance.restore, parts)
    assert not judged.gained
    assert judged.words.startswith("L1 image kept")
    same = choose_better(first_of, first_of, parts)
    assert not same.gained
    assert same.change == 0


def test_the_net_is_taken_back_where_it_is_worse(coils):
    batch, inside, _ = scene(coils)
    made = method()
    before = made.restore(batch)
    wild = dataclasses.replace(TRAIN, lr=1.0e3, steps=4, check_every=1)
    judged = learn(made, made.one_scan, [(batch, inside)], wild, 0, lambda *_: None)
    assert not judged.gained
    assert torch.equal(made.restore(batch), before)


def test_it_ends_in_time_with_the_best_so_far(coils):
    batch, inside, _ = scene(coils)
    made = method()
    ticks = iter([0.0] * 3 + [1e9] * 9)
    told = []
    judged = learn(
        made,
        made.one_scan,
        [(batch, inside)],
        dataclasses.replace(TRAIN, steps=100),
        0,
        lambda *at: told.append(at),
        clock=lambda: next(ticks),
    )
    assert judged.out_of_time
    assert judged.steps == 2
    assert told == [(1, 100), (2, 100)]
    assert judged.partings == 4


def test_answers_that_judge_are_never_learnt(coils):
    """Other values at points kept aside change what the net sees, never what it is asked."""
    batch, inside, _ = scene(coils)
    kept = sum((p.aside > 0).float() for p in folds(batch, inside, 0))
    made = method()
    asked = []
    loss = made.loss

    def noted(example):
        asked.append(example.aside)
        assert torch.equal(example.sampling + example.aside, batch.sampling)
        return loss(example)

    made.loss = noted
    learn(made, made.one_scan, [(batch, inside)], TRAIN, 0, lambda *_: None)
    assert len(asked) == TRAIN.steps
    assert all(float((one * kept).sum()) == 0 for one in asked)
    assert all(float(one.sum()) > 0 for one in asked)


def raw(kspace, sampling, **words):
    data = (kspace.numpy() * sampling).astype(np.complex64)
    grid = Geometry.from_spacing(data.shape[1:], (1.0,) * (data.ndim - 1))
    return KSpace(data, grid, np.broadcast_to(sampling, data.shape[1:]), **words)


def recon(scan, lambda_=0.005, **changes):
    return api.recon(scan, method="zero-shot", lambda_=lambda_, threads=1, settings=FEW | changes)


def test_a_scan_from_end_to_end(coils):
    scan = raw(coils(SHAPE, n_coils=5, sigma=0.01)[0], poisson_disc(SHAPE, 3, (14, 14)))
    done = recon(scan, lambda_="auto")
    net = done.record["medssl"]["plan"]["net"]
    assert net["taken"] in ("net", "first image")
    assert net["partings"] == 4
    assert 0 < net["steps"] <= 4
    assert net["first"] > 0
    assert net["net"] > 0
    assert "withheld error" in done.line
    weight = done.record["medssl"]["recipe"]["method"]["lambda_"]
    assert np.array_equal(recon(scan, lambda_=weight).image.data, done.image.data)


def test_without_a_step_it_is_compressed_sensing(coils):
    scan = raw(coils(SHAPE, n_coils=5, sigma=0.01)[0], poisson_disc(SHAPE, 3, (14, 14)))
    done = recon(scan, **{"method.max_minutes": 0.0})
    assert done.record["medssl"]["plan"]["net"]["out_of_time"]
    assert done.record["medssl"]["plan"]["net"]["taken"] == "first image"
    plain = api.recon(scan, lambda_=0.005, threads=1, settings={"method.iterations": 20})
    assert np.array_equal(plain.image.data, done.image.data)


def test_too_few_lines_are_no_judge(coils):
    batch, inside, _ = scene(coils)
    centre = torch.zeros_like(batch.sampling)
    ys, xs = central(SHAPE, (8, 8))
    centre[..., ys, xs] = 1
    made = method()
    little = dataclasses.replace(batch, sampling=centre, kspace=batch.kspace * centre)
    judged = learn(made, made.one_scan, [(little, inside)], TRAIN, 0, lambda *_: None)
    assert not judged.gained
    assert judged.steps == 0
    assert "too few" in judged.words


def test_slices_of_a_volume_share_one_net(coils):
    slices = [coils(SHAPE, n_coils=5, sigma=0.01, seed=s)[0] for s in range(2)]
    plane = poisson_disc(SHAPE, 3, (14, 14))
    stack = raw(
        torch.stack(slices, 3),
        np.repeat(plane[..., None], 2, 2),
        encoded=(True, True, False),
    )
    done = recon(stack)
    assert done.image.data.shape == (1, *SHAPE, 2)
    assert done.record["medssl"]["plan"]["net"]["partings"] == 8


def test_what_it_cannot_do_is_said(tmp_path):
    inside = tmp_path / "scans"
    inside.mkdir()
    with pytest.raises(UsageError, match="learns from the scan that it reconstructs"):
        api.train(inside, tmp_path / "run", recipe="recon/zero_shot")
    spokes = np.zeros((8, 32, 2), np.float32)
    spokes[..., 0] = np.linspace(-16, 15, 32)
    shots = KSpace(
        np.ones((4, 8, 32), np.complex64),
        Geometry.from_spacing((32, 32), (1.0, 1.0)),
        np.ones((8, 32), bool),
        trajectory=spokes,
    )
    with pytest.raises(InputError, match="off the grid"):
        recon(shots)
