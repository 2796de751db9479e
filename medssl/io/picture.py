"""Pictures and plain arrays: PNG, JPEG, TIFF, NPY, in and out.

Files hold (rows, columns[, colour]) or (pages, rows, columns); an `Image` holds (C, column, row
[, page]) like every other scan, so arrays are turned round on both ways.
"""

import hashlib
import io
import logging
import warnings as python_warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL.Image
import PIL.ImageOps
import tifffile
from numpy.typing import NDArray

from medssl.core.errors import InputError, UsageError, printable
from medssl.core.geometry import Geometry
from medssl.core.image import Image, Stored
from medssl.io import atomic, npy, values
from medssl.io.limits import Limits

Kind = Literal["png", "jpeg", "tiff", "npy"]
MAGIC: dict[bytes, Kind] = {
    b"\x89PNG\r\n\x1a\n": "png",
    b"\xff\xd8\xff": "jpeg",
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
    b"II+\0": "tiff",
    b"MM\0+": "tiff",
    npy.MAGIC: "npy",
}
SUFFIXES: dict[str, Kind] = {
    ".png": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".npy": "npy",
}
MODES = {"1", "L", "I;16", "I;16B", "I;16L", "I", "F", "RGB", "RGBA", "LA"}
JPEG_QUALITY = 95
logging.getLogger("tifffile").addHandler(logging.NullHandler())  # it prints what we refuse
COPY_AGAIN = "copy or export the file again"


@dataclass(frozen=True, eq=False)
class PictureOrigin:
    """What a picture must give back."""

    kind: Kind
    stored: NDArray[np.generic]
    """As in the file: (rows, columns), (pages, rows, columns), or with colour last."""
    colour: bool
    """The last axis of `stored` is colour."""
    alpha: NDArray[np.generic] | None
    """Transparency (rows, columns), given back untouched."""
    path: Path
    sha256: str


def kind_of(head: bytes) -> Kind | None:
    """The kind of picture that starts with these bytes."""
    return next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), None)


def read(path: Path, limits: Limits | None = None) -> Image:
    """Read a picture or a plain array.

    Raises:
        InputError: Damaged, animated, palette, CMYK, object arrays.
        MemoryLimitError: It does not fit.
    """
    limits = limits or Limits()
    content = path.read_bytes()
    kind = kind_of(content[:8])
    warnings: list[str] = []
    alpha = None
    if kind == "npy":
        stored, colour = _read_npy(content, limits)
    elif kind == "tiff":
        stored, colour = _read_tiff(content, limits)
    elif kind is not None:
        stored, colour, alpha = _read_pillow(content, limits, warnings)
    else:
        raise InputError("is not a picture that is known here", "use PNG, JPEG, TIFF or NPY")
    planes = _planes(stored, colour)
    data = values.decode(planes, 1.0, 0.0)
    finite = np.isfinite(data)
    if finite.all():
        valid = None
    elif 2 * np.count_nonzero(finite) < data.size:
        raise InputError("most of its values are NaN or infinite", "export it again")
    else:
        valid = finite
        warnings.append(f"{data.size - np.count_nonzero(finite)} values are NaN or infinite")
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])  # drawn as stored: right and down are left, posterior
    return Image(
        data=data,
        geometry=Geometry(data.shape[1:], affine),
        stored=Stored(stored.dtype.newbyteorder("=")),
        channels="colour" if colour else "scalar",
        valid=valid,
        modality="" if kind == "npy" else "PICTURE",
        origin=PictureOrigin(kind, stored, colour, alpha, path, _sha256(content)),
        name=path.name,
        warnings=tuple(warnings),
    )


def write(target: Path, image: Image, *, float32: bool, overwrite: bool) -> tuple[int, str]:
    """Write a picture in the kind that the suffix names.

    Returns:
        Number of clipped values; sha256 of the stored values, little endian, C order.

    Raises:
        UsageError: The kind cannot hold this image.
        OutputError: The place is taken or not writable.
    """
    kind = SUFFIXES[target.suffix.lower()]
    origin = image.origin if isinstance(image.origin, PictureOrigin) else None
    if origin is None:
        shape = _as_filed(image.data, image.channels == "colour").shape
        base = np.zeros(shape, np.float32 if image.stored.step != 1.0 else image.stored.dtype)
        origin = PictureOrigin(kind, base, image.channels == "colour", None, target, "")
        keep = None
    else:
        keep = None if image.valid is None else _as_filed(~image.valid, origin.colour)
    base = origin.stored.astype(np.float32) if float32 else origin.stored
    limits = image.stored.limits if base.dtype == image.stored.dtype else (-np.inf, np.inf)
    filed = _as_filed(image.data, origin.colour)
    stored, clipped = values.encode(filed, base, 1.0, 0.0, limits, keep)
    content = _encoded(stored, kind, origin)
    with atomic.file(target, overwrite=overwrite) as sink:
        sink.write(content)
    little = stored.astype(stored.dtype.newbyteorder("<"), copy=False)
    return clipped, _sha256(np.ascontiguousarray(little).tobytes())


def _planes(stored: NDArray[np.generic], colour: bool) -> NDArray[np.generic]:
    """From file order to (C, column, row[, page])."""
    return stored.transpose(2, 1, 0) if colour else stored.T[None]


def _as_filed(data: NDArray[Any], colour: bool) -> NDArray[Any]:
    """From (C, column, row[, page]) to file order."""
    return data.transpose(2, 1, 0) if colour else data[0].T


def _read_npy(content: bytes, limits: Limits) -> tuple[NDArray[np.generic], bool]:
    handle = io.BytesIO(content)
    shape, fortran, dtype = npy.read_header(handle, COPY_AGAIN)
    if dtype.kind not in "iuf":
        raise InputError(f"holds {printable(dtype)}, not real numbers", "save real numbers")
    if not 2 <= len(shape) <= 3 or 0 in shape:
        raise InputError(f"has shape {shape}", "2D or 3D arrays are images")
    count = int(np.prod([int(n) for n in shape], dtype=object))
    limits.check_pixels(count * dtype.itemsize)
    held = len(content) - handle.tell()
    if held < count * dtype.itemsize:
        raise InputError(f"is cut short: {held} of {count * dtype.itemsize} bytes", COPY_AGAIN)
    flat = np.frombuffer(content, dtype, count, handle.tell())
    return flat.reshape(shape, order="F" if fortran else "C"), False


def _read_tiff(content: bytes, limits: Limits) -> tuple[NDArray[np.generic], bool]:
    try:
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            series = file.series[0]
            limits.check_pixels(int(np.prod(series.shape, dtype=object)) * series.dtype.itemsize)
            stored = series.asarray()
            photometric = file.pages.first.photometric
    except (InputError, MemoryError):
        raise
    except Exception as error:  # tifffile raises anything on damaged files
        raise InputError("its TIFF structure is damaged", COPY_AGAIN) from error
    if photometric not in (0, 1, 2):
        raise InputError(f"its colours are {photometric!s}", "save it as grey or RGB")
    colour = photometric == 2
    if stored.dtype.kind not in "iuf" or stored.ndim not in ((3,) if colour else (2, 3)):
        raise InputError(
            f"holds {stored.dtype} of shape {stored.shape}", "save one grey or RGB picture"
        )
    return stored, colour


def _read_pillow(
    content: bytes, limits: Limits, warnings: list[str]
) -> tuple[NDArray[np.generic], bool, NDArray[np.generic] | None]:
    try:
        with python_warnings.catch_warnings():
            python_warnings.simplefilter("ignore")
            PIL.Image.open(io.BytesIO(content)).verify()  # checksums and the end of a PNG
            picture = PIL.Image.open(io.BytesIO(content))
            if picture.mode not in MODES:
                raise InputError(f"its colours are {picture.mode}", "save it as grey or RGB")
            if getattr(picture, "n_frames", 1) > 1:
                raise InputError("is an animation", "save one frame")
            limits.check_pixels(picture.width * picture.height * 16)
            turned = PIL.ImageOps.exif_transpose(picture)
    except InputError:
        raise
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise InputError("the picture is damaged or cut short", COPY_AGAIN) from error
    if turned.size != picture.size or picture.getexif().get(0x0112, 1) != 1:
        warnings.append("the picture was turned as its EXIF tag says")
    stored: NDArray[np.generic] = np.asarray(turned.convert("L") if turned.mode == "1" else turned)
    if turned.mode in ("LA", "RGBA"):
        alpha = stored[..., -1]
        stored = stored[..., 0] if turned.mode == "LA" else stored[..., :3]
        return stored, turned.mode == "RGBA", alpha
    return stored, turned.mode == "RGB", None


def _encoded(stored: NDArray[np.generic], kind: Kind, origin: PictureOrigin) -> bytes:
    """The bytes of a file, without date and software entries."""
    sink = io.BytesIO()
    if kind == "npy":
        np.save(sink, stored, allow_pickle=False)
        return sink.getvalue()
    if kind == "tiff":
        little = stored.astype(stored.dtype.newbyteorder("<"), copy=False)
        tifffile.imwrite(
            sink,
            little,
            photometric="rgb" if origin.colour else "minisblack",
            metadata=None,
            software=False,
        )
        return sink.getvalue()
    depth = stored.dtype
    if stored.ndim - origin.colour != 2 or depth not in (np.uint8, np.uint16, np.int32):
        raise UsageError(
            f"{kind.upper()} cannot hold {depth} of shape {stored.shape}", "write .tif or .npy"
        )
    if kind == "jpeg" and depth != np.uint8:
        raise UsageError(f"JPEG cannot hold {depth}", "write .png or .tif")
    if origin.alpha is not None and kind == "png":
        stored = np.dstack([stored, origin.alpha])
    picture = PIL.Image.fromarray(stored)
    if kind == "png":
        picture.save(sink, "PNG")
    else:
        picture.save(sink, "JPEG", quality=JPEG_QUALITY)
    return sink.getvalue()


def _sha256(content: bytes) -> str:

    return hashlib.sha256(content).hexdigest()


def grey_png(levels: NDArray[np.uint8], n_levels: int) -> bytes:
    """A small PNG of grey levels 0 to n_levels - 1 (rows, columns), without any text chunk."""
    made = PIL.Image.fromarray(levels, "P")
    made.putpalette([round(255 * v / (n_levels - 1)) for v in range(n_levels) for _ in range(3)])
    sink = io.BytesIO()
    made.save(sink, "PNG", optimize=True, bits=max(1, (n_levels - 1).bit_length()))
    return sink.getvalue()
