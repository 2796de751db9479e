r"""Sliding DCT: shrink the cosine spectrum of every window, then average all windows.

For each window of the noisy image with orthonormal DCT-II coefficients X and noise standard
deviations :math:`s`, pass 1 keeps what stands out and pass 2 shrinks by the spectrum g of pass 1,

.. math:: a_1 = [\,|X| > \tau s\,], \quad a_2 = \frac{g^2}{g^2 + s^2}, \quad a(0) = 1,

and the windows :math:`T^{-1} a X` are averaged with weights :math:`1 / \sum a^2 s^2`.

The transform is separable and neighbouring windows overlap, so the cosine transform along the
first axis is computed once per voxel and shared by the windows along the others, where one small
matrix product does the rest. Windows are visited in chunks that stay in the cache.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import hardshrink

from medssl.core.batch import Modulation
from medssl.nets.workers import each
from medssl.physics.cosine import cosines

CHUNK = {"cpu": 1 << 19, "cuda": 1 << 25}
"""Coefficients that are worked on at a time: 2 MB on a CPU core, 128 MB on a GPU."""
HARD = 2.8
"""The usual threshold of pass 1, standard deviations."""
LEAST_SIGMA = 1e-9
"""Smallest local noise, in image units; below it a window passes unchanged."""
LEAST_COEFFICIENT_SIGMA = 1e-3
"""Smallest relative noise of a coefficient; a spectrum may vanish where a scanner filled zeros."""


def sliding_dct(
    image: Tensor,
    *,
    block: tuple[int, ...],
    step: int | tuple[int, ...] = 1,
    hard: float,
    sigma: Tensor | None = None,
    coefficient_sigma: Tensor | None = None,
    modulation: Modulation | None = None,
    wiener: bool = True,
    pilot: Tensor | None = None,
) -> Tensor:
    """Filter an image by its sliding cosine spectrum; not differentiable.

    Needs three arrays of the size of the image, and some 10 MB per thread. Windows lie on one grid
    with the first voxel, so slabs that begin at multiples of `step` and carry a halo of
    2 (block - 1) agree with the whole.

    Args:
        image: (*spatial) two or three axes, finite, any size: reflected as often as needed.
        block: Window size per axis; 1 leaves an axis alone.
        step: Distance of windows, one number or one per axis; at most the block.
        hard: Threshold of pass 1 in standard deviations.
        sigma: Noise standard deviation, image units, broadcastable to `image`, read at the centre
            of each window; None means 1.
        coefficient_sigma: (*block) noise of each coefficient relative to `sigma`; None means white.
        modulation: Factors of `coefficient_sigma` that vary over the image; None means none.
        wiener: Whether pass 2 follows pass 1.
        pilot: (*spatial) estimate of the clean image for pass 2; None takes that of pass 1.

    Returns:
        (*spatial), the filtered image.

    Raises:
        ValueError: Block or step do not fit the image.
    """
    steps = (step,) * len(block) if isinstance(step, int) else step
    if image.ndim not in (2, 3) or not len(block) == len(steps) == image.ndim:
        raise ValueError(f"block {block}, step {steps} do not fit an image of {image.ndim} axes")
    if any(not 1 <= s <= b for s, b in zip(steps, block, strict=True)):
        raise ValueError(f"step {steps} must lie between 1 and the block {block}")
    if sigma is not None:
        sigma = sigma.expand(image.shape) if sigma.numel() > 1 else sigma.reshape(())
    if image.ndim == 2:
        result = sliding_dct(
            image[None],
            block=(1, *block),
            step=(1, *steps),
            hard=hard,
            sigma=sigma if sigma is None or sigma.ndim == 0 else sigma[None],
            coefficient_sigma=None if coefficient_sigma is None else coefficient_sigma[None],
            modulation=None if modulation is None else _with_depth(modulation),
            wiener=wiener,
            pilot=None if pilot is None else pilot[None],
        )
        return result[0]
    # Long rows make long inner loops; a block of 1 in the middle costs nothing.
    order = sorted(range(3), key=lambda axis: (block[axis] > 1, image.shape[axis]))
    order = [order[1], order[0], order[2]] if block[order[0]] == 1 else order
    axes = [_Axis(image.shape[k], block[k], steps[k]) for k in order]
    noisy = image.detach().permute(order)
    local = None if sigma is None or sigma.ndim == 0 else sigma.detach().permute(order)
    level = 1.0 if sigma is None or sigma.ndim > 0 else max(float(sigma), LEAST_SIGMA)
    shape = None if coefficient_sigma is None else coefficient_sigma.detach().permute(order)
    varying = None if modulation is None else _Varying.of(modulation, order, axes, image)
    windows = _Windows((axes[0], axes[1], axes[2]), level, shape, varying, image)
    with torch.no_grad():
        if pilot is None:
            result = _average(noisy, None, local, hard, windows)
        else:
            result = pilot.detach().permute(order)
        if wiener:
            result = _average(noisy, result, local, hard, windows)
    return result.permute([order.index(k) for k in range(3)]).contiguous()


@dataclass(frozen=True)
class _Axis:
    """Windows along one axis, on a grid that reflection extends beyond both ends.

    Padded positions run from 0; voxel v of the image is padded position v + pad.
    """

    size: int
    block: int
    step: int

    @property
    def pad(self) -> int:
        """Reflected voxels in front, so that each voxel lies in equally many windows."""
        return self.block - self.step

    @property
    def count(self) -> int:
        """Number of windows; the last one holds the last voxel."""
        return -(-(self.size + self.pad) // self.step)

    @property
    def padded(self) -> int:
        """Positions under all windows."""
        return (self.count - 1) * self.step + self.block

    def holds(self, length: int) -> int:
        """Number of windows within so many positions."""
        return (length - self.block) // self.step + 1

    def at(self, shift: int, windows: int) -> slice:
        """Position `shift` of every window of a box that holds so many."""
        return slice(shift, shift + (windows - 1) * self.step + 1, self.step)

    def reach(self, first: int, last: int) -> slice:
        """Padded positions under the windows first .. last - 1."""
        return slice(first * self.step, (last - 1) * self.step + self.block)

    def source(self, position: Tensor) -> Tensor:
        """Voxels at padded positions: reflection that does not repeat the edge."""
        if self.size == 1:
            return torch.zeros_like(position)
        period = 2 * self.size - 2
        voxel = (position - self.pad) % period
        return torch.minimum(voxel, period - voxel)


@dataclass(frozen=True)
class _Part:
    """Windows first .. last - 1 along each axis, all that is worked on at a time."""

    axes: tuple[_Axis, _Axis, _Axis]
    first: tuple[int, int, int]
    last: tuple[int, int, int]

    @functools.cached_property
    def box(self) -> tuple[slice, ...]:
        """Padded positions that these windows touch."""
        return tuple(
            a.reach(f, n) for a, f, n in zip(self.axes, self.first, self.last, strict=True)
        )

    def read(self, volume: Tensor) -> Tensor:
        """The box of a volume, its borders reflected."""
        for k, (axis, box) in enumerate(zip(self.axes, self.box, strict=True)):
            position = torch.arange(box.start, box.stop, device=volume.device)
            volume = volume.index_select(k, axis.source(position))
        return volume

    def at_centre(self, volume: Tensor) -> Tensor:
        """Values of a volume in the middle of each window, one per window."""
        for k, (axis, f, n) in enumerate(zip(self.axes, self.first, self.last, strict=True)):
            start = torch.arange(f, n, device=volume.device) * axis.step
            low = volume.index_select(k, axis.source(start + (axis.block - 1) // 2))
            high = volume.index_select(k, axis.source(start + axis.block // 2))
            volume = (low + high) / 2
        return volume


def _parts(axes: tuple[_Axis, _Axis, _Axis], chunk: int) -> Iterator[_Part]:
    """Chunks of about `chunk` coefficients, whole along the last axis."""
    n0, n1, n2 = (axis.count for axis in axes)
    rows = max(1, chunk // (math.prod(axis.block for axis in axes) * n2))
    k0 = min(n0, max(math.isqrt(rows), rows // n1))
    k1 = min(n1, max(1, rows // k0))
    for i in range(0, n0, k0):
        for j in range(0, n1, k1):
            yield _Part(axes, (i, j, 0), (min(i + k0, n0), min(j + k1, n1), n2))


@dataclass(frozen=True)
class _Varying:
    """Noise of coefficients whose shape varies over the image."""

    factors: Tensor
    """(b1 b2, b0 or 1, nodes 0, nodes 1, nodes 2)."""
    weights: tuple[Tensor, ...]
    """Per axis (windows, nodes), linear interpolation at the centre of each window."""

    @classmethod
    def of(
        cls, modulation: Modulation, order: Sequence[int], axes: Sequence[_Axis], like: Tensor
    ) -> "_Varying":
        """The same for axes in another order, where the image is."""
        factors = modulation.factors.to(like).permute(*order, *(3 + k for k in order))
        b0, b1, b2 = factors.shape[0], axes[1].block, axes[2].block
        factors = factors.expand(b0, b1, b2, *factors.shape[3:]).permute(1, 2, 0, 3, 4, 5)
        weights = []
        for axis, k in zip(axes, order, strict=True):
            centre = torch.arange(axis.count) * axis.step - axis.pad + (axis.block - 1) / 2
            weights.append(modulation.weights(k, centre).to(like))
        return cls(factors.reshape(b1 * b2, *factors.shape[2:]).contiguous(), tuple(weights))

    def at(self, part: _Part) -> Tensor:
        """(b1 b2, b0 or 1, k0, k1, k2) factors in the windows of a part."""
        rows = [w[f:n] for w, f, n in zip(self.weights, part.first, part.last, strict=True)]
        values = torch.einsum("kn,abnmw->abkmw", rows[0], self.factors)
        return torch.matmul(torch.matmul(rows[1], values), rows[2].T)


class _Windows:
    """Orthonormal DCT of windows, in units of the noise of each coefficient.

    Coefficients of a box are (b1 b2, b0, k0, k1, k2): first axis transformed once per voxel, the
    other two by one matrix product; k windows per axis.
    """

    def __init__(
        self,
        axes: tuple[_Axis, _Axis, _Axis],
        level: float,
        shape: Tensor | None,
        varying: "_Varying | None",
        like: Tensor,
    ) -> None:
        self.axes = axes
        self.varying = varying
        b0, b1, b2 = (axis.block for axis in axes)
        self.outer = cosines(b0).to(like) / level
        self.back = cosines(b0).T.to(like) * level
        self.inner = torch.kron(cosines(b1), cosines(b2)).to(like)
        self.shape: Tensor | None = None
        self.power = torch.full((1, b0 * b1 * b2), level**2).to(like)
        if shape is not None:
            flat = shape.to(like).clamp_min(LEAST_COEFFICIENT_SIGMA).permute(1, 2, 0)
            self.shape = flat.reshape(b1 * b2, b0, 1, 1, 1)
            self.power = self.power * flat.reshape(1, -1).square()

    def noise(self, part: _Part, local: Tensor | None) -> Tensor | None:
        """Local noise in the windows of a part, (k0, k1, k2) or (b1 b2, b0 or 1, k0, k1, k2)."""
        level = None if local is None else part.at_centre(local).clamp_min(LEAST_SIGMA)
        if self.varying is None:
            return level
        factors = self.varying.at(part)
        return factors if level is None else factors.mul_(level)

    def weight(self, gain: Tensor, noise: Tensor | None) -> Tensor:
        """(k0, k1, k2) inverse noise variance of windows, given the squared gains of coefficients.

        `gain` is not left as it was.
        """
        if noise is not None and noise.ndim > 3:
            gain *= noise.square()
        weight = (self.power @ gain.view(self.power.shape[1], -1)).view(gain.shape[2:])
        if noise is not None and noise.ndim == 3:
            weight *= noise.square()
        return weight.reciprocal_()

    def forward(self, box: Tensor, noise: Tensor | None) -> Tensor:
        """(*reach) voxels to coefficients."""
        a0, a1, a2 = self.axes
        k0, k1, k2 = (a.holds(n) for a, n in zip(self.axes, box.shape, strict=True))
        m, w = box.shape[1:]
        rows = box.as_strided((a0.block, k0, m, w), (m * w, m * w * a0.step, w, 1))
        x = self.outer @ rows.reshape(a0.block, -1)
        size = (a1.block, a2.block, a0.block, k0, k1, k2)
        stride = (w, 1, k0 * m * w, m * w, w * a1.step, a2.step)
        c = self.inner @ x.as_strided(size, stride).reshape(a1.block * a2.block, -1)
        c = c.view(a1.block * a2.block, a0.block, k0, k1, k2)
        if self.shape is not None:
            c /= self.shape
        if noise is not None:
            c /= noise
        return c

    def adjoint(self, c: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted windows and their weights (k0, k1, k2), each added where they overlap."""
        a0, a1, a2 = self.axes
        k0, k1, k2 = c.shape[2:]
        reach = [(k - 1) * a.step + a.block for k, a in zip((k0, k1, k2), self.axes, strict=True)]
        if self.shape is not None:
            c *= self.shape
        y = (self.inner.T @ c.view(len(self.inner), -1)).view(a1.block, a2.block, *c.shape[1:])
        x = c.new_zeros(a0.block, k0, *reach[1:])
        for i in range(a1.block):
            for j in range(a2.block):
                x[:, :, a1.at(i, k1), a2.at(j, k2)] += y[i, j]
        y = (self.back @ x.view(a0.block, -1)).view(x.shape)
        values = c.new_zeros(reach)
        for i in range(a0.block):
            values[a0.at(i, k0)] += y[i]
        for axis, (a, k) in enumerate(zip(self.axes, (k0, k1, k2), strict=True)):
            wide = weight.new_zeros([*weight.shape[:axis], reach[axis], *weight.shape[axis + 1 :]])
            for i in range(a.block):
                wide[(slice(None),) * axis + (a.at(i, k),)] += weight
            weight = wide
        return values, weight


def _with_depth(modulation: Modulation) -> Modulation:
    """The same for one slice, a first axis of 1 before those of block and nodes."""
    factors = modulation.factors
    n = factors.ndim // 2
    nodes = (torch.zeros(1), *modulation.nodes)
    return Modulation(factors.unflatten(n, (1, -1))[None], nodes)


def _average(
    noisy: Tensor, pilot: Tensor | None, local: Tensor | None, hard: float, windows: _Windows
) -> Tensor:
    """One pass over all windows: hard threshold, or Wiener with the spectrum of a pilot."""
    padded = [axis.padded for axis in windows.axes]
    values, weights = noisy.new_zeros(padded), noisy.new_zeros(padded)

    def filtered(part: _Part) -> tuple[_Part, Tensor, Tensor]:
        noise = windows.noise(part, local)
        c = windows.forward(part.read(noisy), noise)
        if pilot is None:
            mean = c[0, 0].clone()
            c = hardshrink(c, hard)
            c[0, 0] = mean
            gain = (c != 0).to(c.dtype)
            gain[0, 0] = 1
        else:
            gain = windows.forward(part.read(pilot), noise).square_()
            gain /= gain + 1
            gain[0, 0] = 1
            c *= gain
            gain.square_()
        weight = windows.weight(gain, noise)
        c *= weight
        if noise is not None:
            c *= noise
        return part, *windows.adjoint(c, weight)

    def add(piece: tuple[_Part, Tensor, Tensor]) -> None:
        part, value, weight = piece
        values[part.box] += value
        weights[part.box] += weight

    each(filtered, _parts(windows.axes, CHUNK[noisy.device.type]), add, noisy.device)
    values /= weights
    return values[tuple(slice(a.pad, a.pad + a.size) for a in windows.axes)]
