r"""How far the surfaces of two masks lie apart, in mm.

The surface S of a mask is the mask without its erosion by the neighbours across a face; what lies
at the border of the image is surface. With the distances d(s, S') of the voxels of one surface to
the other,

.. math:: \mathrm{HD}_{95} = \max\{ Q_{95}(d(S_P, S_R)),\ Q_{95}(d(S_R, S_P)) \}, \qquad
          \mathrm{ASSD} = \frac{\sum d(S_P, S_R) + \sum d(S_R, S_P)}{|S_P| + |S_R|},

.. math:: \mathrm{NSD}_\tau = \frac{|\{d(S_P, S_R) \le \tau\}| + |\{d(S_R, S_P) \le \tau\}|}
                                   {|S_P| + |S_R|} .

Voxels of the surface count alike, whatever area they stand for; tools that weight by area give
somewhat other values of NSD.

Reference: Huttenlocher, Klanderman, Rucklidge. Comparing images using the Hausdorff distance. PAMI
1993. Nikolov et al. Clinically applicable segmentation of head and neck anatomy for radiotherapy.
J. Med. Internet Res. 2021. Maier-Hein et al. Metrics reloaded. Nature Methods 2024.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medssl.core.boxes import box
from medssl.metrics.overlap import Empty, Mask

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Surface:
    """Distances between two surfaces, mm; NaN where one of them is not there."""

    hd: float
    """The longest distance."""
    hd95: float
    assd: float
    nsd: float
    """Share of both surfaces within the tolerance of the other."""


def surface(
    predicted: Mask,
    reference: Mask,
    spacing: Sequence[float],
    *,
    tolerance: float = 1.0,
    empty: Empty = "skip",
) -> Surface:
    """Distances between the surfaces of two masks.

    Args:
        predicted: (*spatial).
        reference: Of the same shape.
        spacing: mm along each axis.
        tolerance: tau, mm.
        empty: Where one mask is empty, its surface is as far away as the image is long
            (`diagonal`) or nowhere (NaN). Two empty masks agree with `one`, else all is NaN.
            A mask without a partner has no surface within the tolerance: NSD is 0.
    """
    there = bool(predicted.any()), bool(reference.any())
    if not any(there):
        return Surface(0.0, 0.0, 0.0, 1.0) if empty == "one" else Surface(*[math.nan] * 4)
    if not all(there):
        reach = zip(predicted.shape, spacing, strict=True)
        far = math.hypot(*(n * s for n, s in reach)) if empty == "diagonal" else math.nan
        return Surface(far, far, far, 0.0)
    around = box(predicted | reference)
    assert around is not None
    ours, theirs = _edge(predicted[around]), _edge(reference[around])
    to_reference = _distances(ours, theirs, spacing)
    to_predicted = _distances(theirs, ours, spacing)
    both = np.concatenate([to_reference, to_predicted])
    return Surface(
        hd=float(both.max()),
        hd95=max(float(np.percentile(d, 95)) for d in (to_reference, to_predicted)),
        assd=float(both.mean()),
        nsd=float(np.count_nonzero(both <= tolerance) / both.size),
    )


def _edge(mask: Mask) -> Mask:
    """The mask without what has all neighbours across a face; beyond the box there is nothing."""
    inner = mask.copy()
    for axis in range(mask.ndim):
        here, there = np.moveaxis(inner, axis, 0), np.moveaxis(mask, axis, 0)
        here[1:] &= there[:-1]
        here[:-1] &= there[1:]
        here[0] = here[-1] = False
    return mask & ~inner


def _distances(start: Mask, end: Mask, spacing: Sequence[float]) -> Floats:
    """(n,) mm from each voxel of one set to the nearest of another."""
    away: Floats = ndimage.distance_transform_edt(~end, sampling=tuple(spacing))
    return away[start]
