"""One door for every kind of raw MR data: the content decides, never the suffix."""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medssl.core.errors import InputError, UsageError, naming
from medssl.core.kspace import KSpace
from medssl.io import arrays, cfl, fastmri, hdf5, mrd, npy, read, trajectory, twix
from medssl.io.arrays import Axes
from medssl.io.limits import Limits
from medssl.io.raw_geometry import place
from medssl.io.readouts import Raw
from medssl.io.survey import examine

KNOWN = "give Siemens .dat, ISMRMRD or fastMRI .h5, BART .cfl, or .npy"
CONVERT = "convert it to ISMRMRD first"
NO_RAW = "magnitude images hold no raw k-space"


def read_kspace(
    path: str | Path,
    *,
    axes: str | None = None,
    frame: int | None = None,
    trajectory: str | Path | None = None,
    limits: Limits | None = None,
) -> KSpace:
    """Read raw data: Siemens twix, ISMRMRD, fastMRI, BART .cfl/.hdr, or .npy.

    Args:
        path: The file; for BART either of the two, or their common stem.
        axes: Names of the axes of an array file, as in `coil,ky,kx`; .npy needs it.
        frame: Which of several echoes, repetitions, sets or maps to read, from 0.
        trajectory: `radial-360` or `radial-180` for evenly turned spokes, or a file; None for
            samples on a grid.
        limits: Bounds of what a file may ask for.

    Returns:
        The raw data. Arrays that lie in the file as they are needed stay memory-mapped.

    Raises:
        InputError: Missing, damaged, or no raw data that make one image.
        MemoryLimitError: The data do not fit.
        UsageError: An argument that this format cannot take.
    """
    path = Path(path)
    limits = limits or Limits()
    with naming(path):
        pair = cfl.pair(path)
        kind = "cfl" if pair is not None else kind_of(path)
        if kind not in ("cfl", "npy"):
            for name, given in (("axes", axes), ("trajectory", trajectory)):
                if given is not None:
                    raise UsageError(f"this format states its {name}", f"leave --{name} out")
        if pair is not None:
            array, named = cfl.read(*pair)
            return _from_array(array, named, path, axes, frame, trajectory, limits)
        if kind == "npy":
            if axes is None:
                raise InputError(
                    "an array does not say what its axes are", "name them: --axes coil,ky,kx"
                )
            found = arrays.read_npy(path)
            return _from_array(found, (), path, axes, frame, trajectory, limits)
        if kind == "twix":
            return _from_readouts(path, *twix.read(path, frame, limits))
        return _from_hdf5(path, frame, limits)


def is_raw(path: Path) -> bool:
    """Whether a path names raw data, damaged ones and half of a pair included."""
    try:
        if cfl.pair(path) is not None:
            return True
    except InputError:
        return True
    try:
        kind = kind_of(path)
    except InputError:
        return False
    return kind != "npy" or _is_complex_npy(path)


def kind_of(path: Path) -> str:
    """`npy`, `hdf5` or `twix`, by the first bytes.

    Raises:
        InputError: No raw data that are known here; the remedy depends on what it is.
    """
    if path.is_file() and os.access(path, os.R_OK):
        with path.open("rb") as handle:
            head = handle.read(4096)
        if head.startswith(npy.MAGIC):
            return "npy"
        if head.startswith(read.HDF5_MAGIC):
            return "hdf5"
        if twix.is_twix(head, path.stat().st_size):
            return "twix"
    try:
        read.kind_of(path)
    except InputError as error:
        if not path.is_file() or not head:
            raise
        raise _unknown(path, head) from error
    raise InputError(NO_RAW, "give the scanner's raw data; images are for medssl denoise")


def _unknown(path: Path, head: bytes) -> InputError:
    """What a file that is neither image nor raw data may be."""
    suffix = path.suffix.lower()
    if head[:16].startswith(b"# === DATA DESCR") or suffix in (".raw", ".lab", ".sin", ".list"):
        return InputError("looks like Philips raw data, which cannot be read here", CONVERT)
    revision = float(np.frombuffer(head[:4].ljust(4, b"\0"), "<f4")[0])
    if suffix == ".7" and 1 < revision < 100:
        return InputError("is a GE P-file, which cannot be read here", CONVERT)
    if suffix == ".cfl":
        return InputError("its .hdr file is missing", "put both files side by side")
    return InputError("holds no raw data that are known here", KNOWN)


def _is_complex_npy(path: Path) -> bool:
    try:
        arrays.read_npy(path)
    except InputError:
        return False
    return True


def _from_array(
    array: NDArray[np.complexfloating],
    named: Axes,
    path: Path,
    axes: str | None,
    frame: int | None,
    where: str | Path | None,
    limits: Limits,
) -> KSpace:
    """K-space that is nothing but an array: DC in its middle, zeros where nothing was measured."""
    named = named if axes is None else arrays.apply_axes(array, axes)
    data, rest = arrays.ordered(array, named, frame)
    if data.dtype != np.complex64:
        limits.check_pixels(data.size * 8)
        data = data.astype(np.complex64)
    if where is not None or "shot" in rest:
        return _from_shots(data, rest, path, where, arrays.frames(array, named))
    encoded = tuple(name != "slice" for name in rest)
    sampling = examine(data, encoded, [_axis(data, a, n) for a, n in enumerate(rest)])
    placed = place(data.shape[1:], (1.0,) * len(rest), None, stacked="slice" in rest)
    return KSpace(
        data,
        placed.geometry,
        sampling,
        encoded=encoded,
        frames=arrays.frames(array, named),
        name=path.name,
        warnings=placed.warnings,
    )


def _axis(data: NDArray[np.complex64], axis: int, name: str) -> str:
    return f"axis {axis + 1} of {data.shape}" if name.startswith("dim") else name


def _from_shots(
    data: NDArray[np.complex64], rest: Axes, path: Path, where: str | Path | None, frames: int
) -> KSpace:
    """Samples along shots: a file of BART lists samples first."""
    if where is None:
        raise UsageError("--axes names shots", "say where they lie: --trajectory FILE")
    if len(rest) != 2:
        raise InputError(
            f"shots of shape {data.shape} with coils first hold several slices or partitions",
            "give one slice",
        )
    shots = data if rest == arrays.SHOTS else data.swapaxes(1, 2)
    warnings: tuple[str, ...] = ()
    built_in = trajectory.of_kind(str(where))
    if built_in is not None:
        oversampling = trajectory.readout_oversampling(shots)
        n_shots, n_samples = shots.shape[1:]
        path_in_k = trajectory.spokes(built_in, n_shots, n_samples, oversampling)
        side = int(shots.shape[2] / oversampling)
        grid: tuple[int, ...] = (side, side)
        warnings = (
            f"the readout is taken to be {oversampling:g} x oversampled, judged by its projections",
            "the sense of rotation is not known: the image may be its mirror image",
        )
    else:
        path_in_k = trajectory.read(Path(where))
        grid, oversampling = trajectory.grid(path_in_k), trajectory.steps_per_cycle(path_in_k)
    sampling = examine(shots, (False, False), arrays.SHOTS)
    placed = place(grid, (1.0,) * len(grid), None, stacked=False)
    return KSpace(
        shots,
        placed.geometry,
        sampling,
        trajectory=path_in_k,
        oversampling=oversampling,
        frames=frames,
        name=path.name,
        warnings=(*placed.warnings, *warnings),
    )


def _from_hdf5(path: Path, frame: int | None, limits: Limits) -> KSpace:
    """FastMRI or ISMRMRD."""
    with hdf5.opened(path) as file:
        if "kspace" in file:
            return _from_fastmri(path, fastmri.read(file, limits), frame)
        group = mrd.group_of(file)
        if group is not None:
            return _from_readouts(path, *mrd.read(group, frame, limits))
    raise InputError("is HDF5 without k-space that is known here", f"{CONVERT} (GE, Philips, ...)")


def _from_readouts(path: Path, raw: Raw, noise: NDArray[np.complex64] | None) -> KSpace:
    if raw.trajectory is None:
        names = ("ky", "kx", "kz")[: len(raw.encoded)]
        sampling = examine(raw.data, raw.encoded, names, raw.sampling)
    else:
        sampling = examine(raw.data, (False, False), arrays.SHOTS, raw.sampling)
    return KSpace(
        raw.data,
        raw.placed.geometry,
        sampling,
        encoded=raw.encoded,
        trajectory=raw.trajectory,
        matrix=raw.matrix,
        noise=noise,
        oversampling=raw.oversampling,
        nominal=raw.placed.nominal,
        stated_acceleration=raw.acceleration,
        frames=raw.frames,
        name=path.name,
        warnings=raw.warnings,
    )


def _from_fastmri(path: Path, found: fastmri.FastMri, frame: int | None) -> KSpace:
    arrays.which(frame, 1)
    data = found.data if found.data.dtype == np.complex64 else found.data.astype(np.complex64)
    sampling, matrix, n_slices = found.sampling, found.matrix, data.shape[3]
    axes = 2 if n_slices == 1 else 3
    if axes == 2:
        data = data[..., 0]
        sampling = None if sampling is None else sampling[..., 0]
    encoded = (True, True, False)[:axes]
    sampling = examine(data, encoded, ("H", "W", "slice")[:axes], sampling)
    placed = place(
        data.shape[1:],
        found.spacing[:axes],
        None,
        stacked=axes == 3,
        thickness=found.spacing[2],
    )
    if matrix is not None:
        matrix = (*matrix, n_slices)[:axes]
    return KSpace(
        data,
        placed.geometry,
        sampling,
        encoded=encoded,
        matrix=matrix if matrix != data.shape[1:] else None,
        stated_acceleration=found.acceleration,
        name=path.name,
        warnings=placed.warnings,
    )
