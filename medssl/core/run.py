"""What a run says of itself: enough to repeat it, nothing that names a patient."""

import math
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

PACKAGES = ("medssl", "torch", "numpy", "scipy", "monai", "nibabel", "pydicom", "sigpy")


@dataclass
class Run:
    """Facts of one run, collected on the way and written beside the output at the end.

    The one mutable record of a journey: each step adds its facts, none reads those of another.
    """

    task: str
    seed: int = 0
    method: str = ""
    why: str = ""
    recipe: dict[str, Any] = field(default_factory=dict)
    noise: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    qc: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time of each stage."""
    warnings: list[str] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            taken = self.seconds.get(name, 0.0) + time.perf_counter() - start
            self.seconds[name] = round(taken, 3)

    def warn(self, *sentences: str) -> None:
        """Add warnings, each once."""
        self.warnings += [s for s in dict.fromkeys(sentences) if s not in self.warnings]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the sidecar."""
        return {
            "task": self.task,
            "method": self.method,
            "why": self.why,
            "recipe": self.recipe,
            "seed": self.seed,
            "noise": self.noise,
            "plan": self.plan,
            "qc": self.qc,
            "seconds": self.seconds,
            "versions": versions(),
            "warnings": self.warnings,
        }


def plain(value: Any) -> Any:
    """Values that JSON has: numbers that are not finite become None, anything else unknown text."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else str(value)


def versions() -> dict[str, str]:
    """Python, operating system, and the packages that decide a result."""
    found = {"python": sys.version.split()[0], "system": platform.system()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
