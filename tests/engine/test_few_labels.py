"""Three arms of a segmentation: fed alike, with the compute that they claim."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from medssl.core.errors import InputError
from medssl.engine.device import Machine
from medssl.engine.encoders import load_encoder
from medssl.engine.few_labels import (
    ARMS,
    BATCH,
    Asked,
    Compute,
    _batches,
    _net,
    _parted,
    pretraining_flops,
    segment,
)
from medssl.engine.label_maps import Case

CPU = Machine(torch.device("cpu"), None, 1)


def say_nothing(*_):
    return None


@pytest.fixture
def cases():
    """Bright discs on noise, six patients with three slices each."""
    rng = np.random.default_rng(0)
    found = []
    for k in range(18):
        x, y = np.indices((24, 20)) - rng.integers(7, 13, 2)[:, None, None]
        label = (x**2 + y**2 < 20).astype(np.int64)
        image = 2.0 * label + rng.normal(0, 0.5, label.shape)
        image = torch.from_numpy(image.astype(np.float32))[None]
        found.append(Case(image, torch.from_numpy(label), k // 3))
    return found


def test_arms_and_gains(pretrained, cases):
    runs = [load_encoder(pretrained(f"run{k}", seed=k, steps=6), {}) for k in range(2)]
    asked = Asked(labelled=(3, 0), steps=3, seeds=1)
    report = segment(runs, cases, asked, CPU, say_nothing)
    arms = [r.arm for r in report.rows if r.labels == "3"]
    assert arms == [*ARMS, "gain over A", "gain over B"]
    values = {(r.labels, r.arm): r.value for r in report.rows}
    for labels in ("3", "all"):
        ours, scratch = values[labels, ARMS[2]], values[labels, ARMS[0]]
        assert ours.value - scratch.value == pytest.approx(values[labels, "gain over A"].value)
        assert 0 <= scratch.value <= 1
    assert report.facts["steps_of_b"] > 3


def test_a_net_learns_and_twice_the_same(pretrained, cases):
    run = load_encoder(pretrained(), {})
    asked = Asked(labelled=(0,), steps=30, seeds=1, longer=False)
    report, again = (segment([run], cases, asked, CPU, say_nothing) for _ in range(2))
    assert [r.arm for r in report.rows] == [ARMS[0], ARMS[2], "gain over A"]
    assert report.rows[0].value.value > 0.6
    assert report.rows == again.rows


def test_arm_b_has_the_operations_of_the_pretraining(pretrained):
    """What is counted for a step of arm B, times its steps, is within 2 % of the pretraining."""
    loaded = load_encoder(pretrained(steps=200), {})
    net = _net(loaded.method, loaded, 2, 0)
    compute = Compute.of(loaded, net)
    assert compute.share == pytest.approx(1, abs=0.02)
    assert compute.pretraining == 200 * pretraining_flops(
        dataclasses.replace(
            loaded,
            recipe=dataclasses.replace(
                loaded.recipe, train=dataclasses.replace(loaded.recipe.train, steps=1)
            ),
        )
    )
    case = Case(torch.zeros(1, 20, 20), torch.zeros(20, 20, dtype=torch.long), 0)
    part = _parted([dataclasses.replace(case, group=k) for k in range(3)], 0)
    (batch,) = _batches(part, loaded.crops, 1, CPU, "count")
    assert len(batch.image) == BATCH[2]
    with FlopCounterMode(display=False) as counter:
        sum(net.train().loss(batch).values()).backward()
    assert counter.get_total_flops() == compute.step


def test_patients_lie_on_one_side(cases):
    part = _parted(cases, 3)
    sides = [{c.group for c in side} for side in (part.learn, part.check, part.test)]
    assert all(sides)
    assert sum(map(len, sides)) == len(set.union(*sides)) == 6
    assert [c.group for c in part.few(4, 1).learn] == [c.group for c in part.few(4, 1).learn]
    assert len(part.few(4, 1).learn) == 4
    with pytest.raises(InputError, match="2 patients"):
        _parted(cases[:6], 0)
