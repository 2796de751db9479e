"""SimCLR."""

from dataclasses import replace

import pytest
import torch

from medssl.core.errors import UsageError
from medssl.pretrain.simclr import Config

NET = {"width": 8, "depths": [1], "bottleneck": False, "stem": "small"}


def test_version_two_keeps_the_first_layer_of_its_head(two_ranks):
    case = two_ranks.Case("simclr", {"head": "v2", "net": NET}, batch=3)
    method = two_ranks.built(case).eval()
    image = two_ranks.phantom_views(method.sees, case).image
    kept = method.embed(image)
    assert kept.shape == (3, 8)
    assert bool((kept >= 0).all())
    h = method.features(image)[-1].flatten(2).mean(-1)
    torch.testing.assert_close(kept, torch.relu(method.head[1](method.head[0](h))))


def test_views_that_agree_cost_less(two_ranks):
    case = two_ranks.Case("simclr", {"out": 16, "net": NET})
    method = two_ranks.built(case)
    batch = two_ranks.phantom_views(method.sees, case)
    same = replace(batch, views=(batch.view_a, batch.view_a + 0.01 * batch.view_b))
    assert method.loss(same)["contrast"] < method.loss(batch)["contrast"]


@pytest.mark.parametrize(("field", "value"), [("T", 0.0), ("out", 1)])
def test_numbers_that_are_none_are_refused(field, value):
    with pytest.raises(UsageError, match=f"{field} is {value:g}"):
        Config(**{field: value}).build()
