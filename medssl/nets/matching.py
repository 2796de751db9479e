r"""Which vertex of one graph is which of another: assignments, second order, and their gradient.

A matching V of two graphs of n vertices is a permutation, here as the vertex a = V(i) for each i.
With affinities c_v of vertices and c_e of pairs of directed edges it is worth

.. math:: \langle c, V \rangle = \sum_{ia} c^v_{ia} V_{ia}
          + \sum_{(i \to j), (a \to b)} c^e_{ij,ab} V_{ia} V_{jb} .

Edges are (E, 2): tail and head of each.
"""

from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import one_hot

from medssl.core.precise import full_precision

COARSEST, FINEST, FINER = 0.25, 1e-8, 5.0
"""Steps of the auction over the range of the values: first, last, ratio of one to the next."""
LOOK_EVERY = 8
"""Rounds of the auction between two looks at whether it is over."""
TINY = 1e-12


def assign(cost: Tensor) -> Tensor:
    """The permutation that is worth most: scipy's on the CPU, an auction elsewhere.

    Args:
        cost: (*batch, n, n) finite values c[i, a], of which the sum is to be large.

    Returns:
        (*batch, n) int64, the column of each row.
    """
    squares = cost.detach().reshape(-1, *cost.shape[-2:])
    if cost.device.type == "cpu":
        values = squares.numpy()
        found = [linear_sum_assignment(one, maximize=True)[1] for one in values]
        columns = np.array(found, np.int64).reshape(squares.shape[:2])
        return torch.from_numpy(columns).reshape(cost.shape[:-1])
    return auction(squares).reshape(cost.shape[:-1])


@torch.no_grad()
def auction(cost: Tensor) -> Tensor:
    """`assign` without leaving the device, for many small squares at once.

    Rows bid for columns with what these are worth to them above the next best; the step by which
    prices rise at least is refined until the sum is within 1e-8 n of the range of the values.

    Args:
        cost: (B, n, n) finite.

    Returns:
        (B, n) int64.

    Reference: Bertsekas. The auction algorithm: a distributed relaxation method for the assignment
    problem. Annals of Operations Research 14, 1988.
    """
    n = cost.shape[-1]
    if n <= 1 or len(cost) == 0:
        return cost.new_zeros(cost.shape[:2], dtype=torch.long)
    value = cost.double()
    value = value - value.amin((1, 2), keepdim=True)
    value = value / value.amax((1, 2), keepdim=True).clamp_min(TINY)
    price = value.new_zeros(len(value), n)
    epsilon = COARSEST
    while True:
        owner, price = _sold(value, price, epsilon)
        if epsilon <= FINEST:
            return owner.argsort(1)
        epsilon = max(FINEST, epsilon / FINER)


def _sold(value: Tensor, price: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The row (B, n) that each column went to and the prices, once every row has a column."""
    n = value.shape[-1]
    rows = torch.arange(n, device=value.device)
    owner = torch.full_like(price, -1, dtype=torch.long)
    rounds = 0
    while True:
        has = (owner[:, None, :] == rows[:, None]).any(2)
        if rounds % LOOK_EVERY == 0 and bool(has.all()):
            return owner, price
        rounds += 1
        worth, wanted = (value - price[:, None, :]).topk(2, dim=2)
        rise = worth[..., 0] - worth[..., 1] + epsilon
        asks = (wanted[..., 0, None] == rows) & ~has[..., None]
        bids = torch.where(asks, rise[..., None], -torch.inf)
        best, bidder = bids.max(1)
        sold = best > 0
        price = price + torch.where(sold, best, 0)
        owner = torch.where(sold, bidder, owner)


def value_of(c_v: Tensor, c_e: Tensor, e_s: Tensor, e_t: Tensor, permutation: Tensor) -> Tensor:
    """What matchings are worth.

    Args:
        c_v: (B, n, n) of vertices.
        c_e: (B, E, F) of pairs of edges.
        e_s: (B, E, 2) edges of the first graphs.
        e_t: (B, F, 2) edges of the second.
        permutation: (B, n) int64.

    Returns:
        (B,).
    """
    vertices = c_v.gather(2, permutation[..., None]).sum((1, 2))
    return vertices + (c_e * _kept(e_s, e_t, permutation)).sum((1, 2))


@torch.no_grad()
@full_precision
def frank_wolfe(
    c_v: Tensor, c_e: Tensor, e_s: Tensor, e_t: Tensor, n_iter: int = 5, starts: int = 2
) -> Tensor:
    r"""A matching that is worth much, if not most: steps towards the best assignment of the slope.

    The slope of the quadratic part,

    .. math:: Q(V) = A_s^T (c^e \odot B_s V B_t^T) A_t + B_s^T (c^e \odot A_s V A_t^T) B_t ,

    with the indicators A of tails and B of heads of edges, makes
    :math:`D = \mathrm{assign}(c^v + Q(V)) - V`, and the step along D is the best one. The end is
    rounded, and the assignment of the slope there is tried too.

    Args:
        c_v: (B, n, n) affinities of vertices.
        c_e: (B, E, F) affinities of edges of the first and the second graph.
        e_s: (B, E, 2) int64, tail and head of the edges of the first graphs.
        e_t: (B, F, 2) int64, those of the second.
        n_iter: Steps.
        starts: 1 begins with the assignment of c_v, 2 also with no preference.

    Returns:
        (B, n) int64, of all matchings on the way the one that is worth most; it is worth no less
        than the assignment of c_v.

    Reference: Vogelstein et al. Fast Approximate Quadratic Programming for Graph Matching. PLOS ONE
    10(4), 2015.
    """
    n, n_graphs = c_v.shape[-1], len(c_v)
    first = assign(c_v)
    graphs = (c_v, c_e, e_s, e_t)
    best, worth = first, value_of(*graphs, first)
    v = one_hot(first, n).to(c_v)
    if starts > 1:
        v = torch.cat([v, torch.full_like(c_v, 1 / n)])
        graphs = tuple(torch.cat([x, x]) for x in graphs)  # type: ignore[assignment]
    slopes = _Slopes(*graphs)

    def keep(found: Tensor) -> None:
        nonlocal best, worth
        for one in found.split(n_graphs):
            now = value_of(c_v, c_e, e_s, e_t, one)
            better = now > worth
            best = torch.where(better[:, None], one, best)
            worth = torch.where(better, now, worth)

    q = slopes(v)
    for _ in range(n_iter):
        vertex = assign(graphs[0] + q)
        keep(vertex)
        d = one_hot(vertex, n).to(v) - v
        q_d = slopes(d)
        a = (q_d * d).sum((1, 2)) / 2
        b = ((graphs[0] + q) * d).sum((1, 2))
        step = torch.where(a >= 0, 1.0, (b / (-2 * a).clamp_min(TINY)).clamp(0, 1))[:, None, None]
        v, q = v + step * d, q + step * q_d
    rounded = assign(v)
    keep(rounded)
    keep(assign(graphs[0] + slopes(one_hot(rounded, n).to(v))))
    return best


def perturbed_match(
    c_v: Tensor,
    c_e: Tensor,
    e_s: Tensor,
    e_t: Tensor,
    *,
    beta: float = 0.05,
    lambda_: float = 80.0,
    n_iter: int = 5,
    starts: int = 2,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """How far the matching of affinities with noise is from the identity; see `PerturbedMatch`.

    Args:
        c_v: (B, n, n) affinities of vertices.
        c_e: (B, E, F) affinities of edges.
        e_s: (B, E, 2) int64, edges of the first graphs.
        e_t: (B, F, 2) int64, edges of the second.
        beta: Of the Gumbel noise.
        lambda_: Of the second solution.
        n_iter: Steps of the solver.
        starts: Of the solver.
        generator: Draws the noise; None adds none.

    Returns:
        (B,) wrong vertices, each counted twice, and the matching (B, n) int64.
    """
    if beta > 0 and generator is not None:
        c_v, c_e = (c + beta * _gumbel(c, generator) for c in (c_v, c_e))
    return PerturbedMatch.apply(c_v, c_e, e_s, e_t, lambda_, n_iter, starts)  # type: ignore[no-untyped-call]


class PerturbedMatch(torch.autograd.Function):
    r"""The Hamming distance of a matching from the identity, and its implicit gradient.

    With :math:`g = 1 - 2\,\mathrm{Id}` the loss is :math:`\sum_{ia} g_{ia} V_{ia} + n`, twice the
    number of wrong vertices. For a second matching V' of :math:`c^v - \lambda g`,

    .. math:: \frac{dL}{dc^v} = \frac{V - V'}{\lambda}, \qquad
              \frac{dL}{dc^e_{ij,ab}} = \frac{V_{ia} V_{jb} - V'_{ia} V'_{jb}}{\lambda} .

    It is not solved where V' is known to be the identity: see `is_identity`.

    Reference: Niepert, Minervini, Franceschi. Implicit MLE: Backpropagating Through Discrete
    Exponential Family Distributions. NeurIPS 2021.
    """

    @staticmethod
    def forward(
        ctx: Any,
        c_v: Tensor,
        c_e: Tensor,
        e_s: Tensor,
        e_t: Tensor,
        lambda_: float,
        n_iter: int,
        starts: int,
    ) -> tuple[Tensor, Tensor]:
        """The distance (B,) and the matching (B, n)."""
        v = frank_wolfe(c_v, c_e, e_s, e_t, n_iter, starts)
        ctx.save_for_backward(c_v, c_e, e_s, e_t, v)
        ctx.numbers = lambda_, n_iter, starts
        ctx.mark_non_differentiable(v)
        wrong = v != torch.arange(v.shape[1], device=v.device)
        return 2 * wrong.sum(1).to(c_v.dtype), v

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, gradient: Tensor, _: Tensor
    ) -> tuple[Tensor, Tensor, None, None, None, None, None]:
        """The gradients of both kinds of affinities."""
        c_v, c_e, e_s, e_t, v = ctx.saved_tensors
        lambda_, n_iter, starts = ctx.numbers
        n = c_v.shape[-1]
        other = torch.arange(n, device=v.device).expand_as(v)
        unknown = (~is_identity(c_v, c_e, e_s, lambda_)).nonzero()[:, 0]
        if len(unknown):
            g = 1 - 2 * torch.eye(n, dtype=c_v.dtype, device=v.device)
            some = (c_v[unknown] - lambda_ * g, c_e[unknown], e_s[unknown], e_t[unknown])
            other = other.index_copy(0, unknown, frank_wolfe(*some, n_iter, starts))
        scale = (gradient / lambda_)[:, None, None]
        d_v = (one_hot(v, n) - one_hot(other, n)) * scale
        d_e = (_kept(e_s, e_t, v).to(scale) - _kept(e_s, e_t, other).to(scale)) * scale
        return d_v, d_e, None, None, None, None, None


def is_identity(c_v: Tensor, c_e: Tensor, e_s: Tensor, lambda_: float) -> Tensor:
    r"""Where the best matching of :math:`c^v - \lambda (1 - 2\,\mathrm{Id})` must be the identity.

    Each wrong vertex loses :math:`2 \lambda`, gains at most the range R_v of c_v, and touches at
    most d edges of the first graph, each of which gains at most the range R_e of c_e and 0. So
    :math:`2 \lambda > R_v + d R_e` is enough.

    Args:
        c_v: (B, n, n).
        c_e: (B, E, F).
        e_s: (B, E, 2).
        lambda_: Weight of the identity.

    Returns:
        (B,) bool.
    """
    r_v = c_v.amax((1, 2)) - c_v.amin((1, 2))
    if 0 in c_e.shape[1:]:
        return 2 * lambda_ > r_v
    r_e = c_e.amax((1, 2)).clamp_min(0) - c_e.amin((1, 2)).clamp_max(0)
    d = one_hot(e_s.flatten(1), c_v.shape[-1]).sum(1).amax(1)
    return 2 * lambda_ > r_v + d * r_e


class _Slopes:
    """Q of several graphs: products of matrices, the same each time on a GPU too."""

    def __init__(self, c_v: Tensor, c_e: Tensor, e_s: Tensor, e_t: Tensor) -> None:
        self.c_e, n = c_e, c_v.shape[-1]
        self.a_s, self.b_s = (one_hot(e_s[..., k], n).to(c_v) for k in range(2))
        self.a_t, self.b_t = (one_hot(e_t[..., k], n).to(c_v) for k in range(2))

    def __call__(self, v: Tensor) -> Tensor:
        """Q(V), (B, n, n) as V."""
        heads = self.c_e * (self.b_s @ v @ self.b_t.mT)
        tails = self.c_e * (self.a_s @ v @ self.a_t.mT)
        return self.a_s.mT @ heads @ self.a_t + self.b_s.mT @ tails @ self.b_t


def _kept(e_s: Tensor, e_t: Tensor, permutation: Tensor) -> Tensor:
    """(B, E, F) bool, the pairs of edges of which a matching takes one to the other."""
    there = permutation.gather(1, e_s.flatten(1)).unflatten(1, (-1, 2))
    return (there[:, :, None] == e_t[:, None]).all(-1)


def _gumbel(like: Tensor, generator: torch.Generator) -> Tensor:
    """Noise of the standard Gumbel law, of the shape of a tensor."""
    u = torch.rand(like.shape, generator=generator, device=like.device, dtype=like.dtype)
    tiny = torch.finfo(like.dtype).tiny
    return -(-u.clamp_min(tiny).log()).clamp_min(tiny).log()
