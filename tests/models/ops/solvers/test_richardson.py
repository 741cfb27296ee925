"""Richardson iteration: what its steps are, whose step size is whose, where it stops, and what a step costs."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from models.ops import mesa
from models.ops.mesa.operators import TokenOperator
from models.ops.solvers import Cholesky, Solver, iteration
from models.ops.solvers.richardson import Richardson
from tests.models.ops.mesa.mesa_forms import NAMES, B, H, K, Tensors, built, chunked, decoded, draw, run, trace, worst_error
from tests.thinned import in_turn

INITIAL = ("zero", "diagonal", "query", "previous_token")
SAFE = torch.tensor([0.1, 0.2], dtype=torch.float64)
"""A step size a head, below 2 / (the largest eigenvalue) of what `draw` draws."""


def richardson(max_steps: int, tolerance: float = 0.0, *, initial: str = "diagonal", step_size: Tensor = SAFE) -> Richardson:
    solver = built("richardson", max_steps, tolerance, initial=initial, gradient="unrolled")
    assert isinstance(solver, Richardson)
    return replace(solver, step_size=step_size.repeat(B))


def written_out(inputs: Tensors, max_steps: int, initial: str) -> list[Tensor]:
    """The read-outs and final states, a token and a head at a time."""
    G, memory, before = inputs["G"].clone(), inputs["H"].clone(), torch.zeros(B, H, K, dtype=torch.float64)
    o = torch.zeros_like(inputs["v"])
    for b in range(B):
        for t in range(inputs["q"].shape[1]):
            for h in range(H):
                q, k, v = (inputs[name][b, t, h] for name in ("q", "k", "v"))
                gamma, beta = inputs["log_decay"][b, t, h].exp(), inputs["beta"][b, t, h]
                G[b, h] = gamma * G[b, h] + beta * torch.outer(v, k)
                memory[b, h] = gamma * memory[b, h] + beta * torch.outer(k, k)
                A = memory[b, h] + torch.diag(inputs["regularizer"][h])
                last = before[b, h]
                starts = {"zero": torch.zeros_like(q), "query": q, "diagonal": q / A.diagonal()}
                starts["previous_token"] = starts["diagonal"] if t == 0 else (last @ q) / (last @ A @ last) * last
                x = starts[initial]
                for _ in range(max_steps):
                    x = x + SAFE[h] * (q - A @ x)
                before[b, h], o[b, t, h] = x, G[b, h] @ x
    return [o, G, memory]


@pytest.mark.parametrize("initial", INITIAL)
@pytest.mark.parametrize("max_steps", [0, 1, 3])
def test_it_is_the_loop_written_out(max_steps: int, initial: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With three chunks a head, in one block of all matrices and in several."""
    inputs = draw(19)
    expected = written_out(inputs, max_steps, initial)
    for elements in (iteration.CACHED_ELEMENTS, 3 * K * 8):
        monkeypatch.setattr(iteration, "CACHED_ELEMENTS", elements)
        for form in (chunked, decoded):
            for actual, wanted in zip(form(inputs, richardson(max_steps, initial=initial)), expected, strict=True):
                torch.testing.assert_close(actual, wanted, rtol=1e-12, atol=1e-12)


@in_turn(initial=INITIAL, stop=[(1, 0.0), (3, 0.0), (30, 0.05)])
def test_the_gradient_is_that_of_the_steps_into_their_size_too(initial: str, stop: tuple[int, float]) -> None:
    inputs = {name: x if name == "regularizer" else x[:1] for name, x in draw(9).items()}
    leaves = [x.clone().requires_grad_() for x in (SAFE, *(inputs[name] for name in NAMES))]

    def outputs(step_size: Tensor, *xs: Tensor) -> tuple[Tensor, ...]:
        drawn = {**inputs, **dict(zip(NAMES, xs, strict=True))}
        solver = replace(richardson(*stop, initial=initial), step_size=step_size)
        return tuple(chunked({**drawn, "H": drawn["H"] @ drawn["H"].mT / K}, solver))

    assert torch.autograd.gradcheck(outputs, leaves, fast_mode=True, atol=1e-6)
    assert all(gradient.abs().min() > 0 for gradient in torch.autograd.grad(outputs(*leaves)[0].sum(), leaves[:1]))


def test_it_converges_below_the_bound_and_stops_beyond_it() -> None:
    inputs = draw(19)
    spectrum = trace(inputs, richardson(0), spectrum=True)
    bound = 2.0 / spectrum.largest.amax((0, 1))
    exact = run(mesa.recurrent, inputs)[0]
    assert worst_error(chunked(inputs, richardson(3000, 1e-12, step_size=0.95 * bound))[0], exact) < 1e-8
    # The last token alone lies beyond the bound: it stops, and others go on.
    beyond = trace(inputs, richardson(3000, 1e-12, step_size=1.3 * bound))
    assert beyond.residual.isfinite().all() and beyond.residual.max() < 100.0
    converged = (beyond.residual <= 1.1e-12) == (spectrum.largest * 1.3 * bound < 2.0)
    assert converged.double().mean() > 0.95 and (beyond.residual > 1e-3).any() and (beyond.residual < 1e-11).any()


def test_a_token_stops_when_it_is_solved() -> None:
    inputs = draw(19)
    traced, steps = trace(inputs, richardson(200, 1e-2)), trace(inputs, richardson(200, 1e-2)).steps
    assert (traced.residual <= 1e-2 * (1 + 1e-6)).all() and 0 < steps.min() < steps.max() < 200
    short = torch.stack([trace(inputs, richardson(n)).residual for n in range(int(steps.max()) + 1)])
    assert (short.gather(0, (steps - 1).unsqueeze(0)).squeeze(0) > 1e-2).all()


def test_in_float32_it_goes_on_beyond_the_digits_of_its_residual() -> None:
    inputs = draw(19)
    exact = run(mesa.recurrent, inputs)[0]
    narrow = {name: x.float() for name, x in inputs.items()}
    plain, refined = (chunked(narrow, richardson(3000, tolerance))[0] for tolerance in (1e-6, 1e-9))
    assert worst_error(refined, exact) < 0.5 * worst_error(plain, exact)
    # Also where some matrices have no steps left for that, and others have some.
    steps = trace(narrow, richardson(3000, 1e-6)).steps
    median = int(steps.median())
    within, some = steps < median - 5, chunked(narrow, richardson(median, 1e-9), chunk_size=1)[0]
    assert within.any() and worst_error(some[within], exact[within]) < worst_error(plain[within], exact[within])


def products_taken(solver: Solver, monkeypatch: pytest.MonkeyPatch) -> tuple[int, Tensor]:
    """The products with A that solving for one token took, and its steps."""
    inputs, calls = draw(1), []
    operator = TokenOperator(torch.cat([inputs["G"], inputs["H"]], dim=-2).flatten(0, 1)[:1], inputs["regularizer"][:1, None])
    product = TokenOperator.product
    monkeypatch.setattr(TokenOperator, "product", lambda self, p: calls.append(p) or product(self, p))
    guess = inputs["k"].reshape(-1, 1, K)[:1] if solver.initial == "previous_token" else None
    solution = solver.solve(operator, inputs["q"].reshape(-1, 1, K)[:1], guess)
    monkeypatch.undo()
    return len(calls), solution.steps


@pytest.mark.parametrize("initial", INITIAL)
@pytest.mark.parametrize("name", ["cg", "chebyshev", "richardson"])
def test_flops_are_those_of_the_products_taken(name: str, initial: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No product without a step, and none behind the last one of Richardson."""
    for max_steps, tolerance in ((0, 0.0), (1, 0.0), (4, 0.0), (200, 1e-2)):
        solver: Solver = richardson(max_steps, tolerance, initial=initial)
        if name != "richardson":
            solver = built(name, max_steps, tolerance, initial=initial, gradient="unrolled")
        elif max_steps:
            solver = replace(solver, step_size=SAFE[:1])
        taken, steps = products_taken(solver, monkeypatch)
        assert steps.item() == max_steps or (tolerance > 0.0 and 0 < steps.item() < max_steps)
        assert solver.flops(K, steps.item()) == taken * 2.0 * K**2


def test_one_step_from_the_query_contracts_it() -> None:
    inputs = draw(1)
    A = decoded(inputs, richardson(0))[2] + torch.diag_embed(inputs["regularizer"])
    o, G, _ = chunked(inputs, richardson(1, initial="query"))
    q = inputs["q"][:, 0].unsqueeze(-1)
    x = (1.0 + SAFE.view(H, 1, 1)) * q - SAFE.view(H, 1, 1) * (A @ q)
    torch.testing.assert_close(o[:, 0], (G @ x).squeeze(-1))
    exact = partial(Cholesky().solve, TokenOperator(torch.cat([G, A], dim=-2).flatten(0, 1), torch.zeros(B * H, 1, K).double()))
    assert (x.flatten(0, 1).mT - exact(q.flatten(0, 1).mT).x).norm() < (q.flatten(0, 1).mT - exact(q.flatten(0, 1).mT).x).norm()


def test_an_implicit_gradient_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^solver\.gradient=implicit is out of range, permitted are unrolled with"):
        built("richardson", 1, gradient="implicit")


def test_no_step_size_is_an_error() -> None:
    with pytest.raises(ValueError, match="has no step size outside of a layer that learned one"):
        chunked(draw(1), built("richardson", 1, gradient="unrolled"))
