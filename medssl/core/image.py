"""An image: voxels, where they lie, and what the writer must give back."""

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medssl.core.errors import InputError
from medssl.core.geometry import Geometry

Channels = Literal["scalar", "time", "colour"]
"""What the first axis of `Image.data` is: one value, a series of volumes, or colour."""


@dataclass(frozen=True, eq=False)
class Stored:
    """How values lie in the file: `value = slope * stored + intercept`.

    `slope` and `intercept` are scalars, or (n_slices,) along the last spatial axis where they
    vary from slice to slice.
    """

    dtype: np.dtype[np.generic]
    slope: NDArray[np.float64] = field(default_factory=lambda: np.ones(()))
    intercept: NDArray[np.float64] = field(default_factory=lambda: np.zeros(()))
    lowest: float | None = None
    """Smallest stored value allowed; None means the smallest of `dtype`."""
    highest: float | None = None
    """Largest stored value allowed; None means the largest of `dtype`."""

    @property
    def is_integer(self) -> bool:
        """Whether values are rounded to integers in the file."""
        return bool(np.issubdtype(self.dtype, np.integer))

    @property
    def limits(self) -> tuple[float, float]:
        """Smallest and largest stored value that may be written."""
        if not self.is_integer:
            return -np.inf, np.inf
        info = np.iinfo(self.dtype)  # type: ignore[type-var]
        low = float(info.min) if self.lowest is None else self.lowest
        high = float(info.max) if self.highest is None else self.highest
        return low, high

    @property
    def step(self) -> float:
        """Smallest difference that the file can hold, in image units; 0 for floating point."""
        return float(np.abs(self.slope).min()) if self.is_integer else 0.0


@dataclass(frozen=True, eq=False)
class Image:
    """A picture, a volume, or a series of volumes on one grid.

    Args:
        data: (C, *spatial) float32 in image units (magnitude, HU, colour). Any memory order.
        geometry: The grid; its shape is `data.shape[1:]`.
        stored: How the values lie in the file.
        channels: What the first axis of `data` is.
        valid: (C, *spatial) bool, finite and not padding; None means everywhere.
        modality: DICOM's word (`CT`, `MR`, `PT`, ...), `""` when the file does not say.
        b_values: (C,) diffusion weighting of each volume, s/mm^2; None where it is not known.
        nominal: Nobody knows where the grid lies in the patient; only distances count.
        origin: What `io` needs to give the header back; opaque elsewhere.
        name: Base name of the source, for messages and sidecars.
        warnings: What the reader found odd, one sentence each.

    Raises:
        InputError: Shapes disagree.
    """

    data: NDArray[np.float32]
    geometry: Geometry
    stored: Stored = field(default_factory=lambda: Stored(np.dtype(np.float32)))
    channels: Channels = "scalar"
    valid: NDArray[np.bool_] | None = None
    modality: str = ""
    b_values: tuple[float, ...] | None = None
    nominal: bool = False
    origin: object = None
    name: str = ""
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse shapes that disagree."""
        if self.data.shape[1:] != self.geometry.shape:
            raise InputError(
                f"data of shape {self.data.shape} does not lie on a grid {self.geometry.shape}",
                "data are (C, *spatial)",
            )
        if self.valid is not None and self.valid.shape != self.data.shape:
            raise InputError(f"valid is {self.valid.shape}, data are {self.data.shape}")
        if self.b_values is not None and len(self.b_values) != self.data.shape[0]:
            raise InputError(
                f"there are {len(self.b_values)} b-values for {self.data.shape[0]} volumes",
                "give one for each volume",
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Spatial shape."""
        return self.geometry.shape

    @property
    def spacing(self) -> tuple[float, ...]:
        """Voxel distances in mm."""
        return self.geometry.spacing

    def with_data(self, data: NDArray[np.float32], *, warnings: tuple[str, ...] = ()) -> "Image":
        """The same image with other voxels; new warnings are added to those it has."""
        return dataclasses.replace(self, data=data, warnings=self.warnings + warnings)
