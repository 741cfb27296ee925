"""Every kernel of fla's later delta rules against the float64 definition, on a GPU: outputs, final states and all gradients.

As test_fla_parity.py, whose comparison it shares. A test is one kernel in one dtype and runs all lengths, which share what is
compiled: that takes minutes at the first use of a kernel. Run with -n 10.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.backends import fla, fla_delta, fla_low_rank
from models.ops import diagonal_plus_low_rank, generalized_delta_rule
from tests.models.backends.test_fla_delta import MIXERS, layer
from tests.models.backends.test_fla_parity import LENGTHS, SHARE_OF_BOUND, relative_error, results

pytestmark = pytest.mark.gpu

B, H, DIM = 2, 2, 64
OTHER_DIMS = (16, 32, 128)

Tensors = dict[str, Tensor]


class Case(NamedTuple):
    """draw: tensors for a length, in a dtype, with heads of a size. handed_over: what an op takes, from these.

    bound: permitted error with bfloat16 keys and values.
    """

    draw: Callable[..., Tensors]
    handed_over: Callable[[Tensors], dict[str, Any]]
    definition: Callable[..., Sequence[Tensor]]
    kernel: Callable[..., Sequence[Tensor]]
    bound: float


def draw(length: int, dtype: torch.dtype, dim: int, *, channels: bool, micro_steps: int = 1) -> Tensors:
    """Forget gates of about 0.95, with a reset for one head in the first chunk and for all in the second; unit keys."""
    normal, steps = partial(torch.randn, generator=torch.Generator().manual_seed(length)), micro_steps * length
    q, e = (F.normalize(normal(B, each, H, dim), dim=-1).to(dtype) for each in (length, steps))
    log_decay = F.logsigmoid(normal(B, steps, H, dim) + 3.0) if channels else F.logsigmoid(normal(B, steps, H) + 3.0)
    log_decay[0, 20 * micro_steps : 20 * micro_steps + 1, 0] = float("-inf")
    log_decay[:, 100 * micro_steps : 100 * micro_steps + 1] = float("-inf")
    drawn = {"q": q, "e": e, "u": normal(B, steps, H, dim).to(dtype), "log_decay": log_decay}
    return drawn | {"beta": normal(B, steps, H, 1).sigmoid(), "state": normal(B, H, dim, dim)}


def two_keys(length: int, dtype: torch.dtype, dim: int, *, channels: bool) -> Tensors:
    """Keys that are apart by factors of 1 / 1.5 to 1.5, as a preconditioner has it."""
    drawn = draw(length, dtype, dim, channels=channels)
    factor = 1.5 ** (2.0 * torch.rand(drawn["e"].shape, generator=torch.Generator().manual_seed(length)) - 1.0)
    return drawn | {"a": (factor * drawn["e"]).to(dtype)}


def read_before_the_decay(length: int, dtype: torch.dtype, dim: int) -> Tensors:
    """e is 0.73 k / gamma as Comba has it, with a gamma that is not below exp(-40)."""
    drawn = draw(length, dtype, dim, channels=False)
    undone = torch.exp(-drawn["log_decay"].clamp(min=-40.0)).unsqueeze(-1)
    return drawn | {"e": (0.73 * undone * drawn["e"]).to(dtype), "a": drawn["e"]}


def gates_of_channels(length: int, dtype: torch.dtype, dim: int) -> Tensors:
    drawn = draw(length, dtype, dim, channels=True)
    del drawn["beta"]
    normal = partial(torch.randn, generator=torch.Generator().manual_seed(length + 1))
    return drawn | {name: normal(B, length, H, dim).sigmoid().to(dtype) for name in ("erase", "write")}


def strong_decays(length: int, dtype: torch.dtype, dim: int) -> Tensors:
    """Every fourth channel keeps e^-20 at a token, or less."""
    drawn = draw(length, dtype, dim, channels=True)
    drawn["log_decay"][..., ::4] = drawn["log_decay"][..., ::4].clamp(max=-20.0)
    return drawn


def a_decay_a_token(length: int, dtype: torch.dtype, dim: int, *, micro_steps: int) -> Tensors:
    drawn = draw(length, dtype, dim, channels=False, micro_steps=micro_steps)
    return drawn | {"log_decay": drawn["log_decay"][:, ::micro_steps].clone()}


def low_rank(length: int, dtype: torch.dtype, dim: int, *, resets: bool) -> Tensors:
    drawn = draw(length, dtype, dim, channels=True)
    normal = partial(torch.randn, generator=torch.Generator().manual_seed(length + 1))
    k, rate = F.normalize(normal(B, length, H, dim), dim=-1).to(dtype), normal(B, length, H, dim).sigmoid()
    log_decay = drawn["log_decay"].clamp(min=-0.6)
    if resets:
        log_decay = log_decay.masked_fill(drawn["log_decay"].isneginf(), float("-inf"))
    inputs = {"q": drawn["q"], "k": k, "v": drawn["u"], "e": drawn["e"], "a": (rate * drawn["e"]).to(dtype)}
    return inputs | {"log_decay": log_decay, "state": drawn["state"]}


def structured(drawn: Tensors) -> dict[str, Any]:
    """One key and one gate are the same tensor twice, by which an adapter knows."""
    inputs: dict[str, Any] = {"a": drawn["e"], **drawn}
    if "beta" in inputs:
        inputs["erase"] = inputs["write"] = inputs.pop("beta")
    return inputs


def case(drawing: Callable[..., Tensors]) -> Case:
    return Case(drawing, structured, generalized_delta_rule.recurrent, fla_delta.generalized_delta_rule, 0.02)


def case_of_low_rank(*, resets: bool) -> Case:
    floor = {"floor": float("-inf") if resets else -0.61}
    forms = diagonal_plus_low_rank.recurrent, fla_low_rank.diagonal_plus_low_rank
    return Case(partial(low_rank, resets=resets), lambda drawn: {**drawn, **floor}, *forms, 0.02)


# As for the delta rule in test_fla_parity.py: inputs, weights of a chunk, an inverse and the state before it are rounded by 2e-3.
CASES = {
    "kda": case(partial(draw, channels=True)),
    "kda, strong decays": case(strong_decays),
    "gdn2": case(gates_of_channels),
    "pkda": case(partial(two_keys, channels=True)),
    "pgdn": case(partial(two_keys, channels=False)),
    "comba": case(read_before_the_decay),
    "deltaproduct of 2": case(partial(a_decay_a_token, micro_steps=2)),
    "deltaproduct of 3": case(partial(a_decay_a_token, micro_steps=3)),
    "two micro-steps by channel": case(partial(draw, channels=True, micro_steps=2)),
    "rwkv7": case_of_low_rank(resets=False),
    "rwkv7, documents": case_of_low_rank(resets=True),
}


@pytest.fixture(autouse=True)
def able() -> None:
    if reason := fla.obstacle():
        pytest.skip(reason)


def assert_equals_definition(name: str, dtype: torch.dtype, lengths: Sequence[int], dim: int) -> None:
    chosen, wrong = CASES[name], []
    for length in lengths:
        inputs = chosen.draw(length, dtype, dim)
        wide = {key: x.double() for key, x in inputs.items()}
        expected = results(lambda x: chosen.definition(**chosen.handed_over(x)), wide)
        for what, actual in results(lambda x: chosen.kernel(**chosen.handed_over(x)), inputs).items():
            error = relative_error(actual, expected[what])
            if not error < SHARE_OF_BOUND[dtype] * chosen.bound:
                wrong.append(f"T={length} {what}: {error:.1e}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("dtype", LENGTHS, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("name", CASES)
def test_a_kernel_equals_the_definition(name: str, dtype: torch.dtype) -> None:
    assert_equals_definition(name, dtype, LENGTHS[dtype], DIM)


@pytest.mark.parametrize("dim", OTHER_DIMS)
@pytest.mark.parametrize("name", CASES)
def test_it_does_with_heads_of_other_sizes(name: str, dim: int) -> None:
    assert_equals_definition(name, torch.bfloat16, (65, 500), dim)


def test_keys_of_two_slices_do() -> None:
    assert_equals_definition("kda", torch.bfloat16, (65, 500), 256)


@pytest.mark.parametrize("name", MIXERS)
def test_a_compiled_layer_computes_what_torch_does(name: str) -> None:
    """In bfloat16, with 1.5 times the errors of PyTorch's own at most; whole graphs, gradients, decoding."""
    expected_layer, by_fla = (layer(name, backend).cuda() for backend in ("torch", "fla"))
    x = torch.randn(B, 100, 32, generator=torch.Generator().manual_seed(1)).cuda()
    starts = torch.zeros(B, 100, dtype=torch.bool, device="cuda")
    starts[0, [0, 40]] = True
    compiled, found = torch.compile(by_fla, fullgraph=True, backend="aot_eager"), []
    for run, narrow in ((expected_layer, False), (expected_layer, True), (compiled, True)):
        x_leaf = x.clone().requires_grad_()
        with torch.autocast("cuda", torch.bfloat16, enabled=narrow):
            y, state = run(x_leaf, starts=starts)
        y.float().square().sum().backward()
        found.append((y.detach().float(), state["G"].detach(), x_leaf.grad))
    for exact, by_torch, actual in zip(*found, strict=True):
        rounding = max(relative_error(by_torch, exact), 2e-3)
        assert relative_error(actual, exact) < 1.5 * rounding, (relative_error(actual, exact), rounding)
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        states = [{key: value.detach().clone() for key, value in state.items()} for _ in range(2)]
        y = by_fla.step_(x[:, 0], states[0])
        expected, after = expected_layer.step(x[:, 0], states[1])
        assert (y - expected).norm() < 0.03 * expected.norm()
        assert (states[0]["G"] - after["G"]).norm() < 0.01 * after["G"].norm()
