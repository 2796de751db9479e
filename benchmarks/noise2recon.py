"""Noise2Recon beside what it competes with, trained on simulated scans, tested on real raw data.

All nets have one architecture, one budget of updates, one seed and the same simulated scans (8 to
16 coils, R 4 to 8, own noise below 0.01 of the brightness), in turn of slices of the magnitude
volumes of two other people (`mr/`) and of generated pictures. They are tested on
the fully sampled 16-coil brain, measured anew with Poisson-disc patterns of R = 4 and 8 and with
noise of 0, 0.01 and 0.03 of the largest value added to its own 0.0105: PSNR and SSIM inside the
object against the SENSE image of all samples, through `medssl.api.recon` as a user calls it. L1 is
the default of `medssl recon`, which learns nothing. The sweep has the R = 4 pattern with noise in
units of the brightness. The body coil saw the same slice with much more noise of its own: R = 2
pattern, truth is the image of the head coils times the smooth ratio of both receive fields.
"""

import argparse
import contextlib
import io
import json
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _table import arguments, show
from scipy import ndimage
from skimage.metrics import structural_similarity

from medssl import api
from medssl.core.geometry import Geometry
from medssl.core.kspace import KSpace
from medssl.io.kspace import read_kspace
from medssl.physics.espirit import espirit
from medssl.physics.fourier import to_image
from medssl.physics.sampling import central, poisson_disc

Array = np.ndarray
NETS = (
    "noise2recon",
    "noise2recon_semi",
    "noise2recon_ssdu",
    "ssdu",
    "supervised",
    "supervised_noise",
)
PICTURES = ("chris_t1.nii.gz", "MR_Gd.nii.gz")
SIGMAS = (0.0, 0.01, 0.03)
SWEEP = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
SCALE = 0.63
"""Brightness (95th percentile) of the brain, its largest value being 1."""


def brain(data: Path, name: str) -> Array:
    """(coil, H, W) of a fully sampled scan."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scan = read_kspace(data / "kspace" / "siemens_twix" / f"{name}.dat")
    found = np.asarray(scan.data)
    return found.reshape(len(found), *[n for n in found.shape[1:] if n > 1])


def combined(kspace: Array) -> Array:
    """(H, W) SENSE image of all samples."""
    whole = torch.from_numpy(kspace)[None]
    ys, xs = central((kspace.shape[1], kspace.shape[2]), (24, 24))
    maps = espirit(whole[..., ys, xs], (kspace.shape[1], kspace.shape[2]), 1)[0][0, 0]
    return (maps.conj() * to_image(whole[0])).sum(0).abs().numpy()


def object_of(kspace: Array) -> Array:
    """(H, W) the largest lit part, holes filled."""
    rss = np.linalg.norm(to_image(torch.from_numpy(kspace)).numpy(), axis=0)
    lit = ndimage.binary_closing(rss > 0.08 * rss.max(), iterations=3)
    lit = ndimage.binary_fill_holes(lit)
    parts, count = ndimage.label(lit)
    return parts == 1 + np.argmax(ndimage.sum(lit, parts, range(1, count + 1)))


def noisy(kspace: Array, sigma: float) -> Array:
    rng = np.random.RandomState(7)
    parts = rng.standard_normal((2, *kspace.shape))
    return (kspace + sigma * (parts[0] + 1j * parts[1])).astype(np.complex64)


def scan_of(kspace: Array, pattern: Array) -> KSpace:
    shape = (kspace.shape[1], kspace.shape[2])
    data = (kspace * pattern).astype(np.complex64)
    return KSpace(data, Geometry(shape, np.diag([2.0, 2.0, 5.0, 1.0])), pattern)


def score(image: Array, truth: Array, inside: Array) -> tuple[float, float]:
    error = np.sqrt(np.square(image - truth)[inside].mean())
    flat = [np.where(inside, x, 0) for x in (truth, image)]
    _, similarity = structural_similarity(*flat, data_range=float(truth.max()), full=True)
    return 20 * np.log10(truth[inside].max() / error), float(similarity[inside].mean())


def image_of(scan: KSpace, run: Path | None) -> Array:
    """(H, W) as `medssl recon` makes it, with weights or by default."""
    if run is None:
        return api.recon(scan, threads=1).image.data[0]
    return api.recon(scan, weights=run, threads=1).image.data[0]


def zero_filled(scan: KSpace) -> Array:
    return np.linalg.norm(to_image(torch.from_numpy(np.asarray(scan.data))).numpy(), axis=0)


def trained(recipe: str, words: argparse.Namespace, folder: Path) -> tuple[Path, float]:
    """The run of a training, and its CPU seconds."""
    pictures = folder / "pictures"
    for name in PICTURES:
        link = pictures / name.partition(".")[0] / name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(words.data.resolve() / "mr" / name)
    start = time.process_time()
    changes = {
        "train.save_every": words.steps,
        "train.slices": words.scans,
        "raw.simulated": words.scans,
    }
    run = folder / recipe
    api.train(
        pictures,
        run,
        f"recon/{recipe}",
        steps=words.steps,
        settings=changes,
        threads=1,
        resume=True,
    )
    return run, time.process_time() - start


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=120, help="updates of every training")
    parser.add_argument(
        "--scans", type=int, default=20, help="slices of each volume, and generated scans"
    )
    parser.add_argument("--recipes", default=",".join(NETS), help="comma between")
    parser.add_argument(
        "--runs", type=Path, help="keep trainings and their rows here, and take those that are"
    )
    words: argparse.Namespace = parser.parse_args()
    torch.set_num_threads(1)
    folder = words.runs or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)

    head = brain(words.data, "pulseq_brain_flash_16ch")
    truth, inside = combined(head), object_of(head)
    head, truth = head / truth.max(), truth / truth.max()
    shape = (head.shape[1], head.shape[2])
    patterns = {r: poisson_disc(shape, r, (24, 24), 1000 + r) for r in (2, 4, 8)}
    body = brain(words.data, "pulseq_brain_flash_2ch_bodycoil")
    seen = combined(body)
    field = [ndimage.gaussian_filter(x, 12) for x in (seen * truth, truth * truth)]
    body_truth = truth * field[0] / np.maximum(field[1], 1e-6 * field[1].max())
    body, body_truth = body / body_truth.max(), body_truth / body_truth.max()

    def tested(name: str) -> dict[str, Any]:
        run, spent = None, 0.0
        if name != "l1_wavelet":
            run, spent = trained(name, words, folder)
        row: dict[str, Any] = {"method": name, "training CPU s": round(spent)}
        for r in (4, 8):
            for sigma in SIGMAS:
                image = image_of(scan_of(noisy(head, sigma), patterns[r]), run)
                db, similarity = score(image, truth, inside)
                row[f"R{r} {sigma:g}"] = f"{db:.2f} / {similarity:.3f}"
        for level in SWEEP:
            image = image_of(scan_of(noisy(head, level * SCALE), patterns[4]), run)
            row[f"sweep {level:g}"] = f"{score(image, truth, inside)[0]:.2f}"
        db, similarity = score(image_of(scan_of(body, patterns[2]), run), body_truth, inside)
        row["body coil"] = f"{db:.2f} / {similarity:.3f}"
        return row

    rows = []
    for name in ("l1_wavelet", *words.recipes.split(",")):
        kept = folder / f"{name}.json"
        if not kept.exists():
            kept.write_text(json.dumps(tested(name)))
        rows.append(json.loads(kept.read_text()))
    row: dict[str, Any] = {"method": "zero-filled", "training CPU s": 0}
    for r in (4, 8):
        for sigma in SIGMAS:
            plain = zero_filled(scan_of(noisy(head, sigma), patterns[r]))
            db, similarity = score(plain, truth, inside)
            row[f"R{r} {sigma:g}"] = f"{db:.2f} / {similarity:.3f}"
    plain = zero_filled(scan_of(body, patterns[2]))
    row["body coil"] = "{:.2f} / {:.3f}".format(*score(plain, body_truth, inside))
    rows.append(row)
    show(
        "noise2recon",
        __doc__.split("\n\n")[1].replace("\n", " "),
        rows,
        as_json=words.json,
        notes=[
            f"{words.steps} updates, batch 1, {words.scans} slices of each volume and as many "
            "generated scans, one CPU thread"
        ],
    )


if __name__ == "__main__":
    main()
