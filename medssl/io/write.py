"""One door for every output: same kind, same geometry, same header as what came in."""

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medssl.core.errors import InputError, UsageError
from medssl.core.geometry import Geometry
from medssl.core.image import Image
from medssl.io import atomic, nifti, picture
from medssl.io.derived import Derivation, write_series
from medssl.io.series import SeriesOrigin

Kind = Literal["nifti", "dicom", "dicom-classic", "picture"]
NIFTI_SUFFIXES = (".nii", ".nii.gz", ".hdr", ".img", ".hdr.gz", ".img.gz")


@dataclass(frozen=True)
class Written:
    """What lies on disk after a write."""

    target: Path
    kind: Kind
    files: int
    voxels: int
    clipped: int
    """Voxels that did not fit into the stored range."""
    voxels_sha256: str
    """Of the stored numbers, little endian."""


def kind_of(target: Path, image: Image, to: str = "same") -> Kind:
    """What a target's name and `to` ask for; without a known suffix it is a DICOM folder.

    Args:
        target: Name of the output.
        image: The image whose headers are taken.
        to: `same`, `nii`, `dicom` or `dicom-classic`.

    Raises:
        UsageError: The name and `to` disagree, or there are no DICOM headers to take.
    """
    name = target.name.lower()
    if to in ("dicom", "dicom-classic"):
        if not isinstance(image.origin, SeriesOrigin):
            raise UsageError("there are no DICOM headers to take", "name a series with --like")
        return "dicom-classic" if to == "dicom-classic" else "dicom"
    if name.endswith(NIFTI_SUFFIXES):
        return "nifti"
    if to == "nii":
        raise UsageError("a NIfTI output ends in .nii or .nii.gz", "change -o", file=target)
    if target.suffix.lower() in picture.SUFFIXES:
        return "picture"
    if isinstance(image.origin, SeriesOrigin):
        return "dicom"
    raise UsageError(
        "the output name has no suffix that is known here",
        "end it in .nii.gz, .nii, .png, .tif or .npy",
        file=target,
    )


def output_name(source: Path, image: Image, to: str, word: str = "denoised") -> Path:
    """The default output beside the input.

    `scan.nii.gz` gives `scan_denoised.nii.gz`, a BIDS name gets `_desc-denoised_` before its
    suffix, a series folder `ct` gives the folder `ct_denoised`.
    """
    beside = source.resolve().parent if source.name in ("", ".", "..") else source.parent
    stem, suffix = _split(source)
    if to in ("dicom", "dicom-classic"):
        suffix = ""
    elif to == "nii" and not suffix.startswith((".nii", ".hdr", ".img")):
        suffix = ".nii.gz"
    elif isinstance(image.origin, SeriesOrigin):
        suffix = ".nii.gz" if to == "nii" else ""
    parts = stem.split("_")
    if len(parts) > 1 and parts[0].startswith("sub-"):
        return beside / ("_".join([*parts[:-1], f"desc-{word}", parts[-1]]) + suffix)
    return beside / f"{stem}_{word}{suffix}"


def beside(target: Path, ending: str) -> Path:
    """A companion of an output: `out.nii.gz` and `.json` give `out.json`."""
    stem, _ = _split(target)
    return target.with_name(stem + ending)


def write(
    target: str | Path,
    image: Image,
    *,
    like: Image | None = None,
    to: Literal["same", "nii", "dicom", "dicom-classic"] = "same",
    dtype: Literal["same", "float32"] = "same",
    derivation: Derivation | None = None,
    overwrite: bool = False,
) -> Written:
    """Write an image; the file appears complete or not at all.

    Args:
        target: A file, or the folder of a DICOM series; its suffix decides the kind.
        image: What to write. Its origin gives the header back.
        like: The image whose voxels, where they are unchanged, keep their stored bits, and whose
            DICOM headers a derived series takes; None means the origin of `image`.
        to: `same` kind as the source, or another.
        dtype: `same` stored type as the source, or unscaled float32 (not for DICOM).
        derivation: What a derived DICOM series says of itself.
        overwrite: Replace an existing output.

    Raises:
        UsageError: The kind cannot hold this image.
        OutputError: The place is taken, not writable, or full.
    """
    target = Path(target)
    kind = kind_of(target, image if like is None else like, to)
    float32 = dtype == "float32"
    if kind in ("dicom", "dicom-classic"):
        source = like if like is not None else image
        if float32:
            raise UsageError("DICOM cannot hold float32 here", "use --to nii with --dtype float32")
        with atomic.folder(target, overwrite=overwrite) as folder:
            made = write_series(
                folder,
                image if like is None else on_grid_of(image, like),
                source,
                derivation or Derivation(),
                classic=kind == "dicom-classic",
            )
        return Written(
            target, kind, len(made.names), image.data.size, made.clipped, made.voxels_sha256
        )
    if kind == "nifti" and getattr(image.origin, "independent_slices", False):
        raise UsageError("the slices lie on no regular grid, NIfTI needs one", "write DICOM")
    writer = nifti.write if kind == "nifti" else picture.write
    if kind == "picture" and image.channels == "time":
        raise UsageError("a picture cannot hold a series of volumes", "write .nii.gz")
    clipped, sha256 = writer(target, image, float32=float32, overwrite=overwrite)
    files = 1
    if kind == "nifti":
        files = len(nifti.files_of(target))
        files += _copy_companions(target, image, overwrite)
    return Written(target, kind, files, image.data.size, clipped, sha256)


def check(target: Path, source: Path | None, *, overwrite: bool) -> None:
    """Refuse a target before any work is done; the same rules as `write`."""
    for file in nifti.files_of(target):
        atomic.check_target(file, overwrite=overwrite, source=source)


def on_grid_of(image: Image, like: Image) -> Image:
    """The same voxels in the axis order of another image of the same grid; nothing is resampled.

    Axes may be swapped and turned round, as converters from DICOM to NIfTI do.

    Raises:
        InputError: The grids differ by more than the order of their voxels.
    """
    if len(image.shape) != 3 or len(like.shape) != 3:
        refuse_other_grid(like, image, "image")
        return image
    step = np.linalg.inv(image.geometry.affine) @ like.geometry.affine
    turn = np.rint(step[:3, :3]).astype(int)
    if np.abs(turn).sum(0).tolist() != [1, 1, 1] or np.abs(turn).sum(1).tolist() != [1, 1, 1]:
        refuse_other_grid(like, image, "image")
    order = np.abs(turn).argmax(0)
    signs = turn[order, range(3)]
    flips = tuple(slice(None, None, int(sign)) for sign in signs)

    def turned(voxels: NDArray[Any]) -> NDArray[Any]:
        return voxels.transpose(0, *(1 + order))[(slice(None), *flips)]

    affine = image.geometry.affine @ np.vstack(
        [
            np.column_stack([turn, np.zeros(3)]),
            [0, 0, 0, 1],
        ]
    )
    starts = [image.shape[b] - 1 if sign < 0 else 0 for b, sign in zip(order, signs, strict=True)]
    first = np.zeros(3)
    first[order] = starts
    affine[:3, 3] = image.geometry.world(first)
    data = turned(image.data)
    made = dataclasses.replace(
        image,
        data=data,
        geometry=Geometry(data.shape[1:], affine),
        valid=None if image.valid is None else turned(image.valid),
    )
    refuse_other_grid(like, made, "image")
    return made


def _copy_companions(target: Path, image: Image, overwrite: bool) -> int:
    """b-values and b-vectors follow their series, when they have a column for each volume."""
    if not isinstance(image.origin, nifti.NiftiOrigin):
        return 0
    copied = 0
    for suffix, path in nifti.companions(image.origin.path).items():
        text = path.read_text(errors="replace")
        columns = len(text.split("\n", 1)[0].split())
        if columns != image.data.shape[0] and len(text.split()) != image.data.shape[0]:
            continue
        with (
            path.open("rb") as source,
            atomic.file(beside(target, suffix), overwrite=overwrite) as sink,
        ):
            shutil.copyfileobj(source, sink)
        copied += 1
    return copied


def _split(path: Path) -> tuple[str, str]:
    """Stem and known suffix of a name; a folder or an unknown suffix has none."""
    name = path.resolve().name if path.name in ("", ".", "..") else path.name
    known = (*NIFTI_SUFFIXES[::-1], *picture.SUFFIXES, ".dcm", ".zip", ".ima")
    for suffix in sorted(known, key=len, reverse=True):
        if name.lower().endswith(suffix) and not path.is_dir() and len(name) > len(suffix):
            return name[: -len(suffix)], name[-len(suffix) :]
    return name, ""


def refuse_other_grid(image: Image, other: Image, what: str) -> None:
    """Refuse a mask or map on another grid; nothing is resampled in silence.

    Raises:
        InputError: Naming both shapes and how far the grids lie apart.
    """
    if image.shape != other.shape:
        raise InputError(
            f"the {what} has shape {other.shape}, the image {image.shape}",
            "bring it onto the image's grid",
            file=other.name,
        )
    far = image.geometry.distance(other.geometry)
    if far > 1e-2:
        raise InputError(
            f"the {what} lies up to {far:.2f} mm away from the image's voxels",
            "bring it onto the image's grid",
            file=other.name,
        )
