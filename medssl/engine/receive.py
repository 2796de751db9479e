"""What is known of receive coils before an image exists: which live, their noise, their centre."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medssl.core.errors import InputError
from medssl.core.run import Run
from medssl.data.slices import Slices
from medssl.physics.coils import Mixing, virtual_coils, whitening
from medssl.physics.espirit import KERNEL
from medssl.physics.kspace_noise import Receivers, from_edge, from_noise_scan
from medssl.physics.sampling import Mask, calibration_size, central, radius

CALIBRATION = 24
"""Side of the block of k-space that coil maps are made from, at most."""
DEAD = 1e-3
"""Standard deviation of a coil, as a share of the median, below which it is not connected."""


@dataclass(frozen=True, eq=False)
class Chain:
    """What happens to the coils before anything else.

    Args:
        alive: Indices of the coils that hold a signal.
        forward: (virtual, alive) whitening and compression.
        back: (alive, virtual) undoes it, as far as it can be undone.
        sigma: (virtual,) standard deviation of the noise of each real component.
    """

    alive: list[int]
    forward: Tensor
    back: Tensor
    sigma: Tensor

    def __call__(self, kspace: Tensor) -> Tensor:
        """(B, virtual, ...) of (B, coil, ...)."""
        kspace = kspace[:, self.alive].to(self.forward.device)
        return Mixing(self.forward, tuple(kspace.shape[1:]))(kspace)

    def to(self, device: torch.device) -> "Chain":
        """The same on a device."""
        return dataclasses.replace(self, forward=self.forward.to(device), back=self.back.to(device))


def received(
    slices: Slices,
    few: Sequence[int],
    patterns: Sequence[Mask],
    run: Run,
    *,
    most: int | None,
    whiten: bool,
    noise: NDArray[np.complex64] | None,
    calibrated: bool,
) -> tuple[Chain, Receivers, tuple[int, int]]:
    """Coils that live, their noise, and the few combinations that hold the signal.

    Args:
        slices: The scan.
        few: Slices that are looked at.
        patterns: What was measured of each of them.
        run: Told what is odd.
        most: Virtual coils; None takes the coils as they are.
        whiten: Give them independent noise of one level.
        noise: (coil, n) of another noise scan than the scan's own.
        calibrated: Coil maps will be made of the centre.

    Returns:
        What is done to the coils, their noise, and the size of the fully sampled centre.

    Raises:
        InputError: The coils hold nothing, or too little for maps.
    """
    kspace = slices.kspace(few)
    samples = torch.cat(
        [one[:, torch.from_numpy(p)] for one, p in zip(kspace, patterns, strict=True)], 1
    )
    size = torch.view_as_real(samples).square().mean((1, 2)).sqrt()
    if not bool(torch.isfinite(size).all()):
        coil = int(torch.isfinite(size).int().argmin())
        raise InputError(f"coil {coil} holds values that are not finite", "export it again")
    if not bool(size.max() > 0):
        raise InputError("k-space holds zeros only", "check the export of the raw data")
    alive = (size > DEAD * size.median()).nonzero()[:, 0].tolist()
    dead = [c for c in range(len(size)) if c not in alive]
    if dead:
        run.warn(f"coils without a signal are left out: {', '.join(map(str, dead))}")
    samples = samples[alive]
    receivers = _receivers(slices, patterns, samples, noise, alive)
    if receivers.shrunk:
        run.warn("too little noise was seen to know how coils are correlated; taken as independent")
    block = _block(slices, patterns, calibrated=calibrated)
    n = len(alive)
    white = torch.eye(n, dtype=torch.complex128)
    if whiten:
        white = whitening(receivers.covariance).to(torch.complex128)
    few_coils, share = torch.eye(n, dtype=torch.complex128), 1.0
    if most is not None and n > most:
        middle = _middle(slices, kspace[:, alive], block)
        few_coils, share = virtual_coils(white @ middle.to(torch.complex128), most)
    forward = few_coils @ white
    covariance = forward @ receivers.covariance @ forward.mH
    run.noise["virtual_coils"] = {"count": int(forward.shape[0]), "energy": share}
    if n == 1 and any(not p.all() for p in patterns):
        run.warn("there is one coil: nothing but the prior can fill in what was not measured")
    single = torch.complex64
    chain = Chain(
        alive,
        forward.to(single),
        (torch.linalg.inv(white) @ few_coils.mH).to(single),
        (covariance.diagonal().real / 2).sqrt(),
    )
    return chain, receivers, block


def _receivers(
    slices: Slices,
    patterns: Sequence[Mask],
    samples: Tensor,
    noise: NDArray[np.complex64] | None,
    alive: Sequence[int],
) -> Receivers:
    """The noise of the living coils."""
    noise = noise if noise is not None else slices.scan.noise
    if noise is not None:
        if noise.shape[0] != slices.scan.n_coils:
            raise InputError(
                f"the noise scan has {noise.shape[0]} coils, the scan {slices.scan.n_coils}",
                "give the noise scan of this measurement",
            )
        return from_noise_scan(torch.from_numpy(np.array(noise))[list(alive)])
    if slices.scan.trajectory is not None:
        far = np.linalg.norm(slices.scan.trajectory, axis=-1)
        distance = np.concatenate([far[p] for p in patterns])
    else:
        distance = np.concatenate([radius(slices.shape)[p] for p in patterns])
    return from_edge(samples, torch.from_numpy(distance))


def _block(slices: Slices, patterns: Sequence[Mask], *, calibrated: bool) -> tuple[int, int]:
    """Size of the fully sampled centre that all slices share."""
    if slices.scan.trajectory is not None:
        return min(CALIBRATION, slices.shape[0]), min(CALIBRATION, slices.shape[1])
    sizes = [calibration_size(p) for p in patterns]
    block = tuple(min(CALIBRATION, *(s[a] for s in sizes)) for a in (0, 1))
    if min(block) < KERNEL and calibrated:
        raise InputError(
            f"the fully sampled centre of k-space is {block[0]}x{block[1]}, coil maps need "
            f"{KERNEL}x{KERNEL}",
            "give maps with --maps, or take --method zero-filled",
        )
    return block[0], block[1]


def _middle(slices: Slices, kspace: Tensor, block: tuple[int, int]) -> Tensor:
    """(coil, n) samples near DC."""
    if slices.scan.trajectory is not None:
        near = np.linalg.norm(slices.scan.trajectory, axis=-1) <= block[0] / 2
        return kspace[0][:, torch.from_numpy(near)]
    if min(block) < 2:
        return kspace.movedim(1, 0).flatten(1)
    ys, xs = central(slices.shape, block)
    return kspace[..., ys, xs].movedim(1, 0).flatten(1)
