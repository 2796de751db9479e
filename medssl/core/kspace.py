"""Raw data of a scanner before any image exists."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medssl.core.errors import InputError
from medssl.core.geometry import Geometry


@dataclass(frozen=True, eq=False)
class KSpace:
    """Samples of the Fourier transform of an object, seen by several coils.

    Args:
        data: (coil, *spatial) complex64, DC at the centre, zeros where nothing was sampled.
        geometry: The grid of the image that belongs to it.
        sampling: {0, 1}, broadcastable to `spatial`; what was measured.
        noise: (coil, samples) complex64 of a noise scan, None when there is none.
        origin: What `io` needs to write a matching image; opaque elsewhere.
        name: Base name of the source.
        warnings: What the reader found odd.

    Raises:
        InputError: Shapes disagree, the data are real, or nothing was sampled.
    """

    data: NDArray[np.complex64]
    geometry: Geometry
    sampling: NDArray[np.bool_]
    noise: NDArray[np.complex64] | None = None
    origin: object = None
    name: str = ""
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be k-space."""
        if not np.iscomplexobj(self.data):
            raise InputError(
                f"k-space must be complex, this is {self.data.dtype}", "export complex raw data"
            )
        if self.data.shape[1:] != self.geometry.shape:
            raise InputError(
                f"k-space of shape {self.data.shape} does not lie on a grid {self.geometry.shape}",
                "data are (coil, *spatial)",
            )
        if np.broadcast_shapes(self.sampling.shape, self.geometry.shape) != self.geometry.shape:
            raise InputError(
                f"sampling {self.sampling.shape} does not fit the grid {self.geometry.shape}"
            )
        if not self.sampling.any():
            raise InputError("nothing was sampled", "check the export of the raw data")

    @property
    def n_coils(self) -> int:
        """Number of receive coils."""
        return int(self.data.shape[0])

    @property
    def acceleration(self) -> float:
        """R: grid points per measured sample."""
        return float(1.0 / self.sampling.mean())
