"""Files in, numbers and refusals out."""

import json
import math

import nibabel as nib
import numpy as np
import PIL.Image
import pytest

from medssl import api
from medssl.core.errors import InputError, UsageError

AFFINE = np.diag([-0.5, 0.5, 3.0, 1.0])


def save(path, array, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def labels(rng, shape=(14, 12, 6)):
    array = np.zeros(shape, np.uint8)
    x, y, z = rng.integers(1, 4, 3)
    array[x : x + 6, y : y + 5, z : z + 2] = 1
    array[x : x + 2, y : y + 2, z : z + 2] = 2
    return array


@pytest.fixture
def folders(tmp_path):
    """Four cases of two patients; predictions are shifted by one voxel along the first axis."""
    rng = np.random.default_rng(0)
    for k in range(4):
        truth = labels(rng)
        save(tmp_path / "ref" / f"p{k // 2}_{k}_gt.nii.gz", truth)
        save(tmp_path / "pred" / f"p{k // 2}_{k}.nii", np.roll(truth, 1, 0))
    return tmp_path / "pred", tmp_path / "ref"


def test_labels_by_value_with_intervals_by_patient(folders, tmp_path):
    table = tmp_path / "patients.csv"
    table.write_text("case,patient\n" + "".join(f"p{k // 2}_{k}.nii,p{k // 2}\n" for k in range(4)))
    done = api.evaluate(*folders, group_by=table, out=tmp_path / "metrics")
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert done.files == (tmp_path / "metrics.json",)
    assert record["patients"] == 2
    assert list(record["labels"]) == ["1", "2"]
    small = record["labels"]["2"]
    assert small["dice"]["value"] == pytest.approx(0.5)
    assert small["hd"]["value"] == pytest.approx(0.5)
    assert small["dice"]["low"] == small["dice"]["high"] == pytest.approx(0.5)
    assert small["reference_ml"]["value"] == pytest.approx(8 * 0.75 / 1000)
    big = record["labels"]["1"]
    assert big["dice"]["value"] < 1
    assert [case["case"] for case in record["case"]] == ["p0_0", "p0_1", "p1_2", "p1_3"]
    assert record["warnings"] == []
    assert record["mean"]["dice"]["value"] == pytest.approx((0.5 + big["dice"]["value"]) / 2)
    again = api.evaluate(*folders, group_by=table)
    assert again.record["labels"] == record["labels"]


def test_an_axis_the_other_way_round_is_another_grid(tmp_path):
    truth = labels(np.random.default_rng(0))
    save(tmp_path / "r.nii", truth)
    save(tmp_path / "p.nii", truth[::-1], AFFINE @ np.diag([-1.0, 1, 1, 1]))
    with pytest.raises(
        InputError, match=r"p.nii: lies .* mm from the grid of its reference; bring"
    ):
        api.evaluate(tmp_path / "p.nii", tmp_path / "r.nii")
    save(tmp_path / "p.nii", truth[:-1])
    with pytest.raises(InputError, match="has 13x12x6 voxels, its reference 14x12x6"):
        api.evaluate(tmp_path / "p.nii", tmp_path / "r.nii")


@pytest.mark.parametrize(
    ("empty", "dice", "hd95", "left_out"),
    [("skip", 0.5, 0, 1), ("one", 2 / 3, 0, 0), ("diagonal", 0.5, math.hypot(7, 6, 18) / 2, 1)],
)
def test_empty_masks(tmp_path, empty, dice, hd95, left_out):
    """One case is right, one is missed, one has nothing and nothing was said."""
    truth = labels(np.random.default_rng(0)) > 0
    for k, (p, r) in enumerate([(1, 1), (0, 1), (0, 0)]):
        save(tmp_path / "p" / f"{k}.nii", (truth * p).astype(np.uint8))
        save(tmp_path / "r" / f"{k}.nii", (truth * r).astype(np.uint8))
    found = api.evaluate(tmp_path / "p", tmp_path / "r", empty=empty).record["labels"]["1"]
    assert found["dice"]["value"] == pytest.approx(dice)
    assert found["dice"]["left_out"] == left_out
    assert found["hd95"]["value"] == pytest.approx(hd95)
    assert found["lesion_sensitivity"]["value"] == 0.5


def test_pictures(tmp_path):
    """JPEG masks are cut, black and white is one label, a colour of three equal parts is grey."""
    mask = np.zeros((40, 50), bool)
    mask[8:24, 8:32] = True
    grey = (mask * 255).astype(np.uint8)
    for name in ("ref", "bits", "jpeg", "colour"):
        (tmp_path / name).mkdir()
    PIL.Image.fromarray(grey).save(tmp_path / "ref" / "a_mask.png")
    PIL.Image.fromarray(grey).convert("1").save(tmp_path / "bits" / "a.png")
    PIL.Image.fromarray(grey).save(tmp_path / "jpeg" / "a.jpg", quality=60)
    PIL.Image.fromarray(np.stack([grey] * 3, -1)).save(tmp_path / "colour" / "a.png")
    for name in ("bits", "jpeg", "colour"):
        done = api.evaluate(tmp_path / name, tmp_path / "ref")
        assert done.record["labels"]["1"]["dice"]["value"] == 1
        assert any("cut above 127" in w for w in done.warnings) == (name == "jpeg")
        assert any("pixels" in w for w in done.warnings)
    PIL.Image.fromarray(grey[:-1]).save(tmp_path / "bits" / "a.png")
    with pytest.raises(InputError, match="50x39 voxels, its reference 50x40"):
        api.evaluate(tmp_path / "bits", tmp_path / "ref")


def test_what_is_no_label_map(tmp_path):
    truth = save(tmp_path / "r.nii", labels(np.random.default_rng(0)))
    probabilities = save(tmp_path / "p.nii", np.full((14, 12, 6), 0.37, np.float32))
    with pytest.raises(InputError, match=r"p.nii: holds the value 0.37.*--task detect"):
        api.evaluate(probabilities, truth)
    save(tmp_path / "p.nii", np.full((14, 12, 6), -1, np.int16))
    with pytest.raises(InputError, match="value -1"):
        api.evaluate(tmp_path / "p.nii", truth)
    save(tmp_path / "p.nii", np.full((14, 12, 6), np.nan, np.float32))
    with pytest.raises(InputError, match="NaN"):
        api.evaluate(tmp_path / "p.nii", truth)


def test_a_label_that_no_reference_has(tmp_path):
    truth = labels(np.random.default_rng(0))
    save(tmp_path / "r.nii", truth)
    truth[0, 0, 0] = 7
    done = api.evaluate(save(tmp_path / "p.nii", truth), tmp_path / "r.nii")
    assert any(w.startswith("label 7 is in 1 predictions") for w in done.warnings)
    assert done.record["labels"]["7"]["dice"]["value"] == 0


def test_names(folders, tmp_path):
    pred, ref = folders
    (pred / "extra.nii").write_bytes((pred / "p0_0.nii").read_bytes())
    assert any("1 predictions have no" in w for w in api.evaluate(pred, ref).warnings)
    (pred / "p1_3.nii").rename(pred / "other.nii")
    with pytest.raises(InputError, match=r"no prediction for 1 of 4 references \(p1_3\)"):
        api.evaluate(pred, ref)
    (ref / "p0_0.nii.gz").write_bytes(b"")
    with pytest.raises(InputError, match="are of one case"):
        api.evaluate(pred, ref)
    with pytest.raises(InputError, match="is a folder, the other is a file"):
        api.evaluate(pred, ref / "p0_0_gt.nii.gz")
    with pytest.raises(UsageError, match="no reference"):
        api.evaluate(pred)


def test_patients_that_are_not_named(folders, tmp_path):
    table = tmp_path / "t.csv"
    for text, fact in [
        ("case,patient\np0_0,a\n", "does not name 3 of 4 cases"),
        ("case,patient\np0_0,a\np0_0.nii,b\n", "two patients"),
        ("name,patient\np0_0,a\n", "columns case and patient"),
    ]:
        table.write_text(text)
        with pytest.raises(InputError, match=fact):
            api.evaluate(*folders, group_by=table)


def load(path):
    with np.load(path) as held:
        return dict(held)


def lesion_case(rng, lesion=True, seen=0.8, false=0.3):
    """A map with a candidate on the lesion and one beside it."""
    prob, label = np.full((20, 20, 8), 1e-3, np.float32), np.zeros((20, 20, 8), np.uint8)
    if lesion:
        label[2:6, 2:6, 2:5] = 3
        prob[2:6, 2:6, 2:4] = seen
    prob[12:16, 12:16, 4:6] = false
    return prob + 1e-4 * rng.random(prob.shape, np.float32), label


@pytest.fixture
def cases(tmp_path):
    """Six NPZ files, half of them with a lesion."""
    rng = np.random.default_rng(0)
    (tmp_path / "cases").mkdir()
    for k in range(6):
        prob, label = lesion_case(rng, lesion=k < 3, seen=0.8 - 0.25 * k, false=0.4 - 0.05 * k)
        np.savez(tmp_path / "cases" / f"c{k}.npz", prob=prob, label=label, affine=AFFINE)
    return tmp_path / "cases"


def test_lesions(cases):
    """Hits at .8, .55, .3; false ones at .4, .35, .3, .25, .2, .15 (and a little more)."""
    record = api.evaluate(cases, task="detect").record
    assert record["auroc"] == pytest.approx(1)
    assert record["lesions"] == record["positive"] == 3
    assert record["ap"] == pytest.approx((1 + 1 + 3 / 5) / 3, abs=0.06)
    rates = {one["false_positives_per_case"]: one["value"] for one in record["froc"]}
    assert rates[0.125] == pytest.approx(2 / 3)
    assert rates[1] == 1
    assert record["auroc_interval"][0] <= 1
    assert record["reasons"] == {}
    near, everywhere = (record["calibration"][k] for k in ("near_lesions", "everywhere"))
    assert everywhere["voxels"] == 6 * 20 * 20 * 8
    assert 0 < near["voxels"] < everywhere["voxels"]
    assert near["brier"] > 0


def test_the_same_cases_as_two_folders(cases, tmp_path):
    for path in cases.glob("*.npz"):
        held = load(path)
        save(tmp_path / "maps" / f"{path.stem}.nii.gz", held["prob"])
        save(tmp_path / "labels" / f"{path.stem}.nii.gz", held["label"])
    one = api.evaluate(cases, task="detect").record
    two = api.evaluate(tmp_path / "maps", tmp_path / "labels", task="detect").record
    for name in ("auroc", "ap", "score", "froc", "calibration", "auroc_interval"):
        assert one[name] == two[name]


def test_one_class_has_reasons(cases):
    for k in range(3, 6):
        (cases / f"c{k}.npz").unlink()
    record = api.evaluate(cases, task="detect").record
    assert record["auroc"] is None
    assert "every case has a lesion" in record["reasons"]["auroc"]
    assert record["ap"] is not None
    for k in range(3):
        held = load(cases / f"c{k}.npz")
        np.savez(cases / f"c{k}.npz", prob=held["prob"], label=0 * held["label"])
    done = api.evaluate(cases, task="detect")
    assert done.record["ap"] is None
    assert set(done.record["reasons"]) == {"auroc", "ap", "froc", "score"}
    assert any("none: no case has a lesion" in line for line in done.table)


def test_maps_that_are_something_else(cases):
    held = load(cases / "c0.npz")
    with pytest.raises(InputError, match=r"c0.npz: holds more than one value in a candidate"):
        api.evaluate(cases, task="detect", maps="detection")
    np.savez(cases / "c0.npz", prob=held["prob"] * 9 - 4, label=held["label"])
    with pytest.raises(InputError, match="not from 0 to 1"):
        api.evaluate(cases, task="detect")
    np.savez(cases / "c0.npz", prob=held["prob"][1:], label=held["label"])
    with pytest.raises(InputError, match="on one grid"):
        api.evaluate(cases, task="detect")
    for wrong, fact in [
        ({"prob": held["prob"]}, "holds no map"),
        ({"prob": held["prob"], "label": np.array([None])}, "no whole array"),
    ]:
        np.savez(cases / "c0.npz", **wrong)
        with pytest.raises(InputError, match=fact):
            api.evaluate(cases, task="detect")
    (cases / "c0.npz").write_bytes((cases / "c1.npz").read_bytes()[:-200])
    with pytest.raises(InputError, match=r"c0.npz: is no NPZ file"):
        api.evaluate(cases, task="detect")


def test_candidates_that_were_extracted_before(cases):
    from medssl.metrics.detection import extract_candidates

    before = api.evaluate(cases, task="detect").record
    for path in cases.glob("*.npz"):
        held = load(path)
        np.savez(path, detection=extract_candidates(held["prob"])[0], label=held["label"])
    after = api.evaluate(cases, task="detect", maps="detection").record
    assert after["ap"] == before["ap"]
    assert after["calibration"]["everywhere"]["voxels"] == 0


@pytest.mark.data
def test_nine_cases(data_folder):
    """AUROC and AP of picai_eval 1.4.13: 8/9 and 17/21."""
    record = api.evaluate(data_folder / "prostate" / "detection", task="detect").record
    assert record["auroc"] == pytest.approx(8 / 9, abs=1e-9)
    assert record["ap"] == pytest.approx(17 / 21, abs=1e-9)
