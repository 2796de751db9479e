r"""SigPy's own reconstructions, by name, to compare with.

.. math:: \min_x \tfrac12 \|A x - y\|^2 + \lambda R(x), \qquad
          R(x) = \tfrac12 \|x\|^2, \; \|W x\|_1 \text{ or } \mathrm{TV}(x) .

They run on the CPU, slice by slice, with one set of coil maps.
Needs: sampling on a grid; coil maps.
Reference: Ong, Lustig. SigPy: A Python Package for High Performance Iterative Reconstruction.
ISMRM 2019.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from medssl.core.batch import Acquired
from medssl.core.errors import UsageError
from medssl.method import Reconstructor


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which application, and its parameters."""

    app: Literal["sense", "l1-wavelet", "tv"] = "l1-wavelet"
    lambda_: float | None = None
    """Weight of R; null is chosen."""
    iterations: int = 60

    def build(self) -> "SigpyApp":
        """The method."""
        return SigpyApp(self)


class SigpyApp(Reconstructor):
    """`SenseRecon`, `L1WaveletRecon` or `TotalVariationRecon`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def restore(self, batch: Acquired) -> Tensor:
        """Image by image; only the first set of maps is used.

        Raises:
            UsageError: The samples do not lie on a grid.
        """
        if batch.trajectory is not None:
            raise UsageError("this method needs samples on a grid", "take --method l1-wavelet")
        lead = batch.kspace.shape[:-3]
        maps = batch.coil_maps.expand(*lead, *batch.coil_maps.shape[-4:])[..., 0, :, :, :]
        weights = batch.sampling.expand(*lead, *batch.sampling.shape[-3:])[..., 0, :, :]
        found = [
            self._one(kspace, one, weight)
            for kspace, one, weight in zip(
                batch.kspace.flatten(0, -4),
                maps.flatten(0, -4),
                weights.flatten(0, -3),
                strict=True,
            )
        ]
        images = torch.stack(found).reshape(*lead, 1, *batch.kspace.shape[-2:])
        sets = batch.coil_maps.shape[-4]
        more = images.new_zeros(*lead, sets - 1, *images.shape[-2:])
        return torch.cat([images, more], -3)

    def _one(self, kspace: Tensor, maps: Tensor, weights: Tensor) -> Tensor:
        """(H, W) from k-space (coil, H, W)."""
        from sigpy.mri import app

        with _seeded():
            return self._run(app, kspace, maps, weights)

    def _run(self, app: Any, kspace: Tensor, maps: Tensor, weights: Tensor) -> Tensor:
        y, s, w = (a.detach().cpu().numpy() for a in (kspace, maps, weights.real.float()))
        c, lambda_ = self.config, self.config.lambda_ or 0.0
        if c.app == "sense":
            run = app.SenseRecon(
                y, s, lamda=lambda_, weights=w, max_iter=c.iterations, show_pbar=False
            )
        elif c.app == "tv":
            run = app.TotalVariationRecon(
                y, s, lambda_, weights=w, max_iter=c.iterations, show_pbar=False
            )
        else:
            run = app.L1WaveletRecon(
                y, s, lambda_, weights=w, max_iter=c.iterations, show_pbar=False
            )
        return torch.from_numpy(run.run()).to(kspace)


@contextmanager
def _seeded() -> Iterator[None]:
    """SigPy measures norms from random images of NumPy's global generator, which is put back."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
