r"""Solvers for images from incomplete k-space. Every leading axis is a problem of its own.

All of them minimise :math:`\tfrac12 \|A x - y\|^2` plus a term that says what images look like.
They are given :math:`b = A^H y` and :math:`A^H A`, work on (..., set, H, W) complex images whose
centre is at index 0, and touch no k-space themselves.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from medssl.physics.differences import Differences
from medssl.physics.operator import inner
from medssl.physics.wavelet import Wavelet

Normal = Callable[[Tensor], Tensor]
"""A^H A."""
IMAGE_AXES = 3
"""set, H, W."""


def cg(
    normal: Normal,
    b: Tensor,
    start: Tensor | None = None,
    iterations: int = 30,
    tolerance: float = 1e-6,
) -> Tensor:
    """Conjugate gradients for a positive definite system.

    Args:
        normal: The system.
        b: (..., set, H, W).
        start: First guess; None is 0.
        iterations: At most.
        tolerance: Of the residual, as a share of b; the slowest problem decides.

    Reference: Hestenes, Stiefel. Methods of Conjugate Gradients for Solving Linear Systems. 1952.
    """
    x = torch.zeros_like(b) if start is None else start
    r = b if start is None else b - normal(x)
    p, rr = r, inner(r, r, IMAGE_AXES)
    goal = tolerance**2 * inner(b, b, IMAGE_AXES)
    tiny = torch.finfo(rr.dtype).tiny
    for _ in range(iterations):
        if bool((rr <= goal).all()):
            break
        ap = normal(p)
        alpha = rr / inner(p, ap, IMAGE_AXES).clamp_min(tiny)
        x = x + alpha * p
        r = r - alpha * ap
        before, rr = rr, inner(r, r, IMAGE_AXES)
        p = r + rr / before.clamp_min(tiny) * p
    return x


def power_iteration(normal: Normal, like: Tensor, generator: torch.Generator) -> Tensor:
    """Largest eigenvalue of A^H A for each problem, (..., 1, 1, 1), a few percent on the safe side.

    Args:
        normal: The system.
        like: (..., set, H, W), its type and device.
        generator: Of the first guess, on the CPU.
    """
    x = torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)
    value = inner(x, x, IMAGE_AXES).sqrt()
    for _ in range(30):
        x = normal(x / value)
        value = inner(x, x, IMAGE_AXES).sqrt()
    return 1.05 * value


def fista_l1(
    normal: Normal,
    b: Tensor,
    lambda_: Tensor,
    generator: torch.Generator,
    *,
    start: Tensor | None = None,
    iterations: int = 60,
    levels: int = 4,
) -> Tensor:
    r"""Wavelet-sparse images: lambda ||W x||_1, W shifted at random in each iteration.

    The random shift makes the answer near to that of all shifts at once, at the price of one.
    The low band is not penalised. Pictures whose size has no so many levels are padded with zeros.

    Args:
        normal: A^H A, its norm at most 1.
        b: (..., set, H, W).
        lambda_: Broadcastable to b with single H and W.
        generator: Of the shifts, on the CPU, so that all devices draw the same.
        start: First guess; None is 0.
        iterations: Steps.
        levels: Of the wavelet transform.

    Reference: Beck, Teboulle. A Fast Iterative Shrinkage-Thresholding Algorithm. 2009; Coifman,
    Donoho. Translation-Invariant De-Noising. 1995.
    """
    height, width = b.shape[-2:]
    grid = 2**levels
    padded = (-(-height // grid) * grid, -(-width // grid) * grid)
    wavelet = Wavelet((*b.shape[:-2], *padded), levels, b)
    threshold = torch.as_tensor(lambda_, dtype=b.real.dtype, device=b.device)
    shifts = torch.randint(grid, (iterations, 2), generator=generator).tolist()
    x = torch.zeros_like(b) if start is None else start
    z, t = x, 1.0
    for shift in shifts:
        v = z - normal(z) + b
        v = wavelet.shrink(_widened(v, padded).roll(shift, (-2, -1)), threshold)
        new = _narrowed(v.roll([-s for s in shift], (-2, -1)), (height, width))
        t_new = (1 + (1 + 4 * t * t) ** 0.5) / 2
        z = new + (t - 1) / t_new * (new - x)
        x, t = new, t_new
    return x


def tv_admm(
    normal: Normal,
    b: Tensor,
    lambda_: Tensor,
    *,
    start: Tensor | None = None,
    iterations: int = 40,
    inner_iterations: int = 4,
) -> Tensor:
    r"""Images of small isotropic total variation, by the alternating direction method.

    .. math:: x \leftarrow (A^H A + \rho D^H D)^{-1} (b + \rho D^H (z - u)), \quad
              z \leftarrow \mathrm{shrink}_{\lambda / \rho}(D x + u), \quad
              u \leftarrow u + D x - z ,

    with rho ten times lambda, but no more than the data weigh.

    Args:
        normal: A^H A.
        b: (..., set, H, W).
        lambda_: Broadcastable to b with single H and W.
        start: First guess; None is b.
        iterations: Outer steps.
        inner_iterations: Of the conjugate gradients in each.

    Reference: Boyd et al. Distributed Optimization and Statistical Learning via the Alternating
    Direction Method of Multipliers. 2011, section 6.4.
    """
    thin = torch.as_tensor(lambda_, dtype=b.real.dtype, device=b.device)
    rho = (10 * thin).clamp(1e-3, 1.0)
    d = Differences(b.shape[-3:])
    x = b if start is None else start
    z = d(x)
    u = torch.zeros_like(z)
    reach = (thin / rho)[..., None]  # one axis more, of the two differences
    for _ in range(iterations):
        right = b + rho * d.adjoint(z - u)
        x = cg(lambda v: normal(v) + rho * d.normal(v), right, x, inner_iterations)
        v = d(x) + u
        size = torch.linalg.vector_norm(v, dim=-3, keepdim=True)
        z = v * (1 - reach / size.clamp_min(torch.finfo(size.dtype).tiny)).clamp_min(0)
        u = v - z
    return x


def _widened(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Zeros added at the border, which lies in the middle where the centre is at index 0."""
    for axis, wanted in zip((-2, -1), size, strict=True):
        n = x.shape[axis]
        if n < wanted:
            first, last = x.split([n - n // 2, n // 2], axis)
            gap = x.new_zeros(
                [wanted - n if a - x.ndim == axis else m for a, m in enumerate(x.shape)]
            )
            x = torch.cat([first, gap, last], axis)
    return x


def _narrowed(x: Tensor, size: tuple[int, int]) -> Tensor:
    """The inverse of `_widened`."""
    for axis, wanted in zip((-2, -1), size, strict=True):
        n = x.shape[axis]
        if n > wanted:
            first, _, last = x.split([wanted - wanted // 2, n - wanted, wanted // 2], axis)
            x = torch.cat([first, last], axis)
    return x
