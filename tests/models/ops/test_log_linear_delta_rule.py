"""The delta rule with a state for every scale: both forms against sums over all tokens, its limits, its extremes, its resets."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.attention import positions_in_document
from models.ops import delta_rule
from models.ops.log_linear_delta_rule import chunked, num_levels, recurrent
from tests.models.tolerances import assert_near

B, H, K, V = 2, 3, 5, 4
CHUNK_SIZE = 8
RESET = float("-inf")

Tensors = dict[str, Tensor]
Form = Callable[..., tuple[Tensor, Tensor]]
FORMS = [pytest.param(recurrent, id="recurrent"), pytest.param(partial(chunked, chunk_size=CHUNK_SIZE), id="chunked")]


def level(t: int, s: int) -> int:
    """The paper's: the past of t is cut into the powers of two of t, the largest first; counted from 1, and t itself is 0."""
    if s == t:
        return 0
    largest = math.floor(math.log2(t))
    return largest + 1 if s < 2**largest else level(t - 2**largest, s - 2**largest)


def held_by(last: int, levels: int) -> dict[int, int]:
    """By level that has tokens after `last`, one of these tokens: not the first of them, where there are others."""
    held = {min(level(last, s), levels - 1): s for s in range(last)} if last else {}
    return {**held, 0: last}


def draw(length: int, *, levels: int = 5, ages: tuple[int, int] = (0, 0)) -> Tensors:
    """Gates around 0.7, and behind the first `ages` tokens a state of these: nothing in levels that they leave empty."""
    generator = torch.Generator().manual_seed(length)
    normal = partial(torch.randn, generator=generator, dtype=torch.float64)
    state = normal(B, H, levels, V, K)
    for b, age in enumerate(ages):
        empty = set(range(levels)) - (held_by(age - 1, levels).keys() if age else set())
        state[b, :, sorted(empty)] = 0.0
    return {
        "q": normal(B, length, H, K),
        "k": F.normalize(normal(B, length, H, K), dim=-1),
        "v": normal(B, length, H, V),
        "log_decay": F.logsigmoid(normal(B, length, H) + 1.0),
        "beta": normal(B, length, H).sigmoid(),
        "weights": F.softplus(normal(B, length, H, levels)),
        "age": torch.tensor(ages),
        "state": state,
    }


def run(form: Form, inputs: Tensors) -> tuple[Tensor, Tensor]:
    given = {name: x for name, x in inputs.items() if name != "age"}
    return form(**given, positions=positions_in_document(inputs["age"], inputs["log_decay"].isneginf().all(-1)))


def written_out(*, q, k, v, log_decay, beta, weights, positions, state) -> tuple[Tensor, Tensor]:
    """Every token's own matrix, moved by all later ones and weighted by its level: no level is ever held."""
    o, last, levels = torch.zeros(*q.shape[:3], V, dtype=state.dtype), [], state.shape[2]
    for b in range(len(q)):
        for h in range(q.shape[2]):
            first = int(positions[b, 0]) - 1
            written = [(s, state[b, h, n]) for n, s in held_by(first, levels).items()] if first >= 0 else []
            for t, number in enumerate(positions[b].tolist()):
                k_t = k[b, t, h]
                if log_decay[b, t, h] == RESET:
                    written = []
                erased = torch.eye(K, dtype=k.dtype) - beta[b, t, h] * torch.outer(k_t, k_t)
                written = [(s, log_decay[b, t, h].exp() * C @ erased) for s, C in written]
                written.append((number, beta[b, t, h] * torch.outer(v[b, t, h], k_t)))
                for s, C in written:
                    o[b, t, h] = o[b, t, h] + weights[b, t, h, min(level(number, s), levels - 1)] * C @ q[b, t, h]
            of_level = [[C for s, C in written if min(level(number, s), levels - 1) == n] for n in range(levels)]
            last.append(torch.stack([sum(each, torch.zeros(V, K, dtype=state.dtype)) for each in of_level]))
    return o, torch.stack(last).unflatten(0, state.shape[:2])


def gradients(form: Form, inputs: Tensors) -> tuple[list[Tensor], Tensors]:
    """What a form gives, and the gradient into every input of a fixed random weighting of all of it."""
    leaves = {name: x if name == "age" else x.clone().requires_grad_() for name, x in inputs.items()}
    outputs = run(form, leaves)
    generator = torch.Generator().manual_seed(0)
    loss = sum((y * torch.randn(y.shape, generator=generator, dtype=torch.float64)).sum() for y in outputs)
    names = [name for name in leaves if name != "age"]
    found = torch.autograd.grad(loss, [leaves[name] for name in names], allow_unused=True)
    return list(outputs), {n: torch.zeros_like(leaves[n]) if g is None else g for n, g in zip(names, found, strict=True)}


def assert_same(form: Form, inputs: Tensors, written: tuple[list[Tensor], Tensors] | None = None) -> None:
    """written: what `written_out` gives, where it is known."""
    (expected, into_expected), (actual, into_actual) = written or gradients(written_out, inputs), gradients(form, inputs)
    for ours, theirs in zip(actual, expected, strict=True):
        assert_near(ours, theirs, "float64")
    held = inputs["state"] != 0.0
    for name, gradient in into_expected.items():
        # A level that has no token may hold anything, for all that the sums know.
        kept = held if name == "state" else torch.ones((), dtype=torch.bool)
        assert_near(into_actual[name] * kept, gradient * kept, "float64")


@functools.cache
def sums(length: int, ages: tuple[int, int]) -> tuple[list[Tensor], Tensors]:
    """Made once for all forms, as they take long."""
    return gradients(written_out, draw(length, ages=ages))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ages", [(0, 0), (1, 6), (13, 24), (16, 3)])
@pytest.mark.parametrize("length", [1, 7, 8, 29])
def test_it_is_the_sum_over_all_tokens(form: Form, length: int, ages: tuple[int, int]) -> None:
    """Outputs, states and all gradients, from the middle of sequences and across what the last level has to hold alone."""
    assert_same(form, draw(length, ages=ages), sums(length, ages))


def draw_reset(begins: tuple[tuple[int, int], ...]) -> Tensors:
    inputs = draw(21, ages=(6, 11))
    for b, t in begins:
        inputs["log_decay"][b, t] = RESET
    return inputs


@functools.cache
def reset_sums(begins: tuple[tuple[int, int], ...]) -> tuple[list[Tensor], Tensors]:
    return gradients(written_out, draw_reset(begins))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("begins", [[(0, 0), (1, 8)], [(0, 5), (0, 6), (1, 15)], [(0, 7), (0, 9), (1, 20)]])
def test_a_reset_begins_a_sequence(form: Form, begins: list[tuple[int, int]]) -> None:
    inputs = draw_reset(tuple(begins))
    assert_same(form, inputs, reset_sums(tuple(begins)))
    # And what came before the last one has no part in what follows.
    o, after = run(form, inputs)
    b, t = begins[-1]
    alone = {name: x[b : b + 1] if name in ("age", "state") else x[b : b + 1, t:] for name, x in inputs.items()}
    alone |= {"age": torch.zeros(1, dtype=torch.int64), "state": torch.zeros_like(alone["state"])}
    expected, expected_after = run(form, alone)
    assert_near(o[b : b + 1, t:], expected, "float64")
    assert_near(after[b : b + 1], expected_after, "float64")


@pytest.mark.parametrize("form", FORMS)
def test_with_equal_weights_it_is_the_gated_delta_rule(form: Form) -> None:
    inputs = draw(27, ages=(0, 9))
    inputs["weights"] = torch.ones_like(inputs["weights"])
    o, after = run(form, inputs)
    plain = {name: inputs[name] for name in ("q", "k", "v", "log_decay", "beta")}
    expected, G = delta_rule.recurrent(**plain, state=inputs["state"].sum(2))
    assert_near(o, expected, "float64")
    assert_near(after.sum(2), G, "float64")


@pytest.mark.parametrize("form", FORMS)
def test_levels_are_powers_of_two_and_enough_for_their_length(form: Form) -> None:
    """Keys at right angles, nothing forgotten: what is held tells which tokens are of which level."""
    length = 16
    assert [num_levels(n) for n in (1, 2, 3, 4, 5, 16, 17, 2048)] == [1, 2, 3, 3, 4, 5, 6, 12]
    inputs: dict[str, Any] = draw(length, levels=num_levels(length))
    inputs["k"] = torch.eye(length, dtype=torch.float64)[None, :, None].expand(B, -1, H, -1)
    inputs["v"] = torch.ones(B, length, H, 1, dtype=torch.float64)
    inputs |= {"q": inputs["k"], "log_decay": torch.zeros(B, length, H).double(), "beta": torch.ones(B, length, H).double()}
    inputs["state"] = torch.zeros(B, H, num_levels(length), 1, length, dtype=torch.float64)
    _, after = run(form, inputs)
    tokens = [after[0, 0, n, 0].nonzero().flatten().tolist() for n in range(5)]
    assert tokens == [[15], [14], [12, 13], [8, 9, 10, 11], list(range(8))]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("log_decay", [0.0, -1e-4, -30.0, -1e4])
def test_any_decay_is_safe_in_float32(form: Form, log_decay: float) -> None:
    inputs = draw(40, ages=(5, 0))
    inputs["log_decay"] = torch.full_like(inputs["log_decay"], log_decay)
    expected, _ = run(written_out, inputs)
    narrow = {name: x if name == "age" else x.float() for name, x in inputs.items()}
    outputs, into = gradients(lambda **each: tuple(y.double() for y in form(**each)), narrow)
    assert_near(outputs[0], expected, "float32")
    assert all(gradient.isfinite().all() for gradient in into.values())
