"""What tests of encoders share."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from medssl.data.store import Made, write_store
from medssl.physics.phantom import abdomen, head


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


@pytest.fixture(scope="session")
def phantom_store(tmp_path_factory) -> Path:
    """A store of twelve abdomens (CT) and twelve heads (MR) of different sizes, with noise."""
    made = []
    for k in range(24):
        chance = np.random.default_rng(k)
        wide, high = (int(n) for n in chance.integers(72, 97, 2))
        if k < 12:
            mm = (0.7 + 0.02 * k, 0.8, 2.0 + 0.1 * k)
            image = abdomen((wide, high, 24), mm).numpy() + chance.normal(0, 20, (wide, high, 24))
            made.append(
                Made(image=image.astype(np.int16)[None], key=f"{k:032x}", modality="CT", spacing=mm)
            )
        else:
            image = head((wide, high, 24)).numpy() + chance.normal(0, 0.03, (wide, high, 24))
            made.append(Made(image=image.astype(np.float32)[None], key=f"{k:032x}", modality="MR"))
    path = tmp_path_factory.mktemp("phantoms") / "store"
    write_store(path, made)
    return path
