"""What one step of a method sees: tensors, what is known of them, and one generator."""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Modulation:
    """How the shape of a noise spectrum varies over an image.

    Args:
        factors: (*block, *nodes) standard deviation of each cosine coefficient relative to that of
            the stationary spectrum; a block axis of 1 stands for all its frequencies.
        nodes: Per image axis, ascending positions in voxels at which the factors are known; they
            are interpolated linearly and constant beyond the ends.
    """

    factors: Tensor
    nodes: tuple[Tensor, ...]

    def weights(self, axis: int, at: Tensor) -> Tensor:
        """(len(at), nodes) share of each node of an image axis in the value at each position."""
        nodes = self.nodes[axis].to(at)
        if len(nodes) == 1:
            return at.new_ones(len(at), 1)
        right = torch.searchsorted(nodes, at).clamp(1, len(nodes) - 1)
        share = ((at - nodes[right - 1]) / (nodes[right] - nodes[right - 1])).clamp(0, 1)[:, None]
        result = at.new_zeros(len(at), len(nodes))
        result.scatter_(1, right[:, None] - 1, 1 - share)
        return result.scatter_(1, right[:, None], share)


class Spectrum(Protocol):
    """Power spectrum of noise, asked for in the transform that a filter uses."""

    def dct_sigma(self, block: tuple[int, ...]) -> Tensor:
        """Standard deviation of each orthonormal DCT-II coefficient of a noise block.

        Args:
            block: Block size per spatial axis.

        Returns:
            (*block) float32, scaled so that its mean square is 1.
        """
        ...

    def modulation(self, block: tuple[int, ...]) -> Modulation | None:
        """How these standard deviations vary over the image; None where the spectrum does not.

        Args:
            block: Block size per spatial axis.
        """
        ...

    def sample(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Noise of this spectrum, (*shape), in a unit of its own.

        Args:
            shape: Voxels per spatial axis, from the first voxel that the spectrum is seen from.
            generator: The source of chance.
        """
        ...


@dataclass(frozen=True)
class Noisy:
    """Images that carry noise.

    Args:
        image: (B, C, *spatial) float32.
        sigma: Standard deviation of the noise in units of `image`, broadcastable to it; None
            means 1 everywhere (stabilised images).
        spectrum: Power spectrum of the noise as seen from the first voxel of `image`; None means
            white.
        generator: The one source of chance.
        progress: Share of the training that is done, 0 to 1.
        estimate: What another filter made of `image`, for methods that improve on one.
        sigma_maps: (B, n_stages, 3, *grid) widths for a method that is steered by maps; None lets
            it predict them.
    """

    image: Tensor
    sigma: Tensor | None = None
    spectrum: Spectrum | None = None
    generator: torch.Generator | None = None
    progress: float = 0.0
    estimate: Tensor | None = None
    sigma_maps: Tensor | None = None

    @property
    def level(self) -> Tensor | float:
        """The standard deviation of the noise, broadcastable to the image; 1 where it is."""
        return 1.0 if self.sigma is None else self.sigma


@dataclass(frozen=True, eq=False)
class Acquired:
    """k-space of slices, scaled so that images are about 1, and what is known of it.

    Leading axes are problems of their own. Images that belong to it are (..., set, H, W) complex.

    Args:
        kspace: (..., coil, H, W) complex64, 0 where nothing was measured.
        sampling: (..., 1, H, W), {0, 1}.
        coil_maps: (..., set, coil, H, W) complex64.
        sigma: Standard deviation of the noise of each real component of a sample; (..., 1, 1, 1)
            where it differs between the problems.
        edge: (..., 1, H, W), {0, 1}: points that the protocol never measures, taken as zeros;
            None means there are none.
        trajectory: (shot, sample, 2) where samples do not lie on a grid; `kspace` is then
            (..., coil, shot, sample) and `sampling` (..., 1, shot, sample).
        generator: The one source of chance.
        start: (..., set, H, W) an image to begin with, None for none.
        aside: (..., 1, H, W), {0, 1}: measured points that are kept out of `sampling` to be asked
            about; None lets a method draw its own.
        truth: (..., set, H, W) the image of the fully sampled scan, where there is one.
        progress: Share of the training that is done, 0 to 1.
    """

    kspace: Tensor
    sampling: Tensor
    coil_maps: Tensor
    sigma: float | Tensor = 0.0
    edge: Tensor | None = None
    trajectory: Tensor | None = None
    generator: torch.Generator | None = None
    start: Tensor | None = None
    aside: Tensor | None = None
    truth: Tensor | None = None
    progress: float = 0.0

    @property
    def level(self) -> Tensor:
        """(..., 1, 1, 1) the noise of each problem."""
        each = self.kspace.real.new_ones((*self.kspace.shape[:-3], 1, 1, 1))
        return self.sigma * each


@dataclass(frozen=True, kw_only=True)
class Sees:
    """What the batches of an encoder hold; chance is drawn where they are made."""

    axes: Literal[2, 3] = 2
    """Spatial axes of an image: slices or volumes."""
    views: int = 0
    """Large augmented views of each image."""
    small: int = 0
    """Augmented views of small parts."""
    block: tuple[int, ...] | None = None
    """Sides of the cells of `visible` in voxels; None draws no pattern."""
    hidden: float = 0.0
    """Share of the cells that are hidden."""
    neighbours: int = 1
    """Runs of so many neighbouring slices of one volume follow each other in a batch."""
    multiple: int = 1
    """Of which the sides of images must be multiples."""
    stack: bool = False
    """Volumes are stacks of slices: `slice_mm` is there."""
    clusters: int = 0
    """So many groups of images, of each of which a batch holds one at most, as `Encoder.assignment`
    has them; 0 takes any images."""


@dataclass(frozen=True, eq=False)
class Views:
    """What an encoder sees of images while it is pretrained; `Sees` says which parts.

    Args:
        image: (B, C, *S) float32, normalised to about mean 0 and standard deviation 1.
        valid: (B, 1, *S) bool, False at padding and where nothing was measured; None where all is.
        visible: (B, 1, *f) bool, True where a cell of the image is seen.
        views: Each (B, C, *S), augmented in ways of its own.
        small: Each (B, C, *s), augmented views of a small part.
        boxes: (views and small, B, 2, axes) start and extent of each view in mm of its source; an
            extent is negative where the axis was flipped, and the start is then the far end.
        index: (B,) int64, of the image, unique over the whole store.
        patient: (B,) int64, equal where images must not be taken for strangers.
        spacing: (B, axes) mm.
        slice_mm: (B, N) positions of the slices of a stack.
        generator: The one source of chance.
        progress: Share of the training that is done, 0 to 1.
    """

    image: Tensor
    valid: Tensor | None = None
    visible: Tensor | None = None
    views: tuple[Tensor, ...] = ()
    small: tuple[Tensor, ...] = ()
    boxes: Tensor | None = None
    index: Tensor | None = None
    patient: Tensor | None = None
    spacing: Tensor | None = None
    slice_mm: Tensor | None = None
    generator: torch.Generator | None = None
    progress: float = 0.0

    @property
    def view_a(self) -> Tensor:
        """The first view."""
        return self.views[0]

    @property
    def view_b(self) -> Tensor:
        """The second view."""
        return self.views[1]
