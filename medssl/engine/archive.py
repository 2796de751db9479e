"""Many scans for one method: which of them are learnt from, and which are only tested on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from medssl.io.folder import Found

ID_DIGITS = 12
"""Of the hash that names a scan."""
LEAST_PATIENTS = 3
"""Below it none can be spared for testing."""


def short(digest: str) -> str:
    """The name of a scan in a run."""
    return digest[:ID_DIGITS]


class Looked(Protocol):
    """What is kept of one scan, whatever the task: a line of `scans.jsonl`, without names."""

    @property
    def id(self) -> str:
        """First digits of the hash of its content."""
        ...

    @property
    def group(self) -> str:
        """Equal for scans that must not be parted between learning and testing."""
        ...


Look = TypeVar("Look", bound=Looked)


@dataclass(frozen=True)
class Archive(Generic[Look]):
    """The scans that a method learns from and is tested on."""

    learn: tuple[tuple[Found, Look], ...]
    test: tuple[tuple[Found, Look], ...]
    """Patients that it never learns from."""

    @property
    def looks(self) -> list[Look]:
        """Of all scans."""
        return [look for _, look in self.learn + self.test]


def parted(scans: Sequence[tuple[Found, Look]], share: float) -> Archive[Look]:
    """Keep some patients for testing: the same ones for the same scans, in whatever order.

    Args:
        scans: All that can be used.
        share: Of the patients; one at least where there are three, unless it is 0.
    """
    groups = sorted({look.group for _, look in scans})  # hashes, so their order is chance
    count = round(share * len(groups))
    if share > 0 and len(groups) >= LEAST_PATIENTS:
        count = max(count, 1)
    kept = set(groups[: min(count, len(groups) - 1)])
    return Archive(
        tuple(s for s in scans if s[1].group not in kept),
        tuple(s for s in scans if s[1].group in kept),
    )


def groups_of(found: Sequence[Found]) -> dict[str, str]:
    """The group of each scan by its id; a group is named by the first of its ids, not its folder.

    A scan in no folder that tells patients apart is a group of its own.
    """
    first: dict[str, str] = {}
    for scan in found:
        if scan.group:
            first[scan.group] = min(first.get(scan.group, scan.id), scan.id)
    return {scan.id: short(first.get(scan.group, scan.id)) for scan in found}
