"""One function per verb; the command line, notebooks and users call the same ones."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from nibabel.spatialimages import SpatialImage
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from torch import Tensor

from medssl.config import Recipe
from medssl.core.errors import InputError, MedsslError, QualityError, UsageError, naming
from medssl.core.geometry import Geometry
from medssl.core.image import Image, Stored
from medssl.core.kspace import KSpace
from medssl.core.progress import Progress
from medssl.core.run import Run, plain, versions
from medssl.data import archive
from medssl.data.jobs import cores
from medssl.data.prepare import Prepared as PreparedStore
from medssl.data.prepare import prepare as prepare_store
from medssl.data.store import is_store, read_manifest
from medssl.engine import ct_report, estimate, probes
from medssl.engine import export as exports
from medssl.engine import recon as raw_scan
from medssl.engine.choose import Choice, Quality
from medssl.engine.device import machine
from medssl.engine.distributed import is_first, joined
from medssl.engine.embed import Asked as AskedFeatures
from medssl.engine.embed import Per
from medssl.engine.embed import embed as embed_scans
from medssl.engine.encoders import load_encoder
from medssl.engine.evaluate import evaluate as evaluate_on
from medssl.engine.learn import Watch
from medssl.engine.pretrain import pretrain as pretrain_on
from medssl.engine.probe import Report
from medssl.engine.restore import Prepared, Request, prepare, restore
from medssl.engine.scored import Asked as AskedScores
from medssl.engine.steer import Part, Regions, box, checked_strengths
from medssl.engine.train import train as train_on
from medssl.engine.wanted import Wanted
from medssl.engine.weights import refuse_damaged, task_of
from medssl.io import atomic, coil_arrays, journal, raw_dicom, sidecar
from medssl.io import memory as in_memory
from medssl.io import sigma_maps as map_files
from medssl.io import weights as weight_files
from medssl.io.b2nd import Codec
from medssl.io.derived import Derivation, derived_datasets
from medssl.io.features import Features, check_suffix, write_features
from medssl.io.gradients import read_b_values
from medssl.io.kspace import is_raw, read_kspace
from medssl.io.limits import Limits
from medssl.io.outputs import Outputs
from medssl.io.read import kind_of, read
from medssl.io.run_folder import RunFolder
from medssl.io.series import Series, SeriesOrigin, list_series, read_datasets
from medssl.io.write import NIFTI_SUFFIXES, Written, refuse_other_grid, write
from medssl.method import Mapped
from medssl.physics.noise_level import NoiseEstimate
from medssl.report.loss_curve import loss_curve as draw_losses
from medssl.report.preview import preview as draw
from medssl.report.sigma_maps import sigma_maps as draw_maps

Array = NDArray[Any]
Scan = str | Path | Image | SpatialImage | Array | Tensor | tuple[Array, Array] | Sequence[Dataset]
"""A path, an `Image`, a nibabel image, an array, a tensor, (array, affine), DICOM data sets."""
Roi = str | Path | Image | Array
"""Voxels `x0:x1,y0:y1[,z0:z1]` in the order of the image, half open, or a mask on its grid."""
Leave = Callable[[NDArray[np.float32]], Any]


@dataclass(frozen=True, eq=False)
class Denoised:
    """What `denoise` gives back; unpacks into image and sigma maps."""

    image: Any
    """Of the kind that was given; for a path the path of the output."""
    noise: NoiseEstimate
    choice: Choice
    qc: Mapping[str, Any]
    record: Mapping[str, Any]
    """What the sidecar holds."""
    line: str
    """What was done and why."""
    files: tuple[Path, ...] = ()
    """Everything that was written, or would be in a dry run; the image first."""
    table: tuple[str, ...] = ()
    """Of a CT scan, its quality in a few lines."""
    sigma_maps: NDArray[np.float64] | None = None
    """Of a method that has them, (n_stages, 3, *grid): widths along x and y in voxels, and in
    intensity in image units, before they were edited in regions. For a path only when asked for."""

    def __iter__(self) -> Iterator[Any]:
        """Image, sigma maps."""
        return iter((self.image, self.sigma_maps))


def denoise(
    x: Scan,
    out: str | Path | None = None,
    *,
    method: str = "auto",
    quality: Quality | None = None,
    weights: str | Path | None = None,
    sigma: float | str | Path | Image | Array = "auto",
    noise: str = "auto",
    coils: float | None = None,
    strength: float | None = None,
    sigma_maps: str | Path | Array | None = None,
    roi: Roi | Sequence[Roi] | None = None,
    strength_in_roi: float | Sequence[float] | None = None,
    mask: str | Path | Image | Array | None = None,
    series: str | None = None,
    bval: str | Path | Sequence[float] | None = None,
    allow_gaps: bool = False,
    to: Literal["same", "nii", "dicom", "dicom-classic"] = "same",
    like: str | Path | None = None,
    dtype: Literal["same", "float32"] = "same",
    noise_map: bool = False,
    residual: bool = False,
    save_sigma_maps: bool = False,
    preview: bool = True,
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
    memory: str | None = None,
    threads: int | None = None,
    seed: int = 0,
    strict: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Denoised:
    """Remove noise from a scan, without weights, network or training data.

    Args:
        x: A path, an `Image`, a nibabel image, an array, a tensor, (array, affine in RAS mm), or
            DICOM data sets of one series. The same kind comes back.
        out: Where a path's result goes; None means beside it. Other kinds stay in memory.
        method: `auto`, a recipe's name, or a recipe file.
        quality: How much time the scan is worth where the method is `auto`: `fast`, `standard` (the
            default) or `high`.
        weights: Folder of a training (`train`), which brings its method; nothing is learnt then.
        sigma: Standard deviation of the noise in image units (HU for CT), a map of it on the
            image's grid (NIfTI file, `Image` or array), or `auto`.
        noise: `auto`, `gaussian`, `rician`, `chi`, `poisson` or `gamma`.
        coils: Receiver coils of `chi` whose squares were summed; None estimates them.
        strength: 0 gives the input back bit for bit, 1 the whole change; None is the recipe's.
        sigma_maps: Maps of an earlier run with the same named method to filter with; nothing is
            fitted. A file that `save_sigma_maps` wrote, or what `Denoised.sigma_maps` holds.
        roi: Where the filter is to do more or less, or several such regions; where they overlap,
            the later one wins.
        strength_in_roi: Of the filter there: 0 keeps the voxels, 1 changes nothing, up to 10. One
            for each region, or one for all. The sigma maps of the method are multiplied by it, or
            else the noise that it believes in.
        mask: Voxels that may change: where it is not 0, on the image's grid.
        series: Which DICOM series: number, UID, or text of its description.
        bval: b-values (s/mm^2) of the volumes of a diffusion series, or FSL's file of them; None
            takes the file of the scan's name beside it.
        allow_gaps: Take a DICOM series with missing slices as independent slices.
        to: Kind of the output file.
        like: DICOM series whose headers `to="dicom"` takes when the input has none.
        dtype: `same` stored type as the input, or float32.
        noise_map: Also write the standard deviation of the noise at each voxel.
        residual: Also write input minus output.
        save_sigma_maps: Also write the maps of the method, and draw them with `preview`.
        preview: Also draw a picture of before, after, residual and noise.
        settings: Dotted keys of the recipe with other values, as `{"train.steps": 60}`.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
        memory: Upper bound such as `4GB`; None means what is free.
        threads: CPU threads; None means all cores.
        seed: Of every random number.
        strict: Refuse a CT result that fails a quality gate, before anything is written.
        overwrite: Replace existing outputs.
        dry_run: Decide everything, write nothing.
        progress: Told the stage, how much is done, and how much there is.

    Returns:
        The result and everything known about it.

    Raises:
        UsageError: The words of the call cannot be right.
        InputError: The scan is damaged or not one image.
        WeightsError: The weights are missing, damaged, or made for other scans.
        MemoryLimitError: It does not fit.
        OutputError: The result cannot be put where it should go.
        QualityError: `strict`, and a gate failed.
    """
    mapped = sigma if isinstance(sigma, (Path, Image, np.ndarray)) else None
    if isinstance(sigma, str) and sigma.endswith((".nii", ".nii.gz")):
        mapped = Path(sigma)
    number = sigma if mapped is None and isinstance(sigma, (str, int, float)) else "auto"
    words = estimate.asked(noise, number, coils)
    trained = None if weights is None else Path(weights)
    request = Request.of(method, settings or {}, words, strength, seed, quality, trained)
    steered = None if sigma_maps is None else request.mapped("--sigma-maps")
    if save_sigma_maps:
        request = request.saving_maps()
    asked_regions, strengths = _regions(roi, strength_in_roi)
    where = machine(device, memory, threads)
    run = Run("denoise", seed=seed)
    tell = progress or _say_nothing
    tell("read", 0, 1)
    limits = Limits(memory=where.memory)
    with run.stage("read"):
        image, leave = _enter(x, series, allow_gaps, limits, run)
        if bval is not None:
            known = read_b_values(bval) if isinstance(bval, (str, Path)) else tuple(bval)
            image = dataclasses.replace(image, b_values=known)
        template = image if like is None else read(like, series, limits)
        allowed = None if mask is None else _mask(mask, image, limits)
        if mapped is not None:
            words = estimate.with_map(words, _sigma_map(mapped, image, limits))
            request = dataclasses.replace(request, noise=words)
        if isinstance(sigma_maps, np.ndarray):
            request = dataclasses.replace(request, sigma_maps=sigma_maps.astype(np.float64))
        elif sigma_maps is not None:
            assert steered is not None
            assert request.recipe is not None
            steers = _steers(steered, request.recipe)
            widths = map_files.read(Path(sigma_maps), image, steers, limits)
            request = dataclasses.replace(request, sigma_maps=widths)
        if asked_regions:
            masks = [_region(one, image, limits) for one in asked_regions]
            found = Regions.of(masks, strengths, image.shape)
            request = dataclasses.replace(request, regions=found)
    outputs = None
    if isinstance(x, (str, Path)):
        outputs = Outputs.named(
            Path(x),
            None if out is None else Path(out),
            template,
            to=to,
            preview=preview,
            noise_map=noise_map,
            residual=residual,
            sigma_maps=save_sigma_maps,
        )
        outputs.check(Path(x), overwrite=overwrite)
        if isinstance(sigma_maps, (str, Path)) and outputs.sigma_maps is not None:
            atomic.check_target(outputs.sigma_maps, overwrite=overwrite, source=Path(sigma_maps))
    elif out is not None:
        raise UsageError("out= goes with a path", "use medssl.write for images in memory")
    tell("estimate noise", 0, 1)
    with naming(image.name or "image"):
        ready = prepare(image, request, where, run)
    line = _line(ready)
    if dry_run:
        record = _record(ready, run, None) | {"outputs": _names(outputs)}
        files = () if outputs is None else outputs.all
        return Denoised(None, ready.noise, ready.choice, run.qc, record, line, files)
    done = restore(ready, allowed, run, tell, keep_maps=save_sigma_maps or outputs is None)
    data = done.data
    failed = ct_report.failures(run.qc["ct"]) if strict and "ct" in run.qc else []
    if failed:
        raise QualityError("; ".join(failed), "lower --strength or leave out --strict")
    table = tuple(ct_report.lines(run.qc["ct"])) if "ct" in run.qc else ()
    if outputs is None:
        made = leave(data)
        record = _record(ready, run, None)
        return Denoised(
            made,
            ready.noise,
            ready.choice,
            run.qc,
            record,
            line,
            table=table,
            sigma_maps=done.sigma_maps,
        )
    tell("write", 0, 1)
    atomic.remove(outputs.sidecar)
    for stale in (outputs.sigma_maps, outputs.sigma_maps_picture):
        if stale is not None:
            atomic.remove(stale)
    if save_sigma_maps and done.sigma_maps is None:
        run.warn("there are no sigma maps to save, since nothing was filtered with any")
        outputs = dataclasses.replace(outputs, sigma_maps=None, sigma_maps_picture=None)
    with run.stage("write"):
        clean = ready.image.with_data(data)
        written = write(
            outputs.image,
            clean,
            like=template,
            to=to,
            dtype=dtype,
            derivation=_derivation(run),
            overwrite=overwrite,
        )
        if 1000 * written.clipped > written.voxels:
            run.warn(f"{written.clipped} voxels did not fit into the stored range and were clipped")
        _write_extras(outputs, ready, data, line, overwrite)
        if done.sigma_maps is not None:
            _write_maps(outputs, ready, done.sigma_maps, overwrite)
    record = _record(ready, run, written) | {"outputs": _names(outputs)}
    sidecar.write(outputs.sidecar, record, overwrite=overwrite)
    return Denoised(
        outputs.image,
        ready.noise,
        ready.choice,
        run.qc,
        record,
        line,
        outputs.all,
        table,
        done.sigma_maps,
    )


@dataclass(frozen=True, eq=False)
class Trained:
    """What `train` gives back."""

    run: Path
    """The folder of the run."""
    record: Mapping[str, Any]
    """What its `run.json` holds."""
    refused: tuple[MedsslError, ...]
    """Why some scans were passed over."""
    warnings: tuple[str, ...]
    line: str
    """What was learnt, and from how much."""
    files: tuple[Path, ...]
    """What the folder holds, or would after a dry run."""


def train(
    data: str | Path,
    out: str | Path,
    recipe: str | None = None,
    *,
    steps: int | None = None,
    noise: str = "auto",
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
    memory: str | None = None,
    threads: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    resume: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> Trained:
    """Learn from many scans, once; `denoise` and `recon` with `weights=` use what was learnt.

    To denoise, each scan is scaled by its own noise, so that one net serves all scanners. Clean
    images are neither needed nor used. To reconstruct, raw scans are learnt from, fully sampled or
    not, and generated ones. Scans that cannot be used are passed over and listed in the run.

    Args:
        data: Folder of scans at any depth: NIfTI, DICOM series, pictures, NPY; raw data for recon
            recipes, which measure magnitude images with simulated coils where there are none.
        out: Folder of the run.
        recipe: `denoise/NAME`, `recon/NAME` or the path of a YAML file; None goes on with the
            recipe of the run.
        steps: Steps in all; None means the recipe's.
        noise: Law of the noise of all scans, as for `denoise`.
        settings: Dotted keys of the recipe with other values, as `{"train.batch": 8}`.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
        memory: Upper bound such as `4GB`; None means what is free.
        threads: CPU threads; None means all cores.
        seed: Of every random number.
        overwrite: Replace an earlier run.
        resume: Go on where an earlier call stopped, if one did; bit for bit on the CPU.
        dry_run: Look at the scans, decide everything, write nothing.
        progress: Told the stage, how much is done, and how much there is.
        watch: Told the step, its loss terms and crops per second.

    Raises:
        UsageError: The words of the call cannot be right, or are not those of the run.
        InputError: No scan can be used.
        WeightsError: What the run holds is damaged.
        MemoryLimitError: A step does not fit.
        OutputError: The run cannot be put where it should go.
        QualityError: The loss is not finite.
        InterruptedRunError: Interrupted, and saved.
        TerminatedRunError: Asked by the system to end, and saved.
    """
    data, folder = Path(data), RunFolder(Path(out))
    tell = progress or _say_nothing
    wanted = _wanted(
        folder, recipe, steps, settings, seed, "denoise", "recon", resume=resume, noise=noise
    )
    where = machine(device, memory, threads)
    folder.check(data, overwrite=overwrite, resume=resume)
    with nullcontext() if dry_run else folder.locked():
        tell("find scans", 0, 1)
        done = train_on(
            data,
            wanted,
            None if dry_run else folder,
            where,
            tell,
            resume=resume and not overwrite,
            watch=watch,
        )
        if not dry_run:
            _draw_curve(folder)
    return Trained(
        folder.path,
        done.record,
        done.refused,
        done.warnings,
        _learnt(done.record, wanted, dry_run),
        folder.files,
    )


def pretrain(
    data: str | Path,
    out: str | Path,
    recipe: str | None = None,
    *,
    steps: int | None = None,
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
    memory: str | None = None,
    threads: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    resume: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> Trained:
    """Pretrain an encoder on a store, without labels.

    Under `torchrun` its processes train together; the batch of the recipe is that of all of them.

    Args:
        data: The store that `archive_prepare` made.
        out: Folder of the run.
        recipe: `pretrain/NAME`, `NAME`, or the path of a YAML file; None goes on with the recipe
            of the run.
        steps: Steps in all; None means the recipe's.
        settings: Dotted keys of the recipe with other values, as `{"train.batch": 64}`.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
        memory: Upper bound such as `4GB`; None means what is free.
        threads: CPU threads; None means all cores.
        seed: Of every random number.
        overwrite: Replace an earlier run.
        resume: Go on where an earlier call stopped, if one did; bit for bit on the CPU.
        dry_run: Look at the store, decide everything, write nothing.
        progress: Told the stage, how much is done, and how much there is.
        watch: Told the step, its loss terms and images per second.

    Raises:
        UsageError: The words of the call cannot be right, or are not those of the run.
        InputError: No store, or nothing to learn from in it.
        WeightsError: What the run holds is damaged.
        MemoryLimitError: A step does not fit.
        OutputError: The run cannot be put where it should go.
        QualityError: The loss is not finite, ten steps in a row.
        InterruptedRunError: Interrupted, and saved.
        TerminatedRunError: Asked by the system to end, and saved.
    """
    data, folder = Path(data), RunFolder(Path(out))
    wanted = _wanted(folder, recipe, steps, settings, seed, "pretrain", resume=resume)
    with joined(device) as own, ExitStack() as stack:
        where = machine(own, memory, threads)
        if is_first():
            folder.check(data, overwrite=overwrite, resume=resume)
            if not dry_run:
                stack.enter_context(folder.locked())
        done = pretrain_on(
            data,
            wanted,
            None if dry_run else folder,
            where,
            progress or _say_nothing,
            resume=resume and not overwrite,
            watch=watch,
        )
        if is_first() and not dry_run:
            _draw_curve(folder)
    line = f"{wanted.recipe.name}, {done.record['parameters']} parameters, {wanted.train.steps} "
    seen = done.record["seen"]
    line += f"steps of {wanted.train.batch} on {seen['images']} images of {seen['learnt']} volumes"
    line = f"would learn {line}" if dry_run else line
    return Trained(folder.path, done.record, done.refused, done.warnings, line, folder.files)


@dataclass(frozen=True, eq=False)
class Embedding:
    """What `embed` gives back."""

    features: Features
    """One row for each volume, slice or patch."""
    record: Mapping[str, Any]
    """What the sidecar holds."""
    refused: tuple[MedsslError, ...]
    """Why some scans were passed over."""
    line: str
    files: tuple[Path, ...] = ()
    """The table and its sidecar, where they were written."""


def embed(
    x: str | Path,
    out: str | Path | None = None,
    *,
    weights: str | Path,
    per: Per = "volume",
    overlap: float = 0.25,
    unit_length: bool = False,
    device: str = "auto",
    memory: str | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Embedding:
    """Features of scans by a pretrained encoder; rows are named by hashes, never by files.

    Args:
        x: A store, a scan (file or DICOM folder), or a folder of scans at any depth.
        out: Table to write: `.parquet`, `.csv` or `.npz`; None writes nothing.
        weights: Folder of a pretraining.
        per: A row for each `volume`, `slice` or `patch`; windows of the size of the pretraining
            slide over the patient, and rows of volumes and slices are their mean.
        overlap: Share of a window that the next one shows again, at least.
        unit_length: Whether each row is divided by its length.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
        memory: Upper bound such as `4GB`; None means what is free.
        threads: CPU threads; None means all cores.
        overwrite: Replace an existing table.
        progress: Told the stage, how much is done, and how much there is.

    Raises:
        UsageError: The words of the call cannot be right.
        InputError: No scan can be used.
        WeightsError: The weights are missing, damaged, or of no encoder that is ready.
        MemoryLimitError: A window does not fit.
        OutputError: The table cannot be put where it should go.
    """
    where, source = machine(device, memory, threads), Path(x)
    target = None if out is None else Path(out)
    if target is not None:
        check_suffix(target)
        for path in (target, target.with_suffix(".json")):
            atomic.check_target(path, overwrite=overwrite, source=source)
    loaded = load_encoder(Path(weights), {})
    asked = AskedFeatures(per=per, overlap=overlap, unit_length=unit_length)
    done = embed_scans(source, loaded, asked, where, progress or _say_nothing)
    rows, size = done.table.values.shape
    record = {
        "GeneratedBy": [{"Name": "medssl", "Version": version("medssl")}],
        "medssl": {
            "task": "embed",
            "weights": loaded.as_dict(),
            **dataclasses.asdict(asked),
            "rows": rows,
            "features": size,
            "failed": len(done.refused),
            "versions": versions(),
        },
    }
    line = f"{rows} rows of {size} features, one for each {per}, by {loaded.recipe.name}"
    line += f", {len(done.refused)} scans passed over" if done.refused else ""
    if target is None:
        return Embedding(done.table, plain(record), done.refused, line)
    side = target.with_suffix(".json")
    atomic.remove(side)
    write_features(target, done.table, overwrite=overwrite)
    record["outputs"] = [target.name, side.name]
    sidecar.write(side, plain(record), overwrite=overwrite)
    return Embedding(done.table, plain(record), done.refused, line, (target, side))


@dataclass(frozen=True, eq=False)
class Probed:
    """What `probe` gives back."""

    report: Report
    record: Mapping[str, Any]
    """The same as plain values."""
    table: tuple[str, ...]
    """The same in a few lines."""
    warnings: tuple[str, ...]
    line: str
    files: tuple[Path, ...] = ()


def probe(
    x: str | Path | Sequence[str | Path],
    labels: str | Path,
    *,
    task: Sequence[str] = ("linear", "knn"),
    data: str | Path | None = None,
    against: str | Path | Sequence[str | Path] | None = None,
    numbers: Sequence[int] = (5, 20, 100, 0),
    seeds: int = 5,
    twins: int = 3,
    steps: int = 200,
    longer: bool = True,
    out: str | Path | None = None,
    device: str = "auto",
    memory: str | None = None,
    threads: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Probed:
    """How much a pretraining is worth where labels are few.

    Linear and neighbour probes learn from features and compare them with those of random weights
    whose norms saw the same images; `segment` fine-tunes a small U-Net from random weights, from
    random weights with the compute of the pretraining on top, and from the pretrained ones.
    Intervals are of 95 %, over pretraining seeds, draws of labels and patients.

    Args:
        x: Folders of pretrainings of one recipe with different seeds, or tables of features.
        labels: CSV with `id` (see `embed`) or `file`, and `label`; `slice` and `group` where they
            matter. For `segment` a column `segmentation` names label maps.
        task: `linear` and `knn`, or `segment` alone.
        data: Store or scans that runs are tried on; for `segment` the store of the images, or None
            for the files of the table.
        against: Tables of features to compare with, in place of random weights.
        numbers: Labels of each class, or labelled images; 0 takes all.
        seeds: Draws of labels.
        twins: Draws of random weights that each run is compared with.
        steps: Of a fine-tuning.
        longer: Whether `segment` trains the arm with the compute of the pretraining.
        out: JSON file to write, with a CSV of the same name.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
        memory: Upper bound such as `4GB`; None means what is free.
        threads: CPU threads; None means all cores.
        seed: Of every random number.
        overwrite: Replace existing outputs.
        progress: Told the stage, how much is done, and how much there is.

    Raises:
        UsageError: The words of the call cannot be right.
        InputError: Features, scans or labels that say nothing.
        WeightsError: A run is missing, damaged, or of no encoder that is ready.
        OutputError: The report cannot be put where it should go.
    """
    where, source = machine(device, memory, threads), Path(labels)
    targets = () if out is None else (Path(out).with_suffix(".json"), Path(out).with_suffix(".csv"))
    for path in targets:
        atomic.check_target(path, overwrite=overwrite)
    asked = probes.Wanted(
        sources=_paths(x),
        against=_paths(against),
        labels=source,
        data=None if data is None else Path(data),
        tasks=tuple(task),
        numbers=tuple(numbers),
        seeds=seeds,
        twins=twins,
        steps=steps,
        longer=longer,
        seed=seed,
    )
    report, known = probes.run(asked, where, progress or _say_nothing)
    record = {
        "GeneratedBy": [{"Name": "medssl", "Version": version("medssl")}],
        "medssl": {
            "task": "probe",
            "encoders": known,
            **report.facts,
            "rows": [row.as_dict() for row in report.rows],
            "warnings": list(report.warnings),
            "seed": seed,
            "versions": versions(),
        },
    }
    if targets:
        record["outputs"] = [p.name for p in targets]
        with atomic.file(targets[1], overwrite=overwrite) as sink:
            sink.write(probes.as_csv(report).encode())
        sidecar.write(targets[0], plain(record), overwrite=overwrite)
    facts = report.facts
    line = f"{facts['rows']} labelled rows of {facts['groups']} groups, {facts['draws']} draws, "
    line += f"{next(iter(facts['arms'].values()))} pretraining seeds"
    table = tuple(probes.as_lines(report))
    return Probed(report, plain(record), table, report.warnings, line, targets)


@dataclass(frozen=True, eq=False)
class Export:
    """What `export` gives back."""

    record: Mapping[str, Any]
    """What the list of weights holds."""
    line: str
    files: tuple[Path, ...]
    """The weights, further forms of them, and the list of weights."""


def export(
    run: str | Path,
    out: str | Path,
    *,
    to: str,
    channels: int | None = None,
    overwrite: bool = False,
) -> Export:
    """Write the encoder of a pretraining for another tool, with a list of every weight.

    Args:
        run: Folder of a pretraining.
        out: Name of the file of weights, `.safetensors`; `.keymap.json` lies beside it.
        to: `monai-unet`, `monai-segresnet`, `monai-swinunetr`, `nnunet-resenc` or `resnet50`.
        channels: Of the images that the target takes; None takes those of the encoder. One channel
            is repeated, several are summed.
        overwrite: Replace existing files.

    Raises:
        UsageError: No such target, or channels that cannot be.
        WeightsError: The run is not ready, under 95 % of the target's encoder is in it, or the
            target would compute something else; nothing is written.
        OutputError: The files cannot be put where they should go.
    """
    target = Path(out)
    if target.suffix != ".safetensors":
        if target.suffix in (".pt", ".pth", ".ckpt", ".bin", ".pkl"):
            raise UsageError(
                "pickles are never written", "end the name in .safetensors", file=target
            )
        target = target.with_name(target.name + ".safetensors")
    loaded = load_encoder(Path(run), {})
    found = exports.export(loaded, to, channels)
    keymap = target.with_suffix(".keymap.json")
    further = {target.with_suffix(ending): t for ending, t in found.further.items()}
    files = (target, *further, keymap)
    for path in files:
        atomic.check_target(path, overwrite=overwrite)
    record = plain(
        {
            "GeneratedBy": [{"Name": "medssl", "Version": version("medssl")}],
            "to": to,
            "source": loaded.as_dict(),
            **found.as_dict(target.name),
            "files": [p.name for p in files],
        }
    )
    atomic.remove(keymap)
    digests = {target.name: weight_files.write(target, found.tensors, overwrite=overwrite)}
    for path, tensors in further.items():
        digests[path.name] = weight_files.write(path, tensors, overwrite=overwrite)
    record["sha256"] = digests
    sidecar.write(keymap, record, overwrite=overwrite)
    counts = ", ".join(f"{n} {state}" for state, n in sorted(found.counts().items()))
    line = f"{to}: {found.share:.1%} of its encoder; keys: {counts}; "
    line += f"features differ by {found.difference:.1g}"
    return Export(record, line, files)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What `evaluate` gives back."""

    record: Mapping[str, Any]
    """Numbers of all cases with intervals, then of each case; None where there is none."""
    table: tuple[str, ...]
    """The same in a few lines."""
    warnings: tuple[str, ...]
    line: str
    files: tuple[Path, ...] = ()


def evaluate(
    predicted: str | Path,
    reference: str | Path | None = None,
    *,
    task: Literal["seg", "detect"] = "seg",
    group_by: str | Path | None = None,
    empty: Literal["skip", "one", "diagonal"] = "skip",
    tolerance: float = 1.0,
    maps: Literal["probability", "detection"] = "probability",
    out: str | Path | None = None,
    memory: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Compare predictions with references: overlap and surfaces, or lesions found and missed.

    Intervals are of 95 %, by a bootstrap of patients.

    Args:
        predicted: Label maps (`seg`) or maps of one class (`detect`): a file or a folder. For
            `detect` also a folder of NPZ files with a map (`prob` or `softmax`) and a `label`.
        reference: Label maps on the same grids, with the same names; None with NPZ files.
        task: `seg` compares labels by value, `detect` regions of a map with lesions.
        group_by: CSV with columns `case` and `patient`; None takes each case for a patient.
        empty: What a label is worth that a map lacks: `skip` leaves out what cannot be measured,
            `one` counts two empty masks as agreement, `diagonal` takes the diagonal of the image as
            distance where one is empty.
        tolerance: Of NSD, mm.
        maps: What `detect` is given: `probability`, reduced to candidates first, or `detection`,
            candidates with one confidence each.
        out: JSON file to write.
        memory: Upper bound such as `4GB`; None means what is free.
        seed: Of the draws of patients.
        overwrite: Replace an existing file.
        progress: Told the stage, how much is done, and how much there is.

    Raises:
        UsageError: The words of the call cannot be right.
        InputError: Files that do not fit one another, or hold something else.
        MemoryLimitError: A map does not fit.
        OutputError: The report cannot be put where it should go.
    """
    where = machine("cpu", memory, None)
    target = None if out is None else Path(out)
    source = Path(predicted)
    asked = AskedScores(task=task, empty=empty, tolerance=tolerance, maps=maps, seed=seed)
    if target is not None:
        target = target if target.suffix == ".json" else target.with_name(target.name + ".json")
        atomic.check_target(target, overwrite=overwrite)
    done = evaluate_on(
        source,
        None if reference is None else Path(reference),
        None if group_by is None else Path(group_by),
        asked,
        Limits(memory=where.memory),
        progress or _say_nothing,
    )
    record = {
        "GeneratedBy": [{"Name": "medssl", "Version": version("medssl")}],
        **done.record,
        "seed": seed,
        "warnings": list(done.warnings),
        "versions": versions(),
    }
    if target is not None:
        record["outputs"] = [target.name]
        sidecar.write(target, plain(record), overwrite=overwrite)
    line = f"{record['cases']} cases of {record['patients']} patients"
    files = () if target is None else (target,)
    return Evaluation(plain(record), done.table, done.warnings, line, files)


def _paths(x: str | Path | Sequence[str | Path] | None) -> tuple[Path, ...]:
    if x is None:
        return ()
    return (Path(x),) if isinstance(x, (str, Path)) else tuple(map(Path, x))


def _wanted(
    folder: RunFolder,
    recipe: str | None,
    steps: int | None,
    settings: Mapping[str, Any] | None,
    seed: int,
    *tasks: str,
    resume: bool,
    noise: str = "auto",
) -> Wanted:
    """What is to be trained: in the words of the call, or as the run was begun."""
    if recipe is None:
        if not resume or not folder.begun:
            raise UsageError("no recipe is named", f"give --recipe {tasks[0]}/NAME")
        known = Wanted.recorded(folder.record())
        if known.recipe.task not in tasks:
            raise UsageError(
                f"the run is of a {known.recipe.task} recipe", f"give --recipe {tasks[0]}/NAME"
            )
        return known
    changes = dict(settings or {}) | ({} if steps is None else {"train.steps": steps})
    return Wanted.of(recipe, changes, estimate.asked(noise, "auto"), seed, tasks)


def _draw_curve(folder: RunFolder) -> None:
    """The losses of a run as a picture."""
    with atomic.file(folder.loss_curve, overwrite=True) as sink:
        sink.write(draw_losses(journal.read(folder.metrics)))


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """What `recon` gives back."""

    image: Image
    """Magnitude, (1, *spatial), with the grid of the scanner where it is known."""
    zero_filled: NDArray[np.float32]
    """The same by zero filling, to compare with."""
    qc: Mapping[str, Any]
    record: Mapping[str, Any]
    """What the sidecar holds."""
    line: str
    """What was found and done."""
    files: tuple[Path, ...] = ()
    """Everything that was written, the image first."""


def recon(
    x: str | Path | KSpace,
    out: str | Path | None = None,
    *,
    method: str = "auto",
    weights: str | Path | None = None,
    lambda_: float | Literal["auto"] = "auto",
    maps: str | Path | Array | None = None,
    map_sets: Literal["auto", 1, 2] = "auto",
    coils: int = 10,
    whiten: bool = False,
    noise_scan: str | Path | Array | None = None,
    axes: str | None = None,
    frame: int | None = None,
    trajectory: str | Path | None = None,
    to: Literal["nii", "dicom"] = "nii",
    like: str | Path | None = None,
    preview: bool = True,
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
    memory: str | None = None,
    threads: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Reconstruction:
    """Make an image of raw k-space; coil maps and the weight of the prior are found from the data.

    Args:
        x: Raw data: Siemens twix, ISMRMRD, fastMRI, BART or NPY; or a `KSpace`.
        out: Where a path's result goes; None means beside it. A `KSpace` stays in memory.
        method: `auto`, a recipe's name, or a recipe file.
        weights: Folder of a training (`train` with a recon recipe), which brings its method.
        lambda_: Weight of the method's prior where images are about 1; `auto` keeps samples aside
            to choose it.
        maps: Coil maps (set, coil, *spatial) or (coil, *spatial), as an array or a file (NPY,
            BART); None estimates them.
        map_sets: Sets of estimated maps; `auto` takes two where the field of view is folded.
        coils: Virtual coils that more coils are compressed to.
        whiten: Give all coils independent noise of one level first.
        noise_scan: (coil, n) samples without signal, as an array or an NPY file.
        axes: Names of the axes of an array file, as in `coil,ky,kx`.
        frame: Which echo, repetition or set of several.
        trajectory: `radial-360`, `radial-180` or a file, for samples off the grid.
        to: Kind of the output.
        like: DICOM series of the same patient whose identity `to="dicom"` takes.
        preview: Also draw a picture of zero filling, result and difference.
        settings: Dotted keys of the recipe with other values, as `{"method.iterations": 100}`.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
        memory: Upper bound such as `4GB`; None means what is free.
        threads: CPU threads; None means all cores.
        seed: Of every random number.
        overwrite: Replace existing outputs.
        progress: Told the stage, how much is done, and how much there is.

    Raises:
        UsageError: The words of the call cannot be right.
        InputError: The raw data are damaged, or cannot be reconstructed.
        WeightsError: The weights are missing, damaged, or made for another task.
        MemoryLimitError: One slice does not fit.
        OutputError: The result cannot be put where it should go.
        QualityError: The image is not finite.
    """
    changes = dict(settings or {})
    if lambda_ != "auto":
        changes["method.lambda_"] = lambda_
    trained = None
    if weights is not None:
        trained = raw_scan.with_weights(Path(weights), method, changes)
        recipe, why = trained.recipe, f"weights of {trained.seen.count} scans"
    else:
        recipe, why = raw_scan.wanted(method, changes)
    where = machine(device, memory, threads)
    tell = progress or _say_nothing
    run = Run("recon", seed=seed)
    limits = Limits(memory=where.memory)
    template = None if like is None else read(like, None, limits)
    if to == "dicom" and (template is None or not isinstance(template.origin, SeriesOrigin)):
        raise UsageError("a DICOM series needs a patient", "name a series of the scan with --like")
    outputs = None
    if isinstance(x, (str, Path)):
        outputs = Outputs.of_raw(Path(x), None if out is None else Path(out), to, preview=preview)
        outputs.check(Path(x), overwrite=overwrite)
    elif out is not None:
        raise UsageError("out= goes with a path", "use medssl.write for images in memory")
    tell("read", 0, 1)
    with run.stage("read"):
        if isinstance(x, KSpace):
            scan = x
        else:
            scan = read_kspace(x, axes=axes, frame=frame, trajectory=trajectory, limits=limits)
        asked = raw_scan.Asked(
            recipe=recipe,
            why=why,
            maps=None if maps is None else coil_arrays.maps(maps, scan),
            map_sets=map_sets,
            coils=coils,
            whiten=whiten,
            noise=None if noise_scan is None else coil_arrays.noise(noise_scan),
            seed=seed,
            weights=trained,
        )
    with naming(scan.name or "k-space"):
        ready = raw_scan.prepare(scan, asked, where, run, tell)
        made = raw_scan.reconstruct(ready, run, tell)
    image = Image(
        data=made.image[None],
        geometry=scan.wanted,
        modality="MR",
        nominal=scan.nominal,
        name=scan.name,
        warnings=tuple(run.warnings),
    )
    line = raw_scan.line(ready, run)
    source = {"name": scan.name}
    if outputs is None:
        record = _provenance(source, image, run, None, {})
        return Reconstruction(image, made.zero_filled, run.qc, record, line)
    tell("write", 0, 1)
    atomic.remove(outputs.sidecar)
    with run.stage("write"):
        if to == "dicom" and template is not None:
            sentence = f"Reconstructed from raw data: medssl {version('medssl')} {recipe.name}"
            written = raw_dicom.write(
                outputs.image,
                image,
                template,
                sentence=f"{sentence}; research use only",
                overwrite=overwrite,
            )
        else:
            as_file = (
                image if outputs.image.name.lower().endswith(NIFTI_SUFFIXES) else _rows_first(image)
            )
            written = write(outputs.image, as_file, overwrite=overwrite)
        if outputs.preview is not None:
            before = image.with_data(made.zero_filled[None])
            caption = (line, "Research use only. Not a medical device.")
            names = ("zero-filled", recipe.name, "difference")
            content = draw(before, image.data, None, caption, names)
            with atomic.file(outputs.preview, overwrite=overwrite) as sink:
                sink.write(content)
    record = _provenance(source, image, run, written, {}) | {"outputs": _names(outputs)}
    sidecar.write(outputs.sidecar, record, overwrite=overwrite)
    return Reconstruction(image, made.zero_filled, run.qc, record, line, outputs.all)


def info(
    path: str | Path,
    series: str | None = None,
    *,
    axes: str | None = None,
    trajectory: str | Path | None = None,
) -> dict[str, Any]:
    """What a file or a folder holds, as plain values without identifiers.

    Args:
        path: A scan, raw data, a folder of DICOM series, or the folder of a training.
        series: One of the series, by number, UID or description.
        axes: Names of the axes of raw data that are an array, as for `recon`.
        trajectory: Where the samples of raw data lie off the grid, as for `recon`.

    Returns:
        `{"series": [...]}` for DICOM, `{"run": {...}}` for a training, `{"kspace": {...}}` for raw
        data, else `{"image": {...}}`.

    Raises:
        InputError: Nothing readable, or damaged.
        WeightsError: The weights of a training are damaged.
    """
    path = Path(path)
    with naming(path):
        if RunFolder(path).begun:
            return {"run": _run_facts(RunFolder(path))}
        if is_raw(path):
            return {
                "kspace": _raw_facts(read_kspace(path, axes=axes, frame=0, trajectory=trajectory))
            }
        if kind_of(path) == "dicom" and series is None:
            return {"series": [_series_facts(s) for s in list_series(path)]}
        return {"image": _image_facts(read(path, series))}


def archive_index(
    folder: str | Path,
    out: str | Path,
    *,
    patient_regex: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> archive.Indexed:
    """List what an archive of scans holds, from headers alone and without names.

    Files are looked at once: a later run looks at those that are new or changed, and one that was
    killed goes on.

    Args:
        folder: DICOM, NIfTI and pictures, at any depth.
        out: Folder of the index. Whom it is about lies in its `private/` alone.
        patient_regex: Finds the patient in a path below the folder: its first group, or all of it.
        threads: Processes that read headers; None takes all cores when there are many files.
        progress: Told the stage, files done, and files in all.

    Returns:
        Counts, and what is doubtful.

    Raises:
        UsageError: Wrong words of the call, or a package of `medssl[archive]` is missing.
        InputError: No folder, or one patient holds so many studies that it must be a filler.
        OutputError: The index cannot be written.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"--threads is {threads}", "give 1 or more")
    return archive.index(
        Path(folder), Path(out), patient_regex=patient_regex, workers=threads, progress=progress
    )


def archive_prepare(
    index: str | Path,
    out: str | Path,
    *,
    scheduler: str | None = None,
    jobs: int | None = None,
    codec: Codec = "zstd",
    progress: Progress | None = None,
) -> PreparedStore:
    """Turn the series of an index into a training store, and list what is of no use and why.

    A series that was prepared is not looked at again until it changes; a preparation that was
    killed goes on. `skipped.csv` of the store may be edited: a line added keeps a series out, a
    line removed lets it in.

    Args:
        index: Folder that `archive_index` wrote.
        out: Folder of the store.
        scheduler: `tcp://HOST:PORT` of a Dask scheduler whose workers see the same paths.
        jobs: Local processes; None takes all cores when there is much to read.
        codec: `zstd` packs best, `lz4` is read about twice as fast.
        progress: Told the stage, series done, and series in all.

    Raises:
        UsageError: Wrong words of the call, no scheduler answers, or a package of
            `medssl[archive]` is missing.
        InputError: No index, nothing in it, or the store is of another one.
        OutputError: The store cannot be written, or something else lies there.
        MemoryLimitError: A worker was killed.
    """
    if jobs is not None and jobs < 1:
        raise UsageError(f"--jobs is {jobs}", "give 1 or more")
    if jobs is not None and scheduler is not None:
        raise UsageError("--jobs are local processes, --scheduler has its own", "give one of them")
    index = Path(index)
    return prepare_store(
        archive.series(index),
        Path(out),
        salt=archive.salt(index),
        scheduler=scheduler,
        jobs=jobs or cores(),
        codec=codec,
        progress=progress,
    )


def archive_show(place: str | Path) -> dict[str, Any]:
    """Counts of an index or of a store, by modality, split and reason to be of no use.

    Args:
        place: Folder that `archive_index` or `archive_prepare` wrote.

    Raises:
        InputError: It is neither, damaged, or was not finished.
    """
    place = Path(place)
    if is_store(place):
        with naming(place):
            return read_manifest(place)
    return archive.show(place)


def _enter(
    x: object, series: str | None, allow_gaps: bool, limits: Limits, run: Run
) -> tuple[Image, Leave]:
    """The image that was given, and how to give the same kind back."""
    if isinstance(x, (str, Path)):
        return read(x, series, limits, allow_gaps=allow_gaps), _say_nothing
    if series is not None:
        raise UsageError("series= goes with a path", "leave it out")
    if isinstance(x, Image):
        return x, lambda data: x.with_data(data, warnings=tuple(run.warnings))
    if isinstance(x, SpatialImage):
        image = in_memory.from_nibabel(x)
        return image, lambda data: in_memory.to_nibabel(image.with_data(data), x)
    if isinstance(x, Tensor):
        image = in_memory.from_array(x.detach().cpu().numpy(), None)
        return image, lambda data: x.new_tensor(in_memory.to_array(image.with_data(data)))
    if isinstance(x, np.ndarray):
        image = in_memory.from_array(x, None)
        return image, lambda data: in_memory.to_array(image.with_data(data))
    if isinstance(x, tuple) and len(x) == 2 and isinstance(x[0], np.ndarray):
        image, affine = in_memory.from_array(x[0], x[1]), x[1]
        return image, lambda data: (in_memory.to_array(image.with_data(data)), affine)
    if isinstance(x, Sequence) and x and all(isinstance(d, Dataset) for d in x):
        image = read_datasets(x, limits)
        return image, lambda data: derived_datasets(image.with_data(data), image, _derivation(run))
    raise InputError(
        f"{type(x).__name__} is not a scan",
        "give a path, an Image, a nibabel image, an array, (array, affine), or DICOM data sets",
    )


def _steers(method: Mapped, recipe: Recipe) -> map_files.Steers:
    """What the maps of a method are made for."""
    return map_files.Steers(method=recipe.method, words=method.map_words, patch=method.map_patch)


def _regions(
    roi: Roi | Sequence[Roi] | None, strength: float | Sequence[float] | None
) -> tuple[list[Roi], tuple[float, ...]]:
    """Regions and their strengths, one for each, before anything is read."""
    regions: list[Roi] = []
    if isinstance(roi, (str, Path, Image, np.ndarray)):
        regions = [roi]
    elif roi is not None:
        regions = list(roi)
    strengths = [strength] if isinstance(strength, (int, float)) else list(strength or ())
    if bool(regions) != bool(strengths):
        lacking, there = ("--roi", "--strength-in-roi")[:: 1 if strengths else -1]
        raise UsageError(f"{there} says nothing without {lacking}", f"add {lacking}")
    return regions, checked_strengths(len(regions), strengths) if regions else ()


def _region(roi: Roi, image: Image, limits: Limits) -> NDArray[np.bool_] | Part:
    """A box of voxels, or a mask of them."""
    part = box(roi, image.shape) if isinstance(roi, str) else None
    return _mask(roi, image, limits, "region") if part is None else part


def _mask(mask: Roi, image: Image, limits: Limits, what: str = "mask") -> NDArray[np.bool_]:
    """(*spatial) where a mask is not 0."""
    if isinstance(mask, np.ndarray):
        if mask.shape != image.shape:
            raise InputError(
                f"the {what} has shape {mask.shape}, the image {image.shape}",
                "bring it onto the image's grid",
            )
        chosen = mask != 0
    else:
        given = mask if isinstance(mask, Image) else read(mask, None, limits)
        refuse_other_grid(image, given, what)
        chosen = given.data[0] != 0
    if not chosen.any():
        raise InputError(f"the {what} is empty", "mark the voxels that it is about with 1")
    return chosen


def _sigma_map(given: Path | Image | Array, image: Image, limits: Limits) -> NDArray[np.float32]:
    """(*spatial) standard deviation of the noise at each voxel."""
    if isinstance(given, np.ndarray):
        if given.shape != image.shape:
            raise InputError(
                f"the map of sigma has shape {given.shape}, the image {image.shape}",
                "bring it onto the image's grid",
            )
        return given.astype(np.float32)
    found = given if isinstance(given, Image) else read(given, None, limits)
    refuse_other_grid(image, found, "map of sigma")
    return found.data[0]


def _write_extras(
    outputs: Outputs, ready: Prepared, data: NDArray[np.float32], line: str, overwrite: bool
) -> None:
    """Residual, noise map and preview beside the output."""
    image = ready.image
    if outputs.residual is not None:
        _write_float(outputs.residual, image, image.data - data, overwrite)
    if outputs.noise_map is not None:
        whole = tuple(slice(0, n) for n in image.shape)
        _write_float(outputs.noise_map, image, ready.noise_map(data, whole)[None], overwrite)
    if outputs.preview is not None:
        caption = (line, "Research use only. Not a medical device.")
        content = draw(image, data, lambda part: ready.noise_map(data, part), caption)
        with atomic.file(outputs.preview, overwrite=overwrite) as sink:
            sink.write(content)


def _write_maps(
    outputs: Outputs, ready: Prepared, values: NDArray[np.float64], overwrite: bool
) -> None:
    """The sigma maps as a file, and drawn."""
    assert ready.scale is not None
    method = ready.scale.method
    assert isinstance(method, Mapped)
    if outputs.sigma_maps is not None:
        steers = _steers(method, ready.choice.recipe)
        map_files.write(outputs.sigma_maps, values, ready.image, steers, overwrite=overwrite)
    if outputs.sigma_maps_picture is not None:
        labels = None if ready.regions is None else ready.regions.labels
        with atomic.file(outputs.sigma_maps_picture, overwrite=overwrite) as sink:
            sink.write(draw_maps(values, ready.image, labels))


def _write_float(target: Path, like: Image, data: NDArray[np.float32], overwrite: bool) -> None:
    plain = Image(
        data=data,
        geometry=like.geometry,
        stored=Stored(np.dtype(np.float32)),
        channels=like.channels if data.shape[0] > 1 else "scalar",
    )
    write(target, plain, overwrite=overwrite)


def _line(ready: Prepared) -> str:
    """What is done and why, in one line."""
    noise, choice = ready.noise, ready.choice
    unit = " HU" if ready.image.modality == "CT" else ""
    if ready.declined is not None:
        return f"left as it is, because {ready.declined}"
    return (
        f"{choice.recipe.name}, {noise.law.name} noise, "
        f"sigma {noise.sigma:.3g}{unit}, strength {choice.strength:g} ({choice.why})"
    )


def _record(ready: Prepared, run: Run, written: Written | None) -> dict[str, Any]:
    """The sidecar of a scan that was denoised."""
    image = ready.image
    source = {"name": image.name, "sha256": getattr(image.origin, "sha256", None)}
    more = {} if written is None else {"clipped": written.clipped}
    return _provenance(source, image, run, written, more)


def _provenance(
    source: Mapping[str, Any],
    image: Image,
    run: Run,
    written: Written | None,
    more: Mapping[str, Any],
) -> dict[str, Any]:
    """The sidecar: enough to repeat the run, nothing that names a patient."""
    facts = run.as_dict() | {"geometry": _image_facts(image)} | dict(more)
    if written is not None:
        facts |= {
            "kind": written.kind,
            "voxels": written.voxels,
            "voxels_sha256": written.voxels_sha256,
            "complete": True,
        }
    record = {
        "GeneratedBy": [{"Name": "medssl", "Version": version("medssl")}],
        "Sources": [source],
        "warnings": facts.pop("warnings"),
        "medssl": facts,
    }
    return plain(record)


def _rows_first(image: Image) -> Image:
    """For files that hold arrays: their axes come in the order of those of the image."""
    turned = np.ascontiguousarray(image.data[0].T)[None]
    grid = Geometry.from_spacing(turned.shape[1:], image.spacing[::-1])
    return dataclasses.replace(image, data=turned, geometry=grid)


def _learnt(record: Mapping[str, Any], wanted: Wanted, dry_run: bool) -> str:
    """What was learnt and from how much, in one line."""
    seen, loss = record["seen"], record.get("loss", {})
    line = (
        f"{wanted.recipe.name}, {record['parameters']} parameters, "
        f"{wanted.train.steps} steps on {seen['learnt']} scans"
    )
    line += f", {seen['generated']} generated" if seen.get("generated") else ""
    line += f", {seen['tested']} kept for testing" if seen["tested"] else ""
    line += f", {record['failed']} passed over" if record["failed"] else ""
    if "held_out" in loss:
        line += f", held-out loss {loss['held_out_at_first']:.4g} to {loss['held_out']:.4g}"
    return f"would learn {line}" if dry_run else line


def _run_facts(folder: RunFolder) -> dict[str, Any]:
    """What a training left, its weights checked."""
    record = folder.record()
    if record.get("complete") is True and task_of(record) == "pretrain":
        load_encoder(folder.path, {})
    elif record.get("complete") is True:
        refuse_damaged(folder.path, record)
    return record | {"checkpoints": folder.steps()}


def _series_facts(series: Series) -> dict[str, Any]:
    return {
        "number": series.number,
        "modality": series.modality,
        "description": series.description,
        "shape": list(series.shape),
        "spacing_mm": [round(v, 4) for v in series.spacing],
        "images": series.count,
        "refused": series.refusal,
    }


def _raw_facts(scan: KSpace) -> dict[str, Any]:
    grid = scan.geometry
    shots = None if scan.trajectory is None else scan.data.shape[1:]
    return {
        "coils": scan.n_coils,
        "matrix": list(scan.wanted.shape),
        "grid": list(grid.shape),
        "encoded": list(scan.encoded),
        "spacing_mm": [float(f"{s:.6g}") for s in grid.spacing],
        "field_of_view_mm": [
            float(f"{s * n:.6g}")
            for s, n in zip(scan.wanted.spacing, scan.wanted.shape, strict=True)
        ],
        "shots": None if shots is None else shots[0],
        "samples_per_shot": None if shots is None else shots[1],
        "acceleration": float(f"{scan.acceleration:.4g}") if shots is None else None,
        "acceleration_in_header": scan.stated_acceleration,
        "readout_oversampling": scan.oversampling,
        "noise_scan": scan.noise is not None,
        "frames": scan.frames,
        "geometry": "nominal" if scan.nominal else "scanner",
        "affine_ras_mm": [[float(f"{v:.8g}") for v in row] for row in scan.wanted.affine],
        "warnings": list(scan.warnings),
    }


def _image_facts(image: Image) -> dict[str, Any]:
    stored = image.stored
    return {
        "shape": list(image.shape),
        "channels": image.data.shape[0],
        "channels_are": image.channels,
        "spacing_mm": [float(f"{s:.6g}") for s in image.spacing],
        "orientation": image.geometry.orientation,
        "affine_ras_mm": [[float(f"{v:.8g}") for v in row] for row in image.geometry.affine],
        "modality": image.modality,
        "stored": str(stored.dtype),
        "slope": float(stored.slope.flat[0]),
        "intercept": float(stored.intercept.flat[0]),
        "scaling_varies": stored.slope.ndim > 0 or stored.intercept.ndim > 0,
        "warnings": list(image.warnings),
    }


def _derivation(run: Run) -> Derivation:
    """What a derived DICOM series says of itself."""
    settled = json.dumps(plain(run.recipe), sort_keys=True)
    return Derivation(
        version=version("medssl"),
        method=run.method,
        parameters=settled,
        weights_sha256=run.recipe.get("weights", {}).get("sha256"),
    )


def _names(outputs: Outputs | None) -> list[str]:
    return [] if outputs is None else [p.name for p in outputs.all]


def _say_nothing(*_: object) -> None:
    return None
