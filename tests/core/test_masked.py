"""Errors of hidden cells."""

import pytest
import torch

from medssl.core.masked import as_cells, as_image, enlarged, hidden_error, padded
from medssl.core.random import stream


def noise(*shape, name="x"):
    return torch.randn(shape, generator=stream(0, name))


@pytest.mark.parametrize("axes", [2, 3])
def test_cells_are_those_of_the_pattern_and_go_back(axes):
    grid, shape = (2, 4, 3)[:axes], (2, 8, 8, 12)[: 1 + axes]
    image = noise(3, *shape)
    cells = as_cells(image, grid)
    assert torch.equal(as_image(cells, grid, shape), image)
    visible = torch.rand(3, 1, *grid, generator=stream(0, "visible")) < 0.5
    kept = as_cells(image * enlarged(visible, shape[1:]), grid).abs().sum(-1) > 0
    assert torch.equal(kept, visible.flatten(1))


def test_the_normalised_error_is_the_mean_over_hidden_cells_by_hand():
    image, guess = noise(2, 1, 8, 8), noise(2, 1, 8, 8, name="guess")
    visible = torch.tensor([[True, False, False, True], [False, True, False, True]])
    visible = visible.reshape(2, 1, 2, 2)
    errors = []
    for b in range(2):
        for i in range(2):
            for j in range(2):
                if not visible[b, 0, i, j]:
                    x = image[b, 0, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4]
                    y = guess[b, 0, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4]
                    errors.append(((x - x.mean()) / (x.var() + 1e-6).sqrt() - y).square().mean())
    found = hidden_error(guess, image, visible, normalised=True)
    assert torch.allclose(found, torch.stack(errors).mean())


@pytest.mark.parametrize("normalised", [False, True])
def test_seen_cells_and_voxels_that_are_not_valid_do_not_count(normalised):
    image, guess = noise(1, 1, 8, 8), noise(1, 1, 8, 8, name="guess").requires_grad_()
    visible = torch.tensor([True, False, False, True]).reshape(1, 1, 2, 2)
    valid = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    valid[..., :2, 5:] = False
    error = hidden_error(guess, image, visible, valid, normalised=normalised)
    error.backward()
    assert torch.equal(guess.grad != 0, ~enlarged(visible, (8, 8)) & valid)
    other = torch.where(valid, image, image + 100)
    assert torch.equal(error, hidden_error(guess, other, visible, valid, normalised=normalised))


def test_without_a_valid_voxel_the_error_is_0():
    image = noise(1, 1, 4, 4)
    visible = torch.zeros(1, 1, 2, 2, dtype=torch.bool)
    valid = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    assert hidden_error(image + 1, image, visible, valid, normalised=True) == 0


def test_cells_that_are_all_but_constant_weigh_less():
    image = noise(1, 1, 4, 8)
    image[..., 4:] *= 1e-3
    visible = torch.zeros(1, 1, 1, 2, dtype=torch.bool)
    guess = torch.zeros_like(image)
    guess[..., 4:] = 10
    flat, weighed = (
        hidden_error(guess, image, visible, normalised=True, min_sd=s) for s in (0.0, 0.05)
    )
    assert flat > 40
    assert weighed < 1.1


def test_an_image_of_odd_sides_is_filled_up_and_the_filling_is_not_valid():
    visible = torch.ones(1, 1, 3, 2, dtype=torch.bool)
    image, valid = padded(noise(1, 1, 9, 8), None, visible, (4, 4))
    assert image.shape == (1, 1, 12, 8)
    assert valid.sum() == 72
    with pytest.raises(ValueError, match="fewer than the image"):
        padded(noise(1, 1, 13, 8), None, visible, (4, 4))
