"""The shared frame and Mamba's decay a token at a time, apart from the models: a rival's test adds its own recurrence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from models.components import MambaDecay, ScalarGate
from models.linear_rnn import LinearRNN
from models.mixer import SequenceMixer, State
from tests.models import built
from tests.models.tolerances import assert_near

B, D_MODEL, HEADS, KEYS, VALUES = 2, 24, 2, 6, 5

# x_t [B, d_model], q [B, H, K], the keys [B, n, H, K] and values [B, n, H, V] that the token writes, and the state.
Step = Callable[[Any, Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]], tuple[Tensor, dict[str, Tensor]]]

FRAME = {
    "d_model": D_MODEL,
    "backend": "torch",
    "num_heads": HEADS,
    "key_dim": KEYS,
    "value_dim": VALUES,
    "conv_width": 3,
    "convolution": "query_key_value",
    "feature_map": "silu_l2",
    "affine_keys": False,
    "output_gate": "sigmoid",
    "output_gate_rank": None,
    "forget_gate_init": None,
    "decay_rates": [0.5, 4],
    "input_gate_init": 0.5,
    "norm_eps": 1e-6,
    "chunk_size": 8,
}


def build(kind: type[LinearRNN], **changes: Any) -> Any:
    """A layer with the FRAME, see `stirred`."""
    return stirred(kind, {**FRAME, **changes})


def stirred(kind: type[SequenceMixer], values: Mapping[str, Any]) -> Any:
    """A layer in float64 none of whose parameters is at a neutral value."""
    layer = built.mixer(kind, values).double()
    layer.reset_parameters(torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return layer


def draw(layer: SequenceMixer, length: int, *, d_model: int) -> tuple[Tensor, State]:
    """An input [B, length, d_model] and a state in the middle of a sequence."""
    generator = torch.Generator().manual_seed(length)
    x = torch.randn(B, length, d_model, generator=generator, dtype=torch.float64)
    return x, {key: torch.randn(value.shape, generator=generator).double() for key, value in layer.init_state(B).items()}


def assert_written_out(
    layer: Any, written_out: Callable[..., tuple[Tensor, State]], x: Tensor, state: State, *, held: Sequence[str]
) -> None:
    """Outputs, states and all gradients are those of written_out(layer, x, starts, state), across starts.

    held: the parts of the state behind the last token from which gradients come, beside the outputs.
    """
    starts = torch.zeros(x.shape[:2], dtype=torch.bool)
    starts[0, 5::6] = True
    starts[1, 8:10] = True
    leaves = [x, *state.values()]
    for leaf in leaves:
        leaf.requires_grad_()
    found, expected = layer(x, state, starts=starts), written_out(layer, x, starts, state)
    assert_near(found[0], expected[0], "float64")
    for key, value in expected[1].items():
        assert_near(found[1][key], value, "float64")
    into, expected_into = (_gradients(layer, y, [after[key] for key in held], leaves) for y, after in (found, expected))
    for ours, theirs in zip(into, expected_into, strict=True):
        assert_near(ours, theirs, "float64")


def _gradients(layer: Any, y: Tensor, after: Sequence[Tensor], leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Into the leaves and every parameter, of a fixed random weighting of the outputs and the state."""
    generator = torch.Generator().manual_seed(0)
    weighted = [(each * torch.randn(each.shape, generator=generator).double()).sum() for each in (y, *after)]
    return torch.autograd.grad(sum(weighted), [*leaves, *layer.parameters()])


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gate(linear: ScalarGate, x_t: Tensor) -> Tensor:
    """sigmoid(W x + b), [B, rows of W]."""
    return 1.0 / (1.0 + torch.exp(-(x_t @ linear.projection.weight.T + linear.projection.bias)))


def decay(part: MambaDecay, x_t: Tensor) -> Tensor:
    """exp(-rate softplus(W x + b)), [B, H, 1] or [B, H, channels]."""
    hidden = x_t if part.bottleneck is None else x_t @ part.bottleneck.weight.T
    step_size = torch.log(1.0 + torch.exp(hidden @ part.projection.weight.T + part.step_size_bias))
    return torch.exp(-torch.exp(part.log_rate)[:, None] * step_size.view(len(x_t), HEADS, -1))


def unit(x: Tensor) -> Tensor:
    return x / x.square().sum(-1, keepdim=True).sqrt()


def run(layer: Any, x: Tensor, state: dict[str, Tensor], starts: Tensor, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
    """The whole layer: projections, convolution, SiLU, unit length where asked for, `step`, norm, output gate, projection."""
    outputs = []
    for t in range(x.shape[1]):
        state = {name: s.masked_fill(starts[:, t].view(-1, *(1,) * (s.ndim - 1)), 0.0) for name, s in state.items()}
        x_t, taps = x[:, t], state["conv"]
        projected = torch.cat([x_t @ layer.query_key_projection.weight.T, x_t @ layer.value_projection.weight.T], dim=-1)
        taps = torch.cat([taps, projected[:, None]], dim=1)
        mixed = F.silu(sum(layer.convolution.weight[:, j] * taps[:, -1 - j] for j in range(taps.shape[1])))
        keys = layer.query_key_projection.weight.shape[0]
        q_and_k = mixed[:, :keys].view(B, -1, HEADS, KEYS)
        if layer.settings.feature_map == "silu_l2":
            q_and_k = unit(q_and_k)
        o, after = step(layer, x_t, q_and_k[:, 0], q_and_k[:, 1:], mixed[:, keys:].view(B, -1, HEADS, VALUES), state)
        state = {"conv": taps[:, 1:], **after}
        y = o / (o.square().mean(-1, keepdim=True) + layer.settings.norm_eps).sqrt() * layer.norm.weight
        part = layer.output_gate
        logits = (x_t if part.bottleneck is None else x_t @ part.bottleneck.weight.T) @ part.projection.weight.T
        logits = logits + part.projection.bias
        y = y.flatten(1) * torch.sigmoid(logits) * (logits if layer.settings.output_gate == "swish" else 1.0)
        outputs.append(y @ layer.output_projection.weight.T)
    return torch.stack(outputs, dim=1), state


def assert_layer_is(layer: Any, step: Step, *, length: int, begins: tuple[int, ...] = ()) -> None:
    """Outputs, states and gradients into parameters, input and states of a layer are those of the equations.

    The first sequence starts anew at the places `begins`; the states before are not zero, and those that are sums of squares
    are positive.
    """
    x = normal(B, length, D_MODEL, seed=2).requires_grad_()
    state = {name: normal(*s.shape, seed=len(name) + 3) for name, s in layer.init_state(B).items()}
    state = {name: (s.square() if name == "A" else s).requires_grad_() for name, s in state.items()}
    starts = torch.zeros(B, length, dtype=torch.bool)
    starts[0, list(begins)] = True
    leaves = [x, *state.values(), *layer.parameters()]
    seen = []
    for y, after in (layer(x, state, starts=starts), run(layer, x, state, starts, step)):
        assert after.keys() == state.keys()
        results = [y, *(after[name] for name in state)]
        loss = sum((each * normal(*each.shape, seed=n)).sum() for n, each in enumerate(results))
        seen.append([*results, *torch.autograd.grad(loss, leaves)])
    for actual, expected in zip(*seen, strict=True):
        assert_near(actual, expected, "float64")
