"""Siemens raw data (twix): measurements of one file, their readouts and their protocol.

Readouts are found here and laid by their counters; the layout of their headers and the meaning
of their flags come from twixtools, whose own assembly trusts fields that open sequences leave 0.
"""

import contextlib
import dataclasses
import io
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medssl.core.errors import InputError
from medssl.io import twix_header
from medssl.io.limits import Limits
from medssl.io.raw_geometry import Placement
from medssl.io.readouts import Protocol, Raw, Readouts, arrange, noise_samples, trapezoid

COPY_AGAIN = "export the raw data again"
MOST_MEASUREMENTS = 64
ENTRY, FIRST_ENTRY = 152, 8
"""Bytes of an entry in the table of measurements, and where the first one starts."""
LONGEST_HEADER = 2**27
DMA_LENGTH = 2**25 - 1
"""Bits of the first word of a readout that say its length."""
SHARED_REFERENCE = 2
"""ucRefScanMode of calibration lines that belong to the image; others are scans of their own."""
CARTESIAN = 1
"""ucTrajectory of lines on a grid, echo trains included."""
NO_IMAGE = (
    "RTFEEDBACK",
    "HPFEEDBACK",
    "REFPHASESTABSCAN",
    "PHASESTABSCAN",
    "RETRO_DUMMYSCAN",
    "B1_CONTROLLOOP",
    "MDH_VOP",
    "noname60",
)
FLAGS = (
    "ACQEND",
    "SYNCDATA",
    "PHASCOR",
    "NOISEADJSCAN",
    "REFLECT",
    "PATREFSCAN",
    "PATREFANDIMASCAN",
    *NO_IMAGE,
)
READ_SIGN = PHASE_SIGN = -1.0
"""Sense of Siemens' in-plane vectors in the image of a centred inverse FFT. No scanner-made image
of the raw files at hand exists to check it; kept in one place for the day there is one."""


@dataclass(frozen=True, eq=False)
class _Format:
    """How readouts lie in the file, for one software version."""

    head: np.dtype[Any]
    """Of a readout."""
    channel: int
    """Bytes before the samples of each channel."""
    in_channel: bool
    """The head is part of the first channel (software VB)."""
    bits: dict[str, int]
    """Mask of each flag that matters here."""


@dataclass(frozen=True, eq=False)
class _Measurement:
    """One measurement of a file."""

    protocol: twix_header.Protocol
    heads: NDArray[np.void]
    readouts: Readouts
    bits: dict[str, int]

    def has(self, *names: str) -> NDArray[np.bool_]:
        """Readouts with any of some flags."""
        mask = np.uint64(sum(self.bits[name] for name in names))
        return (self.heads["EvalInfoMask"] & mask) != 0


def is_twix(head: bytes, size: int) -> bool:
    """Whether a file is Siemens raw data: a table of measurements, or one header at its start."""
    if len(head) < 64:
        return False
    first, count = (int.from_bytes(head[i : i + 4], "little") for i in (0, 4))
    if first < 10000 and 1 <= count <= MOST_MEASUREMENTS:
        start = int.from_bytes(head[FIRST_ENTRY + 8 : FIRST_ENTRY + 16], "little")
        return 0 < start <= size and start % 512 == 0
    name = head[8:64].partition(b"\0")[0]
    return 0 < count <= twix_header.MOST_BUFFERS and name in (b"Config", b"Meas", b"MeasYaps")


def read(path: Path, frame: int | None, limits: Limits) -> tuple[Raw, NDArray[np.complex64] | None]:
    """Read the k-space of one frame of the last measurement, and a noise scan of any.

    Raises:
        InputError: twixtools is missing, the file is damaged, or its readouts make no image.
        MemoryLimitError: It does not fit.
        UsageError: There is no such frame.
    """
    with path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as file:
        *earlier, last = _measurements(file, path.name)
        _refuse_kind(last.protocol)
        own = last.has("NOISEADJSCAN")
        image = ~own & ~last.has("PHASCOR", *NO_IMAGE)
        warnings: list[str] = []
        extra = image & last.has("PATREFSCAN") & ~last.has("PATREFANDIMASCAN")
        shared = last.protocol.number("sPat.ucRefScanMode", SHARED_REFERENCE) == SHARED_REFERENCE
        if extra.any() and not shared:
            warnings.append("the separate calibration scan was not used")
            image &= ~extra
        if not image.any():
            raise InputError("its last measurement holds no image lines", COPY_AGAIN)
        imaging = last.readouts.select(image)
        readouts = imaging.of_frame(frame)
        phase_scan = last.readouts.select(
            last.has("PHASCOR") & ~last.has("PATREFSCAN") & ~last.has("noname60")
        )
        raw = arrange(
            readouts,
            _protocol(last, readouts),
            _placement(last, readouts),
            limits,
            phase_scan if len(phase_scan) else None,
            imaging.frames,
        )
        noise, said = None, ""
        scans = [(m, m.readouts.select(m.has("NOISEADJSCAN"))) for m in (*earlier, last)]
        for measurement, scan in scans[::-1]:
            if len(scan) and noise is None:
                ratio = _dwell(measurement.protocol) / _dwell(last.protocol)
                scale = float(np.sqrt(ratio / raw.averages))
                noise, said = noise_samples(scan, len(raw.data), scale)
        warnings += [said] if said and noise is None else []
        return dataclasses.replace(raw, warnings=(*raw.warnings, *warnings)), noise


def _refuse_kind(known: twix_header.Protocol) -> None:
    """Scans whose readouts are no lines of one slice.

    Raises:
        InputError: Naming what it is.
    """
    trajectory = known.number("sKSpace.ucTrajectory", CARTESIAN)
    if trajectory != CARTESIAN:
        raise InputError(
            f"its trajectory (ucTrajectory {trajectory:g}) is not Cartesian",
            "convert it to .cfl or .npy and give --trajectory FILE",
        )
    bands = known.number("sSliceAcceleration.lMultiBandFactor", 1)
    if bands > 1:
        raise InputError(
            f"{bands:g} slices were measured at once, which cannot be told apart here",
            "take the scanner's own reconstruction",
        )


def _formats(name: str) -> tuple[_Format, _Format]:
    """Software VD and later, and VB.

    Raises:
        InputError: twixtools is not installed.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            from twixtools import mdh_def
    except ImportError as error:
        raise InputError(
            f"reading Siemens raw data ({name}) needs twixtools", 'pip install "medssl[mri]"'
        ) from error
    bits = {flag: 1 << mdh_def.mask_dict[flag] for flag in FLAGS}
    head, channel = np.dtype(mdh_def.Scan_header), np.dtype(mdh_def.Channel_header)
    old = np.dtype(mdh_def.VB17_header)
    return _Format(head, channel.itemsize, False, bits), _Format(old, old.itemsize, True, bits)


def _measurements(file: mmap.mmap, name: str) -> list[_Measurement]:
    """All measurements of a file in their order."""
    new, old = _formats(name)
    size = len(file)
    first, count = (int.from_bytes(file[i : i + 4], "little") for i in (0, 4))
    if not (first < 10000 and 1 <= count <= MOST_MEASUREMENTS):
        return [_measurement(file, 0, size, old)]
    found = []
    for index in range(count):
        at = FIRST_ENTRY + ENTRY * index
        start, length = (int.from_bytes(file[at + k : at + k + 8], "little") for k in (8, 16))
        length = length if length or index < count - 1 else size - start
        if start + length > size:
            raise InputError(
                f"is cut short: {size} bytes, measurement {index + 1} ends at {start + length}",
                "copy the file again",
            )
        if length:
            found.append(_measurement(file, start, start + length, new))
    if not found:
        raise InputError("holds no measurement", COPY_AGAIN)
    return found


def _measurement(file: mmap.mmap, start: int, stop: int, form: _Format) -> _Measurement:
    """One measurement: its protocol and where its readouts lie."""
    length = int.from_bytes(file[start : start + 4], "little")
    if not 8 < length <= min(stop - start, LONGEST_HEADER):
        raise InputError(f"a header of {length} bytes does not fit into it", COPY_AGAIN)
    protocol = twix_header.parse(file[start : start + length])
    places = _walk(file, start + length, stop, form)
    heads = np.empty(len(places), form.head)
    for i, at in enumerate(places):
        heads[i] = np.frombuffer(file[at : at + form.head.itemsize], form.head)[0]
    return _Measurement(protocol, heads, _readouts(file, places, heads, form), form.bits)


def _walk(file: mmap.mmap, start: int, stop: int, form: _Format) -> list[int]:
    """Where each readout starts.

    Raises:
        InputError: The chain breaks or the end mark is missing.
    """
    places: list[int] = []
    at = start
    own = 0 if form.in_channel else form.head.itemsize
    while at + form.head.itemsize <= stop:
        head = np.frombuffer(file[at : at + form.head.itemsize], form.head)[0]
        mask = int(head["EvalInfoMask"])
        if mask & form.bits["ACQEND"]:
            return places
        length = int(head["FlagsAndDMALength"]) & DMA_LENGTH
        if not mask & form.bits["SYNCDATA"]:
            channels, samples = int(head["UsedChannels"]), int(head["SamplesInScan"])
            length = own + channels * (form.channel + 8 * samples)
            if not channels or not samples or at + length > stop:
                line = int(head["Counter"]["Lin"])
                raise InputError(
                    f"is cut short or damaged at readout {len(places) + 1} (line {line}): "
                    f"{channels} coils x {samples} samples do not fit",
                    COPY_AGAIN,
                )
            places.append(at)
        if length < form.head.itemsize:
            raise InputError(f"is damaged after readout {len(places)}", COPY_AGAIN)
        at += length
    raise InputError(f"is cut short after {len(places)} readouts", "copy the file again")


def _readouts(
    file: mmap.mmap, places: Sequence[int], heads: NDArray[np.void], form: _Format
) -> Readouts:
    """All readouts, whatever they are for."""
    own = 0 if form.in_channel else form.head.itemsize

    def load(i: int) -> NDArray[np.complex64]:
        shape = int(heads["UsedChannels"][i]), int(heads["SamplesInScan"][i])
        kind = np.dtype([("head", np.void, form.channel), ("samples", "<c8", (shape[1],))])
        start = places[i] + own
        return np.frombuffer(file[start : start + shape[0] * kind.itemsize], kind)["samples"]

    counter = heads["Counter"]
    n = heads["SamplesInScan"].astype(np.int64)
    centre = heads["CenterCol"].astype(np.int64)
    mask = heads["EvalInfoMask"]
    return Readouts(
        line=counter["Lin"].astype(np.int64),
        partition=counter["Par"].astype(np.int64),
        slice_=counter["Sli"].astype(np.int64),
        average=counter["Ave"].astype(np.int64),
        frame=np.stack([counter[w].astype(np.int64) for w in ("Eco", "Rep", "Phs", "Set")], 1),
        centre=np.where(centre == 0, n // 2, centre),
        first=heads["CutOff"]["Pre"].astype(np.int64),
        stop=n - heads["CutOff"]["Post"].astype(np.int64),
        reverse=(mask & np.uint64(form.bits["REFLECT"])) != 0,
        at=np.arange(len(heads)),
        load=load,
    )


def _protocol(measurement: _Measurement, readouts: Readouts) -> Protocol:
    """What the header says, in the words of both formats."""
    known, slab = measurement.protocol, "sSliceArray.asSlice[0]"
    first = measurement.heads[readouts.at[0]]
    base, lines = (
        int(known.number(f"sKSpace.{word}")) for word in ("lBaseResolution", "lPhaseEncodingLines")
    )
    oversampling = known.first("flReadoutOSFactor") or 1.0
    phase_more = max(known.number("sKSpace.dPhaseOversamplingForDialog"), 0.0)
    slice_more = max(known.number("sKSpace.dSliceOversamplingForDialog"), 0.0)
    partitions = int(known.number("sKSpace.lPartitions"))
    volume = bool(np.ptp(readouts.partition))
    return Protocol(
        lines=lines or None,
        partitions=(partitions or int(readouts.partition.max()) + 1) if volume else None,
        centre_line=int(first["CenterLin"]),
        centre_partition=int(first["CenterPar"]),
        columns=base or None,
        oversampling=min(max(oversampling, 1.0), 16.0),
        fov=(
            known.number(f"{slab}.dPhaseFOV") * (1 + phase_more),
            known.number(f"{slab}.dReadoutFOV"),
            known.number(f"{slab}.dThickness") * (1 + slice_more if volume else 1),
        ),
        wanted=(1 / (1 + phase_more), 1 / (1 + slice_more) if volume else 1.0),
        ramp=_ramp(known, readouts),
        acceleration=_acceleration(known),
    )


def _acceleration(known: twix_header.Protocol) -> float | None:
    """R along lines times R along partitions."""
    factors = [known.number(f"sPat.lAccelFact{axis}") for axis in ("PE", "3D")]
    return float(np.prod([max(f, 1.0) for f in factors])) if any(factors) else None


def _ramp(known: twix_header.Protocol, readouts: Readouts) -> NDArray[np.float64] | None:
    """Places of samples of a trapezoidal readout gradient, in shares of the readout.

    Raises:
        InputError: Another shape of gradient, or times that make none.
    """
    mode = known.first("alRegridMode") or 1.0
    if mode < 2:
        return None
    if mode != 2:
        raise InputError(
            f"its readout gradient has ramp-sampling mode {mode:g}", "convert it to ISMRMRD first"
        )
    up, flat, down, delay, duration = (known.first(name) or 0.0 for name in twix_header.RAMP)
    if min(up, flat, down, delay) < 0 or not 0 < duration <= up + flat + down - delay + 1e-6:
        raise InputError(
            f"its readout of {duration:g} us does not fit its gradient of {up + flat + down:g} us",
            COPY_AGAIN,
        )
    return trapezoid(up, flat, down, delay, duration, int(readouts.stop[0]))


def _dwell(known: twix_header.Protocol) -> float:
    """Time per sample; 1 where it is not stated."""
    time = known.number("sRXSPEC.alDwellTime[0]")
    return time if time > 0 else 1.0


def _placement(measurement: _Measurement, readouts: Readouts) -> Placement | None:
    """Where the slices lie: by the protocol, to which each readout's own position leads.

    The protocol numbers slices as the user does, readouts as they were measured; readouts of
    several slices that leave their positions 0 tell of no order, hence of no place.

    Raises:
        InputError: Slices are turned against each other.
    """
    known = measurement.protocol
    slices = sorted({name.partition("]")[0] + "]" for name in known.numbers if ".asSlice[" in name})
    _, chosen = np.unique(readouts.slice_, return_index=True)
    heads = measurement.heads[readouts.at[chosen]]
    if not slices:
        return None
    planned = np.array([known.vector(f"{name}.sPosition") for name in slices])
    own = heads["SliceData"]["SlicePos"]
    positions = np.stack([own[axis].astype(np.float64) for axis in ("Sag", "Cor", "Tra")], 1)
    if not positions.any():
        if len(heads) > 1:
            return None
        positions = planned[:1]
    centres, nearest = [], []
    for seen in positions:
        far = np.linalg.norm(planned - seen, axis=1)
        which = int(np.argmin(np.where(np.isfinite(far), far, np.inf)))
        nearest.append(which)
        centres.append(planned[which] if far[which] < 1e-2 else seen)
    normals = np.array([known.vector(f"{slices[which]}.sNormal") for which in nearest])
    turns = [known.number(f"{slices[which]}.dInPlaneRot") for which in nearest]
    if np.abs(normals - normals[0]).max() > 1e-3 or np.ptp(turns) > 1e-3:
        raise InputError("its slices are turned against each other", "export the stacks one by one")
    if not abs(np.linalg.norm(normals[0]) - 1) <= 1e-3:
        return Placement(
            phase=normals[0], read=normals[0], normal=normals[0], centres=np.array(centres)
        )
    phase, read = in_plane(normals[0], turns[0])
    return Placement(
        phase=PHASE_SIGN * phase,
        read=READ_SIGN * read,
        normal=normals[0],
        centres=np.array(centres),
    )


def in_plane(
    normal: NDArray[np.float64], turn: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Phase and read directions of a slice, turned by an angle in its plane.

    Unturned, phase encoding of a transverse slice runs from front to back, of a coronal one from
    right to left, of a sagittal one from front to back; read is normal x phase.

    Args:
        normal: (3,) unit vector in LPS.
        turn: Radians.
    """
    sag, cor, tra = normal
    size = np.abs(normal) + 1e-6 * np.arange(3)  # ties go to the later axis
    if np.argmax(size) == 2:
        phase = np.array([0.0, tra, -cor])
    elif np.argmax(size) == 1:
        phase = np.array([cor, -sag, 0.0])
    else:
        phase = np.array([-cor, sag, 0.0])
    phase /= np.linalg.norm(phase)
    read = np.cross(normal, phase)
    turned = np.cos(turn) * phase - np.sin(turn) * read
    return turned, np.cross(normal, turned)
