r"""How far two masks agree, counted in voxels.

With the predicted set P and the reference R,

.. math:: \mathrm{Dice} = \frac{2 |P \cap R|}{|P| + |R|}, \quad
          \mathrm{IoU} = \frac{|P \cap R|}{|P \cup R|}, \quad
          \mathrm{precision} = \frac{|P \cap R|}{|P|}, \quad
          \mathrm{recall} = \frac{|P \cap R|}{|R|} .

A quotient without a denominator is NaN: nothing was asked for or nothing was said. Two empty masks
agree, which some count as a Dice of 1; whoever does so is rewarded for easy cases, so here it has
to be asked for.

Reference: Dice. Measures of the amount of ecologic association between species. Ecology 1945.
Jaccard. Etude comparative de la distribution florale. Bull. Soc. Vaud. Sci. Nat. 1901. Maier-Hein
et al. Metrics reloaded. Nature Methods 2024.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Empty = Literal["skip", "one", "diagonal"]
"""What an empty mask is worth: nothing that is counted; full agreement where both are empty; or the
diagonal of the image as distance where one is."""


@dataclass(frozen=True)
class Overlap:
    """Agreement of a mask with its reference."""

    dice: float
    iou: float
    precision: float
    recall: float
    volume_error: float
    """Predicted less reference volume, ml."""
    volume_error_percent: float
    """The same in % of the reference."""


def overlap(
    predicted: Mask, reference: Mask, voxel_mm3: float, *, empty: Empty = "skip"
) -> Overlap:
    """Count the voxels that two masks share.

    Args:
        predicted: (*spatial).
        reference: Of the same shape.
        voxel_mm3: Volume of a voxel.
        empty: With `one`, two empty masks have a Dice and an IoU of 1; otherwise NaN.
    """
    p, r = int(np.count_nonzero(predicted)), int(np.count_nonzero(reference))
    both = int(np.count_nonzero(predicted & reference))
    nothing = 1.0 if empty == "one" else math.nan
    return Overlap(
        dice=2 * both / (p + r) if p + r else nothing,
        iou=both / (p + r - both) if p + r else nothing,
        precision=both / p if p else math.nan,
        recall=both / r if r else math.nan,
        volume_error=(p - r) * voxel_mm3 / 1000,
        volume_error_percent=100 * (p - r) / r if r else math.nan,
    )
