"""What encoders with clusters ask of the loop."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from medssl import config
from medssl.core.errors import QualityError, WeightsError
from medssl.core.random import stream
from medssl.engine.checkpoint import fill
from medssl.engine.fit import Fitting
from medssl.method import Method
from medssl.nets.clusters import Clusters


@dataclass(frozen=True)
class Step:
    """A batch that says what the loss is."""

    name: str
    loss: float


class Said(Method[Step]):
    """A loss that the batch says."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))

    def loss(self, batch: Step) -> dict[str, Tensor]:
        return {batch.name: batch.loss + 0 * self.w.sum()}


def test_losses_of_other_terms_are_no_spikes():
    fitting = Fitting(Said(), config.Train(steps=100, lr=1e-3), patience=3)
    for _ in range(30):
        fitting.advance(Step("first", 0.1))
    for _ in range(5):
        fitting.advance(Step("second", 9.0))
    assert fitting.skipped == 0
    for _ in range(25):
        fitting.advance(Step("second", 9.0))
    with pytest.raises(QualityError):
        for _ in range(3):
            fitting.advance(Step("second", 99.0))


def test_what_a_checkpoint_knows_of_a_store_is_as_long_as_it_was():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        one, other = Clusters(3, 4), Clusters(3, 4)
    one.find(torch.randn(20, 4, generator=stream(0, "b")), torch.arange(20), stream(0, "k"))
    fill(other, one.state_dict())
    assert torch.equal(other.assignment, one.assignment)
    with pytest.raises(WeightsError, match="assignment"):
        fill(other, one.state_dict() | {"assignment": torch.zeros(2, 2, dtype=torch.long)})
    with pytest.raises(WeightsError, match="centroids"):
        fill(other, one.state_dict() | {"centroids": torch.zeros(4, 4)})
