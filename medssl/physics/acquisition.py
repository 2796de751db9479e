"""From a batch of k-space to the linear system that its images solve."""

from collections.abc import Callable

import torch
from torch import Tensor

from medssl.core.batch import Acquired
from medssl.core.random import stream
from medssl.physics.coils import SPATIAL, Sense
from medssl.physics.nufft import SenseNufft
from medssl.physics.operator import Operator
from medssl.physics.solve import Normal, power_iteration

Solver = Callable[[Normal, Tensor, Tensor | None], Tensor]
"""From A^H A of norm 1, A^H y and a first guess to images."""


def model(batch: Acquired) -> Operator:
    """Images (..., set, H, W) to what was measured of them."""
    if batch.trajectory is not None:
        return SenseNufft(batch.coil_maps, batch.trajectory)
    return Sense(batch.coil_maps, batch.sampling)


def solved(batch: Acquired, solver: Solver) -> Tensor:
    """Images that a solver finds, which works with the centre at index 0: that is faster.

    Returns:
        (..., set, H, W) complex, centred.
    """
    start = None if batch.start is None else torch.fft.ifftshift(batch.start, SPATIAL)
    if batch.trajectory is None:
        grid = Sense(batch.coil_maps, batch.sampling).wrapped()
        b = grid.adjoint(torch.fft.ifftshift(batch.kspace, SPATIAL))
        return torch.fft.fftshift(solver(grid.normal, b, start), SPATIAL)
    shots = SenseNufft(batch.coil_maps, batch.trajectory, batch.sampling)
    b = shots.adjoint(batch.sampling * batch.kspace)

    # The step makes the system one of norm 1, as it is on a grid.
    step = 1 / power_iteration(shots.normal, b, stream(0, "largest eigenvalue"))

    def normal(x: Tensor) -> Tensor:
        return step * torch.fft.ifftshift(shots.normal(torch.fft.fftshift(x, SPATIAL)), SPATIAL)

    return torch.fft.fftshift(
        solver(normal, step * torch.fft.ifftshift(b, SPATIAL), start), SPATIAL
    )


def data_error(batch: Acquired, image: Tensor, weights: Tensor | None = None) -> Tensor:
    """(...) sum of squares of what the images leave unexplained of the measured samples.

    Args:
        batch: What was measured.
        image: (..., set, H, W).
        weights: (..., 1, H, W) of the points; None means 1 for all that were measured.
    """
    missed = torch.view_as_real(model(batch)(image) - batch.kspace).square().sum(-1)
    each = batch.sampling if weights is None else weights
    return (each * missed).sum((-3, -2, -1))
