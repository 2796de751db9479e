"""Learned denoisers on Set12 with Gaussian noise of 25/255: PSNR against steps of the training.

The paper's U-Net (`noise2score_natural`) learns from BSD68, to which noise of 25/255 is added once,
and is judged on the authors' noisy Set12; the small nets of single scans (`noise2score`, `r2r`)
learn from those 12 noisy images themselves. PSNR of the output clipped to [0, 1], mean of 12;
clean images are only used to judge. The default size is bounded to minutes of one CPU thread;
`--full` is the paper's schedule, for which training images are supplied with `--images`.
"""

import argparse
import dataclasses
import time
from pathlib import Path

import numpy as np
import torch
from _table import arguments, show
from PIL import Image
from torch import Tensor

from medssl import config
from medssl.config import Recipe, Train
from medssl.core.batch import Noisy
from medssl.core.errors import InputError
from medssl.core.random import stream
from medssl.data.patches import crops
from medssl.engine.build import restorer
from medssl.engine.fit import fit
from medssl.method import Restorer
from medssl.metrics.image import psnr

SIGMA = 25 / 255
FULL_STEPS = 275_000
"""22 000 patches in each of 100 epochs, 8 at a time."""


def picture(path: Path) -> Tensor:
    with Image.open(path) as opened:
        return torch.from_numpy(np.asarray(opened.convert("L"), np.float32) / 255)


def training(folder: Path) -> list[Tensor]:
    """Noisy pictures, their noise drawn once."""
    noisy = []
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".png", ".jpg", ".bmp")):
        x = picture(path)
        noisy.append(x + SIGMA * torch.randn(x.shape, generator=stream(0, path.name)))
    return noisy


def testing(data: Path) -> list[tuple[Tensor, Tensor]]:
    """Clean and noisy Set12."""
    clean = sorted((data / "natural" / "Set12").glob("*.png"))
    folder = data / "natural" / "Set12_noisy" / "g25"
    return [
        (picture(path), torch.from_numpy(np.load(folder / f"{path.stem}.npy")).float().squeeze())
        for path in clean
    ]


def judged(method: Restorer, pairs: list[tuple[Tensor, Tensor]]) -> float:
    """Mean PSNR."""
    unit = 1.0 if method.domain == "unit" else SIGMA
    method.eval()
    values = []
    for x, y in pairs:
        batch = Noisy(
            y[None, None] / unit,
            sigma=torch.tensor(SIGMA / unit),
            generator=stream(0, "judge"),
        )
        with torch.no_grad():
            out = (method.restore(batch)[0, 0] * unit).clamp(0, 1)
        values.append(psnr(out, x, peak=1))
    method.train()
    return sum(values) / len(values)


def curve(
    recipe: Recipe, images: list[Tensor], pairs: list[tuple[Tensor, Tensor]], train: Train
) -> list[dict[str, object]]:
    """Train, and judge four times on the way."""
    method, _ = restorer(recipe)
    unit = 1.0 if method.domain == "unit" else SIGMA
    seen = [y / unit for y in images]
    rows: list[dict[str, object]] = []
    spent, mark = 0.0, time.process_time()

    def note(step: int, psnr_: float) -> None:
        rows.append(
            {
                "recipe": recipe.name,
                "parameters": sum(p.numel() for p in method.parameters()),
                "learns from": f"{len(images)} noisy images",
                "step": step,
                "CPU s": round(spent),
                "Set12 g25 dB": round(psnr_, 2),
            }
        )

    def on_step(step: int, steps: int, terms: dict[str, float]) -> None:
        nonlocal spent, mark
        del terms
        if step % max(1, steps // 4) == 0 and step < steps:
            spent += time.process_time() - mark
            note(step, judged(method, pairs))
            mark = time.process_time()

    batches = crops(
        seen,
        [None] * len(seen),
        size=train.crop,
        count=train.batch,
        steps=train.steps,
        seed=0,
        multiple=1,
    )
    fit(method, batches, train, on_step)
    spent += time.process_time() - mark
    note(train.steps, judged(method, pairs))
    if recipe.name == "noise2score_natural":
        blind, _ = restorer(
            dataclasses.replace(recipe, values=dict(recipe.values) | {"level": "blind"})
        )
        blind.load_state_dict(method.state_dict())
        try:
            rows[-1]["blind dB"] = round(judged(blind, pairs), 2)
        except InputError as error:
            rows[-1]["blind dB"] = str(error)
    return rows


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="folder of clean training pictures")
    parser.add_argument("--full", action="store_true", help="the paper's schedule")
    parser.add_argument("--steps", type=int, default=400, help="of each training")
    parser.add_argument(
        "--recipes", default="noise2score,r2r,noise2score_natural", help="comma between"
    )
    words: argparse.Namespace = parser.parse_args()
    torch.set_num_threads(1)
    pairs = testing(words.data)
    rows: list[dict[str, object]] = []
    notes = []
    for name in words.recipes.split(","):
        recipe = config.load("denoise", name)
        assert recipe.train is not None
        if name == "noise2score_natural":
            folder = words.images or words.data / "natural" / "BSD68"
            images = training(folder)
            train = dataclasses.replace(recipe.train, steps=words.steps, crop=64, batch=8)
            if words.full:
                train = dataclasses.replace(recipe.train, steps=FULL_STEPS)
                values = dict(recipe.values) | {"restarts": 100}
                recipe = dataclasses.replace(recipe, values=values)
            notes.append(f"noise2score_natural: {len(images)} pictures of {folder.name}")
        else:
            images = [y for _, y in pairs]
            train = dataclasses.replace(recipe.train, steps=words.steps, crop=64, batch=8)
        rows += curve(recipe, images, pairs, train)
    show(
        "noise2score",
        __doc__.split("\n\n")[1].replace("\n", " "),
        rows,
        as_json=words.json,
        notes=notes,
    )


if __name__ == "__main__":
    main()
