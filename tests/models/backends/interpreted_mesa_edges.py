"""What the Mesa kernels document of their edges, under Triton's interpreter: see `test_interpreted`."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from tests.models.backends import triton_interpreter  # noqa: F401 - before the kernels

# isort: split
from models.backends.triton.mesa import mesa_chunked
from models.backends.triton.mesa_decode import mesa_decode_
from models.backends.triton.mesa_op import mesa, mesa_
from models.ops.mesa import Inputs, MesaState
from tests.models import built
from tests.models.backends import mesa_kernel_cases as cases

draw = partial(cases.draw, device="cpu")
BF16, F32 = torch.bfloat16, torch.float32
SOLVER = {"tolerance": 1e-4, "max_steps": 30, "initial": "diagonal"}
INITIAL = ("zero", "diagonal", "query")


@pytest.mark.parametrize(
    ("length", "key_dim", "value_dim", "dtype"),
    [
        (1, 16, 16, F32),
        (1, 64, 128, BF16),
        (64, 32, 16, BF16),
        (66, 64, 128, BF16),
        pytest.param(65, 128, 16, F32, marks=pytest.mark.slow),
    ],
)
def test_one_token_a_full_chunk_and_more_values_than_keys(length, key_dim, value_dim, dtype):
    cases.assert_equals_recurrent(draw(length=length, key_dim=key_dim, value_dim=value_dim, dtype=dtype))


def test_resets_at_the_first_and_last_token_of_a_chunk():
    inputs = draw(length=130, key_dim=16, value_dim=16, dtype=F32)
    inputs["log_decay"][:, [0, 63, 64, 127, 128, 129], 0] = float("-inf")
    # A chunk after which nothing is left of the one before, and one of nothing but resets.
    inputs["log_decay"][:, 64:128, 1] = float("-inf")
    cases.assert_equals_recurrent(inputs)


def test_a_decay_below_minus_80_forgets():
    found = []
    for log_decay in (float("-inf"), -1e30, -81.0):
        inputs = draw(length=70, key_dim=16, value_dim=16, dtype=F32)
        inputs["log_decay"][:, [3, 64], 0] = log_decay
        found.append(cases.results(partial(cases.kernel, **SOLVER), inputs, cases.draw_cotangents(inputs)))
    for other in found[1:]:
        for name, x in found[0].items():
            torch.testing.assert_close(other[name], x, rtol=0.0, atol=0.0)
    assert (found[0]["d_log_decay"][:, [3, 64], 0] == 0).all()


# "query" leaves more than its float32 has digits for at such sizes, and is only to be finite.
@pytest.mark.parametrize(("initial", "bound"), [("zero", 6e-3), ("diagonal", 6e-3), ("query", float("inf"))])
@pytest.mark.parametrize("dtype", [BF16, pytest.param(F32, marks=pytest.mark.slow)])
def test_entries_of_keys_of_31(dtype, initial, bound):
    inputs = draw(length=70, key_dim=16, value_dim=16, dtype=dtype)
    # All entries of that size, so that sums of H are as large as they can be; a Lambda that leaves a condition of about 40.
    inputs["k"], inputs["regularizer"] = 31 * inputs["k"].sign(), 3e4 * inputs["regularizer"].clamp(0.5, 1.0)
    inputs |= {"log_decay": torch.zeros_like(inputs["beta"]), "beta": torch.ones_like(inputs["beta"])}
    found = cases.results(partial(cases.kernel, **SOLVER | {"max_steps": 100, "initial": initial}), inputs, [inputs["v"]])
    exact = cases.recurrent({name: x.double() for name, x in inputs.items()})[0]
    assert (found["o"].double() - exact).norm() / exact.norm() < bound
    assert all(x.isfinite().all() for x in found.values()), found


@pytest.mark.parametrize("size", [2.0, 8.0])
def test_what_a_query_as_beginning_leaves_of_large_states(size):
    inputs = draw(length=70, key_dim=16, value_dim=16, dtype=BF16)
    inputs |= {"k": size * inputs["k"], "log_decay": torch.zeros_like(inputs["beta"]), "beta": torch.ones_like(inputs["beta"])}
    exact = cases.recurrent({name: x.double() for name, x in inputs.items()})[0]
    k, H = inputs["k"].double(), inputs["H"].double()
    largest = torch.linalg.matrix_norm(torch.einsum("bthk,bthl->bhkl", k, k) + H, 2).max()
    o = cases.kernel(inputs, **SOLVER | {"max_steps": 100, "initial": "query"})[0].double()
    assert ((o - exact).norm(dim=-1) / exact.norm(dim=-1)).max() < 2e-4 * largest + cases.TOLERANCE[BF16]


@pytest.mark.parametrize(
    "initial", [pytest.param(each, marks=() if each == "diagonal" else pytest.mark.slow) for each in INITIAL]
)
def test_a_chunk_without_queries_reads_nothing(initial):
    inputs = draw(length=66, key_dim=16, value_dim=16, dtype=F32)
    inputs["q"][:, :64] = 0
    result = mesa_chunked(**inputs, **SOLVER | {"initial": initial})
    assert (result.o[:, :64] == 0).all() and (result.steps[:, :64] == 0).all()
    assert (result.o[:, 64:] != 0).any()
    cases.assert_equals_recurrent(inputs)


@pytest.mark.parametrize("dtype", [BF16, pytest.param(F32, marks=pytest.mark.slow)])
def test_powers_of_two_go_through_unrounded(dtype):
    """A solve is in units of its right-hand side, so that very large and very small ones cost no digit."""
    inputs = draw(length=66, key_dim=16, value_dim=16, dtype=dtype)
    stopped = partial(cases.kernel, **SOLVER)
    cotangent = cases.draw_cotangents(inputs)[0]
    expected = cases.results(stopped, inputs, [cotangent])
    for exponent in (-80, 80):
        scaled = cases.results(stopped, inputs | {"q": inputs["q"] * 2.0**exponent}, [cotangent])
        torch.testing.assert_close(scaled["o"], expected["o"] * 2.0**exponent, rtol=0.0, atol=0.0)
        scaled = cases.results(stopped, inputs, [cotangent * 2.0**exponent])
        for name in (name for name in expected if name.startswith("d_")):
            torch.testing.assert_close(scaled[name], expected[name] * 2.0**exponent, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("dtype", [BF16, F32])
def test_the_largest_regularizer(dtype):
    inputs = draw(length=5, key_dim=16, value_dim=16, dtype=dtype)
    inputs["regularizer"] = torch.full_like(inputs["regularizer"], 32_767.0)
    # So that o is about 1.
    inputs["q"] = inputs["q"] * 2.0**15
    exact = cases.recurrent({name: x.double() for name, x in inputs.items()})[0]
    o = cases.kernel(inputs, **SOLVER | {"tolerance": 1e-6})[0].double()
    assert (o - exact).norm() < cases.TOLERANCE[dtype] * exact.norm()


@pytest.mark.parametrize("form", [mesa_chunked, mesa_decode_])
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"initial": "previous_token"}, "initial is previous_token, permitted .* zero, diagonal, query"),
        ({"max_steps": -1}, "max_steps is -1"),
        ({"k": torch.zeros(1, 0, 2, 16)}, r"k is \[1, 0, 2, 16\], .* one token or more"),
        ({"v": torch.zeros(1, 1, 2, 129)}, "key_dim and value_dim are 16 and 129, .* up to 128"),
        ({"regularizer": torch.ones(1, 1, 2, 16)}, r"regularizer is \[1, 1, 2, 16\], .* \[H, K\] = \[2, 16\]"),
    ],
)
def test_what_would_be_read_past_or_taken_for_another_is_refused(form, changes, named):
    with pytest.raises(ValueError, match=named):
        form(**{**draw(length=1, key_dim=16, value_dim=16, dtype=F32), **SOLVER, **changes})


def test_a_step_takes_one_token_and_no_kernel_a_sign():
    inputs = draw(length=2, key_dim=16, value_dim=16, dtype=F32)
    with pytest.raises(ValueError, match="2 tokens are given, permitted is one"):
        mesa_decode_(**inputs, **SOLVER)
    state = MesaState(inputs.pop("G"), inputs.pop("H"))
    solver = built.solver({"name": "cg", "stop": "right_hand_side", "gradient": "implicit"} | SOLVER)
    for form in (mesa, mesa_):
        with pytest.raises(ValueError, match="sign is given, .*signed_decay=false"):
            form(Inputs(**inputs, sign=torch.ones(1, 2, 2)), state=state, solver=solver)
