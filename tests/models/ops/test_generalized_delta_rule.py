"""The generalised delta rule against its definition, written out in matrices, and against the rules that it contains."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.ops import delta_rule, generalized_delta_rule, gla
from tests.models.tolerances import assert_near
from tests.thinned import pairwise

B, H, K, V, CHUNK_SIZE = 2, 3, 5, 4, 8
LENGTHS = (1, 7, 8, 19)

Tensors = dict[str, Tensor]
Form = Callable[..., tuple[Tensor, Tensor]]
UNGATED = {"erase": None, "write": None}
FORMS = {
    "recurrent": partial(generalized_delta_rule.recurrent, **UNGATED),
    "chunked": partial(generalized_delta_rule.chunked, **UNGATED, chunk_size=CHUNK_SIZE),
    # No power of 2, which a channel's decays have to be padded to.
    "chunks of 6": partial(generalized_delta_rule.chunked, **UNGATED, chunk_size=6),
}

each_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
each_decay = pytest.mark.parametrize("channels", [False, True], ids=["scalar", "channel"])
each_number = pytest.mark.parametrize("micro_steps", [1, 2, 3])


def draw(length: int, micro_steps: int = 1, *, channels: bool) -> Tensors:
    """e and a are of unit length and apart from each other, as no rule with one key has them."""
    generator = torch.Generator().manual_seed(length)
    normal, steps = partial(torch.randn, generator=generator, dtype=torch.float64), micro_steps * length
    return {
        "q": normal(B, length, H, K),
        "e": F.normalize(normal(B, steps, H, K), dim=-1),
        "a": F.normalize(normal(B, steps, H, K), dim=-1),
        "u": normal(B, steps, H, V),
        "log_decay": F.logsigmoid(normal(B, steps, H, K) if channels else normal(B, steps, H)),
        "state": normal(B, H, V, K),
    }


def defined(*, q: Tensor, e: Tensor, a: Tensor, u: Tensor, log_decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """G D (I - e a^T) + u a^T, one sequence and head at a time, with every matrix as it is written."""
    micro_steps, outputs, after = e.shape[1] // q.shape[1], [], []
    for b, h in itertools.product(range(B), range(H)):
        G, rows = state[b, h], []
        for t, query in enumerate(q[b, :, h]):
            for s in range(t * micro_steps, (t + 1) * micro_steps):
                decay = torch.diag(log_decay[b, s, h].exp().expand(K))
                G = G @ decay @ (torch.eye(K, dtype=q.dtype) - torch.outer(e[b, s, h], a[b, s, h]))
                G = G + torch.outer(u[b, s, h], a[b, s, h])
            rows.append(G @ query)
        outputs.append(torch.stack(rows))
        after.append(G)
    return torch.stack(outputs).unflatten(0, (B, H)).movedim(2, 1), torch.stack(after).view(B, H, V, K)


def gradients(form: Form, inputs: Tensors) -> tuple[tuple[Tensor, Tensor], Tensors]:
    """Outputs, and the gradient into every input of a fixed random weighting of all of them."""
    leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    outputs = form(**leaves)
    generator = torch.Generator().manual_seed(0)
    loss = sum((y * torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y)).sum() for y in outputs)
    return outputs, dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def assert_same(form: Form, other: Form, inputs: Tensors) -> None:
    assert_gives(form, inputs, gradients(other, inputs))


def assert_gives(form: Form, inputs: Tensors, known: tuple[tuple[Tensor, Tensor], Tensors]) -> None:
    """known: outputs and gradients, as of `gradients`."""
    (actual, into), (expected, expected_into) = gradients(form, inputs), known
    for x, y in zip(actual, expected, strict=True):
        assert_near(x, y, "float64")
    for name, gradient in expected_into.items():
        assert_near(into[name], gradient, "float64")


@functools.cache
def by_definition(length: int, micro_steps: int, channels: bool) -> tuple[Tensors, tuple[tuple[Tensor, Tensor], Tensors]]:
    """Inputs, and outputs and gradients for all forms: a definition that multiplies whole matrices takes long."""
    inputs = draw(length, micro_steps, channels=channels)
    return inputs, gradients(defined, inputs)


@each_form
@each_decay
@each_number
@pytest.mark.parametrize("length", LENGTHS)
def test_outputs_states_and_gradients_are_the_definition_s(length: int, micro_steps: int, channels: bool, form: Form) -> None:
    assert_gives(form, *by_definition(length, micro_steps, channels))


EXTREMES = {
    "no_decay": ("log_decay", 0.0),
    "reset_everywhere": ("log_decay", float("-inf")),
    "strong_decay": ("log_decay", -200.0),
    "nothing_erased": ("e", 0.0),
    "equal_keys": ("e", K**-0.5),
    "nothing_written": ("a", 0.0),
    "large_values": ("u", 1e4),
}


@pairwise(extreme=EXTREMES, micro_steps=[1, 2], channels=[False, True])
def test_extremes_are_finite_and_agree(extreme: str, micro_steps: int, channels: bool) -> None:
    inputs = draw(19, micro_steps, channels=channels)
    name, value = EXTREMES[extreme]
    # Not everywhere, so that within a chunk the extreme meets the ordinary on both sides.
    inputs[name][:, 2:12] = value
    if extreme == "equal_keys":
        inputs["a"][:, 2:12] = value
    narrow, expected = {name: x.float() for name, x in inputs.items()}, gradients(defined, inputs)
    for form in FORMS.values():
        outputs, into = gradients(form, narrow)
        assert all(x.isfinite().all() for x in (*outputs, *into.values()))
        assert_gives(form, inputs, expected)


@each_form
@each_decay
@each_number
@pytest.mark.parametrize("start", [3, 6, CHUNK_SIZE])
def test_a_reset_forgets_what_came_before(start: int, micro_steps: int, channels: bool, form: Form) -> None:
    inputs = draw(19, micro_steps, channels=channels)
    inputs["log_decay"][:, start * micro_steps] = float("-inf")
    # However large it was.
    inputs["state"] = 1e30 * inputs["state"]
    later = {name: x[:, start * (1 if name == "q" else micro_steps) :] for name, x in inputs.items() if name != "state"}
    # A fresh state has nothing to forget: its first forget gate must not matter.
    later["log_decay"] = later["log_decay"].clone()
    later["log_decay"][:, 0] = -0.5
    o, state = form(**inputs)
    fresh_o, fresh_state = form(**later, state=torch.zeros_like(state))
    assert_near(o[:, start:], fresh_o, "float64")
    assert_near(state, fresh_state, "float64")


def test_one_channel_may_be_reset_and_others_kept() -> None:
    inputs = draw(19, channels=True)
    inputs["log_decay"][:, 3:11, :, ::2] = float("-inf")
    for form in FORMS.values():
        assert_same(form, defined, inputs)


def test_a_product_of_decays_is_exact_behind_a_strong_one() -> None:
    """A factor exp(-B_j), of which the decays between two tokens could be made, overflows from |B_j| = 89 on."""
    inputs = {name: x.float() for name, x in draw(40, channels=True).items()}
    inputs["log_decay"] = torch.full_like(inputs["log_decay"], -200.0)
    inputs["log_decay"][:, -1] = -1e-3
    o, _ = generalized_delta_rule.chunked(**inputs, **UNGATED, chunk_size=64)
    wide = {name: x.double() for name, x in inputs.items()}
    torch.testing.assert_close(o.double(), defined(**wide)[0], rtol=2e-6, atol=2e-6)


@each_decay
def test_gradients_match_finite_differences(channels: bool) -> None:
    inputs = draw(9, 2, channels=channels)
    leaves = [(x[:1, :1] if name == "state" else x[:1, :, :1]).clone().requires_grad_() for name, x in inputs.items()]
    for form in FORMS.values():
        given = partial(lambda form, *xs: form(**dict(zip(inputs, xs, strict=True))), form)
        assert torch.autograd.gradcheck(given, leaves, fast_mode=True)


@each_form
def test_with_one_key_it_is_the_delta_rule(form: Form) -> None:
    inputs = draw(19, channels=False)
    beta = torch.rand(B, 19, H, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    k, shared = inputs["a"], {name: inputs[name] for name in ("q", "log_decay", "state")}
    expected = delta_rule.recurrent(**shared, k=k, v=inputs["u"], beta=beta)
    actual = form(**shared, e=beta.unsqueeze(-1) * k, a=k, u=beta.unsqueeze(-1) * inputs["u"])
    for x, y in zip(actual, expected, strict=True):
        assert_near(x, y, "float64")


@each_form
@each_number
@pytest.mark.parametrize("widths", [(1, 1), (K, V)], ids=["head", "channel"])
def test_gates_multiply_what_is_erased_and_what_is_written(widths: tuple[int, int], micro_steps: int, form: Form) -> None:
    inputs = draw(19, micro_steps, channels=True)
    generator = torch.Generator().manual_seed(1)
    gates = (torch.rand(*inputs["e"].shape[:3], width, generator=generator, dtype=torch.float64) for width in widths)
    inputs["erase"], inputs["write"] = gates

    def multiplied(*, e: Tensor, u: Tensor, erase: Tensor, write: Tensor, **others: Tensor) -> tuple[Tensor, Tensor]:
        return defined(e=erase * e, u=write * u, **others)

    assert_same(form, multiplied, inputs)


@each_form
@each_decay
def test_a_decay_of_a_token_is_that_of_its_first_micro_step(channels: bool, form: Form) -> None:
    inputs = draw(19, 3, channels=channels)
    first = inputs["log_decay"].unflatten(1, (19, 3))
    inputs["log_decay"] = first[:, :, 0]
    first[:, :, 1:] = 0.0
    for x, y in zip(form(**inputs), defined(**inputs | {"log_decay": first.flatten(1, 2)}), strict=True):
        assert_near(x, y, "float64")


@each_form
def test_without_erasing_it_is_gated_linear_attention(form: Form) -> None:
    inputs = draw(19, channels=True)
    shared = {name: inputs[name] for name in ("q", "log_decay", "state")}
    expected = gla.recurrent(**shared, k=inputs["a"], v=inputs["u"])
    for x, y in zip(form(**inputs | {"e": torch.zeros_like(inputs["e"])}), expected, strict=True):
        assert_near(x, y, "float64")


@each_number
def test_channels_that_decay_alike_are_one_scalar(micro_steps: int) -> None:
    inputs = draw(19, micro_steps, channels=False)
    alike = inputs | {"log_decay": inputs["log_decay"].unsqueeze(-1).expand(-1, -1, -1, K)}
    for form in FORMS.values():
        for x, y in zip(form(**alike), form(**inputs), strict=True):
            assert_near(x, y, "float64")


@each_decay
def test_no_tensor_has_a_number_for_every_pair_and_channel(channels: bool) -> None:
    """What is kept for the gradient is in proportion to the sequence, times the logarithm of the chunk and not its length."""
    size, keys = 64, 32
    inputs = {name: x[:1, :, :1] for name, x in draw(size, channels=channels).items()}
    wide = {name: x[..., :1].expand(*x.shape[:3], keys).clone().requires_grad_() for name, x in inputs.items() if x.ndim == 4}
    wide["state"] = torch.zeros(1, 1, keys, keys, dtype=torch.float64, requires_grad=True)
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes() // 8
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        generalized_delta_rule.chunked(**{**inputs, **wide}, **UNGATED, chunk_size=size)
    assert max(kept.values()) <= 2 * size * max(keys, size)
    assert sum(kept.values()) < size * size * keys


@each_form
@each_decay
def test_nothing_is_asked_of_the_host(channels: bool, form: Form) -> None:
    """Tensors without values pass both ways, so that a CUDA graph can hold what is computed."""
    leaves = {name: x.to("meta").requires_grad_() for name, x in draw(19, 2, channels=channels).items()}
    o, state = form(**leaves)
    (o.sum() + state.sum()).backward()
    assert all(x.grad is not None for x in leaves.values())


@each_decay
def test_a_bfloat16_sequence_is_computed_in_the_float32_of_its_state(channels: bool) -> None:
    drawn = draw(9, 2, channels=channels)
    inputs = {name: x.float() if name in ("log_decay", "state") else x.bfloat16() for name, x in drawn.items()}
    expected = FORMS["recurrent"](**inputs)
    for actual, y in zip(FORMS["chunked"](**inputs), expected, strict=True):
        assert actual.dtype == y.dtype == torch.float32
        assert_near(actual, y, "float32")
