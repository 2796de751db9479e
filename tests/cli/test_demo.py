"""The demo runs on what an installed dependency ships and what it generates, and says its gain."""

import json

import numpy as np

import medssl as package


def test_demo(medssl, tmp_path):
    code, out, err = medssl("demo", tmp_path / "demo", "--json")
    assert code == 0, err
    record = json.loads(out)
    assert record["ct"]["gain_db"] > 6
    assert record["mr"]["gain_db"] > 1
    for part in ("mr", "ct"):
        image = package.read(record[part]["output"])
        assert np.isfinite(image.data).all()
    code, _, _ = medssl("demo", tmp_path / "demo", "-q")
    assert code == 6, "a second demo does not write over the first"
