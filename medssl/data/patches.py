"""Random crops of one scan: what step t sees follows from the seed and t alone."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from medssl.core.batch import Noisy
from medssl.core.random import stream


def crops(
    slices: Sequence[Tensor],
    sigmas: Sequence[Tensor | None],
    *,
    size: int | None,
    count: int,
    steps: int,
    seed: int,
    multiple: int = 8,
) -> Iterator[Noisy]:
    """Batches of square crops, each from one slice.

    Args:
        slices: (H, W) images of one size, scaled as the method wants them.
        sigmas: (H, W) noise of each slice, or None.
        size: Side of a crop; None, or more than a slice has, takes whole slices.
        count: Crops in a batch.
        steps: Number of batches.
        seed: Of the whole run.
        multiple: Crops start at multiples of it, so that patches of a net stay aligned.

    Yields:
        Images (count, 1, h, w) with a generator of their own.
    """
    device = slices[0].device
    for step in range(steps):
        generator = stream(seed, f"crops/{step}")
        images, noises = [], []
        for _ in range(count):
            pick = int(torch.randint(len(slices), (), generator=generator))
            image, sigma = slices[pick], sigmas[pick]
            window = tuple(
                _window(n, size, multiple, generator) for n in (image.shape[-2], image.shape[-1])
            )
            images.append(image[window])
            if sigma is not None:
                noises.append(sigma[window])
        yield Noisy(
            torch.stack(images)[:, None],
            sigma=torch.stack(noises)[:, None] if noises else None,
            generator=stream(seed, f"loss/{step}", device),
        )


def _window(n: int, size: int | None, multiple: int, generator: torch.Generator) -> slice:
    if size is None or size >= n:
        return slice(0, n)
    places = (n - size) // multiple + 1
    start = multiple * int(torch.randint(places, (), generator=generator))
    return slice(start, start + size)
