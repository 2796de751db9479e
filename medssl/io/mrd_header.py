"""The XML header of ISMRMRD, which fastMRI files carry too: only what an image needs of it."""

import math
from dataclasses import dataclass
from xml.etree import ElementTree

from medssl.core.errors import InputError

COPY_AGAIN = "repair the header or convert the raw data again"


@dataclass(frozen=True, kw_only=True)
class Header:
    """One encoding; what the file leaves out is None or 0.

    Tuples are (x, y, z): readout, first and second phase encoding.
    """

    encoded: tuple[int, int, int] | None
    encoded_fov: tuple[float, float, float] | None
    recon: tuple[int, int, int] | None
    recon_fov: tuple[float, float, float] | None
    trajectory: str
    centres: tuple[int | None, int | None]
    """Of kspace_encoding_step_1 and 2."""
    acceleration: float | None
    calibration: str
    noise_bandwidth: float
    """Relative receiver noise bandwidth; 1 where it is not said."""


def parse(text: str) -> Header:
    """Read the first encoding.

    Raises:
        InputError: No XML, or one with a document type, which could make it grow without bounds.
    """
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise InputError("its XML header declares a document type", COPY_AGAIN)
    try:
        root = ElementTree.fromstring(text.rstrip("\0").strip().encode())
    except ElementTree.ParseError as error:
        raise InputError("its XML header is damaged", COPY_AGAIN) from error
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    encoding = root.find("encoding")
    place = encoding if encoding is not None else ElementTree.Element("encoding")
    limits = "encodingLimits/kspace_encoding_step_"
    factors = [
        _number(place, f"parallelImaging/accelerationFactor/kspace_encoding_step_{i}")
        for i in (1, 2)
    ]
    total = math.prod(f for f in factors if f and f > 0)
    return Header(
        encoded=_matrix(place, "encodedSpace"),
        encoded_fov=_fov(place, "encodedSpace"),
        recon=_matrix(place, "reconSpace"),
        recon_fov=_fov(place, "reconSpace"),
        trajectory=(place.findtext("trajectory") or "").strip().lower(),
        centres=(_whole(place, f"{limits}1/center"), _whole(place, f"{limits}2/center")),
        acceleration=total if any(factors) else None,
        calibration=(place.findtext("parallelImaging/calibrationMode") or "").strip().lower(),
        noise_bandwidth=_positive(
            _number(root, "acquisitionSystemInformation/relativeReceiverNoiseBandwidth")
        ),
    )


def _positive(value: float | None) -> float:
    return value if value is not None and value > 0 else 1.0


def _number(place: ElementTree.Element, name: str) -> float | None:
    try:
        value = float(place.findtext(name) or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _whole(place: ElementTree.Element, name: str) -> int | None:
    value = _number(place, name)
    return int(value) if value is not None and 0 <= value < 2**16 else None


def _matrix(place: ElementTree.Element, space: str) -> tuple[int, int, int] | None:
    x, y, z = (_whole(place, f"{space}/matrixSize/{a}") for a in "xyz")
    return (x, y, z or 0) if x and y else None


def _fov(place: ElementTree.Element, space: str) -> tuple[float, float, float] | None:
    x, y, z = (_number(place, f"{space}/fieldOfView_mm/{a}") or 0.0 for a in "xyz")
    return (x, y, z) if x > 0 and y > 0 else None
