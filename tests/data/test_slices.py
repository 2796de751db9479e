"""A raw scan falls apart into slices, along whatever axis it can."""

import numpy as np
import pytest
import torch

from medssl.core.errors import InputError
from medssl.core.geometry import Geometry
from medssl.core.kspace import KSpace
from medssl.data.slices import Slices
from medssl.physics.fourier import to_image


def scan(data, sampling=None, **words):
    shape = data.shape[1:]
    mask = np.ones(shape, bool) if sampling is None else sampling
    return KSpace(
        (data * mask).astype(np.complex64),
        Geometry.from_spacing(shape, (1,) * len(shape)),
        mask,
        **words,
    )


def random(*shape):
    rng = np.random.default_rng(0)
    return rng.standard_normal(shape) + 1j * rng.standard_normal(shape)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_volume_is_transformed_along_its_readout(axis):
    data = random(2, 6, 7, 8)
    plane = np.random.default_rng(1).random([n for a, n in enumerate((6, 7, 8)) if a != axis]) < 0.5
    raw = scan(data, np.broadcast_to(np.expand_dims(plane, axis), (6, 7, 8)))
    slices = Slices.of(raw)
    assert (slices.axis, slices.n) == (axis, (6, 7, 8)[axis])
    hybrid = to_image(torch.from_numpy(np.array(raw.data)), (1 + axis,)).movedim(1 + axis, 0)
    assert torch.allclose(slices.kspace([2, 4]), hybrid[[2, 4]], atol=1e-5)
    assert (slices.sampling(3) == plane).all()
    pictures = np.random.default_rng(2).random((slices.n, *slices.shape)).astype("f")
    assert slices.place(pictures).shape == (6, 7, 8)


def test_slices_are_taken_as_they_are():
    data = random(3, 6, 5, 4)
    mask = np.random.default_rng(0).random((6, 5, 4)) < 0.7
    slices = Slices.of(scan(data, mask, encoded=(True, True, False)))
    assert (slices.axis, slices.n, slices.shape) == (2, 4, (6, 5))
    assert torch.equal(slices.kspace([1])[0], torch.from_numpy(np.array(slices.scan.data[..., 1])))
    assert (slices.sampling(2) == mask[..., 2]).all()


def test_an_asymmetric_echo_is_a_readout_with_a_missing_end():
    mask = np.zeros((8, 8, 8), bool)
    mask[2:] = (np.random.default_rng(0).random((8, 8)) < 0.5)[None]
    slices = Slices.of(scan(random(1, 8, 8, 8), mask))
    assert slices.axis == 0


def test_a_volume_without_a_readout_is_refused():
    mask = np.random.default_rng(0).random((6, 6, 6)) < 0.5
    with pytest.raises(InputError, match="no axis along which"):
        Slices.of(scan(random(1, 6, 6, 6), mask))


def test_the_wanted_matrix_is_cut_about_the_centre():
    raw = scan(random(1, 9, 8), matrix=(5, 4))
    pictures = np.zeros((1, 9, 8), np.float32)
    pictures[0, 4, 4] = 1
    cut = Slices.of(raw).place(pictures)
    assert cut.shape == raw.wanted.shape == (5, 4)
    assert cut[2, 2] == 1
    assert np.allclose(raw.wanted.world([2, 2, 0]), raw.geometry.world([4, 4, 0]))
