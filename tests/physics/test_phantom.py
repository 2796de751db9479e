import pytest
import torch

from medssl.physics.phantom import abdomen, activation, diffusion, head, sphere


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


def test_directions_are_spread_over_half_a_sphere():
    g = sphere(60)
    assert torch.allclose(g.norm(dim=1), torch.ones(60), atol=1e-6)
    moments = g.T @ g / 60
    assert torch.allclose(moments, torch.eye(3) / 3, atol=0.01)


def test_diffusion_decays_along_fibres_and_fluid_decays_most():
    b_values = torch.tensor([0.0, 1000.0, 2000.0])
    series = diffusion((24, 28, 12), b_values, torch.eye(3)[[0, 0, 0]])
    brain = series[0] > 0.3
    assert series.shape == (3, 24, 28, 12)
    assert bool((series[1] < series[0])[brain].all())
    assert bool((series[2] < series[1])[brain].all())
    assert bool((series[:, 0, 0, 0] == 0).all())
    ratio = (series[1] / series[0])[brain]
    assert float(ratio.min()) < 0.2 < 0.65 < float(ratio.max())


def test_a_task_changes_its_regions_by_what_was_asked():
    series, region, course = activation((32, 36, 12), 32, change=0.03)
    assert series.shape == (32, 32, 36, 12)
    assert region.shape == (3, 32, 36, 12)
    assert float(course.min()) == 0
    assert float(course.max()) == 1
    still = activation((32, 36, 12), 32, change=0.0)[0]
    inside = (region[0] > 0.5) & (still[0] > 0.1)
    swing = (series / still - 1)[:, inside]
    assert float(swing.max()) == pytest.approx(0.03, abs=0.01)  # the head drifts, too
