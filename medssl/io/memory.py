"""Images that already are in memory: numpy arrays and nibabel images."""

from typing import Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import SpatialImage
from numpy.typing import NDArray

from medssl.core.errors import InputError
from medssl.core.geometry import Geometry
from medssl.core.image import Image, Stored


def from_array(array: NDArray[Any], affine: NDArray[np.float64] | None) -> Image:
    """An array (i, j[, k[, volume]]) in nibabel's order, with its affine in RAS mm.

    Raises:
        InputError: Not a real array of two to four axes.
    """
    array = np.asarray(array)
    if array.dtype.kind not in "biuf":
        raise InputError(f"an array of {array.dtype} is not an image", "pass real numbers")
    if not 2 <= array.ndim <= 4 or 0 in array.shape:
        raise InputError(f"an array of shape {array.shape} is not an image", "pass 2 to 4 axes")
    series = array.ndim == 4
    data = np.moveaxis(array, -1, 0) if series else array[None]
    finite = np.isfinite(data)
    return Image(
        data=data.astype(np.float32),
        geometry=Geometry(data.shape[1:], np.eye(4) if affine is None else affine),
        stored=Stored(array.dtype if array.dtype.kind != "b" else np.dtype(np.uint8)),
        channels="time" if series and array.shape[-1] > 1 else "scalar",
        valid=None if finite.all() else finite,
        name="array",
    )


def to_array(image: Image) -> NDArray[Any]:
    """The inverse of `from_array`: same axes, same dtype, integers rounded and clipped."""
    data = np.moveaxis(image.data, 0, -1) if image.channels == "time" else image.data[0]
    if not image.stored.is_integer:
        return data.astype(image.stored.dtype)
    low, high = image.stored.limits
    return np.clip(np.rint(data), low, high).astype(image.stored.dtype)


def from_nibabel(image: SpatialImage) -> Image:
    """A nibabel image, scaled as `image.dataobj` gives it.

    Raises:
        InputError: Complex, RGB, or without an affine.
    """
    return from_array(np.asanyarray(image.dataobj), np.asarray(image.affine))


def to_nibabel(image: Image, like: SpatialImage) -> SpatialImage:
    """The image as an object of the class of `like`, with a copy of its header.

    The array has the dtype that `like.dataobj` has in memory: integers stay integers, scaled
    files give floats.
    """
    array = to_array(image)
    header = like.header.copy()
    header.set_data_dtype(array.dtype if array.dtype != np.float64 else np.dtype(np.float32))
    made = type(like)(array, like.affine, header)
    if isinstance(made, nib.Nifti1Pair) and isinstance(like, nib.Nifti1Pair):
        made.header["sform_code"] = like.header["sform_code"]
        made.header["qform_code"] = like.header["qform_code"]
    return made
