"""One image through noise estimate, choice, fit and tiles; no file is touched."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medssl import config
from medssl.config import Recipe, Train
from medssl.core.batch import Noisy
from medssl.core.errors import InputError, UsageError
from medssl.core.image import Image
from medssl.core.progress import Progress
from medssl.core.run import Run
from medssl.data.patches import HELD, crops, one
from medssl.engine import choose, ct_report, estimate, infer
from medssl.engine.audit import audit
from medssl.engine.build import restorer
from medssl.engine.device import Machine
from medssl.engine.ensemble import Ensemble
from medssl.engine.fit import fit
from medssl.engine.predict import predict
from medssl.engine.sample import middle_channel
from medssl.engine.settle import settle
from medssl.engine.steer import Gathered, Regions, SigmaMaps
from medssl.engine.weights import Trained
from medssl.method import Mapped, Restorer
from medssl.metrics.residual import residual
from medssl.physics.noise_level import NoiseEstimate

VOXELS_TO_LEARN_FROM = 1 << 24
"""Of a volume, held in memory while a method that sees volumes is fitted: 64 MiB."""
BLOCK = 96
"""Side of the blocks that are taken from a larger volume, voxels."""
HELD_CROPS = 4
"""Crops in the batch that is looked at and not learnt from."""
LEAST_REMOVED = 0.1
"""Share of the standard deviation of the noise; a method that takes less away does nothing."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked for, checked."""

    recipe: Recipe | None
    """None leaves the choice to the noise of the scan."""
    quality: choose.Quality = "standard"
    settings: Mapping[str, Any] = field(default_factory=dict)
    noise: estimate.Asked = field(default_factory=estimate.Asked)
    strength: float | None = None
    seed: int = 0
    weights: Trained | None = None
    """Of an earlier training, in place of a fit to the scan."""
    sigma_maps: NDArray[np.float64] | None = None
    """(n_stages, 3, *grid) widths to filter with, in place of a fit; in intensity: image units."""
    save_maps: bool = False
    """The maps are asked for: a method without any is refused."""
    regions: Regions | None = None
    """Where the filter is to do more or less."""

    @classmethod
    def of(
        cls,
        method: str,
        settings: Mapping[str, Any],
        noise: estimate.Asked,
        strength: float | None,
        seed: int,
        quality: choose.Quality | None = None,
        weights: Path | None = None,
    ) -> "Request":
        """Check the words before anything is read.

        Args:
            method: `auto`, a recipe's name, or the path of a YAML file.
            settings: Dotted keys of the recipe with other values.
            noise: What was said about the noise.
            strength: Share of the change; None means the recipe's.
            seed: Of every random number.
            quality: How much time a scan is worth, where the method is `auto`.
            weights: Folder of a training, which brings its own recipe.

        Raises:
            UsageError: No such recipe, a key it does not have, a strength outside 0 to 1.
            WeightsError: Missing or damaged weights.
        """
        if strength is not None and not 0 <= strength <= 1:
            raise UsageError(f"--strength is {strength:g}", "give 0 (nothing) to 1 (all)")
        if weights is not None:
            if method != "auto" or quality is not None:
                raise UsageError("--weights brings its own method", "leave --method, --quality out")
            trained = Trained.load(weights, settings)
            return cls(recipe=None, noise=noise, strength=strength, seed=seed, weights=trained)
        recipe = None
        if method != "auto":
            if quality is not None:
                raise UsageError(
                    f"--quality goes with --method auto, not {method}", "leave one out"
                )
            recipe = config.load("denoise", method, settings)
            restorer(recipe)
        elif settings:
            _check_settings(quality or "standard", settings)
        return cls(
            recipe=recipe,
            quality=quality or "standard",
            settings=settings,
            noise=noise,
            strength=strength,
            seed=seed,
        )

    def mapped(self, what: str) -> Mapped:
        """The method that is named, untrained, which must have maps.

        Args:
            what: Needs them: the option.

        Raises:
            UsageError: No method is named, or it has none.
        """
        if self.weights is not None:
            raise UsageError(f"{what} stands for a fit, as --weights does", "leave one out")
        if self.recipe is None:
            raise UsageError(f"{what} needs a method with maps", "add --method filter2noise")
        method, _ = restorer(self.recipe)
        if not isinstance(method, Mapped):
            raise UsageError(f"{self.recipe.name} has no sigma maps", "use --method filter2noise")
        return method

    def saving_maps(self) -> "Request":
        """The same with maps asked for.

        Raises:
            UsageError: As `mapped`; what a training brings is seen later.
        """
        if self.weights is None:
            self.mapped("--save-sigma-maps")
        return dataclasses.replace(self, save_maps=True)

    def chosen(self, noise: NoiseEstimate) -> Recipe:
        """The recipe that was asked for, or the one that suits the noise."""
        if self.weights is not None:
            return self.weights.recipe
        if self.recipe is not None:
            return self.recipe
        return config.load("denoise", choose.default(noise, self.quality), self.settings)


def _check_settings(quality: choose.Quality, settings: Mapping[str, Any]) -> None:
    """Refuse keys that no default recipe knows."""
    errors = []
    for name in dict.fromkeys((choose.DEFAULTS[quality], choose.CT_DEFAULTS[quality])):
        try:
            restorer(config.load("denoise", name, settings))
        except UsageError as error:
            errors.append(error)
        else:
            return
    raise errors[0]


@dataclass(frozen=True, eq=False)
class Prepared:
    """Everything decided, nothing changed yet."""

    image: Image
    noise: NoiseEstimate
    choice: choose.Choice
    scale: infer.Scaling | None
    """None where there is nothing to do."""
    plan: infer.Plan
    machine: Machine
    declined: str | None
    """Why the image is better left as it is."""
    regions: Regions | None = None
    """Where the filter does more or less."""

    def noise_map(self, data: NDArray[np.float32], part: tuple[slice, ...]) -> NDArray[np.float32]:
        """(*part) standard deviation of the noise in image units, given restored data."""
        whole = tuple(slice(*s.indices(n)) for s, n in zip(part, self.image.shape, strict=True))
        local = infer.local_sigma(self.noise, whole)
        if local is not None:
            return local.numpy()
        if self.scale is None:
            return np.zeros(data[0][part].shape, np.float32)
        clean = torch.from_numpy(np.nan_to_num(np.ascontiguousarray(data[0][part])))
        return self.noise.law.variance(clean).clamp_min(0).sqrt().numpy()


def prepare(image: Image, request: Request, machine: Machine, run: Run) -> Prepared:
    """Estimate the noise, choose and build the method, plan the tiles.

    Args:
        image: What was read.
        request: What was asked for.
        machine: Where it runs.
        run: Collects the facts.
    """
    image = dataclasses.replace(image, modality=estimate.modality(image))
    with run.stage("estimate noise"):
        noise = estimate.estimate(image, request.noise)
    run.warn(*image.warnings, *noise.warnings)
    named = request.recipe is not None
    choice = choose.choose(noise, request.chosen(noise), named, request.strength)
    declined = choose.reason_to_decline(image, noise)
    facts, trained = choose.facts(image, noise), request.weights
    free = not named and not request.settings and trained is None
    if free and declined is None and choose.together(image, noise):
        with run.stage("choose"):
            choice = _for_series(image, noise, choice, machine, run.seed)
    if trained is None:
        method, settled = restorer(choice.recipe, facts)
    else:
        method, settled = trained.build()
        choice = dataclasses.replace(choice, why=f"weights of {trained.seen.learnt} other scans")
    run.method, run.why = choice.recipe.name, choice.why
    train = choice.recipe.train
    run.recipe = {
        "name": choice.recipe.name,
        "method": choice.recipe.method,
        "values": settled,
        "train": None if train is None else dataclasses.asdict(train),
        "strength": choice.strength,
    }
    run.noise = facts_of(noise)
    if declined is not None:
        run.warn(f"left as it is: {declined}")
    scale = infer.scaling(method, image, noise) if declined is None else None
    if request.save_maps or request.sigma_maps is not None:
        _refuse_no_maps(method, image, choice.recipe.name)
    if scale is not None and request.sigma_maps is not None:
        scale = _steered(scale, image, request.sigma_maps)
        run.recipe |= {"train": None, "sigma_maps": "given"}
    if request.regions is not None:
        _refuse_strength(method, request.regions, choice.recipe.name)
        run.recipe["regions"] = request.regions.as_list()
    plan = _plan(method, image, machine, scale, request.regions)
    run.plan = plan.as_dict() | {"threads": machine.threads}
    if trained is not None:
        run.recipe["weights"] = trained.as_dict()
        if scale is not None:
            run.warn(*trained.check(scale, image.modality, facts))
    return Prepared(image, noise, choice, scale, plan, machine, declined, request.regions)


@dataclass(frozen=True, eq=False)
class Restored:
    """What a restoration leaves."""

    data: NDArray[np.float32]
    """(C, *spatial); the input itself where there is nothing to do."""
    sigma_maps: NDArray[np.float64] | None = None
    """(n_stages, 3, *grid) widths that made it, before they were edited in regions; in voxels, and
    in intensity in image units."""


def restore(
    ready: Prepared,
    mask: NDArray[np.bool_] | None,
    run: Run,
    progress: Progress,
    *,
    keep_maps: bool = False,
) -> Restored:
    """Restore the image.

    Args:
        ready: From `prepare`.
        mask: (*spatial) voxels that may change; None means all.
        run: Collects the facts.
        progress: Told how far the work is.
        keep_maps: Give the sigma maps back, if the method has them and they fit into memory.
    """
    image, choice, scale, plan = ready.image, ready.choice, ready.scale, ready.plan
    if scale is None or choice.strength == 0:
        return Restored(image.data)
    scale.method.to(plan.device)
    fitted = False
    for learner, train in _learners(scale.method, choice.recipe) if scale.maps is None else ():
        with run.stage("fit"):
            _fit(ready, scale, learner, train, run.seed, progress)
        fitted = True
    if fitted:  # how far a filter looks may be what it learnt
        plan = _plan(scale.method, image, ready.machine, scale, ready.regions)
        run.plan |= plan.as_dict()
    if ready.regions is not None:
        mask = ready.regions.allowed(mask)
        run.qc["regions"] = (
            "predicted and ct.ttf50_ratio describe the filter outside the regions of interest, "
            "the other numbers the output"
        )
    device = torch.device(ready.plan.device)
    with run.stage("settle"):
        settle(scale, image, device, run.seed)
    with run.stage("predict"):
        expected = predict(scale, image, device, run.seed, choice.strength)
    run.qc["predicted"] = expected.as_dict()
    if isinstance(scale.method, Ensemble) and scale.method.judged:
        run.qc["additions"] = scale.method.as_dict()
    if choice.named and expected.removed < (LEAST_REMOVED * choice.strength) ** 2:
        share = f"{LEAST_REMOVED:.0%}".replace("%", " %")
        run.warn(f"{run.method} removed < {share} of the estimated noise; use --method auto")
    if expected.doubt is not None and choice.named:
        run.warn(f"{expected.doubt}; compare with --method auto")
    elif expected.doubt is not None:
        run.warn(f"left as it is: {expected.doubt}")
        return Restored(image.data)
    kept = None
    predicted = isinstance(scale.method, Mapped) and scale.maps is None
    if keep_maps and predicted and image.data.shape[0] == 1:
        assert isinstance(scale.method, Mapped)
        kept = Gathered(scale.method, image.shape, max(ready.machine.free, 0))
    with run.stage("restore"):
        data, notes = infer.infer(
            scale,
            image,
            plan,
            strength=choice.strength,
            mask=mask,
            regions=ready.regions,
            seed=run.seed,
            on_tile=lambda done, total: progress("denoise", done, total),
            on_maps=None if kept is None else kept.add,
        )
    run.warn(*notes)
    maps = scale.maps if kept is None else kept.maps
    if kept is not None and maps is None:
        run.warn(f"the sigma maps were not kept: they need {kept.bytes >> 20} MiB")
    middle = middle_channel(image)
    with run.stage("audit"):
        seen = audit(scale, image, data, choice.strength, run.seed)
    if seen is not None:
        run.qc["audit"] = seen.as_dict()
        run.warn(*seen.warnings)
    run.qc["residual"] = residual(image.data[middle], data[middle], ready.noise.sigma).as_dict()
    if image.modality == "CT" and image.data.shape[0] == 1:
        with run.stage("ct report"):
            run.qc["ct"] = ct_report.report(
                scale,
                image,
                data,
                strength=choice.strength,
                mask=mask,
                device=device,
                seed=run.seed,
            )
        run.warn(*ct_report.failures(run.qc["ct"]))
    return Restored(data, None if maps is None else maps.outward(scale.high - scale.low))


def facts_of(noise: NoiseEstimate) -> dict[str, Any]:
    """A noise estimate as plain values."""
    model = noise.spectrum
    spectrum = None
    if model is not None:
        spectrum = {
            "flatness": round(model.flatness, 3),
            "slice_correlation": round(model.rho_z, 3),
            "blocks": model.n_blocks,
            "confident": model.confident,
        }
    return {
        "law": noise.law.name,
        "confidence": noise.confidence,
        "sigma": float(f"{noise.sigma:.6g}"),
        "sigma_relative_error": float(f"{noise.sigma_error:.3g}"),
        "correlation": [round(c, 3) for c in noise.correlation],
        "spectrum": spectrum,
        "why": noise.why,
    }


def _refuse_no_maps(method: Restorer, image: Image, name: str) -> None:
    """Refuse to keep or take maps that there cannot be."""
    if not isinstance(method, Mapped):
        raise UsageError(f"{name} has no sigma maps", "use --method filter2noise")
    if image.data.shape[0] > 1:
        raise InputError(
            f"sigma maps belong to one volume, there are {image.data.shape[0]}",
            "denoise the volumes one by one, or leave the maps out",
        )


def _refuse_strength(method: Restorer, regions: Regions, name: str) -> None:
    """Refuse more of a filter that takes no local noise: less can be blended, more cannot."""
    most = max(regions.strengths)
    if most > 1 and not infer.steered(method):
        raise UsageError(
            f"--strength-in-roi is {most:g}, {name} can only do less than it does",
            "give 0 to 1, or use another method",
        )


def _steered(scale: infer.Scaling, image: Image, values: NDArray[np.float64]) -> infer.Scaling:
    """A scale whose method is steered by maps from outside, checked."""
    method = scale.method
    assert isinstance(method, Mapped)
    maps = SigmaMaps.given(values, method, image.shape, scale.high - scale.low)
    method.check_maps(torch.from_numpy(maps.values))
    return dataclasses.replace(scale, maps=maps)


def _plan(
    method: Restorer,
    image: Image,
    machine: Machine,
    scale: infer.Scaling | None,
    regions: Regions | None,
) -> infer.Plan:
    """How to cut the image; windows that follow given or edited maps need whole slices."""
    given = scale is not None and scale.maps is not None
    edited = regions is not None and regions.change
    return infer.plan(method, image, machine, whole_slices=given or edited)


def _for_series(
    image: Image, noise: NoiseEstimate, apart: choose.Choice, machine: Machine, seed: int
) -> choose.Choice:
    """All volumes at once, or as chosen one by one: whichever has the smaller expected error."""
    together = dataclasses.replace(apart, recipe=config.load("denoise", choose.SERIES))
    errors = []
    for choice in (together, apart):
        method, _ = restorer(choice.recipe, choose.facts(image, noise))
        scale = infer.scaling(method.to(machine.device), image, noise)
        settle(scale, image, machine.device, seed)
        errors.append(max(predict(scale, image, machine.device, seed).error, 0.0))
    chosen = together if errors[0] <= errors[1] else apart
    why = f"expected error {errors[0]:.2g} of the noise at once, {errors[1]:.2g} one by one"
    return dataclasses.replace(chosen, why=why)


def _learners(method: Restorer, recipe: Recipe) -> Iterator[tuple[Restorer, Train]]:
    """What learns from the scan: the method, or members of an average."""
    if isinstance(method, Ensemble):
        members = (*method.base, *method.additions.values())
        for member, its in zip(members, (*recipe.average, *recipe.additions), strict=True):
            yield from _learners(member, its)
    elif recipe.train is not None:
        yield method, recipe.train


def _fit(
    ready: Prepared,
    whole: infer.Scaling,
    method: Restorer,
    train: Train,
    seed: int,
    progress: Progress,
) -> None:
    """Fit a method, or a member of the whole, to parts of its own image."""
    scale = dataclasses.replace(whole, method=method)
    device = torch.device(ready.plan.device)
    volumes = method.crop_axes == 3
    shape = ready.image.shape
    images, sigmas, estimates = [], [], []
    for part in _blocks(shape) if volumes else _slices(shape, train.slices):
        batch, _ = infer.read_batch(scale, ready.image, slice(0, 1), part, device)
        form = batch.image.shape[2:] if volumes else batch.image.shape[2:4]
        images.append(batch.image.reshape(form))
        sigmas.append(None if batch.sigma is None else batch.sigma.reshape(form))
        estimates.append(_first(ready, whole, method, images[-1], sigmas[-1], part))
    size, count = train.crop, train.batch
    known = [e for e in estimates if e is not None]

    def improving(batch: Noisy, estimate: Callable[[], Noisy]) -> Noisy:
        """The batch with what the method starts from; the same seed cuts the same windows."""
        return dataclasses.replace(batch, estimate=estimate().image) if known else batch

    def batches(of: list[Tensor]) -> Iterator[Noisy]:
        return crops(of, sigmas, size=size, count=count, steps=train.steps, seed=seed)

    def held(of: list[Tensor]) -> Noisy:
        return one(of, sigmas, size=size, count=HELD_CROPS, seed=seed, step=HELD, progress=1.0)

    first = batches(known) if known else iter(())
    fit(
        method,
        (improving(batch, lambda: next(first)) for batch in batches(images)),
        train,
        lambda step, steps, _: progress("fit", step, steps),
        held=lambda: improving(held(images), lambda: held(known)),
    )


def _slices(shape: tuple[int, ...], most: int) -> list[tuple[slice, ...]]:
    """Slices along the third axis, evenly spaced."""
    if len(shape) == 2:
        return [tuple(slice(0, n) for n in shape)]
    picks = np.unique(np.linspace(0, shape[2] - 1, most + 2).astype(int)[1:-1])
    return [(slice(0, shape[0]), slice(0, shape[1]), slice(int(k), int(k) + 1)) for k in picks]


def _blocks(shape: tuple[int, ...]) -> list[tuple[slice, ...]]:
    """Blocks of a volume, evenly spaced: all of it if it is not large."""
    if math.prod(shape) <= VOXELS_TO_LEARN_FROM:
        return [tuple(slice(0, n) for n in shape)]
    sides = [min(BLOCK, n) for n in shape]
    corners = [
        [(n - side) * k // max(1, -(-n // side) - 1) for k in range(-(-n // side))]
        for n, side in zip(shape, sides, strict=True)
    ]
    every = list(itertools.product(*corners))
    most = min(len(every), max(1, VOXELS_TO_LEARN_FROM // math.prod(sides)))
    picks = np.unique(np.linspace(0, len(every) - 1, most).round().astype(int))
    return [
        tuple(slice(c, c + side) for c, side in zip(every[k], sides, strict=True)) for k in picks
    ]


def _first(
    ready: Prepared,
    whole: infer.Scaling,
    method: Restorer,
    u: Tensor,
    sigma: Tensor | None,
    part: tuple[slice, ...],
) -> Tensor | None:
    """What a method starts from on a slice (x, y) in its domain, made by what it is part of."""
    spectrum = infer.seen_from(ready.noise, part)
    batch = Noisy(u[None, None], None if sigma is None else sigma[None, None], spectrum)
    with torch.no_grad():
        if method is not whole.method and method.first(batch) is not None:
            batch = dataclasses.replace(batch, estimate=whole.method.first(batch))
        estimate = method.first(batch)
    return None if estimate is None else estimate[0, 0]
