r"""Parallel-beam Radon transform, its exact adjoint, and filtered back-projection.

With :math:`n_\theta = (\cos\theta, \sin\theta)` and positions in pixels from the image's centre,

.. math:: (R\mu)(\theta, t) = \int \mu(t\, n_\theta + s\, n_\theta^\perp)\, ds, \qquad
          \mu \approx \frac{\pi}{n} \sum_\theta (h * R\mu)(\theta, \langle x, n_\theta\rangle) .

The integral is a sum over a rotated grid (bilinear). The detector covers the diagonal, so nothing
of an image of any shape is cut off. h is the band-limited ramp, times a Hann window if wanted.
Reference: Kak, Slaney. Principles of Computerized Tomographic Imaging. IEEE Press 1988, chapter 3.
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

Kernel = Literal["ramp", "hann"]
"""Reconstruction kernels: `ramp` is sharp and noisy, `hann` is smooth."""


def view_angles(n_angles: int) -> Tensor:
    """Equal steps over 180 degrees, (n_angles,) in radians."""
    return torch.arange(n_angles) * (math.pi / n_angles)


class Radon:
    """Line integrals of images, in units of image times pixel.

    Args:
        shape: Pixels along x and y.
        angles: (n_angles,) direction of the detector axis, radians from x towards y.
    """

    def __init__(self, shape: tuple[int, int], angles: Tensor) -> None:
        self.shape = shape
        self.angles = angles
        self.n_bins = n_bins(shape)

    def forward(self, image: Tensor) -> Tensor:
        """Images (..., x, y) to sinograms (..., n_angles, n_bins)."""
        flat = image.reshape(1, -1, *self.shape)
        views = [self._view(flat, float(angle)) for angle in self.angles]
        return torch.stack(views, dim=-2).reshape(*image.shape[:-2], len(views), self.n_bins)

    def adjoint(self, sinogram: Tensor) -> Tensor:
        """Sinograms (..., n_angles, n_bins) to images (..., x, y), the transpose of `forward`."""
        flat = sinogram.reshape(1, -1, *sinogram.shape[-2:])
        image = flat.new_zeros(1, flat.shape[1], *self.shape)
        for index, angle in enumerate(self.angles):
            with torch.enable_grad():
                zero = torch.zeros_like(image, requires_grad=True)
                view = self._view(zero, float(angle))
            image += torch.autograd.grad(view, zero, flat[:, :, index])[0]
        return image.reshape(*sinogram.shape[:-2], *self.shape)

    def _view(self, image: Tensor, angle: float) -> Tensor:
        """One view (1, n, n_bins) of images (1, n, x, y)."""
        t = torch.arange(self.n_bins, dtype=image.dtype, device=image.device)
        t = t - (self.n_bins - 1) / 2
        x = t[:, None] * math.cos(angle) - t * math.sin(angle)
        y = t[:, None] * math.sin(angle) + t * math.cos(angle)
        grid = torch.stack([2 * y / self.shape[1], 2 * x / self.shape[0]], dim=-1)
        return grid_sample(image, grid[None], align_corners=False).sum(-1)


def n_bins(shape: tuple[int, int]) -> int:
    """Detector bins, one pixel wide, that cover the diagonal of an image (x, y)."""
    return math.ceil(math.hypot(*shape)) + 2


def fbp(
    sinogram: Tensor, angles: Tensor, shape: tuple[int, int], *, kernel: Kernel = "ramp"
) -> Tensor:
    """Filtered back-projection.

    Args:
        sinogram: (..., n_angles, n_bins) line integrals in units of image times pixel.
        angles: (n_angles,) in radians, equal steps over 180 degrees.
        shape: Pixels along x and y of the image.
        kernel: The filter.

    Returns:
        (..., x, y) images.
    """
    bins = sinogram.shape[-1]
    filtered = _filter(sinogram, kernel).reshape(-1, *sinogram.shape[-2:])
    x = torch.arange(shape[0], dtype=sinogram.dtype, device=sinogram.device) - (shape[0] - 1) / 2
    y = torch.arange(shape[1], dtype=sinogram.dtype, device=sinogram.device) - (shape[1] - 1) / 2
    image = filtered.new_zeros(len(filtered), shape[0] * shape[1])
    for index, angle in enumerate(angles.tolist()):
        t = x[:, None] * math.cos(angle) + y * math.sin(angle) + (bins - 1) / 2
        t = t.flatten().clamp_(0, bins - 1.001)
        left = t.long()
        view = filtered[:, index]
        image += torch.lerp(view[:, left], view[:, left + 1], t - left)
    image *= math.pi / len(angles)
    return image.reshape(*sinogram.shape[:-2], *shape)


def _filter(sinogram: Tensor, kernel: Kernel) -> Tensor:
    """Views convolved with the kernel, without wrap-around."""
    bins = sinogram.shape[-1]
    size = 1 << (2 * bins - 1).bit_length()
    distance = torch.fft.fftfreq(size, 1 / size, device=sinogram.device)
    odd = distance.abs() % 2 == 1
    ramp = torch.where(odd, -1 / (math.pi * distance).square(), torch.zeros_like(distance))
    ramp[0] = 0.25
    response = torch.fft.rfft(ramp).real.to(sinogram.dtype)
    if kernel == "hann":
        frequency = torch.fft.rfftfreq(size, device=sinogram.device).to(sinogram.dtype)
        response = response * (0.5 + 0.5 * torch.cos(2 * math.pi * frequency))
    spectrum = torch.fft.rfft(sinogram, size) * response
    return torch.fft.irfft(spectrum, size)[..., :bins]
