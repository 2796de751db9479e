"""The one training loop: named loss terms in, a fitted method out."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

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
from medssl.core.batch import Noisy
from medssl.core.errors import QualityError
from medssl.method import Method

OnStep = Callable[[int, int, dict[str, float]], None]
"""Told the step, how many there are, and the loss terms."""


def fit(
    method: Method,
    batches: Iterable[Noisy],
    train: Train,
    on_step: OnStep | None = None,
    held: Callable[[], Noisy] | None = None,
) -> list[float]:
    """Minimise the sum of the method's loss terms.

    Args:
        method: Its parameters are changed in place.
        batches: One for each step.
        train: Steps, optimiser, schedule.
        on_step: Told after each step.
        held: Makes the same held-back batch at each call, its chance included; the weights with
            the lowest loss on it, looked at every `train.check_every` steps, the first ones
            included, are kept. None, or no `check_every`, keeps the weights of the end.

    Returns:
        The total loss of each step.

    Raises:
        QualityError: The loss is not finite.
    """
    parameters = [p for p in method.parameters() if p.requires_grad]
    if not parameters:
        return []
    optimiser = _optimiser(train, parameters)
    schedule = _schedule(train, optimiser)
    mean = _RunningMean(parameters, train.ema)
    best = _Best(method, parameters, held) if held is not None and train.check_every else None
    method.train()
    totals = []
    for step, batch in zip(range(train.steps), batches, strict=False):
        terms = method.loss(batch)
        total = torch.stack(list(terms.values())).sum()
        if not bool(torch.isfinite(total)):
            raise QualityError(
                f"the loss became {float(total)} at step {step}", "lower train.lr with --set"
            )
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        if train.clip is not None:
            clip_grad_norm_(parameters, train.clip)
        optimiser.step()
        schedule.step()
        mean.update(step)
        totals.append(float(total.detach()))
        if on_step is not None:
            on_step(step + 1, train.steps, {k: float(v.detach()) for k, v in terms.items()})
        if best is not None and train.check_every and (step + 1) % train.check_every == 0:
            with mean.in_place():
                best.look()
    mean.keep()
    if best is not None:
        best.look()
        best.keep()
    method.eval()
    return totals


class _RunningMean:
    """Exponential mean of weights; the start counts less and less, however long the decay."""

    def __init__(self, parameters: list[torch.nn.Parameter], decay: float) -> None:
        self._parameters = parameters
        self._decay = decay
        self._mean = [p.detach().clone() for p in parameters] if decay > 0 else []

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for mean, p in zip(self._mean, self._parameters, strict=False):
            mean.lerp_(p, 1 - decay)

    @torch.no_grad()
    def keep(self) -> None:
        """The mean becomes the weights."""
        for mean, p in zip(self._mean, self._parameters, strict=False):
            p.copy_(mean)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The mean serves as the weights for a while."""
        last = _copies(self._parameters) if self._mean else []
        self.keep()
        yield
        with torch.no_grad():
            for p, old in zip(self._parameters, last, strict=False):
                p.copy_(old)


class _Best:
    """The weights with the lowest loss on a held-back batch."""

    def __init__(
        self,
        method: Method,
        parameters: list[torch.nn.Parameter],
        held: Callable[[], Noisy],
    ) -> None:
        self._method, self._parameters, self._held = method, parameters, held
        self._lowest = float("inf")
        self._weights: list[Tensor] = []
        self.look()

    @torch.no_grad()
    def look(self) -> None:
        """Remember the present weights if they are better."""
        self._method.eval()
        loss = float(torch.stack(list(self._method.loss(self._held()).values())).sum())
        self._method.train()
        if loss < self._lowest:
            self._lowest, self._weights = loss, _copies(self._parameters)

    @torch.no_grad()
    def keep(self) -> None:
        """Go back to the best weights."""
        for p, best in zip(self._parameters, self._weights, strict=False):
            p.copy_(best)


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
