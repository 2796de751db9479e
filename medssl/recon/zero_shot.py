r"""Zero-shot: a net learns from the one scan that it reconstructs, starting as compressed sensing.

With the measured points :math:`\Omega` parted at random into :math:`\Theta` and :math:`\Lambda`,
the model A of coils and sampling, and the image that few wavelets describe,

.. math:: x_\Theta = \arg\min_x \tfrac12 \|A_\Theta x - y\|^2 + \lambda \|W x\|_1 ,

a net f that is unrolled from :math:`x_\Theta` is asked about :math:`\Lambda`, and is not to mind
complex normal noise n:

.. math:: L = \Big( \overline{|F S f(\Theta y) - y|^2}_\Lambda \Big)^{1/2}
              + \lambda_c \overline{|f(\Theta (y + n)) - \mathrm{sg}\, f(\Theta y)|} .

The last convolutions and the steps towards the data start at 0, so that f is :math:`x_\Theta`
before it has learnt anything. What it learns on :math:`\Theta` is applied to :math:`\Omega`, and
the result is :math:`(x_\Omega + f(\Omega y)) / 2`: two images whose errors are about as large but
not the same have a mean with a smaller one.

Departs from the paper: the first image, made of :math:`\Theta` alone; a small :math:`\Lambda`,
because a net that learns to mend a scan without a large one mends too much of the whole; one norm
instead of two; the consistency of Noise2Recon, its noise on what the stages see of the data (that
of the first image is not theirs to answer for).
Needs: sampling whose aliasing looks like noise, on a grid; coil maps.
Reference: Yaman, Hosseini, Akcakaya. Zero-Shot Self-Supervised Learning for MRI Reconstruction.
ICLR 2022.
"""

import dataclasses
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from medssl.core.batch import Acquired
from medssl.core.errors import UsageError
from medssl.method import OneScan, Reconstructor
from medssl.nets import chain, unrolled
from medssl.physics.acquisition import few_wavelets, parted, unexplained, with_noise


@dataclass(frozen=True, kw_only=True)
class Config:
    """Hyper-parameters, under the paper's letters."""

    lambda_: float | None = None
    """Weight of the wavelets of the first image where images are about 1; null is chosen."""
    iterations: int = 60
    """Of the first image."""
    levels: int = 4
    """Of the wavelet transform."""
    rho: float = 0.05
    """Share of the measured points in Lambda; the paper has 0.4."""
    partings: int = 48
    """K, how many Theta are drawn of each slice; the paper has 25."""
    lambda_c: float = 0.1
    """Weight of the consistency."""
    noise: float = 2.0
    """Most noise that is added, in units of that of the scan."""
    share: float = 0.5
    """Of f in the result, the rest is that of the first image."""
    max_minutes: float = 10.0
    """After which the fit ends with the best net that it has."""
    seed: int = 0
    """Of the shifts of the first image."""
    net: unrolled.Config = field(
        default_factory=lambda: unrolled.Config(
            stages=2,
            denoiser=chain.Config(depth=4, width=32, zero_last=True),
            data="gradient",
            step=0.0,
            told=False,
        )
    )
    """f; the paper has 10 stages of 15 residual blocks."""

    def build(self) -> "ZeroShot":
        """The method, untrained.

        Raises:
            UsageError: Numbers that are none.
        """
        if not 0 < self.rho < 1:
            raise UsageError(f"rho is {self.rho:g}", "give a share between 0 and 1")
        if self.partings < 1:
            raise UsageError(f"partings is {self.partings}", "give 1 or more")
        return ZeroShot(self, self.net.build())


class ZeroShot(Reconstructor):
    """A net f that learns from the scan it reconstructs."""

    def __init__(self, config: Config, f: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.f = f

    @property
    def one_scan(self) -> OneScan:
        """How it learns."""
        c = self.config
        return OneScan(rho=c.rho, partings=c.partings, max_minutes=c.max_minutes)

    def first(self, batch: Acquired) -> Tensor:
        """Compressed sensing of what may be seen."""
        c = self.config
        return few_wavelets(
            _seen(batch), c.lambda_ or 0.0, seed=c.seed, iterations=c.iterations, levels=c.levels
        )

    def loss(self, batch: Acquired) -> dict[str, Tensor]:
        """The two terms of L."""
        c, theta, aside = self.config, _seen(batch), batch.aside
        if aside is None:
            theta, aside = parted(batch, c.rho, "uniform", (8, 8))
        with torch.no_grad():
            start = self.first(theta) if theta.start is None else theta.start
        theta = dataclasses.replace(theta, start=start)
        image = self.f(theta)
        missed = torch.view_as_real(unexplained(batch, image, aside))
        again = self.f(with_noise(theta, (0.0, c.noise * float(theta.level.mean()))))
        count = aside.sum() * batch.kspace.shape[-3]
        return {
            "aside": (missed.square().sum() / count).sqrt(),
            "consistency": c.lambda_c * (again - image.detach()).abs().mean(),
        }

    def restore(self, batch: Acquired) -> Tensor:
        """Images (..., set, H, W)."""
        start = self.first(batch) if batch.start is None else batch.start
        learnt = self.f(dataclasses.replace(_seen(batch), start=start))
        return start + self.config.share * (learnt - start)


def _seen(batch: Acquired) -> Acquired:
    """Without the samples that are kept aside, whatever they hold."""
    if batch.aside is None:
        return batch
    seen = torch.where(batch.sampling > 0, batch.kspace, 0)
    return dataclasses.replace(batch, kspace=seen)
