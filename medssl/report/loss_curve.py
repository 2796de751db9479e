"""How the loss fell, as a picture."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

SIZE = (6.0, 3.6)
"""Inches."""


def loss_curve(lines: Sequence[Mapping[str, Any]]) -> bytes:
    """Draw the loss of each step and that of the held-out patients.

    Args:
        lines: With `step`, `loss`, and `held_out` where it was looked at.

    Returns:
        PNG bytes; the same lines give the same bytes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot([r["step"] for r in lines], [r["loss"] for r in lines], lw=0.8, label="loss")
    looked = [r for r in lines if "held_out" in r]
    if looked:
        steps, values = [r["step"] for r in looked], [r["held_out"] for r in looked]
        axes.plot(steps, values, marker=".", label="held-out patients")
    axes.set_xlabel("step")
    axes.legend()
    target = io.BytesIO()
    canvas.print_png(target, metadata={"Software": None})
    return target.getvalue()
