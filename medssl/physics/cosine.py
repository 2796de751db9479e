"""The cosine transform in which noise and anatomy part."""

import functools
import math

import torch
from torch import Tensor


@functools.cache
def cosines(n: int) -> Tensor:
    """(n, n) float64 orthonormal DCT-II, one basis function per row."""
    k = torch.arange(n, dtype=torch.float64)
    rows = torch.cos(math.pi / n * (k[None] + 0.5) * k[:, None]) * math.sqrt(2 / n)
    rows[0] = math.sqrt(1 / n)
    return rows
