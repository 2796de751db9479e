"""Archives of scans: header scan, index, rescan, each beside a peer in one process and one thread.

`scan`: 2000 files, a third each of `CT_small.dcm`, `MR_small.dcm` (data/dicom/pydicom) and the
first with a matrix of 512 x 512, warm cache, best of three passes; then every DICOM file of the
data folder, and those of them that are not left to pydicom. `index`: a million generated headers
become rows and parts on disk, then series; SQLite holds the same columns. `rescan`: an archive of
100 000 files (links to two) is indexed, and again unchanged. DuckDB and the index in two processes
use several cores, so elapsed time is given beside processor time.
`patches`: random patches of 96^3 voxels of a volume of 256^3 (data/ct/volume enlarged linearly,
with noise of 12 HU), int16, median of 24, warm cache, one thread; files are opened each time.
`packing`: an uncompressed CT series of 512 x 512 x 80 (data/ct/series_3mm_dicom and mirrored)
becomes a volume of a store, best of three, one thread; MB are those of the pixels.
"""

import os
import shutil
import sqlite3
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pydicom
from _table import arguments, show
from numpy.typing import NDArray
from scipy.ndimage import zoom

from medssl.data import archive
from medssl.data.parts import Parts
from medssl.data.prepare import Job, as_stored, canonical, prepare_series
from medssl.data.rows import PUBLIC, Keys, dicom_row
from medssl.data.store import Made, write_store
from medssl.io import tags
from medssl.io.b2nd import write_b2nd
from medssl.io.dicom import Source
from medssl.io.example_series import ct_series
from medssl.io.limits import Limits
from medssl.io.read import read
from medssl.io.series import read_sources

Part = tuple[slice, ...]
Row = dict[str, Any]
FILES = 2000
INSTANCES = 1_000_000
LINKS = 100_000


def rate(read: Callable[[str], object], files: list[str]) -> float:
    """Files per processor second, the best of three passes over a warm cache."""
    for file in files[:10]:
        read(file)
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        for file in files:
            read(file)
        best = min(best, time.process_time() - start)
    return len(files) / best


def cpu_seconds() -> float:
    """Of this process and those it started that have ended."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def readers() -> dict[str, Callable[[str], object]]:
    """Readers of the wanted tags; peers that are not installed are left out."""
    found: dict[str, Callable[[str], object]] = {
        "medssl scanner + pydicom": tags.read_header,
        "pydicom, no pixels": lambda file: pydicom.dcmread(file, stop_before_pixels=True),
        "pydicom, wanted tags": lambda file: pydicom.dcmread(
            file, stop_before_pixels=True, specific_tags=list(tags.TAGS.values())
        ),
    }
    try:
        import SimpleITK as sitk  # noqa: N813 (its own name)
    except ImportError:
        pass
    else:

        def by_itk(file: str) -> object:
            reader = sitk.ImageFileReader()
            reader.SetFileName(file)
            reader.LoadPrivateTagsOn()
            reader.ReadImageInformation()
            return [reader.GetMetaData(key) for key in reader.GetMetaDataKeys()]

        found["SimpleITK"] = by_itk
    try:
        import dicomsdl
    except ImportError:
        pass
    else:
        words = [pydicom.datadict.keyword_for_tag(tag) for tag in tags.TAGS.values()]

        def by_sdl(file: str) -> object:
            dataset = dicomsdl.open(file)
            return [dataset[word] for word in words]

        found["dicomsdl"] = by_sdl
    return found


def scan(data: Path) -> list[Row]:
    """Header scan, files per processor second."""
    small = [data / "dicom" / "pydicom" / name for name in ("CT_small.dcm", "MR_small.dcm")]
    with tempfile.TemporaryDirectory() as place:
        large = Path(place) / "large.dcm"
        dataset = pydicom.dcmread(small[0])
        dataset.Rows = dataset.Columns = 512
        dataset.PixelData = np.zeros((512, 512), np.int16).tobytes()
        dataset.save_as(large)
        three = [str(file) for file in (*small, large)]
        synthetic = [three[i % 3] for i in range(FILES)]
        every = []
        for file in sorted(p for p in data.rglob("*") if p.is_file()):
            with file.open("rb") as handle:
                if handle.read(132)[128:] == b"DICM":
                    every.append(str(file))
        taken = [file for file in every if tags.scan(file) is not None]
        rows: list[Row] = []
        for name, read in readers().items():
            # peers are slow: a tenth of the files is enough for them
            step = 1 if name.startswith("medssl") else 10
            row: Row = {"case": "scan", "reader": name}
            row["three kinds, files/s"] = round(rate(read, synthetic[::step]))
            for what, files in (("all", every), ("without fallback", taken)):
                column = f"{len(files)} of data/, {what}"
                try:
                    row[column] = round(rate(read, files))
                except Exception as error:  # noqa: BLE001 (a peer that cannot read one of them)
                    row[column] = f"fails ({type(error).__name__})"
            rows.append(row)
    ours = rows[0]
    for row in rows[1:]:
        pairs = [(k, ours[k] / v) for k, v in row.items() if isinstance(v, int)]
        row["medssl is"] = ", ".join(f"{ratio:.1f}x" for _, ratio in pairs)
    return rows


def headers(n: int) -> Iterator[tuple[str, int, int, tags.Header]]:
    """Generated headers in the order of their paths: path, size, time, header."""
    chance = np.random.default_rng(0)
    empty = dict.fromkeys(tags.Header._fields, "") | {"temporal": None, "b_value": None}
    for patient in range(n):
        for study in range(2):
            root = "1.3.12.2.1107.5.1.4." + "".join(map(str, chance.integers(0, 10, 24)))
            for series in range(4):
                z, step = float(chance.uniform(-400, 400)), float(chance.choice([1, 1.5, 3, 5]))
                ct = series % 2 == 0
                common = empty | {
                    "syntax": "1.2.840.10008.1.2.4.70",
                    "image_type": ("ORIGINAL", "PRIMARY", "AXIAL"),
                    "sop_class": f"1.2.840.10008.5.1.4.1.1.{2 if ct else 4}",
                    "modality": "CT" if ct else "MR",
                    "maker": "SIEMENS",
                    "description": "Thorax 3.0 B30f" if ct else "t2_tse_tra",
                    "patient_id": f"{patient:08}",
                    "body_part": "CHEST",
                    "thickness": step,
                    "kvp": 120.0 if ct else None,
                    "echo_time": None if ct else 98.0,
                    "kernel": "B30f" if ct else "",
                    "study": root,
                    "series": f"{root}.{series}",
                    "orientation": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
                    "frame": f"{root}.9",
                    "samples": 1,
                    "photometric": "MONOCHROME2",
                    "frames": None,
                    "rows": 512,
                    "columns": 512,
                    "spacing": (float(chance.uniform(0.5, 1)),) * 2,
                    "bits": 12,
                    "intercept": -1024.0 if ct else None,
                    "slope": 1.0 if ct else None,
                    "by": "scanner",
                }
                sizes = chance.integers(150_000, 300_000, 120)
                times = 1_700_000_000_000_000_000 + chance.integers(0, 10**15, 120)
                tails = chance.integers(10**8, 10**9, 120)
                for i in range(120):
                    header = common | {
                        "instance": f"{root}.{series}.{tails[i]}.{i}",
                        "number": i + 1,
                        "position": (-200.0, -180.5, z + i * step),
                    }
                    path = f"{patient:06}/study{study}/series{series}/IM{i:06}.dcm"
                    yield path, int(sizes[i]), int(times[i]), tags.Header(**header)


def index(data: Path) -> list[Row]:
    """The index of a million headers against SQLite: bytes, processor seconds."""
    del data
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "archive"
        out = Path(place) / "index"
        out.mkdir()
        parts = Parts.make(out, root)
        keys = Keys(parts.salt)
        source = islice(headers(INSTANCES), INSTANCES)
        database = sqlite3.connect(Path(place) / "index.sqlite")
        columns = [name for name in PUBLIC if name != "id"]
        marks = ",".join("?" * (len(columns) + 3))
        names = ",".join(f"[{c}]" for c in (*columns, "path", "size", "mtime_ns"))
        database.execute(f"CREATE TABLE alive ({names})")
        build = lite = 0.0
        while block := list(islice(source, archive.PART)):
            start = time.process_time()
            rows = [dicom_row(header, path, keys) for path, _, _, header in block]
            files = [(path.encode(), size, when) for path, size, when, _ in block]
            parts.append(rows, files, [])
            build += time.process_time() - start
            start = time.process_time()
            flat = [
                [str(v) if isinstance(v, tuple) else v for v in (*row, *file)]
                for row, file in zip(rows, files, strict=True)
            ]
            database.executemany(f"INSERT INTO alive VALUES ({marks})", flat)
            lite += time.process_time() - start
        parts.complete = True
        parts.save()
        start = time.process_time()
        database.commit()
        lite += time.process_time() - start
        group = (
            "SELECT series, count(*), min(modality), max(rows), max(columns), sum(size), "
            "min(patient) FROM alive GROUP BY series"
        )
        start, wall = time.process_time(), time.perf_counter()
        n = len(parts.ask(group)[0]["series"])
        ours, our_wall = time.process_time() - start, time.perf_counter() - wall
        start, wall = time.process_time(), time.perf_counter()
        assert n == len(database.execute(group).fetchall())
        theirs, their_wall = time.process_time() - start, time.perf_counter() - wall
        database.close()
        start = time.process_time()
        found = archive.series(out)
        assembled = time.process_time() - start
        assert sum(row.n_instances for row in found) == INSTANCES
        size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
        public = sum(p.stat().st_size for p in (out / "rows").iterdir())
        return [
            {
                "case": "index",
                "store": "medssl",
                "instances": INSTANCES,
                "MB": f"{size / 1e6:.1f} ({public / 1e6:.1f} without paths)",
                "build, CPU s": round(build, 1),
                "group by series, CPU s": round(ours, 2),
                "elapsed s": round(our_wall, 2),
                "series with paths, CPU s": round(assembled, 1),
            },
            {
                "case": "index",
                "store": "SQLite",
                "instances": INSTANCES,
                "MB": f"{(Path(place) / 'index.sqlite').stat().st_size / 1e6:.1f}",
                "build, CPU s": f"{lite:.1f} (rows given)",
                "group by series, CPU s": round(theirs, 2),
                "elapsed s": round(their_wall, 2),
            },
        ]


def rescan(data: Path) -> list[Row]:
    """An unchanged archive is looked at again: files per second."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "archive"
        for i in range(LINKS):
            if i % 50_000 == 0:  # no file has many more names
                first = Path(place) / f"{i}.dcm"
                shutil.copyfile(data / "dicom" / "pydicom" / "CT_small.dcm", first)
            if i % 500 == 0:
                folder = root / f"{i // 5000:03}" / f"{i // 500 % 10}"
                folder.mkdir(parents=True)
            os.link(first, folder / f"IM{i:06}")
        rows: list[Row] = []
        for what, out, workers in (
            ("first index, one process", "a", 1),
            ("again, unchanged", "a", 1),
            ("first index, two processes", "b", 2),
        ):
            start, wall = cpu_seconds(), time.perf_counter()
            found = archive.index(root, Path(place) / out, workers=workers)
            cpu, elapsed = cpu_seconds() - start, time.perf_counter() - wall
            assert found.files == LINKS
            rows.append(
                {
                    "case": "rescan",
                    "run": what,
                    "files": LINKS,
                    "files/CPU s": round(LINKS / cpu),
                    "files/s": round(LINKS / elapsed),
                }
            )
        start = time.process_time()
        n = 0
        waiting = [str(root)]
        while waiting:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_dir():
                        waiting.append(entry.path)
                    else:
                        n += entry.stat().st_size > 0
        cpu = time.process_time() - start
        rows.append(
            {
                "case": "rescan",
                "run": "scandir and stat alone",
                "files": n,
                "files/CPU s": round(n / cpu),
            }
        )
        return rows


def patches(data: Path) -> list[Row]:
    """A random patch of 96^3 voxels: milliseconds, and times what a packed array takes."""
    rng = np.random.default_rng(0)
    scan = read(data / "ct" / "volume" / "example_ct.nii.gz").data[0]
    large = zoom(scan, [256 / n for n in scan.shape], order=1)
    volume = np.rint(large + rng.normal(0, 12, large.shape)).astype(np.int16)
    starts = rng.integers(0, 256 - 96, (24, 3))
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        np.save(folder / "a.npy", volume)
        nib.save(nib.Nifti1Image(volume, np.eye(4)), folder / "a.nii.gz")
        store = write_store(folder / "zstd", [Made(image=volume[None], key="0" * 32)])
        fast = write_store(folder / "lz4", [Made(image=volume[None], key="0" * 32)], codec="lz4")
        with h5py.File(folder / "a.h5", "w") as file:
            file.create_dataset("a", data=volume, chunks=(64, 64, 64), compression="gzip")

        def hdf5(part: Part) -> NDArray[Any]:
            with h5py.File(folder / "a.h5") as file:
                return np.asarray(file["a"][part])

        ways: dict[str, tuple[Path, Callable[[Part], NDArray[Any]]]] = {
            "store, zstd": (store.path / "volumes", lambda part: store.read(0, part)[0]),
            "store, lz4": (fast.path / "volumes", lambda part: fast.read(0, part)[0]),
            "npy, mapped": (folder / "a.npy", lambda part: np.array(_mapped(folder)[part])),
            "HDF5, gzip": (folder / "a.h5", hdf5),
            "nii.gz, sliced": (folder / "a.nii.gz", lambda part: _nifti(folder).dataobj[part]),
            "nii.gz, whole": (
                folder / "a.nii.gz",
                lambda part: np.asarray(_nifti(folder).dataobj)[part],
            ),
        }
        for name, (file, way) in ways.items():
            taken = []
            for start in starts:
                part = tuple(slice(int(a), int(a) + 96) for a in start)
                before = time.process_time()
                patch = way(part)
                taken.append(time.process_time() - before)
                assert np.array_equal(patch, volume[part])
            files = [file] if file.is_file() else list(file.iterdir())
            rows.append(
                {
                    "case": "patches",
                    "container": name,
                    "ms": round(1000 * float(np.median(taken)), 2),
                    "packed": f"{volume.nbytes / sum(f.stat().st_size for f in files):.2f}x",
                }
            )
    for row in rows:
        row["times the store"] = f"{row['ms'] / rows[0]['ms']:.1f}x"
    return rows


def _mapped(folder: Path) -> NDArray[Any]:
    return np.load(folder / "a.npy", mmap_mode="r")


def _nifti(folder: Path) -> Any:
    return nib.load(folder / "a.nii.gz")


def packing(data: Path) -> list[Row]:
    """From an uncompressed DICOM series to a volume of a store: MB per processor second."""
    slices = read(data / "ct" / "series_3mm_dicom").data[0]
    turned = [slices, slices[::-1], slices[:, ::-1], slices[::-1, ::-1]]
    hu = np.concatenate(turned, axis=2)
    megabytes = 2 * hu.size / 1e6
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        files = ct_series(folder / "dicom", hu, (0.8, 0.8, 3.0))
        (folder / "volumes").mkdir()
        sources = [Source(f) for f in files]

        def convert() -> None:
            image = read_sources(sources, "series", Limits())
            volume, _ = canonical(as_stored(image.data, image), image.geometry.affine)
            write_b2nd(folder / "volumes" / "a.b2nd", volume, overwrite=True)

        job = Job(
            key="0" * 32, kind="dicom", modality="CT", flags=(), patient="", frame="",
            sides=(512, 512), n_frames=len(files), stamp="", paths=tuple(files), store=folder,
        )  # fmt: skip

        def by_pydicom() -> None:
            planes = [pydicom.dcmread(f) for f in files]
            planes.sort(key=lambda d: float(d.ImagePositionPatient[2]))
            stack = np.stack([d.pixel_array.T for d in planes], axis=2).astype(np.int16) - 1024
            nib.save(nib.Nifti1Image(stack, np.eye(4)), folder / "a.nii.gz")

        ways: dict[str, Callable[[], object]] = {
            "read and pack": convert,
            "prepare: also quality, statistics, hashes": lambda: prepare_series(job),
            "pydicom, nibabel: to nii.gz": by_pydicom,
        }
        for name, way in ways.items():
            best = float("inf")
            for _ in range(3):
                start = time.process_time()
                way()
                best = min(best, time.process_time() - start)
            rows.append({"case": "packing", "way": name, "MB/CPU s": round(megabytes / best, 1)})
    return rows


CASES: dict[str, Callable[[Path], list[Row]]] = {
    "scan": scan,
    "index": index,
    "rescan": rescan,
    "patches": patches,
    "packing": packing,
}


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--case", choices=list(CASES), action="append", help="only these tables")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    for case in options.case or CASES:
        rows = CASES[case](options.data)
        show(f"archive_{case}", CASES[case].__doc__ or "", rows, as_json=options.json)


if __name__ == "__main__":
    main()
