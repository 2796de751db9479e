"""`medssl embed`, `probe` and `export` as a user calls them."""

import csv
import json

import nibabel as nib
import numpy as np
import pytest

from medssl.data.store import Store
from medssl.io.features import Features, write_features


def test_embed(medssl, pretrained, store, tmp_path):
    out = tmp_path / "features.csv"
    words = ("embed", store, "-w", pretrained(), "-o", out, "--threads", 1)
    code, text, err = medssl(*words, "--per", "slice", "-q")
    assert code == 0, err
    assert text.splitlines() == [str(out)]
    assert "one for each slice, by tiny" in err
    with out.open() as handle:
        header = next(csv.reader(handle))
    assert header[:6] == ["id", "group", "split", "modality", "slice", "f0"]
    assert medssl(*words)[0] == 6
    assert medssl(*words, "--overwrite", "--json", "--l2")[0] == 0
    assert medssl("embed", store, "-w", tmp_path, "-o", tmp_path / "other.csv")[0] == 4
    assert not (tmp_path / "other.csv").exists()


def test_probe_of_runs_and_slices(medssl, pretrained, store, tmp_path):
    volumes = Store.open(store).volumes
    rows = [f"{v.key},{z},{int(z < 3)}" for v in volumes for z in range(*v.foreground[2])]
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(["id,slice,label", *rows]) + "\n")
    runs = [pretrained(f"run{k}", seed=k) for k in range(2)]
    words = ["probe", *runs, "--labels", labels, "--n", "2,all", "--seeds", 2, "-q", "--threads", 1]
    assert medssl(*words)[0] == 2
    other = pretrained("other", steps=4)
    for wrong, fact in ((other, "another recipe"), (runs[0], "given twice")):
        code, _, err = medssl("probe", runs[0], wrong, *words[3:], "--data", store)
        assert code == 2
        assert fact in err
    out = tmp_path / "report"
    code, text, err = medssl(*words, "--data", store, "-o", out)
    assert code == 0, err
    lines = text.splitlines()
    assert lines[0].split() == ["probe", "labels", "arm", "balanced", "accuracy", "auc"]
    assert sum(" gain " in line for line in lines) == 4
    assert "warning: 2 pretraining seeds" in err
    record = json.loads((tmp_path / "report.json").read_text())["medssl"]
    assert len(record["encoders"]) == 2
    assert len((tmp_path / "report.csv").read_text().splitlines()) == len(record["rows"]) + 1


def test_probe_of_tables(medssl, tmp_path):
    rng = np.random.default_rng(0)
    ids = tuple(f"{k:012x}" for k in range(40))
    tables = []
    for signal in (3.0, 0.0):
        values = rng.normal(0, 1, (40, 6)).astype(np.float32)
        values[20:, 0] += signal
        table = Features(ids, ids, ("",) * 40, ("CT",) * 40, (None,) * 40, values)
        tables.append(tmp_path / f"{signal}.parquet")
        write_features(tables[-1], table, overwrite=False)
    labels = tmp_path / "labels.csv"
    rows = [f"{name},{'ill' if k >= 20 else 'well'}" for k, name in enumerate(ids)]
    labels.write_text("\n".join(["id,label", *rows]))
    words = ["--labels", labels, "--task", "linear", "--n", "all", "--seeds", 2, "--json"]
    code, text, err = medssl("probe", tables[0], "--against", tables[1], *words)
    assert code == 0, err
    found = {r["arm"]: r["value"] for r in json.loads(text)["medssl"]["rows"]}
    assert found["pretrained"] > 0.8 > found["other"]
    assert medssl("probe", tables[0], "--labels", labels, "--task", "lines")[0] == 2
    assert medssl("probe", tables[0], "--labels", labels, "--task", "segment")[0] == 2
    assert medssl("probe", tables[0], "--labels", labels, "--n", "0")[0] == 2


def test_probe_of_label_maps(medssl, pretrained, tmp_path):
    rng = np.random.default_rng(0)
    rows = ["file,segmentation"]
    for k in range(3):
        i, j, _ = np.indices((20, 24, 4)) - rng.integers(8, 12, 3)[:, None, None, None]
        label = (i**2 + j**2 < 16).astype(np.uint8)
        image = 100 * label + rng.normal(50, 5, label.shape)
        affine = np.diag([-1.0, 1.0, 2.0, 1.0])
        nib.save(nib.Nifti1Image(image.astype(np.float32), affine), tmp_path / f"SECRET{k}.nii.gz")
        nib.save(nib.Nifti1Image(label, affine), tmp_path / f"seg{k}.nii.gz")
        rows.append(f"SECRET{k}.nii.gz,seg{k}.nii.gz")
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(rows))
    words = ["probe", pretrained(), "--labels", labels, "--task", "segment", "--seeds", 1]
    words += ["--n", "2", "--steps", 3, "--threads", 1]
    code, text, err = medssl(*words, "-o", tmp_path / "report")
    assert code == 0, err
    assert "gain over A" in text
    assert "gain over B" in text
    assert "SECRET" not in text + err + (tmp_path / "report.json").read_text()
    labels.write_text("\n".join([*rows[:-1], "SECRET2.nii.gz,SECRET2.nii.gz"]))
    code, _, err = medssl(*words)
    assert code == 3
    assert "no whole numbers" in err


@pytest.mark.parametrize("verb", ["embed", "probe", "export"])
def test_help(medssl, verb):
    assert medssl(verb, "--help")[0] == 0
