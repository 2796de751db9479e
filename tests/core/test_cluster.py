"""Groups of embeddings."""

import pytest
import torch
from torch.nn.functional import normalize

from medssl.core.cluster import sinkhorn, spherical_kmeans
from medssl.core.errors import UsageError
from medssl.core.random import stream


def drawn(*shape, name="z"):
    return torch.randn(*shape, generator=stream(0, name), dtype=torch.float64)


def test_codes_have_the_marginals():
    codes = sinkhorn(normalize(drawn(24, 8)) @ normalize(drawn(6, 8, name="c")).T, 0.1, 200)
    torch.testing.assert_close(codes.sum(1), torch.ones(24, dtype=torch.float64))
    torch.testing.assert_close(codes.sum(0), torch.full((6,), 4.0, dtype=torch.float64))


def test_codes_of_three_iterations_are_those_of_the_plain_form():
    scores = normalize(drawn(9, 8)) @ normalize(drawn(5, 8, name="c")).T
    q = (scores / 0.05).exp()
    for _ in range(3):
        q = q / q.sum(0)
        q = q / q.sum(1, keepdim=True)
    torch.testing.assert_close(sinkhorn(scores, 0.05, 3), q)


def test_hard_codes_do_not_overflow():
    codes = sinkhorn(torch.eye(4) * 2 - 1, 1e-3, 3)
    torch.testing.assert_close(codes, torch.eye(4))


def test_planted_groups_are_found():
    centres = torch.eye(5, 12, dtype=torch.float64)
    truth = torch.arange(100) % 5
    bank = (centres[truth] + 0.05 * drawn(100, 12)) * (1 + drawn(100, 1).abs())
    centroids, found = spherical_kmeans(bank, 20, 10, stream(0, "k"))
    for j in range(20):
        assert len(truth[found == j].unique()) == 1
    torch.testing.assert_close(centroids.norm(dim=1), torch.ones(20, dtype=torch.float64))


def test_no_cluster_is_empty_however_many_vectors_are_equal():
    bank = torch.cat([torch.ones(10, 4), torch.eye(4)[:2]])
    centroids, found = spherical_kmeans(bank, 6, 5, stream(0, "k"))
    assert set(found.tolist()) == set(range(6))
    assert bool(torch.isfinite(centroids).all())
    torch.testing.assert_close(centroids.norm(dim=1), torch.ones(6))


def test_one_seed_is_one_result():
    bank = drawn(60, 6)
    first, second = (spherical_kmeans(bank, 7, 4, stream(3, "k")) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_centroids_are_the_directions_of_their_clusters():
    bank = drawn(80, 6)
    centroids, found = spherical_kmeans(bank, 5, 100, stream(0, "k"))
    for j in range(5):
        mean = normalize(normalize(bank)[found == j].sum(0), dim=0)
        torch.testing.assert_close(mean, centroids[j])


@pytest.mark.parametrize("k", [0, 9])
def test_clusters_without_images_are_refused(k):
    with pytest.raises(UsageError, match=f"8 images cannot make {k} clusters"):
        spherical_kmeans(drawn(8, 3), k, 2, stream(0, "k"))
