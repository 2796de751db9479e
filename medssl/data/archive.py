"""An archive of scans as rows: what lies where, which scans belong together, and to which split.

Rows only: no pixels, and no torch. Patients, studies and series are known by keyed hashes.
"""

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Split = Literal["train", "val", "test"]
Member = tuple[str, str, str]
"""Key of a series or volume, key of its patient, key of its frame of reference or `""`."""


@dataclass(frozen=True, kw_only=True)
class SeriesRow:
    """One series of the index; nothing in it names a patient except `paths`."""

    key: str
    """Hex, of the series: 128 bits."""
    study: str
    patient: str
    """Whom the split must not tear apart: the patient, or what stands in for one."""
    frame: str
    """Of the frame of reference; `""` where the files have none."""
    kind: Literal["dicom", "nifti", "picture"]
    modality: str
    """`CT`, `MR`, ...; `""` where it is not known."""
    flags: tuple[str, ...]
    """Of `data.rows.FLAGS`, in its order: what any of its files says."""
    paths: tuple[Path, ...]
    """Of its files, ascending, each instance once."""
    n_instances: int
    rows: int
    columns: int
    n_frames: int
    """Over all its files."""
    size: int
    """Bytes of its files."""
    stamp: str
    """Changes with the names, sizes and times of its files."""


def groups(members: Sequence[Member], links: Sequence[tuple[str, str]] = ()) -> dict[str, str]:
    """Which series or volumes must stay together.

    Args:
        members: Key, patient and frame of reference of each.
        links: Pairs of keys that show the same anatomy, such as copies.

    Returns:
        The group of each key: the smallest patient key among its members. A group is a connected
        component over equal patients, equal frames of reference, and links.
    """
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        parent.setdefault(name, name)
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    def join(a: str, b: str) -> None:
        first, second = sorted((root(a), root(b)))
        parent[second] = first

    known = {key for key, _, _ in members}
    for key, patient, frame in members:
        if patient:
            join(f"key/{key}", f"patient/{patient}")
        if frame:
            join(f"key/{key}", f"frame/{frame}")
    for a, b in links:
        if a in known and b in known:
            join(f"key/{a}", f"key/{b}")
    names: dict[str, str] = {}
    for key, patient, _ in members:
        here, name = root(f"key/{key}"), patient or key
        names[here] = min(names.get(here, name), name)
    return {key: names[root(f"key/{key}")] for key, _, _ in members}


def split(
    members: Sequence[Member],
    links: Sequence[tuple[str, str]] = (),
    *,
    salt: bytes,
    shares: tuple[float, float, float] = (0.9, 0.05, 0.05),
) -> tuple[dict[str, Split], list[str]]:
    r"""Training, validation or test, by a hash of the patient.

    With :math:`u = \mathrm{HMAC}(salt, patient) / 2^{64}` (its first 8 bytes) a patient is in
    training when :math:`u < shares_0`, in validation when :math:`u < shares_0 + shares_1`, and
    in the test otherwise: whatever else the archive holds, and in whatever order it came. A group
    whose patients fall apart goes to training as a whole, so that evaluation may shrink but never
    leaks.

    Args:
        members: Key, patient and frame of reference of each series or volume; one without a
            patient is its own.
        links: Pairs of keys that show the same anatomy.
        salt: Of the index (`salt`).
        shares: Of training, validation and test; they sum to 1.

    Returns:
        The split of each key, and the groups that were moved to training.
    """
    drawn: dict[str, Split] = {
        key: _draw(patient or key, salt, shares) for key, patient, _ in members
    }
    together = groups(members, links)
    seen: dict[str, set[Split]] = {}
    for key, group in together.items():
        seen.setdefault(group, set()).add(drawn[key])
    torn = {group for group, splits in seen.items() if len(splits) > 1}
    chosen: Mapping[str, Split] = {
        g: "train" if g in torn else next(iter(s)) for g, s in seen.items()
    }
    return {key: chosen[group] for key, group in together.items()}, sorted(torn)


def _draw(patient: str, salt: bytes, shares: tuple[float, float, float]) -> Split:
    digest = hmac.digest(salt, b"split/" + patient.encode(), "sha256")
    u = int.from_bytes(digest[:8]) / 2**64
    return "train" if u < shares[0] else "val" if u < shares[0] + shares[1] else "test"
