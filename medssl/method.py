"""The contract between a paper's file and the engine that runs it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from medssl.core.batch import Acquired, Noisy, Sees, Views
from medssl.nets import norms

Batch = TypeVar("Batch")
"""What one step of a method sees: `Noisy`, `Acquired`, `Views`, ..."""
Domain = Literal["stabilised", "unit"]
"""What a restorer sees: unit noise variance, or intensities scaled to about [0, 1]."""
Truth = Literal["full", "some", "none"]
"""Scans that must be fully sampled to be learnt from: all, one at least, or none."""
THIN = 4
"""Slices below which a volume is a stack of pictures."""
FAR_APART = 5.0
"""Ratio of the distances of slices and voxels from which slices say little of each other."""

Trust = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From a restored image (*spatial) to the variance of the noise that was on it and a weight, 0 or
more, of the voxels where that can be believed."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a scan before a method is built.

    A `Config` with fields that depend on the scan has a method `suited_to(facts)` that returns the
    `Config` with those fields settled; the engine calls it, and the sidecar records the outcome.
    """

    shape: tuple[int, ...]
    """Voxels along each spatial axis."""
    spacing: tuple[float, ...]
    """Voxel distances, mm."""
    correlated: bool = False
    """The noise has a spectrum."""
    correlation: tuple[float, ...] = ()
    """Correlation of the noise of neighbours along each axis; empty where not measured."""
    n_volumes: int = 1
    """Volumes of a series."""
    b_values: tuple[float, ...] | None = None
    """Diffusion weighting of each volume, s/mm^2; None where it is not known."""
    independent_slices: bool = False
    """Slices do not lie on one grid and must not be mixed."""

    @property
    def net_axes(self) -> Literal[2, 3]:
        """Axes along which a net should look at once: 2 means slice by slice."""
        apart = self.independent_slices or len(self.shape) < 3
        if apart or self.shape[2] < THIN or self.spacing[2] > FAR_APART * min(self.spacing):
            return 2
        return 3


def thick_axis(shape: tuple[int, ...], spacing: tuple[float, ...]) -> tuple[int, float, bool]:
    """The thick axis of a volume, its spacing over the least, and whether slices stand alone."""
    thick = max(range(3), key=lambda axis: (shape[axis] < THIN, spacing[axis], axis))
    ratio = spacing[thick] / min(spacing)
    return thick, ratio, shape[thick] < THIN or ratio > FAR_APART


class Method(nn.Module, Generic[Batch]):
    """Something with named loss terms; the engine adds them up and steps."""

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalar terms of the objective; empty for a filter that learns nothing."""
        del batch
        return {}

    def after_step(self, progress: float) -> None:
        """What follows from the weights after a step: running means, predictors.

        It is called without gradients.

        Args:
            progress: Share of the training that is done, 0 to 1.
        """
        del progress


class Restorer(Method[Noisy]):
    """Noisy images in, clean images of the same shape out."""

    domain: Domain = "stabilised"
    joint: bool = False
    """Whether it sees all volumes of a series at once, as the channels of `batch.image`."""
    crop_axes: Literal[2, 3] = 2
    """Axes of the images that its loss takes: slices or volumes."""

    @property
    def follows_sigma(self) -> bool:
        """Whether `restore` removes more where `batch.sigma` is larger."""
        return True

    def restore(self, batch: Noisy) -> Tensor:
        """Clean images (B, C, *spatial), of the shape of `batch.image`."""
        raise NotImplementedError

    def first(self, batch: Noisy) -> Tensor | None:
        """An estimate that the method learns to improve on, made of whole slices; None for most.

        It is handed to `loss` as `batch.estimate`.
        """
        return batch.estimate

    def settle(self, batches: Sequence[Noisy], trust: Trust) -> None:
        """Fix what follows from the scan as a whole, before its tiles are restored.

        Args:
            batches: Parts of the scan, one image each, of all volumes if `joint`.
            trust: What is known of their noise.
        """
        del batches, trust

    def halo(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """How far, in voxels per axis, an input voxel can influence the output."""
        return tuple(0 for _ in shape)

    def looks(self) -> int:
        """Blocks of 24^3 voxels on which the self-check runs the method, twice each."""
        return 12

    def bytes_per_voxel(self) -> int:
        """Working memory of `restore` for each value of a tile, beside input and output."""
        return 64


class Mapped(Restorer):
    """A restorer of slices steered by maps of widths, which can be kept, edited and given back."""

    @property
    def map_stages(self) -> int:
        """Filters in a row, each with a map of x and y in voxels and one of intensity."""
        raise NotImplementedError

    @property
    def map_patch(self) -> int:
        """Side in voxels of a patch, where maps have one value for each."""
        raise NotImplementedError

    @property
    def map_shared(self) -> bool:
        """Whether maps that are predicted have one value for all voxels."""
        raise NotImplementedError

    @property
    def map_words(self) -> str:
        """What else decides how maps filter, in a few words: maps of other words do not fit."""
        raise NotImplementedError

    def restore_with_maps(
        self, batch: Noisy, sigma_maps: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Clean images, and the maps (B, n_stages, 3, *grid) that made them.

        Args:
            batch: Images (B, 1, x, y) or (B, 1, x, y, z).
            sigma_maps: To filter with; None predicts them. An axis of the grid is as long as that
                of the image, or as its patches, or 1.
        """
        raise NotImplementedError

    def check_maps(self, sigma_maps: Tensor) -> None:
        """Refuse maps (n_stages, 3, *grid) that nothing can be filtered with.

        Raises:
            InputError: Naming the width.
        """
        raise NotImplementedError

    def reach(self, sigma_maps: Tensor) -> int:
        """How far, in voxels of a slice, a voxel acts on others under maps (n_stages, 3, *grid)."""
        raise NotImplementedError

    def whole_slices(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The halo with which each tile holds whole slices, so that windows depend on no tile."""
        return (*shape[:2], *(0 for _ in shape[2:]))


@dataclass(frozen=True, kw_only=True)
class OneScan:
    """How a method learns from the one scan that it reconstructs."""

    rho: float
    """Share of the measured points that are asked about in each parting."""
    partings: int
    """Of each slice."""
    max_minutes: float
    """After which it ends with the best that it has."""


class Reconstructor(Method[Acquired]):
    """k-space in, images out.

    A `Config` with a field `lambda_` that is None has it chosen by samples kept aside.
    """

    needs_maps: bool = True
    """False sees every coil as an image of its own."""

    @property
    def learns_from(self) -> Truth:
        """Whether scans that it learns from must be fully sampled."""
        return "none"

    @property
    def adds_noise(self) -> tuple[float, float]:
        """Least and largest noise that it adds while it learns, where images are about 1."""
        return 0.0, 0.0

    @property
    def one_scan(self) -> OneScan | None:
        """How it learns from the scan that it reconstructs, and from no other; None for most."""
        return None

    def first(self, batch: Acquired) -> Tensor | None:
        """Images (..., set, H, W) that the method learns to improve on; None for most.

        They are handed to `loss` and `restore` as `batch.start`.
        """
        return batch.start

    def restore(self, batch: Acquired) -> Tensor:
        """Images (..., set, H, W) complex."""
        raise NotImplementedError


class Encoder(Method[Views]):
    """Images in, features out; learns without labels."""

    encoder: nn.Module
    """The net that is kept: `features(image)` fine to coarse, `widths` and `strides` of these."""

    @property
    def sees(self) -> Sees:
        """What its batches hold."""
        raise NotImplementedError

    def features(self, image: Tensor) -> list[Tensor]:
        """Features (B, D, *S) of images (B, C, *S), fine to coarse."""
        return self.encoder.features(image)  # type: ignore[operator]

    def embed(self, image: Tensor) -> Tensor:
        """(B, D) one vector for each image."""
        return self.features(image)[-1].flatten(2).mean(-1)

    @property
    def refresh_every(self) -> int | None:
        """Steps between calls of `refresh`; None where it needs none."""
        return None

    @property
    def assignment(self) -> Tensor | None:
        """(images,) int64, the cluster of each image of the store; None before there are any."""
        return None

    def measures(self, batch: Views) -> dict[str, float]:
        """What the loss does not say, of a batch that it does not learn from.

        It is called in the evaluation mode, without gradients.
        """
        del batch
        return {}

    @property
    def needs_calibration(self) -> bool:
        """Whether the running moments of its norms come from images that were seen in part."""
        return False

    def calibrate(self, images: Iterable[Tensor]) -> None:
        """Take the running moments of norms from whole images (B, C, *S), batch by batch."""
        del images

    def refresh(self, bank: Tensor, index: Tensor, generator: torch.Generator) -> None:
        """Take in what the present weights make of images.

        It is called on every rank with the same arguments.

        Args:
            bank: (n, D) embeddings.
            index: (n,) int64, which images of the store these are.
            generator: The source of chance.
        """
        del bank, index, generator


class Masked(Encoder):
    """An encoder that sees images in part while it learns, and its norms with it.

    Args:
        encoder: The net that is kept.
    """

    calibrated: Tensor

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("calibrated", torch.tensor(not norms.has_moments(encoder)))

    def after_step(self, progress: float) -> None:
        """The moments of the norms are those of masked images from now on."""
        del progress
        self.calibrated.fill_(not norms.has_moments(self.encoder))

    @property
    def needs_calibration(self) -> bool:
        """Whether the moments of the norms are those of masked images."""
        return not bool(self.calibrated)

    def calibrate(self, images: Iterable[Tensor]) -> None:
        """Replace the moments of the norms by those of whole images (B, C, *S)."""
        norms.calibrate(self.encoder, self.features, images)
        self.calibrated.fill_(True)
