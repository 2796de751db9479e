"""The widths of a filter as a picture: one panel for each stage and channel."""

import io

import numpy as np
from numpy.typing import NDArray

from medssl.core.image import Image

PANEL = (3.0, 2.6)
"""Inches."""


def sigma_maps(
    values: NDArray[np.float64], image: Image, regions: NDArray[np.uint8] | None = None
) -> bytes:
    """Draw the maps on one slice: the middle one, or that with most of the regions.

    Args:
        values: (n_stages, 3, *grid) widths along x and y in voxels, in intensity in image units.
        image: That they are for; drawn as stored, x to the right and y down.
        regions: (*spatial) 0 outside; outlined.

    Returns:
        PNG bytes; the same maps give the same bytes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    planes = values if len(image.shape) == 2 else values[..., _slice(values, image, regions)]
    outline = regions
    if regions is not None and regions.ndim == 3:
        outline = regions[..., _middle(image, regions)]
    stages = len(planes)
    width, height = PANEL
    figure = Figure(figsize=(3 * width, stages * height), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    units = ("voxels", "voxels", "HU" if image.modality == "CT" else "image units")
    nx, ny = image.shape[:2]
    for s, stage in enumerate(planes):
        for c, (name, unit) in enumerate(zip("xyr", units, strict=True)):
            axes = figure.add_subplot(stages, 3, 3 * s + c + 1)
            shown = axes.imshow(
                stage[c].T,
                extent=(-0.5, nx - 0.5, ny - 0.5, -0.5),
                interpolation="nearest",
                aspect=image.spacing[1] / image.spacing[0],
            )
            if outline is not None and outline.any() and min(outline.shape) > 1:
                axes.contour(outline.T > 0, levels=[0.5], colors="red", linewidths=0.8)
            axes.set_title(f"stage {s + 1}, sigma {name}", fontsize=8)
            axes.set_xticks([])
            axes.set_yticks([])
            bar = figure.colorbar(shown, ax=axes)
            bar.set_label(unit, fontsize=7)
            bar.ax.tick_params(labelsize=6)
    target = io.BytesIO()
    canvas.print_png(target, metadata={"Software": None})
    return target.getvalue()


def _middle(image: Image, regions: NDArray[np.uint8] | None) -> int:
    """The slice that is drawn."""
    if regions is None or not regions.any():
        return image.shape[2] // 2
    return int(np.count_nonzero(regions, axis=(0, 1)).argmax())


def _slice(values: NDArray[np.float64], image: Image, regions: NDArray[np.uint8] | None) -> int:
    """The same in maps, which may have one slice for all."""
    return 0 if values.shape[-1] == 1 else _middle(image, regions)
