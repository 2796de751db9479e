"""Noise of receivers: covariances that are known come back."""

import torch

from medssl.physics.fourier import to_image, to_kspace
from medssl.physics.kspace_noise import from_edge, from_noise_scan
from medssl.physics.sampling import radius


def mixing(n, generator):
    return torch.eye(n, dtype=torch.complex128) + 0.3 * torch.randn(
        n, n, generator=generator, dtype=torch.complex128
    )


def test_a_noise_scan_gives_the_covariance():
    generator = torch.Generator().manual_seed(0)
    mix = mixing(6, generator)
    noise = mix @ torch.randn(6, 50000, generator=generator, dtype=torch.complex128)
    found = from_noise_scan(noise.to(torch.complex64))
    wanted = mix @ mix.mH
    assert float((found.covariance - wanted).abs().max()) < 0.05 * float(wanted.abs().max())
    assert not found.shrunk
    assert found.source == "noise scan"


def test_few_samples_are_believed_only_on_the_diagonal():
    noise = torch.randn(8, 40, generator=torch.Generator().manual_seed(0), dtype=torch.complex64)
    found = from_noise_scan(noise)
    assert found.shrunk
    assert torch.equal(found.covariance, torch.diag(found.covariance.diagonal()))


def test_the_edge_of_kspace_gives_the_noise_of_a_scan(coils):
    generator = torch.Generator().manual_seed(1)
    kspace, _, _ = coils((128, 128), n_coils=6)
    mix = 0.01 * mixing(6, generator)
    noise = torch.randn(6, 128 * 128, generator=generator, dtype=torch.complex128)
    noisy = kspace.flatten(1).to(torch.complex128) + mix @ noise
    found = from_edge(noisy, torch.from_numpy(radius((128, 128))).flatten())
    wanted = (mix @ mix.mH).diagonal().real / 2
    assert torch.allclose(found.sigma.square(), wanted, rtol=0.2)


def test_a_receiver_that_rolls_off_is_not_underestimated(coils):
    """The background of the image says too little, the edge of k-space does not."""
    generator = torch.Generator().manual_seed(2)
    kspace, _, _ = coils((128, 128), n_coils=4)
    roll = torch.hann_window(128, periodic=False).sqrt() * 0.8 + 0.2
    noise = 0.01 * torch.randn(4, 128, 128, generator=generator, dtype=torch.complex128)
    coloured = to_kspace(to_image(noise) * roll)
    level = float(coloured.abs().square().mean().sqrt() / 2**0.5)
    found = from_edge(
        (kspace + coloured).flatten(1), torch.from_numpy(radius((128, 128))).flatten()
    )
    assert abs(float(found.sigma.mean()) / level - 1) < 0.1
