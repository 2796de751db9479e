"""Pictures and arrays come back as they were, in their own kind."""

import numpy as np
import PIL.Image
import pytest
import tifffile

from medssl.core.errors import InputError, UsageError
from medssl.io import picture
from medssl.io.write import write

GREY = np.arange(5 * 7, dtype=np.uint8).reshape(5, 7)
FILES = {
    "grey.png": GREY,
    "deep.png": GREY.astype(np.uint16) * 900,
    "colour.png": np.dstack([GREY, GREY + 1, GREY + 2]),
    "clear.png": np.dstack([GREY, GREY, GREY, 255 - GREY]),
    "grey.tif": GREY.astype(np.int16) - 9,
    "pages.tif": np.stack([GREY, GREY + 3]).astype(np.float32),
    "plane.npy": GREY.astype(np.float64) / 7,
    "volume.npy": np.stack([GREY, GREY]).astype(np.int16),
}


def save(path, array):
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".tif":
        tifffile.imwrite(path, array)
    else:
        PIL.Image.fromarray(array).save(path)
    return path


def load(path):
    if path.suffix == ".npy":
        return np.load(path)
    return tifffile.imread(path) if path.suffix == ".tif" else np.asarray(PIL.Image.open(path))


@pytest.mark.parametrize("name", FILES)
def test_round_trip(tmp_path, name):
    image = picture.read(save(tmp_path / name, FILES[name]))
    out = tmp_path / f"out_{name}"
    write(out, image)
    assert load(out).dtype == FILES[name].dtype
    assert np.array_equal(load(out), FILES[name])


def test_axes_are_column_row_page(tmp_path):
    image = picture.read(save(tmp_path / "pages.tif", FILES["pages.tif"]))
    assert image.shape == (7, 5, 2)
    assert image.data[0, 3, 1, 1] == FILES["pages.tif"][1, 1, 3]
    assert picture.read(save(tmp_path / "colour.png", FILES["colour.png"])).data.shape == (3, 7, 5)


def test_jpeg_in_and_out(tmp_path):
    PIL.Image.fromarray(GREY).save(tmp_path / "a.jpg")
    image = picture.read(tmp_path / "a.jpg")
    write(tmp_path / "b.jpg", image)
    assert np.abs(load(tmp_path / "b.jpg").astype(int) - GREY).max() < 12


def test_an_object_array_is_refused_without_running_it(tmp_path):
    np.save(tmp_path / "a.npy", np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="not real numbers"):
        picture.read(tmp_path / "a.npy")


@pytest.mark.parametrize("name", ["grey.png", "grey.tif", "plane.npy"])
def test_cut_files_are_refused(tmp_path, name):
    path = save(tmp_path / name, FILES[name])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError):
        picture.read(path)


def test_palette_and_animation_are_refused(tmp_path):
    PIL.Image.fromarray(GREY).convert("P").save(tmp_path / "p.png")
    frames = [PIL.Image.fromarray(GREY + k) for k in range(2)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    for name in ("p.png", "a.png"):
        with pytest.raises(InputError):
            picture.read(tmp_path / name)


def test_a_png_cannot_hold_a_volume(tmp_path):
    image = picture.read(save(tmp_path / "pages.tif", FILES["pages.tif"]))
    with pytest.raises(UsageError, match="PNG cannot hold"):
        write(tmp_path / "a.png", image)
