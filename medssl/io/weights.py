"""Tensors in a file: safetensors and nothing else, so that reading one never runs code."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from medssl.core.errors import WeightsError
from medssl.io import atomic


def write(target: Path, tensors: Mapping[str, Tensor], *, overwrite: bool = False) -> str:
    """Write named tensors.

    Args:
        target: The file; it appears complete or not at all.
        tensors: Any device and memory order; they are stored as they look.
        overwrite: Replace an existing file.

    Returns:
        SHA-256 of the file.

    Raises:
        OutputError: The place is taken, not writable, or full.
    """
    plain = {k: v.detach().to("cpu").contiguous().clone() for k, v in tensors.items()}
    content = save(plain)
    with atomic.file(target, overwrite=overwrite) as sink:
        sink.write(content)
    return hashlib.sha256(content).hexdigest()


def read(source: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU.

    Args:
        source: What `write` wrote, or another safetensors file.
        sha256: What the file must hash to; None accepts any.

    Raises:
        WeightsError: Missing, not readable, damaged, or another file than it was.
    """
    try:
        content = source.read_bytes()
    except FileNotFoundError as error:
        raise WeightsError("does not exist", "check the path", file=source) from error
    except OSError as error:
        raise WeightsError(
            f"cannot be opened ({error.strerror})", "check the path", file=source
        ) from error
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise WeightsError(
            f"is damaged or another file than it was ({len(content)} bytes)",
            "copy it again",
            file=source,
        )
    try:
        return load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise WeightsError(
            "is no whole safetensors file", "copy it again; pickles are never read", file=source
        ) from error
