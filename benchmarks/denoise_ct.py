"""Denoising of low-dose CT: medssl beside the tools people use.

PSNR and SSIM (7x7 uniform window, mean over slices) of u = (HU + 1024) / 4096, data range 1, whole
image, no clipping. Every row is blind unless it says oracle; strength s is input + s (filtered -
input), 0.85 is medssl's default for CT. CPU seconds are of one thread, noise estimation included,
and are to be compared within one run only; the ratio is to the reference row of the same scan;
memory is the peak above what the process held before the call. Full-dose references are noisy
themselves and reward under-denoising; where the scan is simulated the truth is exact.

Cases: `pair` (Filter2Noise's chest pair), `l506` (two Mayo slices), `slices` (simulated ramp, hann,
low-dose hann and white noise on generated and real anatomy), `volume` (simulated, 12 slices), `big`
(512x512 generated slices by the number of --big-slices, in slabs). BM3D's wheel is free for
non-commercial use only; it is measured where it is installed and never needed.
"""

import argparse
import dataclasses
import importlib.util
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from _table import arguments, measure, show
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity
from skimage.restoration import (
    denoise_bilateral,
    denoise_nl_means,
    denoise_tv_chambolle,
    denoise_wavelet,
    estimate_sigma,
)
from torch.nn.functional import avg_pool2d

from medssl import api
from medssl.core.random import stream
from medssl.io.memory import from_array
from medssl.io.read import read
from medssl.metrics.image import psnr
from medssl.physics.low_dose import simulate_low_dose
from medssl.physics.phantom import abdomen

CASES = ("pair", "l506", "slices", "volume", "big")
STRENGTHS = (1.0, 0.85, 0.7)
AUTO = {f"medssl {quality}": quality for quality in ("fast", "standard", "high")}
METHODS = ("total_variation", "filter2noise_scalar", "filter2noise_spatial")
SLOW_METHODS = ("filter2noise",)
SCANNERS = {"ramp": ("ramp", 2e5), "hann": ("hann", 1.5e5), "low-dose hann": ("hann", 3e4)}
WHITE = 30.0
"""HU, of white noise on the clean hann image."""
SLICES = (4, 10, 15)
"""Of the real series, of which the simulated scans are made."""
Array = np.ndarray
Denoiser = Callable[[Array, tuple[float, ...]], Array]
"""Image in HU and its spacing to the denoised image in HU."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One scan with its reference."""

    name: str
    clean: Array
    noisy: Array
    spacing: tuple[float, ...]


def u(hu: Array) -> Array:
    """HU to the unit in which everything is judged."""
    return ((hu + 1024) / 4096).astype(np.float32)


def hu(x: Array) -> Array:
    """The inverse."""
    return (4096 * x - 1024).astype(np.float32)


def ours(**words: object) -> Denoiser:
    """`medssl denoise` with all of the change applied."""

    def run(y: Array, spacing: tuple[float, ...]) -> Array:
        image = from_array(y, np.diag([*(*spacing, 1.0)[:3], 1.0]))
        image = dataclasses.replace(image, modality="CT")
        return api.denoise(image, threads=1, strength=1.0, **words).image.data[0].reshape(y.shape)

    return run


def in_u(method: Callable[[Array], Array]) -> Denoiser:
    """A peer that works on u."""

    def run(y: Array, spacing: tuple[float, ...]) -> Array:
        del spacing
        return hu(np.asarray(method(u(y))))

    return run


def by_slice(method: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """A filter for pictures on each slice of a volume."""

    def run(x: Array) -> Array:
        if x.ndim == 2:
            return method(x)
        return np.stack([method(x[..., k]) for k in range(x.shape[2])], -1)

    return run


def mad(x: Array) -> float:
    """What scikit-image takes the noise to be; wrong for correlated noise."""
    return float(estimate_sigma(x))


def peers() -> tuple[dict[str, Denoiser], list[str]]:
    """scikit-image, and what else is installed; and what is not."""
    found = {
        "Gaussian 0.7": in_u(by_slice(lambda x: gaussian_filter(x, 0.7))),
        "skimage TV 2 MAD": in_u(lambda x: denoise_tv_chambolle(x, weight=2 * mad(x))),
        "skimage NLM 1.15 MAD": in_u(
            by_slice(
                lambda x: denoise_nl_means(
                    x, patch_size=5, patch_distance=6, h=1.15 * mad(x), fast_mode=True
                )
            )
        ),
        "skimage wavelet": in_u(
            by_slice(lambda x: denoise_wavelet(x, wavelet="db2", method="BayesShrink"))
        ),
        "skimage bilateral": in_u(
            by_slice(lambda x: denoise_bilateral(x, win_size=5, sigma_color=3 * mad(x)))
        ),
    }
    notes = []
    if importlib.util.find_spec("dipy"):
        found["dipy nlmeans"] = in_u(_dipy)
    else:
        notes.append("dipy is not installed: `pip install medssl[bench]`; skipped")
    if importlib.util.find_spec("bm3d"):
        found["BM3D, medssl's sigma"] = _bm3d
    else:
        notes.append("bm3d is not installed (free for non-commercial use only); skipped")
    return found, notes


def _dipy(x: Array) -> Array:
    from dipy.denoise.nlmeans import nlmeans

    volume = x if x.ndim == 3 else np.repeat(x[..., None], 5, axis=2)
    out = nlmeans(
        volume.astype(np.float64), sigma=mad(x), patch_radius=1, block_radius=5, num_threads=1
    )
    return out if x.ndim == 3 else out[..., 2]


def _bm3d(y: Array, spacing: tuple[float, ...]) -> Array:
    from bm3d import bm3d

    image = from_array(y, np.diag([*(*spacing, 1.0)[:3], 1.0]))
    image = dataclasses.replace(image, modality="CT")
    sigma = api.denoise(image, dry_run=True, threads=1).noise.sigma / 4096
    return hu(by_slice(lambda x: bm3d(x, sigma))(u(y)))


def pair(folder: Path) -> Iterator[Case]:
    """Files as they are, each normalised by its makers."""
    where = folder / "ct" / "filter2noise_pair"
    if where.is_dir():
        clean, noisy = (hu(np.load(where / f"{n}.npy").squeeze()) for n in ("clean", "noisy"))
        yield Case("pair", clean, noisy, (0.7, 0.7))


def l506(folder: Path) -> Iterator[Case]:
    for k in (18, 176):
        path = folder / "ct" / "mayo_l506" / f"L506_{k}_HU.npz"
        if path.is_file():
            both = np.load(path)
            clean, noisy = (both[n].astype(np.float32) for n in ("full", "low"))
            yield Case(f"L506_{k}", clean, noisy, (0.7, 0.7))


def anatomy(folder: Path) -> tuple[torch.Tensor | None, tuple[float, ...]]:
    """The real series, 2x2 means, (x, y, z) in HU."""
    where = folder / "ct" / "series_3mm_dicom"
    if not where.is_dir():
        return None, ()
    image = read(where)
    volume = torch.from_numpy(np.ascontiguousarray(image.data[0]))
    half = avg_pool2d(volume.permute(2, 0, 1)[:, None], 2)[:, 0].permute(1, 2, 0)
    x, y, z = image.spacing
    return half.contiguous(), (2 * x, 2 * y, z)


def slices(folder: Path) -> Iterator[Case]:
    """Four kinds of noise on slices whose truth is known."""
    real, spacing = anatomy(folder)
    sources = {"phantom": abdomen((256, 256), (1.6, 1.6, 3.0))}
    if real is not None:
        sources |= {f"slice {k}": real[..., k] for k in SLICES}
    for name, source in sources.items():
        mm = (1.6, 1.6) if name == "phantom" else spacing[:2]
        for kind, (kernel, photons) in SCANNERS.items():
            clean, noisy = simulate_low_dose(
                source, mm, photons=photons, kernel=kernel, generator=stream(0, name)
            )
            yield Case(f"{kind}, {name}", clean.numpy(), noisy.numpy(), mm)
            if kind == "hann":
                white = WHITE * torch.randn(clean.shape, generator=stream(1, name))
                yield Case(f"white, {name}", clean.numpy(), (clean + white).numpy(), mm)


def volume(folder: Path) -> Iterator[Case]:
    """Twelve slices of the real series, or of the phantom where it is not there."""
    real, spacing = anatomy(folder)
    name = "simulated volume"
    if real is None:
        spacing, name = (1.6, 1.6, 3.0), "simulated phantom volume"
        real = abdomen((256, 256, 12), spacing)
    clean, noisy = simulate_low_dose(
        real[..., :12],
        spacing[:2],
        photons=1.5e5,
        electronic_variance=0.0,
        generator=stream(0, "volume"),
    )
    yield Case(name, clean.numpy(), noisy.numpy(), spacing)


def big(n_slices: int) -> Case:
    """A large generated volume with coloured noise of 25 HU."""
    clean = abdomen((512, 512, n_slices), (0.8, 0.8, 1.5))
    generator = stream(0, "big")
    noisy = clean.clone()
    for k in range(n_slices):
        white = torch.randn(514, 514, generator=generator)
        noisy[..., k] += (
            25 / math.sqrt(3) * (white[:-2, 1:-1] + white[1:-1, 1:-1] + white[2:, 1:-1])
        )
    return Case(f"512x512x{n_slices}", clean.numpy(), noisy.numpy(), (0.8, 0.8, 1.5))


def in_slabs(x: Array, size: int = 32, halo: int = 8) -> Array:
    """scikit-image's total variation, slab by slab."""
    weight, out = 2 * mad(x[..., x.shape[2] // 2]), np.empty_like(x)
    for a in range(0, x.shape[2], size):
        first = max(a - halo, 0)
        part = denoise_tv_chambolle(x[..., first : a + size + halo], weight=weight)
        out[..., a : a + size] = part[..., a - first :][..., :size]
    return out


def judged(case: Case, out: Array) -> dict[str, object]:
    """PSNR and SSIM of a result."""
    a, b = u(out), u(case.clean)
    reached = psnr(torch.from_numpy(a), torch.from_numpy(b), peak=1)
    planes = [(a, b)] if a.ndim == 2 else [(a[..., k], b[..., k]) for k in range(a.shape[2])]
    similar = np.mean([structural_similarity(y, x, data_range=1.0) for x, y in planes])
    return {"dB": round(reached, 2), "SSIM": round(float(similar), 4)}


def rows_of(case: Case, methods: dict[str, Denoiser], reference: str) -> list[dict[str, object]]:
    """All methods on one scan; medssl's at three strengths."""
    start = {"scan": case.name}
    rows: list[dict[str, object]] = [start | {"method": "noisy"} | judged(case, case.noisy)]
    for name, method in methods.items():
        done = measure(lambda method=method: method(case.noisy, case.spacing))
        print(f"{case.name}: {name}, {done.cpu_seconds:.1f} s", file=sys.stderr)
        cost = {"CPU s": round(done.cpu_seconds, 2), "peak MB": round(done.peak_mb)}
        for strength in STRENGTHS if name.startswith("medssl") else (1.0,):
            out = case.noisy + np.float32(strength) * (done.result - case.noisy)
            row = start | {"method": name, "strength": strength} | judged(case, out)
            rows.append(row | cost if strength == 1 else row)
    base = next((float(str(r["CPU s"])) for r in rows if r["method"] == reference), None)
    for row in rows:
        if base and "CPU s" in row:
            row["ratio"] = round(float(str(row["CPU s"])) / base, 3)
    return rows


def bias(case: Case, out: Array) -> float:
    """Largest mean change, HU, of a tissue of the phantom away from its edges."""
    worst = 0.0
    for value in np.unique(np.round(case.clean[::4, ::4, ::4])):
        inside = np.abs(case.clean - value) < 1e-3
        if value > -200 and np.count_nonzero(inside) > 20_000:
            worst = max(worst, abs(float((out - case.noisy)[inside].mean())))
    return worst


def large(words: argparse.Namespace) -> list[dict[str, object]]:
    """CPU time and memory on a large volume."""
    case, rows = big(words.big_slices), []
    start = {"scan": case.name}
    methods = {"skimage TV in slabs": in_u(in_slabs)}
    methods |= {name: ours(quality=q) for name, q in AUTO.items() if q in words.big_quality}
    for name, method in methods.items():
        done = measure(lambda method=method: method(case.noisy, case.spacing))
        reached = psnr(torch.from_numpy(u(done.result)), torch.from_numpy(u(case.clean)), peak=1)
        row: dict[str, object] = start | {"method": name, "dB": round(reached, 2)}
        row |= {"CPU s": round(done.cpu_seconds, 1), "peak MB": round(done.peak_mb)}
        row["bias HU"] = round(bias(case, done.result), 2)
        rows.append(row)
    for row in rows:
        row["ratio"] = round(float(str(row["CPU s"])) / float(str(rows[0]["CPU s"])), 2)
    return rows


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--case", nargs="+", choices=(*CASES, "all"), default=["all"])
    parser.add_argument("--method", nargs="+", help="only rows whose name holds one of these")
    parser.add_argument("--faithful", action="store_true", help="also filter2noise as published")
    parser.add_argument("--big-slices", type=int, default=64)
    parser.add_argument("--big-quality", nargs="+", choices=AUTO.values(), default=["fast"])
    words = parser.parse_args()
    torch.set_num_threads(1)
    wanted = CASES if "all" in words.case else words.case
    others, notes = peers()
    named = METHODS + (SLOW_METHODS if words.faithful else ())
    methods = others | {name: ours(quality=quality) for name, quality in AUTO.items()}
    methods |= {f"medssl {name}": ours(method=name) for name in named}
    if words.method:
        methods = {n: m for n, m in methods.items() if any(w in n for w in words.method)}
    reference = "BM3D, medssl's sigma" if "BM3D, medssl's sigma" in methods else "skimage TV 2 MAD"
    rows = []
    sources = {"pair": pair, "l506": l506, "slices": slices, "volume": volume}
    for name in wanted:
        if name == "big":
            rows += large(words)
            continue
        cases = list(sources[name](words.data))
        if not cases:
            notes.append(f"{name} is not in the data folder; skipped")
        for case in cases:
            rows += rows_of(case, methods, reference)
    name = "denoise_ct" if "all" in words.case else "denoise_ct_" + "_".join(words.case)
    protocol = " ".join(__doc__.split("\n\n")[1].split()) + f" Reference row: {reference}."
    show(name, protocol, rows, as_json=words.json, notes=notes)


if __name__ == "__main__":
    main()
