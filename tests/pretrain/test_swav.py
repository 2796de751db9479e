"""SwAV and DeepCluster-v2."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize

from medssl.core.cluster import sinkhorn
from medssl.core.errors import UsageError
from medssl.core.random import stream
from medssl.pretrain.swav import Config

NET = {"width": 4, "depths": [1], "bottleneck": False, "stem": "small"}
SMALL = {"net": NET, "hidden": 8, "out": 6, "K": [5], "small": 1}


def test_it_is_the_swapped_cross_entropy_of_its_equation(two_ranks):
    case = two_ranks.Case("swav", SMALL | {"small": 0, "T": 0.2, "epsilon": 0.1})
    method = two_ranks.built(case)
    batch = replace(two_ranks.phantom_views(method.sees, case), progress=0.5)
    z = normalize(method.projector(method.embed(torch.cat(batch.views))))
    s_a, s_b = (z @ method.prototypes[0].T).chunk(2)
    q_a, q_b = sinkhorn(s_a, 0.1, 3), sinkhorn(s_b, 0.1, 3)
    each = [(q_b * (s_a / 0.2).log_softmax(1)).sum(1), (q_a * (s_b / 0.2).log_softmax(1)).sum(1)]
    expected = -torch.stack(each).mean()
    torch.testing.assert_close(method.loss(batch)["swap"], expected)


def test_prototypes_wait_at_first_and_stay_of_length_one(two_ranks):
    case = two_ranks.Case("swav", SMALL | {"frozen": 0.1})
    method = two_ranks.built(case)
    batch = two_ranks.phantom_views(method.sees, case)
    (c,) = method.prototypes
    method.loss(batch)["swap"].backward()
    assert c.grad.abs().max() == 0
    method.zero_grad()
    method.loss(replace(batch, progress=0.1))["swap"].backward()
    assert c.grad.abs().max() > 0
    with torch.no_grad():
        c *= 3
        method.after_step(0.2)
    torch.testing.assert_close(c.norm(dim=1), torch.ones(5, dtype=torch.float64))


def test_the_queue_keeps_the_newest_and_joins_when_it_is_full(two_ranks):
    case = two_ranks.Case("swav", SMALL | {"queue": 12, "queue_from": 0.0})
    method = two_ranks.built(case)
    alone = two_ranks.built(two_ranks.Case("swav", SMALL))
    batches = [two_ranks.phantom_views(method.sees, case, k) for k in range(3)]
    found = [[m.loss(b)["swap"].detach() for b in batches] for m in (method, alone)]
    assert found[0][:2] == found[1][:2]
    assert found[0][2] != found[1][2]
    assert int(method.queued) == 24
    z = [normalize(method.projector(method.embed(torch.cat(b.views)))) for b in batches[1:]]
    torch.testing.assert_close(method.queue[0, :8], z[1][:8])
    torch.testing.assert_close(method.queue[1, 8:], z[0][8:12])
    before = method.queue.clone()
    method.eval().loss(batches[0])
    assert torch.equal(before, method.queue)


def test_clusters_of_the_store_are_what_views_are_asked_for(two_ranks):
    case = two_ranks.Case("swav", SMALL | {"codes": "kmeans", "refresh": 7, "K": [3, 4]})
    method = two_ranks.built(case)
    assert method.refresh_every == 7
    assert not list(method.prototypes)
    bank = torch.randn(30, 4, generator=stream(0, "bank"), dtype=torch.float64)
    method.refresh(bank, torch.arange(30) * 2, stream(0, "refresh"))
    assert method.projector.training
    for clusters, k in zip(method.clusters, (3, 4), strict=True):
        assert clusters.centroids.shape == (k, 6)
        assert clusters.assignment.shape == (59,)
        assert bool((clusters.assignment[1::2] == -1).all())
        assert len(clusters.assignment[::2].unique()) == k
    batch = two_ranks.phantom_views(method.sees, case)
    batch = replace(batch, index=torch.arange(8) * 2)
    with torch.no_grad():
        one = method.loss(batch)["cluster"]
        for clusters in method.clusters:
            clusters.assignment.zero_()
        assert method.loss(batch)["cluster"] != one


def test_what_is_known_of_clusters_is_saved(two_ranks):
    case = two_ranks.Case("swav", SMALL | {"codes": "kmeans"})
    method, other = two_ranks.built(case), two_ranks.built(case)
    bank = torch.randn(30, 4, generator=stream(0, "bank"), dtype=torch.float64)
    method.refresh(bank, torch.arange(30), stream(0, "refresh"))
    other.load_state_dict(method.state_dict())
    assert torch.equal(other.clusters[0].assignment, method.clusters[0].assignment)


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"K": (1,)}, "K is \\[1\\]"),
        ({"K": ()}, "K is \\[\\]"),
        ({"T": 0.0}, "T is 0"),
        ({"n_iter": 0}, "n_iter is 0"),
        ({"views": 1, "small": 0}, "1 large and 0 small"),
        ({"codes": "kmeans", "queue": 8}, "queue is 8"),
    ],
)
def test_numbers_with_which_nothing_is_learnt_are_refused(change, fact):
    with pytest.raises(UsageError, match=fact):
        Config(**change).build()
