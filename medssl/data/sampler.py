"""Which images step t sees: a function of seed, step and rank, and of nothing else.

No reader holds chance of its own, so that their number, how far they read ahead, and restarts
change no batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from medssl.core.random import stream


@dataclass(frozen=True)
class Draw:
    """One image of a batch."""

    index: int
    """Which of the images."""
    place: int
    """In the endless order of draws; names the chance of its crops and changes."""


class Plan:
    """Endless random orders of images, one after the other, cut into batches.

    Rank r takes the r-th part of the batch of all ranks, so that two ranks with half the batch
    see what one sees with the whole.

    Args:
        seed: Of the orders.
        n: Images.
        batch: Images of a step on one rank.
        rank: Which of the processes this is.
        world: How many there are.
    """

    def __init__(self, seed: int, n: int, batch: int, rank: int = 0, world: int = 1) -> None:
        self.seed, self.n, self.rank, self.world = seed, n, rank, world
        self.size = batch
        """Images of a step on one rank."""

    def batch(self, step: int) -> list[Draw]:
        """The images of a step on this rank."""
        first = (step * self.world + self.rank) * self.size
        return [self._draw(first + k) for k in range(self.size)]

    def apart(self, step: int, clusters: Tensor) -> list[Draw]:
        """The same with at most one image of each cluster in the batch of all ranks.

        Args:
            step: Names the chance.
            clusters: (n,) int64, of each image; negative ones are in none and not drawn.
        """
        generator = stream(self.seed, f"clusters/{step}")
        known = torch.unique(clusters[clusters >= 0])
        first = self.rank * self.size
        wanted = known[torch.randperm(len(known), generator=generator)][: self.world * self.size]
        draws = []
        for k, cluster in enumerate(wanted.tolist()):
            members = (clusters == cluster).nonzero()[:, 0]
            one = int(members[torch.randint(len(members), (), generator=generator)])
            if first <= k < first + self.size:
                draws.append(Draw(one, step * self.world * self.size + k))
        return draws

    def _draw(self, place: int) -> Draw:
        epoch, at = divmod(place, self.n)
        return Draw(int(_order(self.seed, epoch, self.n)[at]), place)


def repeats(kinds: Sequence[str], most: int) -> list[int]:
    """How often each image comes in an epoch, so that rare kinds come as often as common ones.

    Args:
        kinds: Of the images.
        most: Times that an image comes, whatever its kind.
    """
    counts = {kind: kinds.count(kind) for kind in set(kinds)}
    largest = max(counts.values(), default=0)
    times = {kind: min(most, largest // count) for kind, count in counts.items()}
    return [times[kind] for kind in kinds]


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, n: int) -> Tensor:
    return torch.randperm(n, generator=stream(seed, f"order/{epoch}"))
