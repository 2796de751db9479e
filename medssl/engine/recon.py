"""One raw scan to one image: coils, maps, the weight of the prior, and slices in a stream."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medssl import config
from medssl.config import Recipe
from medssl.core.batch import Acquired
from medssl.core.errors import InputError, MemoryLimitError, QualityError, UsageError
from medssl.core.kspace import KSpace
from medssl.core.progress import Progress
from medssl.core.run import Run
from medssl.data.slices import Slices
from medssl.engine import zero_shot
from medssl.engine.build import reconstructor
from medssl.engine.device import MIB, Machine
from medssl.engine.receive import Chain, received
from medssl.engine.weights import TrainedRecon
from medssl.engine.withhold import Curve, choose_lambda, mean_error, object_of, partings
from medssl.engine.zero_shot import Judged
from medssl.method import OneScan, Reconstructor
from medssl.physics.acquisition import model, unexplained
from medssl.physics.coils import Mixing, magnitude, root_sum_of_squares
from medssl.physics.espirit import espirit, folded, soften
from medssl.physics.fourier import to_kspace
from medssl.physics.kspace_noise import Receivers
from medssl.physics.nufft import SenseNufft, density
from medssl.physics.sampling import acceleration_inside, central, edge

DEFAULT = "l1_wavelet"
"""Recipe."""
LOOKED_AT = 5
"""Slices, evenly spaced, on which everything is chosen."""
TWO_SETS = 0.01
"""Share of the object that must be folded for a second set of maps."""
UNEXPLAINED = 1.4
"""chi2 above which the model is not right."""
COMPLETE = 1.1
"""Acceleration up to which a scan counts as fully measured."""
MISSING = 1.3
"""Acceleration over that of the header above which lines are missing."""
MOST_AT_ONCE = 8
"""Slices."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How a scan is to be reconstructed, checked."""

    recipe: Recipe
    why: str
    maps: NDArray[np.complex64] | None = None
    """(set, coil, *spatial); None estimates them."""
    map_sets: Literal["auto", 1, 2] = "auto"
    coils: int = 10
    """Virtual coils, at most."""
    whiten: bool = False
    noise: NDArray[np.complex64] | None = None
    """(coil, n) of a noise scan of another file."""
    seed: int = 0
    weights: TrainedRecon | None = None
    """Of an earlier training, which has the recipe; None learns nothing and needs nothing."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A scan about which everything is decided."""

    slices: Slices
    asked: Asked
    machine: Machine
    method: Reconstructor
    chain: Chain
    receivers: Receivers
    block: tuple[int, int]
    """Calibration."""
    n_sets: int
    scale: float
    """k-space is divided by it, so that images are about 1."""
    curve: Curve | None
    """None where the weight was given, or there is none."""
    settled: Mapping[str, Any]
    """Values of the method."""
    judged: Judged | None = None
    """What became of a net that learnt from the scan."""


@dataclass(frozen=True, eq=False)
class Reconstructed:
    """Pictures (slice, H, W) and what the data say of them."""

    image: NDArray[np.float32]
    zero_filled: NDArray[np.float32]


def wanted(method: str, changes: Mapping[str, Any]) -> tuple[Recipe, str]:
    """The recipe of a word, and why.

    Raises:
        UsageError: No such recipe, or a key that it does not know.
    """
    auto = method == "auto"
    recipe = config.load("recon", DEFAULT if auto else method, changes)
    untrained, _ = reconstructor(recipe)
    if recipe.train is not None and untrained.one_scan is None:
        raise UsageError(
            f"{recipe.name} has to be trained first",
            f"medssl train --recipe recon/{recipe.name}, then medssl recon --weights RUN",
        )
    return recipe, "the default for raw data" if auto else "as asked"


def with_weights(folder: Path, method: str, changes: Mapping[str, Any]) -> TrainedRecon:
    """What an earlier training left, with its recipe.

    Raises:
        UsageError: Another method is named, or a key that the recipe does not know.
        WeightsError: The weights are missing, damaged, or of another task.
    """
    if method != "auto":
        raise UsageError("--weights brings its own method", "leave --method out")
    return TrainedRecon.load(folder, changes)


def line(ready: "Prepared", run: Run) -> str:
    """What was found and done, in one line."""
    qc, noise = run.qc, run.noise
    words = [f"R {qc['acceleration']:.2g}", f"sigma {noise['relative_sigma']:.3g}"]
    weight = ready.settled.get("lambda_")
    if weight is not None:
        how = "withheld k-space"
        if ready.curve is None:
            how = "given"
        elif weight < 0.9 * ready.curve.lambda_:
            how = "bounded by the noise"
        words.append(f"lambda {weight:.3g} ({how})")
    if qc["chi2"] is not None:
        words.append(f"chi2 {qc['chi2']:.2f}")
    if ready.method.needs_maps:
        words.append(f"{ready.n_sets} map set" + ("s" if ready.n_sets > 1 else ""))
    if ready.judged is not None:
        words.append(ready.judged.words)
    return f"{ready.asked.recipe.name}, " + ", ".join(words)


def prepare(scan: KSpace, asked: Asked, machine: Machine, run: Run, tell: Progress) -> Prepared:
    """Decide everything from a few slices.

    Raises:
        InputError: The scan cannot be reconstructed; the message says why.
        MemoryLimitError: Not even one slice fits.
    """
    method, settled = _method(asked, scan)
    draft = drafted(scan, asked, machine, run, tell, method.to(machine.device), settled)
    few = few_of(draft.slices)
    patterns = [draft.slices.sampling(k) for k in few]
    n_sets = 1
    with run.stage("maps"):
        if method.needs_maps:
            tell("estimate coil maps", 0, 1)
            n_sets, share = _sets(draft, few)
            run.qc["folded"] = share
        draft = dataclasses.replace(draft, n_sets=n_sets)
        few = _lit(draft, few)
        draft = dataclasses.replace(draft, scale=_scale(draft, few))
    with run.stage("choose lambda"):
        draft = _weighted(draft, few, tell)
        chi2 = _chi2(draft, few)
        more = asked.map_sets == "auto" and asked.maps is None and method.needs_maps
        more = more and asked.weights is None
        if (
            chi2 is not None
            and chi2 > UNEXPLAINED
            and more
            and n_sets == 1
            and len(draft.chain.sigma) > 1
        ):
            other = _weighted(dataclasses.replace(draft, n_sets=2), few, tell)
            better = _chi2(other, few)
            if better is not None and better < 0.8 * chi2:
                draft, chi2 = other, better
        if chi2 is not None and chi2 > UNEXPLAINED and _complete(scan, patterns):
            draft, chi2 = _loosened(draft, few, chi2)
    if method.one_scan is not None:
        with run.stage("learn"):
            draft = _learnt(draft, method.one_scan, few, tell)
            chi2 = _chi2(draft, few)
    if chi2 is not None and chi2 > UNEXPLAINED and asked.weights is None:
        run.warn(
            f"the image leaves {chi2:.1f} times the noise unexplained; coil maps of cropped data, "
            "motion, a wrong trajectory or EPI phase errors are likely causes"
        )
    _note(draft, patterns, chi2, run)
    if asked.weights is not None:
        run.recipe["weights"] = asked.weights.as_dict()
        told = asked.weights.outside(run.qc["acceleration"], run.noise["relative_sigma"])
        run.warn(*([f"outside of what the weights were trained on: {told}"] if told else []))
    return draft


def _method(asked: Asked, scan: KSpace) -> tuple[Reconstructor, Mapping[str, Any]]:
    """The method, with its weights where it has some.

    Raises:
        InputError: A net cannot take the scan.
    """
    found = reconstructor(asked.recipe) if asked.weights is None else asked.weights.build()
    is_net = asked.weights is not None or found[0].one_scan is not None
    if is_net and scan.trajectory is not None:
        raise InputError("its samples lie off the grid", "nets take Cartesian scans only")
    return found


def drafted(
    scan: KSpace,
    asked: Asked,
    machine: Machine,
    run: Run,
    tell: Progress,
    method: Reconstructor,
    settled: Mapping[str, Any],
) -> Prepared:
    """A scan of which slices and coils are known, with one set of maps and its own scale.

    Raises:
        InputError: The scan cannot be reconstructed; the message says why.
    """
    run.warn(*scan.warnings)
    with run.stage("transform"):
        tell("transform", 0, 1)
        slices = Slices.of(scan)
    few = few_of(slices)
    patterns = [slices.sampling(k) for k in few]
    _refuse_missing(scan, patterns)
    with run.stage("coils"):
        tell("look at coils", 0, 1)
        estimated = method.needs_maps and asked.maps is None
        chain, receivers, block = received(
            slices,
            few,
            patterns,
            run,
            most=asked.coils if estimated else None,
            whiten=asked.whiten,
            noise=asked.noise,
            calibrated=estimated,
        )
        chain = chain.to(machine.device)
    return Prepared(slices, asked, machine, method, chain, receivers, block, 1, 1.0, None, settled)


def reconstruct(ready: Prepared, run: Run, tell: Progress) -> Reconstructed:
    """Reconstruct all slices, a few at a time.

    Raises:
        MemoryLimitError: One slice does not fit.
        QualityError: The image is not finite.
    """
    slices = ready.slices
    image = np.zeros((slices.n, *slices.shape), np.float32)
    plain = np.zeros_like(image)
    done, count = 0, _at_once(ready)
    with run.stage("reconstruct"):
        while done < slices.n:
            which = list(range(done, min(done + count, slices.n)))
            tell("reconstruct", done, slices.n)
            try:
                image[which], plain[which] = _pictures(ready, which)
            except (torch.OutOfMemoryError, MemoryError) as error:
                if count == 1:
                    raise MemoryLimitError(
                        f"one slice needs about {_bytes(ready) / MIB:.0f} MiB", "raise --memory"
                    ) from error
                count = max(1, count // 2)
                continue
            done = which[-1] + 1
        tell("reconstruct", slices.n, slices.n)
    if not np.isfinite(image).all():
        raise QualityError("the image is not finite", "give another --lambda")
    return Reconstructed(slices.place(image), slices.place(plain))


def batch_of(ready: Prepared, which: Sequence[int]) -> Acquired:
    """What the method sees of some slices, coil maps included."""
    slices = ready.slices
    kspace = ready.chain(slices.kspace(which)) / ready.scale
    sampling = torch.from_numpy(np.stack([slices.sampling(k) for k in which]))
    sampling = sampling[:, None].to(kspace.real)
    trajectory = None
    if slices.scan.trajectory is not None:
        trajectory = torch.from_numpy(slices.scan.trajectory).to(kspace.device)
    outside = None
    if ready.asked.weights is not None:
        edges = np.stack([edge(slices.sampling(k)) for k in which])
        outside = torch.from_numpy(edges)[:, None].to(sampling)
    return Acquired(
        kspace=kspace,
        sampling=sampling,
        coil_maps=maps_of(ready, which, kspace, trajectory)[0],
        sigma=float(ready.chain.sigma.mean()) / ready.scale,
        edge=outside,
        trajectory=trajectory,
    )


def _pictures(ready: Prepared, which: Sequence[int]) -> tuple[Any, Any]:
    """(B, H, W) of some slices, and the same by zero filling."""
    batch = batch_of(ready, which)
    with torch.no_grad():
        found = ready.method.restore(batch)
        picture = magnitude(found, batch.coil_maps, ready.chain.back) * ready.scale
        if batch.trajectory is None:
            plain = root_sum_of_squares(ready.slices.kspace(which))
        else:
            plain = magnitude(_start(batch), batch.coil_maps, ready.chain.back) * ready.scale
    return picture.float().cpu().numpy(), plain.float().cpu().numpy()


def _start(batch: Acquired) -> Tensor:
    """Gridding with weights of the samples' density, as bright as the samples say."""
    assert batch.trajectory is not None
    shots = SenseNufft(batch.coil_maps, batch.trajectory)
    image = shots.adjoint(batch.kspace * density(batch.trajectory))
    seen = shots(image)
    size = torch.vdot(seen.flatten(), batch.kspace.flatten()) / seen.abs().square().sum()
    return image * size.abs()


def few_of(slices: Slices, most: int = LOOKED_AT) -> list[int]:
    """Slices that are looked at, evenly spaced, the ends of the scan left out."""
    count = min(slices.n, most)
    return sorted({int((k + 0.5) * slices.n / count) for k in range(count)})


def _refuse_missing(scan: KSpace, patterns: Sequence[NDArray[np.bool_]]) -> None:
    """A header that promises more lines than there are."""
    if scan.trajectory is not None or scan.stated_acceleration is None:
        return
    found = float(np.mean([acceleration_inside(p) for p in patterns]))
    if found > MISSING * scan.stated_acceleration:
        raise InputError(
            f"k-space is accelerated by {found:.2g}, its header says {scan.stated_acceleration:g}: "
            "lines are missing",
            "export the whole measurement",
        )


def _centre(ready: Prepared, kspace: Tensor, trajectory: Tensor | None) -> Tensor:
    """(B, virtual, h, w) calibration block."""
    if trajectory is None:
        ys, xs = central(ready.slices.shape, ready.block)
        return kspace[..., ys, xs]
    n = kspace.shape[1]
    one = torch.eye(n, dtype=kspace.dtype, device=kspace.device)[..., None, None]
    each = SenseNufft(one.expand(n, n, *ready.slices.shape), trajectory)
    images = each.adjoint(kspace * density(trajectory))
    ys, xs = central(ready.slices.shape, ready.block)
    return to_kspace(images)[..., ys, xs]


def maps_of(
    ready: Prepared, which: Sequence[int], kspace: Tensor, trajectory: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Coil maps (B, set, coil, H, W) of some slices and their eigenvalues."""
    shape, n = ready.slices.shape, kspace.shape[1]
    if not ready.method.needs_maps:
        one = torch.eye(n, dtype=kspace.dtype, device=kspace.device)
        return one[None, ..., None, None].expand(len(which), n, n, *shape), None
    if ready.asked.maps is not None:
        return _given(ready, which), None
    if n == 1:
        return kspace.new_ones(len(which), 1, 1, *shape), None
    sigma = float(ready.chain.sigma.mean()) / ready.scale
    maps, values = espirit(_centre(ready, kspace, trajectory), shape, ready.n_sets, sigma=sigma)
    return soften(maps, values), values


def _given(ready: Prepared, which: Sequence[int]) -> Tensor:
    """The user's maps, of unit length where they are not zero."""
    maps = ready.asked.maps
    assert maps is not None
    axis = ready.slices.axis
    chosen = maps[None] if axis is None else np.moveaxis(maps, 2 + axis, 0)[list(which)]
    found = torch.from_numpy(np.array(chosen))[:, :, ready.chain.alive].to(ready.machine.device)
    length = torch.linalg.vector_norm(found, dim=2, keepdim=True)
    found = found / length.clamp_min(1e-12) * (length > 0)
    return Mixing(ready.chain.forward, tuple(found.shape[2:]))(found)


def _sets(ready: Prepared, few: Sequence[int]) -> tuple[int, float | None]:
    """How many sets of maps the scan needs, and the share of the object that is folded."""
    asked = ready.asked
    if asked.maps is not None:
        return asked.maps.shape[0], None
    if len(ready.chain.sigma) == 1:
        return 1, None
    wide = dataclasses.replace(ready, n_sets=2)
    shares = []
    for k in few:
        kspace = ready.chain(ready.slices.kspace([k]))
        trajectory = ready.slices.scan.trajectory
        path = None if trajectory is None else torch.from_numpy(trajectory).to(kspace.device)
        _, values = maps_of(wide, [k], kspace, path)
        assert values is not None
        inside = object_of(_centre(ready, kspace, path), ready.slices.shape)
        shares.append(folded(values, inside))
    share = float(np.max(shares))
    if asked.map_sets != "auto":
        return asked.map_sets, share
    return (2 if share > TWO_SETS else 1), share


def _inside(ready: Prepared, batch: Acquired) -> Tensor:
    """(B, H, W) the object of some slices."""
    centre = _centre(ready, batch.kspace * ready.scale, batch.trajectory)
    return object_of(centre, ready.slices.shape)


def _lit(ready: Prepared, few: Sequence[int]) -> list[int]:
    """Of some slices those with an object: with at least a tenth of the brightest one's energy."""
    energy = [float(ready.slices.kspace([k]).abs().square().sum()) for k in few]
    return [k for k, e in zip(few, energy, strict=True) if e >= 0.1 * max(energy)]


def _scale(ready: Prepared, few: Sequence[int]) -> float:
    """The 95th percentile of zero-filled images."""
    values = []
    for k in few:
        batch = batch_of(ready, [k])
        start = (
            _start(batch) if batch.trajectory is not None else model(batch).adjoint(batch.kspace)
        )
        values.append(torch.linalg.vector_norm(start, dim=1).flatten())
    scale = float(np.quantile(torch.cat(values).cpu().numpy(), 0.95))
    return scale if scale > 0 else 1.0


def _weighted(ready: Prepared, few: Sequence[int], tell: Progress) -> Prepared:
    """With the weight of the prior chosen on samples kept aside, where it is not given."""
    if "lambda_" not in ready.settled or ready.settled["lambda_"] is not None:
        return ready
    parted = []
    for i, k in enumerate(few):
        batch = batch_of(ready, [k])
        found = partings(batch, _inside(ready, batch), ready.asked.seed + 1000 * i)
        parted += found if len(few) < 3 else found[: max(1, math.ceil(len(found) / len(few)))]
    tries = [0]

    def error(weight: float) -> float:
        tell("choose lambda", tries[0], max(6, tries[0] + 1))
        tries[0] += 1
        return float(mean_error(_with_lambda(ready, weight).method.restore, parted).sum())

    curve = choose_lambda(error)
    return dataclasses.replace(_with_lambda(ready, curve.lambda_), curve=curve)


def _learnt(ready: Prepared, how: OneScan, few: Sequence[int], tell: Progress) -> Prepared:
    """With a net that has learnt from some slices, if it is the better for it."""
    train = ready.asked.recipe.train
    assert train is not None
    scans = []
    for k in few[: train.slices]:
        batch = batch_of(ready, [k])
        scans.append((batch, _inside(ready, batch)))

    def show(step: int, count: int) -> None:
        tell("learn", step, count)

    seed = ready.asked.seed
    judged = zero_shot.learn(ready.method, how, scans, train, seed, show)
    return dataclasses.replace(ready, judged=judged)


def _complete(scan: KSpace, patterns: Sequence[NDArray[np.bool_]]) -> bool:
    """Whether nothing is missing inside what was measured."""
    if scan.trajectory is not None:
        return False
    return all(acceleration_inside(p) <= COMPLETE for p in patterns)


def _loosened(ready: Prepared, few: Sequence[int], chi2: float) -> tuple[Prepared, float]:
    """A weight small enough to leave the noise alone.

    What one coil measures says nothing of what it does not; a weight chosen by samples kept aside
    then smooths. Where nothing is missing, the noise itself bounds the weight.
    """
    weight = ready.settled.get("lambda_")
    if ready.curve is None or weight is None:
        return ready, chi2
    for _ in range(12):
        weight /= 2
        ready = _with_lambda(ready, weight)
        found = _chi2(ready, few)
        if found is None or found <= 1:
            return ready, found or 0.0
        chi2 = found
    return ready, chi2


def _with_lambda(ready: Prepared, weight: float) -> Prepared:
    """With another weight of the prior."""
    recipe = ready.asked.recipe
    values = {**recipe.values, "lambda_": weight}
    method, settled = reconstructor(dataclasses.replace(recipe, values=values))
    return dataclasses.replace(ready, method=method.to(ready.machine.device), settled=settled)


def _chi2(ready: Prepared, few: Sequence[int]) -> float | None:
    """What is left of the measured samples, in units of the noise; None where there is none."""
    sigma = ready.chain.sigma / ready.scale
    if float(sigma.min()) <= 1e-7 or not ready.method.needs_maps:
        return None
    total, count = 0.0, 0
    for k in few:
        batch = batch_of(ready, [k])
        with torch.no_grad():
            missed = unexplained(batch, ready.method.restore(batch))
        each = torch.view_as_real(missed).square().sum((0, -3, -2, -1)).cpu()
        total += float((each / (2 * sigma**2)).sum())
        count += int(batch.sampling.sum()) * len(sigma)
    return total / count


def _note(
    ready: Prepared, patterns: Sequence[NDArray[np.bool_]], chi2: float | None, run: Run
) -> None:
    """Everything that was decided, for the sidecar."""
    asked, slices = ready.asked, ready.slices
    scan = slices.scan
    run.method, run.why = asked.recipe.name, asked.why
    run.recipe = {
        "task": "recon",
        "name": asked.recipe.name,
        "method": {"name": asked.recipe.method, **ready.settled},
    }
    run.noise |= {
        "source": ready.receivers.source,
        "sigma": [float(s) for s in ready.receivers.sigma],
        "condition": ready.receivers.condition,
        "relative_sigma": float(ready.chain.sigma.mean()) / ready.scale,
        "whitened": asked.whiten,
    }
    run.plan |= {
        "slices": slices.n,
        "transformed_along_readout": slices.volume,
        "calibration": list(ready.block),
        "coils": scan.n_coils,
        "map_sets": ready.n_sets,
        "scale": ready.scale,
        "slices_at_once": _at_once(ready),
        "geometry": "nominal" if scan.nominal else "scanner",
        "oversampling_removed": scan.oversampling,
    }
    full = [p.size / p.sum() for p in patterns]
    run.qc |= {
        "acceleration": float(np.mean(full)) if scan.trajectory is None else _radial(slices),
        "chi2": chi2,
    }
    if scan.trajectory is None:
        run.qc["acceleration_inside"] = float(np.mean([acceleration_inside(p) for p in patterns]))
    if ready.judged is not None:
        run.plan["net"] = ready.judged.as_dict()
    if ready.curve is not None:
        run.plan["lambda"] = {
            "chosen": ready.curve.lambda_,
            "used": ready.settled["lambda_"],
            "by": "samples kept aside",
            "tried": list(ready.curve.tried),
            "errors": list(ready.curve.errors),
        }


def _radial(slices: Slices) -> float:
    """Shots that would cover the circle, over those that there are."""
    trajectory = slices.scan.trajectory
    assert trajectory is not None
    return math.pi / 2 * max(slices.shape) / trajectory.shape[0]


def _bytes(ready: Prepared) -> int:
    """Working memory for one slice: its maps' matrices, its k-space, and images of the coils."""
    pixels, n = math.prod(ready.slices.shape), len(ready.chain.sigma)
    return 8 * pixels * (n * n + (6 + 2 * ready.n_sets) * n)


def _at_once(ready: Prepared) -> int:
    """Slices that fit into the memory together."""
    fitting = int(ready.machine.free * 0.5 // max(_bytes(ready), 1))
    return max(1, min(fitting, MOST_AT_ONCE, ready.slices.n))
