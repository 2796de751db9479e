r"""Two noisy images from one: recorruption that leaves their noise independent.

With a share :math:`0 < \alpha < 1` and the true image x, :math:`y_1` and :math:`y_2` have mean x,
are independent given x, and :math:`y = (1 - \alpha) y_1 + \alpha y_2`:

.. math:: \text{Gaussian:}\quad & y_1 = y + \sigma a u, \quad a = \sqrt{\alpha / (1 - \alpha)}, \\
          \text{Poisson:}\quad & y_1 = \frac{y - g w}{1 - \alpha}, \quad
              w \sim \mathrm{Bin}(y / g, \alpha), \\
          \text{Gamma:}\quad & y_1 = \frac{y (1 - w)}{1 - \alpha}, \quad
              w \sim \mathrm{Beta}(k \alpha, k (1 - \alpha)) .

Reference: Pang, Zheng, Quan, Ji. Recorrupted-to-Recorrupted: Unsupervised Deep Learning for Image
Denoising. CVPR 2021. Monroy, Bacca, Tachella. Generalized Recorrupted-to-Recorrupted. CVPR 2025.
"""

import torch
from torch import Tensor


def gaussian_pair(
    noisy: Tensor, sigma: Tensor | float, alpha: float, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """A pair for additive normal noise.

    Args:
        noisy: Any shape.
        sigma: Standard deviation of its noise, broadcastable to it.
        alpha: Share of y_2; the noise of y_1 has 1 / (1 - alpha) times the variance.
        generator: The source of chance, on the device of `noisy`.

    Returns:
        y_1 and y_2, like `noisy`.
    """
    u = torch.randn(noisy.shape, generator=generator, dtype=noisy.dtype, device=noisy.device)
    a = (alpha / (1 - alpha)) ** 0.5
    return noisy + a * sigma * u, noisy - sigma * u / a


def poisson_pair(
    noisy: Tensor, gain: float, alpha: float, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """A pair for counts times a gain (image units per count); arguments as for `gaussian_pair`."""
    counts = (noisy / gain).clamp_min(0).round()
    taken = torch.binomial(counts, torch.full_like(counts, alpha), generator=generator)
    return gain * (counts - taken) / (1 - alpha), gain * taken / alpha


def gamma_pair(
    noisy: Tensor, looks: float, alpha: float, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """A pair for speckle of so many looks; arguments as for `gaussian_pair`."""
    part, rest = (
        torch._standard_gamma(torch.full_like(noisy, looks * share), generator=generator)
        for share in (alpha, 1 - alpha)
    )
    w = part / (part + rest)
    return noisy * (1 - w) / (1 - alpha), noisy * w / alpha
