"""Optimisers and schedules of a recipe; LAMB and LARS for batches of thousands.

References: You et al. Large Batch Optimization for Deep Learning: Training BERT in 76 Minutes.
ICLR 2020, Algorithm 2 (LAMB). You, Gitman, Ginsburg. Large Batch Training of Convolutional
Networks. arXiv 1708.03888, 2017 (LARS).
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LambdaLR,
    LRScheduler,
    OneCycleLR,
    SequentialLR,
    StepLR,
)

from medssl.config import Train

POLY = 0.9
"""Power of the share of steps that are left."""
TRUST = 1e-3
"""Norm of a step of LARS over that of the weights, at a learning rate of 1."""


class Lamb(Optimizer):
    r"""Adam whose step for each tensor has the norm of the tensor.

    .. math:: u = \hat m / (\sqrt{\hat v} + \epsilon) + \lambda w, \qquad
              w \leftarrow w - \eta \tfrac{\|w\|}{\|u\|} u .

    Tensors without decay (biases, norms) take the step of Adam.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step for every tensor that has a gradient."""
        del closure
        for group in self.param_groups:
            beta_1, beta_2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["step"] = torch.zeros(())
                    state["first"], state["second"] = torch.zeros_like(p), torch.zeros_like(p)
                state["step"] += 1
                count = float(state["step"])
                state["first"].lerp_(p.grad, 1 - beta_1)
                state["second"].mul_(beta_2).addcmul_(p.grad, p.grad, value=1 - beta_2)
                root = (state["second"] / (1 - beta_2**count)).sqrt_().add_(group["eps"])
                update = (state["first"] / (1 - beta_1**count)).div_(root)
                if group["weight_decay"]:
                    update.add_(p, alpha=group["weight_decay"])
                    update.mul_(_ratio(p, update, 1.0))
                p.sub_(update.mul_(group["lr"]))


class Lars(Optimizer):
    r"""SGD with momentum whose step for each tensor is a share of the norm of the tensor.

    .. math:: u = g + \lambda w, \qquad m \leftarrow \mu m + \tau \tfrac{\|w\|}{\|u\|} u, \qquad
              w \leftarrow w - \eta m .

    Tensors without decay (biases, norms) take the step of SGD.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step for every tensor that has a gradient."""
        del closure
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                update = p.grad
                if group["weight_decay"]:
                    update = update.add(p, alpha=group["weight_decay"])
                    update.mul_(_ratio(p, update, TRUST))
                state = self.state[p]
                if not state:
                    state["mean"] = torch.zeros_like(p)
                state["mean"].mul_(group["momentum"]).add_(update)
                p.sub_(state["mean"], alpha=group["lr"])


def optimiser(train: Train, method: nn.Module) -> Optimizer:
    """The optimiser of a recipe over what a method learns."""
    groups = _groups(train, method)
    betas, decay = (train.beta_1, 0.999), train.weight_decay
    if train.optimiser == "adamw":
        return AdamW(groups, lr=train.lr, betas=betas, weight_decay=decay)
    if train.optimiser == "sgd":
        return SGD(
            groups,
            lr=train.lr,
            momentum=train.momentum,
            nesterov=train.nesterov,
            weight_decay=decay,
        )
    if train.optimiser == "lamb":
        return Lamb(groups, lr=train.lr, betas=betas, weight_decay=decay)
    if train.optimiser == "lars":
        return Lars(groups, lr=train.lr, momentum=train.momentum, weight_decay=decay)
    return Adam(groups, lr=train.lr, betas=betas, weight_decay=decay)


def schedule(train: Train, of: Optimizer) -> LRScheduler:
    """The learning rate of a recipe, step by step."""
    warmup = min(train.warmup, train.steps // 2)
    after = _after_warmup(train, of, max(1, train.steps - warmup))
    if warmup == 0:
        return after
    rise = LambdaLR(of, lambda step: (step + 1) / (warmup + 1))
    return SequentialLR(of, [rise, after], [warmup])


def set_decay(train: Train, of: Optimizer, progress: float) -> None:
    """Move the decay of weights along its cosine."""
    if train.weight_decay_end is None:
        return
    share = (1 - math.cos(math.pi * progress)) / 2
    for group in of.param_groups:
        if group["weight_decay"]:
            group["weight_decay"] = (
                train.weight_decay + (train.weight_decay_end - train.weight_decay) * share
            )


def _after_warmup(train: Train, of: Optimizer, steps: int) -> LRScheduler:
    if train.schedule == "cosine":
        return CosineAnnealingLR(of, steps)
    if train.schedule == "poly":
        return LambdaLR(of, lambda step: max(0.0, 1 - step / steps) ** POLY)
    if train.schedule == "onecycle":
        return OneCycleLR(of, train.lr, total_steps=train.steps)
    if train.schedule == "drops":
        return StepLR(of, max(1, -(-steps // (train.drops + 1))), train.drop)
    return ConstantLR(of, 1.0)


def _groups(train: Train, method: nn.Module) -> list[dict[str, Any]]:
    """Parameters, apart where some are spared from decay."""
    learnt = [p for p in method.parameters() if p.requires_grad]
    if train.decay_all:
        return [{"params": learnt}]
    spared = [p for p in learnt if p.ndim <= 1]
    rest = [p for p in learnt if p.ndim > 1]
    groups: list[dict[str, Any]] = [{"params": rest}, {"params": spared, "weight_decay": 0.0}]
    return [g for g in groups if g["params"]]


def _ratio(p: Tensor, update: Tensor, trust: float) -> Tensor:
    """By which the step of a tensor is multiplied; 1 where a norm is 0."""
    size, step = p.norm(), update.norm()
    return torch.where((size > 0) & (step > 0), trust * size / step, torch.ones_like(size))
