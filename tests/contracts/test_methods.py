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
from medssl.data.raw import Slice, acquired, stacked
from medssl.data.simulate import phantom, simulate_multicoil
from medssl.engine.build import build, reconstructor, restorer
from medssl.engine.fit import fit
from medssl.physics.sampling import edge, poisson_disc

METHODS = [(task, name) for task in config.TASKS for name in config.methods(task)]
RECIPES = [(task, name) for task in config.TASKS for name in config.recipes(task)]
RESTORERS = [(t, n) for t, n in RECIPES if t == "denoise"]
RECONSTRUCTORS = [(t, n) for t, n in RECIPES if t == "recon"]
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


def measured(shape, seed=0, chance=0, *, whole=True):
    """Undersampled k-space of a phantom with its truth, maps, and some noise."""
    made = simulate_multicoil(phantom(shape, seed), seed, n_coils=4)
    data = torch.from_numpy(made.measured(0.01, seed).data)
    pattern = poisson_disc(shape, 2.5, (8, 8), seed)
    one = Slice(data, made.coil_maps[None], 0.01, None, None if whole else 0)
    found = acquired(one, (pattern, edge(pattern)))
    return dataclasses.replace(found, generator=stream(chance, "batch"))


def small(task, name, **changes):
    """A recipe whose weight of the prior is given and whose net is small."""
    recipe = config.load(task, name)
    values = dict(recipe.values)
    if recipe.train is not None:
        values["net"] = {"stages": 2, "denoiser": {"depth": 3, "width": 8, "zero_last": True}}
        if "iterations" in build(recipe)[1]:
            values["iterations"] = 10
    elif "lambda_" in build(recipe)[1]:
        values["lambda_"] = 0.01
    return dataclasses.replace(recipe, values=values | changes)


def drift(task, name, ours):
    """How far two calls may lie apart: SigPy's power iteration begins at chance of its own."""
    return 1e-2 if config.load(task, name).method == "sigpy_apps" else ours


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


def test_hyphens_and_underscores_in_a_name_do_not_matter():
    for name in ("cbsn", "c-bsn", "C-BSN", "c_bsn"):
        assert config.load("denoise", name).name == "cbsn"
    assert config.load("denoise", "zs-n2n").name == "zs_n2n"
    for task in config.TASKS:
        bare = [name.replace("_", "") for name in config.recipes(task)]
        assert len(set(bare)) == len(bare)


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
def test_a_method_follows_sigma_or_says_that_it_does_not(task, name):
    recipe = config.load(task, name)
    method, _ = restorer(recipe)
    if recipe.train is not None:
        train = dataclasses.replace(recipe.train, steps=1)
        fit(method, [batch(scene(1, 1, 32, 32), method)], train)
    seen = batch(scene(1, 1, SIDE, SIDE), method)
    with torch.no_grad():
        once, again, doubled = (
            method.restore(dataclasses.replace(seen, sigma=s * seen.sigma, generator=stream(0, "")))
            for s in (1, 1, 2)
        )
    assert torch.equal(once, again)
    assert torch.equal(once, doubled) != method.follows_sigma


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


@pytest.mark.parametrize(("task", "name"), RECONSTRUCTORS)
@pytest.mark.parametrize("shape", [(32, 32), (33, 26)])
def test_images_are_of_the_shape_of_the_maps_and_finite(task, name, shape):
    method, _ = reconstructor(small(task, name))
    batch = measured(shape)
    if not method.needs_maps:
        batch = without_maps(batch)
    with torch.no_grad():
        image = method.restore(batch)
        again = method.restore(batch)
    assert image.shape == (1, batch.coil_maps.shape[1], *shape)
    assert image.is_complex()
    assert torch.isfinite(torch.view_as_real(image)).all()
    assert torch.allclose(
        image, again, rtol=0, atol=drift(task, name, 0.0) * float(image.abs().max())
    )


def without_maps(batch):
    """Every coil as an image of its own."""
    n_coils = batch.kspace.shape[1]
    one = torch.eye(n_coils, dtype=batch.kspace.dtype)[None, ..., None, None]
    maps = one.expand(len(batch.kspace), -1, -1, *batch.kspace.shape[-2:])
    return dataclasses.replace(batch, coil_maps=maps)


@pytest.mark.parametrize(("task", "name"), RECONSTRUCTORS)
def test_a_batch_of_slices_equals_them_one_by_one(task, name):
    method, _ = reconstructor(small(task, name))
    parts = [measured((32, 32), seed=k) for k in range(2)]
    if not method.needs_maps:
        parts = [without_maps(p) for p in parts]
    with torch.no_grad():
        together = method.restore(stacked(parts))
        alone = torch.cat([method.restore(dataclasses.replace(p)) for p in parts])
    assert torch.allclose(
        together, alone, rtol=0, atol=drift(task, name, 1e-4) * float(together.abs().max())
    )


LEARNERS = [
    pytest.param(name, whole, id=f"{name}-{'truth' if whole else 'none'}")
    for _, name in RECONSTRUCTORS
    if config.load("recon", name).train is not None
    for whole in (True, False)
    if whole or reconstructor(config.load("recon", name))[0].learns_from == "none"
]


@pytest.mark.parametrize(("name", "whole"), LEARNERS)
def test_learning_to_reconstruct_is_repeatable_and_reaches_every_parameter(name, whole):
    recipe = small("recon", name)
    train = dataclasses.replace(recipe.train, steps=3)
    states, losses = [], []
    for _ in range(2):
        torch_state = torch.get_rng_state()
        method, _ = reconstructor(recipe)
        batches = [measured((32, 32), seed=k, chance=k, whole=whole) for k in range(3)]
        losses.append(fit(method, batches, train))
        assert torch.equal(torch_state, torch.get_rng_state())
        states.append(method.state_dict())
        for key, parameter in method.named_parameters():
            assert parameter.grad is not None, key
            assert torch.isfinite(parameter.grad).all(), key
    assert losses[0] == losses[1]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


@pytest.mark.parametrize(("name", "whole"), LEARNERS)
def test_the_loss_of_a_reconstruction_falls(name, whole):
    recipe = small("recon", name)
    train = dataclasses.replace(recipe.train, steps=25, schedule="constant", lr=5.0e-3)
    method, _ = reconstructor(recipe)

    def loss():
        """On chances that the steps do not see."""
        with torch.no_grad():
            seen = [measured((32, 32), chance=99 + k, whole=whole) for k in range(3)]
            return float(sum(sum(method.loss(one).values()) for one in seen))

    before = loss()
    fit(method, [measured((32, 32), chance=k, whole=whole) for k in range(25)], train)
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
