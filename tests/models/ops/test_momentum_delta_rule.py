"""The delta rule with momentum: both forms against its equations, its limits, its extremes and its resets."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.ops import delta_rule
from models.ops.momentum_delta_rule import MomentumState, chunked, recurrent
from tests.models.tolerances import assert_near

B, H, K, V = 2, 3, 5, 4
CHUNK_SIZE = 8
RESET = float("-inf")

Tensors = dict[str, Tensor]
Form = Callable[..., tuple[Tensor, MomentumState]]
FORMS = [pytest.param(recurrent, id="recurrent"), pytest.param(partial(chunked, chunk_size=CHUNK_SIZE), id="chunked")]


def draw(length: int) -> Tensors:
    """Gates around 0.7, keys of a length around 1 that are not those read by, and a state in the middle of a sequence."""
    generator = torch.Generator().manual_seed(length)
    normal = partial(torch.randn, generator=generator, dtype=torch.float64)
    return {
        "q": normal(B, length, H, K),
        "p": F.normalize(normal(B, length, H, K), dim=-1),
        "k": F.normalize(normal(B, length, H, K), dim=-1) * (1.0 + torch.tanh(normal(B, length, H, 1))),
        "v": normal(B, length, H, V),
        "log_decay": F.logsigmoid(normal(B, length, H) + 1.0),
        "log_momentum": F.logsigmoid(normal(B, length, H)),
        "beta": normal(B, length, H).sigmoid(),
        "G": normal(B, H, V, K),
        "M": normal(B, H, V, K),
    }


def run(form: Form, inputs: Tensors) -> list[Tensor]:
    o, state = form(**{name: x for name, x in inputs.items() if name not in "GM"}, state=MomentumState(inputs["G"], inputs["M"]))
    return [o, *state]


def written_out(*, q, p, k, v, log_decay, log_momentum, beta, state: MomentumState) -> tuple[Tensor, MomentumState]:
    """The paper's equations, head by head, with a state that a reset replaces by zeros."""
    o, last = [], []
    for b in range(len(q)):
        for h in range(q.shape[2]):
            G, M = state.G[b, h], state.M[b, h]
            for t in range(q.shape[1]):
                if log_decay[b, t, h] == RESET:
                    G, M = torch.zeros_like(G), torch.zeros_like(M)
                    gamma = G.new_ones(())
                else:
                    gamma = log_decay[b, t, h].exp()
                error = G @ p[b, t, h] - v[b, t, h]
                M = log_momentum[b, t, h].exp() * M + torch.outer(error, k[b, t, h])
                G = gamma * G - beta[b, t, h] * M
                o.append(G @ q[b, t, h])
            last.append((G, M))
    G, M = (torch.stack(x).unflatten(0, state.G.shape[:2]) for x in zip(*last, strict=True))
    return torch.stack(o).unflatten(0, (len(q), q.shape[2], q.shape[1])).transpose(1, 2), MomentumState(G, M)


def gradients(form: Form, inputs: Tensors) -> tuple[list[Tensor], Tensors]:
    """What a form gives, and the gradient into every input of a fixed random weighting of all of it."""
    leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    outputs = run(form, leaves)
    generator = torch.Generator().manual_seed(0)
    loss = sum((y * torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y)).sum() for y in outputs)
    return outputs, dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def assert_same(form: Form, inputs: Tensors, reference: Form) -> None:
    (expected, expected_gradients), (actual, actual_gradients) = (gradients(f, inputs) for f in (reference, form))
    for x, y in zip(actual, expected, strict=True):
        assert_near(x, y, "float64")
    for name, gradient in expected_gradients.items():
        assert_near(actual_gradients[name], gradient, "float64")


@pytest.mark.parametrize("length", [1, 7, 8, 19])
@pytest.mark.parametrize("form", FORMS)
def test_both_forms_are_the_equations(form: Form, length: int) -> None:
    """Outputs, both matrices and all gradients, of these too, at lengths that are no whole chunks."""
    assert_same(form, draw(length), written_out)


@pytest.mark.parametrize("form", FORMS)
def test_resets_in_a_chunk_and_at_its_ends_cut_both_matrices(form: Form) -> None:
    inputs = draw(19)
    for row, starts in enumerate([[0, 7, 8], [3, 4, 18]]):
        inputs["log_decay"][row, starts] = RESET
    assert_same(form, inputs, written_out)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("start", [3, CHUNK_SIZE])
def test_a_reset_leaves_nothing_of_what_came_before(form: Form, start: int) -> None:
    """Not a bit of it, whatever the momentum and what is read by: a document begins as another one before it would have it."""
    inputs, others = draw(19), draw(20)
    inputs["log_decay"][:, start] = RESET
    changed = {name: x.clone() for name, x in inputs.items()}
    for name, x in changed.items():
        x[:, :start] = others[name][:, :start] if name not in "GM" else x[:, :start]
        if name in "GM":
            x.copy_(others[name])
    (o, G, M), (other_o, other_G, other_M) = run(form, inputs), run(form, changed)
    assert torch.equal(o[:, start:], other_o[:, start:]) and torch.equal(G, other_G) and torch.equal(M, other_M)
    assert not torch.equal(o[:, :start], other_o[:, :start])


@pytest.mark.parametrize("form", FORMS)
def test_without_momentum_it_is_the_gated_delta_rule(form: Form) -> None:
    inputs = draw(19)
    k = F.normalize(inputs["k"], dim=-1)
    gated = {"k": k, "p": inputs["log_decay"].exp().unsqueeze(-1) * k, "log_momentum": torch.full_like(inputs["beta"], RESET)}
    shared = {name: inputs[name] for name in ("q", "v", "log_decay", "beta")}
    o, G = delta_rule.recurrent(**shared, k=k, state=inputs["G"])
    actual, actual_G, _ = run(form, inputs | gated)
    assert_near(actual, o, "float64")
    assert_near(actual_G, G, "float64")


@torch.no_grad()
def test_errors_of_one_key_follow_a_damped_oscillation() -> None:
    """With one unit key and no forgetting the error is that of gradient descent with momentum, which overshoots."""
    length, beta, mu = 12, 0.5, 0.7
    key = torch.zeros(1, length, 1, K, dtype=torch.float64)
    key[..., 0] = 1.0
    zeros = torch.zeros(1, length, 1, dtype=torch.float64)
    state = MomentumState(*torch.zeros(2, 1, 1, V, K, dtype=torch.float64))
    gates = {"log_decay": zeros, "log_momentum": zeros + math.log(mu), "beta": zeros + beta}
    o, _ = chunked(q=key, p=key, k=key, v=torch.ones(1, length, 1, V).double(), **gates, state=state, chunk_size=CHUNK_SIZE)
    learned, step, expected = 0.0, 0.0, []
    for _ in range(length):
        step = mu * step + (1.0 - learned)
        learned += beta * step
        expected.append(learned)
    assert_near(o[0, :, 0, 0], torch.tensor(expected, dtype=torch.float64), "float64")
    assert max(expected) > 1.2


EXTREMES = {
    "no_decay": ("log_decay", 0.0),
    "reset_everywhere": ("log_decay", RESET),
    "strong_decay": ("log_decay", -200.0),
    "all_momentum": ("log_momentum", 0.0),
    "no_momentum": ("log_momentum", RESET),
    "strong_damping": ("log_momentum", -200.0),
    "nothing_moved": ("beta", 0.0),
    "zero_keys": ("k", 0.0),
    "equal_keys": ("k", K**-0.5),
    "nothing_read": ("p", 0.0),
    "large_values": ("v", 1e4),
}


@pytest.mark.parametrize("extreme", EXTREMES)
def test_extremes_are_finite_and_agree(extreme: str) -> None:
    inputs = draw(19)
    name, value = EXTREMES[extreme]
    # Not everywhere, so that within a chunk the extreme meets the ordinary on both sides.
    inputs[name][:, 2:12] = value
    form = partial(chunked, chunk_size=CHUNK_SIZE)
    for each in (recurrent, form):
        outputs, into = gradients(each, {name: x.float() for name, x in inputs.items()})
        assert all(x.isfinite().all() for x in (*outputs, *into.values()))
    assert_same(form, {name: x.float().double() for name, x in inputs.items()}, recurrent)


@pytest.mark.parametrize("damping", [-0.7, -2.0, -30.0])
@torch.no_grad()
def test_float32_is_exact_however_fast_momentum_fades(damping: float) -> None:
    """A chunk of 64: quotients of products of gates overflow or cancel there, as exp(64 * 2) against 1."""
    inputs = {name: x.float() for name, x in draw(64).items()}
    inputs["log_momentum"] = torch.full_like(inputs["log_momentum"], damping)
    expected = run(recurrent, {name: x.double() for name, x in inputs.items()})
    for x, y in zip(run(partial(chunked, chunk_size=64), inputs), expected, strict=True):
        assert (x - y).norm() < 1e-6 * y.norm()


@pytest.mark.parametrize("form", FORMS)
def test_a_bfloat16_sequence_is_computed_in_the_float32_of_its_state(form: Form) -> None:
    inputs = {name: x.bfloat16() if name in ("q", "p", "k", "v") else x.float() for name, x in draw(9).items()}
    for actual, expected in zip(run(form, inputs), run(recurrent, {n: x.double() for n, x in inputs.items()}), strict=True):
        assert actual.dtype == torch.float32
        assert_near(actual.double(), expected, "float32")


@pytest.mark.parametrize("form", FORMS)
def test_gradients_match_finite_differences(form: Form) -> None:
    inputs = {name: x[:1, :1] if name in "GM" else x[:1, :, :1] for name, x in draw(9).items()}
    leaves = [x.clone().requires_grad_() for x in inputs.values()]
    assert torch.autograd.gradcheck(lambda *xs: tuple(run(form, dict(zip(inputs, xs, strict=True)))), leaves, fast_mode=True)


@pytest.mark.gpu
def test_a_cuda_graph_holds_a_chunked_call() -> None:
    inputs = {name: x.cuda().float() for name, x in draw(19).items()}
    form = partial(chunked, chunk_size=CHUNK_SIZE)
    stream = torch.cuda.Stream()
    with torch.no_grad(), torch.cuda.stream(stream):
        expected = run(form, inputs)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        held = run(form, inputs)
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(x, y) for x, y in zip(held, expected, strict=True))
