"""The one training loop: named loss terms in, a fitted method out."""

from collections.abc import Callable, Iterable

import torch
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler, OneCycleLR

from medssl.config import Train
from medssl.core.batch import Noisy
from medssl.core.errors import QualityError
from medssl.method import Method

OnStep = Callable[[int, int, dict[str, float]], None]
"""Told the step, how many there are, and the loss terms."""


def fit(
    method: Method, batches: Iterable[Noisy], train: Train, on_step: OnStep | None = None
) -> list[float]:
    """Minimise the sum of the method's loss terms.

    Args:
        method: Its parameters are changed in place.
        batches: One for each step.
        train: Steps, optimiser, schedule.
        on_step: Told after each step.

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
        optimiser.step()
        schedule.step()
        totals.append(float(total.detach()))
        if on_step is not None:
            on_step(step + 1, train.steps, {k: float(v.detach()) for k, v in terms.items()})
    method.eval()
    return totals


def _optimiser(train: Train, parameters: list[torch.nn.Parameter]) -> Optimizer:
    if train.optimiser == "adamw":
        return AdamW(parameters, lr=train.lr, weight_decay=train.weight_decay)
    return Adam(parameters, lr=train.lr, weight_decay=train.weight_decay)


def _schedule(train: Train, optimiser: Optimizer) -> LRScheduler:
    if train.schedule == "cosine":
        return CosineAnnealingLR(optimiser, train.steps)
    if train.schedule == "onecycle":
        return OneCycleLR(optimiser, train.lr, total_steps=train.steps)
    return ConstantLR(optimiser, 1.0)
