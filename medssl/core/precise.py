"""Where digits matter: losses on cosines, clusters and eigenvalues, whatever layers run in."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """A function of tensors that runs without autocast, on float32 where it is given halves."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        given = [*args, *kwargs.values()]
        kind = next(x.device.type for x in given if isinstance(x, Tensor))
        with torch.autocast(kind, enabled=False):
            wide = {k: _wide(v) for k, v in kwargs.items()}
            return cast(Callable[..., R], function)(*(_wide(x) for x in args), **wide)

    return run


def _wide(x: object) -> object:
    if isinstance(x, Tensor) and x.dtype in (torch.float16, torch.bfloat16):
        return x.float()
    return x
