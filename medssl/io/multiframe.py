"""Where the frames of an instance lie: functional groups of Enhanced images, headers of classic."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

from medssl.core.errors import InputError
from medssl.io.dicom import Instance, quiet, refusing
from medssl.io.limits import Limits

SHARED_GROUPS, FRAME_GROUPS = 0x52009229, 0x52009230
POSITION, ORIENTATION, SPACING = 0x00200032, 0x00200037, 0x00280030
SLOPE, INTERCEPT, LUT = 0x00281053, 0x00281052, 0x00283000

TIME_AXES = (
    "TemporalPositionIdentifier",
    "TriggerTime",
    "EchoTime",
    "DiffusionBValue",
    "AcquisitionNumber",
    "AcquisitionTime",
)
"""What may tell several images at one position apart, in the order in which it is tried."""
SAME_EVERYWHERE = frozenset({"TemporalPositionIdentifier", "EchoTime", "DiffusionBValue"})
"""Of these every position must have the same values; the others run on from slice to slice."""

_COMPONENTS = {"M": "M", "P": "P", "R": "R", "I": "I"} | {
    word: word[0] for word in ("MAGNITUDE", "PHASE", "REAL", "IMAGINARY")
}


@dataclass(frozen=True, slots=True)
class Frame:
    """One plane: where its pixels are, where it lies, and how its numbers scale."""

    source: int
    """Index of its instance among the sources of the series."""
    index: int
    """Which frame of the instance, from 0."""
    position: tuple[float, ...] | None
    """ImagePositionPatient, LPS mm."""
    orientation: tuple[float, ...] | None
    """ImageOrientationPatient: direction along a row, then along a column."""
    spacing: tuple[float, ...] | None
    """PixelSpacing: step between rows, then between columns, mm."""
    slope: float
    intercept: float
    times: tuple[float | str | None, ...]
    """Values of `TIME_AXES`."""
    component: str = ""
    """M, P, R or I where the header says which part of a complex number it is."""
    thickness: float | None = None
    """SpacingBetweenSlices or SliceThickness, mm."""


def is_multiframe(instance: Instance) -> bool:
    """Whether frames are described by functional groups, or should be."""
    count = instance.numbers(0x00280008)
    groups = SHARED_GROUPS in instance.elements or FRAME_GROUPS in instance.elements
    return groups or bool(count and count[0] > 1)


def classic_frame(instance: Instance, source: int) -> Frame:
    """The plane of a single-frame instance, from its header.

    Raises:
        InputError: Values that cannot describe a plane.
    """
    times: list[float | str | None] = []
    for tag in (0x00200100, 0x00181060, 0x00180081, 0x00189087, 0x00200012):
        numbers = instance.numbers(tag)
        times.append(numbers[0] if numbers else None)
    times.append(_clock(instance.text(0x00080022), instance.text(0x00080032)))
    slope, intercept = instance.numbers(SLOPE), instance.numbers(INTERCEPT)
    thickness = instance.numbers(0x00180088) or instance.numbers(0x00180050)
    kinds = instance.text(0x00080008).split("\\")
    return checked(
        Frame(
            source,
            0,
            instance.numbers(POSITION) or None,
            instance.numbers(ORIENTATION) or None,
            instance.numbers(SPACING) or instance.numbers(0x00181164) or None,
            slope[0] if slope else 1.0,
            intercept[0] if intercept else 0.0,
            tuple(times),
            _COMPONENTS.get(kinds[2].strip() if len(kinds) > 2 else "", ""),
            thickness[0] if thickness else None,
        )
    )


def multiframe_frames(instance: Instance, source: int, count: int, limits: Limits) -> list[Frame]:
    """The planes of an Enhanced instance, per-frame groups before shared ones.

    Args:
        instance: The opened instance.
        source: Its index among the sources of the series.
        count: NumberOfFrames.
        limits: Bound of the number of frames.

    Raises:
        InputError: No functional groups, another number of them than frames, or dimension
            indices that repeat, skip or contradict the positions.
    """
    if count > limits.frames:
        raise InputError(f"claims {count} frames", "NumberOfFrames is damaged")
    dataset = instance.dataset()
    with quiet(), refusing("its functional groups cannot be parsed"):
        common: Sequence[Dataset] = dataset.get("SharedFunctionalGroupsSequence") or ()
        shared = common[0] if common else Dataset()
        per_frame: Sequence[Dataset] = dataset.get("PerFrameFunctionalGroupsSequence") or ()
        if not per_frame:
            raise InputError(
                f"has {count} frames and no functional groups that place them",
                "export it as single-frame images",
            )
        if len(per_frame) != count:
            raise InputError(
                f"has {count} frames and functional groups for {len(per_frame)}",
                "export the file again",
            )
        frames = [_frame(item, shared, source, k) for k, item in enumerate(per_frame)]
        _check_indices(per_frame, frames)
    return [checked(frame) for frame in frames]


def checked(frame: Frame) -> Frame:
    """The frame, if its numbers can describe a plane.

    Raises:
        InputError: Wrong count, zero or negative spacing, directions that are not orthonormal,
            a slope of 0.
    """
    again = "export the images again"
    for name, values, count in (
        ("ImagePositionPatient", frame.position, 3),
        ("ImageOrientationPatient", frame.orientation, 6),
        ("PixelSpacing", frame.spacing, 2),
    ):
        if values is not None and len(values) != count:
            raise InputError(f"{name} has {len(values)} numbers instead of {count}", again)
    if frame.spacing is not None and min(frame.spacing) <= 0:
        raise InputError(f"PixelSpacing is {frame.spacing[0]:g}, {frame.spacing[1]:g} mm", again)
    if frame.orientation is not None:
        row, column = frame.orientation[:3], frame.orientation[3:]
        dot = abs(sum(a * b for a, b in zip(row, column, strict=True)))
        if max(abs(math.hypot(*row) - 1), abs(math.hypot(*column) - 1), dot) > 1e-3:
            raise InputError("ImageOrientationPatient is not orthonormal", again)
    if frame.slope == 0:
        raise InputError("RescaleSlope is 0", again)
    return frame


def _frame(item: Dataset, shared: Dataset, source: int, index: int) -> Frame:
    """One frame from its own groups, then from the shared ones."""

    def group(keyword: str) -> Dataset:
        for holder in (item, shared):
            found: Items | None = holder.get(keyword)
            if found:
                first: Dataset = found[0]
                return first
        return Dataset()

    measures, content = group("PixelMeasuresSequence"), group("FrameContentSequence")
    scale = group("PixelValueTransformationSequence")
    diffusion, echo = group("MRDiffusionSequence"), group("MREchoSequence")
    trigger = group("CardiacSynchronizationSequence")
    kind = group("MRImageFrameTypeSequence")
    times: tuple[float | str | None, ...] = (
        _number(content, "TemporalPositionIndex"),
        _number(trigger, "NominalCardiacTriggerDelayTime"),
        _number(echo, "EffectiveEchoTime"),
        _number(diffusion, "DiffusionBValue"),
        _number(content, "FrameAcquisitionNumber"),
        str(content.get("FrameAcquisitionDateTime", "")) or None,
    )
    slope, intercept = _number(scale, "RescaleSlope"), _number(scale, "RescaleIntercept")
    thickness = _number(measures, "SpacingBetweenSlices")
    if thickness is None:
        thickness = _number(measures, "SliceThickness")
    return Frame(
        source,
        index,
        _numbers(group("PlanePositionSequence"), "ImagePositionPatient"),
        _numbers(group("PlaneOrientationSequence"), "ImageOrientationPatient"),
        _numbers(measures, "PixelSpacing"),
        1.0 if slope is None else slope,
        0.0 if intercept is None else intercept,
        times,
        _COMPONENTS.get(str(kind.get("ComplexImageComponent", "")), ""),
        thickness,
    )


def _check_indices(items: Sequence[Dataset], frames: Sequence[Frame]) -> None:
    """Dimension indices and in-stack numbers must be unique, complete, and fit the positions."""
    again = "export the file again"
    contents = [(item.get("FrameContentSequence") or [Dataset()])[0] for item in items]
    indices = [tuple(_numbers(content, "DimensionIndexValues") or ()) for content in contents]
    if all(indices):
        if len({len(index) for index in indices}) > 1:
            raise InputError("its dimension indices differ in length", again)
        if len(set(indices)) < len(indices):
            raise InputError("two of its frames have the same dimension indices", again)
        for axis, values in enumerate(zip(*indices, strict=True)):
            if set(values) != set(range(1, len(set(values)) + 1)):
                raise InputError(f"its dimension indices skip a value on axis {axis + 1}", again)
    places: dict[tuple[str, float], tuple[float, ...]] = {}
    for content, frame in zip(contents, frames, strict=True):
        number = _number(content, "InStackPositionNumber")
        if number is None or frame.position is None:
            continue
        key = str(content.get("StackID", "")), number
        known = places.setdefault(key, frame.position)
        if math.dist(known, frame.position) > 1e-2:
            raise InputError(
                f"two of its frames share in-stack position {number:g} but lie "
                f"{math.dist(known, frame.position):.2f} mm apart",
                again,
            )


def _numbers(holder: Dataset, keyword: str) -> tuple[float, ...] | None:
    value = holder.get(keyword)
    if value is None or value == "":
        return None
    many = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    try:
        numbers = tuple(float(v) for v in many)
    except (TypeError, ValueError) as error:
        raise InputError(f"{keyword} is not a number", "export the file again") from error
    if not all(math.isfinite(v) for v in numbers):
        raise InputError(f"{keyword} is not finite", "export the file again")
    return numbers


def _number(holder: Dataset, keyword: str) -> float | None:
    numbers = _numbers(holder, keyword)
    return numbers[0] if numbers else None


def _clock(date: str, time: str) -> str | None:
    """Date and time as text whose order is that of time."""
    return f"{date} {time}" if time else None
