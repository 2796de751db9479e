"""Records that grow while a run goes on: one JSON object a line, the last of which may be torn."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medssl.core.errors import OutputError
from medssl.core.run import plain
from medssl.io import atomic


def append(target: Path, record: dict[str, Any]) -> None:
    """Add one line, which outlives this process but not a power cut.

    Raises:
        OutputError: Not writable, or full.
    """
    line = json.dumps(plain(record), ensure_ascii=False) + "\n"
    try:
        with target.open("ab") as handle:
            handle.write(line.encode())
    except OSError as error:
        raise OutputError(
            f"cannot be written ({error.strerror})", "check free space and permissions", file=target
        ) from error


def read(source: Path) -> list[dict[str, Any]]:
    """The whole lines; nothing where there is no file."""
    if not source.exists():
        return []
    found = []
    for line in source.read_bytes().splitlines():
        try:
            record = json.loads(line)
        except ValueError:  # torn by a kill
            break
        if isinstance(record, dict):
            found.append(record)
    return found


def keep(target: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Drop the lines that are not wanted, and a torn one.

    Raises:
        OutputError: Not writable, or full.
    """
    lines = [json.dumps(r, ensure_ascii=False) + "\n" for r in read(target) if wanted(r)]
    if target.exists():
        with atomic.file(target, overwrite=True) as sink:
            sink.write("".join(lines).encode())
