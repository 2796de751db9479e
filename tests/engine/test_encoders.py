"""Encoders of an earlier pretraining: whole, of the right task, and ready to be used."""

import json

import pytest
import torch

from medssl.core.errors import UsageError, WeightsError
from medssl.engine.encoders import load_encoder, volumes_of
from medssl.io import weights
from medssl.io.memory import from_array
from medssl.io.run_folder import RunFolder


def test_it_is_the_net_that_was_trained(pretrained):
    run = pretrained(seed=3)
    found = load_encoder(run, {})
    held = weights.read(run / "weights.safetensors")
    assert all(torch.equal(v, held[k]) for k, v in found.method.state_dict().items())
    assert not found.method.training
    assert found.crops.size == (16, 16)
    assert found.channels == 1
    assert found.as_dict()["seed"] == 3
    assert load_encoder(run / "weights.safetensors", {}).sha256 == found.sha256
    fresh = found.untrained(7).state_dict()
    assert not torch.equal(fresh["encoder.conv1.weight"], held["encoder.conv1.weight"])


def test_a_tampered_file_is_refused(pretrained):
    run = pretrained()
    file = run / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(WeightsError, match="damaged or another file"):
        load_encoder(run, {})


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"complete": False}, "not complete"),
        ({"recipe": {"task": "recon"}}, "of a recon recipe"),
        ({"recipe": {"task": "pretrain"}}, "damaged or of another version"),
        ({"weights": {}}, "damaged or of another version"),
    ],
)
def test_other_folders_are_refused(pretrained, change, fact):
    run = pretrained()
    record = json.loads((run / "run.json").read_text()) | change
    RunFolder(run).write_record(record)
    with pytest.raises(WeightsError, match=fact):
        load_encoder(run, {})


def test_no_run_and_no_key(pretrained, tmp_path):
    with pytest.raises(WeightsError, match="does not exist"):
        load_encoder(tmp_path / "nowhere", {})
    with pytest.raises(WeightsError, match="no folder of a training"):
        load_encoder(tmp_path, {})
    with pytest.raises(UsageError, match="did you mean"):
        load_encoder(pretrained(), {"crops.sise": 3})


def test_norms_of_masked_images_are_refused(pretrained):
    run = pretrained()
    held = weights.read(run / "weights.safetensors")
    held["calibrated"] = torch.tensor(False)
    digest = weights.write(run / "weights.safetensors", held, overwrite=True)
    record = json.loads((run / "run.json").read_text()) | {"weights": {"sha256": digest}}
    RunFolder(run).write_record(record)
    with pytest.raises(WeightsError, match="masked images alone"):
        load_encoder(run, {})


def test_a_scan_lies_as_in_a_store(brain):
    import numpy as np

    affine = np.diag([-1.0, 1.0, 2.0, 1.0])
    image = from_array(brain, affine)
    ((array, volume),) = volumes_of(image, "key", "group")
    assert array.shape == (1, *brain.shape)
    assert np.array_equal(array[0], brain[::-1])
    assert volume.spacing == (1.0, 1.0, 2.0)
    assert 0 < volume.sd < brain.max()
    series = from_array(np.stack([brain, 2 * brain], -1), affine)
    assert [v.key for _, v in volumes_of(series, "key", "group")] == ["key-0", "key-1"]
