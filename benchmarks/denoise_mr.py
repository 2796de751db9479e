"""PSNR of the default on magnitude MR with Rician noise, beside dipy where it is installed.

Crops of public scans, peak normalised to 1, noise of 1 to 15 % of it with seed 0, PSNR over the
foreground (above 0.1) without clipping; nobody is told the noise level. CPU seconds are of one
thread, sigma estimation included, and are to be compared within one run only.
"""

import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from _table import arguments, show

from medssl import api
from medssl.metrics.image import psnr

CROPS = {
    "T1": ("mr/chris_t1.nii.gz", (slice(16, 96), slice(90, 170), slice(95, 119))),
    "Gd": ("mr/MR_Gd.nii.gz", (slice(48, 128), slice(60, 140), slice(60, 84))),
    "body": ("mr/example_mr_sm.nii.gz", (slice(None), slice(None), slice(None))),
}
LEVELS = (0.01, 0.03, 0.07, 0.12, 0.15)
Denoiser = Callable[[np.ndarray, np.ndarray], np.ndarray]


def truth(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A crop, normalised, and its affine."""
    path, part = CROPS[name]
    image = nib.load(folder / path)
    x = np.clip(image.get_fdata()[part], 0, None)
    return np.minimum(x / np.percentile(x, 99.9), 1.0), image.affine


def noisy(x: np.ndarray, level: float) -> np.ndarray:
    """Rician noise: the magnitude of a complex image with Gaussian parts."""
    rng = np.random.default_rng(0)
    real, imaginary = rng.standard_normal(x.shape), rng.standard_normal(x.shape)
    return np.sqrt((x + level * real) ** 2 + (level * imaginary) ** 2).astype(np.float32)


def medssl_default(y: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """`medssl denoise` without a word."""
    return api.denoise((y, affine), threads=1).image[0]


def peers() -> tuple[dict[str, Denoiser], list[str]]:
    """What else is installed, and what is not."""
    try:
        from dipy.denoise.nlmeans import nlmeans
        from dipy.denoise.noise_estimate import estimate_sigma
    except ImportError:
        return {}, ["dipy is not installed: `pip install medssl[bench]`"]

    def dipy_default(y: np.ndarray, affine: np.ndarray) -> np.ndarray:
        """As its command line: own sigma, patch 1, block 5, Rician."""
        del affine
        scaled = 1000 * y.astype(np.float64)
        out = nlmeans(
            scaled,
            sigma=estimate_sigma(scaled),
            patch_radius=1,
            block_radius=5,
            rician=True,
            num_threads=1,
        )
        return (out / 1000).astype(np.float32)

    return {"dipy nlmeans": dipy_default}, []


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    words = parser.parse_args()
    torch.set_num_threads(1)
    others, notes = peers()
    methods: dict[str, Denoiser] = {"medssl": medssl_default} | others
    rows = []
    for name in CROPS:
        if not (words.data / CROPS[name][0]).is_file():
            notes.append(f"{name} is not in the data folder; skipped")
            continue
        x, affine = truth(words.data, name)
        where = torch.from_numpy(x > 0.1)
        reference = torch.from_numpy(x)
        for level in LEVELS:
            y = noisy(x, level)
            row: dict[str, object] = {"scan": name, "noise %": round(100 * level)}
            row["noisy dB"] = round(psnr(torch.from_numpy(y), reference, peak=1, where=where), 2)
            for method, denoiser in methods.items():
                start = time.process_time()
                out = denoiser(y, affine)
                row[f"{method} CPU s"] = round(time.process_time() - start, 2)
                row[f"{method} dB"] = round(
                    psnr(torch.from_numpy(out), reference, peak=1, where=where), 2
                )
            row["below input"] = ", ".join(
                m for m in methods if float(str(row[f"{m} dB"])) < float(str(row["noisy dB"]))
            )
            rows.append(row)
    show(
        "denoise_mr",
        __doc__.split("\n\n")[1].replace("\n", " "),
        rows,
        as_json=words.json,
        notes=notes,
    )


if __name__ == "__main__":
    main()
