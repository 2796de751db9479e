"""Features of scans: one row of the right thing each, the same wherever the scan lies."""

import json
import subprocess
import sys

import numpy as np
import pytest

from medssl import api
from medssl.core.errors import InputError, OutputError, UsageError
from medssl.data.store import Store
from medssl.engine.embed import windows
from medssl.engine.encoders import load_encoder
from medssl.io.features import read_features


def test_rows_of_a_store(pretrained, store):
    run = pretrained()
    volumes = api.embed(store, weights=run, threads=1).features
    assert volumes.values.shape == (4, 8)
    assert volumes.id == tuple(v.key for v in Store.open(store).volumes)
    assert volumes.split == ("train", "train", "val", "test")
    assert volumes.group[2] == volumes.group[3] != volumes.group[0]
    assert volumes.modality == ("CT", "MR", "CT", "MR")
    slices = api.embed(store, weights=run, per="slice", threads=1).features
    first = [k for k, i in enumerate(slices.id) if i == volumes.id[0]]
    assert len(first) == len({slices.slice[k] for k in first}) > 1
    patches = api.embed(store, weights=run, per="patch", threads=1).features
    assert patches.place is not None
    assert len(patches) > len(slices)


def test_a_row_is_the_mean_of_its_windows(pretrained, store):
    loaded = load_encoder(pretrained(), {})
    opened = Store.open(store)
    array, volume = opened.read(0), opened.volumes[0]
    seen = list(windows(array, volume, loaded.crops, loaded.method, 1, 0.25))
    box = np.zeros(volume.shape[1:], int)
    for w in seen:
        i, j, z = w.start
        assert w.image.shape == (1, 16, 16)
        box[i : i + 16, j : j + 16, z] += 1
    inside = tuple(slice(low, high) for low, high in volume.foreground)
    assert box[inside].min() > 0, "every voxel of the patient is seen"
    table = api.embed(store, weights=pretrained("again"), threads=1).features
    rows = np.stack([loaded.method.embed(w.image[None]).detach().numpy()[0] for w in seen])
    full = [w.share >= loaded.crops.foreground for w in seen]
    np.testing.assert_allclose(table.values[0], rows[full].mean(0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
def test_a_damaged_table_is_refused_in_one_line(pretrained, store, tmp_path, suffix):
    out = tmp_path / f"features{suffix}"
    api.embed(store, out, weights=pretrained(), threads=1)
    whole = out.read_bytes()
    half = len(whole) // 2
    flipped = bytes(b ^ 0xFF for b in whole[half : half + 64])
    for content in (whole[:half], whole[:half] + flipped + whole[half + 64 :], b"PK\x03\x04"):
        out.write_bytes(content)
        with pytest.raises(InputError):
            read_features(out)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".npz"])
def test_tables_come_back(pretrained, store, tmp_path, suffix):
    out = tmp_path / f"features{suffix}"
    done = api.embed(store, out, weights=pretrained(), per="slice", unit_length=True, threads=1)
    back = read_features(out)
    assert (back.id, back.group, back.split) == (
        done.features.id,
        done.features.group,
        done.features.split,
    )
    assert back.slice == done.features.slice
    np.testing.assert_allclose(back.values, done.features.values, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(back.values, axis=1), 1, rtol=1e-5)
    record = json.loads((tmp_path / "features.json").read_text())
    assert record["medssl"]["weights"]["sha256"]
    with pytest.raises(OutputError, match="exists already"):
        api.embed(store, out, weights=tmp_path / "run", threads=1)


def test_a_folder_of_scans_keeps_its_names_to_itself(pretrained, nifti, brain, tmp_path):
    secret = tmp_path / "SECRET"
    for k in range(2):
        path = nifti(brain + k, f"SECRET_NAME_{k}.nii.gz")
        (secret / f"SECRETPATIENT{k}").mkdir(parents=True)
        path.rename(secret / f"SECRETPATIENT{k}" / path.name)
    (secret / "SECRET_broken.nii").write_bytes(b"no scan")
    out = tmp_path / "features.csv"
    done = api.embed(secret, out, weights=pretrained(), threads=1)
    assert len(done.features) == 2
    assert len(set(done.features.group)) == 2
    assert len(done.refused) == 1
    written = out.read_text() + (tmp_path / "features.json").read_text() + done.line
    assert "SECRET" not in written


def test_encoders_of_volumes_and_whole_slices(pretrained, store):
    net = {"net": "resnet", "axes": 3, "depths": [1, 1], "width": 4, "bottleneck": False}
    method = {
        "name": "spark",
        "net": net | {"stem": "small"},
        "decoder_width": 8,
        "block": [8, 8, 8],
    }
    run = pretrained("three", method, (16, 16, 16))
    assert api.embed(store, weights=run, threads=1).features.values.shape == (4, 8)
    with pytest.raises(UsageError, match="volumes, not slices"):
        api.embed(store, weights=run, per="slice", threads=1)


def test_what_cannot_be(pretrained, store, tmp_path):
    run = pretrained()
    with pytest.raises(UsageError, match="suffix"):
        api.embed(store, tmp_path / "features.txt", weights=run)
    with pytest.raises(UsageError, match="overlap"):
        api.embed(store, weights=run, overlap=1.0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no scan"):
        api.embed(tmp_path / "empty", weights=run)


def test_torchvision_is_never_imported():
    code = (
        "import sys\n"
        "from medssl import api\n"
        "import medssl.engine.probe, medssl.engine.export\n"
        "assert not {'torchvision', 'sklearn', 'timm', 'lightly'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
