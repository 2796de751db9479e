"""Norms whose moments see active sites only, and all ranks."""

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from medssl.core.ranks import sum_with_grad, world


class BatchNorm(nn.Module):
    r"""Batch norm for any number of spatial axes, with the names of torch's in its state.

    With m = 1 at active sites, n their number in the batches of all ranks, and a shift s,

    .. math:: \mu = s + \tfrac1n \sum m (x - s), \qquad
              \sigma^2 = \tfrac1n \sum m (x - s)^2 - (\mu - s)^2 .

    s is the running mean, so that no digits are lost where the mean is large. The running variance
    is the unbiased one. Where a single site is active, the running moments serve instead.

    Args:
        width: Channels.
        eps: Added to the variance.
        momentum: Share of the present moments in the running ones.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, width: int, *, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalise.

        Args:
            x: (B, C, *S).
            mask: (B, 1, *S), 1 or True at active sites; None where all are.

        Returns:
            Of the shape of `x`; what it holds at inactive sites means nothing.
        """
        if not self.training or (mask is None and world() == 1 and x[:, 0].numel() > 1):
            if self.training:
                self.num_batches_tracked += 1
            return batch_norm(
                x,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                self.training,
                self.momentum,
                self.eps,
            )
        mean, variance = self._moments(x, mask)
        columns = (1, -1) + (1,) * (x.ndim - 2)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shift = self.bias - mean * scale
        return torch.addcmul(shift.reshape(columns), x, scale.reshape(columns)).to(x.dtype)

    def _moments(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and variance (C,), and the running ones moved towards them."""
        axes = (0, *range(2, x.ndim))
        columns = (1, -1) + (1,) * (x.ndim - 2)
        away = x.to(self.weight.dtype) - self.running_mean.reshape(columns)
        if mask is None:
            count = away.new_full((1,), x[:, 0].numel())
        else:
            away = away * mask
            count = mask.sum(dtype=away.dtype).reshape(1)
        sums = sum_with_grad(torch.cat([away.sum(axes), away.square().sum(axes), count]))
        width, n = len(self.weight), sums[-1]
        first, second = sums[:width] / n, sums[width:-1] / n
        mean = self.running_mean + first
        variance = (second - first.square()).clamp_min(0)
        enough = n > 1
        mean = torch.where(enough, mean, self.running_mean)
        variance = torch.where(enough, variance, self.running_var)
        with torch.no_grad():
            share = self.momentum * enough
            unbiased = variance * n / (n - 1).clamp_min(1)
            self.running_mean += share * (mean - self.running_mean)
            self.running_var += share * (unbiased - self.running_var)
            self.num_batches_tracked += 1
        return mean, variance
