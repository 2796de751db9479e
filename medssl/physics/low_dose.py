r"""Low-dose CT from a full-dose image: photon and electronic noise on line integrals.

With the line integrals :math:`p = R\mu` of :math:`\mu = \mu_w (1 + \mathrm{HU}/1000)`,

.. math:: c \sim \mathrm{Poisson}(N_0 e^{-p}) + \mathcal N(0, \sigma_e^2), \qquad
          \hat p = -\log(\max(c, 1) / N_0) ,

and both p and its noisy form are reconstructed by the same filtered back-projection, so that their
difference is the noise and nothing else.
Departs from a scanner: parallel beam, one energy, no bow-tie filter, no scatter, 2D slices.
Reference: Yu et al. Development and Validation of a Practical Lower-Dose-Simulation Tool for
Optimizing Computed Tomography Scan Protocols. J Comput Assist Tomogr 2012.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from medssl.core.errors import InputError
from medssl.physics.radon import Kernel, Radon, fbp, view_angles

WATER = 0.0192
"""Attenuation of water, 1/mm."""

LIMITS = (-1024.0, 3071.0)
"""What a CT image holds, HU."""


def simulate_low_dose(
    hu: Tensor,
    spacing: Sequence[float],
    *,
    photons: float,
    electronic_variance: float = 10.0,
    kernel: Kernel = "hann",
    generator: torch.Generator,
    n_angles: int = 360,
) -> tuple[Tensor, Tensor]:
    """The same slices with and without noise.

    Args:
        hu: (x, y) or (x, y, z) in HU.
        spacing: mm along each axis; x and y are equal.
        photons: Photons per ray before the patient, N_0.
        electronic_variance: Variance of the detector's own noise, in counts squared.
        kernel: Reconstruction kernel.
        generator: The source of chance.
        n_angles: Views over 180 degrees.

    Returns:
        Clean and noisy images of the shape of `hu`, in HU, within `LIMITS`.

    Raises:
        InputError: Pixels are not square, or there are no photons.
    """
    if abs(spacing[0] / spacing[1] - 1) > 0.01:
        raise InputError(
            f"pixels of {spacing[0]:g} x {spacing[1]:g} mm", "resample to square pixels first"
        )
    if not photons > 0:
        raise InputError(f"{photons:g} photons per ray", "give a positive number")
    slices = torch.movedim(hu, -1, 0) if hu.ndim == 3 else hu[None]
    shape = (slices.shape[1], slices.shape[2])
    mu = (WATER * (1 + slices / 1000)).clamp_min(0)
    angles = view_angles(n_angles)
    p = Radon(shape, angles).forward(mu) * spacing[0]
    clean, noisy = (
        _image(q / spacing[0], angles, shape, kernel)
        for q in (p, noisy_integrals(p, photons, electronic_variance, generator))
    )
    if hu.ndim == 3:
        return torch.movedim(clean, 0, -1), torch.movedim(noisy, 0, -1)
    return clean[0], noisy[0]


def noisy_integrals(
    p: Tensor, photons: float, electronic_variance: float, generator: torch.Generator
) -> Tensor:
    """Line integrals as measured with N_0 = `photons` per ray, of any shape, without unit."""
    counts = torch.poisson(photons * torch.exp(-p), generator=generator)
    white = torch.randn(p.shape, dtype=p.dtype, device=p.device, generator=generator)
    counts += electronic_variance**0.5 * white
    return -torch.log(counts.clamp_min(1) / photons)


def _image(p: Tensor, angles: Tensor, shape: tuple[int, int], kernel: Kernel) -> Tensor:
    """Images in HU from line integrals per pixel length."""
    mu = fbp(p, angles, shape, kernel=kernel)
    return ((mu / WATER - 1) * 1000).clamp(*LIMITS)
