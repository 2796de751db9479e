"""What tests of encoders share."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def _load(name: str) -> ModuleType:
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"pretrain_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


TWO_RANKS = _load("two_ranks")


@pytest.fixture(scope="session")
def two_ranks() -> ModuleType:
    """`differences(cases, folder)` between two processes and one, and phantoms of batches."""
    return TWO_RANKS
