"""Losses on embeddings."""

import math

import torch
from torch.nn.functional import log_softmax, normalize

from medssl.core.contrast import distillation, nt_xent
from medssl.core.random import stream


def drawn(*shape, name="z"):
    return torch.randn(*shape, generator=stream(0, name), dtype=torch.float64)


def test_nt_xent_is_its_equation():
    z_a, z_b, t = drawn(5, 8, name="a"), drawn(5, 8, name="b"), 0.3
    patient = torch.tensor([7, 3, 7, 9, 4])
    z, who = normalize(torch.cat([z_a, z_b])), patient.repeat(2)
    s = (z @ z.T / t).exp()
    terms = []
    for i in range(10):
        j = (i + 5) % 10
        others = s[i][who != who[i]].sum()
        terms.append(-math.log(s[i, j] / (s[i, j] + others)))
    torch.testing.assert_close(float(nt_xent(z_a, z_b, t, patient)), sum(terms) / 10)


def test_views_of_orthogonal_images_have_the_closed_form():
    z, t = torch.eye(6, dtype=torch.float64), 0.5
    expected = math.log(math.exp(1 / t) + 10) - 1 / t
    torch.testing.assert_close(float(nt_xent(z, 3 * z, t, None)), expected)


def test_images_of_one_patient_are_no_negatives():
    z_a = drawn(4, 8, name="a").requires_grad_()
    z_b = drawn(4, 8, name="b").requires_grad_()
    loss = nt_xent(z_a, z_b, 0.1, torch.zeros(4, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0
    assert z_a.grad.abs().max() == z_b.grad.abs().max() == 0
    # An image of the same patient is no stranger to be told apart.
    pair, strangers = torch.tensor([5, 5, 1]), torch.tensor([5, 6, 1])
    far = nt_xent(z_a[:3], z_b[:3], 0.1, strangers)
    assert nt_xent(z_a[:3], z_b[:3], 0.1, pair) < far


def test_halves_are_seen_in_full_precision():
    z_a, z_b = drawn(6, 8, name="a").float(), drawn(6, 8, name="b").float()
    with torch.autocast("cpu", torch.bfloat16):
        loss = nt_xent(z_a, z_b, 0.1, None)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, nt_xent(z_a, z_b, 0.1, None))
    assert nt_xent(z_a.bfloat16(), z_b.bfloat16(), 0.1, None).dtype == torch.float32


def test_distillation_is_least_where_student_and_teacher_agree():
    teacher = drawn(5, 3).requires_grad_()
    student = teacher.detach().clone().requires_grad_()
    loss = distillation(student, teacher, 2.0)
    loss.backward()
    p = log_softmax(teacher.detach() / 2, 1)
    torch.testing.assert_close(loss.detach(), -(p.exp() * p).sum(1).mean())
    assert student.grad.abs().max() < 1e-12
    assert teacher.grad is None
