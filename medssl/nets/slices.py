"""Volumes as batches of slices, for filters that look along two axes."""

from collections.abc import Callable

from torch import Tensor


def as_batch(volume: Tensor) -> Tensor:
    """(B, C, x, y, z) to (B z, C, x, y)."""
    return volume.movedim(-1, 1).flatten(0, 1)


def as_volume(slices: Tensor, depth: int) -> Tensor:
    """(B z, C, x, y) to (B, C, x, y, z)."""
    return slices.unflatten(0, (-1, depth)).movedim(1, -1)


def on_axes(n_axes: int, net: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    """A net for two or three axes on an image of either.

    Args:
        n_axes: Axes of the net, 2 or 3.
        net: (B, C, *spatial) to the same with any number of channels.
        image: (B, C, x, y) or (B, C, x, y, z); a volume passes a net of two axes slice by slice, a
            picture passes one of three as a single slice.
    """
    given = image.ndim - 2
    if given == n_axes:
        return net(image)
    if given == 3:
        return as_volume(net(as_batch(image)), image.shape[-1])
    return net(image[..., None])[..., 0]
