"""Raw scans and simulated ones, brought to the coils and maps that a reconstruction would use."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch

from medssl.config import Raw, Recipe
from medssl.core.errors import InputError
from medssl.core.kspace import KSpace
from medssl.core.run import Run
from medssl.data.raw import BRIGHT, Scan, Slice, centre_of
from medssl.data.simulate import COILS, FINE, Simulated, phantom, simulate_multicoil
from medssl.engine.device import Machine
from medssl.engine.recon import Asked, Prepared, drafted, few_of, maps_of
from medssl.method import Reconstructor
from medssl.physics.coils import root_sum_of_squares
from medssl.physics.sampling import reach

LEAST_COVERED = 0.75
"""Share of k-space that a fully sampled scan covers: an ellipse has 0.785, and what misses more
(partial Fourier) shows too little to be a truth."""


@dataclass(frozen=True, eq=False)
class Source:
    """Where slices come from.

    Args:
        recipe: Of the method that learns.
        method: What it needs of coils.
        machine: Where coil maps are estimated.
        raw: How fully sampled scans are measured.
    """

    recipe: Recipe
    method: Reconstructor
    machine: Machine
    raw: Raw

    @property
    def most_coils(self) -> int:
        """Of a simulated scan."""
        return min(COILS[1], Asked(recipe=self.recipe, why="").coils)

    @property
    def generated_bytes(self) -> int:
        """Of a generated scan in memory: k-space and maps."""
        return 16 * self.most_coils * self.raw.size**2

    def opened(self, scan: KSpace, run: Run) -> Prepared:
        """A scan with its coils, as `medssl recon` would see it.

        Of a fully sampled one no more of the centre may be used for coil maps than its patterns
        will measure.

        Raises:
            InputError: It cannot be reconstructed, or not by a net.
        """
        refuse_off_grid(scan)
        asked = Asked(recipe=self.recipe, why="")
        ready = drafted(scan, asked, self.machine, run, lambda *_: None, self.method, {})
        if not fully_sampled(ready):
            return ready
        centre = centre_of(ready.slices.shape, self.raw)
        block = min(ready.block[0], centre[0]), min(ready.block[1], centre[1])
        return dataclasses.replace(ready, block=block)

    def held(self, ready: Prepared, most: int, own: int | None) -> Scan:
        """Slices in memory.

        Args:
            ready: The scan.
            most: Slices, evenly spaced.
            own: Number of the pattern that a fully sampled scan always has; None keeps its truth.
        """
        full = fully_sampled(ready)
        found: list[Slice] = []
        for k in few_of(ready.slices, most):
            kspace = ready.chain(ready.slices.kspace([k]))
            maps = maps_of(ready, [k], kspace, None)[0]
            found.append(
                Slice(
                    kspace[0].cpu(),
                    maps[0].cpu(),
                    float(ready.chain.sigma.mean()),
                    None if full else ready.slices.sampling(k),
                    own,
                )
            )
        return Scan(tuple(found))

    def generated(self, number: int, own: int | None) -> Slice:
        """A simulated scan of a generated picture."""
        size = self.raw.size
        picture = phantom((FINE * size, FINE * size), number)
        made = simulate_multicoil(picture, number, shape=(size, size))
        return self.simulated(made, number, own)

    def simulated(self, made: Simulated, number: int, own: int | None) -> Slice:
        """A simulated scan with noise, its coils compressed as those of any other.

        Args:
            made: What is measured.
            number: Of the scan. Every other one has the maps that it was made with; those of the
                rest are estimated from its noisy centre.
            own: Number of the pattern that it always has; None keeps its truth.
        """
        rng = np.random.default_rng((number, 3))
        bright = float(np.quantile(made.image.abs().numpy(), BRIGHT))
        scan = made.measured(float(rng.uniform(*self.raw.noise)) * bright, number)
        ready = self.opened(scan, Run("train"))
        if number % 2:
            return self.held(ready, 1, own).slices[0]
        maps = ready.chain(made.coil_maps[None])[0]
        maps = maps / torch.linalg.vector_norm(maps, dim=0).clamp_min(1e-12)
        maps = maps * torch.polar(torch.ones_like(maps[0].real), -maps[0].angle())
        kspace = ready.chain(ready.slices.kspace([0]))[0]
        sigma = float(ready.chain.sigma.mean())
        return Slice(kspace.cpu(), maps[None].cpu(), sigma, None, own)


def refuse_off_grid(scan: KSpace) -> None:
    """Refuse what nets cannot take.

    Raises:
        InputError: Samples that do not lie on a grid.
    """
    if scan.trajectory is not None:
        raise InputError("its samples lie off the grid", "nets take Cartesian scans only")


def fully_sampled(ready: Prepared) -> bool:
    """Whether everything that the protocol covers was measured, and that is nearly everything."""
    patterns = [ready.slices.sampling(k) for k in few_of(ready.slices)]
    return all(p.mean() >= LEAST_COVERED and p.sum() >= reach(p).sum() for p in patterns)


def relative_sigma(ready: Prepared) -> float:
    """Noise of each real component, where images are about 1, from the middle slice."""
    kspace = ready.chain(ready.slices.kspace([ready.slices.n // 2]))
    bright = float(np.quantile(root_sum_of_squares(kspace).cpu().numpy(), BRIGHT))
    return float(ready.chain.sigma.mean()) / max(bright, 1e-30)
