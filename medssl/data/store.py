"""The training store: a folder of volumes that random crops are read from.

    store/manifest.json  volumes.parquet  skipped.csv  links.parquet  volumes/<key>.b2nd

Volumes are (C, X, Y, Z) in RAS+ with the type of their source. `medssl archive prepare` fills a
store from an archive, `write_store` from arrays at hand.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medssl.core.errors import InputError, naming
from medssl.data.foreground import Foreground, measure
from medssl.io import atomic
from medssl.io.b2nd import Codec, open_b2nd, write_b2nd
from medssl.io.table import read_parquet, write_parquet

FORMAT = 1
"""Of the folder; a store of another number is refused."""
MANIFEST, TABLE, VOLUMES = "manifest.json", "volumes.parquet", "volumes"
AGAIN = "make it again: medssl archive prepare"


@dataclass(frozen=True, kw_only=True)
class Volume:
    """One volume of a store."""

    index: int
    """From 0 over the whole store, in the order of keys."""
    key: str
    kind: str
    """`dicom`, `nifti` or `picture`."""
    modality: str
    """DICOM's word; `""` is not known."""
    shape: tuple[int, int, int, int]
    """(C, X, Y, Z)."""
    spacing: tuple[float, float, float]
    """mm."""
    affine: tuple[float, ...]
    """16 numbers, row by row: voxel indices to RAS mm."""
    percentiles: tuple[float, float, float]
    """0.5, 50 and 99.5, of the foreground."""
    mean: float
    sd: float
    """Of the foreground, values clipped to the outer percentiles."""
    foreground: tuple[tuple[int, int], ...]
    """First voxel and the one after the last of the foreground, along X, Y, Z."""
    group: str
    """Volumes that may show the same patient have one group."""
    patient: str
    """Hash of the patient; `""` where the file names none."""
    split: str
    """`train`, `val` or `test`."""
    series: str
    """Key of its series; equals `key` where the series is one volume."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What the table holds of a volume: what training asks for, and what finds its copies."""

    key: str
    series: str
    kind: str
    modality: str
    shape: tuple[int, ...]
    dtype: str
    affine: tuple[float, ...]
    share: float
    """Of its voxels that are foreground."""
    foreground: tuple[tuple[int, ...], ...]
    percentiles: tuple[float, ...]
    mean: float
    sd: float
    lossy: bool
    """It was compressed with loss somewhere on its way."""
    hash: str
    """BLAKE2b of its voxels, their type and shape."""
    patient: str = ""
    frame: str = ""
    group: str = ""
    split: str = "train"
    left_out: str = ""
    """Why it has no file: `by hand`, or the key of the volume that it is a copy of."""
    sketch: bytes = b""
    """Hashes of runs of voxels, int64 (see `data.duplicates`)."""
    every: int = 1
    """What all of them are divisible by."""
    slices: bytes = b""
    """Hashes of the slices along Z, 32 bytes each; zeros of those that show nothing."""


TYPES = {
    "key": "str",
    "series": "str",
    "kind": "str",
    "modality": "str",
    "shape": "[int32]",
    "dtype": "str",
    "affine": "[float64]",
    "share": "float64",
    "foreground": "[int32]",
    "percentiles": "[float64]",
    "mean": "float64",
    "sd": "float64",
    "lossy": "bool",
    "hash": "str",
    "patient": "str",
    "frame": "str",
    "group": "str",
    "split": "str",
    "left_out": "str",
    "sketch": "bytes",
    "every": "int64",
    "slices": "bytes",
}
HEAVY = ("sketch", "slices")
"""Columns that training has no use for."""


@dataclass(frozen=True)
class Store:
    """A store, opened for reading; light enough to be handed to other processes."""

    path: Path
    volumes: tuple[Volume, ...]
    sha256: str
    """Of all that the table says of the volumes, their voxels included."""

    @classmethod
    def open(cls, path: str | Path) -> "Store":
        """Open a store.

        Raises:
            InputError: No store, damaged, of another version, or empty.
            UsageError: The extra `archive` is not installed.
        """
        path = Path(path)
        with naming(path):
            read_manifest(path)
            rows = [r for r in read_rows(path, heavy=False) if not r.left_out]
            if not rows:
                raise InputError(
                    "the store holds no volume", "its skipped.csv says what was left out and why"
                )
            return cls(path, tuple(_volume(k, r) for k, r in enumerate(rows)), digest(rows))

    def read(self, index: int, part: tuple[slice, slice, slice] | None = None) -> NDArray[Any]:
        """The voxels of a volume, or of a box in it; only that box is unpacked.

        Args:
            index: Of the volume.
            part: Slices of step 1 along X, Y, Z that lie inside it; None means all.

        Returns:
            (C, *part), of the type that was stored.

        Raises:
            InputError: The file is missing, damaged, or not what the table says.
        """
        volume = self.volumes[index]
        file = volume_path(self.path, volume.key)
        packed = open_b2nd(file)
        if packed.shape != volume.shape:
            raise InputError(
                f"has shape {packed.shape}, the table says {volume.shape}", AGAIN, file=file
            )
        box = part if part is not None else tuple(slice(0, n) for n in volume.shape[1:])
        return packed[(slice(0, volume.shape[0]), *box)]


@dataclass(frozen=True, eq=False, kw_only=True)
class Made:
    """A volume at hand, for a store that is made from arrays."""

    image: NDArray[Any]
    """(C, X, Y, Z) in RAS+."""
    key: str
    modality: str = ""
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """mm."""
    patient: str = ""
    """Whose volume it is; `""` makes it a group of its own."""
    split: str = "train"


def write_store(out: Path, volumes: Iterable[Made], codec: Codec = "zstd") -> Store:
    """Make a store of arrays, one volume after the other.

    Args:
        out: A folder that does not exist, or is empty.
        volumes: In any order, each key once.
        codec: How they are packed.

    Raises:
        OutputError: The place is taken, not writable, or full.
        InputError: No volume was given.
    """
    rows = []
    with atomic.folder(out) as place:
        (place / VOLUMES).mkdir()
        for made in volumes:
            write_b2nd(volume_path(place, made.key), made.image, codec)
            affine = np.diag([*made.spacing, 1.0])
            measured = measure(made.image, made.modality)
            group = made.patient or made.key
            rows.append(
                row_of(
                    made.image, affine, measured, key=made.key, series=made.key, kind="nifti",
                    modality=made.modality, patient=made.patient, group=group, split=made.split,
                )
            )  # fmt: skip
        write_rows(place, sorted(rows, key=lambda r: r.key))
        write_manifest(place, {"n_volumes": len(rows)})
    return Store.open(out)


def row_of(
    image: NDArray[Any],
    affine: NDArray[np.float64],
    measured: Foreground,
    *,
    key: str,
    series: str,
    kind: str,
    modality: str,
    patient: str = "",
    group: str = "",
    split: str = "train",
    lossy: bool = False,
) -> Row:
    """The row of a volume (C, X, Y, Z) with its affine (4, 4)."""
    return Row(
        key=key,
        series=series,
        kind=kind,
        modality=modality,
        shape=image.shape,
        dtype=image.dtype.newbyteorder("=").name,
        affine=tuple(float(v) for v in affine.reshape(-1)),
        share=measured.share,
        foreground=measured.box,
        percentiles=measured.percentiles,
        mean=measured.mean,
        sd=measured.sd,
        lossy=lossy,
        hash=voxel_hash(image),
        patient=patient,
        group=group,
        split=split,
    )


def voxel_hash(image: NDArray[Any]) -> str:
    """BLAKE2b (128 bit, hex) of voxels (C, X, Y, Z), their type and shape."""
    little = np.ascontiguousarray(image, image.dtype.newbyteorder("<"))
    found = hashlib.blake2b(f"{little.dtype.name} {little.shape}".encode(), digest_size=16)
    found.update(little.data)
    return found.hexdigest()


def volume_path(store: Path, key: str) -> Path:
    """Where a volume lies."""
    return store / VOLUMES / f"{key}.b2nd"


def write_rows(store: Path, rows: Sequence[Row]) -> None:
    """Write the table.

    Raises:
        OutputError: Not writable, or full.
    """
    columns = {name: [_flat(getattr(r, name)) for r in rows] for name in TYPES}
    write_parquet(store / TABLE, columns, TYPES)


def read_rows(store: Path, *, heavy: bool = True) -> list[Row]:
    """The table, what was left out included, in the order of keys.

    Args:
        store: The folder.
        heavy: Whether to read the hashes that find copies.

    Raises:
        InputError: Missing or damaged.
    """
    names = [name for name in TYPES if heavy or name not in HEAVY]
    columns = read_parquet(store / TABLE, names)
    rows = []
    for values in zip(*(columns[name] for name in names), strict=True):
        row = dict(zip(names, values, strict=True))
        ends = row["foreground"]
        row["foreground"] = tuple((ends[k], ends[k + 1]) for k in range(0, len(ends), 2))
        for name in ("shape", "affine", "percentiles"):
            row[name] = tuple(row[name])
        rows.append(Row(**row))
    return sorted(rows, key=lambda r: r.key)


def slice_hashes(store: Path) -> dict[str, bytes]:
    """The hashes of the slices of each volume, by key; nothing else of the table is read.

    Raises:
        InputError: Missing or damaged.
    """
    columns = read_parquet(store / TABLE, ["key", "slices"])
    return dict(zip(columns["key"], columns["slices"], strict=True))


def write_manifest(store: Path, facts: dict[str, Any]) -> None:
    """Write what the store as a whole says of itself; written last, it makes the store one.

    Raises:
        OutputError: Not writable, or full.
    """
    with atomic.file(store / MANIFEST, overwrite=True) as sink:
        sink.write((json.dumps({"format": FORMAT, **facts}, indent=2) + "\n").encode())


def digest(rows: Sequence[Row]) -> str:
    """SHA-256 of what the table says, whatever wrote it."""
    said = [[_flat(getattr(r, name)) for name in TYPES if name not in HEAVY] for r in rows]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def is_store(path: Path) -> bool:
    """Whether a folder is a store, or is becoming one."""
    return (path / VOLUMES).is_dir()


def read_manifest(store: Path) -> dict[str, Any]:
    """What a store as a whole says of itself: counts, nothing that names a patient.

    Raises:
        InputError: No store, damaged, of another version, or its preparation did not end.
    """
    file = store / MANIFEST
    if not file.is_file():
        raise InputError("is no store, or one whose preparation did not end", AGAIN)
    try:
        facts: dict[str, Any] = json.loads(file.read_bytes())
        found = facts.pop("format")
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise InputError("is damaged", AGAIN, file=file) from error
    if found != FORMAT:
        raise InputError(f"is a store of format {found}, not {FORMAT}", AGAIN)
    return facts


def _volume(index: int, row: Row) -> Volume:
    """A row as training sees it."""
    held = {f.name for f in fields(Volume)}
    values = {name: value for name, value in asdict(row).items() if name in held}
    x, y, z = np.linalg.norm(np.reshape(row.affine, (4, 4))[:3, :3], axis=0)
    return Volume(index=index, spacing=(float(x), float(y), float(z)), **values)


def _flat(value: Any) -> Any:
    """Tuples as lists, nested ones joined."""
    if not isinstance(value, tuple):
        return value
    return [v for part in value for v in (part if isinstance(part, tuple) else (part,))]
