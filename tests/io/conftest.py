"""Raw data that are made here: coils that see a box of texture."""

from collections.abc import Callable

import numpy as np
import pytest


@pytest.fixture
def coil_kspace() -> Callable[..., np.ndarray]:
    """Make centred k-space (coil, *shape) complex64 of a box, with smooth coils and noise."""

    def make(shape: tuple[int, ...], n_coils: int = 4, seed: int = 0) -> np.ndarray:
        rng = np.random.default_rng(seed)
        grids = np.meshgrid(*[np.linspace(-1, 1, n, endpoint=False) for n in shape], indexing="ij")
        inside = np.all([np.abs(g + 0.05) < 0.6 for g in grids], 0)
        body = inside * (1 + 0.3 * rng.standard_normal(shape))
        coils = []
        for _ in range(n_coils):
            at, phase = rng.uniform(-1.2, 1.2, len(shape)), rng.uniform(0, 2 * np.pi)
            distance = sum((g - a) ** 2 for g, a in zip(grids, at, strict=True))
            coils.append(body * np.exp(1j * phase) / (1 + distance))
        axes = tuple(range(1, 1 + len(shape)))
        shifted = np.fft.ifftshift(np.array(coils), axes)
        kspace = np.fft.fftshift(np.fft.fftn(shifted, axes=axes, norm="ortho"), axes)
        noise = rng.standard_normal((2, *kspace.shape))
        return (kspace + 0.01 * (noise[0] + 1j * noise[1])).astype(np.complex64)

    return make
