"""The Mesa op: exact, differentiable, finite, and linear in memory, whatever solves it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.ops.solvers import Solver
from tests.models.ops.mesa.mesa_forms import (
    CHUNK_SIZE,
    EXACT,
    NAMES,
    OVER_TIME,
    VARIANTS,
    K,
    Run,
    Tensors,
    built,
    chunked,
    decoded,
    draw,
    gradients,
    recurrent,
    with_gradients,
    worst_error,
)
from tests.models.ops.solvers.solver_cases import Case, draw_case
from tests.thinned import pairwise

cg = partial(built, "cg")
SOLVERS = [EXACT, built("preconditioned_cg", 60), built("chebyshev", 400, 1e-13), built("cholesky", 0)]


@functools.cache
def exact(variant: str, length: int) -> tuple[Tensors, tuple[list[torch.Tensor], list[torch.Tensor]]]:
    """Inputs, and what the recurrence gives of them with its gradients."""
    inputs = VARIANTS[variant](draw(length))
    return inputs, with_gradients(recurrent, inputs)


@pairwise(form=[chunked, decoded], length=[1, 7, 8, 19], variant=VARIANTS, solver=SOLVERS)
def test_both_forms_equal_the_exact_recurrence(
    form: Callable[[Tensors, Solver], list[Tensor]], length: int, variant: str, solver: Solver
) -> None:
    """Outputs, final states, and the gradients of all of them into every input."""
    inputs, (expected, into_expected) = exact(variant, length)
    actual, into = with_gradients(partial(form, solver=solver), inputs)
    for ours, theirs in zip((*actual, *into), (*expected, *into_expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("form", [recurrent, chunked, decoded])
def test_gradients_match_finite_differences(form: Run, variant: str) -> None:
    """Through a root of H, since only symmetric changes of H mean something."""
    inputs = VARIANTS[variant](draw(9))
    inputs = {name: x if name == "regularizer" and x.ndim == 2 else x[:1] for name, x in inputs.items()}
    leaves = [inputs[name].clone().requires_grad_() for name in NAMES]

    def outputs(*xs: Tensor) -> tuple[Tensor, ...]:
        drawn = {**inputs, **dict(zip(NAMES, xs, strict=True))}
        return tuple(form({**drawn, "H": drawn["H"] @ drawn["H"].mT}))

    assert torch.autograd.gradcheck(outputs, leaves, fast_mode=True)


@pytest.mark.parametrize("solver", [cg(0), cg(2), cg(30, 1e-4)], ids=str)
@pytest.mark.parametrize("cut", [1, 8, 13])
def test_a_sequence_may_be_cut_anywhere(cut: int, solver: Solver) -> None:
    inputs = draw(19)
    whole, *whole_state = chunked(inputs, solver)
    first, G, H = chunked({**inputs, **{name: inputs[name][:, :cut] for name in OVER_TIME}}, solver)
    carried = {**inputs, **{name: inputs[name][:, cut:] for name in OVER_TIME}, "G": G, "H": H}
    for form in (chunked, decoded):
        second, *state = form(carried, solver)
        torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
        torch.testing.assert_close(state, whole_state)


EXTREMES = {
    "resets": {"log_decay": float("-inf")},
    "strong_decay": {"log_decay": -200.0},
    "no_decay": {"log_decay": 0.0, "beta": 1.0},
    "nothing_written": {"beta": 0.0},
    "large_values": {"v": 1e4},
    "zero_keys": {"k": 0.0},
    "zero_queries": {"q": 0.0},
    "equal_keys": {"k": K**-0.5, "q": K**-0.5},
}


@functools.cache
def extreme_inputs(variant: str, extreme: str) -> tuple[Tensors, Tensor]:
    """Inputs, and what the recurrence reads from them in float64."""
    inputs = VARIANTS[variant](draw(19))
    for name, value in EXTREMES[extreme].items():
        # Not everywhere, so that within a chunk the extreme meets the ordinary on both sides.
        inputs[name][:, 2:12] = value
    return inputs, recurrent(inputs)[0]


def assert_finite_and_near(form: Run, variant: str, extreme: str) -> None:
    inputs, expected = extreme_inputs(variant, extreme)
    scale = max(1.0, EXTREMES[extreme].get("v", 1.0))
    outputs, into_inputs = with_gradients(form, {name: x.float() for name, x in inputs.items()})
    assert all(x.isfinite().all() for x in (*outputs, *into_inputs))
    torch.testing.assert_close(outputs[0].double(), expected, rtol=2e-3, atol=2e-3 * scale)


@pytest.mark.parametrize("extreme", EXTREMES)
@pytest.mark.parametrize("variant", ["plain", "signs"])
def test_extremes_of_the_recurrence_are_finite(variant: str, extreme: str) -> None:
    assert_finite_and_near(recurrent, variant, extreme)


@pairwise(variant=["plain", "signs"], extreme=EXTREMES, solver=[cg(30), cg(30, 1e-4), *SOLVERS[1:]])
def test_extremes_are_finite_and_agree(variant: str, extreme: str, solver: Solver) -> None:
    for form in (partial(chunked, solver=solver), partial(decoded, solver=solver)):
        assert_finite_and_near(form, variant, extreme)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_written_at_all_is_read_as_nothing(variant: str, solver: Solver) -> None:
    inputs = VARIANTS[variant](draw(19))
    inputs |= {name: 0.0 * inputs[name] for name in ("k", "G", "H")}
    for form in (partial(chunked, solver=solver), partial(decoded, solver=solver)):
        assert (form(inputs)[0] == 0.0).all()
        assert all(x.isfinite().all() for x in gradients(form, inputs))


def test_the_solution_scales_with_its_right_hand_side() -> None:
    """Down to where squares vanish and up to where they overflow."""
    inputs = {name: x.float() for name, x in draw(19).items()}
    ordinary = chunked(inputs, cg(30, 1e-4))[0]
    for scale in (1e-30, 1e30):
        torch.testing.assert_close(chunked({**inputs, "q": scale * inputs["q"]}, cg(30, 1e-4))[0] / scale, ordinary)


class LargestTensor(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.elements = max([self.elements, *(x.numel() for x in tree_leaves(result) if isinstance(x, Tensor))])
        return result


def test_no_matrix_is_held_for_a_token() -> None:
    length, dim = 128, 32
    inputs = draw_case(Case("random", 4.0, "random"), length=length, dim=dim)
    largest = {}
    for name, solver in (("cg", cg(10)), ("cholesky", built("cholesky", 0))):
        with LargestTensor() as watched:
            gradients(partial(chunked, solver=solver), inputs)
        largest[name] = watched.elements
    # At most the two states of every chunk, K * K / C numbers a token each.
    assert largest["cg"] <= 2 * length * dim * dim // CHUNK_SIZE
    assert largest["cholesky"] >= length * dim * dim


def test_saved_memory_is_linear_in_time() -> None:
    def saved(length: int) -> int:
        inputs, held = draw_case(Case("random", 4.0, "random"), length=length, dim=32), {}
        leaves = {name: x.requires_grad_() for name, x in inputs.items()}

        def pack(x: Tensor) -> Tensor:
            held[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            outputs = chunked(leaves, cg(10))
        assert outputs[0].requires_grad
        return sum(held.values())

    assert saved(512) < 2.1 * saved(256)


@pytest.mark.parametrize("form", [recurrent, chunked, decoded])
def test_a_bfloat16_sequence_is_solved_in_float32(form: Run) -> None:
    inputs = draw_case(Case("random", 4.0, "random"), length=40, dim=32)
    narrow = {name: x.bfloat16() if name in "qkv" else x.float() for name, x in inputs.items()}
    actual = form(narrow)
    assert all(x.dtype == torch.float32 for x in actual)
    same = recurrent({name: x.double() for name, x in narrow.items()})
    assert worst_error(actual[0], same[0]) < 1e-5
    assert (actual[0] - recurrent(inputs)[0]).norm() < 1e-2 * actual[0].norm()
