"""Losses that tell images apart by their embeddings, over the batches of all ranks."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from medssl.core.precise import full_precision
from medssl.core.ranks import gather, gather_with_grad, rank, world


@full_precision
def nt_xent(z_a: Tensor, z_b: Tensor, temperature: float, patient: Tensor | None) -> Tensor:
    r"""The other view of an image is to be found among those of other patients.

    With cosines s, a temperature T, and j the other view of i,

    .. math:: L = - \overline{\log \frac{e^{s_{ij} / T}}
                  {e^{s_{ij} / T} + \sum_{k: p_k \ne p_i} e^{s_{ik} / T}}} ,

    the mean over both views of the images of this rank, k over those of all ranks. Where there
    is no other patient the loss is 0.

    Args:
        z_a: (B, D) embeddings of the first view.
        z_b: (B, D) those of the second.
        temperature: T.
        patient: (B,) the patient p of each image; None takes each for one of its own.

    Returns:
        A scalar.

    Reference: Chen, Kornblith, Norouzi, Hinton. A Simple Framework for Contrastive Learning of
    Visual Representations. ICML 2020.
    """
    own = torch.cat([normalize(z_a), normalize(z_b)])
    n, n_all, first = len(z_a), len(z_a) * world(), len(z_a) * rank()
    everyone = torch.cat([gather_with_grad(own[:n]), gather_with_grad(own[n:])])
    place = torch.arange(first, first + n, device=own.device)
    who = place if patient is None else patient
    same = who.repeat(2)[:, None] == gather(who).repeat(2)
    partner = torch.cat([place + n_all, place])
    same[torch.arange(2 * n, device=own.device), partner] = False
    scores = own @ everyone.T / temperature
    return cross_entropy(scores.masked_fill(same, -torch.inf), partner)


@full_precision
def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    r"""A student learns what a fine-tuned teacher says of images without labels.

    .. math:: L = - \overline{\sum_y P_T(y) \log P_S(y)} , \qquad P = \mathrm{softmax}(l / T) .

    Args:
        student: (B, classes) logits l of the student.
        teacher: (B, classes) those of the teacher; they get no gradient.
        temperature: T.

    Returns:
        A scalar.

    Reference: Chen et al. Big Self-Supervised Models are Strong Semi-Supervised Learners.
    NeurIPS 2020.
    """
    return cross_entropy(student / temperature, (teacher.detach() / temperature).softmax(-1))
