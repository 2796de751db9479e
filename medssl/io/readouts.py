"""From readouts with counters to k-space on a grid: what ISMRMRD and Siemens files have in common.

Placing follows the centre line and the centre column, so that partial Fourier and asymmetric
echoes leave zeros where nothing was measured. Readout oversampling goes by a cut in image space.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from medssl.core.errors import InputError
from medssl.io.arrays import which
from medssl.io.limits import Limits
from medssl.io.raw_geometry import Placed, Placement, place

WIDEST_GAP = 32
"""Lines between neighbours, beyond the matrix of the header, that are still undersampling."""
MOST_SPARSE = 64
"""Grid lines per measured line; no scan is undersampled that far, damaged counters are."""
FEWEST_SHARE = 8
"""Times fewer lines of one slice than of another that are still a scan."""
LONGER = 2
"""Times longer than others that a readout can be."""
MOST_NOISE = 2**17
"""Samples per coil of a noise scan that are kept; a covariance needs no more."""
FRAME_WORDS = ("echo", "repetition", "phase", "set")


@dataclass(frozen=True, eq=False)
class Readouts:
    """Readouts of one measurement, before their samples are read.

    Args:
        line: (n,) counters of the first phase encoding.
        partition: (n,) of the second; all equal in 2D.
        slice_: (n,) of slices.
        average: (n,) that tells averages of one line apart.
        frame: (n, 4) echo, repetition, phase, set.
        centre: (n,) sample at which DC lies.
        first: (n,) first sample that counts.
        stop: (n,) the one after the last that counts.
        reverse: (n,) measured from positive to negative kx.
        at: (n,) which readout of the file each is.
        load: Reads (coil, sample) complex64 of one readout of the file.
    """

    line: NDArray[np.int64]
    partition: NDArray[np.int64]
    slice_: NDArray[np.int64]
    average: NDArray[np.int64]
    frame: NDArray[np.int64]
    centre: NDArray[np.int64]
    first: NDArray[np.int64]
    stop: NDArray[np.int64]
    reverse: NDArray[np.bool_]
    at: NDArray[np.int64]
    load: Callable[[int], NDArray[np.complex64]]

    def __len__(self) -> int:
        """How many there are."""
        return len(self.line)

    def select(self, where: NDArray[np.bool_]) -> "Readouts":
        """Some of them."""
        vectors = [f.name for f in fields(self) if f.name != "load"]
        return replace(self, **{name: getattr(self, name)[where] for name in vectors})

    def samples(self, i: int) -> NDArray[np.complex64]:
        """(coil, sample) of the i-th."""
        return self.load(int(self.at[i]))

    @property
    def frames(self) -> int:
        """How many frames they are of."""
        return len(np.unique(self.frame, axis=0))

    def of_frame(self, frame: int | None) -> "Readouts":
        """Those of one frame, numbered in the order of their counters.

        Raises:
            InputError: There are several and none was chosen.
            UsageError: There is no such frame.
        """
        frames = np.unique(self.frame, axis=0)
        several = [w for w, n in zip(FRAME_WORDS, np.ptp(frames, axis=0), strict=True) if n]
        chosen = frames[which(frame, len(frames), " x ".join(several))]
        return self.select((self.frame == chosen).all(1))


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What a header says of one encoding; what it leaves out is None, or 0 for lengths.

    Args:
        lines: Of the whole matrix, those not measured included.
        partitions: The same for the second phase encoding; None in 2D.
        centre_line: Counter at which DC lies.
        centre_partition: The same for partitions.
        columns: Of the matrix, oversampling taken off.
        oversampling: Of the readout.
        fov: mm of the encoded field of view along ky, kx and kz (or a slice's thickness).
        wanted: Share of that field of view along ky and kz that belongs to the image.
        ramp: (sample,) places of samples taken while the gradient ramps, in shares of the readout
            from -0.5 to 0.5; None for evenly spaced samples.
        acceleration: R.
    """

    lines: int | None
    partitions: int | None
    centre_line: int | None
    centre_partition: int | None
    columns: int | None
    oversampling: float
    fov: tuple[float, float, float]
    wanted: tuple[float, float] = (1.0, 1.0)
    ramp: NDArray[np.float64] | None = None
    acceleration: float | None = None


@dataclass(frozen=True, eq=False)
class Raw:
    """One frame on its grid, slices in the order of the grid."""

    data: NDArray[np.complex64]
    """(coil, ky, kx) or (coil, ky, kx, slice or kz); (coil, shot, sample) with a trajectory."""
    sampling: NDArray[np.bool_]
    encoded: tuple[bool, ...]
    placed: Placed
    matrix: tuple[int, ...] | None
    oversampling: float
    acceleration: float | None
    averages: int
    frames: int
    warnings: tuple[str, ...]
    trajectory: NDArray[np.float32] | None = None


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The grid on which readouts are laid.

    Args:
        shape: (ky, kx, third): third counts partitions or slices.
        line_shift: From line counter to index.
        partition_shift: From partition counter to index.
        slices: Slice counters in the order of the grid; None when the third axis is kz.
        full: Samples of a whole readout, oversampling included.
        regrid: (kx, sample) from samples taken on ramps to the grid, oversampling taken off;
            None for evenly spaced samples.
    """

    shape: tuple[int, int, int]
    line_shift: int
    partition_shift: int
    slices: tuple[int, ...] | None
    full: int
    regrid: NDArray[np.complex64] | None = None


def arrange(
    readouts: Readouts,
    protocol: Protocol,
    placement: Placement | None,
    limits: Limits,
    phase_scan: Readouts | None = None,
    frames: int = 1,
) -> Raw:
    """K-space of one frame, and where its image lies.

    Args:
        readouts: Of one frame.
        protocol: What the header says.
        placement: With one centre per slice counter in rising order; None when it is not known.
        limits: What may be allocated.
        phase_scan: Lines without phase encoding, in both directions, that tell how odd and even
            lines of an echo train differ.
        frames: How many there are to choose from.

    Raises:
        InputError: The readouts make no image.
        MemoryLimitError: It does not fit.
    """
    layout, contradictions = _layout(readouts, protocol)
    if phase_scan is not None:
        own = (phase_scan.frame == readouts.frame[0]).all(1)
        phase_scan = phase_scan.select(own) if own.any() else phase_scan
    thirds = layout.shape[2]
    stacked = layout.slices is not None
    spacing = [size / n for size, n in zip(protocol.fov, (*layout.shape[:2], thirds), strict=True)]
    thickness = protocol.fov[2] if stacked else spacing[2]
    axes = 2 if thirds == 1 else 3
    placed = place(
        layout.shape[:axes],
        (*spacing[:2], thickness)[:axes],
        None if contradictions else placement,
        stacked=stacked and axes == 3,
        thickness=thickness,
    )
    if layout.slices is not None:
        layout = replace(layout, slices=tuple(layout.slices[i] for i in placed.order))
    data, sampling, averages = assemble(readouts, layout, limits, phase_scan)
    warnings = list(contradictions)
    if not contradictions:
        warnings += placed.warnings
    if readouts.reverse.any() and phase_scan is None:
        warnings.append("reversed lines without phase-correction lines: ghosts are likely")
    return Raw(
        data if axes == 3 else data[..., 0],
        sampling if axes == 3 else sampling[..., 0],
        (True, True, not stacked)[:axes],
        placed,
        _matrix(layout, protocol)[:axes] if min(protocol.wanted) < 1 else None,
        layout.full / layout.shape[1],
        None if contradictions else protocol.acceleration,  # an open sequence leaves its defaults
        averages,
        frames,
        tuple(warnings),
    )


def _layout(readouts: Readouts, protocol: Protocol) -> tuple[Layout, list[str]]:
    """The grid, and where the header contradicts the readouts."""
    contradictions = []
    volume = protocol.partitions is not None
    if volume and np.ptp(readouts.slice_):
        raise InputError(
            f"holds {len(np.unique(readouts.slice_))} slabs", "export the slabs one by one"
        )
    _refuse_stray(readouts.slice_, "slice", lambda n: n.min() * FEWEST_SHARE < n.max())
    _refuse_stray(readouts.partition, "partition", lambda n: len(n) > 2 and 2 * n.max() > n.sum())
    rows, line_shift, odd = _axis(readouts.line, protocol.lines, protocol.centre_line, "line")
    contradictions += odd
    thirds, partition_shift, slices = 1, -int(readouts.partition.min()), None
    if protocol.partitions is not None:
        thirds, partition_shift, odd = _axis(
            readouts.partition, protocol.partitions, protocol.centre_partition, "partition"
        )
        contradictions += odd
    else:
        slices = tuple(int(s) for s in np.unique(readouts.slice_))
        thirds = len(slices)
    stated = None if protocol.columns is None else round(protocol.columns * protocol.oversampling)
    full = full_length(readouts, stated)
    columns = max(round(full / protocol.oversampling), 1)
    if full == protocol.columns:  # oversampling was taken off before
        columns = full
    if protocol.columns is not None and columns < protocol.columns <= 2 * columns:
        columns = protocol.columns
        full = max(round(columns * protocol.oversampling), full)
    elif protocol.columns is not None and columns != protocol.columns:
        contradictions.append(
            f"the header's matrix {protocol.columns} contradicts {columns} columns"
        )
    regrid = None
    if protocol.ramp is not None:
        regrid = ramp_matrix(protocol.ramp * columns, columns)
    if contradictions:
        contradictions = ["; ".join(contradictions) + ": orientation and position are nominal"]
    shape = (rows, columns, thirds)
    return Layout(
        shape=shape,
        line_shift=line_shift,
        partition_shift=partition_shift,
        slices=slices,
        full=full,
        regrid=regrid,
    ), contradictions


def _refuse_stray(
    counters: NDArray[np.int64], what: str, stray: Callable[[NDArray[np.int64]], bool]
) -> None:
    """A counter that few readouts have is damaged, not a slice or a partition of its own.

    Slices are measured alike; the outer partitions of an ellipse hold few lines, but most lines
    of a volume are not in one partition.
    """
    values, counts = np.unique(counters, return_counts=True)
    if stray(counts):
        raise InputError(
            f"{what} counter {int(values[int(np.argmin(counts))])} has {int(counts.min())} lines, "
            f"another {what} {int(counts.max())}",
            "export the raw data again",
        )


def _axis(
    counters: NDArray[np.int64], stated: int | None, centre: int | None, what: str
) -> tuple[int, int, list[str]]:
    """Points of a phase-encoded axis, the shift from counter to index, and contradictions.

    A centre of 0 is what open sequences leave unset: then counters are indices.
    """
    shift = stated // 2 - centre if stated and centre else 0
    n, contradicts = axis_length(counters, shift, stated, what)
    odd = [f"the header's matrix {stated} contradicts {n} {what}s"] if contradicts else []
    return n, shift, odd


def _matrix(layout: Layout, protocol: Protocol) -> tuple[int, ...]:
    """Pixels that belong to the image."""
    rows, columns, thirds = layout.shape
    if layout.slices is None:
        thirds = max(round(thirds * min(protocol.wanted[1], 1.0)), 1)
    return max(round(rows * min(protocol.wanted[0], 1.0)), 1), columns, thirds


def axis_length(
    counters: NDArray[np.int64], shift: int, stated: int | None, what: str
) -> tuple[int, bool]:
    """Points of an encoded axis, and whether they contradict the header.

    Args:
        counters: Of the readouts.
        shift: From counter to index.
        stated: By the header; None when it does not say.
        what: `line` or `partition`.

    Raises:
        InputError: A counter lies outside the matrix.
    """
    index = counters + shift
    lowest, highest = int(index.min()), int(index.max())
    if lowest < 0:
        raise InputError(
            f"{what} counter {lowest - shift} lies before the first {what} of the matrix",
            "export the raw data again",
        )
    if stated is not None and highest < stated <= 2 * (highest + 1):
        return stated, False
    seen = np.unique(index)
    gap = int(np.diff(seen).max()) if len(seen) > 1 else 0
    if gap > WIDEST_GAP:
        matrix = f"the matrix of {stated}" if stated else "any matrix"
        at = int(seen[int(np.argmax(np.diff(seen))) + 1]) - shift
        raise InputError(f"{what} counter {at} lies outside {matrix}", "export the raw data again")
    return highest + 1, stated is not None


def full_length(readouts: Readouts, stated: int | None = None) -> int:
    """Samples of a whole readout: twice the longer side of the echo.

    Args:
        readouts: All that are laid on one grid.
        stated: By the header; decides between an even and an odd number.

    Raises:
        InputError: A centre lies outside its readout, or one readout is far longer than others.
    """
    before = readouts.centre - readouts.first
    after = readouts.stop - readouts.centre
    bad = np.flatnonzero((before < 0) | (after <= 0))
    if bad.size:
        i = int(bad[0])
        raise InputError(
            f"the centre column {int(readouts.centre[i])} of line {int(readouts.line[i])} lies "
            "outside its readout",
            "export the raw data again",
        )
    usual = int(np.median(readouts.stop))
    far = int(np.argmax(readouts.stop))
    if readouts.stop[far] > LONGER * usual:
        raise InputError(
            f"line {int(readouts.line[far])} claims {int(readouts.stop[far])} samples, others "
            f"{usual}",
            "export the raw data again",
        )
    left, right = int(before.max()), int(after.max())
    full = left + right if right - left in (0, 1) else 2 * max(left, right)
    if stated is not None and abs(stated - full) == 1:
        fits = left <= stated // 2 and right <= stated - stated // 2
        return stated if fits else full
    return full


def assemble(
    readouts: Readouts, layout: Layout, limits: Limits, phase_scan: Readouts | None = None
) -> tuple[NDArray[np.complex64], NDArray[np.bool_], int]:
    """Lay readouts on their grid.

    Args:
        readouts: Of one frame.
        layout: The grid.
        limits: What may be allocated.
        phase_scan: Lines without phase encoding, in both directions, that tell how odd and even
            lines of an echo train differ.

    Returns:
        (coil, ky, kx, third) k-space, (ky, kx, third) what was measured, and the largest number
        of averages.

    Raises:
        InputError: Lines measured twice, or of different coils.
        MemoryLimitError: The grid does not fit.
    """
    rows, columns, thirds = layout.shape
    if rows * thirds > MOST_SPARSE * len(readouts):
        raise InputError(
            f"{len(readouts)} lines are too few for a grid of {rows} x {thirds}",
            "its counters are damaged; export the raw data again",
        )
    row = readouts.line + layout.line_shift
    third = readouts.partition + layout.partition_shift
    if layout.slices is not None:
        third = _rank(layout.slices, readouts.slice_)
    _refuse_repeats(readouts, row, third)
    n_coils = len(readouts.samples(0))
    limits.check_pixels(8 * n_coils * rows * columns * thirds)
    data = np.zeros((n_coils, thirds, rows, columns), np.complex64)
    count = np.zeros((thirds, rows), np.int32)
    sampling = np.zeros((thirds, rows, columns), np.bool_)
    turns = {} if phase_scan is None else _turns(phase_scan, layout)
    for i in range(len(readouts)):
        samples, seen = _on_grid(readouts, i, layout)
        if len(samples) != n_coils:
            raise InputError(
                f"line {int(readouts.line[i])} has {len(samples)} coils, others {n_coils}",
                "export one measurement with the same coils",
            )
        if readouts.reverse[i] and turns:
            slope = turns.get(int(readouts.slice_[i]), next(iter(turns.values())))
            samples = _turned(samples, *slope)
        at = third[i], row[i]
        with np.errstate(all="ignore"):  # what is not finite is told later, with its coil
            data[:, at[0], at[1]] += samples
        sampling[at] |= seen
        count[at] += 1
    if count.max() > 1:
        data /= np.maximum(count, 1)[:, :, None]
    return data.transpose(0, 2, 3, 1), sampling.transpose(1, 2, 0), int(count.max())


def noise_samples(
    readouts: Readouts, n_coils: int, scale: float
) -> tuple[NDArray[np.complex64] | None, str]:
    """(coil, sample) of a noise scan, scaled; or why it cannot be used."""
    parts, held = [], 0
    for i in range(len(readouts)):
        part = readouts.samples(i)
        if len(part) != n_coils:
            return None, f"the noise scan has {len(part)} coils, the image {n_coils}: not used"
        parts.append(part)
        held += part.shape[1]
        if held >= MOST_NOISE:
            break
    noise = np.concatenate(parts, 1) * np.float32(scale)
    if not np.isfinite(noise).all() or not noise.any():
        return None, "the noise scan is empty or not finite: not used"
    return noise, ""


def ramp_matrix(position: NDArray[np.float64], columns: int) -> NDArray[np.complex64]:
    """From samples at uneven k to the even grid, through the object they tell of.

    The least-squares object of `columns` pixels that the samples came from, transformed: exact
    for an object within the field of view, oversampling included.

    Args:
        position: (sample,) kx in cycles per field of view, without oversampling.
        columns: Pixels along x.

    Returns:
        (columns, sample).
    """
    x = (np.arange(columns) - columns // 2) / columns
    k = np.arange(columns) - columns // 2
    forward = np.exp(-2j * np.pi * position[:, None] * x) / np.sqrt(len(position))
    back = np.exp(-2j * np.pi * k[:, None] * x) / np.sqrt(columns)
    return (back @ np.linalg.pinv(forward, rcond=1e-3)).astype(np.complex64)


def trapezoid(
    ramp_up: float, flat: float, ramp_down: float, delay: float, duration: float, n_samples: int
) -> NDArray[np.float64]:
    """Share of the gradient's area at the samples' times, -0.5 to 0.5 over the readout.

    Times in any one unit; `delay` from the start of the ramp to the first sample.
    """

    def area(t: NDArray[np.float64]) -> NDArray[np.float64]:
        up = np.clip(t, 0, ramp_up)
        level = np.clip(t - ramp_up, 0, flat)
        down = np.clip(t - ramp_up - flat, 0, ramp_down)
        rising = up**2 / (2 * ramp_up) if ramp_up > 0 else 0 * up
        falling = down - (down**2 / (2 * ramp_down) if ramp_down > 0 else 0 * down)
        return rising + level + falling

    ends = area(delay + np.array([0.0, duration]))
    times = delay + duration * (np.arange(n_samples) + 0.5) / n_samples
    return (area(times) - ends.mean()) / (ends[1] - ends[0])


def centred_fft(x: NDArray[np.complexfloating], *, inverse: bool) -> NDArray[np.complexfloating]:
    """Ortho-normal, along the last axis, DC and the middle pixel at N // 2."""
    transform = np.fft.ifft if inverse else np.fft.fft
    moved = np.fft.ifftshift(x, axes=-1)
    return np.fft.fftshift(transform(moved, axis=-1, norm="ortho"), axes=-1)


def _rank(slices: tuple[int, ...], counters: NDArray[np.int64]) -> NDArray[np.int64]:
    """Index on the grid of each readout's slice."""
    place = {counter: index for index, counter in enumerate(slices)}
    return np.array([place[int(counter)] for counter in counters], np.int64)


def _refuse_repeats(readouts: Readouts, row: NDArray[np.int64], third: NDArray[np.int64]) -> None:
    """Lines may come again only as another average."""
    keys = np.stack([row, third, readouts.average], 1)
    _, first, counts = np.unique(keys, axis=0, return_index=True, return_counts=True)
    if counts.max() > 1:
        i = int(first[int(np.argmax(counts))])
        raise InputError(
            f"line {int(readouts.line[i])} of partition {int(readouts.partition[i])}, slice "
            f"{int(readouts.slice_[i])} was measured {int(counts.max())} times, all as average "
            f"{int(readouts.average[i])}",
            "export one repetition, or flag them as averages",
        )


def _on_grid(
    readouts: Readouts, i: int, layout: Layout
) -> tuple[NDArray[np.complexfloating], NDArray[np.bool_]]:
    """One readout (coil, kx) without oversampling, and where it was measured."""
    columns = layout.shape[1]
    samples = readouts.samples(i)
    first, stop = int(readouts.first[i]), int(readouts.stop[i])
    if readouts.reverse[i]:
        samples = samples[:, ::-1]
        first, stop = samples.shape[1] - stop, samples.shape[1] - first
    if layout.regrid is not None:
        if samples.shape[1] != layout.regrid.shape[1]:
            raise InputError(
                f"line {int(readouts.line[i])} has {samples.shape[1]} samples, others "
                f"{layout.regrid.shape[1]}",
                "export the raw data again",
            )
        return samples @ layout.regrid.T, np.ones(columns, np.bool_)
    start = layout.full // 2 - int(readouts.centre[i])
    whole = np.zeros((len(samples), layout.full), np.complex64)
    whole[:, start + first : start + stop] = samples[:, first:stop]
    measured = np.zeros(layout.full, np.bool_)
    measured[start + first : start + stop] = True
    if layout.full == columns:
        return whole, measured
    lowest = layout.full // 2 - columns // 2
    cut = centred_fft(whole, inverse=True)[:, lowest : lowest + columns]
    nearest = np.rint((np.arange(columns) - columns // 2) * layout.full / columns)
    seen = measured[np.clip(nearest.astype(int) + layout.full // 2, 0, layout.full - 1)]
    return centred_fft(cut, inverse=False) * seen, seen


def _turns(phase_scan: Readouts, layout: Layout) -> dict[int, tuple[float, float]]:
    """Per slice, phase a + b x by which reversed lines differ from the others, x in pixels.

    b is the mean phase step of the product of both projections, a what then remains: weighted by
    signal, nothing needs unwrapping.
    """
    turns = {}
    for counter in np.unique(phase_scan.slice_):
        members = np.flatnonzero(phase_scan.slice_ == counter)
        sums: dict[bool, list[NDArray[np.complexfloating]]] = {True: [], False: []}
        for i in members:
            line = centred_fft(_on_grid(phase_scan, int(i), layout)[0], inverse=True)
            sums[bool(phase_scan.reverse[i])].append(line)
        if not sums[True] or not sums[False]:
            continue
        product = (np.mean(sums[True], 0) * np.mean(sums[False], 0).conj()).sum(0)
        step = float(np.angle(np.sum(product[1:] * product[:-1].conj())))
        x = np.arange(len(product)) - len(product) // 2
        turns[int(counter)] = (float(np.angle(np.sum(product * np.exp(-1j * step * x)))), step)
    return turns


def _turned(
    samples: NDArray[np.complexfloating], offset: float, step: float
) -> NDArray[np.complexfloating]:
    """A reversed line with its phase made that of the others."""
    x = np.arange(samples.shape[-1]) - samples.shape[-1] // 2
    return centred_fft(
        centred_fft(samples, inverse=True) * np.exp(-1j * (offset + step * x)), inverse=False
    )
