"""Which noise law is found, and how strong, when noise of a known law was added to a scan.

Every law at 1, 3, 7 and 12 % of the peak (Poisson and Gamma: of that strength at the peak; chi: 4
coils), seed 0. Phantoms are free of noise; crops of real scans and the Set12 pictures carry
their own, which competes with what is added at 1 %. Crops are said to be MR, phantoms and `unknown`
pictures have no modality. `unsure` is an answer with odds below 3:1. Level: estimated over true
standard deviation, over the cases whose law is right or given away by nothing else, at 3 to 12 %.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import torch
from _table import arguments, show
from PIL import Image as Picture
from torch import Tensor

from medssl.core.random import stream
from medssl.denoise.collaborative import block_for
from medssl.nets.sliding_dct import sliding_dct
from medssl.physics.noise import Gamma, Gaussian, Law, NonCentralChi, Poisson, Rician
from medssl.physics.noise_level import NoiseEstimate, estimate
from medssl.physics.phantom import head

CROPS = {
    "T1": ("mr/chris_t1.nii.gz", (slice(16, 96), slice(90, 170), slice(95, 119))),
    "Gd": ("mr/MR_Gd.nii.gz", (slice(48, 128), slice(60, 140), slice(60, 84))),
    "body": ("mr/example_mr_sm.nii.gz", (slice(None), slice(None), slice(None))),
}
LEVELS = (0.01, 0.03, 0.07, 0.12)
SEEDS = (0,)
PICTURES = ("01", "05", "08")


class Scan(NamedTuple):
    """What noise is added to."""

    name: str
    image: Tensor
    spacing: tuple[float, ...]
    modality: str
    laws: tuple[str, ...]


def laws(level: float) -> dict[str, Law]:
    """All laws of one strength."""
    return {
        "gaussian": Gaussian(level),
        "rician": Rician(level),
        "chi": NonCentralChi(level, 4.0),
        "poisson": Poisson(level**2),
        "gamma": Gamma(1 / level**2),
    }


def field(shape: tuple[int, ...], power: float, seed: int) -> np.ndarray:
    """A random field whose spectrum falls with a power of the frequency, mean 0, deviation 1."""
    white = np.random.default_rng(seed).standard_normal(shape)
    axes = np.meshgrid(*[np.fft.fftfreq(n) for n in shape], indexing="ij")
    frequency = np.sqrt(sum(a**2 for a in axes))
    frequency.flat[0] = 1
    shaped = np.fft.fftn(white) * frequency**-power * np.exp(-((frequency / 0.25) ** 2))
    found = np.fft.ifftn(shaped).real
    return (found - found.mean()) / found.std()


def organs(shape: tuple[int, ...], seed: int, *, air: bool, texture: float) -> Tensor:
    """Textured organs with soft and crooked borders, in air or filling the image."""
    image = np.full(shape, 0.3)
    for k, value in enumerate((0.5, 0.75, 0.95, 0.15, 0.6)):
        inside = 1 / (1 + np.exp(-8 * (field(shape, 2.6, 10 * seed + k) - 0.5)))
        image += (value - image) * inside
    image *= 1 + texture * field(shape, 1.5, seed + 77) + 0.08 * field(shape, 4, seed + 99)
    if air:
        axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
        radius = np.sqrt(sum((a / 0.85) ** 2 for a in axes))
        image *= np.clip((1 - radius) * max(shape) / 4 + 0.5, 0, 1)
    return torch.from_numpy(np.clip(image, 0, 1).astype(np.float32))


def scans(folder: Path) -> Iterator[Scan]:
    """Phantoms, and what of the real scans is there."""
    every = tuple(laws(0.1))
    yield Scan("head", head((96, 96, 64))[:, :, 20:44], (1.0, 1.0, 1.0), "", every)
    for k, (air, texture) in enumerate(((True, 0.03), (False, 0.05), (True, 0.1))):
        image = organs((64, 64, 32), k, air=air, texture=texture)
        yield Scan(f"organs {k}", image, (1.0, 1.0, 1.0), "", every)
    thick = organs((96, 96, 12), 7, air=True, texture=0.05)
    yield Scan("thick slices", thick, (1.0, 1.0, 5.0), "MR", every)
    for name, (path, part) in CROPS.items():
        if (folder / path).is_file():
            stored = nib.load(folder / path)
            x = np.clip(stored.get_fdata()[part], 0, None)
            x = np.minimum(x / np.percentile(x, 99.9), 1).astype(np.float32)
            spacing = tuple(float(v) for v in stored.header.get_zooms()[:3])
            yield Scan(name, torch.from_numpy(x.copy()), spacing, "MR", every)
    for name in PICTURES:
        path = folder / "natural" / "Set12" / f"{name}.png"
        if path.is_file():
            image = torch.from_numpy(np.asarray(Picture.open(path), np.float32) / 255)
            yield Scan(f"Set12 {name}", image, (1.0, 1.0), "PICTURE", (every[0], *every[3:]))
            yield Scan(f"Set12 {name} unknown", image, (1.0, 1.0), "", every)


def found(scan: Scan, noisy: Tensor) -> NoiseEstimate:
    """What the library says, with its fast filter."""
    block, step = block_for(tuple(noisy.shape), scan.spacing, correlated=False)
    return estimate(
        noisy,
        scan.spacing,
        smooth=lambda z: sliding_dct(z, block=block, step=step, hard=2.8),
        modality=scan.modality,
    )


def ratio(noise: NoiseEstimate, truth: Law) -> float:
    """Standard deviation found over true at the peak."""
    one = torch.ones(1)
    return float((noise.law.variance(one) / truth.variance(one)).sqrt())


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--cases", action="store_true", help="a row for every scan and level")
    words = parser.parse_args()
    torch.set_num_threads(1)
    names = tuple(laws(0.1))
    answers = {name: dict.fromkeys((*names, "unsure"), 0) for name in names}
    ratios: dict[str, list[float]] = {name: [] for name in names}
    cases, start, count = [], time.process_time(), 0
    for scan in scans(words.data):
        for level in LEVELS:
            row: dict[str, object] = {"scan": scan.name, "noise %": round(100 * level)}
            for name in scan.laws:
                said = []
                for seed in SEEDS:
                    truth = laws(level)[name]
                    noise = found(scan, truth.sample(scan.image, stream(seed, name)))
                    answer = "unsure" if noise.confidence == "unsure" else noise.law.name
                    answers[name][answer] += 1
                    said.append(answer if answer != name else "right")
                    if level > 0.01 and noise.law.name == name:
                        ratios[name].append(ratio(noise, truth))
                    count += 1
                row[name] = ", ".join(dict.fromkeys(said))
            cases.append(row)
    rows = []
    for name in names:
        wrong = sum(n for other, n in answers[name].items() if other not in (name, "unsure"))
        level = ratios[name]
        rows.append(
            {"true law": name}
            | answers[name]
            | {"wrong": wrong, "level 3-12 %": f"{min(level):.2f} - {max(level):.2f}"}
        )
    total = sum(sum(row.values()) for row in answers.values())
    unsure = sum(row["unsure"] for row in answers.values())
    right = sum(answers[name][name] for name in names)
    seconds = time.process_time() - start
    notes = [
        f"right in {right} of {total - unsure} answered cases ({right / (total - unsure):.1%}), "
        f"unsure in {unsure} of {total} ({unsure / total:.1%}); {seconds / count:.2f} CPU s a case"
    ]
    protocol = __doc__.split("\n\n")[1].replace("\n", " ")
    if words.cases:
        rows = [*rows, *cases]
    show("noise_law", protocol, rows, as_json=words.json, notes=notes)


if __name__ == "__main__":
    main()
