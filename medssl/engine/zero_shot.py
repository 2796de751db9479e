"""Learning from the one scan that is reconstructed, and whether that was worth it.

Some of the measured points are never asked about while a net learns. They say when it is best, and
whether it is better than the image that it began with; in doubt, that image is kept.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medssl.config import Train
from medssl.core.batch import Acquired
from medssl.core.errors import QualityError
from medssl.engine.fit import Fitting, go_on
from medssl.engine.withhold import Parted, folds, mean_error
from medssl.method import OneScan, Reconstructor
from medssl.physics.sampling import withhold

PATIENCE = 4
"""Looks at what is kept aside without a lower error, after which a net has learnt enough."""

FEWEST = 2
"""Partings whose errors have a spread."""

Clock = Callable[[], float]
"""Seconds."""
Tell = Callable[[int, int], None]
"""Told how many steps are done, and how many there are."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A net and the images that it began with, on the same samples kept aside."""

    first: float
    """Error of the images that it began with, mean over partings."""
    net: float
    """The same of the net."""
    uncertain: float
    """Standard error of their difference."""
    partings: int
    steps: int = 0
    """That the net learnt for."""
    out_of_time: bool = False

    @property
    def gained(self) -> bool:
        """The net is better, and not by chance."""
        return self.first - self.net > self.uncertain

    @property
    def change(self) -> float:
        """Of the error, as a share of it."""
        return self.net / self.first - 1 if self.first > 0 else 0.0

    @property
    def words(self) -> str:
        """Which of them is taken, and why."""
        if self.partings < FEWEST:
            return "L1 image kept (too few lines to judge a net by)"
        how = f"withheld error {100 * self.change:+.1f} %"
        return f"net ({how})" if self.gained else f"L1 image kept (net: {how})"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the sidecar."""
        winner = "net" if self.gained else "first image"
        return dataclasses.asdict(self) | {"taken": winner}


def learn(
    method: Reconstructor,
    how: OneScan,
    scans: Sequence[tuple[Acquired, Tensor]],
    train: Train,
    seed: int,
    tell: Tell,
    clock: Clock = time.monotonic,
) -> Judged:
    """Fit a net to one scan, and take it back where it is no better than what it began with.

    Args:
        method: Changed in place; its net does nothing yet.
        how: It learns.
        scans: Slices (1, ...) and their objects (1, H, W).
        train: Steps, optimiser, schedule.
        seed: Of the partings.
        tell: Told how far it is.
        clock: What the time is.
    """
    end = clock() + 60 * how.max_minutes
    kept = [folds(whole, inside, seed + k) for k, (whole, inside) in enumerate(scans)]
    begun = [_begun(method, part) for parts in kept for part in parts]
    if len(begun) < FEWEST:
        return Judged(first=0.0, net=0.0, uncertain=0.0, partings=len(begun))
    untrained = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    errors: list[float] = []

    def error() -> float:
        errors.append(float(mean_error(method.restore, begun).mean()))
        return errors[-1]

    def going() -> bool:
        stale = len(errors) - 1 - int(np.argmin(errors)) if errors else 0
        return clock() < end and stale < PATIENCE

    fitting = Fitting(method, train, score=error)
    wholes = [whole for whole, _ in scans]
    steps = _examples(method, how, wholes, kept, seed, going)
    try:
        go_on(fitting, steps, lambda step, count, _: tell(step, count))
    except QualityError:  # it ran away; the best so far is as good as ever
        fitting.finish()
    judged = choose_better(first_of, method.restore, begun)
    if not judged.gained:
        method.load_state_dict(untrained)
    return dataclasses.replace(judged, steps=fitting.step, out_of_time=clock() >= end)


def choose_better(
    first: Callable[[Acquired], Tensor],
    net: Callable[[Acquired], Tensor],
    parts: Sequence[Parted],
) -> Judged:
    """Compare two ways to reconstruct on the same samples kept aside.

    Args:
        first: The one that is taken where the difference may be chance.
        net: The other one.
        parts: Partings of one slice each, `FEWEST` or more.
    """
    a, b = (mean_error(way, parts)[:, 0].double() for way in (first, net))
    return Judged(
        first=float(a.mean()),
        net=float(b.mean()),
        uncertain=float((a - b).std()) / len(parts) ** 0.5,
        partings=len(parts),
    )


def first_of(batch: Acquired) -> Tensor:
    """The image that a batch was given to begin with."""
    assert batch.start is not None
    return batch.start


def _begun(method: Reconstructor, part: Parted) -> Parted:
    """With the image that the method begins with, made of what is seen."""
    with torch.no_grad():
        seen = dataclasses.replace(part.seen, start=method.first(part.seen))
    return dataclasses.replace(part, seen=seen)


def _examples(
    method: Reconstructor,
    how: OneScan,
    wholes: Sequence[Acquired],
    kept: Sequence[Sequence[Parted]],
    seed: int,
    going: Callable[[], bool],
) -> Iterator[Acquired]:
    """What each step sees: slices in turn, and of each its partings, made when they are needed."""
    made: dict[int, Acquired] = {}
    step = 0
    while going():
        number = step % (len(wholes) * how.partings)
        if number not in made:
            k = number % len(wholes)
            example = _example(wholes[k], kept[k], how.rho, seed + 1 + number)
            with torch.no_grad():
                made[number] = dataclasses.replace(example, start=method.first(example))
        chance = torch.Generator(wholes[0].kspace.device).manual_seed(seed + step)
        yield dataclasses.replace(made[number], generator=chance)
        step += 1


def _example(whole: Acquired, kept: Sequence[Parted], rho: float, seed: int) -> Acquired:
    """A scan without some of its points that may be asked about: seen are those kept, too.

    They are no answer that the net could learn, and without them it would learn to mend a scan
    that is worse than the one it will be applied to.
    """
    asked = whole.sampling
    for part in kept:
        asked = asked * (part.aside == 0)
    _, aside = withhold(asked[0, 0].cpu().numpy() > 0, rho, seed)
    at = torch.from_numpy(aside)[None, None].to(whole.sampling)
    return dataclasses.replace(whole, sampling=whole.sampling - at, aside=at)
