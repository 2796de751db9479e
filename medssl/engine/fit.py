"""The one training loop: named loss terms in, a fitted method out."""

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Generic

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from medssl.config import Train
from medssl.core.errors import QualityError
from medssl.core.ranks import total, world
from medssl.engine.distributed import shared_out
from medssl.engine.optim import optimiser, schedule, set_decay
from medssl.method import Batch, Method

OnStep = Callable[[int, int, dict[str, float]], None]
"""Told the step, how many there are, and the loss terms."""


SPIKE = 10.0
"""Loss over the median of the last ones above which a step is not taken; a median of 0, as of a
number of mistakes, says nothing."""
MEDIAN_OF = 101
"""Losses that the median is of."""
ENOUGH = 20
"""Losses from which on it means something."""


class Fitting(Generic[Batch]):
    """A method on its way: everything that changes from step to step.

    Where several processes train together, each has one, and gradients are averaged over them.

    Args:
        method: With parameters, which are changed in place.
        train: Steps, optimiser, schedule.
        held: Makes the same held-back batch at each call, its chance included; the weights with
            the lowest loss on it, looked at every `train.check_every` steps, the first ones
            included, are kept. None, or no `check_every`, keeps the weights of the end.
        score: Takes the place of the loss on a held-back batch; the method is in its evaluation
            mode when it is asked.
        keep_best: False looks at the held-back batch and keeps the weights of the end.
        patience: Steps in a row that may be left out because their loss is not finite, or over
            ten times the median of the last ones.
    """

    def __init__(
        self,
        method: Method[Batch],
        train: Train,
        held: Callable[[], Batch] | None = None,
        score: Callable[[], float] | None = None,
        *,
        keep_best: bool = True,
        patience: int = 0,
    ) -> None:
        self.method = method
        self.train = train
        self.patience = patience
        self.step = 0
        """Steps done."""
        self.skipped = self.in_a_row = 0
        """Steps that were left out, and those since the last that was taken."""
        self.recent: list[float] = []
        """The last losses, where a median of them is wanted."""
        self.named: list[str] = []
        """The terms that these are sums of; losses of others are not compared with them."""
        if train.shard and world() > 1:
            shared_out(method)
        self.parameters = [p for p in method.parameters() if p.requires_grad]
        self.optimiser = optimiser(train, method)
        self.schedule = schedule(train, self.optimiser)
        self.mean = RunningMean(self.parameters, train.ema)
        self.terms: nn.Module = _Terms(method)
        if train.compile:
            self.terms.compile()
        if world() > 1 and not train.shard:
            self.terms = DistributedDataParallel(self.terms, broadcast_buffers=False)
        self.best = None
        if score is None and held is not None:
            score = _loss_on(method, held)
        if score is not None and train.check_every:
            self.best = Best(method, self.parameters, score, keeps=keep_best)

    def advance(self, *parts: Batch) -> dict[str, float]:
        """One step down the sum of the method's loss terms, which come back with it as `total`.

        Args:
            parts: Of the batch, looked at one after the other.

        Raises:
            QualityError: The loss is not finite, too often in a row where `patience` is given.
        """
        before = [b.clone() for b in self.method.buffers()] if self.patience else []
        self.optimiser.zero_grad(set_to_none=True)
        terms = self._down(parts)
        if self.named != list(terms):
            self.named, self.recent = list(terms), []
        if self._is_sound(terms["total"]):
            if self.train.clip is not None:
                clip_grad_norm_(self.parameters, self.train.clip)
            self.optimiser.step()
        else:
            with torch.no_grad():
                for buffer, old in zip(self.method.buffers(), before, strict=True):
                    buffer.copy_(old)
        self.schedule.step()
        progress = (self.step + 1) / self.train.steps
        set_decay(self.train, self.optimiser, progress)
        with torch.no_grad():
            self.method.after_step(progress)
        self.mean.update(self.step)
        self.step += 1
        if self.best is not None and self.looks:
            with self.mean.in_place():
                self.best.look()
        return terms

    def _down(self, parts: tuple[Batch, ...]) -> dict[str, float]:
        """Gradients of the mean over parts and ranks; the terms and their `total`."""
        sums: dict[str, Tensor] = {}
        for k, part in enumerate(parts):
            with self._alone(last=k == len(parts) - 1):
                with self._precision():
                    terms = self.terms(part)
                loss = torch.stack(list(terms.values())).sum() / len(parts)
                if self.patience == 0 and not bool(torch.isfinite(loss)):
                    raise _not_finite(float(loss.detach()), self.step)
                loss.backward()
            found = {k: v.detach() / len(parts) for k, v in terms.items()}
            found["total"] = loss.detach()
            sums = {k: v + sums[k] if sums else v for k, v in found.items()}
        if world() > 1:
            mean = total(torch.stack([v.float() for v in sums.values()])) / world()
            sums = dict(zip(sums, mean, strict=True))
        return {k: float(v) for k, v in sums.items()}

    def _is_sound(self, loss: float) -> bool:
        """Whether the step may be taken.

        Raises:
            QualityError: Too many in a row may not.
        """
        if self.patience == 0:
            return True
        median = statistics.median(self.recent) if len(self.recent) >= ENOUGH else float("inf")
        most = SPIKE * abs(median) if median else float("inf")
        if math.isfinite(loss) and not loss > most:
            self.recent = [*self.recent[1 - MEDIAN_OF :], loss]
            self.in_a_row = 0
            return True
        self.skipped += 1
        self.in_a_row += 1
        if self.in_a_row >= self.patience:
            raise _not_finite(loss, self.step)
        return False

    def _alone(self, last: bool) -> AbstractContextManager[None]:
        """Gradients are averaged over ranks once a step, with the last part."""
        if isinstance(self.terms, DistributedDataParallel) and not last:
            return self.terms.no_sync()
        return nullcontext()

    def _precision(self) -> AbstractContextManager[None]:
        if self.train.precision == "fp32":
            return nullcontext()
        kind = self.parameters[0].device.type
        return torch.autocast(kind, torch.bfloat16)

    @property
    def looks(self) -> bool:
        """Whether the held-back batch is looked at after the step that was just done."""
        every = self.train.check_every
        return self.step == self.train.steps or (every is not None and self.step % every == 0)

    def finish(self) -> None:
        """The weights to keep become those of the method."""
        self.mean.keep()
        if self.best is not None:
            self.best.keep()
        self.method.eval()


class _Terms(nn.Module, Generic[Batch]):
    """The loss of a method as a module, so that ranks average its gradients."""

    def __init__(self, method: Method[Batch]) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: Batch) -> Mapping[str, Tensor]:
        """Named terms."""
        return self.method.loss(batch)


def fit(
    method: Method[Batch],
    batches: Iterable[Batch],
    train: Train,
    on_step: OnStep | None = None,
    held: Callable[[], Batch] | None = None,
) -> list[float]:
    """Minimise the sum of the method's loss terms.

    Args:
        method: Its parameters are changed in place.
        batches: One for each step.
        train: Steps, optimiser, schedule.
        on_step: Told after each step.
        held: Makes the held-back batch, see `Fitting`.

    Returns:
        The total loss of each step.

    Raises:
        QualityError: The loss is not finite.
    """
    if not any(p.requires_grad for p in method.parameters()):
        return []
    return go_on(Fitting(method, train, held), batches, on_step)


def go_on(
    fitting: Fitting[Batch],
    batches: Iterable[Batch | tuple[Batch, ...]],
    on_step: OnStep | None = None,
    before_step: Callable[[int], None] | None = None,
) -> list[float]:
    """Take the steps that are left, and keep the weights to keep.

    Args:
        fitting: New, or as a checkpoint left it.
        batches: One for each step that is left, or a tuple of its parts.
        on_step: Told after each step; what it raises ends the fit between two steps.
        before_step: Told before each step is taken and before its batch is asked for.

    Returns:
        The total loss of each of these steps.

    Raises:
        QualityError: The loss is not finite.
    """
    steps = fitting.train.steps
    fitting.method.train()
    totals = []
    source = iter(batches)
    for step in range(fitting.step, steps):
        if before_step is not None:
            before_step(step)
            fitting.method.train()
        batch = next(source, None)
        if batch is None:
            break
        terms = fitting.advance(*(batch if isinstance(batch, tuple) else (batch,)))
        totals.append(terms["total"])
        if on_step is not None:
            on_step(fitting.step, steps, terms)
    fitting.finish()
    return totals


class RunningMean:
    """Exponential mean of weights; the start counts less and less, however long the decay."""

    def __init__(self, parameters: list[torch.nn.Parameter], decay: float) -> None:
        self._parameters = parameters
        self._decay = decay
        self.weights = [p.detach().clone() for p in parameters] if decay > 0 else []
        """The mean; nothing where none is kept."""

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for mean, p in zip(self.weights, self._parameters, strict=False):
            mean.lerp_(p, 1 - decay)

    @torch.no_grad()
    def keep(self) -> None:
        """The mean becomes the weights."""
        for mean, p in zip(self.weights, self._parameters, strict=False):
            p.copy_(mean)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The mean serves as the weights for a while."""
        last = _copies(self._parameters) if self.weights else []
        self.keep()
        yield
        with torch.no_grad():
            for p, old in zip(self._parameters, last, strict=False):
                p.copy_(old)


class Best(Generic[Batch]):
    """The lowest score, and the weights that had it where they are to be kept."""

    def __init__(
        self,
        method: Method[Batch],
        parameters: list[torch.nn.Parameter],
        score: Callable[[], float],
        *,
        keeps: bool = True,
    ) -> None:
        self._method, self._parameters, self._score = method, parameters, score
        self._keeps = keeps
        self.last = self.lowest = float("inf")
        """Score at the last look, and the lowest at any."""
        self.weights: list[Tensor] = []
        self.look()
        self.first = self.last
        """Score before the first step."""

    @property
    def kept(self) -> float:
        """The score of the weights of the end, once they are chosen."""
        return self.lowest if self._keeps else self.last

    @torch.no_grad()
    def look(self) -> None:
        """Remember the present weights if they are better."""
        self._method.eval()
        self.last = self._score()
        self._method.train()
        if self.last < self.lowest:
            self.lowest = self.last
            self.weights = _copies(self._parameters) if self._keeps else []

    @torch.no_grad()
    def keep(self) -> None:
        """Go back to the best weights."""
        for p, best in zip(self._parameters, self.weights, strict=False):
            p.copy_(best)


def _loss_on(method: Method[Batch], held: Callable[[], Batch]) -> Callable[[], float]:
    def score() -> float:
        loss = torch.stack(list(method.loss(held()).values())).sum()
        return float(total(loss.reshape(1)) / world())

    return score


def _not_finite(loss: float, step: int) -> QualityError:
    return QualityError(f"the loss became {loss:.3g} at step {step}", "lower train.lr with --set")


def _copies(parameters: list[torch.nn.Parameter]) -> list[Tensor]:
    return [p.detach().clone() for p in parameters]
