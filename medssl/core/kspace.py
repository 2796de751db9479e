"""Raw data of a scanner before any image exists."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medssl.core.errors import InputError
from medssl.core.geometry import Geometry


@dataclass(frozen=True, eq=False)
class KSpace:
    """Samples of the Fourier transform of an object, seen by several coils.

    Cartesian samples lie on the grid of the image: `data` is (coil, *spatial), and the axes of
    which `encoded` is False count independent slices. With a `trajectory` they lie on shots:
    `data` is (coil, shot, sample).

    Args:
        data: complex64, may be a memory map. On encoded axes DC is at index N // 2 of even and odd
            N, and what was not sampled is 0. Readout oversampling is removed already.
        geometry: The grid of the image that all of `data` make.
        sampling: {0, 1}, broadcastable to the shape of `data` without coils; what was measured.
        encoded: Per spatial axis, whether it is Fourier-encoded; empty means all of them.
        trajectory: (shot, sample, ndim) float32 in cycles per field of view, -N/2 to N/2, for the
            axes of the image in their order; None for Cartesian samples.
        matrix: Shape of the image that is wanted, cut about the centre of the grid after
            reconstruction; None wants the whole grid.
        noise: (coil, samples) complex64 of a noise scan, scaled to the receiver bandwidth of
            `data`; None when there is none.
        oversampling: Of the readout, before the reader removed it.
        nominal: The file does not say where the image lies; the spacing is a guess.
        stated_acceleration: R in the header, None where it does not say.
        frames: Echoes, repetitions, sets and maps that the file holds; this is one of them.
        origin: What `io` needs to write a matching image; opaque elsewhere.
        name: Base name of the source.
        warnings: What the reader found odd, one sentence each.

    Raises:
        InputError: Shapes disagree, the data are real, or nothing was sampled.
    """

    data: NDArray[np.complex64]
    geometry: Geometry
    sampling: NDArray[np.bool_]
    encoded: tuple[bool, ...] = ()
    trajectory: NDArray[np.float32] | None = None
    matrix: tuple[int, ...] | None = None
    noise: NDArray[np.complex64] | None = None
    oversampling: float = 1.0
    nominal: bool = True
    stated_acceleration: float | None = None
    frames: int = 1
    origin: object = None
    name: str = ""
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be k-space."""
        if not np.iscomplexobj(self.data):
            raise InputError(
                f"k-space must be complex, this is {self.data.dtype}", "export complex raw data"
            )
        grid = self.geometry.shape
        if self.trajectory is None and self.data.shape[1:] != grid:
            raise InputError(
                f"k-space of shape {self.data.shape} does not lie on a grid {grid}",
                "data are (coil, *spatial)",
            )
        if self.trajectory is not None and self.trajectory.shape[:-1] != self.data.shape[1:]:
            raise InputError(
                f"a trajectory of shape {self.trajectory.shape} does not fit data of shape "
                f"{self.data.shape}",
                "data are (coil, shot, sample), the trajectory is (shot, sample, axis)",
            )
        samples = self.data.shape[1:]
        if np.broadcast_shapes(self.sampling.shape, samples) != samples:
            raise InputError(f"sampling {self.sampling.shape} does not fit the data {samples}")
        if not self.sampling.any():
            raise InputError("nothing was sampled", "check the export of the raw data")
        if not self.encoded:
            object.__setattr__(self, "encoded", (True,) * len(grid))
        if len(self.encoded) != len(grid) or not any(self.encoded):
            raise InputError(f"encoded {self.encoded} does not fit a grid {grid}")
        if self.matrix is not None and (
            len(self.matrix) != len(grid)
            or any(not 1 <= m <= n for m, n in zip(self.matrix, grid, strict=True))
        ):
            raise InputError(f"an image of {self.matrix} cannot be cut from a grid {grid}")

    @property
    def n_coils(self) -> int:
        """Number of receive coils."""
        return int(self.data.shape[0])

    @property
    def wanted(self) -> Geometry:
        """The grid of the image that is wanted: `geometry` cut to `matrix` about its centre."""
        if self.matrix is None:
            return self.geometry
        grid = self.geometry.shape
        start = [n // 2 - m // 2 for n, m in zip(grid, self.matrix, strict=True)]
        affine = self.geometry.affine.copy()
        affine[:3, 3] = self.geometry.world([*start, 0][:3])
        return Geometry(self.matrix, affine)

    @property
    def acceleration(self) -> float:
        """R: grid points per measured sample, corners of k-space included."""
        return float(1.0 / self.sampling.mean())
