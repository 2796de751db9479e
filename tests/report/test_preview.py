"""The picture: small, the same twice, readable for any shape."""

import io

import numpy as np
import PIL.Image
import pytest

from medssl.io.memory import from_array
from medssl.report.preview import LARGEST, preview


def draw(shape, affine=None):
    rng = np.random.default_rng(0)
    image = from_array(rng.normal(100, 10, shape).astype(np.float32), affine)
    flat = np.full_like(image.data, 100)
    return preview(image, flat, lambda part: np.full(image.data[0][part].shape, 10, "f"), ("one",))


@pytest.mark.parametrize(
    "shape",
    [(60, 50, 40), (60, 50), (60, 50, 1), (1, 60, 50), (2, 2, 2), (90, 80, 3), (9, 8, 7, 4)],
)
def test_any_shape_gives_a_small_picture(shape):
    content = draw(shape)
    assert len(content) <= LARGEST
    picture = PIL.Image.open(io.BytesIO(content))
    assert min(picture.size) > 100
    assert picture.info == {}
    assert np.asarray(picture.convert("L")).std() > 10


def test_the_same_bytes_twice():
    assert draw((30, 30, 20)) == draw((30, 30, 20))


def test_the_patients_right_is_on_the_left():
    """A bright block at the patient's right and front must be drawn at the left and top."""
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    voxels = np.zeros((40, 40, 40), np.float32)
    voxels[30:36, 30:36, 10:30] = 100
    image = from_array(voxels, affine)
    zeros = np.zeros_like(image.data)
    content = preview(image, zeros, lambda part: zeros[0][part] + 1, ())
    pixels = np.asarray(PIL.Image.open(io.BytesIO(content)).convert("L")).astype(float)
    rows, columns = pixels.shape
    first = pixels[: rows // 4, int(0.03 * columns) : columns // 4]
    bright = np.argwhere(first > 200)
    bright = bright[(bright[:, 0] > 0.2 * len(first))]
    assert np.median(bright[:, 1]) < first.shape[1] / 2
