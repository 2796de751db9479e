"""What every benchmark shares: a Markdown table on stdout and the same as JSON beside it."""

import argparse
import json
import os
import platform
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Generic, TypeVar

import psutil

Result = TypeVar("Result")
PACKAGES = ("medssl", "torch", "numpy", "scikit-image", "dipy", "antspyx", "bm3d", "bm4d")
PACKAGES += ("pydicom", "pyarrow", "duckdb", "SimpleITK", "dicomsdl")
RESULTS = Path(__file__).parent / "results"


def arguments(description: str) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description)
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(os.environ.get("MEDSSL_DATA", default)),
        help="folder of real scans (MEDSSL_DATA)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


@dataclass(frozen=True)
class Measured(Generic[Result]):
    """What a call gave and took."""

    result: Result
    cpu_seconds: float
    """Of all threads of this process."""
    peak_mb: float
    """Memory above what the process held before, sampled every 10 ms."""


def measure(call: Callable[[], Result]) -> Measured[Result]:
    """Run something once and measure it."""
    process = psutil.Process()
    before = peak = process.memory_info().rss
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.process_time()
    try:
        result = call()
    finally:
        taken = time.process_time() - start
        done.set()
        watcher.join()
    return Measured(result, taken, (peak - before) / 1e6)


def show(
    name: str,
    protocol: str,
    rows: Sequence[dict[str, Any]],
    *,
    as_json: bool,
    notes: Sequence[str] = (),
) -> None:
    """Print the rows and write `results/<name>.json`."""
    record = {
        "name": name,
        "protocol": protocol,
        "notes": list(notes),
        "machine": {"cores": os.cpu_count(), "processor": platform.machine()},
        "versions": {p: _version(p) for p in PACKAGES},
        "rows": list(rows),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
    if as_json:
        print(json.dumps(record, indent=2))
        return
    columns = list(dict.fromkeys(key for row in rows for key in row))
    print(f"{protocol}\n")
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(str(row.get(c, "")) for c in columns) + " |")
    for note in notes:
        print(f"\n{note}")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
