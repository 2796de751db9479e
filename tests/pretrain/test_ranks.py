"""Two processes with half a batch each do what one does with the whole."""

import pytest

NET = {"net": "resnet", "depths": [1, 1], "width": 4, "bottleneck": False, "stem": "small"}
CASES = {
    "simclr": ("simclr", {"out": 8}),
    "simclr_v2": ("simclr", {"out": 8, "head": "v2"}),
    "simclr_3d": ("simclr", {"out": 8}),
    "simclr_resenc": (
        "simclr",
        {"out": 8, "net": {"net": "resenc", "axes": 2, "depths": [1, 1], "widths": [4, 6]}},
    ),
    "byol_vit": (
        "byol",
        {
            "hidden": 8,
            "out": 6,
            "net": {"net": "vit", "patch": 8, "width": 8, "depth": 1, "heads": 2},
        },
    ),
    "barlow_twins": ("barlow_twins", {"width": 12, "layers": 2}),
    "byol": ("byol", {"hidden": 12, "out": 6}),
    "byol_linear": ("byol", {"hidden": 12, "out": 6, "predictor": "linear"}),
    "directpred": ("byol", {"hidden": 12, "out": 6, "predictor": "direct"}),
    "swav": ("swav", {"K": [5, 7], "hidden": 12, "out": 6, "small": 2, "frozen": 0.5}),
    "swav_queue": (
        "swav",
        {"K": [5], "hidden": 12, "out": 6, "small": 1, "queue": 6, "queue_from": 0.0},
    ),
    "deepcluster_v2": (
        "swav",
        {"codes": "kmeans", "K": [5, 7], "hidden": 12, "out": 6, "small": 2, "refresh": 1},
    ),
    "groco": ("groco", {"K": 4, "hidden": 12, "out": 6, "views": 3}),
    "g_simclr": ("g_simclr", {"clusters": 8, "first": 0.5, "sigma": 0.0, "refresh": 1, "out": 6}),
    "spark": ("spark", {"decoder_width": 8}),
    "lvm_med": ("lvm_med", {"n": 4, "k": 2, "width": 8, "beta": 0.0, "small": 1}),
}


@pytest.fixture(scope="module")
def found(two_ranks, tmp_path_factory):
    """The differences of all cases, which one pair of processes runs."""
    cases = {}
    for name, (method, values) in CASES.items():
        axes = 3 if name.endswith("_3d") else 2
        values = {"net": NET | {"axes": axes}} | values
        size = {"size": (8, 8, 8), "small_size": (5, 5, 5)} if axes == 3 else {}
        cases[name] = two_ranks.Case(method, values, **size)
    return two_ranks.differences(cases, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_are_one(found, name):
    assert found[name].loss < 1e-5
    assert found[name].gradient < 1e-5
    assert found[name].state < 1e-5
