"""Weights of an earlier training: what they are, and whether they suit a scan."""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

from torch import Tensor

from medssl import config
from medssl.config import Recipe
from medssl.core.errors import UsageError, WeightsError, naming, printable
from medssl.engine.build import reconstructor, restorer
from medssl.engine.checkpoint import fill
from medssl.engine.infer import Scaling
from medssl.engine.noisy_scan import Look
from medssl.io import weights as files
from medssl.io.run_folder import RECORD, RunFolder
from medssl.method import Facts, Method, Reconstructor, Restorer

S = TypeVar("S", bound="Seen | SeenRaw")
BEYOND = 1.5
"""How far outside the range of the training a scan may lie before it is worth a word."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a method was trained on; part of `run.json`."""

    axes: int
    """Along which its crops lie: 2 are slices, 3 are volumes."""
    learnt: int
    """Scans that it learnt from."""
    tested: int
    """Scans that it was only tested on."""
    modalities: Mapping[str, int]
    """Scans of each; `""` where the file does not say."""
    laws: Mapping[str, int]
    """Scans of each law of noise."""
    unsure: int
    """Scans whose law was not clear."""
    sigma: tuple[float, float]
    """Least and largest noise, image units."""
    level: tuple[float, float]
    """Least and largest noise over the range of values."""
    brightest: tuple[float, float]
    """Least and largest upper end of the values, in the domain of the method."""
    levels: tuple[tuple[float, int], ...]
    """Histogram of the noise over the range of values: lower edge in factors of 2, scans."""

    @classmethod
    def of(cls, looks: Sequence[Look], tested: int, axes: int) -> "Seen":
        """A summary of all scans, those of the test included."""
        levels = Counter(math.floor(math.log2(look.level)) for look in looks)
        return cls(
            axes=axes,
            learnt=len(looks) - tested,
            tested=tested,
            modalities=dict(Counter(look.modality for look in looks)),
            laws=dict(Counter(look.law for look in looks)),
            unsure=sum(look.unsure for look in looks),
            sigma=_range([look.sigma for look in looks]),
            level=_range([look.level for look in looks]),
            brightest=_range([look.brightest for look in looks]),
            levels=tuple((2.0**k, levels[k]) for k in sorted(levels)),
        )


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The weights beside the default method on held-out scans; part of `run.json`."""

    scans: int
    """Held-out scans that both restored."""
    error: float
    """Expected error of the weights, in variances of the noise, mean over the scans."""
    default_error: float
    """The same of the default method."""

    @property
    def sentence(self) -> str | None:
        """What a user should know; None where the weights do better."""
        if self.error <= self.default_error:
            return None
        return (
            "the default method is expected to do better: on held-out scans it left "
            f"{self.default_error:.2g} of the noise variance, these weights {self.error:.2g}"
        )


@dataclass(frozen=True, kw_only=True)
class SeenRaw:
    """What a reconstruction was trained on; part of `run.json`."""

    learnt: int
    """Scans of the user that it learnt from."""
    tested: int
    """Scans of the user that it was only tested on."""
    labelled: int
    """Scans whose truth it saw, generated ones included."""
    generated: int
    """Scans that it learnt from and that were generated."""
    pictures: int
    """Scans of the user that were magnitude images, measured by simulated coils."""
    acceleration: tuple[float, float]
    """Least and largest."""
    sigma: tuple[float, float]
    """Least and largest noise, added noise included, where images are about 1."""

    @property
    def count(self) -> int:
        """Scans that it learnt from, generated ones included."""
        return self.learnt + self.generated


@dataclass(frozen=True)
class Loaded(Generic[S]):
    """A recipe with its weights."""

    recipe: Recipe
    """With nothing left to learn."""
    seen: S
    tensors: Mapping[str, Tensor]
    sha256: str
    """Of the file of weights."""
    compared: Compared | None = None
    """With the default method, where there were held-out scans."""

    task: ClassVar[str]
    seen_type: ClassVar[type]

    @classmethod
    def load(cls, path: Path, changes: Mapping[str, Any]) -> Self:
        """The weights in the folder of a run.

        Args:
            path: The folder, or the file of weights in it.
            changes: Dotted keys of the recipe with other values.

        Raises:
            WeightsError: Missing, not complete, damaged, of another task, or not of the recipe.
            UsageError: A key that the recipe does not have.
        """
        folder = RunFolder(path.parent if path.is_file() else path)
        record = folder.record()
        with naming(folder.path):
            if record.get("complete") is not True:
                raise WeightsError(
                    "the training is not complete", "go on with medssl train --resume"
                )
            if task_of(record) not in (cls.task, ""):
                raise WeightsError(
                    f"the training is of a {task_of(record)} recipe",
                    f"give one of a {cls.task} recipe",
                )
            try:
                sha256 = str(record["weights"]["sha256"])
                seen: Any = config.construct(cls.seen_type, record["seen"], RECORD)
                compared = record.get("compared")
                if compared is not None:
                    compared = config.construct(Compared, compared, RECORD)
                recipe = config.recorded(record["recipe"], {}, RECORD)
                cls._untrained(recipe)
            except (KeyError, TypeError, ValueError, UsageError) as error:
                raise WeightsError(
                    "its run.json is damaged or of another version of medssl", "train again"
                ) from error
            recipe = config.recorded(record["recipe"], changes, RECORD)
            recipe = dataclasses.replace(recipe, train=None)
            trained = cls(recipe, seen, files.read(folder.weights, sha256), sha256, compared)
            trained._filled()
        return trained

    @classmethod
    def _untrained(cls, recipe: Recipe) -> tuple[Method[Any], dict[str, Any]]:
        """The method of a recipe, and its settled `Config`."""
        raise NotImplementedError

    def _filled(self) -> tuple[Method[Any], dict[str, Any]]:
        """The method with its weights, and its settled `Config`.

        Raises:
            WeightsError: They do not fit.
        """
        method, settled = self._untrained(self.recipe)
        fill(method, self.tensors)
        method.eval()
        return method, settled

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the sidecar."""
        return {"sha256": self.sha256, "seen": dataclasses.asdict(self.seen)}


class Trained(Loaded[Seen]):
    """Weights of a method that removes noise."""

    task = "denoise"
    seen_type = Seen

    @classmethod
    def _untrained(cls, recipe: Recipe) -> tuple[Method[Any], dict[str, Any]]:
        return restorer(recipe)

    def build(self) -> tuple[Restorer, dict[str, Any]]:
        """The method with its weights, and its settled `Config`.

        Raises:
            WeightsError: They do not fit.
        """
        method, settled = self._filled()
        assert isinstance(method, Restorer)
        return method, settled

    def check(self, scale: Scaling, modality: str, facts: Facts) -> list[str]:
        """What a user should know before these weights restore a scan.

        Args:
            scale: The noise of the scan and its scale.
            modality: Of the scan.
            facts: Of the scan.

        Raises:
            WeightsError: They were trained for something else.
        """
        seen, law = self.seen, scale.noise.law.name
        if not _same_kind(modality, seen.modalities):
            raise WeightsError(
                f"the weights know {_list(seen.modalities)}, this is {modality or 'not CT'}",
                "use weights of its own kind, or --method auto",
            )
        if law not in seen.laws:
            raise WeightsError(
                f"the weights know {_list(seen.laws)} noise, that of this scan is {law}",
                f"if it is wrong, say --noise {next(iter(seen.laws))}; else use --method auto",
            )
        if facts.net_axes < seen.axes:
            raise WeightsError(
                f"the weights look along {seen.axes} axes, this scan only has {facts.net_axes}",
                "use weights of slices, or --method auto",
            )
        found = []
        if self.compared is not None and self.compared.sentence is not None:
            found.append(f"{self.compared.sentence}; leave --weights out")
        if not _within(scale.level, seen.level):
            low, high = seen.level
            found.append(
                f"its noise is {scale.level:.2g} of its range of values, "
                f"the weights know {low:.2g} to {high:.2g}"
            )
        elif not _within(scale.brightest, seen.brightest):
            low, high = seen.brightest
            found.append(
                f"its values reach {scale.brightest:.3g} times the noise, "
                f"the weights know {low:.3g} to {high:.3g}"
            )
        return found


class TrainedRecon(Loaded[SeenRaw]):
    """Weights of a method that makes images of raw data."""

    task = "recon"
    seen_type = SeenRaw

    @classmethod
    def _untrained(cls, recipe: Recipe) -> tuple[Method[Any], dict[str, Any]]:
        return reconstructor(recipe)

    def build(self) -> tuple[Reconstructor, dict[str, Any]]:
        """The method with its weights, and its settled `Config`.

        Raises:
            WeightsError: They do not fit.
        """
        method, settled = self._filled()
        assert isinstance(method, Reconstructor)
        return method, settled

    def outside(self, acceleration: float, sigma: float) -> str | None:
        """What a user should know before these weights reconstruct a scan.

        Args:
            acceleration: Of the scan.
            sigma: Of its noise, where images are about 1.
        """
        known = self.seen
        facts = []
        if not _within(acceleration, known.acceleration):
            facts.append(
                f"R is {acceleration:.2g}, the weights know {known.acceleration[0]:.2g} to "
                f"{known.acceleration[1]:.2g}"
            )
        if sigma > known.sigma[1] * BEYOND:  # less noise than known is no harm
            facts.append(f"sigma is {sigma:.2g}, the weights know up to {known.sigma[1]:.2g}")
        return "; ".join(facts) or None


def task_of(record: Mapping[str, Any]) -> str:
    """The task that the record of a run names, `""` where it names none."""
    recipe = record.get("recipe")
    task = recipe.get("task") if isinstance(recipe, Mapping) else None
    return task if task in config.TASKS else ""


def refuse_damaged(path: Path, record: Mapping[str, Any]) -> None:
    """Check the weights of a complete training of any task.

    Raises:
        WeightsError: Missing or damaged.
    """
    (TrainedRecon if task_of(record) == "recon" else Trained).load(path, {})


def _range(values: Sequence[float]) -> tuple[float, float]:
    return float(f"{min(values):.6g}"), float(f"{max(values):.6g}")


def _within(value: float, known: tuple[float, float]) -> bool:
    return known[0] / BEYOND <= value <= known[1] * BEYOND


def _same_kind(modality: str, known: Mapping[str, int]) -> bool:
    """CT is told by its values; anything else is only known where a header says it."""
    if modality == "CT" or set(known) == {"CT"}:
        return modality in known
    return modality in known or modality == "" or "" in known


def _list(counts: Mapping[str, int]) -> str:
    return ", ".join(printable(name, 16) or "scans that are not CT" for name in counts)
