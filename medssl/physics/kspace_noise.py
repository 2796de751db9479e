r"""Noise of the receivers: its covariance from what a scan brings along.

The covariance is :math:`\Psi = E[n n^H]`; sigma is the standard deviation of each real component of
one sample, so that a coil has :math:`\Psi_{cc} = 2 \sigma_c^2`. Sources, in order: a noise scan;
the periphery of k-space, where little signal is left. The periphery is taken at all frequencies of
the readout alike, because the receiver's filter makes the noise fall off towards the edges of an
image, whose background would then say too little.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Source = Literal["noise scan", "edge of k-space"]

FEW = 10
"""Samples for each coil below which only the diagonal is believed."""
MAD = 0.6744897501960817
"""Median of |x| of a standard normal number."""


@dataclass(frozen=True, eq=False)
class Receivers:
    """What is known of the noise of a set of coils.

    Args:
        covariance: (coil, coil) complex128, E[n n^H].
        source: What it was taken from.
        shrunk: Only its diagonal could be believed.
    """

    covariance: Tensor
    source: Source
    shrunk: bool

    @property
    def sigma(self) -> Tensor:
        """(coil,) standard deviation of each real component."""
        return (self.covariance.diagonal().real / 2).sqrt()

    @property
    def condition(self) -> float:
        """Largest over smallest eigenvalue of the covariance."""
        values = torch.linalg.eigvalsh(self.covariance)
        return float(values[-1] / values[0].clamp_min(1e-300))


def from_noise_scan(noise: Tensor) -> Receivers:
    """From (coil, n) samples that hold noise only."""
    return _receivers(noise.to(torch.complex128), noise.shape[1], "noise scan")


def from_edge(samples: Tensor, distance: Tensor) -> Receivers:
    """From the measured samples that lie farthest from DC.

    Args:
        samples: (coil, n) measured samples.
        distance: (n,) of each from DC.

    Returns:
        Covariance of the samples beyond 90 % of the largest distance, or of more where these are
        too few. Scales are those of the median modulus, which the rest of the signal hardly moves.
    """
    n_coils = samples.shape[0]
    wanted = min(max(20 * n_coils, 400), samples.shape[1])
    cut = min(0.9 * float(distance.max()), float(distance.topk(wanted).values[-1]))
    chosen = samples[:, distance >= cut].to(torch.complex128)
    parts = torch.cat([chosen.real, chosen.imag], 1)
    scale = (parts.abs().median(1).values / MAD).clamp_min(1e-300)
    # A sample with signal lies far out in most coils at once; it is left out of the correlations.
    length = (chosen.abs() / scale[:, None]).square().mean(0)
    calm = chosen[:, length <= 2 * length.median()]
    plain = _receivers(calm, calm.shape[1], "edge of k-space")
    share = (scale * 2**0.5) / plain.covariance.diagonal().real.sqrt().clamp_min(1e-300)
    return Receivers(share[:, None] * plain.covariance * share[None, :], plain.source, plain.shrunk)


def _receivers(samples: Tensor, count: int, source: Source) -> Receivers:
    covariance = samples @ samples.mH / max(count, 1)
    values = torch.linalg.eigvalsh(covariance)
    shrunk = count < FEW * samples.shape[0] or bool(values[0] <= 1e-6 * values[-1])
    if shrunk:
        covariance = torch.diag(covariance.diagonal())
    return Receivers(covariance, source, shrunk)
