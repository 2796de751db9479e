"""What is remembered of clusters of the images of a store: centroids, and who belongs where."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from medssl.core.cluster import spherical_kmeans

UNKNOWN = -1
"""The cluster of an image that was in no bank yet."""


class Clusters(nn.Module):
    """Groups of images as they were last found.

    Args:
        k: How many.
        width: D, of the embeddings.
        n_iter: Iterations of k-means.
    """

    centroids: Tensor
    assignment: Tensor

    def __init__(self, k: int, width: int, n_iter: int = 10) -> None:
        super().__init__()
        self.n_iter = n_iter
        self.register_buffer("centroids", normalize(torch.randn(k, width)))
        self.register_buffer("assignment", torch.empty(0, dtype=torch.long))

    @torch.no_grad()
    def find(self, bank: Tensor, index: Tensor, generator: torch.Generator) -> None:
        """Group the images of a bank anew.

        Args:
            bank: (n, D) embeddings, of any length.
            index: (n,) int64, which images of the store these are.
            generator: The source of chance.

        Raises:
            UsageError: Fewer images than clusters.
        """
        centroids, found = spherical_kmeans(bank, len(self.centroids), self.n_iter, generator)
        self.centroids.copy_(centroids)
        size = max(len(self.assignment), int(index.max()) + 1)
        assignment = index.new_full((size,), UNKNOWN, device=self.centroids.device)
        assignment[: len(self.assignment)] = self.assignment
        assignment[index.to(assignment.device)] = found.to(assignment.device)
        self.assignment = assignment

    @torch.no_grad()
    def of(self, z: Tensor, index: Tensor | None) -> Tensor:
        """The cluster (B,) of images: as it was found, or the nearest where they were in no bank.

        Args:
            z: (B, D) embeddings.
            index: (B,) int64, which images of the store these are; None where that is not known.
        """
        nearest = (normalize(z) @ self.centroids.to(z).T).argmax(1)
        if index is None or len(self.assignment) == 0:
            return nearest
        known = self.assignment[index.clamp_max(len(self.assignment) - 1)]
        known = known.masked_fill(index >= len(self.assignment), UNKNOWN)
        return torch.where(known == UNKNOWN, nearest, known)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """The images of a store are as many as the checkpoint knew of."""
        saved = state_dict.get(f"{prefix}assignment")
        if saved is not None and saved.ndim == 1:
            self.assignment = self.assignment.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def held(prototypes: Tensor) -> Tensor:
    """The same values, with gradients that are 0."""
    never = torch.zeros_like(prototypes, dtype=torch.bool)
    return torch.where(never, prototypes, prototypes.detach())
