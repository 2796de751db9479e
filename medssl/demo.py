"""The main job on two scans that need no download: a real MR and a generated low-dose CT."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from medssl import api
from medssl.core.errors import OutputError
from medssl.core.progress import Progress
from medssl.core.random import stream
from medssl.io import atomic, example_series
from medssl.io.read import read
from medssl.physics.low_dose import simulate_low_dose
from medssl.physics.phantom import abdomen

REAL_SCAN = "example4d.nii.gz"
"""Ships with nibabel: two echo-planar volumes of a head, 128x96x24, int16."""
CT_SHAPE = (256, 256, 12)
CT_SPACING = (1.5, 1.5, 3.0)
"""mm."""
PHOTONS = 1.0e5
"""Per ray; about a quarter of a routine dose for this phantom."""
BODY = -500.0
"""HU; what is brighter is patient."""


@dataclass(frozen=True)
class Demo:
    """What was made and gained."""

    text: str
    record: dict[str, Any]


def demo(folder: str | Path, *, overwrite: bool = False, progress: Progress | None = None) -> Demo:
    """Denoise both scans into a folder.

    Args:
        folder: Made when it is not there; its parent must exist.
        overwrite: Replace the outputs of an earlier demo.
        progress: Told how far the work is.

    Returns:
        Text for people and the numbers behind it.

    Raises:
        OutputError: The folder cannot be made, or holds the outputs already.
    """
    folder = Path(folder)
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot be made ({error.strerror})", "choose another folder", file=folder
        ) from error
    mr = _real_mr(folder, overwrite, progress)
    ct = _low_dose_ct(folder, overwrite, progress)
    lines = [
        f"Real MR scan ({mr['input']}): {mr['line']}",
        f"  expected gain without the truth: about {mr['gain_db']:.1f} dB",
        f"  output:  {mr['output']}",
        f"  preview: {mr['preview']}",
        f"Generated low-dose CT series ({CT_SHAPE[2]} DICOM slices): {ct['line']}",
        f"  error in the body against the noise-free truth: "
        f"{ct['error_before']:.1f} HU -> {ct['error_after']:.1f} HU "
        f"(gain {ct['gain_db']:.1f} dB)",
        f"  output:  {ct['output']}",
        f"  preview: {ct['preview']}",
        "Research use only. Not a medical device.",
    ]
    return Demo("\n".join(lines), {"mr": mr, "ct": ct})


def low_dose_ct(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """A generated abdomen (x, y, z) in HU, without and with the noise of few photons."""
    return simulate_low_dose(
        abdomen(shape, spacing), spacing, photons=PHOTONS, generator=stream(seed, "demo/ct")
    )


def _real_mr(folder: Path, overwrite: bool, progress: Progress | None) -> dict[str, Any]:
    source = Path(nib.__file__).parent / "tests" / "data" / REAL_SCAN
    done = api.denoise(source, folder / "mr.nii.gz", overwrite=overwrite, progress=progress)
    return {
        "input": f"nibabel's {REAL_SCAN}",
        "line": done.line,
        "gain_db": done.qc["predicted"]["gain_db"],
        "output": str(done.image),
        "preview": str(folder / "mr.preview.png"),
    }


def _low_dose_ct(folder: Path, overwrite: bool, progress: Progress | None) -> dict[str, Any]:
    clean, noisy = low_dose_ct(CT_SHAPE, CT_SPACING, seed=0)
    source = folder / "ct_low_dose"
    with atomic.folder(source, overwrite=overwrite) as partial:
        example_series.ct_series(partial, noisy.numpy(), CT_SPACING)
    done = api.denoise(
        source, folder / "ct_low_dose_denoised", overwrite=overwrite, progress=progress
    )
    truth = clean.numpy()
    body = truth > BODY
    errors = [
        float(np.sqrt(((read(path).data[0] - truth)[body] ** 2).mean()))
        for path in (source, done.image)
    ]
    return {
        "input": str(source),
        "line": done.line,
        "error_before": errors[0],
        "error_after": errors[1],
        "gain_db": float(20 * np.log10(errors[0] / errors[1])),
        "output": str(done.image),
        "preview": str(folder / "ct_low_dose_denoised.preview.png"),
    }
