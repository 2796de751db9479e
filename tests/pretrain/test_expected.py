"""The numbers that recipes of this folder are known for, on a store of phantoms."""

import json

import pytest

from medssl import api, config

SMALL = {"crops.size": [64, 64], "train.batch": 16}
VIEWS = {"crops.small_size": [32, 32]}
RUNS = {
    # recipe: steps, what is changed so that a CPU is enough
    "simclr_cpu": (60, {}),
    "byol_cpu": (60, {}),
    "swav_cpu": (60, {}),
    "simclr": (20, SMALL),
    "simclr_3d": (10, {"crops.size": [24, 24, 24], "train.batch": 8}),
    "barlow_twins": (20, SMALL),
    "byol": (20, SMALL),
    "directpred": (20, SMALL),
    "swav": (20, SMALL | VIEWS),
    "deepcluster_v2": (20, SMALL | VIEWS | {"method.K": [64, 64], "method.refresh": 10}),
    "groco": (20, SMALL),
    "g_simclr": (20, SMALL),
    "lvm_med_cpu": (60, {}),
    "joint_cpu": (60, {}),
    "lvm_med": (12, SMALL | VIEWS),
    "joint": (6, {"crops.size": [48, 48, 12], "train.batch": 4, "method.K_intra": 64}),
}


@pytest.mark.paper
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", RUNS)
def test_the_loss_is_the_one_that_the_recipe_names(name, phantom_store, tmp_path):
    steps, changes = RUNS[name]
    api.pretrain(phantom_store, tmp_path / "run", name, steps=steps, settings=changes, device="cpu")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    last = [json.loads(line)["loss"] for line in lines][-(steps // 6) :]
    expect = config.load("pretrain", name).expect
    assert expect is not None
    assert sum(last) / len(last) == pytest.approx(expect.value, abs=expect.tolerance)
