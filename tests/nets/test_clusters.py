"""What is remembered of clusters."""

import pytest
import torch
from torch.nn.functional import normalize

from medssl.core.random import stream
from medssl.nets.clusters import UNKNOWN, Clusters


@pytest.fixture
def clusters():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Clusters(4, 6)


def test_images_that_were_in_no_bank_belong_to_the_nearest_centroid(clusters):
    z = torch.randn(5, 6, generator=stream(0, "z"))
    nearest = (normalize(z) @ clusters.centroids.T).argmax(1)
    assert torch.equal(clusters.of(z, None), nearest)
    assert torch.equal(clusters.of(z, torch.arange(5)), nearest)
    bank = torch.randn(20, 6, generator=stream(0, "bank"))
    clusters.find(bank, torch.arange(20) + 3, stream(0, "k"))
    nearest = (normalize(z) @ clusters.centroids.T).argmax(1)
    index = torch.tensor([0, 3, 22, 23, 1000])
    found = clusters.of(z, index)
    assert torch.equal(found[[0, 3, 4]], nearest[[0, 3, 4]])
    assert torch.equal(found[1:3], clusters.assignment[[3, 22]])
    assert clusters.assignment[0] == UNKNOWN


def test_a_part_of_the_store_leaves_what_is_known_of_the_rest(clusters):
    bank = torch.randn(20, 6, generator=stream(0, "bank"))
    clusters.find(bank, torch.arange(20), stream(0, "k"))
    before = clusters.assignment.clone()
    clusters.find(bank[:8], torch.arange(8), stream(1, "k"))
    assert torch.equal(clusters.assignment[8:], before[8:])
