"""NIfTI-1 and NIfTI-2, plain, gzipped, or as a .hdr/.img pair, without losing a header bit.

The header bytes are kept as they came and written back; only voxels change, and of those only
the ones that a method changed.
"""

import contextlib
import gzip
import hashlib
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from medssl.core.errors import InputError, printable
from medssl.core.geometry import Geometry
from medssl.core.image import Image, Stored
from medssl.io import atomic, values
from medssl.io.gradients import read_b_values
from medssl.io.limits import MIB, Limits

Header = Nifti1Header | Nifti2Header

CHUNK = 4 * MIB
GZIP_MAGIC = b"\x1f\x8b"
READABLE = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4"}
READABLE |= {1024: "i8", 1280: "u8"}
"""NIfTI datatype codes to numpy's letters."""
REFUSED = {0: "unknown", 1: "1-bit", 32: "complex64", 128: "RGB24", 1536: "float128"}
REFUSED |= {1792: "complex128", 2048: "complex256", 2304: "RGBA32"}
COPY_AGAIN = "copy or export the file again"
CUT = "ends inside its header"
DEFLATE_LIMIT = 1100
"""No deflate stream inflates to more than about 1032 times its size."""
GZIP_LEVEL = 4
"""Nearly the size of level 6 on scans, at half its time."""


@dataclass(frozen=True, eq=False)
class NiftiOrigin:
    """What a NIfTI file must give back."""

    header: bytes
    """Everything before the voxels, extensions included, as read."""
    stored: NDArray[np.generic]
    """Stored numbers (C, Z, Y, X) as they lie in the file, its byte order kept."""
    shape: tuple[int, ...]
    """Shape in the header, singleton axes included."""
    paired: bool
    """A .hdr/.img pair."""
    path: Path
    sha256: str
    """Of the file as it lies on disk (of the .img in a pair)."""


def is_nifti(head: bytes) -> bool:
    """Whether the first 352 bytes (unzipped) look like any NIfTI or Analyze header."""
    return len(head) >= 4 and int.from_bytes(head[:4], "little") in (
        348,
        540,
        int.from_bytes((348).to_bytes(4, "big"), "little"),
        int.from_bytes((540).to_bytes(4, "big"), "little"),
    )


def read(path: Path, limits: Limits | None = None) -> Image:
    """Read a NIfTI file, checking everything before allocating anything.

    Args:
        path: `.nii`, `.nii.gz`, `.hdr` or `.img`; the content decides, not the suffix.
        limits: Bounds of what a file may ask for.

    Raises:
        InputError: The file is damaged, or holds what cannot be denoised.
        MemoryLimitError: The voxels do not fit.
    """
    limits = limits or Limits()
    warnings: list[str] = []
    header_path, voxel_path = _pair(path)
    paired = header_path != voxel_path
    with header_path.open("rb") as handle:
        stream = _Stream(handle, header_path.stat().st_size)
        block = stream.read(4)
        size = _header_size(block)
        block += stream.read(size - 4)
        header, big_endian = _parse(block, size, paired, warnings)
        dims = _dims(header)
        dtype = _dtype(header, big_endian)
        start = _voxel_offset(header, size, paired, limits)
        n_bytes = int(np.prod([int(d) for d in dims], dtype=object)) * dtype.itemsize
        if paired:
            raw_header = block + stream.rest(limits.extensions)
        else:
            stream.expect(start + n_bytes)
            limits.check_pixels(n_bytes)
            raw_header = block + stream.read(max(start - size, 0))
            _check_extensions(raw_header, size, big_endian)
            stored = stream.array(n_bytes, dtype)
            sha256 = stream.finish(limits.slack, warnings)
    if paired:
        with voxel_path.open("rb") as handle:
            stream = _Stream(handle, voxel_path.stat().st_size)
            stream.expect(start + n_bytes)
            limits.check_pixels(n_bytes)
            stream.read(start)
            stored = stream.array(n_bytes, dtype)
            sha256 = stream.finish(limits.slack, warnings)
    spatial = dims[:3]
    affine = _affine(header, warnings)
    slope, intercept = _scaling(header)
    planes = stored.reshape(-1, *reversed(spatial))
    data, valid = _image_units(planes, slope, intercept, warnings)
    return Image(
        data=data,
        geometry=Geometry(spatial, affine),
        stored=Stored(dtype.newbyteorder("="), np.array(slope), np.array(intercept)),
        channels="time" if data.shape[0] > 1 else "scalar",
        valid=valid,
        b_values=_b_values(voxel_path, data.shape[0], warnings),
        origin=NiftiOrigin(raw_header, planes, dims, paired, voxel_path, sha256),
        name=path.name,
        warnings=tuple(warnings),
    )


def write(target: Path, image: Image, *, float32: bool, overwrite: bool) -> tuple[int, str]:
    """Write an image whose origin is NIfTI, or any other image with a fresh header.

    Args:
        target: Ends in `.nii`, `.nii.gz`, or `.hdr`/`.img` for a pair.
        image: What to write.
        float32: Store floats without scaling instead of the source's type.
        overwrite: Replace an existing file.

    Returns:
        Number of voxels clipped to the stored range; sha256 of the stored voxels (C order of
        (C, Z, Y, X), little endian).

    Raises:
        OutputError: The place is taken or not writable.
    """
    origin = image.origin if isinstance(image.origin, NiftiOrigin) else None
    pair = target.name.endswith((".img", ".hdr", ".img.gz", ".hdr.gz"))
    header = fresh_header(image, float32) if origin is None else origin.header
    if origin is not None and float32:
        header = _as_float32(header)
    if origin is None or origin.paired != pair:
        header = _repack(header, pair)
    tally = _Tally()
    if pair:
        head, body = _pair_names(target)
        with writer(head, overwrite) as sink:
            sink.write(header)
        with writer(body, overwrite) as sink:
            _write_planes(sink, image, origin, float32, tally)
    else:
        with writer(target, overwrite) as sink:
            sink.write(header)
            _write_planes(sink, image, origin, float32, tally)
    return tally.clipped, tally.digest.hexdigest()


def files_of(target: Path) -> tuple[Path, ...]:
    """All files that `write` makes for a target name."""
    if target.name.endswith((".img", ".hdr", ".img.gz", ".hdr.gz")):
        return _pair_names(target)
    return (target,)


@contextlib.contextmanager
def writer(target: Path, overwrite: bool) -> Iterator[BinaryIO]:
    """An atomic file, gzipped without time and name when its suffix says so."""
    with atomic.file(target, overwrite=overwrite) as sink:
        if target.name.endswith(".gz"):
            with gzip.GzipFile("", "wb", GZIP_LEVEL, sink, mtime=0) as zipped:
                yield zipped  # type: ignore[misc]
        else:
            yield sink


def fresh_header(image: Image, float32: bool) -> bytes:
    """Header bytes for an image that never was a NIfTI file: RAS mm, both forms, code 1 or 0."""
    stored = image.stored
    plain = float32 or not _keeps_integers(stored)
    header = Nifti1Header() if max(image.shape) < 2**15 else Nifti2Header()
    header.set_data_dtype(np.dtype(np.float32) if plain else stored.dtype)
    n_channels = image.data.shape[0]
    header.set_data_shape((*image.shape, n_channels) if n_channels > 1 else image.shape)
    code = 0 if image.nominal else 1
    header.set_sform(image.geometry.affine, code=code)
    header.set_qform(image.geometry.affine, code=code, strip_shears=True)
    header.set_xyzt_units("mm", "sec")
    header["vox_offset"] = header.single_vox_offset
    header["magic"] = header.single_magic
    header["scl_slope"] = 1.0 if plain else float(stored.slope)
    header["scl_inter"] = 0.0 if plain else float(stored.intercept)
    return bytes(header.binaryblock) + b"\0" * 4


def description(origin: NiftiOrigin) -> str:
    """The text of at most 79 characters that a header has room for."""
    size = _header_size(origin.header[:4])
    kind = Nifti1Header if size == 348 else Nifti2Header
    big_endian = int.from_bytes(origin.header[:4], "big") == size
    header = kind(origin.header[:size], endianness=">" if big_endian else "<", check=False)
    return bytes(header["descrip"].item()).decode("latin-1")


def companions(path: Path) -> dict[str, Path]:
    """The b-values and b-vectors that lie beside a file under its own name."""
    stem = _stem(path)
    found = {}
    for suffix in (".bval", ".bvec"):
        beside = path.with_name(stem + suffix)
        if beside.is_file():
            found[suffix] = beside
    return found


def _b_values(path: Path, n_volumes: int, warnings: list[str]) -> tuple[float, ...] | None:
    """What the .bval file beside a series says, if it is about these volumes."""
    beside = companions(path).get(".bval")
    if beside is None or n_volumes == 1:
        return None
    try:
        found = read_b_values(beside)
    except InputError as error:
        warnings.append(f"{error}: b-values are not used")
        return None
    if len(found) != n_volumes:
        warnings.append(f"{len(found)} b-values for {n_volumes} volumes: they are not used")
        return None
    return found


class _Hashing(io.RawIOBase):
    """A file whose checksum is known once it was read to its end."""

    def __init__(self, handle: BinaryIO) -> None:
        self._handle = handle
        self._digest = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, room: Any) -> int:
        part = self._handle.read(len(room))
        self._digest.update(part)
        room[: len(part)] = part
        return len(part)

    def sha256(self) -> str:
        while self.read(CHUNK):
            pass
        return self._digest.hexdigest()


class _Stream:
    """The bytes of a plain or gzipped file, in order and verified."""

    def __init__(self, handle: BinaryIO, size: int) -> None:
        zipped = handle.read(2) == GZIP_MAGIC
        handle.seek(0)
        self._disk = _Hashing(handle)
        self._bytes: gzip.GzipFile | _Hashing = (
            gzip.GzipFile(fileobj=self._disk, mode="rb") if zipped else self._disk
        )
        self._size = size
        self._zipped = zipped
        self._after_voxels = False
        self.junk = False

    def read(self, n: int) -> bytes:
        """Exactly n bytes of the header."""
        parts: list[bytes] = []
        while n > 0:
            part = self._next(n)
            if not part:
                raise InputError("is empty" if not self._size else CUT, COPY_AGAIN)
            parts.append(part)
            n -= len(part)
        return b"".join(parts)

    def expect(self, total: int) -> None:
        """Refuse a file that cannot hold `total` bytes, before anything is allocated."""
        held = self._size * DEFLATE_LIMIT if self._zipped else self._size
        if held < total:
            raise InputError(
                f"is cut short: {self._size} bytes cannot hold the {total} it declares", COPY_AGAIN
            )

    def array(self, n_bytes: int, dtype: np.dtype[Any]) -> NDArray[np.generic]:
        """The next n bytes as numbers, read straight into their array."""
        out = np.empty(n_bytes // dtype.itemsize, dtype)
        room = out.view(np.uint8)
        at = 0
        while at < n_bytes:
            part = self._next(min(CHUNK, n_bytes - at))
            if not part:
                raise InputError(f"is cut short after {at} of {n_bytes} voxel bytes", COPY_AGAIN)
            room[at : at + len(part)] = np.frombuffer(part, np.uint8)
            at += len(part)
        self._after_voxels = True
        return out

    def rest(self, most: int) -> bytes:
        """Everything that is left, up to `most` bytes."""
        parts: list[bytes] = []
        while part := self._next(CHUNK):
            parts.append(part)
            if sum(map(len, parts)) > most:
                raise InputError(f"its header goes on for over {most // MIB} MiB", COPY_AGAIN)
        return b"".join(parts)

    def finish(self, slack: int, warnings: list[str]) -> str:
        """Read to the end, which verifies the checksum of a gzip stream; sha256 of the file."""
        beyond = total = 0
        while part := self._next(CHUNK):
            total += len(part)
            beyond += len(part) if part.strip(b"\0") else 0
            if total > slack:
                raise InputError(
                    f"goes on for over {slack // MIB} MiB after its voxels", COPY_AGAIN
                )
        if beyond or self.junk:
            warnings.append("bytes after the voxels were ignored")
        return self._disk.sha256()

    def _next(self, most: int) -> bytes:
        """Some bytes, at most `most`; empty at the end."""
        try:
            return self._bytes.read(most) or b""
        except gzip.BadGzipFile as error:
            if self._after_voxels and "Not a gzipped file" in str(error):
                self.junk = True  # the member before it was complete, its checksum matched
                return b""
            what = "checksum does not match" if "CRC" in str(error) else "stream is damaged"
            raise InputError(f"gzip {what}", "copy the file again") from error
        except EOFError as error:
            raise InputError("gzip stream is cut short", "copy the file again") from error
        except zlib.error as error:
            raise InputError("gzip stream is damaged", "copy the file again") from error


class _Tally:
    """What was written, counted while it streams by."""

    def __init__(self) -> None:
        self.clipped = 0
        self.digest = hashlib.sha256()


def _pair(path: Path) -> tuple[Path, Path]:
    """Header file and voxel file of what the user named."""
    for head, body in ((".hdr", ".img"), (".hdr.gz", ".img.gz")):
        for end, other in ((head, body), (body, head)):
            if not path.name.endswith(end):
                continue
            partner = path.with_name(path.name.removesuffix(end) + other)
            if partner.is_file():
                return (path, partner) if end == head else (partner, path)
            if end == body or not _is_single(path):
                raise InputError(f"its {other} file is missing", "put both files side by side")
    return path, path


def _is_single(path: Path) -> bool:
    with path.open("rb") as handle:
        return handle.read(348)[344:347] == b"n+1"


def _header_size(block: bytes) -> int:
    size = int.from_bytes(block, "little")
    swapped = int.from_bytes(block, "big")
    for candidate in (size, swapped):
        if candidate in (348, 540):
            return candidate
    raise InputError("is not a NIfTI file", "check what the file really is")


def _parse(block: bytes, size: int, paired: bool, warnings: list[str]) -> tuple[Header, bool]:
    """The header, and whether its bytes are big endian."""
    big_endian = int.from_bytes(block[:4], "big") == size
    kind = Nifti1Header if size == 348 else Nifti2Header
    header = kind(block, endianness=">" if big_endian else "<", check=False)
    magic = bytes(block[344:348] if size == 348 else block[4:8])
    known = {b"n+1\0", b"ni1\0", b"n+2\0", b"ni2\0"}
    if magic not in known:
        if magic[:2] in (b"n+", b"ni"):
            raise InputError(f"its magic string is {printable(magic)}", COPY_AGAIN)
        raise InputError("is Analyze 7.5, which has no orientation", "convert it to NIfTI")
    if paired != (magic[1:2] == b"i"):
        raise InputError(
            "its magic string and its suffix disagree on one file or two", "convert it again"
        )
    declared, code = int(header["bitpix"]), int(header["datatype"])
    if code in READABLE and declared != 8 * np.dtype(READABLE[code]).itemsize:
        warnings.append(f"bitpix {declared} disagrees with the data type, which was believed")
    return header, big_endian


def _dims(header: Header) -> tuple[int, ...]:
    """Shape, with trailing axes of length one as the header has them."""
    n = int(header["dim"][0])
    if not 1 <= n <= 7:
        raise InputError(f"dim[0] is {n}, it must be 1 to 7", COPY_AGAIN)
    dims = tuple(int(d) for d in header["dim"][1 : n + 1])
    if min(dims) < 1:
        raise InputError(f"has an axis of length {min(dims)}", COPY_AGAIN)
    if n == 1:
        raise InputError("has one axis only", "denoise needs an image or a volume")
    return dims


def _dtype(header: Header, big_endian: bool) -> np.dtype[Any]:
    code = int(header["datatype"])
    if code not in READABLE:
        name = REFUSED.get(code, f"code {code}")
        remedy = (
            "save its magnitude (or real and imaginary part) as float32"
            if name.startswith("complex")
            else "convert it to integers or float32"
        )
        raise InputError(f"its data type is {name}, which cannot be denoised", remedy)
    return np.dtype((">" if big_endian else "<") + READABLE[code])


def _voxel_offset(header: Header, size: int, paired: bool, limits: Limits) -> int:
    raw = float(header["vox_offset"])
    if not np.isfinite(raw) or raw < 0 or raw != int(raw):
        raise InputError(f"vox_offset is {raw:g}", COPY_AGAIN)
    offset = int(raw)
    if paired:
        return offset
    if offset < size + 4:
        if offset == 0:  # some old writers leave it out
            return size + 4
        raise InputError(f"vox_offset {offset} lies inside the header", COPY_AGAIN)
    if offset > size + 4 + limits.extensions:
        raise InputError(f"vox_offset {offset} is beyond any header extension", COPY_AGAIN)
    return offset


def _check_extensions(header: bytes, size: int, big_endian: bool) -> None:
    """Walk the list of extensions; each says its own length, a multiple of 16."""
    if len(header) < size + 4 or header[size] == 0:
        return
    at = size + 4
    while at + 8 <= len(header):
        length = int.from_bytes(header[at : at + 4], "big" if big_endian else "little")
        if length == 0:
            return
        if length < 16 or length % 16 or at + length > len(header):
            raise InputError(f"a header extension claims {length} bytes", COPY_AGAIN)
        at += length


def _affine(header: Header, warnings: list[str]) -> NDArray[np.float64]:
    """sform, else qform, else the voxel sizes: the first that is set and sound."""
    forms: dict[str, NDArray[np.float64]] = {}
    problem = ""
    for name, code, matrix in (("sform", "sform_code", _sform), ("qform", "qform_code", _qform)):
        if int(header[code]) > 0:
            try:
                forms[name] = Geometry((2, 2, 2), matrix(header)).affine
            except (InputError, HeaderDataError, ValueError):
                problem = f"its {name} is not a sound affine"
    if not forms:
        if problem:
            raise InputError(problem, "repair the header's orientation")
        steps = np.array(header["pixdim"][1:4], dtype=np.float64)
        if not (np.isfinite(steps).all() and (steps != 0).all()):
            raise InputError(
                "has neither orientation nor voxel sizes", "set pixdim or the sform in the header"
            )
        warnings.append("no orientation is stored; left and right are unknown")
        fixed = header.copy()
        fixed["pixdim"][1:4] = np.abs(steps)
        return np.asarray(fixed.get_base_affine(), dtype=np.float64)
    if problem:
        warnings.append(f"{problem}; the other form was used")
    if len(forms) == 2:
        grid = tuple(int(d) for d in header["dim"][1:4])
        far = Geometry(grid, forms["sform"]).distance(Geometry(grid, forms["qform"]))
        if far > 1e-3:
            warnings.append(f"sform and qform differ by up to {far:.3g} mm; the sform was used")
    return forms.get("sform", forms.get("qform", np.eye(4)))


def _sform(header: Header) -> NDArray[np.float64]:
    return np.asarray(header.get_sform(), dtype=np.float64)


def _qform(header: Header) -> NDArray[np.float64]:
    return np.asarray(header.get_qform(coded=False), dtype=np.float64)


def _scaling(header: Header) -> tuple[float, float]:
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or np.isnan(slope):
        return 1.0, 0.0
    if not np.isfinite(slope) or not np.isfinite(intercept):
        raise InputError(f"its scaling is {slope:g}, {intercept:g}", "repair scl_slope, scl_inter")
    return slope, intercept


def _image_units(
    planes: NDArray[np.generic], slope: float, intercept: float, warnings: list[str]
) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
    """Voxels (C, X, Y, Z) in image units, and where they are finite (None: everywhere)."""
    volumes = planes if planes.ndim == 4 else planes[:, None]
    flat = planes.ndim == 3
    scaled = (slope, intercept) != (1.0, 0.0)
    if volumes.dtype == np.float32 and volumes.dtype.isnative and not scaled:
        data = volumes.astype(np.float32, copy=False)
    else:
        data = np.empty(volumes.shape, np.float32)
        for c, k in np.ndindex(volumes.shape[:2]):
            with np.errstate(over="ignore", invalid="ignore"):
                data[c, k] = values.decode(volumes[c, k], slope, intercept)
    valid = _finite(volumes, data, warnings)
    if flat:
        data, valid = data[:, 0], None if valid is None else valid[:, 0]
    order = (0, *range(data.ndim - 1, 0, -1))
    return data.transpose(order), None if valid is None else valid.transpose(order)


def _finite(
    stored: NDArray[np.generic], data: NDArray[np.float32], warnings: list[str]
) -> NDArray[np.bool_] | None:
    """Where voxels are finite; refuse images that mostly are not."""
    n_bad = 0
    for c, k in np.ndindex(data.shape[:2]):
        lost = data[c, k].size - int(np.count_nonzero(np.isfinite(data[c, k])))
        if lost and np.isfinite(stored[c, k].astype(np.float64)).sum() > data[c, k].size - lost:
            raise InputError("scaled values exceed float32", "repair scl_slope and scl_inter")
        n_bad += lost
    if n_bad == 0:
        if data.size > 1 and float(data.min()) == float(data.max()):
            warnings.append(f"every voxel is {float(data.min()):g}")
        return None
    if n_bad > data.size / 2:
        raise InputError(
            f"{100 * n_bad / data.size:.0f} % of its voxels are NaN or infinite",
            "export it again, or set them to a number",
        )
    warnings.append(f"{n_bad} voxels are NaN or infinite; they were left as they are")
    return np.isfinite(data)


def _stem(path: Path) -> str:
    for end in (".nii.gz", ".hdr.gz", ".img.gz", ".nii", ".hdr", ".img"):
        if path.name.endswith(end):
            return path.name.removesuffix(end)
    return path.name


def _pair_names(target: Path) -> tuple[Path, Path]:
    zipped = ".gz" if target.name.endswith(".gz") else ""
    stem = _stem(target)
    return target.with_name(f"{stem}.hdr{zipped}"), target.with_name(f"{stem}.img{zipped}")


def _keeps_integers(stored: Stored) -> bool:
    """Whether one slope and a NIfTI integer type hold the source's numbers."""
    return stored.is_integer and stored.slope.ndim == 0 and stored.intercept.ndim == 0


def _as_float32(header: bytes) -> bytes:
    """The same header, declaring unscaled float32."""
    size = _header_size(header[:4])
    parsed, _ = _parse(header[:size], size, header[344:346] == b"ni", [])
    parsed["datatype"], parsed["bitpix"] = 16, 32
    parsed["scl_slope"], parsed["scl_inter"] = 1.0, 0.0
    return bytes(parsed.binaryblock) + header[size:]


def _repack(header: bytes, pair: bool) -> bytes:
    """The same header for the other of one file and two."""
    size = _header_size(header[:4])
    kind = Nifti1Header if size == 348 else Nifti2Header
    big_endian = int.from_bytes(header[:4], "big") == size
    parsed = kind(header[:size], endianness=">" if big_endian else "<", check=False)
    parsed["magic"] = parsed.pair_magic if pair else parsed.single_magic
    tail = header[size:] or b"\0" * 4
    tail += b"\0" * (-(size + len(tail)) % 16)
    parsed["vox_offset"] = 0 if pair else size + len(tail)
    return bytes(parsed.binaryblock) + tail


def _write_planes(
    sink: BinaryIO, image: Image, origin: NiftiOrigin | None, float32: bool, tally: _Tally
) -> None:
    """Stream the voxels, plane by plane in file order."""
    data = image.data.transpose(0, *range(image.data.ndim - 1, 0, -1))
    valid = (
        None
        if image.valid is None
        else image.valid.transpose(0, *range(image.data.ndim - 1, 0, -1))
    )
    stored = image.stored
    dtype: np.dtype[np.generic] = np.dtype("<f4")
    if origin is not None and not float32:
        dtype = origin.stored.dtype
    elif not float32 and _keeps_integers(stored):
        dtype = stored.dtype.newbyteorder("<")
    slope, intercept = (1.0, 0.0) if float32 else (float(stored.slope), float(stored.intercept))
    for index in np.ndindex(data.shape[:-2]):
        plane = data[index]
        if origin is None or float32:
            base: NDArray[np.generic] = np.zeros(plane.shape, dtype)
            keep = None
        else:
            base = origin.stored[index]
            keep = None if valid is None else ~valid[index]
        out, clipped = values.encode(plane, base, slope, intercept, stored.limits, keep)
        tally.clipped += clipped
        out = out.astype(dtype, copy=False)
        tally.digest.update(out.astype(dtype.newbyteorder("<"), copy=False).tobytes())
        sink.write(out.tobytes())
