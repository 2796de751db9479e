"""Assignments, second-order matching, and the gradient through it."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from torch.nn.functional import one_hot

from medssl.core.random import stream
from medssl.nets.matching import (
    PerturbedMatch,
    _Slopes,
    assign,
    auction,
    frank_wolfe,
    is_identity,
    perturbed_match,
    value_of,
)


def graphs(count, n, k, seed=0, dtype=torch.float32):
    """Random graphs of n vertices with k edges from each, random affinities."""
    generator = stream(seed, "graphs")
    c_v = torch.randn(count, n, n, generator=generator, dtype=dtype)
    c_e = torch.randn(count, n * k, n * k, generator=generator, dtype=dtype)
    edges = []
    for _ in range(2):
        far = torch.rand(count, n, n, generator=generator) + 9 * torch.eye(n)
        heads = far.topk(k, largest=False).indices
        tails = torch.arange(n)[:, None].expand_as(heads)
        edges.append(torch.stack([tails, heads], -1).flatten(1, 2))
    return c_v, c_e, *edges


def best_of_all(c_v, c_e, e_s, e_t):
    """The worth of the best of all permutations (B,)."""
    every = torch.tensor(list(itertools.permutations(range(c_v.shape[-1]))))
    rows = []
    for one in zip(c_v, c_e, e_s, e_t, strict=True):
        wide = [x[None].expand(len(every), *x.shape) for x in one]
        rows.append(value_of(*wide, every).max())
    return torch.stack(rows)


def exact(c_v, c_e, e_s, e_t):
    """The worth of the optimum of one pair of graphs, by HiGHS."""
    n, (n_s, n_t) = len(c_v), c_e.shape
    n_x, size = n * n, n * n + n_s * n_t
    rows, low, high = [], [], []
    for axis in range(2):
        for i in range(n):
            row = np.zeros(size)
            row[:n_x].reshape(n, n)[(i, slice(None)) if axis == 0 else (slice(None), i)] = 1
            rows, low, high = [*rows, row], [*low, 1], [*high, 1]
    for s, (i, j) in enumerate(e_s.tolist()):
        for t, (a, b) in enumerate(e_t.tolist()):
            y, tail, head = n_x + s * n_t + t, i * n + a, j * n + b
            for places, signs, top in (
                ((y, tail), (1, -1), 0),
                ((y, head), (1, -1), 0),
                ((y, tail, head), (-1, 1, 1), 1),
            ):
                row = np.zeros(size)
                row[list(places)] = signs
                rows, low, high = [*rows, row], [*low, -np.inf], [*high, top]
    cost = -np.concatenate([c_v.flatten(), c_e.flatten()]).astype(float)
    whole = np.concatenate([np.ones(n_x), np.zeros(size - n_x)])
    constraints = LinearConstraint(np.array(rows), low, high)
    return -milp(cost, constraints=constraints, bounds=Bounds(0, 1), integrality=whole).fun


@pytest.mark.parametrize("n", [1, 2, 5, 16])
def test_the_auction_is_worth_what_the_assignment_is(n):
    cost = torch.randn(12, n, n, generator=stream(n, "cost"), dtype=torch.float64)
    cost = torch.cat([cost, cost.round(), torch.zeros(2, n, n), 1e6 + 1e-3 * cost])
    found = auction(cost)
    assert torch.equal(found.sort(1).values, torch.arange(n).expand_as(found))
    values = [cost.gather(2, p[..., None]).sum((1, 2)) for p in (found, assign(cost))]
    torch.testing.assert_close(*values, rtol=1e-9, atol=1e-6)


def test_the_slope_is_the_sum_over_edges():
    c_v, c_e, e_s, e_t = graphs(2, 5, 2, dtype=torch.float64)
    v = torch.rand(2, 5, 5, generator=stream(0, "v"), dtype=torch.float64, requires_grad=True)
    worth = v.new_zeros(())
    for g in range(2):
        for s, (i, j) in enumerate(e_s[g].tolist()):
            for t, (a, b) in enumerate(e_t[g].tolist()):
                worth = worth + c_e[g, s, t] * v[g, i, a] * v[g, j, b]
    (expected,) = torch.autograd.grad(worth, v)
    torch.testing.assert_close(_Slopes(c_v, c_e, e_s, e_t)(v.detach()), expected)


def test_the_worth_of_a_matching_is_that_of_its_matrix():
    c_v, c_e, e_s, e_t = graphs(3, 6, 2, dtype=torch.float64)
    p = torch.stack([torch.randperm(6, generator=stream(k, "p")) for k in range(3)])
    v = one_hot(p, 6).double()
    expected = (c_v * v).sum((1, 2)) + (_Slopes(c_v, c_e, e_s, e_t)(v) * v).sum((1, 2)) / 2
    torch.testing.assert_close(value_of(c_v, c_e, e_s, e_t, p), expected)


def test_it_never_falls_below_the_assignment_and_grows_with_steps():
    one = graphs(16, 16, 5)
    found = [frank_wolfe(*one, n_iter, 2) for n_iter in (0, 1, 2, 5, 15)]
    worth = torch.stack([value_of(*one, p) for p in (assign(one[0]), *found)])
    assert all(torch.equal(p.sort(1).values, torch.arange(16).expand(16, 16)) for p in found)
    assert bool((worth[1:] >= worth[0]).all())
    assert worth[4].mean() > 1.5 * worth[0].mean()
    assert bool((worth.mean(1).diff()[1:] >= 0).all())


def test_it_is_near_the_optimum_of_small_graphs():
    one = graphs(8, 6, 3)
    share = value_of(*one, frank_wolfe(*one, 5, 2)) / best_of_all(*one)
    assert share.min() > 0.7
    assert share.mean() > 0.9


def test_enumeration_and_integer_programming_agree():
    one = graphs(2, 5, 2)
    expected = torch.tensor([exact(*(x[g] for x in one)) for g in range(2)], dtype=torch.float64)
    torch.testing.assert_close(best_of_all(*one).double(), expected, rtol=1e-5, atol=1e-5)


def test_a_planted_isomorphism_is_found():
    generator = stream(3, "planted")
    z = torch.randn(8, 16, 12, generator=generator)
    p = torch.stack([torch.randperm(16, generator=generator) for _ in range(8)])
    far = torch.cdist(z, z) + 1e9 * torch.eye(16)
    heads = far.topk(5, largest=False).indices
    e_s = torch.stack([torch.arange(16)[:, None].expand_as(heads), heads], -1).flatten(1, 2)
    e_t = p.gather(1, e_s.flatten(1)).reshape(e_s.shape)
    c_e = torch.eye(80).expand(8, 80, 80)
    c_v = 0.3 * torch.randn(8, 16, 16, generator=generator)
    c_v = c_v + 0.3 * one_hot(p, 16)
    assert bool((frank_wolfe(c_v, c_e, e_s, e_t, 5, 2) == p).all(1).float().mean() > 0.8)


@pytest.mark.parametrize("lambda_", [0.5, 3.0, 80.0])
def test_the_gradient_is_that_of_two_solutions(lambda_):
    c_v, c_e, e_s, e_t = graphs(6, 8, 3, dtype=torch.float64)
    c_v.requires_grad_()
    c_e.requires_grad_()
    loss, v = PerturbedMatch.apply(c_v, c_e, e_s, e_t, lambda_, 5, 2)
    weight = torch.arange(1.0, 7.0, dtype=torch.float64)
    (loss * weight).sum().backward()
    g = 1 - 2 * torch.eye(8, dtype=torch.float64)
    other = frank_wolfe(c_v - lambda_ * g, c_e, e_s, e_t, 5, 2)
    m, m_other = (one_hot(p, 8).double() for p in (v, other))
    torch.testing.assert_close(loss, (m * g).sum((1, 2)) + 8)
    scale = (weight / lambda_)[:, None, None]
    torch.testing.assert_close(c_v.grad, (m - m_other) * scale)
    for q in range(6):
        for s, (i, j) in enumerate(e_s[q].tolist()):
            a, b = e_t[q].T
            kept = m[q, i, a] * m[q, j, b] - m_other[q, i, a] * m_other[q, j, b]
            torch.testing.assert_close(c_e.grad[q, s], kept * scale[q, 0])


def test_the_second_solution_is_the_identity_wherever_that_is_claimed():
    claimed = 0
    for seed, lambda_ in itertools.product(range(6), (2.0, 8.0, 20.0, 60.0)):
        c_v, c_e, e_s, e_t = graphs(4, 6, 2, seed)
        known = is_identity(c_v, c_e, e_s, lambda_)
        shifted = c_v - lambda_ * (1 - 2 * torch.eye(6))
        identity = torch.arange(6).expand(4, 6)
        best = best_of_all(shifted, c_e, e_s, e_t)
        worth = value_of(shifted, c_e, e_s, e_t, identity)
        torch.testing.assert_close(worth[known], best[known])
        assert bool((frank_wolfe(shifted, c_e, e_s, e_t)[known] == identity[known]).all())
        claimed += int(known.sum())
    assert 20 < claimed < 90


def test_down_the_gradient_the_matching_becomes_the_identity():
    c_v, c_e, e_s, e_t = graphs(4, 8, 3)
    c_v.requires_grad_()
    found = []
    for k in range(60):
        loss, _ = perturbed_match(c_v, c_e, e_s, e_t, beta=0.05, generator=stream(k, "noise"))
        found.append(float(loss.detach().mean()))
        (gradient,) = torch.autograd.grad(loss.sum(), c_v)
        c_v.data -= 20 * gradient
    assert found[0] > 8
    assert sum(found[-10:]) == 0


def test_graphs_without_edges_are_assigned():
    c_v, _, e_s, e_t = graphs(3, 7, 2)
    none = (torch.zeros(3, 0, 0), e_s[:, :0], e_t[:, :0])
    assert torch.equal(frank_wolfe(c_v, *none), assign(c_v))
    loss, _ = perturbed_match(c_v.requires_grad_(), *none)
    loss.sum().backward()
    assert c_v.grad.abs().max() > 0
