"""The folder of a training: its files, and how they come and go.

```
run.json             what was trained, on what, how well; names no patient and no file
recipe.yaml          the recipe with nothing left open, to be used again
weights.safetensors  what `--weights` uses, when the training is complete
scans.jsonl          facts of each scan, named by its hash
failures.jsonl       scans that could not be used, and why
metrics.jsonl        losses
loss.png             the same as a picture
tensorboard/         the same for TensorBoard, if asked for
checkpoint-N/        all that is needed to go on after N steps: the last two
.lock                while a training writes
```
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from medssl.core.errors import OutputError, WeightsError
from medssl.core.run import plain
from medssl.io import atomic, sidecar, weights

RECORD = "run.json"
LARGEST_RECORD = 1 << 22
"""Bytes of a JSON file that is read whole."""
LOCK = ".lock"
CHECKPOINT = "checkpoint-"
KEPT = 2
"""Checkpoints; the older one is for the day on which the newer is damaged."""


@dataclass(frozen=True)
class RunFolder:
    """A folder that a training writes."""

    path: Path

    @property
    def weights(self) -> Path:
        """What `--weights` uses."""
        return self.path / "weights.safetensors"

    @property
    def recipe(self) -> Path:
        """The recipe with nothing left open."""
        return self.path / "recipe.yaml"

    @property
    def scans(self) -> Path:
        """Facts of each scan."""
        return self.path / "scans.jsonl"

    @property
    def failures(self) -> Path:
        """Scans that could not be used."""
        return self.path / "failures.jsonl"

    @property
    def metrics(self) -> Path:
        """Losses."""
        return self.path / "metrics.jsonl"

    @property
    def loss_curve(self) -> Path:
        """Losses, drawn."""
        return self.path / "loss.png"

    @property
    def tensorboard(self) -> Path:
        """Losses for TensorBoard, where they are asked for."""
        return self.path / "tensorboard"

    @property
    def begun(self) -> bool:
        """Whether there is something to go on with."""
        return (self.path / RECORD).is_file()

    @property
    def files(self) -> tuple[Path, ...]:
        """What a complete run holds, beside its checkpoints."""
        return (
            self.path / RECORD,
            self.recipe,
            self.weights,
            self.scans,
            self.failures,
            self.metrics,
            self.loss_curve,
        )

    def check(self, source: Path, *, overwrite: bool, resume: bool) -> None:
        """Refuse a folder that is taken, in use, or lies in the data.

        Raises:
            OutputError: With the remedy.
        """
        if (self.path / LOCK).exists():
            with self.locked():  # what a killed run left goes
                pass
        taken = overwrite or (resume and (self.begun or not self.path.exists()))
        atomic.check_target(self.path, overwrite=taken, source=source)
        if self.path.exists() and not self.path.is_dir():
            raise OutputError("is a file", "choose another name with -o", file=self.path)
        if self.path.is_dir() and any(self.path.iterdir()) and not self.begun:
            raise OutputError(
                "holds files but no training", "choose another folder with -o", file=self.path
            )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other training out of the folder, which is made for it if need be.

        The lock ends with the process, however that ends. File systems that know no locks keep
        nobody out.

        Raises:
            OutputError: Another training has it, or it cannot be made.
        """
        from filelock import FileLock, Timeout

        atomic.make_folder(self.path)
        lock = FileLock(self.path / LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise OutputError(
                "another training writes into it",
                "wait until it is done, or choose another folder with -o",
                file=self.path,
            ) from error
        except OSError:  # a file system without locks
            pass
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # while it is held, so that nobody else's goes
                (self.path / LOCK).unlink(missing_ok=True)
            lock.release()
            atomic.remove_if_empty(self.path)

    def begin(self, record: Mapping[str, Any]) -> None:
        """Make the folder, or empty it of an earlier training, and write the first record.

        Raises:
            OutputError: Not writable, or full.
        """
        atomic.make_folder(self.path)
        self._empty()
        self.write_record(record)

    def tidy(self) -> None:
        """Remove what a killed run left half written."""
        for path in atomic.leftovers(self.path):
            if path.is_dir():
                atomic.remove_folder(path)
            else:
                atomic.remove(path)

    def discard(self) -> None:
        """Take back what `begin` made; files of others stay."""
        self._empty()
        atomic.remove_if_empty(self.path)

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Replace `run.json`."""
        sidecar.write(self.path / RECORD, plain(record), overwrite=True)

    def write_recipe(self, text: str) -> None:
        """Replace `recipe.yaml`."""
        with atomic.file(self.recipe, overwrite=True) as sink:
            sink.write(text.encode())

    def record(self) -> dict[str, Any]:
        """What `run.json` holds.

        Raises:
            WeightsError: There is none, or it is damaged.
        """
        source = self.path / RECORD
        if not source.is_file():
            raise WeightsError(
                "is no folder of a training" if self.path.is_dir() else "does not exist",
                "give the folder that `medssl train -o` wrote",
                file=self.path,
            )
        return _json(source)

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Write a checkpoint, complete or not at all, and drop the one before the last.

        Raises:
            OutputError: Not writable, or full; earlier checkpoints are as they were.
        """
        with atomic.folder(self._place(step), overwrite=True) as place:
            digest = weights.write(place / "checkpoint.safetensors", tensors)
            sidecar.write(
                place / "state.json", plain({**state, "tensors_sha256": digest}), overwrite=False
            )
        for old in self.steps()[:-KEPT]:
            self._drop(old)

    def load(self, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """A checkpoint.

        Raises:
            WeightsError: Damaged.
        """
        place = self._place(step)
        state = _json(place / "state.json")
        tensors = weights.read(place / "checkpoint.safetensors", str(state.get("tensors_sha256")))
        return tensors, state

    def steps(self) -> list[int]:
        """Steps of the checkpoints, ascending."""
        names = [p.name.removeprefix(CHECKPOINT) for p in self.path.glob(f"{CHECKPOINT}*")]
        return sorted(int(n) for n in names if n.isdecimal())

    def _empty(self) -> None:
        for path in self.files:
            atomic.remove(path)
        atomic.remove_folder(self.tensorboard)
        for step in self.steps():
            self._drop(step)

    def _place(self, step: int) -> Path:
        return self.path / f"{CHECKPOINT}{step}"

    def _drop(self, step: int) -> None:
        atomic.remove_folder(self._place(step))


def _json(source: Path) -> dict[str, Any]:
    """An object of a JSON file.

    Raises:
        WeightsError: Missing, damaged, or something else.
    """
    try:
        if source.stat().st_size > LARGEST_RECORD:
            raise WeightsError(f"has {source.stat().st_size} bytes", "it is no record", file=source)
        found = json.loads(source.read_bytes())
    except OSError as error:
        raise WeightsError(f"cannot be read ({error.strerror})", "copy it", file=source) from error
    except (ValueError, RecursionError) as error:
        raise WeightsError("is no JSON, it is damaged", "copy it again", file=source) from error
    if not isinstance(found, dict):
        raise WeightsError("is no JSON object, it is damaged", "copy it again", file=source)
    return found
