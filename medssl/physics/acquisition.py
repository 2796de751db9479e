"""From a batch of k-space to the linear system that its images solve."""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from medssl.core.batch import Acquired
from medssl.core.random import stream
from medssl.physics.coils import SPATIAL, Sense
from medssl.physics.nufft import SenseNufft
from medssl.physics.operator import Operator
from medssl.physics.sampling import Parting, split
from medssl.physics.solve import Normal, fista_l1, power_iteration

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


def few_wavelets(
    batch: Acquired, lambda_: float, *, seed: int, iterations: int, levels: int
) -> Tensor:
    """Images (..., set, H, W) that few wavelets describe; see `solve.fista_l1`.

    Args:
        batch: What was measured, and maybe an image to begin with.
        lambda_: Weight of the wavelets where images are about 1.
        seed: Of the shifts.
        iterations: Steps.
        levels: Of the wavelet transform.
    """

    def solve(normal: Normal, b: Tensor, start: Tensor | None) -> Tensor:
        return fista_l1(
            normal,
            b,
            torch.tensor(lambda_),
            stream(seed, "shifts"),
            start=start,
            iterations=iterations,
            levels=levels,
        )

    return solved(batch, solve)


def known(batch: Acquired) -> Sense:
    """The model of everything that is known on a grid: what was measured, and zeros at the edge.

    Its adjoint of `batch.kspace` is that of `model`, because k-space is zero at the edge.
    """
    sampling = batch.sampling
    if batch.edge is not None:
        sampling = torch.maximum(sampling, batch.edge)
    return Sense(batch.coil_maps, sampling)


def with_noise(batch: Acquired, sigma: tuple[float, float]) -> Acquired:
    """The same measurement with more noise, where something was measured and nowhere else.

    Args:
        batch: Its generator is the source of chance.
        sigma: Least and largest standard deviation of the noise that is added to each real
            component; every problem has one of its own, drawn evenly.
    """
    y, before, (low, high) = batch.kspace, batch.level, sigma
    share = torch.rand(before.shape, generator=batch.generator, device=y.device)
    level = low + (high - low) * share
    parts = torch.randn((*y.shape, 2), generator=batch.generator, device=y.device)
    noise = level * torch.view_as_complex(parts).to(y.dtype)
    return dataclasses.replace(
        batch, kspace=y + noise * batch.sampling, sigma=torch.hypot(before, level)
    )


def parted(
    batch: Acquired, fraction: float, kind: Parting, keep: tuple[int, int]
) -> tuple[Acquired, Tensor]:
    """What is left to see of a measurement, and the points (..., 1, H, W) that are kept aside.

    Args:
        batch: Its generator is the source of chance.
        fraction: Share of the points that are kept aside.
        kind: How they are drawn.
        keep: Central block that stays.
    """
    theta, aside = split(batch.sampling, fraction, batch.generator, kind=kind, keep=keep)
    return dataclasses.replace(batch, kspace=batch.kspace * theta, sampling=theta), aside


def unexplained(batch: Acquired, image: Tensor, at: Tensor | None = None) -> Tensor:
    """(..., coil, H, W) what the images say of the samples less what was measured, 0 elsewhere.

    Args:
        batch: What was measured.
        image: (..., set, H, W).
        at: (..., 1, H, W) points that count; None means all that were measured.
    """
    if at is not None:
        return at * (Sense(batch.coil_maps, at)(image) - batch.kspace)
    return batch.sampling * (model(batch)(image) - batch.kspace)


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
