"""What every solver keeps to: its settings, its first guess, where a token stops, and what it may look at."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from models.ops import mesa
from models.ops.mesa.operators import TokenOperator
from models.ops.solvers import Cholesky, Solver
from tests.models.built import solver as solver_of
from tests.models.ops.mesa.mesa_forms import (
    OVER_TIME,
    VARIANTS,
    B,
    H,
    K,
    Tensors,
    built,
    chunked,
    decoded,
    draw,
    run,
    trace,
    worst_error,
)
from tests.models.ops.solvers.solver_cases import Case, draw_case
from tests.thinned import pairwise

ITERATIVE = ("cg", "preconditioned_cg", "chebyshev")
INITIAL = ("zero", "diagonal", "query", "previous_token")
SETTINGS = {"max_steps": 5, "tolerance": 0.0, "stop": "right_hand_side", "initial": "diagonal", "gradient": "implicit"}
cg = partial(built, "cg")


def draw_long(keys: str, gate_logit: float, length: int = 256) -> Tensors:
    return draw_case(Case(keys, gate_logit, "random"), length=length, dim=32)


@pairwise(variant=VARIANTS, name=ITERATIVE, max_steps=[0, 1, 2], initial=INITIAL)
def test_a_later_token_changes_nothing_however_few_the_steps(variant: str, name: str, max_steps: int, initial: str) -> None:
    """Its gate, key, value and Lambda, within a chunk and at its end."""
    solver = built(name, max_steps, initial=initial)
    inputs, other = VARIANTS[variant](draw(19)), VARIANTS[variant](draw(19, seed=1))
    same = {key: inputs[key] for key in ("regularizer", "G", "H", "sign") if key in inputs}
    before = chunked(inputs, solver)[0]
    for changed in (1, 7, 8, 18):
        for key in OVER_TIME:
            other[key][:, :changed] = inputs[key][:, :changed]
        mixed = {**other, **same}
        if inputs["regularizer"].ndim == 4:
            mixed["regularizer"] = torch.cat(
                [inputs["regularizer"][:, :changed], 3.0 * inputs["regularizer"][:, changed:]], dim=1
            )
        if "sign" in inputs:
            mixed["sign"] = torch.cat([inputs["sign"][:, :changed], -inputs["sign"][:, changed:]], dim=1)
        after = chunked(mixed, solver)[0]
        assert torch.equal(before[:, :changed], after[:, :changed])
        nothing = initial == "zero" and max_steps == 0
        assert nothing or not torch.isclose(before[:, changed], after[:, changed]).any()


@pytest.mark.parametrize(
    "solver", [cg(30, 1e-2), cg(30, 1e-2, stop="initial_residual"), built("preconditioned_cg", 9, 1e-2)], ids=str
)
def test_nor_does_it_where_tokens_stop_by_themselves(solver: Solver) -> None:
    inputs, other = draw_long("anisotropic", 6.0), draw_long("anisotropic", 0.0)
    for key in OVER_TIME:
        other[key][:, :60] = inputs[key][:, :60]
    before, after = (chunked({**inputs, **changed}, solver, chunk_size=64)[0] for changed in ({}, other))
    assert torch.equal(before[:, :60], after[:, :60])
    assert not torch.equal(before[:, 60], after[:, 60])


@pytest.mark.parametrize("name", ITERATIVE)
@pytest.mark.parametrize("initial", INITIAL)
def test_a_step_is_the_last_token_of_a_sequence(initial: str, name: str) -> None:
    """At any number of steps, save where the preconditioner of a chunk is only near the matrix and that of a token is it."""
    for max_steps in (60,) if name == "preconditioned_cg" else (0, 2, 60):
        solver = built(name, max_steps, initial=initial)
        inputs = draw(19)
        for whole, single in zip(chunked(inputs, solver), decoded(inputs, solver), strict=True):
            tolerance = 1e-3 if name == "chebyshev" and max_steps == 60 else 1e-9
            torch.testing.assert_close(single, whole, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["cg", "chebyshev"])
def test_no_steps_are_the_first_guess(name: str) -> None:
    inputs = draw(1)
    keep, write = inputs["log_decay"][:, 0].exp()[..., None], inputs["beta"][:, 0, :, None]
    diagonal = keep * inputs["H"].diagonal(dim1=-2, dim2=-1) + write * inputs["k"][:, 0].square() + inputs["regularizer"]
    guesses = {"zero": 0.0, "diagonal": 1.0 / diagonal, "query": 1.0, "previous_token": 1.0 / diagonal}
    for initial, factor in guesses.items():
        o, G, _ = chunked(inputs, built(name, 0, initial=initial))
        x = factor * inputs["q"][:, 0]
        torch.testing.assert_close(o[:, 0], (G @ x.unsqueeze(-1)).squeeze(-1))


def test_no_steps_from_the_query_are_gated_linear_attention() -> None:
    inputs = draw(19)
    without_H = {**inputs, "H": torch.zeros_like(inputs["H"]), "regularizer": torch.full((H, K), 1e9, dtype=torch.float64)}
    for name in ITERATIVE:
        o = chunked(inputs, built(name, 0, initial="query"))[0]
        torch.testing.assert_close(o, 1e9 * chunked(without_H, cg(60))[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ITERATIVE)
def test_the_token_before_is_never_a_worse_start_than_zero(name: str) -> None:
    """In the norm of A; and its best multiple is found: a guess that points the right way needs no step."""
    inputs = draw(1)
    memory = torch.cat([inputs["G"], inputs["H"]], dim=-2).flatten(0, 1)
    operator = TokenOperator(memory, inputs["regularizer"].repeat(B, 1).unsqueeze(1))
    b = inputs["q"].reshape(-1, 1, K)
    exact = Cholesky().solve(operator, b).x
    for guess in (torch.flip(b, [-1]), -b, 1e-30 * b, exact + 0.1):
        error = built(name, 0).solve(operator, b, guess).x - exact
        assert ((error * operator.product(error)).sum(-1) <= (exact * b).sum(-1) * (1 + 1e-12)).all()
    again = built(name, 30, 1e-9).solve(operator, b, -7.0 * exact)
    torch.testing.assert_close(again.x, exact)
    assert (again.steps == 0).all()


def test_a_reset_forgets_the_guess_too() -> None:
    inputs = draw(19)
    inputs["log_decay"][:, 9] = float("-inf")
    solver = cg(1, initial="previous_token")
    late = {name: x[:, 9:] if name in OVER_TIME else x for name, x in inputs.items()}
    torch.testing.assert_close(chunked(late, solver)[0], chunked(inputs, solver)[0][:, 9:])


def test_a_sequence_that_goes_on_starts_at_the_token_before() -> None:
    inputs, solver = draw(19), cg(1, initial="previous_token")
    whole = chunked(inputs, solver)[0]
    halves = [{n: x[:, part] if n in OVER_TIME else x for n, x in inputs.items()} for part in (slice(8), slice(8, None))]
    state, outputs = mesa.MesaState(inputs["G"], inputs["H"]), []
    for half in halves:
        rest = {name: x for name, x in half.items() if name not in ("G", "H")}
        o, state = mesa.chunked(mesa.Inputs(**rest), state=state, solver=solver, chunk_size=4)
        outputs.append(o)
    assert torch.equal(torch.cat(outputs, dim=1), whole) and state.x.shape == (B, H, K)
    assert mesa.chunked(mesa.Inputs(**rest), state=state, solver=cg(1), chunk_size=4)[1].x is None


@pytest.mark.parametrize("name", ITERATIVE)
def test_a_token_stops_when_it_is_solved(name: str) -> None:
    inputs = draw_long("anisotropic", 6.0)
    inputs["q"][:, 17] = 0.0
    solver = partial(built, name, tolerance=1e-3)
    traced = trace(inputs, solver(100))
    steps, residual = traced.steps, traced.residual
    assert steps[:, 17].item() == 0 and residual[:, 17].item() == 0.0
    assert steps.max() > 1.1 * steps.double().mean() > 1.1
    assert residual.max() <= 1e-3 * (1 + 1e-6)
    # One step less would not have done.
    one_less = torch.stack([trace(inputs, solver(n)).residual for n in range(int(steps.max()) + 1)])
    before = one_less.gather(0, (steps - 1).clamp_min(0).unsqueeze(0)).squeeze(0)
    assert (before[steps > 0] > 1e-3).all()


def test_the_papers_rule_measures_against_the_first_residual() -> None:
    inputs = draw(19)
    first = trace(inputs, cg(0)).residual
    assert (trace(inputs, cg(100, 1e-2, stop="initial_residual")).residual <= 1e-2 * first * (1 + 1e-6)).all()
    assert (trace(inputs, cg(100, 1e-2)).residual > 1e-2 * first).any()


def test_an_early_stop_saves_steps_and_keeps_the_solution() -> None:
    inputs = {name: x.float() for name, x in draw_long("random", 4.0).items()}
    fixed, stopped = chunked(inputs, cg(30))[0], chunked(inputs, cg(30, 1e-4))[0]
    assert worst_error(stopped, fixed.double()) < 1e-3
    assert trace(inputs, cg(30, 1e-4)).steps.double().mean() < 10


def test_a_chunk_waits_for_its_slowest_token() -> None:
    inputs = draw(19)
    traced = trace(inputs, cg(30, 1e-2), chunk_size=8)
    for start in (0, 8, 16):
        part = slice(start, start + 8)
        slowest = traced.steps[:, part].amax(1, keepdim=True)
        assert (traced.chunk_steps[:, part] == slowest).all()
    assert (traced.chunk_steps > traced.steps).any()
    alone = trace(inputs, cg(30, 1e-2, initial="previous_token"), chunk_size=8)
    assert torch.equal(alone.chunk_steps, alone.steps) and alone.steps.shape == traced.steps.shape


@pytest.mark.parametrize("initial", ["diagonal", "previous_token"])
def test_the_cosine_compares_with_the_unsolved_read_out(initial: str) -> None:
    inputs = draw(19)
    solved, unsolved = chunked(inputs, cg(30))[0], chunked(inputs, cg(0, initial="query"))[0]
    expected = torch.nn.functional.cosine_similarity(solved, unsolved, dim=-1)
    torch.testing.assert_close(trace(inputs, cg(30, initial=initial)).cosine, expected)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"name": "conjugate"}, "conjugate"),
        ({"max_steps": -1}, "-1"),
        ({"max_steps": 2.5}, "2.5"),
        ({"max_steps": "five"}, "five"),
        ({"tolerance": 1.0}, "tolerance=1 "),
        ({"tolerance": "small"}, "small"),
        ({"stop": "never"}, "never"),
        ({"initial": "random"}, "random"),
        ({"gradient": "none"}, "none"),
    ],
)
def test_a_wrong_value_is_named(changes: dict, named: str) -> None:
    for name in ITERATIVE:
        with pytest.raises(ValueError, match=named):
            solver_of({"name": name, **SETTINGS, **changes})


def test_a_missing_setting_is_named() -> None:
    with pytest.raises(ValueError, match="solver.gradient is needed"):
        solver_of({"name": "cg", **{key: value for key, value in SETTINGS.items() if key != "gradient"}})


def test_a_solver_takes_its_own_settings() -> None:
    assert solver_of({**SETTINGS, "name": "cholesky"}) == Cholesky()
    assert solver_of({**SETTINGS, "name": "cg"}) == cg(5)


def test_the_bounds_of_chebyshev_hold_the_eigenvalues() -> None:
    for variant in VARIANTS.values():
        inputs = variant(draw(19))
        rest = {name: x for name, x in inputs.items() if name not in ("G", "H", "q", "v", "regularizer", "sign")}
        norm = mesa.frobenius_norm(**rest, H=inputs["H"], sign=inputs.get("sign"), chunk_size=8)
        at_every_token = []
        for t in range(19):
            _, _, state = run(partial(mesa.chunked, solver=cg(0), chunk_size=8), until(inputs, t + 1))
            at_every_token.append(torch.linalg.matrix_norm(state))
        torch.testing.assert_close(norm, torch.stack(at_every_token, dim=1))
        spectrum = trace(inputs, cg(0), spectrum=True)
        regularizer = inputs["regularizer"]
        assert (spectrum.largest <= regularizer.amax(-1) + norm).all()


def until(inputs: Tensors, length: int) -> Tensors:
    return {
        n: x[:, :length] if n not in ("G", "H") and not (n == "regularizer" and x.ndim == 2) else x for n, x in inputs.items()
    }
