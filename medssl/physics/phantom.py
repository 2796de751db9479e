"""Synthetic scans from ellipsoids: an abdomen in HU, a head as a magnitude image, and series of it.

Everything is a formula of position, so a phantom is the same on every machine and at any size.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_ABDOMEN = (
    # HU, centre (x, y, z), semi-axes (x, y, z), turn in degrees; in units of half the body's width
    (-100.0, (0.0, 0.0, 0.0), (1.0, 0.74, 9.0), 0.0),  # skin to muscle: fat
    (55.0, (0.0, 0.0, 0.0), (0.90, 0.64, 9.0), 0.0),  # muscle
    (-105.0, (0.0, -0.06, 0.0), (0.80, 0.52, 9.0), 0.0),  # visceral fat
    (105.0, (-0.40, -0.10, 0.1), (0.38, 0.40, 1.1), 20.0),  # liver
    (118.0, (0.55, 0.06, 0.2), (0.17, 0.26, 0.8), -25.0),  # spleen
    (40.0, (0.28, -0.24, 0.0), (0.22, 0.20, 0.7), 10.0),  # stomach, fluid
    (-850.0, (0.28, -0.34, 0.1), (0.10, 0.06, 0.4), 0.0),  # stomach, gas
    (185.0, (-0.42, 0.28, -0.5), (0.12, 0.16, 0.6), 25.0),  # kidneys
    (185.0, (0.42, 0.30, -0.4), (0.12, 0.16, 0.6), -25.0),
    (20.0, (-0.40, 0.28, -0.5), (0.04, 0.06, 0.3), 25.0),
    (20.0, (0.40, 0.30, -0.4), (0.04, 0.06, 0.3), -25.0),
    (85.0, (0.02, -0.02, -0.2), (0.22, 0.07, 0.4), -12.0),  # pancreas
    (620.0, (0.0, 0.36, 0.0), (0.19, 0.15, 9.0), 0.0),  # vertebra: cortex, marrow
    (210.0, (0.0, 0.36, 0.0), (0.165, 0.125, 9.0), 0.0),
    (480.0, (0.0, 0.58, 0.0), (0.05, 0.10, 9.0), 0.0),
    (30.0, (0.0, 0.515, 0.0), (0.06, 0.05, 9.0), 0.0),  # spinal canal
    (210.0, (0.06, 0.16, 0.0), (0.075, 0.075, 9.0), 0.0),  # aorta, vena cava
    (150.0, (-0.12, 0.15, 0.0), (0.085, 0.06, 9.0), 0.0),
)
_LESIONS = (
    # HU, centre, radius: low contrast against the liver or the spleen
    (85.0, (-0.52, -0.20, 0.0), 0.07),
    (90.0, (-0.36, -0.30, 0.05), 0.045),
    (130.0, (-0.30, -0.04, -0.05), 0.035),
    (70.0, (-0.52, 0.08, 0.1), 0.03),
    (100.0, (0.55, 0.06, 0.1), 0.045),
)
_HEAD = (
    # value, centre, semi-axes, turn; in units of half the field of view
    (0.85, (0.0, 0.0, 0.0), (0.74, 0.92, 0.90), 0.0),  # scalp
    (0.08, (0.0, 0.0, 0.0), (0.70, 0.88, 0.86), 0.0),  # skull
    (0.55, (0.0, 0.0, 0.0), (0.675, 0.855, 0.83), 0.0),  # marrow of the skull
    (0.08, (0.0, 0.0, 0.0), (0.655, 0.835, 0.81), 0.0),
    (0.18, (0.0, 0.0, 0.0), (0.63, 0.81, 0.78), 0.0),  # fluid around the brain
)
_DEEP = (
    (0.14, (-0.10, -0.14, 0.05), (0.07, 0.26, 0.22), 12.0),  # ventricles
    (0.14, (0.10, -0.14, 0.05), (0.07, 0.26, 0.22), -12.0),
    (0.52, (-0.20, -0.20, 0.0), (0.06, 0.15, 0.16), 15.0),  # caudate nuclei
    (0.52, (0.20, -0.20, 0.0), (0.06, 0.15, 0.16), -15.0),
    (0.58, (-0.14, 0.10, 0.0), (0.10, 0.14, 0.14), -20.0),  # thalami
    (0.58, (0.14, 0.10, 0.0), (0.10, 0.14, 0.14), 20.0),
    (0.64, (-0.30, -0.02, 0.0), (0.06, 0.17, 0.16), 10.0),  # putamina
    (0.64, (0.30, -0.02, 0.0), (0.06, 0.17, 0.16), -10.0),
    (0.35, (-0.36, 0.30, 0.2), (0.035, 0.05, 0.06), 0.0),  # two small lesions
    (0.95, (0.34, 0.36, -0.1), (0.03, 0.04, 0.05), 0.0),
)

_WEIGHTED = {"fluid": 1.0, "cortex": 0.6, "white": 0.5}
"""Signal of the tissues without diffusion weighting."""
_ISOTROPIC = {"fluid": 3.0e-3, "cortex": 0.8e-3}
"""Diffusivity, mm^2/s."""
_ALONG, _ACROSS = 1.7e-3, 0.3e-3
"""Diffusivity of white matter along and across its fibres, mm^2/s."""
_ACTIVE = (
    # centre, semi-axes of what responds to a task, delay in volumes
    ((-0.30, 0.30, 0.0), (0.16, 0.12, 0.20), 0),
    ((0.30, 0.30, 0.0), (0.16, 0.12, 0.20), 3),
    ((0.02, -0.48, 0.0), (0.12, 0.10, 0.20), 6),
)


def abdomen(shape: Sequence[int], spacing: Sequence[float] = (0.8, 0.8, 3.0)) -> Tensor:
    """An abdominal CT.

    The body fills most of the field of view, whatever its size; organs change slowly from slice to
    slice.

    Args:
        shape: Voxels (x, y) or (x, y, z).
        spacing: mm along each axis; sets how fast organs change along z.

    Returns:
        Tensor of this shape in HU, float32, -1000 outside the body.
    """
    field = min(shape[0] * spacing[0] / 0.88, shape[1] * spacing[1] / 0.72) / 2
    width = 0.86 * 0.88 * field
    x, y, z = _axes(shape, [s / width for s in spacing])
    softness = 0.6 * max(spacing[:2]) / width
    x, y = x - 0.02 * torch.sin(1.3 * z), y - 0.015 * torch.cos(1.1 * z)
    image = torch.full((x + y + z).shape, -1000.0)
    for value, centre, axes, turn in _ABDOMEN:
        _paint(image, value, _ellipsoid((x, y, z), centre, axes, turn, softness))
    liver = _ellipsoid((x, y, z), *_ABDOMEN[3][1:], softness)
    for branch in range(5):
        _paint(image, 140.0, liver * _vessel((x, y, z), branch, softness))
    for value, centre, radius in _LESIONS:
        axes = (radius, radius, 3 * radius)
        _paint(image, value, _ellipsoid((x, y, z), centre, axes, 0.0, softness))
    for side in range(10):
        angle = 2 * math.pi * (side + 0.5) / 10
        centre = (0.82 * math.cos(angle), 0.57 * math.sin(angle), 0.25 * math.sin(3.0 * side))
        rib = _ellipsoid((x, y, z), centre, (0.03, 0.09, 0.5), math.degrees(angle), softness)
        _paint(image, 420.0, rib)
    return image if len(shape) == 3 else image[..., 0]


def head(shape: Sequence[int]) -> Tensor:
    """A T1-weighted head.

    Args:
        shape: Voxels (x, y) or (x, y, z); the head fills the field of view along each axis.

    Returns:
        Tensor of this shape in [0, 1], float32, 0 outside the head.
    """
    x, y, z = _axes(shape, [2 / n for n in shape])
    if len(shape) == 3 and shape[2] < 16:
        z = z * shape[2] / 64  # a thin slab through the middle instead of a squeezed head
    softness = 1.2 / min(shape[:2])
    image = torch.zeros((x + y + z).shape)
    for value, centre, axes, turn in _HEAD:
        _paint(image, value, _ellipsoid((x, y, z), centre, axes, turn, softness))
    folds = 0.035 * torch.sin(23 * x + 4 * torch.sin(5 * y)) * torch.sin(21 * y + 3 * z)
    folds = folds + 0.02 * torch.sin(37 * x - 11 * z) * torch.cos(31 * y)
    radius = ((x / 0.60) ** 2 + (y / 0.78) ** 2 + (z / 0.74) ** 2).sqrt() + 0.5 * folds
    _paint(image, 0.48, _inside(radius, softness))
    _paint(image, 0.76, _inside(radius + 0.13 + 2.2 * folds, softness))
    gap = torch.exp(-((x / 0.014) ** 2)) * _inside(radius, softness)
    _paint(image, 0.2, gap * (y.abs() > 0.42) * 0.9)
    for value, centre, axes, turn in _DEEP:
        _paint(image, value, _ellipsoid((x, y, z), centre, axes, turn, softness))
    texture = 1 + 0.02 * torch.sin(61 * x + 17 * z) * torch.sin(53 * y) + 0.06 * x - 0.05 * y
    image = (image * texture).clamp(0, 1)
    return image if len(shape) == 3 else image[..., 0]


def diffusion(shape: Sequence[int], b_values: Tensor, directions: Tensor) -> Tensor:
    """Diffusion-weighted volumes of a brain: two crossing bundles of fibres, cortex and fluid.

    Args:
        shape: Voxels (x, y, z).
        b_values: (N,) s/mm^2.
        directions: (N, 3) unit vectors of the gradients; any where b is 0.

    Returns:
        (N, *shape) float32 in [0, 1], 0 outside the brain; white matter has 0.5 at b = 0.
    """
    tissue = _tissues(shape)
    x, y, z = _axes(shape, [2 / n for n in shape])
    nothing = torch.zeros((x + y + z).shape)
    around = torch.stack([nothing - y, nothing + x, nothing + 0.4 * torch.sin(3 * z)], -1)
    radial = torch.stack([nothing + x, nothing + 0.6 * y, nothing + 0.8 + 0.3 * x * y], -1)
    second = (0.5 + 0.5 * torch.sin(4 * x + 2 * z) * torch.cos(3 * y)).clamp(0, 0.6)
    volumes = []
    for b, direction in zip(b_values.tolist(), directions, strict=True):
        volume = nothing.clone()
        for name, diffusivity in _ISOTROPIC.items():
            volume += _WEIGHTED[name] * tissue[name] * math.exp(-b * diffusivity)
        for fibre, share in ((around, 1 - second), (radial, second)):
            cosine = (fibre @ direction) / fibre.norm(dim=-1).clamp_min(1e-6)
            decay = torch.exp(-b * (_ACROSS + (_ALONG - _ACROSS) * cosine.square()))
            volume += _WEIGHTED["white"] * tissue["white"] * share * decay
        volumes.append(volume)
    return torch.stack(volumes)


def sphere(n: int) -> Tensor:
    """(n, 3) unit vectors spread evenly over half of a sphere, along a spiral."""
    turn = math.pi * (3 - math.sqrt(5))
    z = 1 - (torch.arange(n, dtype=torch.float64) + 0.5) / n
    angle = turn * torch.arange(n, dtype=torch.float64)
    radius = (1 - z.square()).sqrt()
    return torch.stack([radius * angle.cos(), radius * angle.sin(), z], -1).float()


def activation(shape: Sequence[int], n: int, change: float = 0.03) -> tuple[Tensor, Tensor, Tensor]:
    """A head over time in which three regions respond to a task, each with another delay.

    Args:
        shape: Voxels (x, y, z).
        n: Volumes.
        change: Largest relative change of the signal in an active voxel.

    Returns:
        (n, *shape) volumes in [0, 1], float32; (3, *shape) how much each region owns of a voxel;
        (3, n) the time courses, 0 to 1.
    """
    position = _axes(shape, [2 / k for k in shape])
    image = head(shape)
    time = torch.arange(n, dtype=torch.float32)
    regions, courses = [], []
    for centre, axes, delay in _ACTIVE:
        regions.append(_ellipsoid(position, centre, axes, 0.0, 2 / min(shape)))
        courses.append((0.5 + 0.75 * torch.sin(2 * math.pi * (time - delay) / 16)).clamp(0, 1))
    region, course = torch.stack(regions), torch.stack(courses)
    drift = 0.01 * torch.sin(math.pi * time / n)
    x, y, z = position
    relative = torch.einsum("rt,rxyz->txyz", change * course, region)
    relative += drift[:, None, None, None] * (x + y + 0 * z)
    return image * (1 + relative), region, course


def _tissues(shape: Sequence[int]) -> dict[str, Tensor]:
    """How much of each voxel is fluid, cortex and white matter; nothing outside the brain."""
    image = head(shape)
    position = _axes(shape, [2 / n for n in shape])
    inside = _ellipsoid(position, *_HEAD[-1][1:], 2 / min(shape))
    white = ((image - 0.48) / 0.28).clamp(0, 1)
    fluid = ((0.48 - image) / 0.30).clamp(0, 1)
    parts = {"fluid": fluid, "cortex": 1 - white - fluid, "white": white}
    return {name: inside * part for name, part in parts.items()}


def _axes(shape: Sequence[int], step: Sequence[float]) -> tuple[Tensor, Tensor, Tensor]:
    """Positions from the centre along x, y, z, as three tensors that broadcast to (x, y, z)."""
    line = [(torch.arange(n) - (n - 1) / 2) * d for n, d in zip(shape, step, strict=False)]
    if len(shape) == 2:
        line.append(torch.zeros(1))
    return line[0][:, None, None], line[1][None, :, None], line[2][None, None, :]


def _ellipsoid(
    position: tuple[Tensor, Tensor, Tensor],
    centre: tuple[float, float, float],
    axes: tuple[float, float, float],
    turn: float,
    softness: float,
) -> Tensor:
    """How much of each voxel lies inside, 0 to 1."""
    x, y, z = (p - c for p, c in zip(position, centre, strict=True))
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    u, v, w = (x * cos + y * sin) / axes[0], (y * cos - x * sin) / axes[1], z / axes[2]
    return _inside((u * u + v * v + w * w).sqrt(), softness / min(axes[:2]))


def _vessel(position: tuple[Tensor, Tensor, Tensor], branch: int, softness: float) -> Tensor:
    """A curved vessel that crosses the liver, 0 to 1."""
    x, y, z = position
    turn = 0.63 * branch
    along = (x + 0.4) * math.cos(turn) + (y + 0.1) * math.sin(turn)
    across = (y + 0.1) * math.cos(turn) - (x + 0.4) * math.sin(turn)
    across = across - 0.04 * torch.sin(9 * along + branch) - 0.1 * torch.sin(z + branch)
    return _inside(across.abs() / 0.012, softness / 0.012)


def _inside(radius: Tensor, softness: float) -> Tensor:
    """1 where a radius is below 1, 0 above, with a smooth edge."""
    return ((1 - radius) / (2 * softness) + 0.5).clamp(0, 1)


def _paint(image: Tensor, value: float, weight: Tensor) -> None:
    """Mix a value into an image, in place."""
    image += weight * (value - image)
