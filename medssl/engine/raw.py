"""Raw scans and generated ones, brought to the coils and maps that a reconstruction would use."""

import dataclasses

import numpy as np
import torch

from medssl.config import Raw, Recipe
from medssl.core.kspace import KSpace
from medssl.core.random import stream
from medssl.core.run import Run
from medssl.data.raw import BRIGHT, Scan, Slice, centre_of
from medssl.data.simulate import FINE, Simulated, phantom, simulate_multicoil
from medssl.engine.device import Machine
from medssl.engine.recon import Asked, Prepared, drafted, few_of, maps_of
from medssl.method import Reconstructor

FULL = 0.999
"""Share of the points from which on a scan is fully sampled."""


def opened(
    scan: KSpace, recipe: Recipe, method: Reconstructor, machine: Machine, raw: Raw, run: Run
) -> Prepared:
    """A scan with its coils, as `medssl recon` would see it.

    Raises:
        InputError: It cannot be reconstructed.
    """
    asked = Asked(recipe=recipe, why="")
    ready = drafted(scan, asked, machine, run, lambda *_: None, method, {})
    if not fully_sampled(ready):
        return ready
    block = [
        min(a, b) for a, b in zip(ready.block, centre_of(ready.slices.shape, raw), strict=True)
    ]
    return dataclasses.replace(ready, block=(block[0], block[1]))


def fully_sampled(ready: Prepared) -> bool:
    """Whether everything was measured, of all slices."""
    return bool(ready.slices.scan.sampling.mean() >= FULL)


def held(ready: Prepared, most: int, own: int | None = None) -> Scan:
    """Slices in memory.

    Args:
        ready: The scan.
        most: Slices, evenly spaced.
        own: Number of the pattern that a fully sampled scan always has; None keeps its truth.
    """
    full = fully_sampled(ready)
    found = []
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


def generated(
    k: int, seed: int, recipe: Recipe, method: Reconstructor, machine: Machine, raw: Raw
) -> Scan:
    """The k-th generated scan."""
    number = int(torch.randint(2**31, (), generator=stream(seed, f"generated/{k}")))
    picture = phantom((FINE * raw.size, FINE * raw.size), number)
    made = simulate_multicoil(picture, number, shape=(raw.size, raw.size))
    return Scan((simulated(made, number, recipe, method, machine, raw),))


def simulated(
    made: Simulated,
    number: int,
    recipe: Recipe,
    method: Reconstructor,
    machine: Machine,
    raw: Raw,
) -> Slice:
    """A simulated scan with noise, its coils compressed as those of any other.

    Args:
        made: What is measured.
        number: Of the scan. Every other one has the maps that it was made with; those of the rest
            are estimated from its noisy centre.
        recipe: Of the method.
        method: That learns.
        machine: Where it runs.
        raw: How it is measured.
    """
    rng = np.random.default_rng((number, 3))
    bright = float(np.quantile(made.image.abs().numpy(), BRIGHT))
    scan = made.measured(float(rng.uniform(*raw.noise)) * bright, number)
    ready = opened(scan, recipe, method, machine, raw, Run("train"))
    if number % 2:
        return held(ready, 1).slices[0]
    maps = ready.chain(made.coil_maps[None])[0]
    maps = maps / torch.linalg.vector_norm(maps, dim=0).clamp_min(1e-12)
    maps = maps * torch.polar(torch.ones_like(maps[0].real), -maps[0].angle())
    kspace = ready.chain(ready.slices.kspace([0]))[0]
    return Slice(kspace.cpu(), maps[None].cpu(), float(ready.chain.sigma.mean()))
