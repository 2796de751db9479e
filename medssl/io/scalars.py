"""Losses for TensorBoard; the only user of the package tensorboard, an extra."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medssl.core.errors import UsageError


class Scalars:
    """Event files of a run; what an earlier call wrote after `step` is taken as undone.

    Args:
        folder: Where they go.
        step: From which the run goes on.

    Raises:
        UsageError: The package is not there.
    """

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            raise UsageError(
                "train.tensorboard needs a package that is missing",
                "pip install 'medssl[tensorboard]'",
            ) from error
        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def add(self, line: Mapping[str, Any]) -> None:
        """The numbers of a line of `metrics.jsonl`."""
        step = int(line["step"])
        for name in ("loss", "held_out", "lr", "samples_per_second"):
            if name in line:
                self._writer.add_scalar(name, line[name], step)
        for group in ("terms", "measured"):
            for name, value in line.get(group, {}).items():
                self._writer.add_scalar(f"{group}/{name}", value, step)

    def close(self) -> None:
        """Write what waits."""
        self._writer.close()
