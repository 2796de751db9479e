import pytest
import torch

from medssl.physics.phantom import abdomen, head


@pytest.mark.parametrize("shape", [(96, 96, 12), (61, 48, 3), (64, 64)])
def test_abdomen(shape):
    image = abdomen(shape, (4.0, 4.0, 3.0))
    assert image.shape == shape
    assert image.dtype == torch.float32
    assert torch.equal(image, abdomen(shape, (4.0, 4.0, 3.0)))
    assert image.min() == -1000
    assert 300 < image.max() < 700
    body = image > -200
    assert 0.2 < body.float().mean() < 0.7
    soft = (image > 20) & (image < 200)
    assert soft.float().mean() > 0.1


def test_organs_change_slowly_from_slice_to_slice():
    image = abdomen((96, 96, 20), (4.0, 4.0, 3.0))
    step = (image[..., 1:] - image[..., :-1]).abs().mean()
    assert 0.1 < step < 0.2 * (image - image.mean()).abs().mean()


@pytest.mark.parametrize("shape", [(48, 48, 48), (33, 40, 21), (64, 64), (64, 64, 4)])
def test_head(shape):
    image = head(shape)
    assert image.shape == shape
    assert torch.equal(image, head(shape))
    assert image.min() == 0
    assert 0.8 < image.max() <= 1
    assert image[0, 0].max() < 1e-3
    histogram = torch.histc(image, 20, 0.02, 1)
    assert (histogram > 0.005 * image.numel()).sum() >= 5
