"""What a method learns of a scan as a whole before its tiles are restored."""

import torch

from medssl.core.batch import Noisy
from medssl.core.image import Image
from medssl.core.random import stream
from medssl.engine.infer import Scaling, local_sigma, read_tile, seen_from
from medssl.engine.sample import blocks, middle_channel

VOXELS = 300_000
"""Voxels that are looked at; a smaller scan as a whole."""
BLOCK = 32**3
"""Voxels of one block."""


def settle(scale: Scaling, image: Image, device: torch.device, seed: int) -> None:
    """Let a method fix what follows from the scan, on blocks spread over it.

    Args:
        scale: The restorer, fitted, and its domain.
        image: What will be restored.
        device: Where it will run.
        seed: Of the run.
    """
    channel = middle_channel(image)
    batches = []
    for k, part in enumerate(blocks(image, channel, voxels=VOXELS, size=BLOCK, floor=scale.floor)):
        y = read_tile(image, channel, part).to(device)
        local = local_sigma(scale.noise, part)
        z, level = scale.inward(y, None if local is None else local.to(device))
        batches.append(
            Noisy(
                z[None, None],
                sigma=None if level is None else level.to(device).expand(z.shape)[None, None],
                spectrum=seen_from(scale.noise, part),
                generator=stream(seed, f"settle/{k}"),
            )
        )
    with torch.no_grad():
        scale.method.settle(batches, scale.trust)
