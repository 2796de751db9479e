r"""Two classifiers of features: a linear one, and the nearest neighbours.

The linear one minimises, over standardised features,

.. math:: \tfrac1n \sum_i -\log p_{y_i}(x_i) + \tfrac1{2 C n} \|W\|^2 ,

with C from an inner cross-validation in which no group is on both sides. Features are first turned
onto the axes that the samples span, which changes nothing but the time. The neighbours vote with
:math:`e^{\cos / T}`.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

GRID = tuple(10.0 ** np.arange(-4, 3))
"""Values of C that are tried."""
FOLDS = 5
STEPS = 200
"""Of L-BFGS."""
NEIGHBOURS, TEMPERATURE = 20, 0.07


def linear(x: Floats, y: Ints, groups: Ints, test: Floats, n_classes: int) -> Floats:
    """Scores (m, n_classes) of test features by the linear classifier.

    Args:
        x: (n, D) features that are learnt from.
        y: (n,) their classes.
        groups: (n,) equal where rows may be of one patient.
        test: (m, D).
        n_classes: More than one, each in `y`.
    """
    mean, sd = x.mean(0), x.std(0)
    scale = np.where(sd > 1e-8 * np.abs(mean).clip(1e-30), 1 / np.where(sd > 0, sd, 1), 0)
    z, other = (x - mean) * scale, (test - mean) * scale
    if z.shape[1] > len(z):
        axes = np.linalg.svd(z, full_matrices=False)[2]
        z, other = z @ axes.T, other @ axes.T
    c = _best_c(z, y, groups, n_classes)
    weights = _path(z, y, n_classes, [v for v in GRID if v <= c])[-1]
    return _scores(weights, other)


def neighbours(x: Floats, y: Ints, test: Floats, n_classes: int) -> Floats:
    """Votes (m, n_classes) of the nearest features by cosine."""
    a, b = (v / np.linalg.norm(v, axis=1, keepdims=True).clip(1e-12) for v in (x, test))
    cosine = b @ a.T
    k = min(NEIGHBOURS, len(x))
    nearest = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
    near = np.take_along_axis(cosine, nearest, 1)
    weights = np.exp((near - near.max(1, keepdims=True)) / TEMPERATURE)
    votes = np.zeros((len(test), n_classes))
    for c in range(n_classes):
        votes[:, c] = (weights * (y[nearest] == c)).sum(1)
    return votes


def folds(y: Ints, groups: Ints, count: int) -> Ints:
    """(n,) which fold each row is in; the rows of a group stay together, classes are spread.

    Groups are dealt out from the largest on, each to the fold that has least of its classes.
    Without two groups the rows are dealt out one by one.
    """
    if len(np.unique(groups)) < 2:
        groups = np.arange(len(y))
    names, members = np.unique(groups, return_inverse=True)
    n_classes = int(y.max()) + 1
    held = np.zeros((len(names), n_classes))
    np.add.at(held, (members, y), 1)
    share = held / held.sum(0).clip(1)
    count = min(count, len(names))
    load = np.zeros((count, n_classes))
    fold = np.zeros(len(names), np.int64)
    for one in np.argsort(-held.sum(1), kind="stable"):
        fold[one] = int(np.argmin((load * (held[one] > 0)).sum(1) + 1e-3 * load.sum(1)))
        load[fold[one]] += share[one]
    return fold[members]


def area_under_curve(scores: Floats, y: Ints) -> float:
    """Mean over classes of the area under the curve of each against the rest; NaN for one class."""
    found = []
    for c in range(scores.shape[1]):
        inside = y == c
        n, m = int(inside.sum()), int((~inside).sum())
        if n and m:
            order = np.unique(scores[:, c], return_inverse=True)[1]
            counts = np.bincount(order)
            ranks = (np.cumsum(counts) - (counts - 1) / 2)[order]  # ties share their mean
            found.append((ranks[inside].sum() - n * (n + 1) / 2) / (n * m))
    return float(np.mean(found)) if found else float("nan")


def _best_c(z: Floats, y: Ints, groups: Ints, n_classes: int) -> float:
    """The C whose log loss on left-out groups is least, of those that are tried."""
    fold = folds(y, groups, FOLDS)
    losses = np.zeros(len(GRID))
    for k in range(int(fold.max()) + 1):
        inside = fold != k
        if len(np.unique(y[inside])) < n_classes:
            continue
        for j, weights in enumerate(_path(z[inside], y[inside], n_classes, GRID)):
            logits = log_softmax(_scores(weights, z[~inside]), axis=1)
            losses[j] -= logits[np.arange(len(logits)), y[~inside]].sum()
    return float(GRID[int(np.argmin(losses))])  # the strongest bound where no fold says anything


def _path(
    z: Floats, y: Ints, n_classes: int, grid: "tuple[float, ...] | list[float]"
) -> list[Floats]:
    """Weights (D + 1, n_classes) for ascending values of C, each begun where the last one ended."""
    n, size = z.shape
    held = np.concatenate([z, np.ones((n, 1))], 1)
    truth = np.eye(n_classes)[y]
    weights = np.zeros((size + 1, n_classes))
    found = []
    for c in grid:
        decay = np.full((size + 1, 1), 1 / (c * n))
        decay[-1] = 0  # the offset is free
        solved = minimize(
            _loss,
            weights.ravel(),
            (held, truth, decay),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": STEPS},
        )
        weights = solved.x.reshape(weights.shape)
        found.append(weights)
    return found


def _loss(flat: Floats, held: Floats, truth: Floats, decay: Floats) -> tuple[float, Floats]:
    """The objective and its gradient."""
    w = flat.reshape(len(decay), -1)
    log_p = log_softmax(held @ w, axis=1)
    value = -(truth * log_p).sum() / len(held) + 0.5 * (decay * w * w).sum()
    gradient = held.T @ (np.exp(log_p) - truth) / len(held) + decay * w
    return float(value), gradient.ravel()


def _scores(weights: Floats, z: Floats) -> Floats:
    return z @ weights[:-1] + weights[-1]
