r"""Choices that need no truth: what a reconstruction says of samples it has not seen.

A part H of the measured points is kept aside, the rest is reconstructed, and

.. math:: e = \sum_{k \in H} \frac{1}{p(k)} |F S (o \, x) - y|^2

compares, with the image set to zero outside the object o: otherwise a reconstruction would be
rewarded for an empty background, and smoothing would look too good. The density p of the pattern
makes up for samples that crowd near DC, where the error of an image is another than elsewhere.
Several partings, and whole lines where whole lines were measured.

The sum :math:`A^H n` of the noise of m samples grows as the root of m, and the weight of a prior
with it: what is best for the part that was used is best for all samples times the root of their
ratio.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from medssl.core.batch import Acquired
from medssl.physics.acquisition import data_error
from medssl.physics.fourier import to_image
from medssl.physics.nufft import density
from medssl.physics.sampling import Mask, central, line_axis, reach, withhold

FRACTION = 0.2
"""Share of the samples kept aside."""
SPLITS = 4
LINE_SPLITS = 6
"""Partings of a scan; lines are few, so that theirs differ more."""
GRID = tuple(0.0016 * 2.0**k for k in range(6))
"""Weights that are tried first, where images are about 1."""
FARTHEST = 8
"""Octaves that the grid may be extended to either side."""
NEAR = 3.0
"""Points of k-space over which its density is taken."""
OBJECT = 0.1
"""Share of the brightest pixel of the calibration image from which on a pixel is an object."""


@dataclass(frozen=True, eq=False)
class Parted:
    """A scan of which a part is kept aside.

    Args:
        seen: What may be used.
        aside: (B, 1, H, W) points that are compared: their weights, others 0.
        whole: All that was measured.
        inside: (B, 1, H, W) the object.
    """

    seen: Acquired
    aside: Tensor
    whole: Acquired
    inside: Tensor

    def error(self, image: Tensor) -> Tensor:
        """(B) e of images (B, set, H, W)."""
        return data_error(self.whole, image * self.inside, self.aside)


@dataclass(frozen=True)
class Curve:
    """Errors along a grid of weights, and the weight of the least."""

    lambda_: float
    tried: tuple[float, ...]
    errors: tuple[float, ...]


def object_of(calibration: Tensor, shape: tuple[int, int]) -> Tensor:
    """(B, H, W) bool: where the calibration image shows something; everything where nothing is.

    Args:
        calibration: (B, coil, h, w) centre of k-space.
        shape: (H, W) of the image.
    """
    height, width = calibration.shape[-2:]
    window = [torch.hann_window(n + 2, periodic=False)[1:-1] for n in (height, width)]
    low = calibration.new_zeros(*calibration.shape[:2], *shape)
    ys, xs = central(shape, (height, width))
    low[..., ys, xs] = calibration * torch.outer(*window).to(calibration.device)
    rss = torch.linalg.vector_norm(to_image(low), dim=1).cpu().numpy()
    found = []
    for one in rss:
        bright = ndimage.binary_fill_holes(one > OBJECT * one.max())
        grown = ndimage.binary_dilation(bright, iterations=3)
        found.append(grown if grown.any() else np.ones_like(grown))
    return torch.from_numpy(np.stack(found)).to(calibration.device)


def partings(whole: Acquired, inside: Tensor, seed: int) -> list[Parted]:
    """Partings of a batch of slices (B, ...) on a grid, or of one slice of shots.

    Few slices are parted more often than many; each slice has its own chance.
    """
    sampling = whole.sampling[:, 0].cpu().numpy() > 0
    if whole.trajectory is not None:
        count = LINE_SPLITS
    else:
        count = SPLITS if line_axis(sampling[0]) is None else LINE_SPLITS
    weights = _weights(whole, sampling)
    made = []
    for k in range(math.ceil(count / len(sampling))):
        pairs = [
            _shots(one, seed + k) if whole.trajectory is not None else withhold(one, FRACTION, s)
            for one, s in zip(sampling, range(seed + 97 * k, seed + 97 * k + 97), strict=False)
        ]
        kept = torch.from_numpy(np.stack([p[1] for p in pairs])[:, None]).to(whole.sampling)
        made.append(_parted(whole, kept, weights, inside))
    return made


def folds(whole: Acquired, inside: Tensor, seed: int) -> list[Parted]:
    """Partings of one slice on a grid whose points kept aside have none in common.

    Together they are those of one of `partings`: what remains is in none of them. There are fewer,
    or none, where there are too few lines.

    Args:
        whole: One slice (1, ...).
        inside: (1, H, W) the object.
        seed: Of the choice.
    """
    sampling = whole.sampling[0, 0].cpu().numpy() > 0
    axis = line_axis(sampling)
    _, aside = withhold(sampling, FRACTION, seed)
    units = np.flatnonzero(aside if axis is None else aside.any(1 - axis))
    order = np.random.default_rng(seed).permutation(units)
    weights, made = _weights(whole, sampling[None]), []
    for some in np.array_split(
        order, min(SPLITS if axis is None else LINE_SPLITS, len(units)) or 1
    ):
        chosen = np.zeros(sampling.size if axis is None else sampling.shape[axis], bool)
        chosen[some] = True
        part = chosen.reshape(sampling.shape) if axis is None else np.expand_dims(chosen, 1 - axis)
        kept = torch.from_numpy(aside & part)[None, None].to(whole.sampling)
        made.append(_parted(whole, kept, weights, inside))
    return made if len(units) else []


def _parted(whole: Acquired, kept: Tensor, weights: Tensor, inside: Tensor) -> Parted:
    """Points (B, 1, H, W) kept aside."""
    used = whole.sampling - kept
    seen = dataclasses.replace(whole, kspace=torch.where(used > 0, whole.kspace, 0), sampling=used)
    return Parted(seen, kept * weights, whole, inside[:, None])


def _weights(whole: Acquired, sampling: Mask) -> Tensor:
    """(B, 1, H, W) one over the density of the samples."""
    if whole.trajectory is not None:
        return density(whole.trajectory)[None, None]
    found = []
    for one in sampling:
        near = ndimage.gaussian_filter(one.astype(np.float32), NEAR)
        covered = ndimage.gaussian_filter(reach(one).astype(np.float32), NEAR)
        found.append(covered / np.maximum(near, 1e-3 * covered.max()))
    return torch.from_numpy(np.stack(found)[:, None]).to(whole.sampling)


def mean_error(restore: Callable[[Acquired], Tensor], parted: Sequence[Parted]) -> Tensor:
    """(partings, B) errors of a way to reconstruct."""
    with torch.no_grad():
        return torch.stack([p.error(restore(p.seen)) for p in parted])


def choose_lambda(error: Callable[[float], float], grid: Sequence[float] = GRID) -> Curve:
    """The weight with the least error, between the points of a grid that is extended as needed.

    It is that for all samples, where the errors are of what was left without those kept aside.

    Args:
        error: Of a weight.
        grid: Ascending, each twice the one before.
    """
    errors = {weight: error(weight) for weight in grid}
    for _ in range(FARTHEST):
        tried = sorted(errors)
        best = min(tried, key=errors.__getitem__)
        if best == tried[0]:
            errors[best / 2] = error(best / 2)
        elif best == tried[-1]:
            errors[best * 2] = error(best * 2)
        else:
            break
    tried = sorted(errors)
    values = [errors[weight] for weight in tried]
    k = int(np.argmin(values))
    octave = 0.0
    if 0 < k < len(tried) - 1:
        left, middle, right = values[k - 1 : k + 2]
        bend = left - 2 * middle + right
        octave = 0.5 * (left - right) / bend if bend > 0 else 0.0
    most = tried[k] * 2**octave / (1 - FRACTION) ** 0.5
    return Curve(most, tuple(tried), tuple(values))


def _shots(sampling: Mask, seed: int) -> tuple[Mask, Mask]:
    """Part whole shots (shot, sample)."""
    rng = np.random.default_rng(seed)
    aside = np.zeros_like(sampling)
    count = max(1, round(FRACTION * len(sampling)))
    aside[rng.choice(len(sampling), count, replace=False)] = True
    return sampling & ~aside, sampling & aside
