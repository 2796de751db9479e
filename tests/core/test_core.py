"""Geometry, errors, tiles, random streams, size words."""

import numpy as np
import pytest
import torch

from medssl.core.errors import InputError, MedsslError, OutputError, naming
from medssl.core.geometry import Geometry
from medssl.core.image import Image
from medssl.core.kspace import KSpace
from medssl.core.random import stream
from medssl.core.shapes import tile_size, tiles
from medssl.engine.device import n_bytes


def test_geometry_knows_spacing_orientation_and_shear():
    affine = np.array([[0, 0, -3, 1], [-0.5, 0, 0, 2], [0, -0.7, 0, 3], [0, 0, 0, 1.0]])
    grid = Geometry((4, 5, 6), affine)
    assert grid.spacing == (0.5, 0.7, 3.0)
    assert grid.orientation == "PIL"
    assert grid.shear == 0
    tilted = affine.copy()
    tilted[1, 2] = 3 * np.tan(np.radians(14))
    assert Geometry((4, 5, 6), tilted).shear == pytest.approx(14)
    assert np.allclose(grid.world((1, 2, 3)), affine[:3, :3] @ (1, 2, 3) + affine[:3, 3])


def test_geometry_compares_grids_at_their_corners():
    a = Geometry.from_spacing((11, 11, 11), (1, 1, 1))
    turned = a.affine.copy()
    turned[0, 1] = 0.01
    b = Geometry((11, 11, 11), turned)
    assert b.distance(a) == pytest.approx(0.1)
    assert not a.same_grid(b)
    assert a.same_grid(b, tolerance=0.2)


@pytest.mark.parametrize("affine", [np.zeros((4, 4)), np.full((4, 4), np.nan), np.eye(3)])
def test_a_singular_affine_is_refused(affine):
    with pytest.raises(InputError):
        Geometry((2, 2, 2), affine)


def test_image_and_kspace_refuse_shapes_that_disagree():
    grid = Geometry.from_spacing((3, 3), (1, 1))
    with pytest.raises(InputError, match="does not lie on a grid"):
        Image(np.zeros((1, 3, 4), np.float32), grid)
    ones = np.ones((3, 1), bool)
    with pytest.raises(InputError, match="must be complex"):
        KSpace(np.zeros((2, 3, 3), np.float32), grid, ones)
    with pytest.raises(InputError, match="nothing was sampled"):
        KSpace(np.zeros((2, 3, 3), np.complex64), grid, ~ones)
    scan = KSpace(np.zeros((2, 3, 3), np.complex64), grid, np.array([[True, False, False]]))
    assert (scan.n_coils, scan.acceleration) == (2, 3)


def test_an_error_is_one_short_line_with_fact_and_remedy():
    error = InputError("bad\nthing \x1b[31m" + "x" * 400, "do this", file="/a/b/secret.nii")
    line = str(error)
    assert line.startswith("secret.nii: bad thing")
    assert line.endswith("; do this")
    assert len(line) <= 200
    assert line.isprintable()
    assert error.as_dict()["code"] == 3


def test_naming_adds_the_file_once():
    with pytest.raises(OutputError) as caught, naming("/x/outer.nii"), naming("/x/inner.nii"):
        raise OutputError("full")
    assert caught.value.file == "inner.nii"


def test_exit_codes_are_all_different():
    codes = [kind.code for kind in MedsslError.__subclasses__()]
    assert sorted(codes) == [2, 3, 4, 5, 6, 7, 130, 143]


@pytest.mark.parametrize(("shape", "size"), [((20, 9, 13), (8, 9, 5)), ((17, 4), (8, 8))])
def test_tiles_cover_a_grid_once(shape, size):
    seen = np.zeros(shape, int)
    halo = tuple(3 for _ in shape)
    for tile in tiles(shape, size, halo):
        seen[tile.core] += 1
        assert np.zeros(shape)[tile.read][tile.inner].shape == np.zeros(shape)[tile.core].shape
    assert (seen == 1).all()


def test_a_tile_stays_below_its_bound_and_aligns_windows():
    shape, halo = (512, 512, 200), (14, 14, 6)
    size = tile_size(shape, halo, 7_000_000)
    held = np.prod([min(s + 2 * h, n) for s, h, n in zip(size, halo, shape, strict=True)])
    assert held <= 7_000_000
    assert all(s % 8 == 0 or s == n for s, n in zip(size, shape, strict=True))
    assert tile_size((40, 40, 20), halo, 7_000_000) == (40, 40, 20)
    assert tile_size(shape, halo, 10) == (8, 8, 8)


def test_streams_are_named_and_independent_of_order():
    first = torch.rand(3, generator=stream(1, "a"))
    torch.rand(3, generator=stream(1, "b"))
    assert torch.equal(first, torch.rand(3, generator=stream(1, "a")))
    assert not torch.equal(first, torch.rand(3, generator=stream(2, "a")))


@pytest.mark.parametrize(
    ("text", "bytes_"), [("4GB", 4 * 10**9), ("512MiB", 2**29), ("1e9", 10**9)]
)
def test_sizes(text, bytes_):
    assert n_bytes(text) == bytes_


@pytest.mark.parametrize(("text", "code"), [("4 elephants", 2), ("1B", 5), ("-3GB", 5)])
def test_sizes_that_cannot_be_right(text, code):
    with pytest.raises(MedsslError) as caught:
        n_bytes(text)
    assert caught.value.code == code
