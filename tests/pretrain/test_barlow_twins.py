"""Barlow Twins."""

import pytest
import torch

from medssl.core.errors import UsageError
from medssl.core.random import stream
from medssl.pretrain.barlow_twins import EPS, Config, both_terms, correlation


def orthogonal(n, d):
    """(n, d) of parts without a mean that are orthogonal to each other and of variance 1."""
    z = torch.randn(n, d, generator=stream(0, "z"), dtype=torch.float64)
    z = z - z.mean(0)
    return torch.linalg.qr(z).Q * n**0.5


def test_parts_that_agree_and_differ_cost_nothing():
    z = 3 * orthogonal(40, 6) + 7
    c = correlation(z, 2 * z - 1)
    torch.testing.assert_close(c, torch.eye(6, dtype=torch.float64), atol=2 * EPS, rtol=0)
    on, off = both_terms(c)
    assert on < 6 * (2 * EPS) ** 2
    assert off < 1e-20


def test_parts_that_say_the_same_are_redundant():
    z = orthogonal(40, 6)[:, :1].expand(-1, 5)
    on, off = both_terms(correlation(z, z))
    assert on < 1e-8
    assert off == pytest.approx(20, rel=1e-4)


def test_it_is_the_correlation_of_statistics():
    z = torch.randn(30, 4, generator=stream(0, "z"), dtype=torch.float64)
    y = z + torch.randn(30, 4, generator=stream(0, "y"), dtype=torch.float64)
    expected = torch.corrcoef(torch.cat([z, y], 1).T)[:4, 4:]
    torch.testing.assert_close(correlation(z, y), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"lambda_": -1.0}, "lambda_ is -1"),
        ({"width": 1}, "3 layers of 1"),
        ({"layers": 0}, "0 layers of 8192"),
    ],
)
def test_numbers_with_which_nothing_is_learnt_are_refused(change, fact):
    with pytest.raises(UsageError, match=fact):
        Config(**change).build()
