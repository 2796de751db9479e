"""What a file may ask for before it is called damaged or hostile."""

from dataclasses import dataclass

import psutil

from medssl.core.errors import InputError, MemoryLimitError

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds that no honest scan reaches; every reader checks them before it allocates."""

    memory: int | None = None
    """Bytes that pixels may take; None means 0.8 of the free memory."""
    slack: int = 16 * MIB
    """Bytes that a compressed stream may inflate to beyond its declared size."""
    extensions: int = 64 * MIB
    """Bytes of NIfTI header extensions."""
    files: int = 200_000
    """Files in a folder or a zip."""
    elements: int = 5_000_000
    """DICOM elements in one file."""
    elements_per_level: int = 100_000
    """DICOM elements in one data set or sequence item."""
    nesting: int = 32
    """Depth of nested DICOM sequences."""
    frames: int = 100_000
    """Frames of a multi-frame file, items of a sequence."""
    ratio: int = 1000
    """Inflated over stored size of a zip member."""

    @property
    def pixels(self) -> int:
        """Bytes that voxels may take in memory."""
        if self.memory is not None:
            return self.memory
        return int(0.8 * psutil.virtual_memory().available)

    def check_pixels(self, n_bytes: int) -> None:
        """Refuse voxels that cannot be held.

        Raises:
            InputError: More than 2^46 bytes, which no scan has: a damaged header.
            MemoryLimitError: More than the memory allows.
        """
        if n_bytes > 2**46:
            raise InputError(
                f"the header claims {n_bytes / 2**40:.3g} TiB of voxels",
                "the dimensions are damaged; copy or export the file again",
            )
        if n_bytes > self.pixels:
            raise MemoryLimitError(
                f"its voxels need {n_bytes / MIB:.0f} MiB, {self.pixels / MIB:.0f} MiB are free",
                "close other programs, or raise --memory",
            )
