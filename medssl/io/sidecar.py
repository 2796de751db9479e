"""Provenance beside every output: JSON, written last, without anything that names a patient."""

import json
from pathlib import Path
from typing import Any

from medssl.io import atomic


def write(target: Path, record: dict[str, Any], *, overwrite: bool) -> None:
    """Write a record as JSON.

    Args:
        target: The sidecar's own name.
        record: Plain values only; NaN is refused because JSON has none.
        overwrite: Replace an existing sidecar.

    Raises:
        OutputError: The place is taken or not writable.
    """
    text = json.dumps(record, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    with atomic.file(target, overwrite=overwrite) as sink:
        sink.write(text.encode())
