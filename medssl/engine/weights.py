"""Weights of an earlier training: what they are, and whether they suit a scan."""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from medssl import config
from medssl.config import Recipe
from medssl.core.errors import UsageError, WeightsError, naming, printable
from medssl.engine.archive import Look
from medssl.engine.build import restorer
from medssl.engine.checkpoint import fill
from medssl.engine.infer import Scaling
from medssl.io import weights as files
from medssl.io.run_folder import RECORD, RunFolder
from medssl.method import Facts, Restorer

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


@dataclass(frozen=True)
class Trained:
    """A recipe with its weights."""

    recipe: Recipe
    """With nothing left to learn."""
    seen: Seen
    tensors: Mapping[str, Tensor]
    sha256: str
    """Of the file of weights."""
    compared: Compared | None = None
    """With the default method, where there were held-out scans."""

    @classmethod
    def load(cls, path: Path, changes: Mapping[str, Any]) -> "Trained":
        """The weights in the folder of a run.

        Args:
            path: The folder, or the file of weights in it.
            changes: Dotted keys of the recipe with other values.

        Raises:
            WeightsError: Missing, not complete, damaged, or not those of the recipe.
            UsageError: A key that the recipe does not have.
        """
        folder = RunFolder(path.parent if path.is_file() else path)
        record = folder.record()
        with naming(folder.path):
            if record.get("complete") is not True:
                raise WeightsError(
                    "the training is not complete", "go on with medssl train --resume"
                )
            try:
                sha256 = str(record["weights"]["sha256"])
                seen = config.construct(Seen, record["seen"], RECORD)
                compared = record.get("compared")
                if compared is not None:
                    compared = config.construct(Compared, compared, RECORD)
                recipe = config.recorded(record["recipe"], {}, RECORD)
                restorer(recipe)
            except (KeyError, TypeError, ValueError, UsageError) as error:
                raise WeightsError(
                    "its run.json is damaged or of another version of medssl", "train again"
                ) from error
            recipe = config.recorded(record["recipe"], changes, RECORD)
            recipe = dataclasses.replace(recipe, train=None)
            trained = cls(recipe, seen, files.read(folder.weights, sha256), sha256, compared)
            trained.build()
        return trained

    def build(self) -> tuple[Restorer, dict[str, Any]]:
        """The method with its weights, and its settled `Config`.

        Raises:
            WeightsError: They do not fit.
        """
        method, settled = restorer(self.recipe)
        fill(method, self.tensors)
        method.eval()
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

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the sidecar."""
        return {"sha256": self.sha256, "seen": dataclasses.asdict(self.seen)}


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
