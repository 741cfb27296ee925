"""The gradient of the solution and that of the steps: each is right where it should be, and how far they are apart."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from models.ops.solvers import Solver
from tests.models.ops.mesa.mesa_forms import NAMES, VARIANTS, Tensors, built, chunked, decoded, draw, gradients, recurrent
from tests.thinned import pairwise

ITERATIVE = ("cg", "preconditioned_cg", "chebyshev")
INITIAL = ("zero", "diagonal", "query", "previous_token")


def assert_differentiates(inputs: Tensors, solver: Solver) -> None:
    """Against finite differences of the steps that are taken; G and H are as many as they are."""
    leaves = [inputs[name].clone().requires_grad_() for name in NAMES]

    def outputs(*xs: Tensor) -> tuple[Tensor, ...]:
        drawn = {**inputs, **dict(zip(NAMES, xs, strict=True))}
        return tuple(chunked({**drawn, "H": drawn["H"] @ drawn["H"].mT}, solver))

    assert torch.autograd.gradcheck(outputs, leaves, fast_mode=True, atol=1e-6)


def draw_one(length: int) -> Tensors:
    return {name: x if name == "regularizer" else x[:1] for name, x in draw(length).items()}


@pairwise(name=ITERATIVE, max_steps=[0, 1, 3], initial=INITIAL)
def test_unrolled_is_the_gradient_of_the_steps(name: str, max_steps: int, initial: str) -> None:
    assert_differentiates(draw_one(9), built(name, max_steps, initial=initial, gradient="unrolled"))


@pytest.mark.parametrize("name", ITERATIVE)
def test_unrolled_ends_where_the_tolerance_stopped_each_token(name: str) -> None:
    assert_differentiates(draw_one(9), built(name, 30, 0.05, gradient="unrolled"))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ITERATIVE)
def test_both_agree_where_the_steps_lead_to_the_solution(name: str, variant: str) -> None:
    inputs = VARIANTS[variant](draw(19))
    solved = built("chebyshev", 300, 1e-13, gradient="unrolled") if name == "chebyshev" else built(name, 60, gradient="unrolled")
    for form in (chunked, decoded):
        for actual, expected in zip(gradients(partial(form, solver=solved), inputs), gradients(recurrent, inputs), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", ITERATIVE)
def test_the_way_the_gradient_is_taken_does_not_change_what_is_computed(name: str) -> None:
    leaves = {key: x.requires_grad_() for key, x in draw(19).items()}
    implicit, unrolled = (chunked(leaves, built(name, 3, gradient=gradient)) for gradient in ("implicit", "unrolled"))
    for actual, expected in zip(unrolled, implicit, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_the_implicit_gradient_is_biased_where_steps_are_too_few() -> None:
    """At two steps it is off by some per cent of the steps' own gradient, at four by half of that at most, solved by nothing."""
    inputs, biases = draw(19), []
    for max_steps in (2, 4, 60):
        implicit, unrolled = (
            gradients(partial(chunked, solver=built("cg", max_steps, gradient=gradient)), inputs)
            for gradient in ("implicit", "unrolled")
        )
        into_q, into_k = ((a - b).norm() / b.norm() for a, b in zip(implicit[:2], unrolled[:2], strict=True))
        biases.append((into_q.item(), into_k.item()))
    assert all(0.02 < bias < 0.5 for bias in biases[0])
    assert all(later < 0.5 * earlier for earlier, later in zip(biases[0], biases[1], strict=True))
    assert max(biases[2]) < 1e-10
