"""What a method learns of a scan as a whole before its tiles are restored."""

import torch

from medssl.core.image import Image
from medssl.core.random import stream
from medssl.engine.infer import Scaling, read_batch
from medssl.engine.sample import blocks, middle_channel, volumes_looked_at

VOXELS = 300_000
"""Voxels that are looked at; a smaller scan as a whole."""
SERIES_VALUES = 10_000_000
"""The same for a method that sees all volumes at once, counting each value of them."""
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
    channel, volumes = middle_channel(image), volumes_looked_at(scale.method, image)
    most = min(VOXELS, SERIES_VALUES // (volumes.stop - volumes.start))
    parts = blocks(image, channel, voxels=most, size=min(BLOCK, most), floor=scale.floor)
    batches = []
    for k, part in enumerate(parts):
        generator = stream(seed, f"settle/{k}")
        batch, _ = read_batch(scale, image, volumes, part, device, generator)
        batches.append(batch)
    with torch.no_grad():
        scale.method.settle(batches, scale.trust)
