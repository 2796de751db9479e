"""The wavelet transform: orthogonal, that of Daubechies, and a shrinkage that moves little."""

import numpy as np
import pytest
import pywt
import torch

from medssl.core.errors import InputError
from medssl.core.random import stream
from medssl.physics.wavelet import DB4, Wavelet

DOUBLE = torch.empty((), dtype=torch.complex128)


def picture(*shape):
    return torch.randn(shape, generator=stream(0, "picture"), dtype=torch.complex128)


def test_the_filter_is_that_of_the_library():
    assert np.allclose(pywt.Wavelet("db4").rec_lo, DB4, atol=1e-11)


@pytest.mark.parametrize("shape", [(32, 48), (16, 16), (2, 3, 64, 32)])
def test_it_is_orthogonal(shape):
    x, wavelet = picture(*shape), Wavelet(shape, 4, DOUBLE)
    assert torch.allclose(wavelet.adjoint(wavelet(x)), x, atol=1e-9)
    assert torch.allclose(wavelet(wavelet.adjoint(x)), x, atol=1e-9)


def test_bands_are_those_of_the_library_up_to_where_periods_start():
    x = picture(64, 48)
    low, (a, b, c) = pywt.dwt2(x.numpy(), "db4", mode="periodization")
    found = []
    for shift in ((0, 0), (0, 1), (1, 0), (1, 1)):
        ours = Wavelet((64, 48), 1, DOUBLE)(x.roll(shift, (0, 1)))
        blocks = (ours[:32, :24], ours[32:, :24], ours[:32, 24:], ours[32:, 24:])
        gaps = [
            np.abs(np.abs(np.fft.fft2(block.numpy())) - np.abs(np.fft.fft2(theirs))).max()
            for block, theirs in zip(blocks, (low, a, b, c), strict=True)
        ]
        found.append(max(gaps))
    assert min(found) < 1e-8


def test_shrinkage_keeps_the_low_band_and_moves_nothing_by_more_than_its_threshold():
    x = picture(1, 32, 32)
    wavelet = Wavelet((1, 32, 32), 2, DOUBLE)
    before, after = wavelet(x), wavelet(wavelet.shrink(x, torch.full((1, 1, 1), 0.5).double()))
    assert torch.allclose(before[..., :8, :8], after[..., :8, :8], atol=1e-9)
    moved = (before - after).abs()
    assert float(moved.max()) <= 0.5 + 1e-9
    assert float(moved[..., 16:, 16:].mean()) > 0.3
    assert torch.allclose(wavelet.shrink(x, torch.zeros(1, 1, 1).double()), x, atol=1e-9)


def test_a_size_without_levels_is_refused():
    with pytest.raises(InputError, match="no 4 wavelet levels"):
        Wavelet((30, 32), 4, DOUBLE)
