"""One PNG beside every output: before, after, what was removed, and the noise map.

The same input gives the same bytes: no date, no software entry, no font of the machine.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medssl.core.image import Image

LARGEST = 400_000
"""Bytes; the picture is drawn smaller until it fits."""
GREYS = 64
"""Grey levels; more cost bytes and cannot be told apart."""
INCHES_PER_PANEL = 2.4
DPI = (150, 125, 105, 90, 75, 60)
VIEWS = (("axial", 0, 1, 2), ("coronal", 0, 2, 1), ("sagittal", 1, 2, 0))
"""Name, axis across, axis up, axis looked along, all in RAS."""
OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))
SOFT_TISSUE = (-160.0, 240.0)
LUNG = (-1350.0, 150.0)

NoiseMap = Callable[[tuple[slice, ...]], NDArray[np.float32]]
"""Standard deviation of the noise, image units, for a part (*spatial slices) of the grid."""


@dataclass(frozen=True)
class _View:
    """One plane through the volume, turned as a radiologist looks at it."""

    name: str
    part: tuple[slice, ...]
    axes: tuple[int, int]
    """Voxel axes drawn across and up."""
    flips: tuple[bool, bool]
    aspect: float
    letters: tuple[str, str, str, str]
    """Left, right, bottom, top."""
    millimetres: float
    """Width of one drawn pixel."""

    def turned(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """The plane as rows from the top and columns from the left."""
        plane = block.transpose(self.axes[1], self.axes[0], *self._rest(block.ndim)).squeeze()
        plane = plane.reshape(block.shape[self.axes[1]], block.shape[self.axes[0]])
        across, up = self.flips
        return plane[:: 1 if up else -1, :: -1 if across else 1]

    def _rest(self, n: int) -> tuple[int, ...]:
        return tuple(a for a in range(n) if a not in self.axes)


def preview(
    before: Image,
    after: NDArray[np.float32],
    noise_map: NoiseMap | None,
    caption: tuple[str, ...],
    names: tuple[str, str, str] = ("before", "after", "residual"),
) -> bytes:
    """Draw the picture.

    Args:
        before: The input.
        after: (C, *spatial) the result; the first channel is shown (the middle of a series).
        noise_map: Asked for the planes that are drawn, nothing else; None draws none.
        caption: Lines below the panels; no names of people or files.
        names: Of the input, the result and what lies between them.

    Returns:
        PNG bytes, at most `LARGEST` unless the image itself cannot be drawn smaller.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    channel = before.data.shape[0] // 2 if before.channels == "time" else 0
    volume = before.data[channel]
    views = _views(before)
    low, high = _window(before, volume)
    dim = LUNG if before.modality == "CT" else (low, low + 0.15 * (high - low))
    rows = [(v, (low, high), v.name) for v in views]
    rows.append((views[0], dim, "lung window" if before.modality == "CT" else "low window"))
    shown = [_planes(v, volume, after[channel], noise_map) for v, _, _ in rows]
    reach = max(float(np.percentile(np.abs(p[2]), 99)) for p in shown) or 1.0
    most = max(float(p[-1].max()) for p in shown) or 1.0
    columns = len(shown[0])
    heights = [
        min(max(p[0].shape[0] * v.aspect / p[0].shape[1], 0.3), 1.6)
        for (v, _, _), p in zip(rows, shown, strict=True)
    ]
    margin = 0.16 * len(caption) + 0.1
    tall = INCHES_PER_PANEL * sum(heights) + margin + 0.3
    figure = Figure(figsize=(columns * INCHES_PER_PANEL, tall), facecolor="black")
    canvas = FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        len(rows),
        columns,
        height_ratios=heights,
        left=0.03,
        right=0.995,
        wspace=0.02,
        hspace=0.03,
        bottom=margin / tall,
        top=1 - 0.3 / tall,
    )
    was, made, between = names
    titles = (was, made, f"{between}, ±{reach:.3g}", f"noise map, 0 to {1.25 * most:.3g}")
    for r, ((view, window, name), planes) in enumerate(zip(rows, shown, strict=True)):
        windows = (window, window, (-reach, reach), (0.0, 1.25 * most))
        for c, (plane, (bottom, top)) in enumerate(zip(planes, windows, strict=False)):
            axes = figure.add_subplot(grid[r, c])
            axes.imshow(
                plane,
                cmap="gray",
                vmin=bottom,
                vmax=top,
                interpolation="nearest",
                aspect=view.aspect,
            )
            axes.set_xticks([])
            axes.set_yticks([])
            if r == 0:
                axes.set_title(titles[c], color="white", fontsize=9, pad=3)
            if c == 0:
                axes.set_ylabel(name, color="white", fontsize=8, labelpad=2)
                _letter(axes, view, plane.shape)
    for line, text in enumerate(caption):
        y = (margin - 0.16 * (line + 1)) / tall
        figure.text(0.03, y, text, color="white", fontsize=8)
    for dpi in DPI:
        figure.set_dpi(dpi)
        canvas.draw()
        content = _png(np.asarray(canvas.buffer_rgba()))
        if len(content) <= LARGEST:
            break
    return content


def _views(image: Image) -> list[_View]:
    """The planes through the middle that have enough rows to be looked at."""
    if len(image.shape) == 2:
        step = image.spacing
        return [
            _View(
                "picture",
                (slice(None), slice(None)),
                (0, 1),
                (False, True),
                step[1] / step[0],
                ("", "", "", ""),
                step[0],
            )
        ]
    directions = image.geometry.affine[:3, :3] / np.linalg.norm(
        image.geometry.affine[:3, :3], axis=0
    )
    axis_of = _assign(directions)
    extents = [n * s for n, s in zip(image.shape, image.spacing, strict=True)]
    found = []
    for name, across, up, along in VIEWS:
        a, b, c = axis_of[across], axis_of[up], axis_of[along]
        positive = directions[across, a] > 0, directions[up, b] > 0
        # Radiological: the patient's right, or front, is on the left of the screen.
        mirrored = positive[0]
        left = "R" if name != "sagittal" else "A"
        bottom = "P" if name == "axial" else "I"
        middle = image.shape[c] // 2
        part = tuple(slice(middle, middle + 1) if k == c else slice(None) for k in range(3))
        view = _View(
            name,
            part,
            (a, b),
            (mirrored, not positive[1]),
            image.spacing[b] / image.spacing[a],
            (left, OPPOSITE[left], bottom, OPPOSITE[bottom]),
            image.spacing[a],
        )
        flat = min(extents[a], extents[b]) < 0.2 * max(extents[a], extents[b])
        if not (flat or min(image.shape[a], image.shape[b]) < 8):
            found.append(view)
    if not found:
        thinnest = int(np.argmin(image.shape))
        found = [_plain_view(image, thinnest)]
    return found


def _plain_view(image: Image, along: int) -> _View:
    """A plane of an image that is thin in two directions, in voxel order."""
    a, b = (k for k in range(3) if k != along)
    part = tuple(
        slice(n // 2, n // 2 + 1) if k == along else slice(None) for k, n in enumerate(image.shape)
    )
    return _View(
        "slice",
        part,
        (a, b),
        (False, True),
        image.spacing[b] / image.spacing[a],
        ("", "", "", ""),
        image.spacing[a],
    )


def _assign(directions: NDArray[np.float64]) -> list[int]:
    """The voxel axis that runs most along each of R, A and S, each used once."""
    from scipy.optimize import linear_sum_assignment

    _, columns = linear_sum_assignment(-np.abs(directions))
    return [int(c) for c in columns]


def _planes(
    view: _View,
    volume: NDArray[np.float32],
    after: NDArray[np.float32],
    noise_map: NoiseMap | None,
) -> tuple[NDArray[np.float32], ...]:
    old, new = volume[view.part], after[view.part]
    residual = np.nan_to_num(old - new)
    blocks = [np.nan_to_num(old), np.nan_to_num(new), residual]
    if noise_map is not None:
        blocks.append(noise_map(view.part))
    return tuple(view.turned(block) for block in blocks)


def _window(image: Image, volume: NDArray[np.float32]) -> tuple[float, float]:
    """Display window from the input alone, the same for before and after."""
    if image.modality == "CT":
        return SOFT_TISSUE
    stride = tuple(slice(None, None, max(1, n // 96)) for n in volume.shape)
    sample = volume[stride]
    sample = sample[np.isfinite(sample)]
    low, high = np.percentile(sample, [0.5, 99.5])
    return (float(low), float(high)) if high > low else (float(low), float(low) + 1.0)


def _letter(axes: object, view: _View, shape: tuple[int, ...]) -> None:
    """Orientation letters at the edges, and a bar of round length."""
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes)
    places = (
        (0.02, 0.5, "left", "center"),
        (0.98, 0.5, "right", "center"),
        (0.5, 0.02, "center", "bottom"),
        (0.5, 0.98, "center", "top"),
    )
    for (x, y, across, up), letter in zip(places, view.letters, strict=True):
        axes.text(
            x, y, letter, color="white", fontsize=7, ha=across, va=up, transform=axes.transAxes
        )
    if view.letters == ("", "", "", ""):
        return
    bar = max(
        (b for b in (1, 2, 5, 10, 20, 50, 100, 200) if b / view.millimetres < 0.4 * shape[1]),
        default=1,
    )
    x, y = 0.05 * shape[1], 0.95 * shape[0]
    axes.plot([x, x + bar / view.millimetres], [y, y], color="white", linewidth=1.5)
    axes.text(x, y - 0.015 * shape[0], f"{bar} mm", color="white", fontsize=6, va="bottom")


def _png(rgba: NDArray[np.uint8]) -> bytes:
    """Grey levels in a palette, which is a third of the size of colour."""
    from medssl.io import picture

    grey = np.rint(rgba[..., 0] / 255.0 * (GREYS - 1)).astype(np.uint8)
    return picture.grey_png(grey, GREYS)
