"""The adapters to fla's delta rules with two keys, gates of channels and micro-steps: which kernel computes what, and around it.

Plain PyTorch stands in for the kernels here; test_fla_parity.py holds the kernels themselves to their definitions, on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from models.backends import fla, fla_delta, fla_low_rank
from models.build import mixer_classes, read_model
from models.mixer import SequenceMixer
from models.ops import diagonal_plus_low_rank, generalized_delta_rule
from models.pgdn import PreconditionedDeltaNet
from tests.models.test_laws import config
from tests.models.tolerances import assert_near

B, T, H, K, V, D_MODEL = 2, 9, 3, 6, 5, 32
UNKNOWN = float("-inf")

Tensors = dict[str, Tensor]
by_steps = partial(generalized_delta_rule.recurrent, erase=None, write=None)


def one_key(q, k, v, log_decay, beta, state):
    beta = beta.unsqueeze(-1)
    return by_steps(q=q, e=beta * k, a=k, u=beta * v, log_decay=log_decay, state=state)


def gates_of_channels(q, k, v, log_decay, erase, write, state):
    return by_steps(q=q, e=erase * k, a=k, u=write * v, log_decay=log_decay, state=state)


def two_keys(q, e, v, a, log_decay, beta, state):
    beta = beta.unsqueeze(-1)
    return by_steps(q=q, e=beta * e, a=a, u=beta * v, log_decay=log_decay, state=state)


def low_rank(q, k, v, e, a, log_decay, state):
    return diagonal_plus_low_rank.recurrent(q=q, k=k, v=v, e=e, a=a, log_decay=log_decay, state=state, floor=UNKNOWN)


KERNELS = {
    "kda": (fla_delta.operators, one_key),
    "gdn2": (fla_delta.operators, gates_of_channels),
    "apart": (fla_delta.operators, two_keys),
    "apart_by_channel": (fla_delta.operators, two_keys),
    "delta_product": (fla_delta.operators, one_key),
    "gated_delta_rule": (fla_delta, one_key),
    "exact": (fla_low_rank, low_rank),
    "bounded": (fla_low_rank, low_rank),
}


@pytest.fixture
def plain_kernels(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """PyTorch in place of the kernels, on what a kernel takes; gives the names of those called."""
    called: list[str] = []

    def checked(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        def run(*tensors: Tensor) -> Any:
            called.append(name)
            *others, state = tensors
            assert all(x.is_contiguous() and x.isfinite().all() for x in tensors) and state.dtype == torch.float32
            keys, v = [x for x in others if x.ndim == 4 and x.shape[-1] == state.shape[-1]], others[2]
            assert {x.dtype for x in keys} <= {v.dtype, torch.float32} and state.shape[-2:] == (v.shape[-1], keys[0].shape[-1])
            assert min(state.shape[-2:]) >= fla.SMALLEST and v.shape[-1] % fla.ALIGNED == 0
            o, after = kernel(*tensors)
            return (o, after) if name in ("exact", "bounded") else (o, after, None)

        return run

    for name, (place, kernel) in KERNELS.items():
        monkeypatch.setattr(place, name, checked(name, kernel))
    return called


def draw(*, channels: bool, micro_steps: int = 1, key_dim: int = K, value_dim: int = V) -> Tensors:
    """With a reset in the middle; gates of a head, and of channels."""
    normal, steps = partial(torch.randn, generator=torch.Generator().manual_seed(key_dim)), micro_steps * T
    q, e, a = (F.normalize(normal(B, length, H, key_dim), dim=-1) for length in (T, steps, steps))
    log_decay = F.logsigmoid(normal(B, steps, H, key_dim) if channels else normal(B, steps, H))
    log_decay[:, micro_steps * (T // 2)] = float("-inf")
    drawn = {"q": q, "e": e, "a": a, "u": normal(B, steps, H, value_dim), "log_decay": log_decay}
    drawn |= {"beta": normal(B, steps, H, 1).sigmoid(), "erase": normal(B, steps, H, key_dim).sigmoid()}
    return drawn | {"write": normal(B, steps, H, value_dim).sigmoid(), "state": normal(B, H, value_dim, key_dim)}


def handed_over(x: Tensors, *, keys: int, gate: str) -> dict[str, Any]:
    """What the op takes of what was drawn: one key or two, and a gate of a head, two of channels, one of each, or none."""
    gates = {"head": (x["beta"], x["beta"]), "channels": (x["erase"], x["write"]), "none": (None, None)}
    erase, write = gates.get(gate, (x["beta"], x["write"]))
    inputs = {name: x[name] for name in ("q", "e", "u", "log_decay", "state")}
    return {**inputs, "a": x["e"] if keys == 1 else x["a"], "erase": erase, "write": write}


CASES = [
    ("kda", 1, "head", True, 1),
    ("gdn2", 1, "channels", True, 1),
    ("gated_delta_rule", 1, "head", False, 1),
    ("gated_delta_rule", 1, "none", False, 1),
    ("apart", 1, "channels", False, 1),
    ("apart", 2, "head", False, 1),
    ("apart", 2, "none", False, 2),
    ("apart", 1, "head", False, 2),
    ("apart_by_channel", 2, "head", True, 1),
    ("apart_by_channel", 2, "channels", True, 1),
    ("apart_by_channel", 1, "one of each", True, 1),
    ("apart_by_channel", 1, "head", True, 3),
]


def results(form: Callable[..., tuple[Tensor, Tensor]], drawn: Tensors, **choices: Any) -> list[Tensor]:
    """o, the state, and the gradient into everything that was drawn, zeros where it was not handed over."""
    leaves = {name: x.clone().requires_grad_() for name, x in drawn.items()}
    outputs = form(**handed_over(leaves, **choices))
    generator = torch.Generator().manual_seed(0)
    loss = sum((y * torch.randn(y.shape, generator=generator)).sum() for y in outputs)
    return [*outputs, *torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)]


@pytest.mark.parametrize(("key_dim", "value_dim"), [(6, 5), (64, 65), (80, 5)])
@pytest.mark.parametrize(("kernel", "keys", "gate", "channels", "micro_steps"), CASES)
def test_an_adapter_is_the_op_by_the_kernel_for_its_structure(
    plain_kernels: list[str], kernel: str, keys: int, gate: str, channels: bool, micro_steps: int, key_dim: int, value_dim: int
) -> None:
    drawn = draw(channels=channels, micro_steps=micro_steps, key_dim=key_dim, value_dim=value_dim)
    actual = results(fla_delta.generalized_delta_rule, drawn, keys=keys, gate=gate)
    assert plain_kernels == [kernel]
    for x, y in zip(actual, results(generalized_delta_rule.recurrent, drawn, keys=keys, gate=gate), strict=True):
        assert_near(x, y, "float32")


@pytest.mark.parametrize(
    ("keys", "channels", "kernel"), [(1, False, "delta_product"), (2, False, "apart"), (1, True, "apart_by_channel")]
)
def test_a_decay_a_token_with_several_micro_steps_is_the_op(
    plain_kernels: list[str], keys: int, channels: bool, kernel: str
) -> None:
    drawn = draw(channels=channels, micro_steps=3)
    drawn["log_decay"] = drawn["log_decay"][:, ::3].clone()
    actual = results(fla_delta.generalized_delta_rule, drawn, keys=keys, gate="head")
    assert plain_kernels == [kernel]
    for x, y in zip(actual, results(generalized_delta_rule.recurrent, drawn, keys=keys, gate="head"), strict=True):
        assert_near(x, y, "float32")


@pytest.mark.parametrize(("floor", "kernel"), [(UNKNOWN, "exact"), (-0.61, "bounded"), (-3.0, "exact")])
def test_a_rule_of_low_rank_is_computed_in_large_chunks_where_decays_are_bounded(
    plain_kernels: list[str], floor: float, kernel: str
) -> None:
    drawn = draw(channels=True)
    log_decay = drawn["log_decay"] if floor == UNKNOWN else drawn["log_decay"].clamp(min=floor)
    inputs = {"q": drawn["q"], "k": drawn["a"], "v": drawn["u"], "e": drawn["e"], "a": drawn["erase"] * drawn["e"]}
    inputs |= {"log_decay": log_decay, "state": drawn["state"]}
    actual = fla_low_rank.diagonal_plus_low_rank(**inputs, floor=floor)
    assert plain_kernels == [kernel]
    for x, y in zip(actual, diagonal_plus_low_rank.recurrent(**inputs, floor=floor), strict=True):
        assert_near(x, y, "float32")


def test_what_is_wider_becomes_what_the_values_are(plain_kernels: list[str]) -> None:
    drawn = draw(channels=True)
    drawn["u"] = drawn["u"].bfloat16()
    for keys, gate in ((1, "head"), (1, "channels"), (2, "head")):
        fla_delta.generalized_delta_rule(**handed_over(drawn, keys=keys, gate=gate))
    assert plain_kernels == ["kda", "gdn2", "apart_by_channel"]


def test_float64_is_refused() -> None:
    drawn = {name: x.double() for name, x in draw(channels=True).items()}
    with pytest.raises(ValueError, match="float64, permitted are float32 and bfloat16"):
        fla_delta.generalized_delta_rule(**handed_over(drawn, keys=1, gate="head"))


MIXERS = {
    "kda": "kda",
    "gdn2": "gdn2",
    "triadic_gdn": "kda",
    "pgdn": "apart",
    "pkda": "apart_by_channel",
    "comba": "apart",
    "comba_fla": "apart",
    "deltaproduct": "delta_product",
    "rwkv7": "exact",
}


def layer(name: str, backend: str) -> SequenceMixer:
    (settings,) = read_model(config(name)["model"]).mixers
    built = mixer_classes()[settings.type](settings, d_model=D_MODEL, backend=backend)
    built.reset_parameters(torch.Generator().manual_seed(0))
    return built


def without_scan(by_fla: SequenceMixer) -> SequenceMixer:
    """Our scan of a preconditioner's moments needs a GPU, as its own tests do."""
    if isinstance(by_fla, PreconditionedDeltaNet):
        by_fla.scan = None
    return by_fla


@pytest.mark.parametrize("name", MIXERS)
@torch.no_grad()
def test_a_layer_is_the_same_with_both_backends(plain_kernels: list[str], name: str) -> None:
    expected_layer, by_fla = layer(name, "torch"), without_scan(layer(name, "fla"))
    x = torch.randn(B, T, D_MODEL, generator=torch.Generator().manual_seed(1))
    starts = torch.zeros(B, T, dtype=torch.bool)
    starts[0, 4] = True
    y, state = by_fla(x, starts=starts)
    expected, expected_state = expected_layer(x, starts=starts)
    assert plain_kernels == [MIXERS[name]]
    assert_near(y, expected, "float32")
    # A token that is kept for a shift is a view of x.
    state = {key: value.clone() for key, value in state.items()}
    assert_near(by_fla.step_(x[:, 0], state), expected_layer.step(x[:, 0], expected_state)[0], "float32")
    assert len(plain_kernels) == 1


@torch.no_grad()
def test_rwkv7_without_documents_knows_how_strong_a_decay_is(plain_kernels: list[str]) -> None:
    x = torch.randn(B, T, D_MODEL, generator=torch.Generator().manual_seed(1))
    assert_near(layer("rwkv7", "fla")(x)[0], layer("rwkv7", "torch")(x)[0], "float32")
    assert plain_kernels == ["bounded"]


OPERATORS = {"apart_by_channel": "fla_apart_by_channel", "delta_product": "fla_delta_product", "apart": "fla_apart"}
OPERATORS |= {"kda": "fla_kda", "gdn2": "fla_gdn2", "exact": "fla_diagonal_plus_low_rank"}


class Recorded(Exception):
    """Ends a compilation when the graph is there: its kernels can't run here."""


@pytest.mark.parametrize("name", MIXERS)
def test_a_compiled_layer_is_one_graph_with_the_kernel_for_its_structure(name: str) -> None:
    graphs: list[str] = []

    def record(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(str(graph.graph))
        raise Recorded

    x, starts = torch.randn(B, 70, D_MODEL), torch.zeros(B, 70, dtype=torch.bool)
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed):
        torch.compile(without_scan(layer(name, "fla")), fullgraph=True, backend=record)(x, starts=starts)
    assert len(graphs) == 1 and f"linear_rnn_suite.{OPERATORS[MIXERS[name]]}" in graphs[0]


@pytest.mark.parametrize("name", MIXERS)
def test_operators_know_the_shapes_of_outputs_and_gradients(name: str) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        by_fla = without_scan(layer(name, "fla"))
        x = torch.randn(B, 70, D_MODEL, requires_grad=True)
        before = by_fla.init_state(B)
        before["G"].requires_grad_()
        y, state = by_fla(x, before, starts=torch.zeros(B, 70, dtype=torch.bool))
        (y.sum() + state["G"].sum()).backward()
    assert y.shape == x.shape and state["G"].shape == before["G"].shape
    assert all(p.grad is not None and p.grad.shape == p.shape for p in (x, before["G"], *by_fla.parameters()))
