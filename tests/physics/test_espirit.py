"""Coil maps: those of a library, eigenvalue one in the object, folding seen where there is some."""

import pytest
import torch

from medssl.core.errors import InputError
from medssl.physics.coils import root_sum_of_squares, virtual_coils, whitening
from medssl.physics.espirit import espirit, folded, soften
from medssl.physics.fourier import to_image, to_kspace
from medssl.physics.sampling import central


def calibration(kspace, size=24):
    ys, xs = central(tuple(kspace.shape[-2:]), (size, size))
    return kspace[None, ..., ys, xs]


@pytest.mark.parametrize("shape", [(96, 80), (65, 72)])
def test_maps_are_those_of_the_coils_and_of_the_library(coils, shape):
    from sigpy.mri.app import EspiritCalib

    kspace, image, true = coils(shape, sigma=0.002)
    maps, values = espirit(calibration(kspace), shape, 1)
    inside = image.abs() > 0.2
    along = (maps[0, 0].conj() * true).sum(0).abs()
    assert float(along[inside].quantile(0.05)) > 0.99
    theirs = EspiritCalib(
        kspace.numpy(), calib_width=24, thresh=0.02, crop=0, max_iter=100, show_pbar=False
    ).run()
    agreement = (maps[0, 0].conj() * torch.from_numpy(theirs)).sum(0).abs()
    assert float(agreement[inside].min()) > 0.999
    assert float(values[0, 0][inside].median()) > 0.98
    assert torch.allclose(torch.linalg.vector_norm(maps[0, 0], dim=0), torch.ones(shape))
    assert float(maps[0, 0, 0].imag.abs().max()) < 1e-5
    assert float(maps[0, 0, 0].real.min()) >= -1e-6


def test_a_batch_equals_its_slices(coils):
    one, two = (calibration(coils(seed=s)[0]) for s in (0, 1))
    together, _ = espirit(torch.cat([one, two]), (48, 40))
    alone, _ = espirit(two, (48, 40))
    assert torch.allclose(together[1], alone[0], atol=1e-5)


def test_a_folded_field_of_view_needs_two_sets(coils):
    kspace, _, _ = coils((96, 96), sigma=0.002)
    images = to_image(kspace)
    half = images.shape[-1] // 2
    wrapped = images[..., half // 2 : half // 2 + half].clone()
    wrapped[..., : half // 2] += images[..., -half // 2 :]
    wrapped[..., half // 2 :] += images[..., : half // 2]
    small = to_kspace(wrapped)
    shares = []
    for scan in (kspace, small):
        rss = root_sum_of_squares(scan)
        _, values = espirit(calibration(scan), tuple(scan.shape[-2:]))
        shares.append(folded(values, (rss > 0.1 * rss.max())[None]))
    assert shares[0] < 0.01
    assert shares[1] > 0.1


def test_the_second_set_counts_only_where_it_is_needed():
    maps = torch.ones(1, 2, 3, 1, 3)
    values = torch.tensor([[1.0, 1.0, 1.0], [0.5, 0.8, 0.95]]).reshape(1, 2, 1, 3)
    soft = soften(maps, values)
    assert soft[0, 0].eq(1).all()
    assert torch.allclose(soft[0, 1, 0, 0], torch.tensor([0.0, 0.5, 1.0]))


def test_too_small_a_centre_is_refused(coils):
    with pytest.raises(InputError, match=r"5x24.*6x6"):
        espirit(calibration(coils()[0])[..., :5, :], (96, 80))


def test_virtual_coils_keep_the_energy_and_whitening_makes_noise_white(coils):
    kspace, _, _ = coils(n_coils=12)
    basis, share = virtual_coils(kspace.flatten(1), 6)
    assert share > 0.97
    assert torch.allclose(basis @ basis.mH, torch.eye(6, dtype=basis.dtype), atol=1e-5)
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(4, 4, generator=generator, dtype=torch.complex128)
    noise = mix @ torch.randn(4, 20000, generator=generator, dtype=torch.complex128)
    white = whitening(noise @ noise.mH / 20000) @ noise
    assert torch.allclose(white @ white.mH / 20000 / 2, torch.eye(4, dtype=mix.dtype), atol=1e-6)
