"""Every solver, given the steps it needs, on states from well to badly conditioned: outputs, states and all gradients.

Errors are those of single tokens, |y_t - y*_t| / |y*_t|, against float64 solves of the same inputs. In float64 they stay below
1e-9; in float32 below 10 roundings times the condition number, or below twice what a float64 solve of the same float32
state leaves. A gradient may vanish at a token and not around it: there the error is relative to the mean over all tokens.
"""

from __future__ import annotations

import itertools
from functools import lru_cache, partial

import pytest
from torch import Tensor

from models.ops.solvers import Solver
from tests.models.ops.mesa.mesa_forms import NAMES, Tensors, built, chunked, trace, with_gradients
from tests.models.ops.solvers.solver_cases import CASES, GATE_LOGITS, KEYS, QUERIES, Case, draw_case
from tests.thinned import pairwise

EXACT = built("cholesky", 0)
# A tolerance below what float32 can hold asks for a remainder.
SOLVERS = {
    "cg": built("cg", 300, 1e-10),
    "preconditioned_cg": built("preconditioned_cg", 300, 1e-10),
    "chebyshev": built("chebyshev", 3000, 1e-10),
    "cholesky": EXACT,
}
IN_FLOAT64 = {
    "cg": built("cg", 300),
    "preconditioned_cg": built("preconditioned_cg", 300),
    "chebyshev": built("chebyshev", 3000, 1e-13),
    "cholesky": EXACT,
}


Results = tuple[list[Tensor], list[Tensor]]
Errors = dict[str, tuple[float, float]]


def draw_continued(case: Case, length: int, dim: int, chunk_size: int) -> Tensors:
    """The second half of a sequence, from the states that the first one leaves, in what float32 can hold."""
    whole = draw_case(case, length=2 * length, dim=dim)
    halves = [
        {name: x[:, part] for name, x in whole.items() if x.ndim > 2 and name not in ("G", "H")}
        for part in (slice(length), slice(length, None))
    ]
    _, G, H = partial(chunked, chunk_size=chunk_size)({**whole, **halves[0]}, built("cg", 0))
    return {name: x.float().double() for name, x in {**whole, **halves[1], "G": G, "H": H}.items()}


def errors(actual: Tensor, expected: Tensor) -> tuple[float, float]:
    """Mean and worst over tokens [..., D] of the relative error."""
    size = expected.norm(dim=-1)
    error = (actual.double() - expected).norm(dim=-1) / size.clamp_min(1e-300)
    return error.mean().item(), error.max().item()


def gradient_errors(actual: Tensor, expected: Tensor) -> tuple[float, float]:
    """The same, of tokens [B, T, ...] or of a whole state, relative to the mean over tokens where that is larger."""
    flat = expected.flatten(2) if expected.ndim > 2 else expected.unsqueeze(-1)
    size = flat.norm(dim=-1)
    error = (actual.double().view_as(flat) - flat).norm(dim=-1) / size.clamp_min(size.mean())
    return error.mean().item(), error.max().item()


def all_errors(inputs: Tensors, solver: Solver, chunk_size: int, expected: Results) -> Errors:
    outputs, into = with_gradients(partial(chunked, solver=solver, chunk_size=chunk_size), inputs)
    found = {"o": errors(outputs[0], expected[0][0])}
    for name, actual, exact in zip("GH", outputs[1:], expected[0][1:], strict=True):
        found[f"{name} at the end"] = errors(actual.flatten(2), exact.flatten(2))
    return found | {f"into {name}": gradient_errors(x, y) for name, x, y in zip(NAMES, into, expected[1], strict=True)}


@lru_cache(maxsize=1)
def exact_results(case: Case, length: int, dim: int, chunk_size: int) -> tuple[Tensors, Results, Errors, float]:
    """Inputs, what to expect, the errors that no float32 solve is without, and the largest condition number."""
    inputs = draw_continued(case, length, dim, chunk_size)
    expected = with_gradients(partial(chunked, solver=EXACT, chunk_size=chunk_size), inputs)
    unavoidable = all_errors({key: x.float() for key, x in inputs.items()}, EXACT, chunk_size, expected)
    traced = trace(inputs, built("cg", 0), chunk_size, spectrum=True)
    return inputs, expected, unavoidable, (traced.largest / traced.smallest).max().item()


def violations(case: Case, name: str, *, length: int, dim: int, chunk_size: int) -> list[str]:
    """What is less accurate than it should be, in words."""
    inputs, expected, unavoidable, condition = exact_results(case, length, dim, chunk_size)
    wide = all_errors(inputs, IN_FLOAT64[name], chunk_size, expected)
    found = [f"float64 {what}: {error}" for what, error in wide.items() if max(error) > 1e-9]
    allowed = max(1e-5, 10 * 2**-24 * condition)
    narrow = all_errors({key: x.float() for key, x in inputs.items()}, SOLVERS[name], chunk_size, expected)
    for what, error in narrow.items():
        if any(e > max(allowed, 2 * least) for e, least in zip(error, unavoidable[what], strict=True)):
            found.append(f"float32 {what}: {error}, allowed {allowed}, unavoidable {unavoidable[what]}")
    return found


@pytest.mark.parametrize("name", SOLVERS)
def test_a_small_read_out_keeps_its_digits(name: str) -> None:
    """The read-out of queries at right angles to the keys, but for 1e-4: x in float32 alone has lost most of them."""
    inputs = draw_case(Case("repeated", 0.0, "random"), length=32, dim=32)
    k = inputs["k"][:, :1]
    inputs["q"] = inputs["q"] - ((inputs["q"] * k).sum(-1, keepdim=True) - 1e-4) * k
    inputs = {key: x.float().double() for key, x in inputs.items()}
    narrow = {key: x.float() for key, x in inputs.items()}
    exact = chunked(inputs, EXACT, 32)[0]
    assert errors(chunked(narrow, SOLVERS[name], 32)[0], exact)[1] < 1e-5
    assert errors(chunked(narrow, built("cg", 60), 32)[0], exact)[1] > 1e-4


@pairwise(state=itertools.product(KEYS, GATE_LOGITS), queries=QUERIES, name=SOLVERS)
def test_badly_conditioned_states_are_solved(state: tuple[str, float], queries: str, name: str) -> None:
    assert not violations(Case(*state, queries), name, length=100, dim=32, chunk_size=32)


@pytest.mark.slow
@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_long_and_wide_ones_are_solved_too(case: Case, name: str) -> None:
    assert not violations(case, name, length=1024, dim=128, chunk_size=64)
