"""What peers need to be compared: unit Gaussian noise for them, one similarity for all."""

from collections.abc import Callable

import numpy as np
import torch
from skimage.metrics import structural_similarity

from medssl.physics.noise import Law
from medssl.physics.stabilise import Stabiliser

Array = np.ndarray


def stabilised(law: Law, y: Array, method: Callable[[Array], Array]) -> Array:
    """A method for unit Gaussian noise between a variance stabilisation and its exact inverse."""
    change = Stabiliser(law)
    z = change.forward(torch.from_numpy(y)).numpy()
    return change.inverse(torch.from_numpy(np.asarray(method(z), np.float32))).numpy()


def similarity(x: Array, out: Array) -> tuple[float, Array]:
    """SSIM and its map against the truth, Gaussian window of 1.5, data range 1."""
    return structural_similarity(
        x,
        out,
        data_range=1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
