r"""Stein's unbiased estimate of the error of a filter, without the truth.

For an image z with noise of variance v and covariance C, a filter F, one probe b with mean 0 and
covariance C, and a small :math:`\epsilon`, the mean squared error is estimated by

.. math:: \left\langle (F(z) - z)^2 - v + 2 b \,
              \frac{F(z + \epsilon b) - F(z)}{\epsilon} \right\rangle .

Reference: Ramani, Blu, Unser. Monte-Carlo SURE. IEEE TIP 2008.
"""

from collections.abc import Callable

import torch
from torch import Tensor

EPSILON = 0.05
"""Step of the probe in standard deviations of the noise."""
CELL = 4
"""Voxels per axis summed before the spread is taken: neighbours within a window are dependent."""


def sure(
    restore: Callable[[Tensor], Tensor],
    noisy: Tensor,
    variance: Tensor,
    probe: Tensor,
    weight: Callable[[Tensor], Tensor] | None = None,
) -> tuple[float, float]:
    """Mean squared error of a filter and its standard error, in units of `noisy` squared.

    Unbiased only if `variance` is right: a sigma that is wrong by d (relative) moves the value by
    about 2 d variances.

    Args:
        restore: (*spatial) to the same; called twice.
        noisy: (*spatial).
        variance: Noise variance, broadcastable to `noisy`.
        probe: (*spatial) b: for white noise signs times the standard deviation (`signs`), for
            coloured noise a sample of it.
        weight: From the restored image to (*spatial) non-negative numbers: where the error matters.
            It must not be made from `noisy`, whose noise would select itself. None: everywhere.

    Returns:
        Estimate of mean (F(z) - x)^2, which may be negative, and its standard error.

    Raises:
        ValueError: The weights are all zero.
    """
    restored = restore(noisy)
    change = (restore(noisy + EPSILON * probe) - restored) / EPSILON
    v = variance.double()
    term = (restored - noisy).double().square() - v + 2 * (probe * change).double()
    w = torch.ones_like(term) if weight is None else weight(restored).double().expand(term.shape)
    total = float(w.sum())
    if not total > 0:
        raise ValueError(f"the weights of {w.numel()} voxels sum to {total}")
    mean = float((w * term).sum()) / total
    sums = _summed(w * (term - mean))
    return mean, float(sums.square().sum()) ** 0.5 / total


def signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """Random signs of the shape of `like` (Rademacher)."""
    chance = torch.randint(0, 2, like.shape, generator=generator, device=generator.device)
    return chance.to(like) * 2 - 1


def _summed(x: Tensor) -> Tensor:
    """Sums over cells of `CELL` voxels per axis."""
    for axis in range(x.ndim):
        n = x.shape[axis]
        wide = x.new_zeros([*x.shape[:axis], -(-n // CELL) * CELL, *x.shape[axis + 1 :]])
        wide.narrow(axis, 0, n).copy_(x)
        x = wide.unflatten(axis, (-1, CELL)).sum(axis + 1)
    return x
