"""Probes: planted features are found, splits do not leak, intervals come with every number."""

import numpy as np
import pytest

from medssl.core.errors import InputError, UsageError
from medssl.engine import classify
from medssl.engine.labels import Labelled, joined, read_labels
from medssl.engine.probe import ALL, Asked, probe
from medssl.io.features import Features


def planted(signal, seed=0, n_groups=24, each=12, size=40, n_classes=3, noise=1.0):
    """Features in which a few directions say the class, beside others that say the patient."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(n_groups), each)
    y = rng.permutation(np.tile(np.arange(n_classes), len(group) // n_classes))
    rng = np.random.default_rng(seed + 1)
    centres, patients = rng.normal(0, signal, (n_classes, size)), rng.normal(0, 1, (n_groups, size))
    x = centres[y] + patients[group] + rng.normal(0, noise, (len(y), size))
    names = tuple(map(str, range(n_classes)))
    return Labelled(3 + 5 * x, y, group, ("",) * len(y), names)


def test_planted_linear_features_are_found():
    arms = {
        "pretrained": [planted(0.8, s) for s in range(3)],
        "random": [planted(0.0, s) for s in range(3)],
    }
    report = probe(arms, Asked(per_class=(5, ALL), seeds=2))
    rows = {(r.probe, r.labels, r.arm): r for r in report.rows}
    assert len(rows) == 2 * 2 * 3
    assert rows["linear", "all", "pretrained"].value.value > 0.9
    assert rows["linear", "all", "random"].value.value == pytest.approx(1 / 3, abs=0.1)
    assert rows["linear", "all", "gain"].value.low > 0.1
    five = rows["linear", "5", "pretrained"].value.value
    assert 0.4 < five < rows["linear", "all", "pretrained"].value.value
    assert rows["knn", "all", "gain"].value.low > 0
    assert rows["linear", "all", "pretrained"].auc > 0.95
    assert report.warnings == ()


def test_nothing_is_found_where_nothing_is():
    arms = {
        name: [planted(0.0, s) for s in k] for name, k in {"a": (0, 1), "b": (2, 3, 4, 5)}.items()
    }
    report = probe(arms, Asked(tasks=("linear",), per_class=(20,), seeds=3))
    gain = report.rows[-1].value
    assert report.facts["arms"] == {"a": 2, "b": 4}
    assert gain.low < 0 < gain.high
    assert "2 pretraining seeds" in report.warnings[0]


def test_the_split_of_the_store_is_kept():
    held = planted(0.8)
    split = tuple("test" if g < 8 else "train" for g in held.group)
    held = Labelled(held.x, held.y, held.group, split, held.classes)
    report = probe({"pretrained": [held]}, Asked(tasks=("linear",), per_class=(ALL,)))
    assert report.facts["split"] == "of the store"
    assert report.rows[0].value.value > 0.9


def test_patients_do_not_leak():
    """Features that only say who the patient is say nothing of a class that each patient has one
    of: a split by rows would score 1."""
    held = planted(0.0, n_classes=2, noise=0.01)
    y = held.group % 2
    held = Labelled(held.x, y, held.group, held.split, held.classes)
    report = probe({"pretrained": [held]}, Asked(tasks=("linear", "knn"), per_class=(ALL,)))
    assert all(r.value.value < 0.75 for r in report.rows)


def test_the_linear_probe_has_the_least_loss():
    """Turning features onto the axes of the samples changes nothing; the gradient vanishes."""
    held = planted(0.8, n_groups=6, each=6, size=50)
    z = (held.x - held.x.mean(0)) / held.x.std(0)
    weights = classify._path(z, held.y, 3, [1e-2])[0]
    p = np.exp(classify.log_softmax(classify._scores(weights, z), axis=1))
    gradient = z.T @ (p - np.eye(3)[held.y]) + weights[:-1] / 1e-2
    assert np.abs(gradient).max() < 1e-2 * np.abs(z.T @ np.eye(3)[held.y]).max()
    axes = np.linalg.svd(z, full_matrices=False)[2]
    turned = classify._path(z @ axes.T, held.y, 3, [1e-2])[0]
    np.testing.assert_allclose(
        classify._scores(turned, z @ axes.T), classify._scores(weights, z), atol=2e-2
    )


def test_folds_keep_groups_and_spread_classes():
    held = planted(0.8)
    fold = classify.folds(held.y, held.group, 5)
    assert all(len(np.unique(fold[held.group == g])) == 1 for g in np.unique(held.group))
    counts = np.bincount(fold)
    assert counts.min() > 0.5 * counts.max()


def test_area_under_curve_counts_pairs():
    scores, y = np.array([[0.1], [0.4], [0.4], [0.9]]), np.array([1, 0, 1, 0])
    pairs = [(0.4 > 0.1) + 0.5 + (0.9 > 0.1) + (0.9 > 0.4)]
    assert classify.area_under_curve(scores, y) == pytest.approx(pairs[0] / 4)


@pytest.fixture
def table():
    ids = ("a", "a", "b", "b", "c", "c")
    slices = (0, 1, 0, 1, 0, 1)
    values = np.eye(6, dtype=np.float32)
    return Features(ids, ids, ("",) * 6, ("CT",) * 6, slices, values)


def test_labels_join_by_id_and_slice(table, tmp_path):
    file = tmp_path / "labels.csv"
    file.write_text("id,label\na,ill\nb,well\n")
    held = joined(table, read_labels(file, "label"), file)
    assert held.classes == ("ill", "well")
    assert held.y.tolist() == [0, 0, 1, 1]
    file.write_text("id,slice,label,group\na,1,ill,p\nc,0,well,p\n")
    held = joined(table, read_labels(file, "label"), file)
    assert held.x.shape == (2, 6)
    assert held.group.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("name,label\na,1\n", "has columns name, label"),
        ("id,label\nx,1\n", "none of its 1 labels"),
        ("id,label\na,1\na,2\n", "two labels"),
        ("id,label\na,1\nb,1\n", "1 classes"),
        ("id,slice,label\na,x,1\n", "holds text"),
        ("id,label\na\n", "line 2 has 1 fields"),
    ],
)
def test_wrong_labels_are_refused(table, tmp_path, text, fact):
    file = tmp_path / "labels.csv"
    file.write_text(text)
    with pytest.raises(InputError, match=fact):
        joined(table, read_labels(file, "label"), file)


def test_too_little_is_refused():
    held = planted(0.8)
    one = Labelled(held.x, held.y, 0 * held.group, held.split, held.classes)
    with pytest.raises(InputError, match="one patient"):
        probe({"pretrained": [one]}, Asked())
    with pytest.raises(UsageError, match="tables of the arms"):
        probe({"pretrained": [held] * 2, "other": [held] * 3}, Asked())
    with pytest.raises(UsageError, match="0 seeds"):
        probe({"pretrained": [held]}, Asked(seeds=0))
