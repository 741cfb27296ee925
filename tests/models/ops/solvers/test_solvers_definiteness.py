"""Negative decays may leave H + Lambda indefinite: solvers stay finite, the exact one is exact, and the trace tells."""

from __future__ import annotations

import pytest
import torch

from tests.models.ops.mesa.mesa_forms import B, H, K, Tensors, built, chunked, decoded, draw, recurrent, trace, with_gradients
from tests.thinned import pairwise

ITERATIVE = ("cg", "preconditioned_cg", "chebyshev")


def draw_indefinite(length: int = 19) -> Tensors:
    inputs = draw(length)
    drawn = torch.rand(inputs["beta"].shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return {**inputs, "sign": torch.where(drawn < 0.3, -1.0, 1.0).double(), "H": 10.0 * inputs["H"]}


def test_the_trace_tells() -> None:
    """And agrees with H + Lambda itself; without signs it never has to."""
    inputs = draw_indefinite()
    traced = trace(inputs, built("cg", 30), spectrum=True)
    assert (traced.smallest <= 0.0).any() and (traced.smallest > 0.0).any()
    _, _, state = chunked(inputs)
    eigenvalues = torch.linalg.eigvalsh(state + torch.diag_embed(inputs["regularizer"]))
    torch.testing.assert_close(traced.smallest[:, -1], eigenvalues[..., 0])
    torch.testing.assert_close(traced.largest[:, -1], eigenvalues[..., -1])
    assert (trace(draw(19), built("cg", 30), spectrum=True).smallest > 0.0).all()


# Far beyond the 6 that a system of K = 6 takes.
STEPS = 48


@pairwise(name=ITERATIVE, tolerance=[0.0, 1e-10, 1e-4], initial=["zero", "diagonal", "query", "previous_token"])
def test_everything_stays_finite(name: str, tolerance: float, initial: str) -> None:
    for dtype in (torch.float32, torch.float64):
        inputs = {key: x.to(dtype) for key, x in draw_indefinite(11).items()}
        # Token by token a short way is enough, at half of whose tokens definiteness is lost.
        few = {key: x.to(dtype) for key, x in draw_indefinite(5).items()}
        for form, drawn in ((chunked, inputs), (decoded, few)):
            for gradient in ("implicit", "unrolled"):
                solver = built(name, STEPS, tolerance, initial=initial, gradient=gradient)

                def solved(tensors: Tensors) -> list[torch.Tensor]:
                    return form(tensors, solver)  # noqa: B023

                outputs, into_inputs = with_gradients(solved, drawn)
                assert all(x.isfinite().all() for x in (*outputs, *into_inputs))
        assert trace(inputs, built(name, STEPS, tolerance, initial=initial)).residual.isfinite().all()


@pytest.mark.parametrize("name", ["cg", "preconditioned_cg"])
def test_a_token_stops_where_a_direction_has_no_minimum(name: str) -> None:
    inputs = draw(1)
    inputs |= {"H": -5.0 * torch.eye(K, dtype=torch.float64).expand(B, H, K, K), "beta": 0.0 * inputs["beta"]}
    inputs |= {"log_decay": 0.0 * inputs["log_decay"]}
    assert (trace(inputs, built(name, 30, initial="zero")).steps == 0).all()
    assert (chunked(inputs, built(name, 30, initial="zero"))[0] == 0.0).all()


@pytest.mark.parametrize("name", ITERATIVE)
def test_definite_tokens_are_solved_beside_indefinite_ones(name: str) -> None:
    inputs = draw_indefinite()
    solver = built(name, 3000, 1e-12)
    definite = trace(inputs, solver, spectrum=True).smallest > 1e-3
    torch.testing.assert_close(chunked(inputs, solver)[0][definite], recurrent(inputs)[0][definite], rtol=1e-6, atol=1e-6)


def test_the_exact_solver_is_exact_on_both_sides() -> None:
    inputs = draw_indefinite()
    for form in (chunked, decoded):
        for actual, expected in zip(form(inputs, built("cholesky", 0)), recurrent(inputs), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_a_singular_matrix_has_a_solution_of_zero() -> None:
    inputs = draw(1)
    eye = torch.eye(K, dtype=torch.float64)
    inputs |= {"H": -eye.expand(B, H, K, K), "beta": 0.0 * inputs["beta"], "log_decay": 0.0 * inputs["log_decay"]}
    inputs |= {"regularizer": torch.ones(H, K, dtype=torch.float64)}
    assert (chunked(inputs, built("cholesky", 0))[0] == 0.0).all()
