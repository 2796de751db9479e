"""How close one image is to another."""

import torch
from torch import Tensor


def psnr(image: Tensor, reference: Tensor, *, peak: float, where: Tensor | None = None) -> float:
    """Peak signal-to-noise ratio in dB, without clipping.

    Args:
        image: What is judged.
        reference: The truth, same shape.
        peak: Range of the values.
        where: Voxels that count; None means all.
    """
    difference = (image.double() - reference.double()) ** 2
    if where is not None:
        difference = difference[where]
    return float(10 * torch.log10(peak**2 / difference.mean()))
