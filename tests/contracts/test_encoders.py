"""Laws that every pretraining method obeys; recipes are found in their folder."""

import dataclasses
import functools
import json
import os
import signal

import numpy as np
import pytest
import torch

from medssl import api, config
from medssl.core.errors import InterruptedRunError
from medssl.core.random import stream
from medssl.data.store import Made, Store, write_store
from medssl.engine import estimate
from medssl.engine.build import encoder
from medssl.engine.checkpoint import fill
from medssl.engine.device import machine
from medssl.engine.fit import fit
from medssl.engine.pretrain import _Lesson
from medssl.engine.wanted import Wanted
from medssl.io import weights
from medssl.physics.phantom import head

RECIPES = [name for name in config.recipes("pretrain") if not name.endswith("_cpu")]
"""The others are the same methods with less to do."""
NETS = {
    "resnet": {"depths": [1, 1], "width": 4, "bottleneck": False, "stem": "small"},
    "resenc": {"depths": [1, 1, 1], "widths": [4, 6, 8]},
    "vit": {"patch": 8, "width": 24, "depth": 1, "heads": 2},
}
"""Small ones, by the field `net` that tells their `Config`s apart."""
NUMBERS = {
    "decoder_width": 12,
    "decoder_depth": 1,
    "decoder_heads": 2,
    "hidden": 12,
    "out": 8,
    "width": 12,
    "K_intra": 6,
    "clusters": 8,
    "small": 1,
    "queue": 0,
    "frozen": 0.0,
    "refresh": 2,
}
"""Small values of the fields of a `Config`, where it has them."""


@functools.cache
def plain(name):
    """What a recipe sees, and its settled `Config`, as they are."""
    method, settled = encoder(config.load("pretrain", name))
    return method.sees, settled


def small(name):
    """Settings that make a recipe small."""
    sees, settled = plain(name)
    axes = sees.axes
    changes = {
        "train.steps": 4,
        "train.batch": 16 if sees.neighbours > 1 else 8,
        "train.accumulate": 1,
        "train.warmup": 0,
        "train.lr": 0.01,
        "train.optimiser": "adamw",
        "train.save_every": 100,
        "train.precision": "fp32",
        "crops.size": [16] * axes,
        "crops.small_size": [8] * axes if sees.small else None,
    }
    net = settled["net"]
    if net["net"] not in NETS:
        pytest.skip(f"{net['net']} is not ours to make small")
    kept = {k: net[k] for k in ("net", "axes", "in_channels") if k in net}
    changes["method.net"] = kept | NETS[net["net"]]
    changes |= {f"method.{k}": v for k, v in NUMBERS.items() if settled.get(k)}
    if "slices" in settled:
        changes["method.slices"] = {"width": 16, "hidden": 20, "layers": 1, "heads": 2}
    if "K" in settled:
        sets = settled["K"]
        changes["method.K"] = 4 if isinstance(sets, int) else [4] * len(sets)
    if settled.get("block") is not None:
        block = settled["block"]
        changes["method.block"] = 8 if isinstance(block, int) else [8] * axes
    return changes


def wanted(name, **more):
    return Wanted.of(
        f"pretrain/{name}", small(name) | more, estimate.asked("auto", "auto"), 0, ("pretrain",)
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Phantoms of eight patients, one of them for validation."""

    def made(k):
        image = 1000 * head((28, 26, 20)).numpy()
        image = image + 20 * np.random.default_rng(k).standard_normal(image.shape)
        image = np.roll(image, k, 0) * (1 + 0.1 * k)
        return Made(
            image=image.astype(np.int16)[None],
            key=f"volume{k}",
            modality="MR",
            patient=f"patient{k}",
            spacing=(1.0, 1.0, 1.5),
            split="val" if k == 7 else "train",
        )

    return write_store(tmp_path_factory.mktemp("stores") / "store", map(made, range(8))).path


def lesson(store, name, **more):
    """A small method and its batches."""
    words = wanted(name, **more)
    method, settled = encoder(words.recipe)
    return method, _Lesson(Store.open(store), words, method, settled, machine("cpu", None, 1))


def loss_of(method, batch, seed=0):
    terms = method.loss(dataclasses.replace(batch, generator=stream(seed, "chance")))
    assert all(term.ndim == 0 for term in terms.values())
    return torch.stack(list(terms.values())).sum()


@pytest.mark.parametrize("name", RECIPES)
def test_every_parameter_gets_a_finite_gradient_and_chance_is_handed_in(store, name):
    state = torch.get_rng_state()
    method, made = lesson(store, name)
    made.before_step(0)
    batch = next(made.batches(0))[0]
    method.train()
    for progress in (0.0, 0.3, 0.9):
        method.zero_grad()
        loss_of(method, dataclasses.replace(batch, progress=progress)).backward()
        for key, parameter in method.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, key
                assert torch.isfinite(parameter.grad).all(), key
    assert torch.equal(state, torch.get_rng_state())
    assert [p for p in method.encoder.parameters() if p.requires_grad]


@pytest.mark.parametrize("name", RECIPES)
def test_features_are_of_the_image_whatever_its_sides(store, name):
    method, made = lesson(store, name)
    method.eval()
    axes, channels = method.sees.axes, made.cutter.channels
    for sides in ((16,) * axes, (24, 16, 8)[:axes] if axes == 3 else (24, 17)):
        image = torch.randn(3, channels, *sides, generator=stream(0, "image"))
        with torch.no_grad():
            found, together = method.features(image), method.embed(image)
            alone = torch.cat([method.embed(one[None]) for one in image])
        assert together.ndim == 2
        assert torch.isfinite(together).all()
        assert torch.allclose(together, alone, atol=1e-4 * float(together.abs().max()))
        assert all(torch.isfinite(f).all() for f in found)
        sizes = [f.shape[-1] for f in found]
        assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("name", RECIPES)
def test_the_loss_falls(store, name):
    steps = 30
    method, made = lesson(store, name, **{"train.steps": steps, "train.lr": 3.0e-3})
    made.before_step(0)
    (batch,) = next(made.batches(0))
    batch = dataclasses.replace(batch, progress=0.9)

    def loss():
        with torch.no_grad():
            return float(loss_of(method, batch, 9))

    method.train()
    before = loss()
    seen = [dataclasses.replace(batch, generator=stream(k, "step")) for k in range(steps)]
    fit(method, seen, dataclasses.replace(made.train, clip=None))
    method.train()
    assert loss() < before


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_stops_goes_on_and_says_the_same_again(store, tmp_path, name):
    words = {"recipe": f"pretrain/{name}", "settings": small(name), "threads": 1, "device": "cpu"}

    def stop(stage, done, total):
        if stage == "learn" and done == 2:
            os.kill(os.getpid(), signal.SIGINT)

    whole = api.pretrain(store, tmp_path / "whole", **words).run
    with pytest.raises(InterruptedRunError):
        api.pretrain(store, tmp_path / "run", progress=stop, **words)
    done = api.pretrain(store, tmp_path / "run", resume=True, **words)
    for file in ("weights.safetensors", "metrics.jsonl"):
        assert (whole / file).read_bytes() == (tmp_path / "run" / file).read_bytes(), file
    recipe = config.recorded(done.record["recipe"], {}, "run.json")
    method, _ = encoder(recipe)
    fill(method, weights.read(whole / "weights.safetensors"))
    assert not method.needs_calibration
    json.dumps(done.record)
