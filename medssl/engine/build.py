"""From a recipe to a method."""

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

import torch

from medssl import config
from medssl.config import Recipe
from medssl.engine.ensemble import Ensemble
from medssl.method import Encoder, Facts, Method, Reconstructor, Restorer


def build(recipe: Recipe, facts: Facts | None = None) -> tuple[Method[Any], dict[str, Any]]:
    """The method of a recipe, untrained, and its `Config` with nothing left open.

    Args:
        recipe: Names the module `medssl.<task>.<method>` and the fields of its `Config`.
        facts: What is known of the scan; None leaves the fields that depend on it open.

    Raises:
        UsageError: A key or a value that the method's `Config` does not know.
    """
    module = importlib.import_module(f"medssl.{recipe.task}.{recipe.method}")
    settled = config.construct(module.Config, recipe.values, f"{recipe.name}.yaml")
    if facts is not None and hasattr(settled, "suited_to"):
        settled = settled.suited_to(facts)
    with torch.random.fork_rng(devices=[]):  # layers draw their first weights from the global one
        torch.manual_seed(recipe.seed)
        made = settled.build()
    assert isinstance(made, Method)
    return made, dataclasses.asdict(settled)


def restorer(recipe: Recipe, facts: Facts | None = None) -> tuple[Restorer, dict[str, Any]]:
    """The same for a recipe that restores images, alone or as an average of others."""
    if recipe.average:
        base = [restorer(one, facts) for one in recipe.average]
        more = [restorer(one, facts) for one in recipe.additions]
        names = [one.name for one in recipe.additions]
        values = {
            "average": [
                v | {"name": r.name} for r, (_, v) in zip(recipe.average, base, strict=True)
            ],
            "additions": [v | {"name": n} for n, (_, v) in zip(names, more, strict=True)],
        }
        return Ensemble([m for m, _ in base], [m for m, _ in more], names), values
    made, settled = build(recipe, facts)
    assert isinstance(made, Restorer)
    return made, settled


def reconstructor(recipe: Recipe) -> tuple[Reconstructor, dict[str, Any]]:
    """The same for a recipe that makes images of k-space."""
    made, settled = build(recipe)
    assert isinstance(made, Reconstructor)
    return made, settled


def encoder(recipe: Recipe) -> tuple[Encoder, dict[str, Any]]:
    """The same for a recipe that pretrains an encoder."""
    made, settled = build(recipe)
    assert isinstance(made, Encoder)
    return made, settled


def channels(settled: Mapping[str, Any]) -> int:
    """Of the images that an encoder with these settings takes."""
    net = settled.get("net", {})
    return int(net.get("in_channels", 1)) if isinstance(net, Mapping) else 1
