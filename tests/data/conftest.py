"""Archives that are made here: series as rows of an index."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from medssl.data.archive import SeriesRow
from medssl.io.example_series import ct_series


def trunk(shape=(80, 72, 20), seed: int = 0) -> np.ndarray:
    """A noisy trunk of water with organs in air, HU; every seed is another patient."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    hu = np.where((x / 0.85) ** 2 + (y / 0.7) ** 2 < 1, 40.0, -1000.0)
    for _ in range(12):
        at, size = rng.uniform(-0.55, 0.55, 3), rng.uniform(0.1, 0.35, 3)
        inside = sum(((a - b) / c) ** 2 for a, b, c in zip((x, y, z), at, size, strict=True)) < 1
        hu[inside] = rng.uniform(-300, 300)
    return np.rint(hu + rng.normal(0, 12, shape)).clip(-1024).astype(np.int16)


def series_row(
    name: str,
    paths: Sequence[Path],
    *,
    kind: str = "dicom",
    modality: str = "CT",
    flags: tuple[str, ...] = (),
    patient: str = "",
    sides: tuple[int, int] = (0, 0),
    n_frames: int = 0,
) -> SeriesRow:
    """A row as the index would have it."""
    said = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in paths]
    key = hashlib.sha256(name.encode()).hexdigest()[:32]
    return SeriesRow(
        key=key,
        study=key,
        patient=patient or key,
        frame="",
        kind=kind,
        modality=modality,
        flags=flags,
        paths=tuple(sorted(paths)),
        n_instances=len(paths),
        rows=sides[0],
        columns=sides[1],
        n_frames=n_frames,
        size=sum(s for _, s, _ in said),
        stamp=hashlib.sha256(repr(said).encode()).hexdigest()[:16],
    )


@pytest.fixture(scope="session")
def body() -> Callable[..., np.ndarray]:
    """Make the noisy trunk of a patient: `body(shape, seed=0)`, HU."""
    return trunk


@pytest.fixture
def row() -> Callable[..., SeriesRow]:
    """Make a row of files that are there."""
    return series_row


@pytest.fixture
def ct(tmp_path) -> Callable[..., SeriesRow]:
    """Write a CT series and give its row."""

    def make(name: str, hu: np.ndarray | None = None, *, seed: int = 0, **more) -> SeriesRow:
        hu = trunk(seed=seed) if hu is None else hu
        paths = ct_series(tmp_path / "archive" / name, hu, (0.8, 0.8, 3.0), seed=seed + 1)
        return series_row(name, paths, **more)

    return make
