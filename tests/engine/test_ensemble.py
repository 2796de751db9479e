"""Averages of methods: whose results they are, and who may join."""

import dataclasses

import numpy as np
import pytest
import torch

from medssl import api, config
from medssl.core.batch import Noisy
from medssl.core.errors import UsageError
from medssl.core.image import Image
from medssl.core.random import stream
from medssl.engine import choose
from medssl.engine.build import restorer
from medssl.engine.ensemble import Ensemble
from medssl.io.memory import from_array
from medssl.method import Restorer
from medssl.physics.phantom import abdomen

SIGMA = 0.02


class Mean(Restorer):
    """A linear smoother of known error: the mean over windows along the last axis."""

    def __init__(self, width: int, domain: str = "unit") -> None:
        super().__init__()
        self.width, self.domain = width, domain

    def restore(self, batch: Noisy) -> torch.Tensor:
        reach = range(-(self.width // 2), self.width // 2 + 1)
        return torch.stack([batch.image.roll(k, -1) for k in reach]).mean(0)

    def halo(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(self.width for _ in shape)


class Sharpener(Restorer):
    """Makes everything worse."""

    domain = "unit"

    def restore(self, batch: Noisy) -> torch.Tensor:
        return batch.image + (batch.image - Mean(5).restore(batch))


class Improver(Restorer):
    """Returns what it was given to improve."""

    domain = "stabilised"

    def restore(self, batch: Noisy) -> torch.Tensor:
        assert batch.estimate is not None
        return batch.estimate


def noisy(*shape, name="noise") -> Noisy:
    """A flat image in [0, 1] with white noise."""
    image = 0.5 + SIGMA * torch.randn(1, 1, *shape, generator=stream(0, name))
    return Noisy(image, torch.full((), SIGMA), generator=stream(0, "probe"))


def trust(restored: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    one = torch.ones_like(restored)
    return one, one


def test_the_mean_of_members_of_any_domain():
    batch = noisy(32, 40)
    both = Ensemble([Mean(3), Mean(5, "stabilised")])
    expected = (Mean(3).restore(batch) + Mean(5).restore(batch)) / 2
    assert torch.allclose(both.restore(batch), expected, atol=1e-6)
    assert both.halo((32, 40)) == (5, 5)


def test_who_lowers_the_error_joins():
    batch = noisy(160, 160)
    additions = {"wide": Mean(9), "sharpener": Sharpener(), "improver": Improver()}
    method = Ensemble([Mean(3)], list(additions.values()), list(additions))
    before = method.restore(batch)
    method.settle([batch], trust)
    assert [(j.name, j.joined) for j in method.judged] == [
        ("wide", True),
        ("sharpener", False),
        ("improver", False),  # adds nothing
    ]
    # White noise: the mean of windows of 3 and 9 keeps 1/2 of noise variance 1/3 less ...
    weights = torch.zeros(9)
    weights[3:6] += 1 / 6
    weights += 1 / 18
    change = float(weights.square().sum()) - 1 / 3
    assert method.judged[0].change == pytest.approx(change, rel=0.15)
    after = method.restore(batch)
    assert (after - 0.5).square().mean() < (before - 0.5).square().mean()
    assert method.as_dict()[0]["joined"] is True


def test_a_small_scan_has_too_few_cells_to_judge():
    method = Ensemble([Mean(3)], [Mean(9)], ["wide"])
    method.settle([noisy(12, 12)], trust)
    assert not method.judged[0].joined


def test_recipes_of_averages(tmp_path):
    recipe = config.load("denoise", "ct_high")
    assert len(recipe.average) == 3
    method, settled = restorer(recipe)
    assert isinstance(method, Ensemble)
    assert [m["side"] for m in settled["average"]] == [6, 8, 12]

    def written(text: str) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text("task: denoise\n" + text)
        return str(path)

    for text, fact in (
        ("average: [ct_high]\n", "average itself"),
        ("average: []\n", "empty"),
        ("average: 3\n", "not a list"),
        ("average: [mine]\n", "averages itself"),
        ("average: [{name: total_variation, wieght: 3}]\n", "unknown key 'wieght'"),
        ("average: [no_such_thing]\n", "no denoise method"),
    ):
        with pytest.raises(UsageError, match=fact):
            restorer(config.load("denoise", written(text)))
    with pytest.raises(UsageError, match="averages methods"):
        config.load("denoise", "ct_high", {"method.step": 1})


def abdomen_ct(side: int = 128) -> Image:
    """A phantom in HU with white noise of 25 HU."""
    truth = abdomen((side, side), (2.4, 2.4, 3.0))
    noisy = truth + 25 * torch.randn(truth.shape, generator=stream(0, "ct"))
    return dataclasses.replace(from_array(noisy.numpy(), np.eye(4)), modality="CT")


@pytest.mark.parametrize("quality", ["fast", "standard", "high"])
def test_each_quality_improves_a_ct(quality):
    image = abdomen_ct()
    truth = abdomen((128, 128), (2.4, 2.4, 3.0)).numpy()
    done = api.denoise(image, quality=quality, threads=1, seed=1)
    assert done.choice.recipe.name == choose.CT_DEFAULTS[quality]
    assert done.choice.strength == choose.CT_STRENGTH
    before, after = (x.data[0].reshape(truth.shape) - truth for x in (image, done.image))
    assert np.square(after).mean() < np.square(before).mean() / 3
    assert np.abs(after.mean()) < 1  # no bias, HU


def test_an_average_is_recorded(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "task: denoise\naverage: [ct_fast]\nadditions: [{name: total_variation, weight: 0.8}]\n"
    )
    done = api.denoise(abdomen_ct(), method=str(path), threads=1)
    (verdict,) = done.qc["additions"]
    assert verdict["name"] == "total_variation"
    assert isinstance(verdict["joined"], bool)


def test_a_method_that_does_nothing_says_so():
    done = api.denoise(
        abdomen_ct(), method="total_variation", settings={"method.weight": 1e-3}, threads=1
    )
    assert any("removed < 10 % of the estimated noise" in w for w in done.record["warnings"])


def test_ct_has_defaults_of_its_own():
    for quality, name in choose.CT_DEFAULTS.items():
        assert config.load("denoise", name).name == name
        assert name.startswith("ct_"), quality
    assert dataclasses.replace(config.load("denoise", "ct_auto"), seed=1).average == ()
