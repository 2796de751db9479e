"""Laws of every linear operator; operators are found in their folder, nobody lists them here."""

import importlib
import inspect
import pkgutil

import pytest
import torch

import medssl.physics
from medssl.core.random import stream
from medssl.physics.operator import Operator, adjoint_error


def discovered():
    """Every operator class below medssl.physics."""
    found = set()
    for module in pkgutil.iter_modules(medssl.physics.__path__):
        made = importlib.import_module(f"medssl.physics.{module.name}")
        for _, kind in inspect.getmembers(made, inspect.isclass):
            if issubclass(kind, Operator) and not inspect.isabstract(kind):
                found.add(kind)
    return sorted(found, key=lambda kind: kind.__name__)


OPERATORS = discovered()


def test_operators_are_found():
    names = {kind.__name__ for kind in OPERATORS}
    assert {"Fourier", "Sense", "SenseNufft", "Wavelet", "Differences", "Mixing"} <= names


@pytest.mark.parametrize("kind", OPERATORS)
@pytest.mark.parametrize(("dtype", "most"), [(torch.complex64, 1e-5), (torch.complex128, 1e-10)])
def test_the_adjoint_is_the_adjoint(kind, dtype, most):
    generator = stream(0, kind.__name__)
    for _ in range(3):
        assert adjoint_error(kind.example(generator, dtype), generator, dtype) < most


@pytest.mark.parametrize("kind", OPERATORS)
def test_leading_axes_are_problems_of_their_own(kind):
    generator = stream(1, kind.__name__)
    operator = kind.example(generator, torch.complex128)
    x = torch.randn((2, 2, *operator.domain), generator=generator, dtype=torch.complex128)
    y = operator(x)
    assert y.shape == (2, 2, *operator.codomain)
    assert torch.allclose(y[1, 0], operator(x[1, 0]))
    assert torch.allclose(operator.adjoint(y)[0, 1], operator.adjoint(y[0, 1]))


@pytest.mark.parametrize("kind", OPERATORS)
def test_the_norm_is_within_its_bound(kind):
    generator = stream(2, kind.__name__)
    operator = kind.example(generator, torch.complex128)
    if operator.bound is None:
        pytest.skip("states no bound")
    x = torch.randn(operator.domain, generator=generator, dtype=torch.complex128)
    for _ in range(30):
        x = operator.normal(x / torch.linalg.vector_norm(x))
    assert float(torch.linalg.vector_norm(x)) <= operator.bound**2 * (1 + 1e-9)


@pytest.mark.parametrize("kind", OPERATORS)
def test_gradients_flow_through_both_directions(kind):
    generator = stream(3, kind.__name__)
    operator = kind.example(generator, torch.complex128)
    x = torch.randn(operator.domain, generator=generator, dtype=torch.complex128)
    x.requires_grad_()
    target = torch.randn(operator.domain, generator=generator, dtype=torch.complex128)
    torch.view_as_real(operator.normal(x) - target).square().sum().backward()
    with torch.no_grad():
        expected = 2 * operator.normal(operator.normal(x) - target)
    assert torch.allclose(x.grad, expected, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", OPERATORS)
def test_the_normal_operator_is_both_directions_in_turn(kind):
    generator = stream(4, kind.__name__)
    operator = kind.example(generator, torch.complex128)
    x = torch.randn(operator.domain, generator=generator, dtype=torch.complex128)
    wanted = operator.adjoint(operator(x))
    gap = (operator.normal(x) - wanted).abs().max() / wanted.abs().max()
    assert float(gap) < (2e-3 if kind.__name__ == "SenseNufft" else 1e-10)  # interpolation
