"""The one training loop: named loss terms in, a fitted method out."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Generic

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LRScheduler,
    OneCycleLR,
    StepLR,
)

from medssl.config import Train
from medssl.core.errors import QualityError
from medssl.method import Batch, Method

OnStep = Callable[[int, int, dict[str, float]], None]
"""Told the step, how many there are, and the loss terms."""


class Fitting(Generic[Batch]):
    """A method on its way: everything that changes from step to step.

    Args:
        method: With parameters, which are changed in place.
        train: Steps, optimiser, schedule.
        held: Makes the same held-back batch at each call, its chance included; the weights with
            the lowest loss on it, looked at every `train.check_every` steps, the first ones
            included, are kept. None, or no `check_every`, keeps the weights of the end.
        score: Takes the place of the loss on a held-back batch; the method is in its evaluation
            mode when it is asked.
    """

    def __init__(
        self,
        method: Method[Batch],
        train: Train,
        held: Callable[[], Batch] | None = None,
        score: Callable[[], float] | None = None,
    ) -> None:
        self.method = method
        self.train = train
        self.step = 0
        """Steps done."""
        self.parameters = [p for p in method.parameters() if p.requires_grad]
        self.optimiser = _optimiser(train, self.parameters)
        self.schedule = _schedule(train, self.optimiser)
        self.mean = RunningMean(self.parameters, train.ema)
        self.best = None
        if score is None and held is not None:
            score = _loss_on(method, held)
        if score is not None and train.check_every:
            self.best = Best(method, self.parameters, score)

    def advance(self, batch: Batch) -> dict[str, float]:
        """One step down the sum of the method's loss terms, which come back with it as `total`.

        Raises:
            QualityError: The loss is not finite.
        """
        terms = self.method.loss(batch)
        total = torch.stack(list(terms.values())).sum()
        if not bool(torch.isfinite(total)):
            raise QualityError(
                f"the loss became {float(total.detach())} at step {self.step}",
                "lower train.lr with --set",
            )
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()
        if self.train.clip is not None:
            clip_grad_norm_(self.parameters, self.train.clip)
        self.optimiser.step()
        self.schedule.step()
        self.mean.update(self.step)
        self.step += 1
        if self.best is not None and self.looks:
            with self.mean.in_place():
                self.best.look()
        return {k: float(v.detach()) for k, v in terms.items()} | {"total": float(total.detach())}

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
    fitting: Fitting[Batch], batches: Iterable[Batch], on_step: OnStep | None = None
) -> list[float]:
    """Take the steps that are left, and keep the weights to keep.

    Args:
        fitting: New, or as a checkpoint left it.
        batches: One for each step that is left.
        on_step: Told after each step; what it raises ends the fit between two steps.

    Returns:
        The total loss of each of these steps.

    Raises:
        QualityError: The loss is not finite.
    """
    steps = fitting.train.steps
    fitting.method.train()
    totals = []
    for _, batch in zip(range(fitting.step, steps), batches, strict=False):
        terms = fitting.advance(batch)
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
    """The weights with the lowest score."""

    def __init__(
        self,
        method: Method[Batch],
        parameters: list[torch.nn.Parameter],
        score: Callable[[], float],
    ) -> None:
        self._method, self._parameters, self._score = method, parameters, score
        self.last = self.lowest = float("inf")
        """Score at the last look, and the lowest at any."""
        self.weights: list[Tensor] = []
        self.look()
        self.first = self.last
        """Score before the first step."""

    @torch.no_grad()
    def look(self) -> None:
        """Remember the present weights if they are better."""
        self._method.eval()
        self.last = self._score()
        self._method.train()
        if self.last < self.lowest:
            self.lowest, self.weights = self.last, _copies(self._parameters)

    @torch.no_grad()
    def keep(self) -> None:
        """Go back to the best weights."""
        for p, best in zip(self._parameters, self.weights, strict=False):
            p.copy_(best)


def _loss_on(method: Method[Batch], held: Callable[[], Batch]) -> Callable[[], float]:
    return lambda: float(torch.stack(list(method.loss(held()).values())).sum())


def _copies(parameters: list[torch.nn.Parameter]) -> list[Tensor]:
    return [p.detach().clone() for p in parameters]


def _optimiser(train: Train, parameters: list[torch.nn.Parameter]) -> Optimizer:
    betas = (train.beta_1, 0.999)
    if train.optimiser == "adamw":
        return AdamW(parameters, lr=train.lr, betas=betas, weight_decay=train.weight_decay)
    return Adam(parameters, lr=train.lr, betas=betas, weight_decay=train.weight_decay)


def _schedule(train: Train, optimiser: Optimizer) -> LRScheduler:
    if train.schedule == "cosine":
        return CosineAnnealingLR(optimiser, train.steps)
    if train.schedule == "onecycle":
        return OneCycleLR(optimiser, train.lr, total_steps=train.steps)
    if train.schedule == "drops":
        return StepLR(optimiser, max(1, -(-train.steps // (train.drops + 1))), train.drop)
    return ConstantLR(optimiser, 1.0)
