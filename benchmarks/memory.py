"""Peak memory of `medssl denoise` on a generated 512x512x200 CT series, DICOM in to DICOM out.

The goal is 2.5 times the volume in float32 plus 600 MB for the whole process, Python and torch
included. `python benchmarks/memory.py [--slices 600] [--threads 2]`
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from _table import arguments, show

from medssl.io.example_series import ct_series

SIDE = 512
MB = 1e6


def volume(n_slices: int) -> np.ndarray:
    """A body with coloured noise in HU, cheap to make at any size."""
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.linspace(-1, 1, SIDE), np.linspace(-1, 1, SIDE), indexing="ij")
    body = np.where((x / 0.8) ** 2 + (y / 0.6) ** 2 < 1, 40.0, -1000.0)
    out = np.empty((SIDE, SIDE, n_slices), np.float32)
    for k in range(n_slices):
        white = rng.standard_normal((SIDE + 2, SIDE + 2)).astype(np.float32)
        smooth = (white[:-2, 1:-1] + white[2:, 1:-1] + white[1:-1, 1:-1]) / np.sqrt(3)
        out[..., k] = body + 25 * smooth
    return out


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--slices", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        source, target = Path(place) / "series", Path(place) / "out"
        ct_series(source, volume(words.slices), (0.8, 0.8, 2.0))
        start = time.perf_counter()
        subprocess.run(
            [
                sys.executable,
                "-m",
                "medssl.cli",
                "denoise",
                str(source),
                "-o",
                str(target),
                "-q",
                "--threads",
                str(words.threads),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        written = len(list(target.glob("*.dcm")))
    float32 = SIDE * SIDE * words.slices * 4
    goal = 2.5 * float32 + 600 * MB
    show(
        f"memory_{words.slices}",
        f"512x512x{words.slices} int16 CT series, denoise with defaults, {words.threads} threads",
        [
            {
                "slices out": written,
                "float32 volume MB": round(float32 / MB),
                "peak RSS MB": round(peak / MB),
                "goal MB": round(goal / MB),
                "held": peak <= goal,
                "seconds": round(seconds),
            }
        ],
        as_json=words.json,
    )


if __name__ == "__main__":
    main()
