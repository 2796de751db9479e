"""The numbers that the recipes of single-scan nets are known for."""

import nibabel as nib
import numpy as np
import pytest
import torch

from medssl import config
from medssl.core.batch import Noisy
from medssl.core.random import stream
from medssl.data.patches import HELD, crops, one
from medssl.engine.build import restorer
from medssl.engine.fit import fit
from medssl.method import Facts
from medssl.metrics.image import psnr
from medssl.physics.noise import Rician
from medssl.physics.stabilise import Stabiliser


@pytest.mark.paper
@pytest.mark.slow
@pytest.mark.data
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["noise2score", "r2r", "zs_n2n", "noise2void", "sure"])
def test_t1_at_7_percent(data_folder, name):
    """Learnt from the crop alone, 20 to 90 CPU seconds; sigma as added, PSNR of the foreground."""
    volume = nib.load(data_folder / "mr" / "chris_t1.nii.gz").get_fdata()[16:96, 90:170, 95:119]
    x = np.minimum(volume.clip(0) / np.percentile(volume.clip(0), 99.9), 1.0)
    rng = np.random.default_rng(0)
    real, imaginary = rng.standard_normal(x.shape), rng.standard_normal(x.shape)
    y = np.hypot(x + 0.07 * real, 0.07 * imaginary).astype(np.float32)
    stabiliser = Stabiliser(Rician(0.07))
    z = stabiliser.forward(torch.from_numpy(y))
    recipe = config.load("denoise", name)
    train, expect = recipe.train, recipe.expect
    method, _ = restorer(recipe, Facts(shape=tuple(z.shape), spacing=(0.88, 0.88, 0.88)))
    words = {"size": train.crop, "seed": 0}
    batches = crops([z], [None], count=train.batch, steps=train.steps, **words)

    def held():
        return one([z], [None], count=4, step=HELD, progress=1.0, **words)

    fit(method, batches, train, held=held)
    with torch.no_grad():
        batch = Noisy(z[None, None], generator=stream(0, "r"))
        clean = stabiliser.inverse(method.restore(batch)[0, 0]).float()
    truth = torch.from_numpy(x)
    found = psnr(clean, truth, peak=1, where=truth > 0.1)
    assert found == pytest.approx(expect.value, abs=expect.tolerance)
