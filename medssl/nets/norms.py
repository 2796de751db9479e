"""Norms whose moments see active sites only, and all ranks."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import batch_norm, group_norm, layer_norm

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
            share = self.momentum * enough.to(mean.dtype)
            unbiased = variance * n / (n - 1).clamp_min(1)
            self.running_mean += share * (mean - self.running_mean)
            self.running_var += share * (unbiased - self.running_var)
            self.num_batches_tracked += 1
        return mean, variance


class GroupNorm(nn.Module):
    r"""Group norm over the active sites of each image, with the names of torch's in its state.

    With m = 1 at active sites and n their number times the channels of a group,

    .. math:: \mu = \tfrac1n \sum m x, \qquad \sigma^2 = \tfrac1n \sum m (x - \mu)^2 .

    Args:
        groups: Of channels.
        width: Channels.
        eps: Added to the variance.
        affine: Whether channels have a weight and a bias.
    """

    def __init__(self, groups: int, width: int, *, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__()
        self.groups, self.eps = groups, eps
        self.weight = nn.Parameter(torch.ones(width)) if affine else None
        self.bias = nn.Parameter(torch.zeros(width)) if affine else None

    def forward(self, x: Tensor, mask: Tensor | None = None, parts: int = 1) -> Tensor:
        """Normalise.

        Args:
            x: (B * parts, C, *S).
            mask: (B * parts, 1, *S), 1 or True at active sites; None where all are.
            parts: Tiles that one image consists of, one after the other.

        Returns:
            Of the shape of `x`; what it holds at inactive sites means nothing.
        """
        weight, bias = self.weight, self.bias
        if mask is None and parts == 1:
            return group_norm(x, self.groups, weight, bias, self.eps)
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        shape = (len(x) // parts, parts, self.groups, x.shape[1] // self.groups, -1)
        seen = None if mask is None else mask.to(exact.dtype).reshape(*shape[:2], 1, 1, -1)
        y = _Standardised.apply(exact.reshape(shape), seen, self.eps)  # type: ignore[no-untyped-call]
        y = y.reshape(x.shape)
        if weight is not None and bias is not None:
            columns = (1, -1) + (1,) * (x.ndim - 2)
            y = torch.addcmul(bias.reshape(columns), y, weight.reshape(columns))
        return y.to(x.dtype)


class InstanceNorm(GroupNorm):
    """Each channel of each image by itself, over its active sites.

    Args:
        width: Channels.
        eps: Added to the variance.
        affine: Whether channels have a weight and a bias.
    """

    def __init__(self, width: int, *, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__(width, width, eps=eps, affine=affine)


class LayerNorm(nn.Module):
    """All channels of each site by themselves: the same whatever is active.

    Args:
        width: Channels, the second axis.
        eps: Added to the variance.
    """

    def __init__(self, width: int, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalise (B, C, *S); the mask is there for the sake of the other norms."""
        del mask
        last = x.movedim(1, -1)
        return layer_norm(last, last.shape[-1:], self.weight, self.bias, self.eps).movedim(-1, 1)


class _Standardised(torch.autograd.Function):
    """(x - mean) / sd of (B, parts, groups, channels, sites) over parts, channels and sites.

    Only the result is kept for the way back.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor | None, eps: float) -> Tensor:
        axes = (1, 3, 4)
        if mask is None:
            n = x.new_full((1,), x.shape[1] * x.shape[3] * x.shape[4])
            mean = x.mean(axes, keepdim=True)
            y = x - mean
            rest = y
        else:
            n = (mask.sum(axes, keepdim=True) * x.shape[3]).clamp_min(1)
            mean = (x * mask).sum(axes, keepdim=True) / n
            y = x - mean
            rest = y * mask
        spread = torch.linalg.vector_norm(rest, dim=axes, keepdim=True)
        scale = torch.rsqrt(spread.square() / n + eps)
        y.mul_(scale)
        ctx.save_for_backward(y, mask, scale, n)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        axes = (1, 3, 4)
        y, mask, scale, n = ctx.saved_tensors
        mean = gradient.sum(axes, keepdim=True) / n
        slope = (gradient * y).sum(axes, keepdim=True) / n
        away = torch.addcmul(mean, y, slope)
        if mask is not None:
            away.mul_(mask)
        return (gradient - away).mul_(scale), None, None


Norm = BatchNorm | GroupNorm | LayerNorm


def adopt(module: nn.Module) -> nn.Module:
    """Put the norms of this file in the place of torch's, in a net that another package built.

    Names, parameters and results stay as they were.

    Args:
        module: Changed in place.

    Returns:
        The module, or its successor where it is a norm itself.
    """
    for name, child in list(module.named_children()):
        new = adopt(child)
        if new is not child:
            setattr(module, name, new)
    new = module
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
        new = BatchNorm(module.num_features, eps=module.eps, momentum=module.momentum or 0.1)
    elif isinstance(module, nn.GroupNorm):
        new = GroupNorm(
            module.num_groups, module.num_channels, eps=module.eps, affine=module.affine
        )
    elif isinstance(module, nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d):
        if module.track_running_stats:
            return module
        new = InstanceNorm(module.num_features, eps=module.eps, affine=module.affine)
    if new is not module:
        for one in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if one.is_floating_point():
                new.to(one.device, one.dtype)
        new.load_state_dict(module.state_dict())
        new.train(module.training)
    return new


def has_moments(module: nn.Module) -> bool:
    """Whether a net keeps moments of what it saw, which must be those of what it will see."""
    return any(isinstance(part, BatchNorm) for part in module.modules())


@torch.no_grad()
def calibrate(
    module: nn.Module, forward: Callable[[Tensor], object], images: Iterable[Tensor]
) -> None:
    """Replace the running moments of a net by the means over images.

    Args:
        module: Its batch norms are changed and nothing else; it may be in either mode.
        forward: What is done with images, as in `encoder.features`.
        images: Each (B, C, *S); without any the moments stay.
    """
    found = [part for part in module.modules() if isinstance(part, BatchNorm)]
    modes = {part: part.training for part in module.modules()}
    momenta = [norm.momentum for norm in found]
    module.eval()
    for norm in found:
        norm.train()
    for k, image in enumerate(images):
        for norm in found:
            norm.momentum = 1 / (k + 1)
        forward(image)
    for norm, momentum in zip(found, momenta, strict=True):
        norm.momentum = momentum
    for part, mode in modes.items():
        part.training = mode
