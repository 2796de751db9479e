"""Denoising of magnitude MR with Rician noise: medssl beside the tools people use.

Crops of public scans, peak (99.9 percentile) normalised to 1, noise of 1 to 15 % of it with seed 0.
PSNR and SSIM (Gaussian window 1.5, data range 1) over the foreground (above 0.1), no clipping;
nobody is told the noise level, except where a row says so. CPU seconds are of one thread, sigma
estimation included, and are to be compared within one run only; memory is the peak above what the
process held before the call.

BM4D and BM3D wheels are free for non-commercial use only; they are measured where they are
installed and never needed.
"""

import argparse
import importlib.util
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from _peers import similarity, stabilised
from _table import arguments, measure, show
from skimage.restoration import denoise_nl_means, denoise_tv_chambolle, denoise_wavelet

from medssl import api
from medssl.metrics.image import psnr
from medssl.physics.noise import Rician

CROPS = {
    "T1": ("mr/chris_t1.nii.gz", (slice(16, 96), slice(90, 170), slice(95, 119))),
    "Gd": ("mr/MR_Gd.nii.gz", (slice(48, 128), slice(60, 140), slice(60, 84))),
    "body": ("mr/example_mr_sm.nii.gz", (slice(None), slice(None), slice(None))),
}
LEVELS = (0.01, 0.03, 0.07, 0.12, 0.15)
Array = np.ndarray
Denoiser = Callable[[Array, Array, float, float], Array]
"""Noisy image, affine, true sigma, and medssl's own estimate of it."""


def truth(folder: Path, name: str) -> tuple[Array, Array]:
    """A crop, normalised, and its affine."""
    path, part = CROPS[name]
    image = nib.load(folder / path)
    x = np.clip(image.get_fdata()[part], 0, None)
    return np.minimum(x / np.percentile(x, 99.9), 1.0), image.affine


def noisy(x: Array, level: float) -> Array:
    """Rician noise: the magnitude of a complex image with Gaussian parts."""
    rng = np.random.default_rng(0)
    real, imaginary = rng.standard_normal(x.shape), rng.standard_normal(x.shape)
    return np.sqrt((x + level * real) ** 2 + (level * imaginary) ** 2).astype(np.float32)


def ours(quality: str) -> Denoiser:
    def run(y: Array, affine: Array, sigma: float, own: float) -> Array:
        del sigma, own
        return api.denoise((y, affine), threads=1, quality=quality).image[0]

    return run


def skimage_peers() -> dict[str, Denoiser]:
    """scikit-image's filters in the stabilised domain, told the true sigma."""

    def nlm(y: Array, affine: Array, sigma: float, own: float) -> Array:
        del affine, own
        return stabilised(
            Rician(sigma),
            y,
            lambda z: denoise_nl_means(z, patch_size=3, patch_distance=3, h=0.7, sigma=1.0),
        )

    def tv(y: Array, affine: Array, sigma: float, own: float) -> Array:
        del affine, own
        return stabilised(Rician(sigma), y, lambda z: denoise_tv_chambolle(z, weight=1.0))

    def wavelet(y: Array, affine: Array, sigma: float, own: float) -> Array:
        del affine, own
        return stabilised(
            Rician(sigma),
            y,
            lambda z: denoise_wavelet(z, sigma=1.0, wavelet="db2", rescale_sigma=False),
        )

    return {
        "skimage NLM (VST, true sigma)": nlm,
        "skimage TV (VST, true sigma)": tv,
        "skimage wavelet (VST, true sigma)": wavelet,
    }


def dipy_default(y: Array, affine: Array, sigma: float, own: float) -> Array:
    """As its command line: own sigma, patch 1, block 5, Rician."""
    from dipy.denoise.nlmeans import nlmeans
    from dipy.denoise.noise_estimate import estimate_sigma

    del affine, sigma, own
    scaled = 1000 * y.astype(np.float64)
    level = estimate_sigma(scaled)
    out = nlmeans(scaled, sigma=level, patch_radius=1, block_radius=5, rician=True, num_threads=1)
    return (out / 1000).astype(np.float32)


def ants_default(y: Array, affine: Array, sigma: float, own: float) -> Array:
    import ants

    del affine, sigma, own
    image = ants.from_numpy(1000 * y.astype(np.float32))
    return ants.denoise_image(image, noise_model="Rician").numpy() / 1000


def bm4d_same_sigma(y: Array, affine: Array, sigma: float, own: float) -> Array:
    from bm4d import bm4d

    del affine, sigma
    return stabilised(Rician(own), y, lambda z: 50 * bm4d(z.astype(np.float64) / 50, 1 / 50))


def bm4d_true_sigma(y: Array, affine: Array, sigma: float, own: float) -> Array:
    return bm4d_same_sigma(y, affine, own, sigma)


OPTIONAL: dict[str, tuple[str, Denoiser]] = {
    "dipy nlmeans, its command line's defaults": ("dipy", dipy_default),
    "ANTs DenoiseImage Rician, defaults": ("ants", ants_default),
    "BM4D + VST, medssl's sigma": ("bm4d", bm4d_same_sigma),
    "BM4D + VST, true sigma": ("bm4d", bm4d_true_sigma),
}


def methods(words: argparse.Namespace) -> tuple[dict[str, Denoiser], list[str]]:
    """What is measured, and what cannot be."""
    found: dict[str, Denoiser] = {f"medssl {q}": ours(q) for q in ("fast", "standard", "high")}
    notes = []
    if words.peers == "none":
        return found, notes
    found |= skimage_peers()
    for name, (package, denoiser) in OPTIONAL.items():
        if importlib.util.find_spec(package) is None:
            notes.append(f"skipped, not installed: {name} ({package})")
        else:
            found[name] = denoiser
    return found, notes


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--scans", nargs="+", choices=CROPS, default=list(CROPS))
    parser.add_argument("--levels", nargs="+", type=float, default=LEVELS)
    parser.add_argument("--peers", choices=("all", "none"), default="all")
    words = parser.parse_args()
    torch.set_num_threads(1)
    every, notes = methods(words)
    rows = []
    for name in words.scans:
        if not (words.data / CROPS[name][0]).is_file():
            notes.append(f"{name} is not in the data folder; skipped")
            continue
        x, affine = truth(words.data, name)
        for level in words.levels:
            rows += cell(name, x, affine, level, every)
    show(
        "denoise_mr",
        " ".join(__doc__.split("\n\n")[1].split()),
        rows,
        as_json=words.json,
        notes=notes,
    )


def cell(
    name: str, x: Array, affine: Array, level: float, every: dict[str, Denoiser]
) -> list[dict[str, object]]:
    """All methods on one scan at one level."""
    y = noisy(x, level)
    own = api.denoise((y, affine), threads=1, quality="fast", dry_run=True).noise.sigma
    where = x > 0.1

    def judged(out: Array) -> dict[str, object]:
        _, found = similarity(x, out.astype(np.float64))
        reached = psnr(
            torch.from_numpy(out), torch.from_numpy(x), peak=1, where=torch.from_numpy(where)
        )
        return {"dB": round(reached, 2), "SSIM": round(float(found[where].mean()), 4)}

    start = {"scan": name, "noise %": round(100 * level), "own/true sigma": round(own / level, 3)}
    rows: list[dict[str, object]] = [start | {"method": "noisy"} | judged(y)]
    for method, denoiser in every.items():
        done = measure(lambda denoiser=denoiser: denoiser(y, affine, level, own))
        row = start | {"method": method} | judged(np.asarray(done.result, np.float32))
        row |= {"CPU s": round(done.cpu_seconds, 2), "peak MB": round(done.peak_mb)}
        row["below input"] = "yes" if row["dB"] < rows[0]["dB"] else ""  # type: ignore[operator]
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
