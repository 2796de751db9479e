"""Crops of a store: where they lie, what they are made of, and that chance is named."""

import dataclasses

import numpy as np
import pytest
import torch

from medssl.config import Crops
from medssl.core.batch import Sees
from medssl.core.random import stream
from medssl.data import views
from medssl.data.store import Made, write_store
from medssl.data.views import Cutter, Item, Source, assembled, balanced, items, thick_axis

SLICES = Sees()
CROPS = Crops(size=(16, 16), change=0.0, flip=0.0, foreground=0.0, thin_bits=0)


def ramp(shape, modality=""):
    """A volume whose values say where a voxel lies: x + 100 y + 10000 z."""
    x, y, z = np.indices(shape)
    return (x + 100 * y + 10000 * z).astype(np.float32)[None]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Ramps of two patients, one of them for validation, and a CT."""
    body = np.full((1, 40, 30, 12), -1000, np.int16)
    body[:, 10:30, 5:25] = 40
    return write_store(
        tmp_path_factory.mktemp("stores") / "store",
        [
            Made(image=ramp((40, 32, 20)), key="a", modality="MR", spacing=(1, 2, 3), patient="p"),
            Made(image=ramp((24, 20, 6)), key="b", modality="MR", patient="q", split="val"),
            Made(image=body, key="c", modality="CT", spacing=(0.5, 0.5, 2.0), patient="r"),
        ],
    )


def position(value, volume):
    """Where the value of a normalised ramp lies."""
    raw = round(float(value) * volume.sd + volume.mean)
    return raw % 100, raw // 100 % 100, raw // 10000


def exact(volume):
    """The volume with a normalisation that clips nothing."""
    return dataclasses.replace(volume, percentiles=(-1e9, 0.0, 1e9))


@pytest.fixture
def source(store):
    unclipped = dataclasses.replace(store, volumes=tuple(map(exact, store.volumes)))
    return Source(unclipped, 1 << 26)


def test_slices_of_a_split_lie_in_the_foreground_and_have_indices_of_their_own(store):
    found = items(store, "train", SLICES, CROPS)
    low, high = store.volumes[0].foreground[2]
    assert [i.at for i in found if i.volume == 0] == list(range(low, high))
    assert len({i.index for i in found}) == len(found)
    held = items(store, "val", SLICES, CROPS)
    assert not {i.index for i in found} & {i.index for i in held}
    assert {store.volumes[i.volume].split for i in held} == {"val"}


def test_slices_that_are_like_the_last_one_kept_are_left_out(tmp_path):
    store = write_store(tmp_path / "s", [Made(image=ramp((32, 32, 9)), key="a")])
    some = items(store, "train", SLICES, dataclasses.replace(CROPS, thin_bits=4))
    assert len(some) <= len(items(store, "train", SLICES, CROPS))


def test_a_crop_lies_where_its_box_says(source):
    sees = dataclasses.replace(SLICES, views=2)
    crops = dataclasses.replace(CROPS, flip=0.5)
    volume = source.store.volumes[0]
    for k in range(12):
        (one,) = Cutter(source, sees, 1, crops, 0).sample(Item(7, 0, 7), str(k))
        for view, box in zip(one.views, one.boxes, strict=True):
            for corner in ((0, 0), (0, 15), (15, 0), (15, 15)):
                x, y, z = position(view[(0, *corner)], volume)
                start, extent = box.tolist()
                share = [(c + 0.5) / 16 for c in corner]
                at = [s + e * f for s, e, f in zip(start, extent, share, strict=True)]
                assert z == 7
                assert np.allclose(at, [(x + 0.5) * 1, (y + 0.5) * 2])


def test_a_crop_that_is_larger_than_its_volume_is_padded_and_says_so(source):
    crops = dataclasses.replace(CROPS, size=(32, 32, 16))
    sees = dataclasses.replace(SLICES, axes=3, block=(8, 8, 8), hidden=0.75)
    (one,) = Cutter(source, sees, 1, crops, 0).sample(Item(2, 2), "x")
    assert one.image.shape == (1, 32, 32, 16)
    assert int(one.valid.sum()) == 32 * 30 * 12
    assert one.visible.shape == (1, 4, 4, 2)
    assert int(one.visible.sum()) == 8


def test_ct_has_its_window_and_other_images_their_foreground(store):
    crops = dataclasses.replace(CROPS, window=(-160.0, 240.0))
    ct = views.normalised(store.read(2), store.volumes[2], crops)
    assert ct.unique().tolist() == pytest.approx([-1.0, 0.0])
    volume = store.volumes[0]
    raw = torch.from_numpy(store.read(0))
    mr = views.normalised(store.read(0), volume, crops)[raw >= volume.percentiles[0]]
    assert abs(float(mr.mean())) < 0.1
    assert abs(float(mr.std()) - 1) < 0.1


def test_whole_slices_are_reduced_by_means(source):
    crops = dataclasses.replace(CROPS, whole=True)
    (one,) = Cutter(source, SLICES, 1, crops, 0).sample(Item(3, 0, 3), "x")
    sides = [high - low for low, high in source.store.volumes[0].foreground[:2]]
    assert one.valid.all()
    assert float(one.image[0, -1, 0] - one.image[0, 0, 0]) == pytest.approx(
        (sides[0] - sides[0] / 16) / source.store.volumes[0].sd, rel=0.1
    )


def test_a_stack_knows_where_its_slices_lie_and_never_mixes_them(source):
    sees = dataclasses.replace(SLICES, axes=3, stack=True, views=2)
    crops = dataclasses.replace(CROPS, size=(16, 16, 8), scale=(0.5, 1.0), flip=0.5)
    volume = source.store.volumes[0]
    for k in range(6):
        (one,) = Cutter(source, sees, 1, crops, 0).sample(Item(0, 0), str(k))
        assert one.slice_mm.diff().tolist() == [3.0] * 7
        for view in (one.image, *one.views):
            for z in range(8):
                mean = float(view[0, :, :, z].mean()) * volume.sd + volume.mean
                assert int(mean) // 10000 == round(float(one.slice_mm[z]) / 3)


def test_neighbouring_slices_follow_each_other(source):
    sees = dataclasses.replace(SLICES, neighbours=4)
    found = items(source.store, "train", sees, CROPS)
    samples = Cutter(source, sees, 1, CROPS, 0).sample(found[0], "x")
    assert len(samples) == 4
    assert [s.index for s in samples] == list(range(samples[0].index, samples[0].index + 4))


def test_chance_is_named_and_everything_fits_into_a_batch(source):
    sees = dataclasses.replace(SLICES, views=2, small=3, block=(4, 4), hidden=0.5)
    crops = dataclasses.replace(
        CROPS, small_size=(8, 8), scale=(0.3, 1.0), change=1.0, rotate=10.0, flip=0.5
    )
    cutter = Cutter(source, sees, 3, crops, 5)
    state = torch.get_rng_state()
    once, again = ([cutter.sample(Item(k, 0, k), f"{k}")[0] for k in range(3)] for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    batch = assembled(once, stream(0, "x"), 0.5, torch.device("cpu"))
    other = assembled(again, stream(0, "x"), 0.5, torch.device("cpu"))
    assert batch.image.shape == batch.view_a.shape == (3, 3, 16, 16)
    assert [s.shape for s in batch.small] == [(3, 3, 8, 8)] * 3
    assert batch.boxes.shape == (5, 3, 2, 2)
    assert torch.equal(batch.view_b, other.view_b)
    assert not torch.equal(batch.view_a, batch.view_b)
    assert torch.isfinite(batch.view_a).all()
    assert batch.patient.unique().numel() == 1


def test_pictures_and_thick_slices_have_their_axis(store):
    volume = store.volumes[0]
    assert thick_axis(volume) == 2
    assert thick_axis(dataclasses.replace(volume, spacing=(5.0, 1.0, 1.0))) == 0
    assert thick_axis(dataclasses.replace(volume, spacing=(1.0, 1.0, 1.0))) == 2
    assert thick_axis(dataclasses.replace(volume, shape=(3, 64, 48, 1))) == 2


def test_rare_modalities_come_more_often(store):
    sees = dataclasses.replace(SLICES, axes=3)
    found = items(store, "train", sees, dataclasses.replace(CROPS, size=(8, 8, 8)))
    assert len(balanced(found, store)) == 2


def test_a_change_keeps_its_kind():
    view = torch.rand(1, 24, 24, generator=stream(0, "view"))
    assert torch.equal(views.changed(view, 0.0, False, stream(0, "c")), view)
    some = [views.changed(view, 1.0, False, stream(k, "c")) for k in range(20)]
    assert all(torch.isfinite(v).all() for v in some)
    correlations = [np.corrcoef(v.flatten(), view.flatten())[0, 1] for v in some]
    assert min(correlations) > 0.3
    flat = torch.full((1, 9, 9), 2.0)
    assert torch.allclose(views.blurred(flat, 2.0), flat)
