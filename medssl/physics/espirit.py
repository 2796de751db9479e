r"""ESPIRiT: coil maps from the fully sampled centre of k-space.

Every window of the centre, all coils together, lies in the row space of a calibration matrix with
right singular vectors v_k. With u_k(q) the image of v_k as a kernel of K points, the coil maps at
pixel q are the eigenvectors with eigenvalue 1 of

.. math:: G(q) = \frac{N}{K} \sum_k u_k(q) u_k(q)^H .

More than one such eigenvector means that objects of different coil maps lie on top of each other,
as where the field of view is too small; the second set then serves them. G is made from the
kernels' correlations (11 x 11 lags for a window of 6 x 6), so that memory does not grow with their
number.

Reference: Uecker et al. ESPIRiT - an Eigenvalue Approach to Autocalibrating Parallel MRI: Where
SENSE Meets GRAPPA. Magnetic Resonance in Medicine 2014, equations 13 to 21.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from medssl.core.errors import InputError
from medssl.physics.fourier import to_image

KERNEL = 6
"""Points along the side of a window."""
THRESHOLD = 0.02
"""Singular values below this share of the largest are noise."""
PIXELS_AT_ONCE = 1 << 15
"""Whose matrices are diagonalised together."""
FOLDED = 0.8
"""Second eigenvalue above which a pixel holds two objects."""


def espirit(
    calibration: Tensor,
    shape: tuple[int, int],
    n_sets: int = 2,
    threshold: float = THRESHOLD,
    sigma: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Coil maps of slices.

    Args:
        calibration: (B, coil, h, w) fully sampled centre of k-space, DC at (h // 2, w // 2).
        shape: (H, W) of the maps.
        n_sets: Sets of maps, at most the number of coils.
        threshold: Of the singular values, as a share of the largest.
        sigma: Standard deviation of the noise of each real component; singular values that noise
            alone would have are left out too.

    Returns:
        Maps (B, set, coil, H, W), each of unit length with its first coil real and positive, and
        eigenvalues (B, set, H, W) in [0, 1].

    Raises:
        InputError: The calibration block is too small for a window.
    """
    n_batch, n_coils, height, width = calibration.shape
    if min(height, width) < KERNEL:
        raise InputError(
            f"the fully sampled centre of k-space is {height}x{width}, coil maps need at least "
            f"{KERNEL}x{KERNEL}",
            "give maps with --maps",
        )
    projector = _projector(calibration, threshold, sigma)
    lags = _correlations(projector, n_coils)
    n_sets = min(n_sets, n_coils)
    maps = calibration.new_empty(n_batch, n_sets, n_coils, *shape)
    values = calibration.real.new_empty(n_batch, n_sets, *shape)
    for b in range(n_batch):
        g = _images(lags[b], shape, calibration.dtype)
        for start in range(0, g.shape[0], PIXELS_AT_ONCE):
            part = slice(start, start + PIXELS_AT_ONCE)
            found, vectors = torch.linalg.eigh(g[part])
            vectors = vectors.flip(-1)[..., :n_sets]  # (pixel, coil, set)
            first = vectors[:, :1]
            vectors = vectors * torch.where(first == 0, 1, first.conj() / first.abs())
            maps[b].flatten(2)[:, :, part] = vectors.permute(2, 1, 0)
            values[b].flatten(1)[:, part] = found.flip(-1)[:, :n_sets].T.clamp(0, 1)
    return maps, values


def folded(values: Tensor, inside: Tensor) -> float:
    """Share of the object in which two objects lie on top of each other.

    Args:
        values: (B, set, H, W) eigenvalues.
        inside: (B, H, W) bool, the object.
    """
    if values.shape[1] < 2 or not bool(inside.any()):
        return 0.0
    return float((values[:, 1] > FOLDED)[inside].float().mean())


def soften(maps: Tensor, values: Tensor) -> Tensor:
    """Maps whose second set counts only where its eigenvalue is near 1.

    Args:
        maps: (B, set, coil, H, W).
        values: (B, set, H, W) eigenvalues.
    """
    weights = ((values - 0.7) / 0.2).clamp(0, 1)
    weights[:, 0] = 1
    return maps * weights[:, :, None]


def _projector(calibration: Tensor, threshold: float, sigma: float) -> Tensor:
    """(B, n, n) onto the space of windows, n = coils K."""
    windows = calibration.unfold(-2, KERNEL, 1).unfold(-2, KERNEL, 1)  # (B, coil, a, b, K, K)
    rows = windows.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2).to(torch.complex128)
    values, vectors = torch.linalg.eigh(rows.mT @ rows.conj())
    noise = 2 * sigma**2 * (rows.shape[1] ** 0.5 + rows.shape[2] ** 0.5) ** 2
    kept = values > (threshold**2 * values[:, -1:]).clamp_min(noise)
    kept[:, -1] = True
    vectors = vectors * kept[:, None]
    return vectors @ vectors.mH


def _correlations(projector: Tensor, n_coils: int) -> Tensor:
    """(B, coil, coil, 2K-1, 2K-1): sums over pairs of window points with the same distance."""
    shape = (-1, n_coils, KERNEL, KERNEL, n_coils, KERNEL, KERNEL)
    pairs = projector.reshape(shape).permute(0, 1, 4, 2, 3, 5, 6)
    lags = projector.new_zeros(*pairs.shape[:3], 2 * KERNEL - 1, 2 * KERNEL - 1)
    for a in range(KERNEL):
        for b in range(KERNEL):
            # lag (a - c, b - d) for window points (c, d), so their axes run backwards
            lags[..., a : a + KERNEL, b : b + KERNEL] += pairs[..., a, b, :, :].flip(-2, -1)
    return lags


def _images(lags: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """(pixel, coil, coil) matrices G of a slice, from (coil, coil, 2K-1, 2K-1)."""
    n_coils, size = lags.shape[0], lags.shape[-1]
    centre = [n // 2 - size // 2 for n in shape]
    if min(centre) < 0 or min(shape) < size:
        raise InputError(f"a matrix of {shape[0]}x{shape[1]} is too small for coil maps")
    around = (
        centre[1],
        shape[1] - size - centre[1],
        centre[0],
        shape[0] - size - centre[0],
    )
    scale = math.sqrt(shape[0] * shape[1]) / KERNEL**2
    out = lags.new_empty(shape[0] * shape[1], n_coils, n_coils, dtype=dtype)
    for a in range(n_coils):
        images = to_image(pad(lags[a, : a + 1].to(dtype), around)) * scale
        out[:, a, : a + 1] = images.flatten(1).T
        out[:, : a + 1, a] = images.flatten(1).T.conj()
    return out
