"""Laws that every method obeys; methods are found in their folders, nobody lists them here."""

import dataclasses
import importlib
import inspect

import pytest
import torch

from medssl import config
from medssl.core.batch import Noisy
from medssl.core.random import stream
from medssl.core.run import Run
from medssl.engine.build import build, restorer
from medssl.engine.fit import fit

METHODS = [(task, name) for task in config.TASKS for name in config.methods(task)]
RECIPES = [(task, name) for task in config.TASKS for name in config.recipes(task)]
RESTORERS = [(t, n) for t, n in RECIPES if t == "denoise"]
SIDE = 24


def scene(*shape, seed=0):
    """Smooth structure in [0, 1] with white noise of 0.05, as (B, C, *spatial)."""
    generator = stream(seed, "scene")
    axes = [torch.linspace(0, 3, n) for n in shape[2:]]
    waves = sum(
        torch.sin(a.reshape([-1 if k == i else 1 for k in range(len(axes))]) + i)
        for i, a in enumerate(axes)
    )
    clean = 0.5 + 0.1 * waves.expand(shape)
    return clean + 0.05 * torch.randn(shape, generator=generator)


def batch(image, method, seed=0):
    """A batch in the method's own domain, its noise known."""
    level = 0.05
    if method.domain == "stabilised":
        image, level = image / level, 1.0
    return Noisy(image, sigma=torch.full((), level), generator=stream(seed, "batch"))


@pytest.mark.parametrize(("task", "name"), METHODS)
def test_a_method_is_documented_and_has_a_recipe(task, name):
    module = importlib.import_module(f"medssl.{task}.{name}")
    assert ".. math::" in module.__doc__
    assert "Reference:" in module.__doc__
    assert module.__doc__.split("\n")[0].endswith(".")
    assert module.Config.__dataclass_params__.frozen
    words = inspect.signature(module.Config).parameters.values()
    assert all(word.kind is inspect.Parameter.KEYWORD_ONLY for word in words)
    assert name in {config.load(task, recipe).method for recipe in config.recipes(task)}
    assert config.reference(task, name)


@pytest.mark.parametrize(("task", "name"), RECIPES)
def test_a_recipe_builds_and_says_what_to_expect(task, name):
    recipe = config.load(task, name)
    assert recipe.task == task
    assert recipe.expect is not None
    for member in (*recipe.average, *recipe.additions) or (recipe,):
        _, settled = build(member)
        assert set(settled) == {
            f.name
            for f in dataclasses.fields(
                importlib.import_module(f"medssl.{task}.{member.method}").Config
            )
        }


@pytest.mark.parametrize(("task", "name"), RESTORERS)
@pytest.mark.parametrize("shape", [(1, 1, 24, 24), (1, 1, 21, 17), (1, 1, 16, 13, 5)])
def test_shape_is_kept_and_values_are_finite(task, name, shape):
    method, _ = restorer(config.load(task, name))
    with torch.no_grad():
        restored = method.restore(batch(scene(*shape), method))
    assert restored.shape == shape
    assert torch.isfinite(restored).all()


@pytest.mark.parametrize(("task", "name"), RESTORERS)
def test_a_batch_equals_its_images_one_by_one(task, name):
    method, _ = restorer(config.load(task, name))
    images = torch.cat([scene(1, 1, SIDE, SIDE, seed=s) for s in range(2)])
    with torch.no_grad():
        together = method.restore(batch(images, method))
        alone = torch.cat([method.restore(batch(images[k : k + 1], method)) for k in range(2)])
    assert torch.allclose(together, alone, atol=1e-4 * float(together.std()))


@pytest.mark.parametrize(("task", "name"), RESTORERS)
def test_learning_is_repeatable_and_reaches_every_parameter(task, name):
    recipe = config.load(task, name)
    if recipe.train is None:
        pytest.skip("learns nothing")
    train = dataclasses.replace(recipe.train, steps=3)
    states, losses = [], []
    for _ in range(2):
        torch_state = torch.get_rng_state()
        method, _ = restorer(recipe)
        images = [batch(scene(1, 1, 32, 32, seed=k), method, seed=k) for k in range(3)]
        losses.append(fit(method, images, train))
        assert torch.equal(torch_state, torch.get_rng_state())
        states.append(method.state_dict())
        for key, parameter in method.named_parameters():
            assert parameter.grad is not None, key
            assert torch.isfinite(parameter.grad).all(), key
    assert losses[0] == losses[1]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    again, _ = restorer(recipe)
    again.load_state_dict(states[0])
    image = batch(scene(1, 1, 32, 32, seed=9), again)
    with torch.no_grad():
        assert torch.equal(again.restore(image), method.restore(image))


@pytest.mark.parametrize(("task", "name"), RESTORERS)
def test_the_loss_falls(task, name):
    recipe = config.load(task, name)
    if recipe.train is None:
        pytest.skip("learns nothing")
    train = dataclasses.replace(recipe.train, steps=25, schedule="constant")
    method, _ = restorer(recipe)
    image = scene(1, 1, 32, 32)

    def loss():
        """On one batch with one chance: the losses of the steps differ by chance alone."""
        with torch.no_grad():
            terms = method.loss(batch(image, method, seed=99))
        return float(torch.stack(list(terms.values())).sum())

    before = loss()
    fit(method, [batch(image, method, seed=k) for k in range(25)], train)
    assert loss() < before


@pytest.mark.cuda
@pytest.mark.parametrize(("task", "name"), RESTORERS)
def test_cpu_and_cuda_agree(task, name):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    method, _ = restorer(config.load(task, name))
    image = batch(scene(1, 1, 40, 36, 20), method)
    with torch.no_grad():
        cpu = method.restore(image)
        on_device = dataclasses.replace(
            image, image=image.image.cuda(), sigma=image.sigma.cuda(), generator=None
        )
        cuda = method.to("cuda").restore(on_device)
    assert torch.allclose(cpu, cuda.cpu(), atol=1e-3 * float(cpu.std()))


def test_a_run_is_plain_values():
    import json

    run = Run("denoise", seed=3)
    with run.stage("read"):
        run.warn("odd", "odd")
    record = json.loads(json.dumps(run.as_dict()))
    assert record["warnings"] == ["odd"]
    assert "read" in record["seconds"]
    assert record["versions"]["medssl"] != "not installed"
