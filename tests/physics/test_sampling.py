"""Patterns of k-space: as dense as asked, reproducible, and parted without overlap."""

import numpy as np
import pytest

from medssl.core.errors import UsageError
from medssl.physics.sampling import (
    calibration_size,
    central,
    line_axis,
    poisson_disc,
    radius,
    random_lines,
    reach,
    withhold,
)


@pytest.mark.parametrize("shape", [(96, 96), (97, 64), (64, 101)])
@pytest.mark.parametrize("acceleration", [3.0, 6.0])
def test_poisson_discs_are_as_dense_as_asked(shape, acceleration):
    found = poisson_disc(shape, acceleration, (16, 16), seed=3)
    assert abs(found.size / found.sum() / acceleration - 1) < 0.02
    assert found[central(shape, (16, 16))].all()
    assert not found[radius(shape) > 1].any()
    assert (found == poisson_disc(shape, acceleration, (16, 16), seed=3)).all()
    assert (found != poisson_disc(shape, acceleration, (16, 16), seed=4)).any()


def test_points_of_a_poisson_disc_keep_their_distance():
    found = poisson_disc((128, 128), 8, (16, 16), seed=0)
    far = found & (radius(found.shape) > 0.7)
    touching = (far[1:] & far[:-1]).sum() + (far[:, 1:] & far[:, :-1]).sum()
    assert touching < 0.05 * far.sum()
    density = [
        found[(radius(found.shape) > a) & (radius(found.shape) <= a + 0.2)].mean()
        for a in (0.3, 0.8)
    ]
    assert density[0] > 1.5 * density[1]


def test_an_acceleration_that_cannot_be_met_is_refused():
    with pytest.raises(UsageError, match="cannot be met"):
        poisson_disc((32, 32), 8, (24, 24))


def test_lines_are_whole_and_as_many_as_asked():
    found = random_lines((100, 64), 4, 12, seed=1)
    assert found.sum(1).astype(bool).sum() == 25
    assert line_axis(found) == 0
    assert line_axis(found.T) == 1
    assert calibration_size(found)[0] >= 12
    assert calibration_size(found)[1] == 64


def test_points_full_scans_and_partial_ones_are_no_lines():
    assert line_axis(poisson_disc((64, 64), 4, (16, 16))) is None
    full = np.ones((32, 32), bool)
    assert line_axis(full) is None
    full[:8] = False
    assert line_axis(full) is None


@pytest.mark.parametrize("shape", [(40, 40), (41, 30)])
def test_the_calibration_block_is_found(shape):
    sampling = np.zeros(shape, bool)
    sampling[central(shape, (14, 10))] = True
    sampling[0, 0] = True
    assert calibration_size(sampling) == (14, 10)
    sampling[shape[0] // 2, shape[1] // 2] = False
    assert calibration_size(sampling) == (0, 0)


@pytest.mark.parametrize("lines", [False, True])
def test_what_is_kept_aside_and_what_is_used_make_the_whole(lines):
    shape = (64, 48)
    whole = random_lines(shape, 3, 12) if lines else poisson_disc(shape, 4, (16, 16))
    used, aside = withhold(whole, 0.2, 5)
    assert not (used & aside).any()
    assert ((used | aside) == whole).all()
    assert used[central(shape, (8, 8))].all()
    assert 0.1 < aside.sum() / whole.sum() < 0.3
    if lines:
        assert (aside.any(1) == aside.all(1)).all()


def test_the_reach_leaves_out_cropped_corners():
    sampling = poisson_disc((64, 64), 4, (16, 16))
    covered = reach(sampling)
    assert covered[sampling].all()
    assert not covered[0, 0]
    assert abs(covered.mean() - np.pi / 4) < 0.06
