"""Embeddings into groups: equal shares by optimal transport, or k-means on the sphere."""

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from medssl.core.errors import UsageError
from medssl.core.precise import full_precision
from medssl.core.ranks import gather

CHUNK = 1 << 24
"""Similarities that are held at a time."""


@torch.no_grad()
@full_precision
def sinkhorn(scores: Tensor, epsilon: float, n_iter: int) -> Tensor:
    r"""Codes that share the images of all ranks out equally among the prototypes.

    The Sinkhorn-Knopp iterations, on logarithms, towards

    .. math:: \max_{Q \ge 0} \; \mathrm{tr}(Q^T S) + \epsilon H(Q) \quad \text{with} \quad
              \sum_k Q_{ik} = 1, \qquad \sum_i Q_{ik} = N / K ,

    N the images of all ranks. The last step gives each image a total of 1.

    Args:
        scores: (B, K) similarity S of each image of this rank to each prototype; B may differ
            between ranks.
        epsilon: Softness of the codes.
        n_iter: Iterations.

    Returns:
        (B, K) the codes Q of the images of this rank.

    Reference: Caron et al. Unsupervised Learning of Visual Features by Contrasting Cluster
    Assignments. NeurIPS 2020. Cuturi. Sinkhorn Distances. NeurIPS 2013.
    """
    log_q = scores / epsilon
    for _ in range(n_iter):
        log_q = log_q - gather(log_q.logsumexp(0, keepdim=True)).logsumexp(0)
        log_q = log_q.log_softmax(1)
    return log_q.exp()


@torch.no_grad()
@full_precision
def spherical_kmeans(
    bank: Tensor, k: int, n_iter: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    r"""Groups of directions: each vector in that of the centroid with the largest cosine.

    A cluster that comes out empty takes the vector that fits its own worst, of those that are
    not alone in theirs. Equal arguments give equal results, so that ranks that hold the same bank
    need not talk.

    Args:
        bank: (N, D) vectors, of any length.
        k: Clusters, N at most.
        n_iter: Iterations.
        generator: Draws the vectors that the centroids start from.

    Returns:
        Centroids (k, D) of length 1, and the cluster (N,) int64 of each vector; none is empty.

    Raises:
        UsageError: Fewer vectors than clusters, or fewer than one cluster.

    Reference: Dhillon, Modha. Concept Decompositions for Large Sparse Text Data using Clustering.
    Machine Learning 42, 2001.
    """
    if not 1 <= k <= len(bank):
        raise UsageError(
            f"{len(bank)} images cannot make {k} clusters", f"ask for 1 to {len(bank)} clusters"
        )
    bank = normalize(bank)
    order = torch.randperm(len(bank), generator=generator, device=generator.device)
    centroids = bank[order[:k].to(bank.device)]
    for _ in range(n_iter):
        centroids = _means(bank, _filled(*_nearest(bank, centroids), k), centroids)
    closeness, nearest = _nearest(bank, centroids)
    assignment = _filled(closeness, nearest, k)
    moved = assignment != nearest
    centroids[assignment[moved]] = bank[moved]
    return centroids, assignment


def _nearest(bank: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """The largest cosine (N,), and the centroid (N,) that has it."""
    parts = bank.split(max(1, CHUNK // len(centroids)))
    found = [(part @ centroids.T).max(1) for part in parts]
    return torch.cat([one.values for one in found]), torch.cat([one.indices for one in found])


def _filled(closeness: Tensor, nearest: Tensor, k: int) -> Tensor:
    """Clusters (N,) of which none is empty."""
    sizes = nearest.bincount(minlength=k).tolist()
    empty = [j for j, size in enumerate(sizes) if size == 0]
    if not empty:
        return nearest
    filled = nearest.clone()
    for i in closeness.argsort(stable=True).tolist():
        home = int(nearest[i])
        if sizes[home] > 1:
            sizes[home] -= 1
            filled[i] = empty.pop(0)
            if not empty:
                break
    return filled


def _means(bank: Tensor, assignment: Tensor, centroids: Tensor) -> Tensor:
    """The direction (k, D) of the sum of each cluster; the centroid stays where that is 0.

    Sums are products of matrices, which are the same each time on a GPU too.
    """
    sums = torch.zeros_like(centroids)
    step = max(1, CHUNK // len(centroids))
    for part, where in zip(bank.split(step), assignment.split(step), strict=True):
        sums += one_hot(where, len(centroids)).to(part).T @ part
    return torch.where(sums.norm(dim=1, keepdim=True) > 0, normalize(sums), centroids)
