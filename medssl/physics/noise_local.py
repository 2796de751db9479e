r"""Local noise spectra: what the noise of a CT is here, not on average.

Streaks make noise strong in one direction here and in another there. The variance V of each cosine
coefficient X of 8x8 windows is therefore learnt place by place. Given V, a pilot spectrum q of
thresholded windows tells signal from noise, and each window w expects the noise power

.. math:: E_w = \big((1 - g) X\big)^2 + g V, \qquad g = \frac{q^2}{q^2 + V},

the second moment of Gaussian noise of variance V in a Gaussian signal of variance q squared. Where
signal rules (g near 1) nothing is learnt and V stays. Smoothing E over some 12 pixels gives the
next V: an expectation-maximisation that starts at the separable model of `noise_psd`. The mean
(DC) of a window shows no noise, it follows the others.
Reference: Dempster, Laird, Rubin. Maximum Likelihood from Incomplete Data via the EM Algorithm.
J R Stat Soc B 1977.
"""

import functools

import torch
from torch import Tensor
from torch.nn.functional import fold

from medssl.physics.cosine import cosines
from medssl.physics.noise_psd import CELL, SMOOTH, WINDOW, gaussian

APART = 10.0
"""mm; streaks of shoulders or hips do not change faster along the patient."""
MOST_SLICES = 48
STEP = CELL // 2
"""Distance of windows; every other one is centred on a cell."""
ITERATIONS = 6
HARD = 2.8
"""Threshold of the pilot in standard deviations of the coefficient."""
LEAST_POWER = 1e-8
"""HU^2; keeps constant images from dividing by zero."""


def local_slices(count: int, spacing: float) -> tuple[int, ...]:
    """Slices to look at, some `APART` mm from each other, at most `MOST_SLICES`.

    Args:
        count: Slices of the scan.
        spacing: Distance of neighbours, mm.
    """
    parts = min(MOST_SLICES, count, max(1, round(count * spacing / APART)))
    return tuple(int((k + 0.5) * count / parts) for k in range(parts))


def local_powers(image: Tensor, sigma: Tensor, shape: Tensor) -> Tensor:
    """Variance of the cosine coefficients of noise around each cell of a slice.

    Args:
        image: (x, y) HU, finite.
        sigma: (x, y) first guess of the standard deviation of the noise, HU.
        shape: (WINDOW, WINDOW) standard deviation of each coefficient relative to it.

    Returns:
        (WINDOW, WINDOW, cells x, cells y) HU^2; its mean over coefficients is the local variance.
    """
    size = [_reach(n) for n in image.shape]
    square = shape.flatten().square()
    x = _windows(_padded(image, size))
    level = _padded(sigma, size)[WINDOW // 2 :: STEP, WINDOW // 2 :: STEP]
    start = (level[: x.shape[0], : x.shape[1], None].square() * square).clamp_min(LEAST_POWER)
    power = start
    for _ in range(ITERATIONS):
        q2 = _windows(_pilot(x, power, size)).square()
        g = q2 / (q2 + power)
        expected = (x * (1 - g)).square() + g * power
        power = gaussian(expected, SMOOTH / STEP).clamp_min(LEAST_POWER)
        power[..., 0] = square[0] * power[..., 1:].mean(-1) / square[1:].mean()
    return power[1::2, 1::2].permute(2, 0, 1).unflatten(0, (WINDOW, WINDOW)).contiguous()


def _reach(n: int) -> int:
    """Pixels under the windows of an axis of n."""
    return (-(-n // CELL) + 1) * CELL


def _padded(image: Tensor, size: list[int]) -> Tensor:
    """Half a window of reflected pixels in front, and up to `size`."""
    for axis, stop in enumerate(size):
        n = image.shape[axis]
        at = torch.arange(stop) - STEP
        image = image.index_select(axis, torch.minimum(at % (2 * n), (-1 - at) % (2 * n)))
    return image


@functools.cache
def _basis() -> Tensor:
    return torch.kron(cosines(WINDOW).float(), cosines(WINDOW).float())


def _windows(padded: Tensor) -> Tensor:
    """(windows x, windows y, WINDOW^2) coefficients."""
    windows = padded.unfold(0, WINDOW, STEP).unfold(1, WINDOW, STEP)
    return windows.reshape(*windows.shape[:2], -1) @ _basis().T


def _pilot(x: Tensor, power: Tensor, size: list[int]) -> Tensor:
    """(*size) image from the coefficients that stand out, windows weighted by their noise."""
    kept = (x.square() > HARD**2 * power).to(x)
    kept[..., 0] = 1
    weight = 1 / (kept * power).sum(-1, keepdim=True)
    values = (x * kept * weight) @ _basis()
    pair = torch.stack([values, weight.expand_as(values)]).flatten(1, 2).transpose(1, 2)
    total = fold(pair, (size[0], size[1]), WINDOW, stride=STEP)[:, 0]
    return total[0] / total[1]
