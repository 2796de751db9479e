"""The protocol inside a Siemens raw file: flat words, only those that an image needs.

Patient data in the same header are never looked at.
"""

import math
import re
from dataclasses import dataclass, field

from medssl.core.errors import InputError

COPY_AGAIN = "export the raw data again"
ASSIGNMENT = re.compile(r"^([\w.\[\]]+)[ \t]*=[ \t]*(\S+)", re.MULTILINE)
PARAMETER = re.compile(r'<Param(?:Long|Double)\."(\w+)">\s*{([^{}]*)}')
PRECISION = re.compile(r"<Precision>\s*\d+")
WANTED = ("sSliceArray.", "sKSpace.", "sPat.", "sSliceAcceleration.", "sRXSPEC.alDwellTime")
RAMP = (
    "alRegridRampupTime",
    "alRegridFlattopTime",
    "alRegridRampdownTime",
    "alRegridDelaySamplesTime",
    "aflRegridADCDuration",
)
PARAMETERS = ("flReadoutOSFactor", "alRegridMode", *RAMP)
AXES = ("dSag", "dCor", "dTra")
MOST_BUFFERS = 64


@dataclass(frozen=True)
class Protocol:
    """Numbers of one measurement by their names in the protocol."""

    numbers: dict[str, float] = field(default_factory=dict)
    lists: dict[str, tuple[float, ...]] = field(default_factory=dict)

    def number(self, name: str, default: float = 0.0) -> float:
        """One of the protocol's numbers."""
        return self.numbers.get(name, default)

    def vector(self, name: str) -> tuple[float, float, float]:
        """Sagittal, coronal, transverse; what is absent is 0."""
        sag, cor, tra = (self.number(f"{name}.{axis}") for axis in AXES)
        return sag, cor, tra

    def first(self, name: str) -> float | None:
        """The first number of a parameter; None when it is not there."""
        values = self.lists.get(name, ())
        return values[0] if values else None


def parse(content: bytes) -> Protocol:
    """Read the header of one measurement: named buffers of text, one after the other.

    Args:
        content: The whole header, its length included.

    Raises:
        InputError: The buffers do not fit into it.
    """
    n_buffers = int.from_bytes(content[4:8], "little")
    if not 0 < n_buffers <= MOST_BUFFERS:
        raise InputError(f"its header has {n_buffers} parts", COPY_AGAIN)
    at, protocol = 8, Protocol()
    for _ in range(n_buffers):
        end = content.find(b"\0", at, at + 64)
        size = int.from_bytes(content[end + 1 : end + 5], "little")
        if end < 0 or end + 5 + size > len(content):
            raise InputError("its header is damaged", COPY_AGAIN)
        name, at = content[at:end], end + 5 + size
        text = content[end + 5 : at].decode("latin-1")
        if name == b"MeasYaps":
            _assignments(text, protocol)
        elif name == b"Meas":
            _parameters(text, protocol)
    return protocol


def _assignments(text: str, protocol: Protocol) -> None:
    """`sKSpace.lBaseResolution = 160`, decimal or hexadecimal."""
    for name, value in ASSIGNMENT.findall(text):
        if name.startswith(WANTED):
            number = _number(value)
            if number is not None:
                protocol.numbers[name] = number


def _parameters(text: str, protocol: Protocol) -> None:
    """`<ParamLong."alRegridMode"> { 2 1 }`."""
    for name, body in PARAMETER.findall(text):
        if name in PARAMETERS and name not in protocol.lists:
            found = [_number(word) for word in PRECISION.sub("", body).split()]
            protocol.lists[name] = tuple(v for v in found if v is not None)


def _number(word: str) -> float | None:
    try:
        value = float(int(word, 16)) if word.lower().startswith("0x") else float(word)
    except (ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None
