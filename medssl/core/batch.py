"""What one step of a method sees: tensors, what is known of them, and one generator."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Spectrum(Protocol):
    """Power spectrum of stationary noise, asked for in the transform that a filter uses."""

    def dct_sigma(self, block: tuple[int, ...]) -> Tensor:
        """Standard deviation of each orthonormal DCT-II coefficient of a noise block.

        Args:
            block: Block size per spatial axis.

        Returns:
            (*block) float32, scaled so that its mean square is 1.
        """
        ...


@dataclass(frozen=True)
class Noisy:
    """Images that carry noise.

    Args:
        image: (B, C, *spatial) float32.
        sigma: Standard deviation of the noise in units of `image`, broadcastable to it; None
            means 1 everywhere (stabilised images).
        spectrum: Power spectrum of the noise over frequencies; None means white.
        generator: The one source of chance.
        progress: Share of the training that is done, 0 to 1.
    """

    image: Tensor
    sigma: Tensor | None = None
    spectrum: Spectrum | None = None
    generator: torch.Generator | None = None
    progress: float = 0.0

    @property
    def level(self) -> Tensor | float:
        """The standard deviation of the noise, broadcastable to the image; 1 where it is."""
        return 1.0 if self.sigma is None else self.sigma
