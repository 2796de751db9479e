"""A restored series as derived images: the source's own headers, new identity, honest origin.

`derive` changes one data set and touches no file; `write_series` re-reads each source instance,
one at a time, and never holds more than one.
"""

import copy
import hashlib
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from medssl.core.errors import InputError, naming
from medssl.core.image import Image
from medssl.io import values
from medssl.io.dicom import Instance, PixelShape, decode, open_instance, quiet, refusing
from medssl.io.multiframe import Frame
from medssl.io.series import SeriesOrigin

IMPLEMENTATION_UID = "2.25.242190446063826527133218904853107653641"
"""Names medssl as the writer of a file; the same for ever."""
NAMESPACE = uuid.UUID("5b8f1c1e-61a9-4d6e-9f0b-5b1c0f6a3d27")
"""Of the UIDs of `Derivation.stable_uids`."""

DROPPED = frozenset(
    {
        0x00880200,  # IconImageSequence shows the old pixels
        0xFFFAFFFA,  # DigitalSignaturesSequence
        0x4FFE0001,  # MACParametersSequence
        0x00280108,  # SmallestPixelValueInSeries
        0x00280109,  # LargestPixelValueInSeries
        0x7FE00001,  # ExtendedOffsetTable
        0x7FE00002,  # ExtendedOffsetTableLengths
        0x7FE00003,  # EncapsulatedPixelDataValueTotalLength
    }
)
CLASSIC = {
    "1.2.840.10008.5.1.4.1.1.2.1": "1.2.840.10008.5.1.4.1.1.2",
    "1.2.840.10008.5.1.4.1.1.2.2": "1.2.840.10008.5.1.4.1.1.2",
    "1.2.840.10008.5.1.4.1.1.4.1": "1.2.840.10008.5.1.4.1.1.4",
    "1.2.840.10008.5.1.4.1.1.4.4": "1.2.840.10008.5.1.4.1.1.4",
    "1.2.840.10008.5.1.4.1.1.130": "1.2.840.10008.5.1.4.1.1.128",
    "1.2.840.10008.5.1.4.1.1.128.1": "1.2.840.10008.5.1.4.1.1.128",
}
"""Enhanced and legacy-converted classes to their single-frame equivalents."""
BY_MODALITY = {
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "MR": "1.2.840.10008.5.1.4.1.1.4",
    "PT": "1.2.840.10008.5.1.4.1.1.128",
}
SECONDARY = "1.2.840.10008.5.1.4.1.1.7"
"""Secondary Capture: what an image is of which neither class nor modality is known."""
FRAME_TYPES = ("MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "PETFrameTypeSequence")
_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_MULTIFRAME_ONLY = (
    *_GROUPS,
    "NumberOfFrames",
    "DimensionOrganizationSequence",
    "DimensionIndexSequence",
    "DimensionOrganizationType",
    "ConcatenationUID",
    "InConcatenationNumber",
    "InConcatenationTotalNumber",
    "ConcatenationFrameOffsetNumber",
    "SOPInstanceUIDOfConcatenationSource",
)
_SYNTAXES = {
    "rle": (RLELossless, "pydicom"),
    "jpegls": (JPEGLSLossless, "pyjpegls"),
    "j2k": (JPEG2000Lossless, "pylibjpeg"),
}


def fresh_uid() -> str:
    """A new UID, unique without any authority."""
    return f"2.25.{uuid.uuid4().int}"


def _own_version() -> str:
    try:
        return version("medssl")
    except PackageNotFoundError:
        return "0"


@dataclass(frozen=True, kw_only=True)
class Derivation:
    """What a derived series says of how it was made."""

    version: str = ""
    """Of medssl; empty means the installed one."""
    method: str = ""
    """Name of the recipe."""
    parameters: str = ""
    """Its settled values, as text; part of the stable UIDs, never written."""
    description: str = ""
    """DerivationDescription; empty means the standard sentence."""
    weights_sha256: str | None = None
    series_uid: str = ""
    """SeriesInstanceUID of the result; empty means a new one for each series written."""
    make_uid: Callable[[], str] = fresh_uid
    now: datetime | None = None
    """Date and time of the result; None means the moment of writing."""
    series_number_offset: int = 1000
    keep_private: bool = False
    keep_overlays: bool = False
    stable_uids: bool = False
    """The same run on the same images gives the same UIDs; for bit-reproducible runs only."""
    all_sources: bool = False
    """Name every image of the series as a source of each, not only the one at its place."""
    compress: Literal["none", "rle", "jpegls", "j2k"] = "none"
    """Lossless transfer syntax of the result."""

    def settled(self, source_series: str) -> "Derivation":
        """The same with version, time and SeriesInstanceUID filled in, for one series."""
        own = replace(self, version=self.version or _own_version(), now=self.now or datetime.now())
        return replace(own, series_uid=self.series_uid or own.uid_for(source_series))

    def uid_for(self, source: str) -> str:
        """The UID that follows from a source's, or a new one."""
        if not self.stable_uids:
            return self.make_uid()
        words = (source, self.method, self.parameters, self.weights_sha256 or "", self.version)
        return f"2.25.{uuid.uuid5(NAMESPACE, chr(0).join(words)).int}"

    @property
    def sentence(self) -> str:
        """DerivationDescription."""
        words = " ".join(w for w in ("medssl", self.version, self.method) if w)
        return self.description or f"Denoised: {words}; research use only"


@dataclass(frozen=True)
class Written:
    """What `write_series` left in the folder."""

    names: tuple[str, ...]
    clipped: int
    """Voxels that did not fit into the stored range."""
    voxels: int
    voxels_sha256: str
    """Of the stored little-endian numbers, instance by instance."""


def derive(
    source: Dataset,
    stored: NDArray[Any],
    derivation: Derivation,
    *,
    instance_number: int = 1,
    frame_number: int | None = None,
    references: Sequence[tuple[str, str]] = (),
) -> Dataset:
    """The derived instance of a source instance. Pure: no file, and `source` is left as it is.

    Args:
        source: Header of the source, with or without pixels.
        stored: (rows, columns), or (frames, rows, columns) of an Enhanced image: the integers of
            its pixels, as PixelRepresentation says.
        derivation: What it says of itself; `settled` for the series.
        instance_number: InstanceNumber where the source has none.
        frame_number: Frame of an Enhanced source that became this instance, from 1.
        references: (SOP class, SOP instance) of the images it was computed from; empty means the
            source itself.

    Returns:
        A new data set with file meta information, explicit little endian.
    """
    own = derivation if derivation.now and derivation.series_uid else derivation.settled("")
    with quiet(), refusing("its header cannot be copied", "export the images again"):
        result: Dataset = copy.deepcopy(source)
        _strip(result, own)
        _complete(result, own)
        origin = _identity(source)
        same_class = CLASSIC.get(origin[1], origin[1]) if frame_number else origin[1]
        _identify(result, own, origin[0], same_class, instance_number, frame_number)
        series = str(source.get("SeriesInstanceUID", ""))
        _explain(result, own, origin, references, frame_number, series)
        _fill(result, stored)
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = UID(same_class)
        meta.MediaStorageSOPInstanceUID = result.SOPInstanceUID
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.ImplementationClassUID = UID(IMPLEMENTATION_UID)
        meta.ImplementationVersionName = f"MEDSSL_{own.version}"[:16]
        result.file_meta = meta
    return result


def write_series(
    folder: Path,
    image: Image,
    like: Image,
    derivation: Derivation,
    *,
    classic: bool = False,
) -> Written:
    """Write an image as the derived series of a source series.

    Args:
        folder: An existing, empty folder; gets `IM0001.dcm` and so on, and nothing else.
        image: Data on the grid of `like`.
        like: The source series as it was read; where data are equal, or not valid, its stored
            numbers are kept.
        derivation: What the series says of itself.
        classic: Write single-frame images of an Enhanced series.

    Raises:
        InputError: Another grid, a source that is gone or has changed.
    """
    names: list[str] = []
    clipped = voxels = 0
    digest = hashlib.sha256()
    for made in _derived(image, like, derivation, classic):
        name = f"IM{len(names) + 1:04d}.dcm"
        dataset = made.dataset
        digest.update(made.little_endian)
        with quiet(), refusing("a derived image cannot be encoded", "use --to nii"):
            _compressed(dataset, derivation)
            encoded = file_bytes(dataset)
        (folder / name).write_bytes(encoded)
        names.append(name)
        clipped += made.clipped
        voxels += len(made.little_endian) // (int(dataset.BitsAllocated) // 8)
    return Written(tuple(names), clipped, voxels, digest.hexdigest())


def derived_datasets(image: Image, like: Image, derivation: Derivation) -> list[Dataset]:
    """The derived series in memory; as `write_series`."""
    return [made.dataset for made in _derived(image, like, derivation, False)]


@dataclass(frozen=True)
class _Made:
    """One derived instance."""

    dataset: Dataset
    little_endian: bytes
    clipped: int


def _derived(image: Image, like: Image, derivation: Derivation, classic: bool) -> Iterator[_Made]:
    """The derived instances, each built when it is asked for."""
    origin = like.origin
    if not isinstance(origin, SeriesOrigin):
        raise InputError("has no DICOM series to take headers from", "give one with --like")
    if image.data.shape != like.data.shape or not image.geometry.same_grid(like.geometry):
        raise InputError(
            f"the image {image.data.shape} does not lie on the grid of the series "
            f"{like.data.shape}",
            "give the series that it was made from",
        )
    own: Derivation | None = None
    references: list[tuple[str, str]] = []
    for position, places in _by_instance(origin, classic):
        source = origin.sources[places[0][1].source]
        with (
            naming(source.name),
            quiet(),
            refusing("its header cannot be copied", "export the images again"),
        ):
            instance = reopened(origin, places[0][1].source)
            header = instance.dataset()
            if own is None:
                own = derivation.settled(str(header.get("SeriesInstanceUID", "")))
                references = _references(origin) if own.all_sources else []
            shape = PixelShape.of(instance)
            planes = np.empty((len(places), shape.rows, shape.columns), shape.dtype)
            clipped = 0
            for row, (k, frame) in enumerate(places):
                stored, _ = decode(instance, frame.index)
                planes[row], lost = _back(image, like, origin, k, frame, shape, stored)
                clipped += lost
            single = not origin.is_enhanced or classic
            number = places[0][1].index + 1 if classic and origin.is_enhanced else None
            if number is not None:
                header = _single_frame(header, number - 1, position + 1)
            dataset = derive(
                header,
                planes[0] if single else planes,
                own,
                instance_number=position + 1,
                frame_number=number,
                references=references,
            )
        little = planes.astype(planes.dtype.newbyteorder("<"), copy=False).tobytes()
        yield _Made(dataset, little, clipped)


def _by_instance(
    origin: SeriesOrigin, classic: bool
) -> Iterator[tuple[int, list[tuple[int, Frame]]]]:
    """(position, [(plane of the image, frame)]) of each instance to write."""
    planes = list(enumerate(origin.frames))
    if not origin.is_enhanced or classic:
        for position, plane in enumerate(planes):
            yield position, [plane]
        return
    for source in range(len(origin.sources)):
        own = [(k, frame) for k, frame in planes if frame.source == source]
        yield source, sorted(own, key=lambda pair: pair[1].index)


def _back(
    image: Image,
    like: Image,
    origin: SeriesOrigin,
    k: int,
    frame: Frame,
    shape: PixelShape,
    stored: NDArray[Any],
) -> tuple[NDArray[Any], int]:
    """Stored numbers of plane k: the inverse of its own rescale, and how many were clipped."""
    time, place = divmod(k, origin.n_slices)
    where = (time,) if image.data.ndim == 3 else (time, slice(None), slice(None), place)
    plane = image.data[where].T
    keep = ~np.isfinite(plane)
    for holder in (image, like):
        if holder.valid is not None:
            keep |= ~holder.valid[where].T
    limits = (float(shape.lowest), float(shape.highest))
    return values.encode(plane, stored, frame.slope, frame.intercept, limits, keep)


def reopened(origin: SeriesOrigin, index: int) -> Instance:
    """A source instance again, if it is still what was read.

    Raises:
        InputError: Gone or changed.
    """
    source = origin.sources[index]
    try:
        same = source.sha256() == origin.digests[index]
        instance = open_instance(source) if same else None
    except OSError as error:
        raise InputError(
            f"cannot be read again ({error.strerror})", "leave the source in its place"
        ) from error
    if instance is None:
        raise InputError("changed since it was read", "run again")
    return instance


def _references(origin: SeriesOrigin) -> list[tuple[str, str]]:
    """(SOP class, SOP instance) of every image of the series."""
    found = []
    for index in range(len(origin.sources)):
        instance = reopened(origin, index)
        found.append((instance.text(0x00080016), instance.text(0x00080018)))
    return found


def _strip(result: Dataset, own: Derivation) -> None:
    """Remove what described the old pixels, and what nobody can vouch for."""
    waiting = [result]
    while waiting:
        here = waiting.pop()
        for tag in list(here.keys()):
            overlay = 0x6000 <= tag.group <= 0x60FF and tag.group % 2 == 0
            if (
                (tag.is_private and not own.keep_private)
                or tag in DROPPED
                or (overlay and not own.keep_overlays)
            ):
                del here[tag]
            elif tag.element != 0 and _is_sequence(here, tag):
                waiting.extend(here[tag].value or ())


def _complete(result: Dataset, own: Derivation) -> None:
    """Give a source that lost its class or study what every image needs, and invent no more."""
    if not result.get("StudyInstanceUID"):
        result.StudyInstanceUID = UID(f"2.25.{uuid.uuid5(NAMESPACE, own.series_uid).int}")
    if not result.get("SOPClassUID") and "Laterality" not in result:
        result.Laterality = ""  # of type 2: "not known" may be said


def _is_sequence(here: Dataset, tag: Any) -> bool:
    raw = here.get_item(tag)
    if raw is not None and raw.VR is None:
        return bool(here[tag].VR == "SQ")
    return raw is not None and str(raw.VR) == "SQ"


def _identify(
    result: Dataset,
    own: Derivation,
    source_uid: str,
    sop_class: str,
    instance_number: int,
    frame_number: int | None,
) -> None:
    """A new instance of a new series of the same study."""
    assert own.now is not None
    date, time = own.now.strftime("%Y%m%d"), own.now.strftime("%H%M%S.%f")
    result.SOPClassUID = UID(sop_class)
    result.SOPInstanceUID = UID(own.uid_for(f"{source_uid}/{frame_number or ''}"))
    result.SeriesInstanceUID = UID(own.series_uid)
    if result.get("ConcatenationUID"):
        words = f"{own.series_uid}/{result.ConcatenationUID}"
        result.ConcatenationUID = UID(f"2.25.{uuid.uuid5(NAMESPACE, words).int}")
    result.ImageType = _derived_type(result.get("ImageType"))
    number = result.get("SeriesNumber")
    shifted = int(number or 0) + own.series_number_offset
    result.SeriesNumber = shifted if abs(shifted) < 2**31 else own.series_number_offset
    described = str(result.get("SeriesDescription") or "")
    result.SeriesDescription = f"medssl DN {described}".strip()[:64].rstrip()
    if result.get("InstanceNumber") in (None, ""):
        result.InstanceNumber = instance_number
    for word in ("InstanceCreation", "Content", "Series"):
        setattr(result, f"{word}Date", date)
        setattr(result, f"{word}Time", time)


def _identity(source: Dataset) -> tuple[str, str]:
    """SOP instance and class; anonymisers that drop the class leave it in the file meta."""
    meta = getattr(source, "file_meta", None) or Dataset()
    sop_class = source.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID")
    uid = source.get("SOPInstanceUID") or meta.get("MediaStorageSOPInstanceUID")
    return str(uid or ""), str(sop_class or BY_MODALITY.get(str(source.get("Modality")), SECONDARY))


def _derived_type(kinds: Any) -> list[str]:
    """ImageType or FrameType with its first value changed."""
    words = [kinds] if isinstance(kinds, str) else list(kinds or ())
    return ["DERIVED", *(str(w) for w in words[1:])] if len(words) > 1 else ["DERIVED", "PRIMARY"]


def _explain(
    result: Dataset,
    own: Derivation,
    source: tuple[str, str],
    references: Sequence[tuple[str, str]],
    frame_number: int | None,
    source_series: str,
) -> None:
    """Say what was done, to which image, by what."""
    named = list(references) or [(source[1], source[0])]
    per_frame = result.get("PerFrameFunctionalGroupsSequence")
    if per_frame:
        _explain_frames(result, own, named)
        result.SourceImageEvidenceSequence = Items([_evidence(result, source_series, named)])
    else:
        result.DerivationDescription = own.sentence
        result.DerivationCodeSequence = Items([_code("DN", "99MEDSSL", "Denoised")])
        result.SourceImageSequence = Items([_reference(*r, frame_number) for r in named])
    equipment = Dataset()
    equipment.PurposeOfReferenceCodeSequence = Items(
        [_code("109102", "DCM", "Processing Equipment")]
    )
    assert own.now is not None
    equipment.Manufacturer = "medssl"
    equipment.ManufacturerModelName = "medssl"
    equipment.SoftwareVersions = own.version
    equipment.ContributionDateTime = own.now.strftime("%Y%m%d%H%M%S.%f")
    weights = f"; weights sha256 {own.weights_sha256}" if own.weights_sha256 else ""
    equipment.ContributionDescription = f"Denoising by {own.method or 'medssl'}{weights}"
    before = list(result.get("ContributingEquipmentSequence") or ())
    result.ContributingEquipmentSequence = Items([*before, equipment])


def _explain_frames(result: Dataset, own: Derivation, named: Sequence[tuple[str, str]]) -> None:
    """The same for each frame of an Enhanced image, in its functional groups."""
    shared = list(result.get("SharedFunctionalGroupsSequence") or ())
    earlier = []
    for item in shared:
        if "DerivationImageSequence" in item:
            # A group may stand in one of the two places only, and ours differs per frame.
            earlier = list(item.DerivationImageSequence)
            del item.DerivationImageSequence
    frames = list(result.PerFrameFunctionalGroupsSequence)
    for item in (*shared, *frames):
        for keyword in FRAME_TYPES:
            for kind in item.get(keyword) or ():
                kind.FrameType = _derived_type(kind.get("FrameType"))
    for number, item in enumerate(frames, 1):
        made = Dataset()
        made.DerivationDescription = own.sentence
        made.DerivationCodeSequence = Items([_code("DN", "99MEDSSL", "Denoised")])
        made.SourceImageSequence = Items([_reference(*r, number) for r in named])
        before = list(item.get("DerivationImageSequence") or earlier)
        item.DerivationImageSequence = Items([*before, made])


def _evidence(result: Dataset, series: str, named: Sequence[tuple[str, str]]) -> Dataset:
    """Where the sources named in functional groups are found: study, series, instances."""
    images = []
    for sop_class, uid in named:
        image = Dataset()
        image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = UID(sop_class), UID(uid)
        images.append(image)
    holder = Dataset()
    holder.ReferencedSOPSequence = Items(images)
    holder.SeriesInstanceUID = UID(series)
    study = Dataset()
    study.ReferencedSeriesSequence = Items([holder])
    study.StudyInstanceUID = result.StudyInstanceUID
    return study


def _fill(result: Dataset, stored: NDArray[Any]) -> None:
    """Pixels, and the elements that speak of their values."""
    signed = int(result.get("PixelRepresentation") or 0) == 1
    vr = "SS" if signed else "US"
    bits = int(result.BitsAllocated)
    for tag, number in (
        (0x00280106, int(stored.min())),
        (0x00280107, int(stored.max())),
        (0x00280120, None),
        (0x00280121, None),
    ):
        if tag not in result:
            continue
        value = number if number is not None else result[tag].value
        if isinstance(value, bytes):  # stored without VR, or with a wrong one
            value = int.from_bytes(value[:2], "little")
        if value is None or value == "":
            continue
        wrapped = int(value) & 0xFFFF
        fitting = wrapped - 65536 if signed and wrapped > 32767 else wrapped
        result[tag] = DataElement(tag, vr, fitting)
    result.HighBit = int(result.get("BitsStored") or bits) - 1
    raw = stored.astype(stored.dtype.newbyteorder("<"), copy=False).tobytes()
    result.add(DataElement(0x7FE00010, "OW", raw + b"\0" * (len(raw) % 2)))


def _single_frame(header: Dataset, index: int, number: int) -> Dataset:
    """The header of one frame of an Enhanced image as a single-frame image has it."""
    flat = copy.copy(header)
    groups: list[Dataset] = []
    for keyword in _GROUPS:
        items = list(header.get(keyword) or ())
        if items:
            groups.append(items[0] if keyword.startswith("Shared") else items[index])
    result = Dataset()
    implicit, little = header.original_encoding
    result.set_original_encoding(implicit, little, header.original_character_set)
    for tag in flat.keys():  # noqa: SIM118  a data set iterates over parsed elements
        result[tag] = flat.get_item(tag)
    for keyword in _MULTIFRAME_ONLY:
        if keyword in result:
            delattr(result, keyword)
    for group in groups:
        for macro in group:
            if macro.VR != "SQ" or macro.tag.is_private or not macro.value:
                continue
            for element in macro.value[0]:
                if not element.tag.is_private and element.keyword not in _MULTIFRAME_ONLY:
                    result[element.tag] = element
    if result.get("FrameType"):
        result.ImageType = list(result.FrameType)
    moment = str(result.get("FrameAcquisitionDateTime") or "")
    if len(moment) > 8:
        result.AcquisitionDate, result.AcquisitionTime = moment[:8], moment[8:].split("+")[0]
    if result.get("EffectiveEchoTime") is not None:
        result.EchoTime = f"{float(result.EffectiveEchoTime):.10g}"
    if result.get("TemporalPositionIndex") is not None:
        result.TemporalPositionIdentifier = int(result.TemporalPositionIndex)
    for keyword in ("FrameType", "FrameAcquisitionDateTime", "FrameReferenceDateTime"):
        if keyword in result:
            delattr(result, keyword)
    for keyword in ("DimensionIndexValues", "StackID", "InStackPositionNumber"):
        if keyword in result:
            delattr(result, keyword)
    if str(header.get("SOPClassUID", "")).startswith("1.2.840.10008.5.1.4.1.1.4."):
        echo = str(result.get("EchoPulseSequence") or "")
        known = {"SPIN": ["SE"], "GRADIENT": ["GR"], "BOTH": ["SE", "GR"]}
        if result.get("InPlanePhaseEncodingDirection") == "COLUMN":
            result.InPlanePhaseEncodingDirection = "COL"
        for keyword, value in (
            ("ScanningSequence", known.get(echo, ["RM"])),
            ("SequenceVariant", ["NONE"]),
            ("ScanOptions", ""),
            ("MRAcquisitionType", ""),
            ("EchoTime", ""),
            ("EchoTrainLength", ""),
            ("RepetitionTime", ""),
        ):
            if keyword not in result:
                setattr(result, keyword, value)
    result.InstanceNumber = number
    return result


def _reference(sop_class: str, instance: str, frame: int | None = None) -> Dataset:
    """One item of SourceImageSequence."""
    item = Dataset()
    item.ReferencedSOPClassUID = UID(sop_class)
    item.ReferencedSOPInstanceUID = UID(instance)
    if frame is not None:
        item.ReferencedFrameNumber = frame
    item.PurposeOfReferenceCodeSequence = Items(
        [_code("121322", "DCM", "Source image for image processing operation")]
    )
    return item


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def _compressed(dataset: Dataset, derivation: Derivation) -> None:
    """Compress the pixels without loss, when asked for."""
    if derivation.compress == "none":
        return
    syntax, plugin = _SYNTAXES[derivation.compress]
    dataset.compress(syntax, encoding_plugin=plugin, generate_instance_uid=False)


def file_bytes(dataset: Dataset) -> bytes:
    """The whole file of a data set, explicit little endian unless it is compressed."""
    target = BytesIO()
    dcmwrite(target, dataset, implicit_vr=False, little_endian=True, enforce_file_format=True)
    return target.getvalue()
