r"""The noise of a CT scan: power spectrum, local strength, and correlation between slices.

Noise is modelled as :math:`e(x) = l(x)\, n(x)`, n stationary with power spectrum P, l smooth:

.. math:: P(f) = \Big\langle \tfrac{1}{N} |\mathcal F\, w\,(y - q)|^2 \Big\rangle / g(f), \qquad
          \sigma(x) = l(x)\,\sqrt{\langle P \rangle}, \qquad \langle l^2 \rangle_{body} = 1,

over the quietest of the flattest blocks of the body, q a quadratic surface, w a Hann window, and
g what detrending and window leave of white noise. Flat blocks lie where noise is weak, so P is
scaled to the whole body by a local energy :math:`\epsilon`, the same statistic in body and blocks:
the sum of the powers :math:`v_k(x)` of those 8x8 cosine coefficients X that hold most of the noise,

.. math:: v_k = \frac{G * (m X_k^2)}{\kappa\, G * m}, \quad m = [X_k^2 < c^2 v_k], \qquad
          \langle P\rangle \leftarrow \langle P\rangle\,
          \langle\epsilon\rangle_{body} / \langle\epsilon\rangle_{blocks},

iterated, over windows without strong edges; m leaves structure out, :math:`\kappa` makes up for the
noise that it cuts. Keeping directions k apart is what streaks need. Slices that share their noise
get the product of P with the spectrum of their correlation along z.
Reference: Dolly, Chen, Anastasio, Mutic, Li. Practical considerations for noise power spectra
estimation for clinical CT scanners. J Appl Clin Med Phys 2016 (detrending and windows).
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, fold, max_pool2d, pad

from medssl.core.batch import Modulation
from medssl.physics.cosine import cosines

BLOCK = 32
"""Pixels along the side of a block whose periodogram is taken."""
LARGEST_BLOCK = 48.0
"""Millimetres; few organs are flat over more, so coarse pixels take blocks of half as many."""
STRIDE = 8
"""Distance of neighbouring blocks."""
CELL = 8
"""Pixels between neighbours of the local map."""
WINDOW = 8
"""Pixels along the side of the windows of the local energy."""
SMOOTH = 12.0
"""Standard deviation of the smoothing of the local map, pixels."""
BODY = -532.0
"""What is brighter, after smoothing, is patient; HU."""
PADDING = -1500.0
"""What is darker is not a measurement, while noise in air may well reach below -1024; HU."""
LEAST_BLOCKS = 8
"""Fewer flat blocks are no ground for confidence."""
CUT = 2.5
"""Coefficients beyond so many standard deviations are structure."""
LOCAL_LIMITS = (0.05, 3.0)
"""The local strength is kept within these."""
FACTOR_LIMITS = (0.1, 10.0)
"""And the local standard deviation of a coefficient relative to that of the whole body."""
LEAST_SHARE = 1e-6
"""Of the mean power, where a spectrum vanishes."""
CORRELATED = 0.1
"""Slices with a higher correlation of neighbours share their noise."""
LAGS = 4
"""Slices over which noise may be shared."""


@dataclass(frozen=True, eq=False)
class NoiseModel:
    """Coloured noise of slowly varying strength.

    Args:
        shape: Voxels (x, y, z) of the image; z is 1 for a single slice.
        spacing: mm along each axis.
        slices: Slices that were looked at, ascending.
        psd: (x, y) or, when slices share noise, (x, y, z) power spectrum in HU^2, frequency zero
            first; its mean is `level` squared.
        local: (cells x, cells y, len(slices)) strength relative to `level`, mean square 1 over
            the body.
        body: As `local`, share of each cell inside the patient.
        level: Root mean square of the noise over the body, HU.
        level_plain: The same by the plain mean over all flat blocks with a plane fit, HU; structure
            makes it too high. Fixed weights of older filters are given in it.
        rho_z: Correlation of the noise of neighbouring slices; 0 for a single slice.
        flatness: Geometric over arithmetic mean of `psd` above 0.06 cycles per pixel; white is 1.
        n_blocks: Blocks whose periodograms were averaged.
        confident: Whether there was enough flat tissue to believe all this.
        varying: (WINDOW, WINDOW, cells x, cells y, len(slices)) standard deviation of each cosine
            coefficient relative to that of `psd`, both with mean square 1; None where the spectrum
            is the same everywhere.
        origin: Voxel of the scan that counts as the first one.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, ...]
    slices: tuple[int, ...]
    psd: Tensor
    local: Tensor
    body: Tensor
    level: float
    level_plain: float
    rho_z: float
    flatness: float
    n_blocks: int
    confident: bool
    varying: Tensor | None = None
    origin: tuple[int, int, int] = (0, 0, 0)

    def dct_sigma(self, block: tuple[int, ...]) -> Tensor:
        """Standard deviation of each orthonormal DCT-II coefficient of a noise block.

        Args:
            block: Voxels per axis, (x, y) or (x, y, z).

        Returns:
            (*block) float32 with mean square 1. Where slices are independent it does not depend on
            the frequency along z.
        """
        power = _dct_power(self.psd.double(), block)
        mean = power.mean()
        return (power / mean).sqrt().float() if mean > 0 else torch.ones(block)

    def local_sigma(self, start: Sequence[int], stop: Sequence[int]) -> Tensor:
        """Noise standard deviation of a box of voxels, linearly interpolated.

        Args:
            start: First voxel along x, y and z (or x and y), counted from `origin`.
            stop: One past the last voxel.

        Returns:
            (*stop - start) in HU.
        """
        result = self.local * self.level
        for axis, (first, last) in enumerate(zip(start, stop, strict=True)):
            voxel = torch.arange(first, last, dtype=torch.float32)
            result = _interpolate(result, axis, self._nodes(axis), voxel)
        return result if len(start) == 3 else self._first_slice(result)

    def modulation(self, block: tuple[int, ...]) -> Modulation | None:
        """How the shape of the spectrum varies over the image; None where it does not.

        Args:
            block: Voxels per axis, (x, y) or (x, y, z).
        """
        if self.varying is None:
            return None
        factors = self.varying
        for axis in (0, 1):
            at = torch.arange(block[axis]) * (WINDOW / block[axis])
            factors = _interpolate(factors, axis, torch.arange(float(WINDOW)), at)
        nodes = tuple(self._nodes(axis) for axis in range(len(block)))
        if len(block) == 2:
            return Modulation(self._first_slice(factors), nodes)
        return Modulation(factors[:, :, None], nodes)

    def within(self, part: Sequence[slice]) -> "NoiseModel":
        """The same model as seen from the first voxel of a box."""
        first = [s.start + o for s, o in zip(part, self.origin, strict=False)]
        return dataclasses.replace(self, origin=(*first, 0)[:3])

    def sample(
        self,
        shape: Sequence[int],
        generator: torch.Generator,
        *,
        start: Sequence[int] = (0, 0, 0),
    ) -> Tensor:
        """Noise of this law.

        Args:
            shape: Voxels (x, y) or (x, y, z).
            generator: The source of chance.
            start: Where the box lies, counted from `origin`, for what varies.

        Returns:
            (*shape) in HU.
        """
        box = (*shape, 1)[:3]
        psd = self.psd if self.psd.ndim == 3 else self.psd[..., None]
        white = torch.randn(box, generator=generator)
        axes = (0, 1, 2) if self.psd.ndim == 3 else (0, 1)
        size = box if self.psd.ndim == 3 else (*box[:2], 1)
        filter_ = _resize(psd, size).clamp_min(0).sqrt()
        filter_ = filter_ / filter_.square().mean().sqrt().clamp_min(1e-30)
        noise = torch.fft.ifftn(torch.fft.fftn(white, dim=axes) * filter_, dim=axes).real
        first = (*start, 0)[:3]
        stop = [a + n for a, n in zip(first, box, strict=True)]
        if self.varying is not None:
            here = self.within([slice(a, b) for a, b in zip(first, stop, strict=True)])
            noise = _modulated(noise, here.modulation((WINDOW, WINDOW, 1)))
        noise = noise * self.local_sigma(first, stop)
        return noise if len(shape) == 3 else noise[..., 0]

    def with_local_powers(
        self, powers: Tensor, body: Tensor, slices: Sequence[int]
    ) -> "NoiseModel":
        """The same model with a spectrum that varies over the image.

        Args:
            powers: (WINDOW, WINDOW, cells x, cells y, slices) variance of each coefficient, HU^2.
            body: (cells x, cells y, slices) share of each cell inside the patient.
            slices: Where along z they were found, ascending.
        """
        weight = body if body.sum() > 0 else torch.ones_like(body)
        variance = powers.mean((0, 1))
        level = float(((weight * variance).sum() / weight.sum()).sqrt())
        if not level > 0:
            return self
        relative = powers / variance.clamp_min(LEAST_SHARE * level**2)
        stationary = self.dct_sigma((WINDOW, WINDOW)).square().clamp_min(LEAST_SHARE)
        return dataclasses.replace(
            self,
            slices=tuple(slices),
            psd=self.psd * (level / self.level) ** 2,
            local=(variance.sqrt() / level).clamp(*LOCAL_LIMITS),
            body=weight,
            level=level,
            varying=(relative / stationary[..., None, None, None]).sqrt().clamp(*FACTOR_LIMITS),
        )

    def _first_slice(self, values: Tensor) -> Tensor:
        """What is known at slices (..., len(slices)), at the first one."""
        return _interpolate(values, values.ndim - 1, self._nodes(2), torch.zeros(1))[..., 0]

    def _nodes(self, axis: int) -> Tensor:
        """Positions of cells or slices, counted from `origin`."""
        nodes = _cell_centres(self.shape[axis]) if axis < 2 else torch.tensor(self.slices).float()
        return nodes - self.origin[axis]


def estimate_noise(
    image: Tensor, spacing: Sequence[float], *, valid: Tensor | None = None
) -> NoiseModel:
    """Learn the noise of a scan from five of its slices.

    Args:
        image: (x, y) or (x, y, z) in HU.
        spacing: mm along each axis.
        valid: Of the shape of `image`, what was measured; None means all of it. Values that are not
            finite or below -1500 HU are never used.

    Returns:
        The model; `confident` is False when there was too little flat tissue, and `level` is 0 for
        a constant image.
    """
    volume = image[..., None] if image.ndim == 2 else image
    shape = (volume.shape[0], volume.shape[1], volume.shape[2])
    usable = None if valid is None else valid.reshape(shape)
    slices = choose_slices(shape[2])
    side = BLOCK if BLOCK * max(spacing[:2]) <= LARGEST_BLOCK else BLOCK // 2
    side = min(side, 1 << (max(min(shape[:2]), 1).bit_length() - 1))
    looks = [_look(*_read(volume, usable, z), side) for z in slices]
    n_blocks = sum(len(look.at) for look in looks)
    if side < WINDOW or n_blocks == 0:
        return _unsure(volume, usable, slices, tuple(spacing))
    correlation, shared = _shared(volume, usable, slices, looks, side)
    psd = torch.cat([look.power for look in looks]).mean(0)
    psd = _without_structure(psd, shared, correlation[0], _white_gain(side, 2))
    plain = torch.cat([look.plain for look in looks]).mean().sqrt()
    powers, single = zip(*(_powers(look) for look in looks), strict=True)
    body = torch.stack([_cells(look.body.float()) for look in looks], dim=-1)
    weight = body if body.sum() > 0 else torch.ones_like(body)
    psd = _of_the_body(psd, looks, powers, single, weight)
    energy = [power @ _carriers(psd) for power in powers]
    local = torch.stack([_fill(e[::2, ::2, None], shape)[..., 0] for e in energy], -1).sqrt()
    flatness = _flatness(psd)
    level = float(psd.mean().sqrt())
    if correlation[0] > CORRELATED:
        psd = psd[..., None] * _spectrum_z(correlation)
    return NoiseModel(
        shape=shape,
        spacing=tuple(spacing),
        slices=slices,
        psd=psd,
        local=_unit(local, weight),
        body=weight,
        level=level,
        level_plain=float(plain),
        rho_z=correlation[0],
        flatness=flatness,
        n_blocks=n_blocks,
        confident=n_blocks >= LEAST_BLOCKS and all(look.found for look in looks) and level > 0,
    )


def body_cells(image: Tensor) -> Tensor:
    """(cells x, cells y) share of each cell of a slice (x, y) in HU that is patient."""
    return _cells((gaussian(image, 3.0) > BODY).float())


def choose_slices(n_slices: int) -> tuple[int, ...]:
    """Up to five slices spread over a series."""
    count = min(5, n_slices)
    return tuple(int((k + 0.5) * n_slices / count) for k in range(count))


class _Look(NamedTuple):
    """What one slice shows."""

    image: Tensor
    """(x, y) HU, holes filled."""
    body: Tensor
    """(x, y) bool."""
    good: Tensor
    """(x, y) bool, measured."""
    slope: Tensor
    """(x, y) modulus of the gradient of the smoothed image, HU per pixel."""
    at: Tensor
    """(n, 2) positions of the quietest flat blocks, in strides."""
    power: Tensor
    """(n, side, side) their periodograms, HU^2."""
    plain: Tensor
    """(m,) variances of all flat blocks after a plane fit, HU^2."""
    found: bool
    """Whether the blocks lie in a body."""


def _read(volume: Tensor, valid: Tensor | None, z: int) -> tuple[Tensor, Tensor]:
    """A slice and what of it was measured."""
    image = volume[..., z].float()
    good = image.isfinite() & (image >= PADDING)
    if valid is not None:
        good &= valid[..., z]
    return torch.where(good, image, torch.tensor(-1000.0)), good


def _look(image: Tensor, good: Tensor, side: int) -> _Look:
    """Find the flat blocks of a slice and their periodograms."""
    smooth = gaussian(image, 3.0)
    body = (smooth > BODY) & good
    gradients = [smooth.diff(dim=k, append=smooth.narrow(k, -1, 1)) for k in (0, 1)]
    slope = torch.stack(gradients).norm(dim=0)
    blocks = image.unfold(0, side, STRIDE).unfold(1, side, STRIDE)
    steep = max_pool2d(slope[None], side, STRIDE)[0]
    spread = blocks.amax((2, 3)) - blocks.amin((2, 3))
    whole = -max_pool2d(-good.float()[None], side, STRIDE)[0] > 0.5
    inside = -max_pool2d(-body.float()[None], side, STRIDE)[0] > 0.5
    found = int(inside.sum()) >= LEAST_BLOCKS
    candidates = ((inside if found else whole) & (spread > 0)).nonzero()
    order = steep[tuple(candidates.T)].argsort()
    flat = candidates[order[: max(LEAST_BLOCKS, len(order) // 5)]]
    chosen = blocks[tuple(flat.T)].reshape(len(flat), side * side)
    power = _periodogram(chosen, side, 2)
    quiet = power.mean((1, 2)).argsort()[: max(len(flat) // 3, min(len(flat), LEAST_BLOCKS))]
    plain = _periodogram(chosen, side, 1).mean((1, 2))
    return _Look(image, body, good, slope, flat[quiet], power[quiet], plain, found)


def _powers(look: _Look) -> tuple[Tensor, Tensor]:
    """Noise of each cosine coefficient, (windows x, windows y, WINDOW^2) in HU^2.

    Returns:
        Its local variance, typical of the body where nothing was seen, and its power in each single
        window, the local variance standing in for what sticks out.
    """
    step = WINDOW // 2
    windows = look.image.unfold(0, WINDOW, step).unfold(1, WINDOW, step)
    basis = torch.kron(cosines(WINDOW).float(), cosines(WINDOW).float())
    square = (windows.reshape(*windows.shape[:2], -1) @ basis.T).square()

    def every(mask: Tensor) -> Tensor:
        return -max_pool2d(-mask.float()[None], WINDOW, step)[0] > 0.5

    steep = max_pool2d(look.slope[None], WINDOW, step)[0]
    measured, inside, outside = every(look.good), every(look.body), every(~look.body)
    inside = inside if inside.any() else measured
    if not inside.any():
        return torch.zeros_like(square), square
    calm = inside & measured & (steep <= steep[inside].quantile(0.4))
    first = square[calm].median(0).values / 0.455
    power = _settle(square, first, calm)
    air = outside & measured
    if air.any():
        air &= steep <= steep[air].quantile(0.8)
        centre = look.body[step:, step:][::step, ::step][: power.shape[0], : power.shape[1]]
        power = torch.where(centre[..., None], power, _settle(square, first, air))
    kept = square < CUT**2 * power
    return power, torch.where(kept, square / _kept_variance(CUT), power)


def _of_the_body(
    psd: Tensor,
    looks: Sequence[_Look],
    powers: Sequence[Tensor],
    single: Sequence[Tensor],
    body: Tensor,
) -> Tensor:
    """The spectrum of the quiet blocks with the directions and the strength of the whole body.

    In the blocks the single windows count: those blocks were chosen because they are quiet, which
    is partly chance.
    """
    side = len(psd)
    shape = [look.body.shape for look in looks]
    cells = [_fill(p[::2, ::2], s) for p, s in zip(powers, shape, strict=True)]
    in_body = torch.einsum("xyz,zxyk->k", body, torch.stack(cells)) / body.sum()
    windows = (side - WINDOW) // (WINDOW // 2) + 1
    pooled = [avg_pool2d(p.permute(2, 0, 1), windows, 2) for p in single]
    in_blocks = torch.cat(
        [p[:, look.at[:, 0], look.at[:, 1]] for p, look in zip(pooled, looks, strict=True)], dim=1
    ).mean(1)
    carriers = _carriers(psd)
    if not (in_blocks @ carriers > 0 and in_body @ carriers > 0):
        return psd
    overall = (in_body @ carriers) / (in_blocks @ carriers)
    ratio = (in_body / in_blocks.clamp_min(1e-30)).clamp(overall / 3, overall * 3)
    ratio = torch.where(_high(), ratio, overall).reshape(WINDOW, WINDOW)
    half = torch.cat([ratio, ratio[-1:]])  # the coefficient above the last one stands for it
    half = torch.cat([half, half[:, -1:]], dim=1)
    position = torch.fft.fftfreq(side).abs() * (2 * WINDOW)
    nodes = torch.arange(WINDOW + 1.0)
    shaped = psd * _interpolate(_interpolate(half, 0, nodes, position), 1, nodes, position)
    return shaped * (overall * psd.mean() / shaped.mean())


def _high() -> Tensor:
    """(WINDOW^2,) bool, coefficients that anatomy seldom reaches."""
    u = torch.arange(WINDOW)
    return (u.square()[:, None] + u.square() > 2).flatten()


def _carriers(psd: Tensor) -> Tensor:
    """(WINDOW^2,) 0 or 1, those coefficients that together hold nine tenths of the noise."""
    power = _dct_power(psd.double(), (WINDOW, WINDOW)).flatten()
    order = power.sort(descending=True)
    carried = order.values.cumsum(0) - order.values < 0.9 * order.values.sum()
    chosen = _high() & torch.zeros_like(_high()).scatter(0, order.indices, carried)
    return (chosen if chosen.any() else _high()).float()


def _settle(square: Tensor, first: Tensor, use: Tensor) -> Tensor:
    """Smoothed variance of coefficients (windows x, windows y, k), without what stands out."""
    power = first.expand_as(square)
    rows, columns = square.shape[:2]

    def pooled(values: Tensor) -> Tensor:
        pairs = avg_pool2d(values.permute(2, 0, 1), 2, ceil_mode=True)
        return gaussian(pairs.permute(1, 2, 0), SMOOTH / CELL)

    for _ in range(4):
        kept = (square <= CUT**2 * power) & use[..., None]
        share = pooled(kept.float())
        power = pooled(kept * square) / share.clamp_min(1e-6) / _kept_variance(CUT)
        power = torch.where(share > 1e-6, power, first)
        power = power.repeat_interleave(2, 0)[:rows].repeat_interleave(2, 1)[:, :columns]
    return power


def _kept_variance(cut: float) -> float:
    """Variance of a standard Gaussian that is known to lie within +-cut."""
    inside = math.erf(cut / math.sqrt(2))
    return 1 - 2 * cut * math.exp(-(cut**2) / 2) / math.sqrt(2 * math.pi) / inside


def _shared(
    volume: Tensor, valid: Tensor | None, slices: Sequence[int], looks: list[_Look], side: int
) -> tuple[tuple[float, ...], Tensor]:
    """What slices have in common in the quiet blocks.

    Returns:
        Correlation of the noise at 1, 2, ... slices' distance, from the frequencies where structure
        is rare; (side, side) cross-spectrum of neighbours, HU^2, zero for a single slice.
    """
    high = _frequency(side) > 0.2
    cross = torch.zeros(LAGS - 1, side, side)
    same = torch.zeros(LAGS - 1)
    count = 0
    for z, look in zip(slices, looks, strict=True):
        own = _spectra(_blocks(look.image, look.at, side), side, 2)
        for lag in range(1, LAGS):
            other = z + lag if z + lag < volume.shape[2] else z - lag
            if other < 0:
                continue
            partner = _blocks(_read(volume, valid, other)[0], look.at, side)
            theirs = _spectra(partner, side, 2)
            cross[lag - 1] += (own * theirs.conj()).real.sum(0)
            energy = [(f * high).abs().square().sum() for f in (own, theirs)]
            same[lag - 1] += (energy[0] * energy[1]).sqrt()
            count += len(own) if lag == 1 else 0
    correlation = (cross * high).sum((1, 2)) / same.clamp_min(1e-30)
    return tuple(correlation.tolist()), cross[0] / max(count, 1)


def _without_structure(power: Tensor, shared: Tensor, correlation: float, gain: Tensor) -> Tensor:
    """Spectrum of the noise from one that also holds anatomy.

    Neighbouring slices show the same anatomy, so what they share beyond the correlation of their
    noise is taken off. Noise of a reconstruction does not grow towards frequency zero: below 0.08
    cycles per pixel the spectrum is kept below its mean at 0.08 to 0.16.
    """
    rho, side = min(max(correlation, 0.0), 0.8), len(power)
    anatomy = torch.fft.fftshift(shared - rho * power)[None]
    anatomy = avg_pool2d(pad(anatomy, (1, 1, 1, 1), mode="circular"), 3, 1)[0]
    anatomy = torch.fft.ifftshift(anatomy).clamp_min(0) / (1 - rho)
    anatomy = torch.where(_frequency(side) < 0.2, anatomy, 0)
    clean = torch.maximum(power - anatomy, 0.1 * power) / gain
    frequency = _frequency(side)
    ring = (frequency >= 0.08) & (frequency <= 0.16)
    ceiling = clean[ring].mean() if ring.any() else clean.max()
    return torch.where(frequency < 0.08, clean.clamp_max(ceiling), clean)


def _blocks(image: Tensor, at: Tensor, side: int) -> Tensor:
    """(n, side^2) blocks at positions in strides."""
    blocks = image.unfold(0, side, STRIDE).unfold(1, side, STRIDE)
    return blocks[tuple(at.T)].reshape(len(at), side * side)


def _spectrum_z(correlation: Sequence[float]) -> Tensor:
    """(2 LAGS,) power over frequencies along z, mean 1; interpolating it tapers the correlation."""
    row = torch.zeros(2 * LAGS)
    row[0] = 1
    for lag, value in enumerate(correlation, 1):
        row[lag] = row[-lag] = max(value, 0.0)
    power = torch.fft.fft(row).real.clamp_min(0.02)
    return power / power.mean()


def _unsure(
    volume: Tensor, valid: Tensor | None, slices: tuple[int, ...], spacing: tuple[float, ...]
) -> NoiseModel:
    """White noise by the median difference of neighbours: all that a tiny or flat image tells."""
    steps = []
    for z in slices:
        image, good = _read(volume, valid, z)
        for k in (0, 1):
            both = (good.diff(dim=k) == 0) & good.narrow(k, 1, good.shape[k] - 1)
            steps.append(image.diff(dim=k)[both].abs())
    step = torch.cat(steps)
    level = float(step.median()) / 0.6745 / math.sqrt(2) if len(step) else 0.0
    shape = (volume.shape[0], volume.shape[1], volume.shape[2])
    ones = torch.ones(-(-shape[0] // CELL), -(-shape[1] // CELL), len(slices))
    return NoiseModel(
        shape=shape,
        spacing=spacing,
        slices=slices,
        psd=torch.full((BLOCK, BLOCK), level**2),
        local=ones,
        body=ones,
        level=level,
        level_plain=level,
        rho_z=0.0,
        flatness=1.0,
        n_blocks=0,
        confident=False,
    )


def _spectra(blocks: Tensor, side: int, degree: int) -> Tensor:
    """(n, side, side) transforms of blocks (n, side^2), detrended, in a window; power per pixel."""
    if len(blocks) == 0:
        return torch.zeros(0, side, side, dtype=torch.complex64)
    surface = _surfaces(side, degree)
    rest = blocks - (blocks @ surface) @ surface.T
    return torch.fft.fft2(rest.reshape(-1, side, side) * _hann(side), norm="ortho")


def _periodogram(blocks: Tensor, side: int, degree: int) -> Tensor:
    """(n, side, side) power whose mean is the variance."""
    return _spectra(blocks, side, degree).abs().square()


@functools.cache
def _surfaces(side: int, degree: int) -> Tensor:
    """(side^2, terms) orthonormal polynomials up to a degree."""
    line = torch.linspace(-1, 1, side, dtype=torch.float64)
    x, y = torch.meshgrid(line, line, indexing="ij")
    terms = [x**a * y**b for a in range(degree + 1) for b in range(degree + 1 - a)]
    return torch.linalg.qr(torch.stack(terms, -1).reshape(side * side, -1))[0].float()


@functools.cache
def _hann(side: int) -> Tensor:
    """(side, side) Hann window with mean square 1."""
    line = torch.hann_window(side)
    window = line[:, None] * line
    return window / window.square().mean().sqrt()


@functools.cache
def _white_gain(side: int, degree: int) -> Tensor:
    """(side, side) what is left of white noise; kept above 0.3 so that leakage is not blown up."""
    surface = _surfaces(side, degree)
    kept = torch.eye(side * side) - surface @ surface.T
    rows = kept.reshape(-1, side, side) * _hann(side)
    return torch.fft.fft2(rows, norm="ortho").abs().square().sum(0).clamp_min(0.3)


def _frequency(side: int) -> Tensor:
    """(side, side) modulus in cycles per pixel."""
    line = torch.fft.fftfreq(side)
    return (line.square()[:, None] + line.square()).sqrt()


def _flatness(psd: Tensor) -> float:
    """Geometric over arithmetic mean above 0.06 cycles per pixel."""
    power = psd[_frequency(len(psd)) > 0.06].double()
    if not power.mean() > 0:
        return 1.0
    return float(power.clamp_min(1e-12 * power.mean()).log().mean().exp() / power.mean())


def _dct_power(psd: Tensor, block: tuple[int, ...]) -> Tensor:
    """(*block) variance of cosine coefficients; slices are independent where psd has two axes."""
    if psd.ndim > len(block):
        psd = psd.mean(-1)  # one slice by itself has the mean over the frequencies along z
    grid = 64
    power = _resize(psd, [max(grid, b) for b, _ in zip(block, psd.shape, strict=False)])
    for axis, size in enumerate(block[: psd.ndim]):
        spectrum = torch.fft.fft(cosines(size).to(psd), n=power.shape[axis]).abs().square()
        power = torch.movedim(torch.tensordot(spectrum, power, ([1], [axis])), 0, axis)
        power = power / spectrum.shape[1]
    return power if len(block) == psd.ndim else power[..., None].expand(block)


def _resize(psd: Tensor, size: Sequence[int]) -> Tensor:
    """A spectrum on another grid of frequencies, linearly interpolated and periodic."""
    for axis, n in enumerate(size):
        old = psd.shape[axis]
        position = torch.arange(n) * (old / n)
        left = position.long()
        weight = (position - left).to(psd).reshape([-1] + [1] * (psd.ndim - 1 - axis))
        a, b = psd.index_select(axis, left), psd.index_select(axis, (left + 1) % old)
        psd = torch.lerp(a, b, weight)
    return psd


def _cell_centres(n: int) -> Tensor:
    """Positions of the nodes of the local map along an axis of n pixels."""
    return torch.arange(-(-n // CELL)) * float(CELL) + (CELL - 1) / 2


def _cells(image: Tensor) -> Tensor:
    """Means over cells, (ceil(x / CELL), ceil(y / CELL))."""
    return avg_pool2d(image[None], CELL, ceil_mode=True)[0]


def _fill(coarse: Tensor, shape: Sequence[int]) -> Tensor:
    """Values (x, y, k) at cells, the last ones repeated where no window fitted."""
    for axis in (0, 1):
        index = torch.arange(-(-shape[axis] // CELL)).clamp_max(coarse.shape[axis] - 1)
        coarse = coarse.index_select(axis, index)
    return coarse


def _unit(local: Tensor, body: Tensor) -> Tensor:
    """Strength with mean square 1 over the body, within limits."""
    weight = body if body.sum() > 0 else torch.ones_like(body)
    mean = ((weight * local.square()).sum() / weight.sum()).sqrt()
    if not mean > 0:
        return torch.ones_like(local)
    return (local / mean).clamp(*LOCAL_LIMITS)


def _modulated(noise: Tensor, modulation: Modulation | None) -> Tensor:
    """Noise (x, y, z) whose cosine coefficients in overlapping windows met local factors."""
    if modulation is None or min(noise.shape[:2]) < WINDOW:
        return noise
    step = WINDOW // 2
    size = [(-(-n // WINDOW) + 1) * WINDOW for n in noise.shape[:2]]
    place = [torch.arange(0, n - step, step) - step + (WINDOW - 1) / 2 for n in size]
    weights = [modulation.weights(k, at) for k, at in enumerate(place)]
    weights.append(modulation.weights(2, torch.arange(float(noise.shape[2]))))
    basis = torch.kron(cosines(WINDOW).float(), cosines(WINDOW).float())
    result = torch.empty_like(noise)
    for z in range(noise.shape[2]):
        wide = noise[..., z]
        for axis, n in enumerate(size):
            at = (torch.arange(n) - step) % (2 * wide.shape[axis])
            wide = wide.index_select(axis, torch.minimum(at, 2 * wide.shape[axis] - 1 - at))
        windows = wide.unfold(0, WINDOW, step).unfold(1, WINDOW, step)
        factors = torch.tensordot(modulation.factors[:, :, 0], weights[2][z], ([4], [0]))
        factors = torch.einsum("xn,uvnm,ym->xyuv", weights[0], factors, weights[1])
        x = windows.reshape(*windows.shape[:2], -1) @ basis.T * factors.flatten(2)
        y = (x @ basis).flatten(0, 1).T[None] / (WINDOW // step) ** 2
        inner = tuple(slice(step, step + n) for n in noise.shape[:2])
        result[..., z] = fold(y, (size[0], size[1]), WINDOW, stride=step)[0, 0][inner]
    return result


def _interpolate(values: Tensor, axis: int, nodes: Tensor, at: Tensor) -> Tensor:
    """Linear interpolation along an axis, constant beyond the ends."""
    if len(nodes) == 1:
        return values.repeat_interleave(len(at), dim=axis)
    right = torch.searchsorted(nodes, at).clamp(1, len(nodes) - 1)
    weight = (at - nodes[right - 1]) / (nodes[right] - nodes[right - 1])
    weight = weight.clamp(0, 1).reshape([-1] + [1] * (values.ndim - 1 - axis))
    return torch.lerp(
        values.index_select(axis, right - 1), values.index_select(axis, right), weight
    )


def gaussian(image: Tensor, sigma: float) -> Tensor:
    """Gaussian smoothing of the first two axes, borders repeated by reflection."""
    reach = math.ceil(4 * sigma)
    kernel = torch.exp(-torch.arange(-reach, reach + 1).square() / (2 * sigma**2))
    for axis in (0, 1):
        n = image.shape[axis]
        position = torch.arange(n)[:, None] + torch.arange(-reach, reach + 1)
        position = torch.minimum(position % (2 * n), (-1 - position) % (2 * n))
        matrix = torch.zeros(n, n).scatter_add(1, position, (kernel / kernel.sum()).expand(n, -1))
        image = torch.movedim(torch.tensordot(matrix, image, ([1], [axis])), 0, axis)
    return image
