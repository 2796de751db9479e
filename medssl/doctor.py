"""Is everything here that a run needs: packages, device, codecs, memory, disk, and the method."""

import importlib.metadata
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from medssl import api
from medssl.core.errors import InputError
from medssl.core.random import stream
from medssl.core.run import PACKAGES
from medssl.io import atomic, dicom
from medssl.physics.phantom import head

OLDEST = (3, 11)
LEAST_MEMORY = 2 * 2**30
"""Bytes; less is not enough for a CT series of 200 slices."""
LEAST_DISK = 2**30
PHANTOM_SIGMA = 0.1
LEAST_GAIN_DB = 4.0
"""Of the phantom on any machine; the filter gives 5.2."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    passed: bool
    found: str
    remedy: str = ""

    @property
    def line(self) -> str:
        """For people: `ok` or `FAIL`, what was found, what to do."""
        remedy = "" if self.passed or not self.remedy else f"; {self.remedy}"
        return f"{'ok  ' if self.passed else 'FAIL'} {self.name}: {self.found}{remedy}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def examine() -> tuple[Check, ...]:
    """Look at everything, without network and without touching the user's files."""
    looks: tuple[Callable[[], Check], ...] = (
        _python,
        _packages,
        _device,
        _codecs,
        _memory,
        _disk,
        _data,
        _leftovers,
        _phantom,
    )
    return tuple(look() for look in looks)


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    return Check("python", sys.version_info >= OLDEST, found, "install Python 3.11 or newer")


def _packages() -> Check:
    missing, found = [], []
    for package in PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(package)
    return Check(
        "packages",
        not missing,
        ", ".join(found) if not missing else f"missing: {', '.join(missing)}",
        "pip install --constraint constraints.txt .",
    )


def _device() -> Check:
    if torch.cuda.is_available():
        return Check("device", True, torch.cuda.get_device_name())
    if torch.version.cuda is not None and Path("/proc/driver/nvidia").exists():
        return Check("device", False, "a GPU that torch cannot use", "match torch to the driver")
    return Check("device", True, f"CPU, {os.cpu_count()} cores")


def _codecs() -> Check:
    """Every transfer syntax that a hospital sends must have a decoder."""
    missing = []
    for syntax in dicom.CODECS:
        try:
            dicom.codec(syntax)
        except InputError:
            missing.append(syntax)
    return Check(
        "DICOM codecs",
        not missing,
        "all transfer syntaxes decode" if not missing else f"no decoder for {', '.join(missing)}",
        "pip install pylibjpeg-openjpeg pyjpegls python-gdcm",
    )


def _memory() -> Check:
    free = psutil.virtual_memory().available
    return Check("memory", free >= LEAST_MEMORY, f"{free / 2**30:.1f} GiB free", "close programs")


def _disk() -> Check:
    place = Path.cwd()
    if not os.access(place, os.W_OK):
        return Check("disk", False, "this folder is not writable", "work in another folder")
    free = shutil.disk_usage(place).free
    return Check("disk", free >= LEAST_DISK, f"{free / 2**30:.1f} GiB free here", "free some space")


def _data() -> Check:
    named = os.environ.get("MEDSSL_DATA")
    if named is None:
        return Check("test data", True, "MEDSSL_DATA is not set; only tests need it")
    there = Path(named).is_dir()
    return Check(
        "test data", there, "there" if there else "MEDSSL_DATA names no folder", "unset it"
    )


def _leftovers() -> Check:
    found = atomic.leftovers(Path.cwd())
    names = ", ".join(p.name for p in found[:3])
    return Check(
        "leftovers",
        not found,
        f"{len(found)} of killed runs: {names}" if found else "none in this folder",
        "delete them",
    )


def _phantom() -> Check:
    """Denoise a head phantom in memory and compare with the truth."""
    truth = head((64, 64, 32))
    generator = stream(0, "doctor")
    real = truth + PHANTOM_SIGMA * torch.randn(truth.shape, generator=generator)
    imaginary = PHANTOM_SIGMA * torch.randn(truth.shape, generator=generator)
    noisy = torch.hypot(real, imaginary)
    clean = api.denoise(noisy, noise="rician").image
    brain = truth > 0.1
    before = float((noisy - truth)[brain].square().mean())
    after = float((clean - truth)[brain].square().mean())
    gain = 10 * torch.log10(torch.tensor(before / after)).item()
    with tempfile.TemporaryDirectory() as place:
        written = Path(place) / "phantom.npy"
        with atomic.file(written) as sink:
            sink.write(b"medssl")
        kept = written.read_bytes() == b"medssl"
    return Check(
        "self-test",
        gain > LEAST_GAIN_DB and kept,
        f"a phantom gained {gain:.1f} dB",
        "please report it with the versions above",
    )
