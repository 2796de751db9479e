"""G-SimCLR."""

from dataclasses import replace

import pytest
import torch

from medssl.core.errors import UsageError
from medssl.core.random import stream
from medssl.data.sampler import Plan
from medssl.pretrain.g_simclr import Config

NET = {"width": 4, "depths": [1, 1], "bottleneck": False, "stem": "small"}
SMALL = {"net": NET, "clusters": 9, "out": 6, "first": 0.3, "decoder_width": 16}


def test_a_batch_has_no_cluster_twice(two_ranks):
    method = two_ranks.built(two_ranks.Case("g_simclr", SMALL))
    bank = torch.randn(60, 8, generator=stream(0, "bank"), dtype=torch.float64)
    method.refresh(bank, torch.arange(60), stream(0, "refresh"))
    for step in range(5):
        whole = []
        for rank in range(2):
            plan = Plan(0, 60, 4, rank, 2)
            whole += [
                method.assignment[d.index].item() for d in plan.apart(step, method.assignment)
            ]
        assert len(whole) == len(set(whole)) == 8


def test_first_it_denoises_then_it_clusters_then_it_contrasts(two_ranks):
    case = two_ranks.Case("g_simclr", SMALL, size=(17, 14))
    method = two_ranks.built(case)
    batch = two_ranks.phantom_views(method.sees, case)
    assert method.refresh_every is None
    assert method.assignment is None
    assert list(method.loss(batch)) == ["denoise"]
    method.after_step(0.2)
    assert method.refresh_every is None
    method.after_step(0.3)
    assert method.refresh_every == 1
    bank = torch.randn(40, 8, generator=stream(0, "bank"), dtype=torch.float64)
    method.refresh(bank, torch.arange(40), stream(0, "refresh"))
    assert method.refresh_every is None
    assert list(method.loss(replace(batch, progress=0.3))) == ["contrast"]
    again = two_ranks.built(case)
    again.load_state_dict(method.state_dict())
    assert torch.equal(again.assignment, method.assignment)
    assert again.refresh_every is None


def test_every_parameter_has_a_gradient_in_both_parts(two_ranks):
    case = two_ranks.Case("g_simclr", SMALL)
    method = two_ranks.built(case)
    batch = two_ranks.phantom_views(method.sees, case)
    for progress, idle in ((0.0, method.head), (0.9, method.decoder)):
        method.zero_grad()
        (loss,) = method.loss(replace(batch, progress=progress)).values()
        loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in method.parameters())
        assert all(p.grad.abs().max() == 0 for p in idle.parameters())


def test_voxels_that_are_not_valid_do_not_count(two_ranks):
    case = two_ranks.Case("g_simclr", SMALL | {"sigma": 0.0})
    method = two_ranks.built(case).eval()
    batch = two_ranks.phantom_views(method.sees, case)
    valid = torch.ones_like(batch.image, dtype=torch.bool)
    valid[..., :4] = False
    found = method.loss(replace(batch, valid=valid))["denoise"]
    guess = method.decoder([method.narrow(method.features(batch.image)[-1])])
    expected = (guess - batch.image).square()[..., 4:].mean()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"clusters": 1}, "clusters is 1"),
        ({"first": 1.0}, "first is 1"),
        ({"sigma": -0.1}, "sigma is -0.1"),
        ({"refresh": 0}, "refresh is 0"),
        ({"T": -1.0}, "T is -1"),
    ],
)
def test_numbers_with_which_nothing_is_learnt_are_refused(change, fact):
    with pytest.raises(UsageError, match=fact):
        Config(**change).build()
