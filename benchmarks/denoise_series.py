"""Series of volumes: MP-PCA, Patch2Self and volume by volume, beside dipy where it is installed.

Phantoms of `medssl.physics.phantom`, Rician noise of seed 0: diffusion (10 volumes with b = 0, 30
directions each with b = 1000 and 2000 s/mm^2, noise 1/SNR of white matter at b = 0) and a task (48
volumes, three regions that change by 3 %, noise 0.02). Nobody is told the noise. PSNR in the brain
(diffusion) or head (above 0.1), peak 1, no clipping; FA error is the mean absolute error against
the tensors of the noise-free phantom in white matter, b <= 1000; `response` is the slope of the
fitted on the true response to the task, and its error in % of the signal. CPU seconds are of one
thread with noise estimate and self-check, to be compared within one run only.
"""

import contextlib
import io
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from _table import arguments, show
from torch import Tensor

from medssl import api
from medssl.metrics.image import psnr
from medssl.physics.noise import Rician
from medssl.physics.phantom import activation, diffusion, sphere

SHAPE = (40, 44, 20)
SHELLS = {0: 10, 1000: 30, 2000: 30}
SNR = (10, 20, 30)
WHITE = 0.5
"""Signal of white matter in the phantom at b = 0."""
TASK_NOISE = 0.02
Denoiser = Callable[[Tensor, Tensor | None], Tensor]


def medssl(method: str) -> Denoiser:
    """`medssl denoise --method`, volumes first."""

    def run(series: Tensor, b_values: Tensor | None) -> Tensor:
        words = None if b_values is None else b_values.tolist()
        done = api.denoise(series.movedim(0, -1), method=method, bval=words, threads=1)
        return done.image.movedim(-1, 0)

    return run


def peers() -> tuple[dict[str, Denoiser], list[str]]:
    """dipy's two methods for series at their defaults, or why they are missing."""
    try:
        from dipy.denoise.localpca import mppca
        from dipy.denoise.patch2self import patch2self
    except ImportError:
        return {}, ["dipy is not installed: `pip install medssl[bench]`"]

    def dipy_mppca(series: Tensor, b_values: Tensor | None) -> Tensor:
        del b_values
        return torch.from_numpy(mppca(series.movedim(0, -1).numpy())).movedim(-1, 0)

    def dipy_patch2self(series: Tensor, b_values: Tensor | None) -> Tensor:
        if b_values is None:
            raise ValueError("patch2self needs b-values")
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            clean = patch2self(series.movedim(0, -1).numpy(), b_values.numpy())
        return torch.from_numpy(np.asarray(clean, np.float32)).movedim(-1, 0)

    return {"dipy mppca": dipy_mppca, "dipy patch2self": dipy_patch2self}, []


def anisotropy(series: Tensor, b_values: Tensor, directions: Tensor) -> Tensor:
    """(*spatial) fractional anisotropy of the tensor fitted to the logarithms by least squares."""
    low = b_values <= 1000
    g, b = directions[low].double(), b_values[low].double()
    x, y, z = g.T
    products = [x * x, y * y, z * z, 2 * x * y, 2 * x * z, 2 * y * z]
    design = torch.stack([*[-b * p for p in products], torch.ones_like(b)], 1)
    values = series[low].double().clamp_min(1e-4).log().flatten(1)
    d = (torch.linalg.pinv(design) @ values)[:6]
    rows = [[d[0], d[3], d[4]], [d[3], d[1], d[5]], [d[4], d[5], d[2]]]
    tensor = torch.stack([torch.stack(row, -1) for row in rows], -2)
    along = torch.linalg.eigvalsh(tensor).clamp_min(0)
    spread = along - along.mean(-1, keepdim=True)
    ratio = spread.square().sum(-1) / along.square().sum(-1).clamp_min(1e-20)
    return (1.5 * ratio).sqrt().reshape(series.shape[1:])


def diffusion_rows(methods: dict[str, Denoiser]) -> list[dict[str, object]]:
    """One row for each noise and method."""
    b_values = torch.cat([torch.full((n,), float(b)) for b, n in SHELLS.items()])
    directions = torch.cat([sphere(n) for n in SHELLS.values()])
    truth = diffusion(SHAPE, b_values, directions)
    brain = truth[0] > 0.1
    reference = anisotropy(truth, b_values, directions)
    fibres = brain & (reference > 0.3)
    rows = []
    for snr in SNR:
        noisy = Rician(WHITE / snr).sample(truth, torch.Generator().manual_seed(0))
        for name, denoiser in methods.items():
            start = time.process_time()
            clean = denoiser(noisy, b_values)
            seconds = time.process_time() - start
            row: dict[str, object] = {"series": f"diffusion, SNR {snr}", "method": name}
            for b in SHELLS:
                at = b_values == b
                where = brain.expand(truth[at].shape)
                row[f"b{b} dB"] = round(psnr(clean[at], truth[at], peak=1, where=where), 2)
            error = anisotropy(clean, b_values, directions) - reference
            row["FA error"] = round(float(error[fibres].abs().mean()), 4)
            row["CPU s"] = round(seconds, 2)
            rows.append(row)
    return rows


def task_rows(methods: dict[str, Denoiser]) -> list[dict[str, object]]:
    """How much of the response to a task is kept."""
    truth, region, course = activation(SHAPE, 48)
    noisy = Rician(TASK_NOISE).sample(truth, torch.Generator().manual_seed(0))
    where = (truth[0] > 0.1).expand(truth.shape)
    active = (region > 0.5) & (truth[0] > 0.1)

    def response(series: Tensor) -> Tensor:
        """Change of each region's voxels along its own course, as a share of their mean."""
        mean = series.mean(0)
        found = []
        for k, one in enumerate(course):
            task = one - one.mean()
            beta = torch.tensordot(task, series, 1) / task.square().sum() / mean
            found.append(beta[active[k]])
        return torch.cat(found)

    expected = response(truth)
    rows = []
    for name, denoiser in methods.items():
        start = time.process_time()
        clean = denoiser(noisy, None)
        seconds = time.process_time() - start
        found = response(clean)
        row: dict[str, object] = {"series": "task, 48 volumes", "method": name}
        row["dB"] = round(psnr(clean, truth, peak=1, where=where), 2)
        row["response"] = round(float((found @ expected) / (expected @ expected)), 3)
        row["response error %"] = round(100 * float((found - expected).square().mean().sqrt()), 3)
        row["CPU s"] = round(seconds, 2)
        rows.append(row)
    return rows


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    words = parser.parse_args()
    torch.set_num_threads(1)
    others, notes = peers()
    own = {f"medssl {name}": medssl(name) for name in ("auto", "mppca", "patch2self")}
    own["medssl collaborative, one by one"] = medssl("collaborative")
    methods = {"noisy": lambda series, _: series} | own | others
    rows = diffusion_rows(methods)
    rows += task_rows({name: m for name, m in methods.items() if "patch2self" not in name})
    protocol = __doc__.split("\n\n")[1].replace("\n", " ")
    show("denoise_series", protocol, rows, as_json=words.json, notes=notes)


if __name__ == "__main__":
    main()
