"""Lesion candidates and detection scores beside the public tools, in one process.

    pip install picai_eval==1.4.13 report_guided_annotation==0.3.4
    python benchmarks/detection.py MAPS [--random N]

MAPS is a folder of NPZ files with `softmax`, `label`, `offset` and `shape`, which are put back into
their whole image. Then N random maps, a third of them with ties, and N/5 random sets of nine cases.
Prints Markdown; times are CPU seconds.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from picai_eval import evaluate
from report_guided_annotation import extract_lesion_candidates
from scipy import ndimage

from medssl.metrics.detection import auroc, average_precision, extract_candidates, match


def whole(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(path) as held:
        found = []
        for name in ("softmax", "label"):
            image = np.zeros(tuple(held["shape"]), held[name].dtype)
            ends = zip(held["offset"], held[name].shape, strict=True)
            image[tuple(slice(a, a + n) for a, n in ends)] = held[name]
            found.append(image)
    return found[0], found[1]


def smooth(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> np.ndarray:
    image = ndimage.gaussian_filter(rng.random(shape), sigma)
    return (image - image.min()) / np.ptp(image)


def differences(maps: list[np.ndarray], labels: list[np.ndarray]) -> tuple[float, float]:
    """Of AUROC and AP."""
    rows = [row for m, y in zip(maps, labels, strict=True) for row in match(m, y)]
    scores, positive = np.array([float(m.max()) for m in maps]), np.array([y.any() for y in labels])
    confidence = np.array([row.confidence for row in rows])
    lesion = np.array([row.lesion for row in rows])
    theirs = evaluate(y_det=maps, y_true=[(y > 0).astype(int) for y in labels])
    ours = auroc(scores, positive)[0], average_precision(confidence, lesion)[0]
    return abs(ours[0] - theirs.auroc), abs(ours[1] - theirs.AP)


def public(prob: np.ndarray) -> np.ndarray:
    return extract_lesion_candidates(prob, threshold="dynamic-v2")[0]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("maps", type=Path)
    parser.add_argument("--random", type=int, default=300)
    words = parser.parse_args()
    times, equal, maps, labels = [], 0, [], []
    for path in sorted(words.maps.glob("*.npz")):
        prob, label = whole(path)
        start = time.process_time()
        ours = extract_candidates(prob)[0]
        middle = time.process_time()
        theirs = public(prob)
        times.append((middle - start, time.process_time() - middle))
        equal += np.array_equal(ours, theirs)
        maps.append(ours)
        labels.append(label)
    mean = np.mean(times, 0)
    area, precision = differences(maps, labels)
    print("| what | here | public | |\n|---|---|---|---|")
    print(f"| CPU s a map | {mean[0]:.4f} | {mean[1]:.4f} | {mean[1] / mean[0]:.1f}x |")
    print(f"| maps of {len(maps)} that are equal | {equal} | | |")
    print(f"| difference of AUROC, AP | {area:.1g} | {precision:.1g} | |")
    rng, equal = np.random.default_rng(0), 0
    for k in range(words.random):
        prob = smooth(rng, tuple(rng.integers(5, 22, 3)), rng.uniform(0.5, 2)) ** rng.uniform(1, 6)
        prob = np.round(prob * 12) / 12 if k % 3 == 0 else prob
        prob = prob.astype((np.float32, np.float64)[k % 2])
        equal += np.array_equal(extract_candidates(prob)[0], public(prob))
    print(f"| random maps of {words.random} that are equal | {equal} | | |")
    worst, sets = 0.0, 0
    while sets < words.random // 5:
        maps, labels = [], []
        for _ in range(9):
            prob = (smooth(rng, (8, 20, 20), 1.2) ** 3 * rng.random()).astype(np.float32)
            blob = smooth(rng, (8, 20, 20), 1.5)
            label = (blob > np.quantile(blob, 0.97)) & (rng.random() < 0.6)
            if rng.random() < 0.5:
                near = ndimage.gaussian_filter(label.astype(np.float32), 0.8) * rng.random()
                prob = np.maximum(prob, near.astype(np.float32))
            maps.append(extract_candidates(prob)[0])
            labels.append(label.astype(int))
        if len({bool(y.any()) for y in labels}) == 2:
            sets += 1
            worst = max(worst, *differences(maps, labels))
    print(f"| largest difference in {sets} random sets | {worst:.1g} | | |")


if __name__ == "__main__":
    main()
