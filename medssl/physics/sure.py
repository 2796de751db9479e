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

from medssl.core.shapes import cell_sums

EPSILON = 0.05
"""Step of the probe in standard deviations of the noise."""
RIDGE = 1e-3
"""Noise variances; combinations that change the first estimate by less are mostly chance."""
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
    sums = cell_sums(w * (term - mean), CELL)
    return mean, float(sums.square().sum()) ** 0.5 / total


def signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """Random signs of the shape of `like` (Rademacher)."""
    chance = torch.randint(0, 2, like.shape, generator=generator, device=generator.device)
    return chance.to(like) * 2 - 1


def let_weights(
    candidates: Tensor,
    noisy: Tensor,
    slopes: Tensor,
    variance: Tensor,
    weight: Tensor,
) -> Tensor:
    r"""The weights of several estimates whose sum has the least estimated error.

    With deviations :math:`d_k = F_k - F_1` from the first estimate the estimated error of
    :math:`F_1 + \sum_k a_k d_k` is quadratic in a, and its minimum solves

    .. math:: \big(\langle d_k d_l \rangle + \rho\,\delta_{kl}\big)\, a_l = \langle d_k (z - F_1)
              - v\, \mathrm{div}\, d_k \rangle .

    :math:`\rho` holds on to the first estimate where the others hardly differ from it, since
    there the estimate of the divergences is mostly chance. The noisy image itself may be a
    candidate; its weight is kept from being negative, which would mean that the noise level is
    too high.

    Args:
        candidates: (k, *spatial) estimates, the first the one to fall back on, the last the noisy
            image itself.
        noisy: (*spatial) z.
        slopes: (k, *spatial) probe times change of each estimate per unit of the probe, see `sure`.
        variance: Noise variance, broadcastable to `noisy`; 1 is the unit of `RIDGE`.
        weight: (*spatial) non-negative, where the error matters.

    Returns:
        (k,) float64 weights of sum 1; (1, 0, ...) where the combination is not better by more than
        its standard error.

    Reference: Luisier, Blu, Unser. A New SURE Approach to Image Denoising: Interscale Orthonormal
    Wavelet Thresholding. IEEE TIP 2007 (linear expansion of thresholds).
    """
    count = weight.double().sum()
    w = weight.double() / count
    first = candidates[0].double()
    away = candidates[1:].double() - first
    slope = slopes.double()
    gain = (noisy.double() - first) * away - variance.double() * (slope[1:] - slope[0])
    axes = tuple(range(1, away.ndim))
    right = (w * gain).sum(axes)
    flat = away.flatten(1)
    left = (w.flatten() * flat) @ flat.T
    kept = torch.arange(len(left), device=left.device)
    found = _ridge_solution(left, right)
    if found[-1] < 0:
        kept = kept[:-1]
        found = _ridge_solution(left[:-1, :-1], right[:-1])
    term = torch.tensordot(found, 2 * gain[kept], 1) - (
        torch.tensordot(found, away[kept], 1).square()
    )
    mean = float((w * term).sum())
    error = float(cell_sums(w * (term - mean), CELL).square().sum()) ** 0.5
    weights = torch.zeros(len(candidates), dtype=torch.float64, device=left.device)
    if mean > error:
        weights[1 + kept] = found
    weights[0] = 1 - weights.sum()
    return weights


def _ridge_solution(left: Tensor, right: Tensor) -> Tensor:
    ridge = RIDGE * torch.eye(len(left), dtype=left.dtype, device=left.device)
    return torch.linalg.solve(left + ridge, right)
