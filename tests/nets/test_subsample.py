import pytest
import torch

from medssl.core.random import stream
from medssl.nets.subsample import PAIRS, diagonal_pair, swap_most_similar


def test_pair_of_one_block():
    g1, g2 = diagonal_pair(torch.tensor([[1.0, 2.0], [5.0, 9.0]]))
    assert g1.tolist() == [[3.5]]
    assert g2.tolist() == [[5.0]]


def test_the_halves_carry_independent_noise():
    g1, g2 = diagonal_pair(torch.randn(1, 1, 512, 512, generator=stream(0, "halves")))
    assert abs(float((g1 * g2).mean())) < 0.01
    assert float(g1.var()) == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize("size", [(1, 5), (7, 6), (5, 1)])
def test_odd_sizes(size):
    image = torch.rand(2, 1, *size, generator=stream(0, "odd"))
    assert all(g.shape == (2, 1, size[0] // 2, size[1] // 2) for g in diagonal_pair(image))
    swapped = swap_most_similar(image)
    assert swapped.shape == image.shape
    rows, columns = size[0] // 2 * 2, size[1] // 2 * 2
    assert torch.equal(swapped[..., rows:, :], image[..., rows:, :])
    assert torch.equal(swapped[..., columns:], image[..., columns:])


def brute_force(image):
    result = image.clone()
    for b in range(image.shape[0]):
        for i in range(0, image.shape[2] - 1, 2):
            for j in range(0, image.shape[3] - 1, 2):
                places = [(i, j), (i, j + 1), (i + 1, j), (i + 1, j + 1)]
                best = min(
                    PAIRS,
                    key=lambda p: (image[b, 0][places[p[0]]] - image[b, 0][places[p[1]]]) ** 2,
                )
                p, q = places[best[0]], places[best[1]]
                result[b, 0][p], result[b, 0][q] = image[b, 0][q].clone(), image[b, 0][p].clone()
    return result


@pytest.mark.parametrize("levels", [1000, 3])  # few levels make ties
def test_swap_equals_a_loop_over_blocks(levels):
    image = torch.randint(levels, (2, 1, 10, 9), generator=stream(1, "swap")).float()
    assert torch.equal(swap_most_similar(image), brute_force(image))


def test_first_pair_wins_a_tie():
    tied = torch.tensor([[0.0, 1.0], [1.0, 2.0]])  # all neighbours differ by 1 but pair (1, 2) by 0
    assert torch.equal(swap_most_similar(tied), tied)
    row = torch.tensor([[0.0, 1.0], [3.0, 2.0]])  # (0,1), (1,3), (2,3) differ by 1
    assert swap_most_similar(row).tolist() == [[1.0, 0.0], [3.0, 2.0]]
