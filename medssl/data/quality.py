"""What keeps a series out of a training store, each reason with its code.

Readers refuse what cannot be one image; the rest is looked at here. Reasons are said in numbers and
fixed words, never in the words of a file, which may name a patient.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medssl.core.errors import MedsslError
from medssl.core.image import Image
from medssl.data.foreground import Foreground
from medssl.io.series import SeriesOrigin

CODES: Mapping[str, str] = {
    "not-an-image": "an object without pixels, or nothing that is known here",
    "localizer": "a scout that others are planned on",
    "secondary-capture": "a screenshot or a result of other software",
    "burned-in": "text may be burned into its pixels",
    "few-slices": "fewer than 8 slices",
    "small-matrix": "fewer than 64 pixels along a side",
    "uneven-slices": "slices are missing or not evenly spaced",
    "tilted": "the gantry was tilted, so the grid is sheared",
    "mixed-orientation": "its slices have several orientations or sizes",
    "duplicate-position": "several slices at one position that nothing tells apart",
    "truncated": "pixels are missing from the files",
    "not-finite": "values are NaN or infinite",
    "constant": "all voxels are equal",
    "labels": "looks like a segmentation, not like a scan",
    "little-foreground": "less than 5 % of it is patient",
    "copy": "another volume of the store holds its voxels",
    "unreadable": "cannot be read as one image",
    "too-large": "does not fit into memory",
    "failed": "an error of this program",
    "by-hand": "taken out by hand",
}
"""Every code, and what it means."""
FEWEST_SLICES, SMALLEST_SIDE, LEAST_FOREGROUND = 8, 64, 0.05
SHEAR = 0.1
"""Degrees from which a grid counts as sheared."""
LABELS, ALIKE = 512, 0.8
"""A segmentation has fewer values, and more of its marked neighbours are equal than that: the noise
of any scan tells more of them apart."""
MARGIN, GREY = 0.1, 0.02
"""Of the range of a mask that was packed with loss, and of its pixels that lie inside of it."""
FLAGS: Mapping[str, str] = {
    "LOCALIZER": "localizer",
    "SECONDARY": "secondary-capture",
    "BURNED_IN": "burned-in",
}
"""What the index may say of a series, and the code for it."""
PLANAR = frozenset(["CR", "DX", "MG", "RG", "PX", "IO", "XC", "OP", "ES", "GM", "US", "XA", "RF"])
"""Modalities whose instances are pictures by themselves."""
_SENTENCES = (
    ("uneven-slices", "slice missing after slice"),
    ("mixed-orientation", r"its frames have several orientations|holds \d+ series"),
    ("duplicate-position", r"is not one volume: \d+ images at \d+ positions"),
    (
        "truncated",
        r"PixelData (has|claims) \d+ bytes|reaches past|ends inside|cut short"
        "|compressed (pixels|fragments)",
    ),
    ("not-an-image", "holds no image|holds no DICOM|is not DICOM|is no scan|has no PixelData"),
    ("not-finite", "NaN or infinite"),
    ("labels", "its colours are 1$"),  # black and white
)
"""Codes of what the readers say; tested on files with each fault."""
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|\([^)]*\)")


class RefusedError(Exception):
    """A series or volume that stays out."""

    def __init__(self, code: str, fact: str = "") -> None:
        super().__init__(code)
        self.code = code
        self.fact = fact or CODES[code]


def code_of(error: MedsslError) -> RefusedError:
    """What a reader's refusal is called here; words in quotes and brackets come from the file."""
    said = _QUOTED.sub("...", error.fact)
    for code, pattern in _SENTENCES:
        if re.search(pattern, said):
            return RefusedError(code, said)
    return RefusedError("unreadable", said)


def check_header(
    kind: str, modality: str, flags: Sequence[str], sides: Sequence[int], n_frames: int
) -> None:
    """Refuse what need not be opened.

    Args:
        kind: `dicom`, `nifti` or `picture`.
        modality: DICOM's word.
        flags: Of the index.
        sides: Rows and columns; 0 where they are not known.
        n_frames: Slices of all its files.

    Raises:
        RefusedError: With its code.
    """
    for flag in flags:
        if flag in FLAGS:
            raise RefusedError(FLAGS[flag])
    if kind == "dicom" and modality not in PLANAR:
        if 0 < n_frames < FEWEST_SLICES:
            raise RefusedError("few-slices", f"has {n_frames} slices")
        if all(sides):
            _check_sides(sides)


def check_grid(image: Image, is_picture: bool) -> None:
    """Refuse a grid that crops cannot be drawn from.

    Raises:
        RefusedError: With its code.
    """
    shape = sorted(image.shape)
    if not is_picture:
        if len(shape) < 3 or shape[0] < FEWEST_SLICES:
            n = 1 if len(shape) < 3 else shape[0]
            raise RefusedError("few-slices", f"has {n} slices")
        origin = image.origin
        if isinstance(origin, SeriesOrigin) and origin.independent_slices:
            raise RefusedError("uneven-slices")
        if image.geometry.shear > SHEAR:
            raise RefusedError(
                "tilted", f"its grid is sheared by {image.geometry.shear:.1f} degrees"
            )
    _check_sides(shape[-2:])


def check_values(volume: NDArray[Any], kind: str, valid: NDArray[np.bool_] | None) -> None:
    """Refuse values that nothing can be learnt from.

    Args:
        volume: (C, X, Y, Z).
        kind: `dicom`, `nifti` or `picture`.
        valid: (X, Y, Z), False at padding; None means everywhere.

    Raises:
        RefusedError: With its code.
    """
    seen = volume if valid is None else volume[:, valid]
    if not seen.size or seen.min() == seen.max():
        value = f"all voxels are {float(seen.flat[0]):g}" if seen.size else "all voxels are padding"
        raise RefusedError("constant", value)
    if kind == "nifti" and looks_like_labels(volume[0]):
        raise RefusedError("labels")
    if kind == "picture" and (looks_like_labels(volume[0]) or is_black_and_white(volume)):
        raise RefusedError("labels")


def check_finite(volume: NDArray[Any]) -> None:
    """Refuse NaN and infinite values.

    Raises:
        RefusedError: With its code.
    """
    if volume.dtype.kind == "f":
        bad = volume.size - int(np.count_nonzero(np.isfinite(volume)))
        if bad:
            raise RefusedError("not-finite", f"{bad} voxels are NaN or infinite")


def check_foreground(measured: Foreground) -> None:
    """Refuse volumes of air.

    Raises:
        RefusedError: With its code.
    """
    if measured.share < LEAST_FOREGROUND:
        raise RefusedError("little-foreground", f"{100 * measured.share:.1f} % of it is patient")


def looks_like_labels(volume: NDArray[Any]) -> bool:
    """Whether a volume (X, Y, Z) holds a few whole numbers, the same over whole regions."""
    lowest = volume.min()
    if volume.dtype.kind == "f" and not np.array_equal(np.rint(volume), volume):
        return False
    marked = (volume[1:] != lowest) & (volume[:-1] != lowest)
    n = int(np.count_nonzero(marked))
    alike = int(np.count_nonzero(marked & (volume[1:] == volume[:-1])))
    return n > 0 and alike > ALIKE * n and len(np.unique(volume)) < LABELS


def is_black_and_white(picture: NDArray[Any]) -> bool:
    """Whether all but a few pixels are next to the darkest or to the brightest value."""
    low, high = float(picture.min()), float(picture.max())
    margin = MARGIN * (high - low)
    between = np.count_nonzero((picture > low + margin) & (picture < high - margin))
    return int(between) < GREY * picture.size


def _check_sides(sides: Sequence[int]) -> None:
    if min(sides) < SMALLEST_SIDE:
        raise RefusedError("small-matrix", f"has {sides[-1]} x {sides[0]} pixels")
