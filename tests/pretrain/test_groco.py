"""GroCo."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import binary_cross_entropy

from medssl.core.errors import UsageError
from medssl.core.random import stream
from medssl.pretrain.groco import Config, _order, group_order

NET = {"width": 4, "depths": [1], "bottleneck": False, "stem": "small"}


def row_loss(negatives, positives, beta):
    n, p = torch.tensor([negatives]).double(), torch.tensor([positives]).double()
    m = group_order(n, p, beta)
    return binary_cross_entropy(m, torch.cat([0 * n, 0 * p + 1], 1)).item()


def test_a_perfect_order_costs_nothing_and_a_reversed_one_much():
    assert row_loss([-0.6, -0.2, 0.1], [0.5, 0.9], 1e6) < 1e-4
    assert row_loss([0.5, 0.7, 0.9], [-0.8, -0.3], 1e6) > 5
    assert row_loss([-0.6, 0.2], [0.5], 1.0) < row_loss([-0.6, 0.7], [0.5], 1.0)


@pytest.mark.parametrize("length", [(4, 1), (3, 2), (1, 1)])
def test_the_network_sorts(length):
    k, p = length
    values = torch.rand(20, k + p, generator=stream(0, "v"), dtype=torch.float64)
    n, pos = values[:, :k].sort(1).values, values[:, k:].sort(1).values
    row = torch.cat([n, pos], 1)
    expected = (row.argsort(1).argsort(1) >= k).double()
    torch.testing.assert_close(group_order(n, pos, 1e9), expected, atol=1e-4, rtol=0)


def test_shares_of_the_last_ranks_add_up_to_their_number():
    values = torch.rand(6, 7, generator=stream(0, "v"), dtype=torch.float64)
    m = group_order(values[:, :5], values[:, 5:], 1.0)
    torch.testing.assert_close(m.sum(1), torch.full((6,), 2.0, dtype=torch.float64))


def test_images_of_the_same_patient_do_not_count(two_ranks):
    case = two_ranks.Case("groco", {"net": NET, "hidden": 8, "out": 6, "K": 3})
    method = two_ranks.built(case)
    batch = two_ranks.phantom_views(method.sees, case)
    one = replace(batch, patient=torch.zeros(8, dtype=torch.long))
    loss = method.loss(one)["order"]
    # All that counts is that the positive comes after directions opposite to the anchor.
    best = group_order(torch.full((1, 3), -1.0), torch.ones(1, 1), 1.0)[0, -1].log()
    assert loss.item() >= -best.item() - 1e-6
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in method.parameters())
    all_strangers = replace(batch, patient=None)
    assert method.loss(all_strangers)["order"] != loss


def test_only_anchors_get_a_gradient():
    z = torch.randn(2, 6, 4, generator=stream(0, "z"), dtype=torch.float64).requires_grad_()
    _order(z, None, 3, 1.0).backward()
    anchor = z.detach().clone().requires_grad_()
    everyone = z.detach()
    total = 0.0
    a, e = (x / x.norm(dim=-1, keepdim=True) for x in (anchor, everyone))
    for k in range(2):
        s = a[k] @ e[k].T
        hardest = s.masked_fill(torch.eye(6, dtype=torch.bool), -2).sort(1).values[:, -3:]
        m = group_order(hardest, (a[k] * e[1 - k]).sum(1, keepdim=True), 1.0)
        total = total + binary_cross_entropy(m, torch.tensor([0.0, 0, 0, 1]).double().expand(6, 4))
    (total / 2).backward()
    torch.testing.assert_close(z.grad, anchor.grad)


@pytest.mark.parametrize(
    ("change", "fact"),
    [({"K": 0}, "K is 0"), ({"beta": 0.0}, "beta is 0"), ({"views": 1}, "1 views")],
)
def test_numbers_with_which_nothing_is_sorted_are_refused(change, fact):
    with pytest.raises(UsageError, match=fact):
        Config(**change).build()
