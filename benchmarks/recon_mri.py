"""Accelerated parallel MRI: medssl beside SigPy, and BART where its program is installed.

Fully sampled brains (16 coils 128x128, 8 coils 230x180), the truth by SigPy's ESPIRiT of all of
k-space, scaled to a maximum of 1. Retrospective sampling: SigPy's Poisson discs (24x24 centre,
corners cropped, seed 1000 + R) and random lines (16 central); noise of RandomState(7) in addition
to that of the scan, which is 0.0105 on the first brain. PSNR and SSIM in the object (root sum of
squares above 0.08, closed, filled, largest part). Coil maps are estimated from the noisy
undersampled data. "best" tries weights and takes the one with the highest PSNR, which needs the
truth; "auto" is what a user gets without an option. CPU seconds are of one thread, with and
without coil maps, and are to be compared within one run only; medssl's without maps are the
difference of a run with and one without iterations, which solves twice.
"""

import argparse
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _table import arguments, measure, show
from scipy import ndimage
from skimage.metrics import structural_similarity

from medssl import api
from medssl.core.geometry import Geometry
from medssl.core.kspace import KSpace
from medssl.io.kspace import read_kspace
from medssl.physics.fourier import to_image, to_kspace

SCANS = {
    "16 coils": "kspace/siemens_twix/pulseq_brain_flash_16ch.dat",
    "8 coils": "kspace/bart_cfl/full.cfl",
}
SIGMAS = (0.0, 0.01, 0.03)
WEIGHTS = {
    "sense": (1e-2, 1e-1),
    "l1-wavelet": (1e-3, 3e-3, 1e-2, 3e-2),
    "tv": (1e-3, 3e-3, 1e-2),
}
"""Where the truth has a maximum of 1."""
ITERATIONS = {"sense": 30, "l1-wavelet": 60, "tv": 100}
OURS = tuple(0.0016 * 2 ** (k / 2) for k in range(-1, 10))
Array = np.ndarray


def truth(kspace: Array) -> tuple[Array, Array, float]:
    """Image of maximum 1, object, and what k-space is divided by."""
    maps = espirit(kspace)
    images = to_image(torch.from_numpy(kspace)).numpy()
    image = np.abs((maps.conj() * images).sum(0))
    rss = np.linalg.norm(images, axis=0)
    found = ndimage.binary_closing(rss > 0.08 * rss.max(), iterations=3)
    parts, count = ndimage.label(ndimage.binary_fill_holes(found))
    sizes = ndimage.sum(parts > 0, parts, range(1, count + 1))
    return image / image.max(), parts == 1 + int(np.argmax(sizes)), float(image.max())


def espirit(kspace: Array) -> Array:
    """SigPy's coil maps."""
    from sigpy.mri.app import EspiritCalib

    words = {"calib_width": 24, "thresh": 0.02, "kernel_width": 6, "crop": 0, "max_iter": 100}
    return EspiritCalib(kspace, show_pbar=False, **words).run()


def patterns(shape: tuple[int, int]) -> dict[str, Array]:
    """The sampling of each column of the table."""
    from sigpy.mri import poisson

    made = {
        f"Poisson {r}": poisson(
            shape, r, calib=(24, 24), crop_corner=True, seed=1000 + r, tol=0.1, dtype=np.float32
        )
        > 0
        for r in (4, 8)
    }
    n = shape[0]
    rng = np.random.RandomState(1004)
    lines = np.zeros(n, bool)
    lines[n // 2 - 8 : n // 2 + 8] = True
    far = np.abs(np.arange(n) - n // 2) / (n / 2)
    weight = np.where(lines, 0, 1 / (1 + 4 * far) ** 2)
    lines[rng.choice(n, round(n / 4) - 16, replace=False, p=weight / weight.sum())] = True
    made["lines 4"] = np.broadcast_to(lines[:, None], shape).copy()
    return made


def noisy(kspace: Array, sigma: float) -> Array:
    """With noise in addition, real parts first."""
    rng = np.random.RandomState(7)
    real, imaginary = rng.standard_normal(kspace.shape), rng.standard_normal(kspace.shape)
    return (kspace + sigma * (real + 1j * imaginary)).astype(np.complex64)


def score(found: Array, true: Array, inside: Array) -> tuple[float, float]:
    """PSNR and SSIM in the object."""
    error = np.sqrt(np.mean((found - true)[inside] ** 2))
    _, each = structural_similarity(
        np.where(inside, true, 0), np.where(inside, found, 0), data_range=1.0, full=True
    )
    return 20 * np.log10(1 / error), float(each[inside].mean())


def ours(kspace: Array, sampling: Array, **words: Any) -> api.Reconstruction:
    grid = Geometry.from_spacing(sampling.shape, (1.0, 1.0))
    return api.recon(KSpace(kspace, grid, sampling), threads=1, **words)


def sigpy_app(kind: str, kspace: Array, maps: Array, weight: float, sampling: Array) -> Array:
    from sigpy.mri import app

    words = {"weights": sampling.astype(np.float32), "show_pbar": False}
    made: Callable[..., Any] = {
        "sense": app.SenseRecon,
        "l1-wavelet": app.L1WaveletRecon,
        "tv": app.TotalVariationRecon,
    }[kind]
    run = made(kspace, maps, lamda=weight, max_iter=ITERATIONS[kind], **words)
    return np.abs(run.run())


def bart(kspace: Array, weight: float) -> Array:
    """BART's l1-wavelet with random shifts, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        data = kspace.transpose(1, 2, 0)[None].astype(np.complex64)
        data.ravel(order="F").tofile(place / "k.cfl")
        (place / "k.hdr").write_text("# Dimensions\n" + " ".join(map(str, data.shape)) + "\n")
        quiet = {"cwd": place, "check": True, "capture_output": True}
        quiet["env"] = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(["bart", "ecalib", "-r24", "-m1", "-c0", "k", "s"], **quiet)
        words = ["-w1", "-i100", "-R", f"W:6:0:{weight}"]
        subprocess.run(["bart", "pics", *words, "k", "s", "x"], **quiet)
        found = np.fromfile(place / "x.cfl", np.complex64)
    return np.abs(found.reshape(data.shape[:3], order="F")[0])


def rows_of(
    scan: str, name: str, sigma: float, kspace: Array, sampling: Array, true: Array, inside: Array
) -> Iterator[dict[str, Any]]:
    """One cell of the protocol, method by method."""
    y = noisy(kspace, sigma) * sampling

    def row(method: str, found: Array, weight: object, cpu: float, whole: float) -> dict[str, Any]:
        psnr, ssim = score(found, true, inside)
        return {
            "scan": scan,
            "sampling": name,
            "sigma": sigma,
            "method": method,
            "PSNR": round(float(psnr), 2),
            "SSIM": round(ssim, 3),
            "lambda": weight,
            "CPU s": round(cpu, 2),
            "CPU s with maps": round(whole, 2),
        }

    plain = measure(lambda: ours(y, sampling, method="zero-filled"))
    yield row("zero-filled", plain.result.image.data[0], "", plain.cpu_seconds, plain.cpu_seconds)
    maps = measure(lambda: espirit(y))
    for kind, weights in WEIGHTS.items():
        best = max(
            (
                (w, measure(lambda k=kind, w=w: sigpy_app(k, y, maps.result, w, sampling)))
                for w in weights
            ),
            key=lambda pair: score(pair[1].result, true, inside)[0],
        )
        cpu = best[1].cpu_seconds
        yield row(f"SigPy {kind}, best", best[1].result, best[0], cpu, cpu + maps.cpu_seconds)
    if shutil.which("bart"):
        found = max(
            ((w, bart(y, w)) for w in (0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.03)),
            key=lambda pair: score(pair[1], true, inside)[0],
        )
        yield row("BART l1-wavelet, best", found[1], found[0], np.nan, np.nan)
    tried = [(w, measure(lambda w=w: ours(y, sampling, lambda_=w))) for w in OURS]
    weight, best = max(tried, key=lambda pair: score(pair[1].result.image.data[0], true, inside)[0])
    solved = measure(lambda: ours(y, sampling, lambda_=weight, settings={"method.iterations": 0}))
    cpu = best.cpu_seconds - solved.cpu_seconds
    yield row(
        "medssl l1-wavelet, best",
        best.result.image.data[0],
        round(weight, 4),
        cpu,
        best.cpu_seconds,
    )
    for method in ("auto", "tv"):
        run = measure(lambda m=method: ours(y, sampling, method=m))
        chosen = run.result.record["medssl"]["recipe"]["method"]["lambda_"]
        image = run.result.image.data[0]
        yield row(f"medssl {method}", image, round(chosen, 4), run.cpu_seconds, run.cpu_seconds)


def folded(scan: str, kspace: Array, width: int) -> Iterator[dict[str, Any]]:
    """A field of view too small for the head: one, two and automatic sets of coil maps."""
    images = to_image(torch.from_numpy(kspace)).numpy()
    n = images.shape[-1]
    small = np.zeros((*images.shape[:-1], width), np.complex64)
    for column in range(n):
        small[..., (column - n // 2 + width // 2) % width] += images[..., column]
    small /= np.linalg.norm(small, axis=0).max()
    true = np.linalg.norm(small, axis=0)
    whole = to_kspace(torch.from_numpy(small)).numpy()
    sampling = patterns((images.shape[1], width))["Poisson 4"]
    y = noisy(whole, 0.01) * sampling
    for sets in (1, 2, "auto"):
        run = measure(lambda s=sets: ours(y, sampling, map_sets=s))
        psnr, ssim = score(run.result.image.data[0], true, true > 0.08)
        used = run.result.record["medssl"]["plan"]["map_sets"]
        yield {
            "scan": f"{scan}, folded to {width} columns",
            "sampling": "Poisson 4",
            "sigma": 0.01,
            "method": f"medssl auto, map sets {sets} (used {used})",
            "PSNR": round(float(psnr), 2),
            "SSIM": round(ssim, 3),
            "CPU s with maps": round(run.cpu_seconds, 2),
        }


def main() -> None:
    parser: argparse.ArgumentParser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="all cells of the second scan too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for scan, path in SCANS.items():
        kspace = np.array(read_kspace(options.data / path).data)
        true, inside, top = truth(kspace)
        for name, sampling in patterns(true.shape).items():
            for sigma in SIGMAS:
                if scan == "16 coils" or options.all or (name, sigma) == ("Poisson 8", 0.01):
                    rows += rows_of(scan, name, sigma, kspace / top, sampling, true, inside)
        rows += folded(scan, kspace, {"16 coils": 64, "8 coils": 128}[scan])
    notes = [] if shutil.which("bart") else ["BART's program is not installed: skipped"]
    show(
        "recon_mri",
        "Retrospectively undersampled brains; PSNR (dB) and SSIM in the object; one thread",
        rows,
        as_json=options.json,
        notes=notes,
    )


if __name__ == "__main__":
    main()
