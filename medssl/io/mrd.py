"""ISMRMRD (MRD): acquisitions with counters, and a header in XML, in one HDF5 file.

Opened with h5py in mode r: the format's own library opens for appending, which fails on
read-only files and may touch the raw data.
"""

import dataclasses
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from medssl.core.errors import InputError
from medssl.io import hdf5, mrd_header
from medssl.io.limits import Limits
from medssl.io.mrd_header import Header
from medssl.io.raw_geometry import Placement, place
from medssl.io.readouts import Protocol, Raw, Readouts, arrange, noise_samples

NOISE, CALIBRATION, CALIBRATION_TOO, REVERSE, PHASE = 19, 20, 21, 22, 24
NO_IMAGE = (23, 26, 27, 28, 29, 30, 31)
"""Navigators, feedback, dummies, surface coil and phase stabilisation scans; bits count from 1."""
COPY_AGAIN = "convert the raw data again"
CARTESIAN = ("cartesian", "epi", "")
AT_ONCE = 256
"""Acquisitions read together: in HDF5 each is an object of its own."""

Heads = NDArray[np.void]


def group_of(file: h5py.File) -> h5py.Group | None:
    """The group that holds `xml` and `data`, `dataset` first."""
    for name in sorted(file, key=lambda name: (name != "dataset", name)):
        if isinstance(file.get(name, getlink=True), h5py.HardLink):
            place = file[name]
            if isinstance(place, h5py.Group) and "xml" in place and "data" in place:
                return place
    return None


def read(
    group: h5py.Group, frame: int | None, limits: Limits
) -> tuple[Raw, NDArray[np.complex64] | None]:
    """Read the k-space of one frame, and the noise scan.

    Raises:
        InputError: Damaged, or no acquisitions that make one image.
        MemoryLimitError: It does not fit.
        UsageError: There is no such frame.
    """
    xml, stored = hdf5.dataset(group, "xml"), hdf5.dataset(group, "data")
    if xml is None or stored is None:
        raise InputError("its header or its acquisitions are missing", COPY_AGAIN)
    header = mrd_header.parse(hdf5.text(xml))
    heads = _heads(stored)
    everything = _readouts(stored, heads, header)
    noise_scan = everything.select(_has(heads, NOISE))
    not_image = _has(heads, NOISE, PHASE, *NO_IMAGE)
    warnings: list[str] = []
    extra = _has(heads, CALIBRATION) & ~_has(heads, CALIBRATION_TOO) & ~not_image
    if header.calibration in ("separate", "external") and extra.any():
        warnings.append("the separate calibration scan was not used")
        not_image |= extra
    first = heads["encoding_space_ref"] == 0
    if not (first & ~not_image).any():
        raise InputError("holds no imaging acquisitions", COPY_AGAIN)
    imaging = everything.select(first & ~not_image)
    readouts = imaging.of_frame(frame)
    protocol, placement = _protocol(header, readouts), _placement(heads, readouts)
    if header.trajectory in CARTESIAN:
        phase_scan = everything.select(first & _has(heads, PHASE))
        phase_scan_or_none = phase_scan if len(phase_scan) else None
        raw = arrange(readouts, protocol, placement, limits, phase_scan_or_none, imaging.frames)
    else:
        tracks = _tracks(stored, heads, readouts, header)
        depth = 1 if header.encoded is None else max(header.encoded[2], 1)
        raw = _shots(readouts, tracks, depth, protocol, placement, limits)
        raw = dataclasses.replace(raw, frames=imaging.frames)
    noise = None
    if len(noise_scan):
        ratio = _dwell(heads, noise_scan) / _dwell(heads, readouts)
        scale = np.sqrt(ratio / header.noise_bandwidth / raw.averages)
        noise, said = noise_samples(noise_scan, len(raw.data), float(scale))
        warnings += [said] if said else []
    return dataclasses.replace(raw, warnings=(*raw.warnings, *warnings)), noise


def _heads(stored: h5py.Dataset) -> Heads:
    """The fixed part of all acquisitions.

    Raises:
        InputError: None, or another layout.
    """
    names = stored.dtype.names or ()
    if stored.ndim != 1 or not {"head", "traj", "data"} <= set(names) or not stored.size:
        raise InputError(f"its acquisitions have shape {stored.shape}", COPY_AGAIN)
    hdf5.check_stored(stored)
    heads = stored.fields("head")[:]
    wanted = {"flags", "idx", "number_of_samples", "active_channels", "center_sample", "position"}
    if not wanted <= set(heads.dtype.names or ()):
        raise InputError("its acquisition headers are of an unknown version", COPY_AGAIN)
    return heads


def _has(heads: Heads, *bits: int) -> NDArray[np.bool_]:
    wanted = np.uint64(sum(1 << (bit - 1) for bit in bits))
    return (heads["flags"].astype(np.uint64) & wanted) != 0


def _readouts(stored: h5py.Dataset, heads: Heads, header: Header) -> Readouts:
    """All acquisitions, whatever they are for."""
    block: dict[int, Any] = {}

    def load(i: int) -> NDArray[np.complex64]:
        start = i - i % AT_ONCE
        if start not in block:
            block.clear()
            block[start] = stored.fields("data")[start : start + AT_ONCE]
        numbers = np.asarray(block[start][i - start], np.float32)
        shape = int(heads["active_channels"][i]), int(heads["number_of_samples"][i])
        if numbers.size != 2 * shape[0] * shape[1] or not numbers.size:
            raise InputError(
                f"acquisition {i} holds {numbers.size} numbers, its header says "
                f"{shape[0]} coils x {shape[1]} samples",
                COPY_AGAIN,
            )
        return numbers.view(np.complex64).reshape(shape)

    n = heads["number_of_samples"].astype(np.int64)
    centre = heads["center_sample"].astype(np.int64)
    idx = heads["idx"]
    line = idx["kspace_encode_step_1"].astype(np.int64)
    line_from_trajectory = _lines(stored, heads, header) if not np.ptp(line) else None
    return Readouts(
        line=line if line_from_trajectory is None else line_from_trajectory,
        partition=idx["kspace_encode_step_2"].astype(np.int64),
        slice_=idx["slice"].astype(np.int64),
        average=idx["average"].astype(np.int64),
        frame=np.stack(
            [idx[w].astype(np.int64) for w in ("contrast", "repetition", "phase", "set")], 1
        ),
        centre=np.where(centre == 0, n // 2, centre),
        first=heads["discard_pre"].astype(np.int64),
        stop=n - heads["discard_post"].astype(np.int64),
        reverse=_has(heads, REVERSE),
        at=np.arange(len(heads)),
        load=load,
    )


def _lines(stored: h5py.Dataset, heads: Heads, header: Header) -> NDArray[np.int64] | None:
    """Line indices from the trajectory, where all counters are the same."""
    if len(heads) < 2 or header.encoded is None or heads["trajectory_dimensions"].min() < 2:
        return None
    n, ky = header.encoded[1], np.zeros(len(heads))
    for start in range(0, len(heads), AT_ONCE):
        for i, track in enumerate(stored.fields("traj")[start : start + AT_ONCE], start):
            dims = int(heads["trajectory_dimensions"][i])
            if len(track) != dims * int(heads["number_of_samples"][i]):
                return None
            ky[i] = np.asarray(track, np.float64).reshape(-1, dims)[:, 1].mean()
    if not np.isfinite(ky).all():
        return None
    cycles = ky * n if np.abs(ky).max() <= 0.5 else ky
    lines = np.rint(cycles).astype(np.int64) + n // 2
    return lines if lines.min() >= 0 and lines.max() < n and np.ptp(lines) else None


def _tracks(
    stored: h5py.Dataset, heads: Heads, readouts: Readouts, header: Header
) -> NDArray[np.float32]:
    """(shot, sample, axis) in cycles per field of view, axes as those of the image.

    The format leaves the unit open; converters write shares of the encoded k-space, up to 0.5.

    Raises:
        InputError: The file stores none, or none that fits.
    """
    kind = f"its trajectory is {header.trajectory}"
    dims = heads["trajectory_dimensions"][readouts.at].astype(int)
    first, stop = int(readouts.first[0]), int(readouts.stop[0])
    alike = (readouts.first == first).all() and (readouts.stop == stop).all() and not np.ptp(dims)
    if not alike or not 2 <= dims[0] <= 3 or header.encoded is None:
        raise InputError(f"{kind}, but not stored for every sample", COPY_AGAIN)
    if np.ptp(readouts.slice_) or (dims[0] == 2 and np.ptp(readouts.partition)):
        raise InputError(f"{kind} of several slices", "export the slices one by one")
    found = np.empty((len(readouts), stop - first, dims[0]), np.float32)
    for shot, i in enumerate(readouts.at):
        track = np.asarray(stored.fields("traj")[int(i)], np.float32)
        if track.size != dims[0] * int(heads["number_of_samples"][i]):
            raise InputError(f"{kind}, but that of acquisition {i} does not fit", COPY_AGAIN)
        found[shot] = track.reshape(-1, dims[0])[first:stop]
    if not np.isfinite(found).all():
        raise InputError(f"{kind}, but not finite", COPY_AGAIN)
    found[..., :2] = found[..., 1::-1].copy()
    return found


def _shots(
    readouts: Readouts,
    tracks: NDArray[np.float32],
    depth: int,
    protocol: Protocol,
    placement: Placement | None,
    limits: Limits,
) -> Raw:
    """Samples off the grid, and the grid of the image they make.

    In its plane the grid is square: what headers call lines may count shots.
    """
    n_shots, n_samples, dims = tracks.shape
    side = protocol.columns or n_samples
    shape = (side, side, depth)[:dims]
    if np.abs(tracks).max() <= 0.5 + 1e-3:
        tracks = tracks * np.array(shape, np.float32)
    n_coils = len(readouts.samples(0))
    limits.check_pixels(8 * n_coils * n_shots * n_samples)
    data = np.empty((n_coils, n_shots, n_samples), np.complex64)
    for shot in range(n_shots):
        samples = readouts.samples(shot)
        if len(samples) != n_coils:
            raise InputError(
                f"shot {shot} has {len(samples)} coils, others {n_coils}",
                "export one measurement with the same coils",
            )
        data[:, shot] = samples[:, readouts.first[shot] : readouts.stop[shot]]
    step, thickness = protocol.fov[1] / side, protocol.fov[2]
    spacing = (step, step, thickness / max(depth, 1))[:dims]
    placed = place(shape, spacing, placement, stacked=False, thickness=thickness)
    return Raw(
        data,
        np.ones((n_shots, n_samples), np.bool_),
        (True,) * dims,
        placed,
        None,
        protocol.oversampling,
        protocol.acceleration,
        1,
        1,
        placed.warnings,
        tracks,
    )


def _protocol(header: Header, readouts: Readouts) -> Protocol:
    """What the header says, in the words of both formats."""
    x, y, z = header.encoded or (None, None, None)
    fov = header.encoded_fov or (0.0, 0.0, 0.0)
    wanted = (0.0, 0.0, 0.0) if header.recon_fov is None else header.recon_fov
    shares = [w / f if w > 0 and f > 0 else 1.0 for w, f in zip(wanted, fov, strict=True)]
    oversampling = min(max(1.0 / shares[0], 1.0), 16.0)
    if header.encoded_fov is None and x and header.recon is not None:
        oversampling = x / header.recon[0] if x % header.recon[0] == 0 else 1.0
    volume = bool(np.ptp(readouts.partition))
    return Protocol(
        lines=y,
        partitions=(z or int(readouts.partition.max()) + 1) if volume else None,
        centre_line=header.centres[0],
        centre_partition=header.centres[1],
        columns=None if x is None else round(x / oversampling),
        oversampling=oversampling,
        fov=(fov[1], fov[0] / oversampling, fov[2]),
        wanted=(min(shares[1], 1.0), min(shares[2], 1.0) if volume else 1.0),
        acceleration=header.acceleration,
    )


def _placement(heads: Heads, readouts: Readouts) -> Placement | None:
    """Directions of the first readout, and the centre of each slice.

    Raises:
        InputError: Slices are turned against each other.
    """
    _, first = np.unique(readouts.slice_, return_index=True)
    chosen = heads[readouts.at[first]].astype(heads.dtype)
    phase, read, normal = (
        np.asarray(chosen[f"{word}_dir"], np.float64) for word in ("phase", "read", "slice")
    )
    placement = Placement(
        phase=phase[0],
        read=read[0],
        normal=normal[0],
        centres=np.asarray(chosen["position"], np.float64),
    )
    turned = max(float(np.abs(d - d[0]).max()) for d in (phase, read, normal))
    if not placement.problem() and turned > 1e-3:
        raise InputError("its slices are turned against each other", "export the stacks one by one")
    return placement


def _dwell(heads: Heads, readouts: Readouts) -> float:
    """Time per sample; 1 where it is not stated."""
    time = float(heads["sample_time_us"][readouts.at[0]])
    return time if np.isfinite(time) and time > 0 else 1.0
