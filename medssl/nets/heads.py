"""Small networks on top of an encoder, which training needs and nobody keeps."""

import torch
from torch import nn

from medssl.nets.norms import BatchNorm


def mlp(width: int, hidden: int, out: int, layers: int) -> nn.Sequential:
    """Linear layers, each but the last followed by a batch norm over all ranks and a ReLU.

    Args:
        width: Of what it is given, (B, width).
        hidden: Of the layers within.
        out: Of what comes back, (B, out).
        layers: How many linear layers, 1 or more.
    """
    parts: list[nn.Module] = []
    for k in range(layers):
        last = k == layers - 1
        wide = out if last else hidden
        parts.append(nn.Linear(width, wide, bias=last))
        if not last:
            parts += [BatchNorm(wide), nn.ReLU(inplace=True)]
        width = wide
    return nn.Sequential(*parts)


@torch.no_grad()
def follow(mean: nn.Module, net: nn.Module, decay: float) -> None:
    """Move the weights of a running mean of a net towards those of the net."""
    for old, new in zip(mean.parameters(), net.parameters(), strict=True):
        old.lerp_(new, 1 - decay)
