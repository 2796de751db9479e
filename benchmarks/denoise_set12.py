"""Denoising of pictures with Gaussian, Poisson and Gamma noise: Set12 as in the Noise2Score paper.

The authors' noisy files (float32, peak 1, not clipped before filtering); PSNR of the result clipped
to [0, 1], mean over the images; SSIM with a Gaussian window of 1.5. Known: law and level are told
to every method, peers in the same variance stabilisation with exact inverse. Blind: medssl finds
both. CPU seconds are of one thread, per image, to be compared within one run only.

Literature (Kim, Ye. Noise2Score. NeurIPS 2021, known level): 30.13 / 31.58 / 33.01 dB, by a network
trained on natural images. BM3D's wheel is free for non-commercial use only; it is measured where
it is installed and never needed.
"""

import importlib.util
import warnings
from collections.abc import Callable

import numpy as np
import torch
from _peers import similarity, stabilised
from _table import arguments, measure, show
from PIL import Image as Picture
from skimage.restoration import denoise_nl_means, denoise_tv_chambolle, denoise_wavelet

from medssl import api
from medssl.core.batch import Noisy
from medssl.denoise.collaborative import Config
from medssl.physics.noise import Gamma, Gaussian, Law, Poisson
from medssl.physics.stabilise import Stabiliser

LAWS: dict[str, tuple[str, Law]] = {
    "Gaussian 25/255": ("g25", Gaussian(25 / 255)),
    "Poisson 0.01": ("poisson_0.01", Poisson(0.01)),
    "Gamma 100": ("gamma_100", Gamma(100.0)),
}
Array = np.ndarray
Denoiser = Callable[[Array, Law], Array]
"""Noisy picture and its law."""


def ours(*, grouping: bool, bank: bool) -> Denoiser:
    """medssl's filter of a quality, told law and level."""

    def run(y: Array, law: Law) -> Array:
        stabiliser = Stabiliser(law)
        method = Config(grouping=grouping, bank=bank).build()
        batch = Noisy(stabiliser.forward(torch.from_numpy(y))[None, None])

        def trust(restored: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            signal = stabiliser.inverse(restored)
            return stabiliser.residual_variance(signal), torch.ones_like(signal)

        method.settle([batch], trust)
        return stabiliser.inverse(method.restore(batch)[0, 0]).numpy()

    return run


def blind(quality: str) -> Denoiser:
    def run(y: Array, law: Law) -> Array:
        del law
        return api.denoise(y, quality=quality, threads=1).image

    return run


def peer(method: Callable[[Array], Array]) -> Denoiser:
    """A method for unit Gaussian noise, in the stabilised domain and in double precision."""

    def run(y: Array, law: Law) -> Array:
        return stabilised(law, y, lambda z: method(z.astype(np.float64)))

    return run


def bm3d_unit(z: Array) -> Array:
    from bm3d import bm3d

    scale = float(np.ptp(z))
    return bm3d(z / scale, 1 / scale) * scale


METHODS: dict[str, Denoiser] = {
    "medssl fast, known": ours(grouping=False, bank=False),
    "medssl standard, known": ours(grouping=True, bank=False),
    "medssl high, known": ours(grouping=True, bank=True),
    "medssl standard, blind": blind("standard"),
    "skimage NLM, known": peer(
        lambda z: denoise_nl_means(z, patch_size=5, patch_distance=6, h=0.7, sigma=1.0)
    ),
    "skimage TV, known": peer(lambda z: denoise_tv_chambolle(z, weight=1.0)),
    "skimage wavelet, known": peer(
        lambda z: denoise_wavelet(z, sigma=1.0, wavelet="db2", rescale_sigma=False)
    ),
}


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--laws", nargs="+", choices=LAWS, default=list(LAWS))
    parser.add_argument("--images", nargs="+", type=int, default=list(range(1, 13)))
    parser.add_argument("--methods", nargs="+", help="those whose name contains one of the words")
    words = parser.parse_args()
    torch.set_num_threads(1)
    every, notes = dict(METHODS), []
    if importlib.util.find_spec("bm3d") is None:
        notes.append("skipped, not installed: BM3D (bm3d)")
    else:
        every["BM3D, known"] = peer(bm3d_unit)
    if words.methods:
        every = {n: m for n, m in every.items() if any(w in n for w in words.methods)}
    folder = words.data / "natural"
    rows: list[dict[str, object]] = []
    if not (folder / "Set12_noisy").is_dir():
        notes.append("Set12 is not in the data folder; skipped")
        words.laws = []
    for name in words.laws:
        file, law = LAWS[name]
        pairs = []
        for k in words.images:
            picture = Picture.open(folder / "Set12" / f"{k:02d}.png")
            noisy = np.load(folder / "Set12_noisy" / file / f"{k:02d}.npy").squeeze()
            pairs.append((np.asarray(picture, np.float64) / 255, noisy.astype(np.float32)))
        rows.append({"noise": name, "method": "noisy"} | judged(pairs, [y for _, y in pairs]))
        for method, denoiser in every.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                done = measure(lambda d=denoiser, p=pairs, w=law: [d(y, w) for _, y in p])
            row = {"noise": name, "method": method} | judged(pairs, done.result)
            row |= {"CPU s": round(done.cpu_seconds / len(pairs), 2)}
            rows.append(row | {"peak MB": round(done.peak_mb)})
    show(
        "denoise_set12",
        " ".join(__doc__.split("\n\n")[1].split()),
        rows,
        as_json=words.json,
        notes=notes,
    )


def judged(pairs: list[tuple[Array, Array]], results: list[Array]) -> dict[str, object]:
    """Mean PSNR and SSIM of pictures."""
    decibels, likeness = [], []
    for (x, _), out in zip(pairs, results, strict=True):
        clean = np.clip(out.astype(np.float64), 0, 1)
        decibels.append(-10 * np.log10(np.mean((clean - x) ** 2)))
        likeness.append(similarity(x, clean)[0])
    return {"dB": round(float(np.mean(decibels)), 2), "SSIM": round(float(np.mean(likeness)), 3)}


if __name__ == "__main__":
    main()
