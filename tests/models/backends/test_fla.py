"""What the adapters to flash-linear-attention do around its kernels, which plain PyTorch stands in for here."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.backends import fla, settle
from models.build import mixer_class
from models.ops import decayed_linear_attention, delta_rule, gla, mlstm
from tests.models import built
from tests.models.tolerances import assert_near

B, T, H, K, V = 2, 9, 3, 6, 5
HOPPER, AMPERE = (9, 0), (8, 0)


@pytest.fixture
def plain_kernels(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """PyTorch in place of the kernels, on what a kernel takes; gives the names of those called."""
    called = []

    def checked(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        def run(*tensors: Tensor | None) -> Any:
            called.append(name)
            q, k, v, *gates, state = tensors
            assert q.dtype == k.dtype == v.dtype and state.dtype == torch.float32
            assert all(x is None or (x.dtype == torch.float32 and x.isfinite().all()) for x in gates)
            assert all(x is None or x.is_contiguous() for x in tensors)
            if name in ("simple_gla", "gated_delta_rule"):
                assert min(k.shape[-1], v.shape[-1]) >= fla.SMALLEST and v.shape[-1] % fla.ALIGNED == 0
            return kernel(*tensors)

        return run

    def simple_gla(q, k, v, log_decay, state):
        ones = torch.ones_like(log_decay)
        return (*decayed_linear_attention.recurrent(q=q, k=k, v=v, log_decay=log_decay, beta=ones, state=state), None)

    def vector_gated(q, k, v, log_decay, state):
        return gla.recurrent(q=q, k=k, v=v, log_decay=log_decay, state=state)

    def gated_delta_rule(q, k, v, log_decay, beta, state):
        return (*delta_rule.recurrent(q=q, k=k, v=v, log_decay=log_decay, beta=beta, state=state), None, None)

    def delta_rule_(q, k, v, log_decay, beta, state):
        o, after, *_ = gated_delta_rule(q, k, v, log_decay, beta, state)
        state.copy_(after)
        return o

    def recurrent(q, k, v, log_decay, key_log_decay, state):
        if key_log_decay is not None:
            return vector_gated(q, k, v, key_log_decay, state)
        return simple_gla(q, k, v, log_decay, state)[:2]

    kernels = {"simple_gla": simple_gla, "gated_delta_rule": gated_delta_rule, "delta_rule_": delta_rule_, "recurrent": recurrent}
    for name, kernel in (kernels | {"gla": lambda *x: (*vector_gated(*x), None)}).items():
        monkeypatch.setattr(fla.operators, name, checked(name, kernel))
    return called


def draw(length: int, *, vector: bool = False) -> dict[str, Tensor]:
    """With a reset, and q and k that lie as the layers' do: halves of one tensor."""
    normal = partial(torch.randn, generator=torch.Generator().manual_seed(length))
    q, k = F.normalize(normal(B, length, 2, H, K), dim=-1).unbind(2)
    log_decay = F.logsigmoid(normal(B, length, H, K) if vector else normal(B, length, H))
    log_decay[:, length // 2] = float("-inf")
    drawn = {"q": q, "k": k, "v": normal(B, length, H, V), "log_decay": log_decay}
    return drawn if vector else {**drawn, "beta": normal(B, length, H).sigmoid()}


@pytest.mark.parametrize("length", [1, T])
@pytest.mark.parametrize("name", ["decayed_linear_attention", "delta_rule", "gla"])
@torch.no_grad()
def test_an_adapter_is_the_op_of_its_name(plain_kernels: list[str], name: str, length: int) -> None:
    op = {"decayed_linear_attention": decayed_linear_attention, "delta_rule": delta_rule}.get(name, gla)
    inputs = draw(length, vector=op is gla)
    state = torch.randn(B, H, K, V, generator=torch.Generator().manual_seed(0)).mT
    for actual, expected in zip(getattr(fla, name)(**inputs, state=state), op.recurrent(**inputs, state=state), strict=True):
        assert_near(actual, expected, "float32")
    assert (plain_kernels[0] in ("recurrent", "delta_rule_")) == (length == 1)


@pytest.mark.parametrize(("key_dim", "value_dim"), [(6, 5), (64, 65), (80, 5)])
@pytest.mark.parametrize(("name", "op"), [("decayed_linear_attention", decayed_linear_attention), ("delta_rule", delta_rule)])
def test_gradients_go_through_the_padding(plain_kernels: list[str], name: str, op: Any, key_dim: int, value_dim: int) -> None:
    normal = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    q, k = (F.normalize(normal(B, T, H, key_dim), dim=-1) for _ in "qk")
    inputs = {"q": q, "k": k, "v": normal(B, T, H, value_dim), "log_decay": F.logsigmoid(normal(B, T, H))}
    inputs |= {"beta": normal(B, T, H).sigmoid(), "state": normal(B, H, value_dim, key_dim)}
    weights = normal(B, T, H, value_dim), normal(B, H, value_dim, key_dim)
    found = []
    for form in (getattr(fla, name), op.recurrent):
        leaves = {key: x.clone().requires_grad_() for key, x in inputs.items()}
        loss = sum((y * weight).sum() for y, weight in zip(form(**leaves), weights, strict=True))
        found.append(torch.autograd.grad(loss, list(leaves.values())))
    assert len(plain_kernels) == 1
    for actual, expected in zip(*found, strict=True):
        assert_near(actual, expected, "float32")


@pytest.mark.parametrize("length", [1, T])
@torch.no_grad()
def test_mlstm_is_exact_by_linear_attention(plain_kernels: list[str], length: int) -> None:
    inputs = draw(length)
    inputs["log_beta"] = 4.0 * torch.logit(inputs.pop("beta"))
    normal = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    state = mlstm.MLSTMState(normal(B, H, V, K), normal(B, H, K), normal(B, H).abs())
    (o, after), (expected, expected_after) = (form(**inputs, state=state) for form in (fla.mlstm, mlstm.recurrent))
    assert plain_kernels
    for actual, exact in zip((o, *after), (expected, *expected_after), strict=True):
        assert_near(actual, exact, "float32")


@torch.no_grad()
def test_the_state_is_written_over_where_asked(plain_kernels: list[str]) -> None:
    inputs, state = draw(1), torch.randn(B, H, V, K)
    o, after = fla.delta_rule(**inputs, state=state)
    assert not torch.equal(after, state)
    assert torch.equal(fla.delta_rule_(**inputs, state=state), o) and torch.equal(state, after)


def test_a_token_with_a_gradient_is_a_chunk(plain_kernels: list[str]) -> None:
    fla.delta_rule(**draw(1), state=torch.zeros(B, H, V, K))
    assert plain_kernels == ["gated_delta_rule"]


def test_a_reset_is_nothing_left_in_float32() -> None:
    assert torch.tensor(fla.RESET).exp() == 0.0


def test_wider_queries_become_what_the_values_are(plain_kernels: list[str]) -> None:
    inputs = draw(T)
    fla.decayed_linear_attention(**{**inputs, "v": inputs["v"].bfloat16()}, state=torch.zeros(B, H, V, K))
    assert plain_kernels == ["simple_gla"]


@pytest.mark.parametrize("name", ["decayed_linear_attention", "delta_rule"])
def test_float64_is_refused(name: str) -> None:
    inputs = {name: x.double() for name, x in draw(T).items()}
    with pytest.raises(ValueError, match="float64, permitted are float32 and bfloat16"):
        getattr(fla, name)(**inputs, state=torch.zeros(B, H, V, K))


@pytest.mark.parametrize(
    ("versions", "capability", "said"),
    [
        (("0.6.0", "3.7.1"), HOPPER, None),
        (("0.6.3", "3.3.1"), HOPPER, None),
        (("0.6.0", "3.8.0+git1"), HOPPER, None),
        (("0.6.0", "3.6.0"), AMPERE, None),
        (("0.6.0", "3.4.0"), HOPPER, "Triton is 3.4.0"),
        (("0.6.0", "3.7.0"), HOPPER, 'pip install "triton>=3.7.1"'),
        ((None, "3.7.1"), HOPPER, "flash-linear-attention is not installed"),
        (("0.6.0", None), HOPPER, "Triton is not installed"),
        (("0.5.1", "3.7.1"), HOPPER, "is 0.5.1, permitted is 0.6"),
        (("0.10.0", "3.7.1"), HOPPER, "is 0.10.0, permitted is 0.6"),
    ],
)
def test_the_obstacle_names_versions_and_remedy(versions, capability, said) -> None:
    reason = fla.obstacle_of(fla=versions[0], triton=versions[1], capability=capability)
    assert reason is None if said is None else said in reason


def test_a_run_on_a_cpu_is_told_so() -> None:
    with pytest.raises(ValueError, match="backend=fla can't run here: it needs a CUDA device"):
        settle("fla", [("fla", "torch")], "cpu")


LINEAR_RNN = {"num_heads": 2, "key_dim": 16, "value_dim": 16, "conv_width": 4, "norm_eps": 1e-6, "chunk_size": 8}
GATES = {"forget_gate_init": 0.9, "input_gate_init": 0.5}
MIXERS = {
    "gated_deltanet": {"type": "deltanet.DeltaNet", "feature_map": "silu_l2", **GATES, **LINEAR_RNN},
    "longhorn": {"type": "longhorn.Longhorn", "feature_map": "silu", **GATES, **LINEAR_RNN},
    "gla": {"type": "gated_linear_attention.DecayedLinearAttention", "feature_map": "silu_l2", **GATES, **LINEAR_RNN},
    "mlstm": {"type": "mlstm.MLSTM", "feature_map": "identity", **GATES, **LINEAR_RNN},
    "gla_original": {
        "type": "gla_original.GatedLinearAttention",
        "num_heads": 2,
        "value_dim": 32,
        "key_ratio": 0.5,
        "decay_rank": 4,
        "decay_temperature": 16.0,
        "norm_eps": 1e-6,
        "chunk_size": 8,
    },
}


def layers(name: str, *, d_model: int) -> tuple[Any, Any]:
    """The same layer on torch and on fla."""
    torch_layer, fla_layer = (
        built.mixer(mixer_class(MIXERS[name]["type"]), {**MIXERS[name], "d_model": d_model, "backend": backend})
        for backend in ("torch", "fla")
    )
    torch_layer.reset_parameters(torch.Generator().manual_seed(0))
    fla_layer.load_state_dict(torch_layer.state_dict())
    return torch_layer, fla_layer


@pytest.mark.parametrize("name", MIXERS)
@torch.no_grad()
def test_a_layer_is_the_same_with_both_backends(plain_kernels: list[str], name: str) -> None:
    expected_layer, layer = layers(name, d_model=12)
    x = torch.randn(B, T, 12, generator=torch.Generator().manual_seed(1))
    starts = torch.zeros(B, T, dtype=torch.bool)
    starts[0, 4] = True
    y, state = layer(x, starts=starts)
    expected, expected_state = expected_layer(x, starts=starts)
    assert_near(y, expected, "float32")
    assert_near(layer.step_(x[:, 0], state), expected_layer.step(x[:, 0], expected_state)[0], "float32")
    assert len(plain_kernels) == 2


@pytest.mark.gpu
@pytest.mark.parametrize("name", MIXERS)
def test_a_compiled_layer_computes_what_torch_does(name: str) -> None:
    """In bfloat16, whose rounding to 4e-3 the layer's products and the kernel each make; whole graphs, gradients, decoding."""
    if reason := fla.obstacle():
        pytest.skip(reason)
    expected_layer, layer = (each.cuda() for each in layers(name, d_model=64))
    x = torch.randn(B, 100, 64, generator=torch.Generator().manual_seed(1)).cuda()
    starts = torch.zeros(B, 100, dtype=torch.bool, device="cuda")
    starts[0, [0, 40]] = True
    found = []
    for run in (expected_layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
        x_leaf = x.clone().requires_grad_()
        with torch.autocast("cuda", torch.bfloat16):
            y, state = run(x_leaf, starts=starts)
        y.float().square().sum().backward()
        found.append((y.detach(), state["G"].detach(), x_leaf.grad))
    for expected, actual in zip(*found, strict=True):
        assert (actual - expected).norm() < 0.03 * expected.norm()
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        states = [{key: value.detach().clone() for key, value in state.items()} for _ in range(2)]
        y = layer.step_(x[:, 0], states[0])
        expected, after = expected_layer.step(x[:, 0], states[1])
        assert (y - expected).norm() < 0.03 * expected.norm()
        assert (states[0]["G"] - after["G"]).norm() < 0.01 * after["G"].norm()
