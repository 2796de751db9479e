"""Series through the whole journey: what is chosen, kept, refused, and never made worse."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from medssl import api
from medssl.core.errors import InputError
from medssl.core.random import stream
from medssl.core.shapes import tiles
from medssl.physics.noise import Rician
from medssl.physics.phantom import diffusion, head, sphere

B_VALUES = [0.0] * 10 + [1000.0] * 14
SNR = 20


def dwi(shape=(20, 22, 12), b_values=B_VALUES):
    """Truth and noisy series, volumes last."""
    b = torch.tensor(b_values)
    truth = diffusion(shape, b, sphere(len(b)))
    noisy = Rician(0.5 / SNR).sample(truth, stream(0, "noise"))
    return truth.movedim(0, -1).numpy(), noisy.movedim(0, -1).numpy()


def error(image, truth):
    where = truth > 0.02
    return float(np.square(image - truth)[where].mean())


@pytest.fixture(scope="module")
def auto():
    truth, noisy = dwi()
    return truth, noisy, api.denoise(noisy, bval=B_VALUES)


def test_long_series_are_seen_at_once(auto):
    truth, noisy, done = auto
    assert done.choice.recipe.name == "mppca"
    assert "at once" in done.choice.why
    assert done.noise.sigma == pytest.approx(0.5 / SNR, rel=0.03)
    found = error(done.image, truth) / done.noise.sigma**2
    assert found < 0.25 * error(noisy, truth) / done.noise.sigma**2
    assert done.qc["predicted"]["error_in_noise_variances"] == pytest.approx(found, abs=0.1)


def test_short_series_go_one_by_one(auto):
    _, noisy, _ = auto
    done = api.denoise(noisy[..., :4], sigma=0.025)
    assert done.choice.recipe.method == "collaborative"


@pytest.mark.parametrize("method", ["mppca", "patch2self"])
def test_joint_methods_agree_between_tiles_and_the_whole(method):
    import dataclasses

    from medssl.core.run import Run
    from medssl.engine import estimate, infer
    from medssl.engine.device import machine
    from medssl.engine.restore import Request, prepare
    from medssl.engine.settle import settle
    from medssl.io.memory import from_array

    _, noisy = dwi()
    image = dataclasses.replace(from_array(noisy, np.eye(4)), b_values=tuple(B_VALUES))
    request = Request.of(method, {}, estimate.Asked(), None, 0)
    ready = prepare(image, request, machine("cpu"), Run("denoise"))
    settle(ready.scale, image, torch.device("cpu"), 0)
    whole, _ = infer.infer(ready.scale, ready.image, ready.plan)
    assert ready.plan.n_tiles == 1
    count = len(list(tiles(image.shape, (8, 8, 8), ready.plan.halo)))
    halo = ready.scale.method.halo(image.shape)
    cut = dataclasses.replace(ready.plan, tile=(8, 8, 8), halo=halo, n_tiles=count)
    tiled, _ = infer.infer(ready.scale, ready.image, cut)
    assert np.abs(tiled - whole).max() < 0.02 * ready.noise.sigma


def test_zeros_and_invalid_voxels_come_back(auto):
    _, noisy, _ = auto
    noisy = noisy.copy()
    noisy[:, :8] = 0
    noisy[10, 12, 5, 3] = np.nan
    clean = api.denoise(noisy, method="mppca").image
    assert (clean[:, :8] == 0).all()
    assert np.isnan(clean[10, 12, 5, 3])
    assert np.isfinite(clean).sum() == clean.size - 1


@pytest.mark.parametrize(
    "part",
    [
        np.s_[:, :, 5:6, :],
        np.s_[:, :, 4:6, :],
        np.s_[8:13, 8:13, 3:8, :20],
        np.s_[9:12, 9:12, 4:7, :],
        np.s_[:, :, 5, :],
        np.s_[:, :, :, :2],
        np.s_[:, :, :, :7],
    ],
)
@pytest.mark.parametrize("masked", [False, True])
def test_thin_and_tiny_series_are_never_worse(auto, part, masked):
    truth, noisy, _ = auto
    truth, noisy = truth[part], noisy[part]
    if noisy.ndim == 3:
        truth, noisy = truth[:, :, None], noisy[:, :, None]
    if masked:
        inside = truth[..., :1] > 0.3
        truth, noisy = truth * inside, noisy * inside
    clean = api.denoise(noisy, quality="fast").image
    assert clean.shape == noisy.shape
    assert error(clean, truth) <= error(noisy, truth)


@pytest.mark.parametrize("shape", [(40, 40, 1), (40, 40, 3), (40, 2, 40), (7, 7, 7), (40, 40, 6)])
@pytest.mark.parametrize("thick", [1.0, 6.0])
def test_thin_and_tiny_volumes_are_never_worse(shape, thick):
    truth = (head(shape) * (head(shape) > 0.1)).numpy()
    noisy = Rician(0.07).sample(torch.from_numpy(truth), stream(0, "noise")).numpy()
    noisy[truth == 0] = 0
    clean, _ = api.denoise((noisy, np.diag([1.0, 1.0, thick, 1.0]))).image
    assert (clean[truth == 0] == 0).all()
    assert error(clean, truth) <= error(noisy, truth)


def test_b_values_come_from_beside_the_scan_or_from_the_call(medssl, nifti, tmp_path):
    _, noisy = dwi((12, 12, 6))
    path = nifti((1000 * noisy).astype(np.int16), "dwi.nii")
    out = tmp_path / "out.nii"
    words = ["denoise", path, out, "--overwrite", "--no-preview", "-q"]
    code, _, err = medssl(*words, "--method", "patch2self")
    assert code == 3
    assert "dwi.nii: has no b-values" in err
    file = tmp_path / "other.bval"
    file.write_text(" ".join(map(str, B_VALUES)))
    assert medssl(*words, "--method", "patch2self", "--bval", file)[0] == 0
    file.rename(tmp_path / "dwi.bval")
    assert medssl(*words, "--method", "patch2self")[0] == 0
    assert (tmp_path / "out.bval").read_text() == (tmp_path / "dwi.bval").read_text()
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["medssl"]["recipe"]["values"]["groups"] == [
        list(range(10, 24)),
        list(range(10)),
    ]


def test_b_values_that_do_not_count_are_refused_or_left_out(medssl, nifti, tmp_path):
    _, noisy = dwi((8, 8, 6))
    path = nifti(noisy, "dwi.nii")
    few = tmp_path / "few.bval"
    few.write_text("0 1000 1000")
    code, _, err = medssl("denoise", path, "--bval", few, "--no-preview", "-q")
    assert code == 3
    assert "3 b-values for 24 volumes" in err
    few.rename(tmp_path / "dwi.bval")
    code, _, err = medssl("denoise", path, "--no-preview", "-q", "--method", "mppca")
    assert code == 0
    assert "3 b-values for 24 volumes: they are not used" in err
    bad = tmp_path / "bad.bval"
    bad.write_text("0 many")
    code, _, err = medssl("denoise", path, "--bval", bad, "--overwrite", "-q")
    assert (code, "bad.bval: many is not a b-value" in err) == (3, True)


def test_seven_volumes_are_too_few_for_patch2self(auto):
    _, noisy, _ = auto
    with pytest.raises(InputError, match="has 7 volumes, patch2self needs 10 of a kind"):
        api.denoise(noisy[..., :7], method="patch2self")


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("dipy/small_64D.nii", "mppca"),
        ("dipy/S0_10slices.nii.gz", "collaborative"),
        ("sct_dmri/dmri.nii.gz", "collaborative"),
        ("nibabel_example4d.nii.gz", "collaborative"),
    ],
)
def test_real_series_keep_their_header(data_folder: Path, tmp_path, name, method):
    source = data_folder / "dmri" / name
    out = tmp_path / Path(name).name
    done = api.denoise(source, out, preview=False, quality="fast")
    assert done.choice.recipe.method == method
    before, after = nib.load(source), nib.load(out)
    assert after.shape == before.shape
    assert after.header.binaryblock == before.header.binaryblock
    assert len(after.header.extensions) == len(before.header.extensions)
    changed = np.asarray(after.dataobj) != np.asarray(before.dataobj)
    assert changed.any()
