"""A fit as tensors and plain values, and back, bit for bit.

Chance needs no place in it: generators are named from the seed and the step (`core.random.stream`),
so the step says it all.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, SequentialLR

from medssl.core.errors import WeightsError
from medssl.engine.distributed import load_state, spread_like, whole, whole_state
from medssl.engine.fit import Fitting

COUNTS = ("skipped", "in_a_row", "recent", "named")
"""Of a fit, about steps that were not taken."""
LOSSES = ("first", "last", "lowest")
"""Of a held-back batch."""
State = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors by name, and plain values."""


def pack(fitting: Fitting[Any]) -> State:
    """Everything that the steps to come depend on."""
    tensors = {f"method/{k}": v for k, v in whole_state(fitting.method).items()}
    tensors |= _numbered("mean", map(whole, fitting.mean.weights))
    facts: dict[str, Any] = {"step": fitting.step, "schedule": _plain(fitting.schedule)}
    facts |= {name: getattr(fitting, name) for name in COUNTS}
    if fitting.best is not None:
        tensors |= _numbered("best", fitting.best.weights)
        facts["held_out"] = {k: getattr(fitting.best, k) for k in LOSSES}
    optimiser = fitting.optimiser.state_dict()
    facts["optimiser"] = optimiser["param_groups"]
    for index, moments in optimiser["state"].items():
        known = {k: v for k, v in moments.items() if v is not None}
        tensors |= {f"optimiser/{index}/{name}": whole(value) for name, value in known.items()}
    return tensors, facts


def unpack(fitting: Fitting[Any], tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Bring a new fit of the same recipe to where another one was.

    Raises:
        WeightsError: Parts are missing, or belong to another recipe.
    """
    fill(fitting.method, _below("method", tensors))
    _refill(fitting.mean.weights, _below("mean", tensors))
    moments: dict[int, dict[str, Tensor]] = {}
    learnt = [p for group in fitting.optimiser.param_groups for p in group["params"]]
    for key, value in _below("optimiser", tensors).items():
        index, _, name = key.partition("/")
        like = learnt[int(index)] if int(index) < len(learnt) else value
        moments.setdefault(int(index), {})[name] = spread_like(value, like)
    try:
        fitting.optimiser.load_state_dict({"state": moments, "param_groups": facts["optimiser"]})
        _recall(fitting.schedule, facts["schedule"])
        fitting.step = int(facts["step"])
        for name in COUNTS:
            setattr(fitting, name, facts.get(name, getattr(fitting, name)))
        if fitting.best is not None:
            for name in LOSSES:
                setattr(fitting.best, name, float(facts["held_out"][name]))
            _refill(fitting.best.weights, _below("best", tensors))
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            "the checkpoint is of another recipe", "start anew with --overwrite"
        ) from error


def fill(method: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a method its weights; a buffer that is empty still takes one of any length.

    Raises:
        WeightsError: A name, a shape or a type is not the method's, or a value is not finite.
    """
    wanted = method.state_dict()
    missing, unknown = (
        sorted(wanted.keys() - tensors.keys()),
        sorted(tensors.keys() - wanted.keys()),
    )
    if missing or unknown:
        raise WeightsError(
            f"{len(missing)} weights are missing and {len(unknown)} unknown, "
            f"{(missing + unknown)[0]!r} for one",
            "they were made for another method or size",
        )
    for key, value in tensors.items():
        grows = wanted[key].shape == (0,) and value.ndim == 1
        if (value.shape != wanted[key].shape and not grows) or value.dtype != wanted[key].dtype:
            raise WeightsError(
                f"{key!r} is {_kind(value)}, the method wants {_kind(wanted[key])}",
                "they were made for another size",
            )
        if not bool(torch.isfinite(value).all()):
            raise WeightsError(f"{key!r} has values that are not finite", "train again")
    load_state(method, tensors)


def _kind(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"


def _plain(schedule: LRScheduler) -> dict[str, Any]:
    """The state of a schedule; functions, which the recipe gives again, are left out."""
    state = schedule.state_dict()
    if isinstance(schedule, SequentialLR):
        state["_schedulers"] = [_plain(one) for one in schedule._schedulers]
    state.pop("lr_lambdas", None)
    return state


def _recall(schedule: LRScheduler, state: Mapping[str, Any]) -> None:
    """Bring a schedule to where another one was."""
    held = dict(state)
    if isinstance(schedule, SequentialLR):
        for one, inner in zip(schedule._schedulers, held.pop("_schedulers"), strict=True):
            _recall(one, inner)
    schedule.__dict__.update(held)


def _numbered(name: str, tensors: Iterable[Tensor]) -> dict[str, Tensor]:
    return {f"{name}/{k}": v for k, v in enumerate(tensors)}


def _below(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under a name, without it, in an order that is the same for all processes."""
    found = sorted(k for k in tensors if k.startswith(f"{name}/"))
    return {k.removeprefix(f"{name}/"): tensors[k] for k in found}


def _refill(places: list[Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copy numbered tensors where they came from."""
    if len(places) != len(tensors):
        raise WeightsError("the checkpoint is of another recipe", "start anew with --overwrite")
    with torch.no_grad():
        for k, place in enumerate(places):
            place.copy_(spread_like(tensors[str(k)], place))
