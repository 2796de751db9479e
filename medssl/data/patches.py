"""Random crops of one scan: what step t sees follows from the seed and t alone."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from medssl.core.batch import Noisy
from medssl.core.random import stream

HELD = "held"
"""In the place of a step: the batch that is looked at and not learnt from."""


def crops(
    images: Sequence[Tensor],
    sigmas: Sequence[Tensor | None],
    *,
    size: int | None,
    count: int,
    steps: int,
    seed: int,
    multiple: int = 8,
) -> Iterator[Noisy]:
    """Batches of square or cubic crops, each from one image.

    Args:
        images: (*spatial) two or three axes, of one size, scaled as the method wants them.
        sigmas: (*spatial) noise of each image, or None.
        size: Side of a crop; None, or more than an axis has, takes the whole axis.
        count: Crops in a batch.
        steps: Number of batches.
        seed: Of the whole run.
        multiple: Crops start at multiples of it, so that patches of a net stay aligned.

    Yields:
        Images (count, 1, *crop) with a generator of their own and the share of the steps done.
    """
    for step in range(steps):
        yield one(
            images,
            sigmas,
            size=size,
            count=count,
            seed=seed,
            step=step,
            progress=step / steps,
            multiple=multiple,
        )


def one(
    images: Sequence[Tensor],
    sigmas: Sequence[Tensor | None],
    *,
    size: int | None,
    count: int,
    seed: int,
    step: int | str,
    progress: float = 0.0,
    multiple: int = 8,
) -> Noisy:
    """The batch of one step; arguments as for `crops`."""
    generator = stream(seed, f"crops/{step}")
    chosen, noises = [], []
    for _ in range(count):
        pick = int(torch.randint(len(images), (), generator=generator))
        image, sigma = images[pick], sigmas[pick]
        part = tuple(window(n, size, multiple, generator) for n in image.shape)
        chosen.append(image[part])
        if sigma is not None:
            noises.append(sigma[part])
    return Noisy(
        torch.stack(chosen)[:, None],
        sigma=torch.stack(noises)[:, None] if noises else None,
        generator=stream(seed, f"loss/{step}", images[0].device),
        progress=progress,
    )


def window(n: int, size: int | None, multiple: int, generator: torch.Generator) -> slice:
    """A random part of an axis of n voxels that starts at a multiple; all of it if it is short."""
    if size is None or size >= n:
        return slice(0, n)
    places = (n - size) // multiple + 1
    start = multiple * int(torch.randint(places, (), generator=generator))
    return slice(start, start + size)
