"""The Mesa op and its solvers: exact, differentiable, causal at any number of steps, and linear in memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from models.mesanet import Mesa
from models.ops import mesa
from models.ops.solvers import Cholesky, ConjugateGradients, Solver, build_solver

B, H, K, V = 2, 2, 6, 5
CHUNK_SIZE = 8
OVER_TIME = ("q", "k", "v", "log_decay", "beta")
NAMES = (*OVER_TIME, "regularizer", "G", "H")
KEYS = ("random", "low_rank", "repeated", "anisotropic")
EXACT = ConjugateGradients(max_steps=60, tolerance=0.0, stop="right_hand_side")

Tensors = dict[str, Tensor]
Run = Callable[[Tensors], list[Tensor]]


def cg(max_steps: int, tolerance: float = 0.0, stop: str = "right_hand_side") -> ConjugateGradients:
    return ConjugateGradients(max_steps=max_steps, tolerance=tolerance, stop=stop)


def draw(length: int, seed: int = 0) -> Tensors:
    """Well-conditioned inputs in the middle of a sequence, in float64."""
    normal = partial(torch.randn, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    root = normal(B, H, K, K)
    return {
        "q": F.normalize(normal(B, length, H, K), dim=-1),
        "k": F.normalize(normal(B, length, H, K), dim=-1),
        "v": normal(B, length, H, V),
        "log_decay": F.logsigmoid(normal(B, length, H) + 2.0),
        "beta": normal(B, length, H).sigmoid(),
        "regularizer": 0.25 + normal(H, K).abs(),
        "G": normal(B, H, V, K),
        "H": root @ root.mT / K,
    }


def draw_hard(keys: str, gate_logit: float, queries: str, length: int = 256, dim: int = 32) -> Tensors:
    """One head with the least Lambda and the capped forget gate, whose keys leave H anything from well to badly conditioned."""
    normal = partial(torch.randn, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    drawn = normal(length, dim)
    if keys == "low_rank":
        drawn = 0.05 * drawn + normal(8, dim)[torch.arange(length) % 8]
    if keys == "repeated":
        drawn = 1e-3 * drawn + normal(1, dim)
    if keys == "anisotropic":
        drawn = drawn * torch.linspace(3.0, 0.05, dim, dtype=torch.float64) ** 1.5
    k = F.normalize(drawn, dim=-1)
    beta = normal(length).sigmoid()
    gamma = torch.sigmoid(gate_logit + 0.5 * normal(length)) * (1.0 - 0.0025 * beta.square())
    over_time = {
        "q": F.normalize(normal(length, dim), dim=-1) if queries == "random" else k.roll(length // 3, 0),
        "k": k,
        "v": normal(length, dim),
        "log_decay": gamma.log(),
        "beta": beta,
    }
    inputs = {name: x[None, :, None] for name, x in over_time.items()}
    zeros = torch.zeros(1, 1, dim, dim, dtype=torch.float64)
    return {**inputs, "regularizer": torch.full((1, dim), 0.25, dtype=torch.float64), "G": zeros, "H": zeros}


def run(form: Callable[..., tuple[Tensor, mesa.MesaState]], inputs: Tensors) -> list[Tensor]:
    rest = {name: x for name, x in inputs.items() if name not in mesa.MesaState._fields}
    o, state = form(**rest, state=mesa.MesaState(inputs["G"], inputs["H"]))
    return [o, *state]


def recurrent(inputs: Tensors) -> list[Tensor]:
    return run(mesa.recurrent, inputs)


def chunked(inputs: Tensors, solver: Solver = EXACT) -> list[Tensor]:
    return run(partial(mesa.chunked, solver=solver, chunk_size=CHUNK_SIZE), inputs)


def decoded(inputs: Tensors, solver: Solver = EXACT) -> list[Tensor]:
    """Token by token."""
    outputs, state = [], {name: inputs[name] for name in mesa.MesaState._fields}
    for t in range(inputs["q"].shape[1]):
        token = {name: inputs[name][:, t : t + 1] for name in OVER_TIME}
        o, G, H = run(partial(mesa.decode, solver=solver), {**inputs, **token, **state})
        outputs.append(o)
        state = {"G": G, "H": H}
    return [torch.cat(outputs, dim=1), *state.values()]


def gradients(form: Run, inputs: Tensors) -> list[Tensor]:
    """Of a fixed random weighting of o and the final states, into every input; H is symmetric, and so is its gradient."""
    leaves = [inputs[name].clone().requires_grad_() for name in NAMES]
    outputs = form(dict(zip(NAMES, leaves, strict=True)))
    normal = partial(torch.randn, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    *others, into_H = torch.autograd.grad(outputs, leaves, [normal(y.shape).to(y) for y in outputs])
    return [*others, (into_H + into_H.mT) / 2]


def worst_error(actual: Tensor, expected: Tensor) -> float:
    """The largest |actual - expected| / |expected| of any vector along the last axis."""
    return ((actual.double() - expected).norm(dim=-1) / expected.norm(dim=-1).clamp_min(1e-30)).max().item()


@pytest.mark.parametrize("solver", [EXACT, Cholesky()], ids=["cg", "cholesky"])
@pytest.mark.parametrize("length", [1, 7, 8, 19])
@pytest.mark.parametrize("form", [chunked, decoded])
def test_both_forms_equal_the_exact_recurrence(
    form: Callable[[Tensors, Solver], list[Tensor]], length: int, solver: Solver
) -> None:
    """Outputs, final states, and the gradients of all of them into every input."""
    inputs, solved = draw(length), partial(form, solver=solver)
    for actual, expected in zip(solved(inputs), recurrent(inputs), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)
    for actual, expected in zip(gradients(solved, inputs), gradients(recurrent, inputs), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("form", [recurrent, chunked, decoded])
def test_gradients_match_finite_differences(form: Run) -> None:
    """Through a root of H, since only symmetric changes of H mean something."""
    inputs = {name: x if name == "regularizer" else x[:1] for name, x in draw(9).items()}
    leaves = [inputs[name].clone().requires_grad_() for name in NAMES]

    def outputs(*xs: Tensor) -> tuple[Tensor, ...]:
        drawn = dict(zip(NAMES, xs, strict=True))
        return tuple(form({**drawn, "H": drawn["H"] @ drawn["H"].mT}))

    assert torch.autograd.gradcheck(outputs, leaves, fast_mode=True)


@pytest.mark.parametrize("queries", ["random", "keys"])
@pytest.mark.parametrize("gate_logit", [0.0, 2.0, 4.0, 6.0, 9.0])
@pytest.mark.parametrize("keys", KEYS)
def test_badly_conditioned_states_are_solved(keys: str, gate_logit: float, queries: str) -> None:
    inputs = draw_hard(keys, gate_logit, queries)
    by_cholesky = partial(chunked, solver=Cholesky())
    (exact, _, H_end), into_exact = by_cholesky(inputs), gradients(by_cholesky, inputs)
    assert worst_error(chunked(inputs)[0], exact) < 1e-9
    for actual, expected in zip(gradients(chunked, inputs), into_exact, strict=True):
        assert (actual - expected).norm() < 1e-9 * expected.norm()
    # What 24 bits leave of a solve: their rounding times the condition number.
    eigenvalues = torch.linalg.eigvalsh(H_end + 0.25 * torch.eye(32, dtype=torch.float64))
    condition = (eigenvalues[..., -1] / eigenvalues[..., 0]).max().item()
    allowed = max(1e-5, 10 * 2**-24 * condition)
    narrow = {name: x.float() for name, x in inputs.items()}
    # Queries across all keys read next to nothing, and no float32 solve gets that right.
    unavoidable = worst_error(by_cholesky(narrow)[0], exact)
    assert worst_error(chunked(narrow)[0], exact) < max(allowed, 2 * unavoidable)
    for actual, expected in zip(gradients(chunked, narrow), into_exact, strict=True):
        assert (actual.double() - expected).norm() < allowed * expected.norm()


@pytest.mark.parametrize("solver", [cg(0), cg(1), cg(2), cg(5), cg(30, 1e-2), cg(30, 1e-2, "initial_residual")], ids=str)
@pytest.mark.parametrize("changed", [1, 5, 8, 18])
def test_a_later_token_changes_nothing_however_few_the_steps(changed: int, solver: Solver) -> None:
    inputs, other = draw(19), draw(19, seed=1)
    for name in OVER_TIME:
        other[name][:, :changed] = inputs[name][:, :changed]
    other = {**other, **{name: inputs[name] for name in ("regularizer", "G", "H")}}
    before, after = chunked(inputs, solver)[0], chunked(other, solver)[0]
    assert torch.equal(before[:, :changed], after[:, :changed])
    assert not torch.isclose(before[:, changed], after[:, changed]).any()


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


@pytest.mark.parametrize("solver", [cg(30), cg(30, 1e-4)], ids=str)
@pytest.mark.parametrize("extreme", EXTREMES)
def test_extremes_are_finite_and_agree(extreme: str, solver: Solver) -> None:
    inputs = draw(19)
    for name, value in EXTREMES[extreme].items():
        # Not everywhere, so that within a chunk the extreme meets the ordinary on both sides.
        inputs[name][:, 2:12] = value
    narrow = {name: x.float() for name, x in inputs.items()}
    scale = max(1.0, EXTREMES[extreme].get("v", 1.0))
    for form in (recurrent, partial(chunked, solver=solver), partial(decoded, solver=solver)):
        outputs = form(narrow)
        assert all(x.isfinite().all() for x in (*outputs, *gradients(form, narrow)))
        torch.testing.assert_close(outputs[0].double(), recurrent(inputs)[0], rtol=2e-3, atol=2e-3 * scale)


def test_the_solution_scales_with_its_right_hand_side() -> None:
    """Down to where squares vanish and up to where they overflow."""
    inputs = {name: x.float() for name, x in draw(19).items()}
    ordinary = chunked(inputs, cg(30, 1e-4))[0]
    for scale in (1e-30, 1e30):
        torch.testing.assert_close(chunked({**inputs, "q": scale * inputs["q"]}, cg(30, 1e-4))[0] / scale, ordinary)


def test_no_steps_divide_by_the_diagonal() -> None:
    inputs = draw(1)
    keep, write = inputs["log_decay"][:, 0].exp()[..., None], inputs["beta"][:, 0, :, None]
    diagonal = keep * inputs["H"].diagonal(dim1=-2, dim2=-1) + write * inputs["k"][:, 0].square() + inputs["regularizer"]
    x = inputs["q"][:, 0] / diagonal
    o, G, _ = chunked(inputs, cg(0))
    torch.testing.assert_close(o[:, 0], (G @ x.unsqueeze(-1)).squeeze(-1))


def trace(inputs: Tensors, solver: Solver, chunk_size: int = CHUNK_SIZE) -> mesa.SolverTrace:
    rest = {name: x for name, x in inputs.items() if name not in mesa.MesaState._fields}
    return mesa.trace(**rest, state=mesa.MesaState(inputs["G"], inputs["H"]), solver=solver, chunk_size=chunk_size)


def test_a_token_stops_when_it_is_solved() -> None:
    inputs = draw_hard("anisotropic", 6.0, "random")
    inputs["q"][:, 17] = 0.0
    steps, residual = trace(inputs, cg(100, 1e-3))
    assert steps[:, 17].item() == 0 and residual[:, 17].item() == 0.0
    assert steps.max() > 1.2 * steps.double().mean() > 1
    assert residual.max() <= 1e-3 * (1 + 1e-6)
    # One step less would not have done.
    one_less = torch.stack([trace(inputs, cg(n, 1e-3)).residual for n in range(int(steps.max()) + 1)])
    before = one_less.gather(0, (steps - 1).clamp_min(0).unsqueeze(0)).squeeze(0)
    assert (before[steps > 0] > 1e-3).all()


def test_the_papers_rule_measures_against_the_first_residual() -> None:
    inputs = draw(19)
    first = trace(inputs, cg(0)).residual
    assert (trace(inputs, cg(100, 1e-2, "initial_residual")).residual <= 1e-2 * first * (1 + 1e-6)).all()
    assert (trace(inputs, cg(100, 1e-2)).residual > 1e-2 * first).any()


def test_an_early_stop_saves_steps_and_keeps_the_solution() -> None:
    inputs = {name: x.float() for name, x in draw_hard("random", 4.0, "random").items()}
    fixed, stopped = chunked(inputs, cg(30))[0], chunked(inputs, cg(30, 1e-4))[0]
    assert worst_error(stopped, fixed.double()) < 1e-3
    assert trace(inputs, cg(30, 1e-4)).steps.double().mean() < 10


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
    inputs = draw_hard("random", 4.0, "random", length=length, dim=dim)
    largest = {}
    for name, solver in (("cg", cg(10)), ("cholesky", Cholesky())):
        with LargestTensor() as watched:
            gradients(partial(chunked, solver=solver), inputs)
        largest[name] = watched.elements
    # At most the two states of every chunk, K * K / C numbers a token each.
    assert largest["cg"] <= 2 * length * dim * dim // CHUNK_SIZE
    assert largest["cholesky"] >= length * dim * dim


def test_saved_memory_is_linear_in_time() -> None:
    def saved(length: int) -> int:
        inputs, held = draw_hard("random", 4.0, "random", length=length), {}
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
    inputs = draw_hard("random", 4.0, "random", length=40)
    narrow = {name: x.bfloat16() if name in "qkv" else x.float() for name, x in inputs.items()}
    actual = form(narrow)
    assert all(x.dtype == torch.float32 for x in actual)
    same = recurrent({name: x.double() for name, x in narrow.items()})
    assert worst_error(actual[0], same[0]) < 1e-5
    assert (actual[0] - recurrent(inputs)[0]).norm() < 1e-2 * actual[0].norm()


LAYER = {
    "d_model": 24,
    "backend": "torch",
    "num_heads": H,
    "key_dim": 16,
    "value_dim": 8,
    "conv_width": 4,
    "feature_map": "silu_l2",
    "forget_gate_init": 0.98,
    "input_gate_init": 0.5,
    "forget_cap": 0.9975,
    "regularizer_floor": 0.25,
    "regularizer_init": 1.0,
    "solver": {"name": "cg", "max_steps": 5, "tolerance": 0.0, "stop": "right_hand_side"},
    "norm_eps": 1e-6,
    "chunk_size": CHUNK_SIZE,
}


def build_layer(**changes: object) -> Mesa:
    layer = Mesa(**{**LAYER, **changes})
    layer.reset_parameters(torch.Generator().manual_seed(0))
    return layer


def test_the_regularizer_starts_at_one_and_stays_above_its_floor() -> None:
    layer = build_layer()
    torch.testing.assert_close(layer.regularizer, torch.ones(H, 16))
    with torch.no_grad():
        layer.regularizer_logit.fill_(-100.0)
    torch.testing.assert_close(layer.regularizer, torch.full((H, 16), 0.25))


def test_the_forget_gate_is_capped_where_the_input_gate_is_open() -> None:
    x = torch.randn(B, 9, 24, generator=torch.Generator().manual_seed(0))
    (log_decay, beta), (free, _) = (build_layer(forget_cap=cap).gates(x) for cap in (0.9975, None))
    torch.testing.assert_close(log_decay.exp(), free.exp() * (1 - 0.0025 * beta**2))


@torch.no_grad()
def test_flops_are_those_counted_at_the_steps_used() -> None:
    layer = build_layer()
    state = layer.init_state(1)
    x = torch.randn(1, 40, 24, generator=torch.Generator().manual_seed(0))
    _, state = layer(x[:, :-1], state)
    with FlopCounterMode(display=False) as counter:
        layer.step(x[:, -1], state)
    assert counter.get_total_flops() + layer.convolution.forward_flops_per_token() == layer.forward_flops_per_token(1)
    x = torch.randn(1, 40, 24, generator=torch.Generator().manual_seed(0))
    steps = layer.trace(x).steps.double().mean().item()
    declared, at_most, used = layer.forward_flops_per_token(40), layer.solver.flops(16), layer.solver.flops(16, steps)
    assert 0 < steps < layer.solver.max_steps
    assert layer.measured_flops_per_token(x) == pytest.approx(declared - H * (at_most - used))


@torch.no_grad()
def test_a_layer_traces_what_its_forward_pass_does() -> None:
    layer = build_layer(solver={**LAYER["solver"], "max_steps": 30, "tolerance": 1e-3}).double()
    x = torch.randn(B, 19, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = layer.trace(x)
    assert whole.steps.shape == whole.residual.shape == (B, 19, H)
    assert (whole.residual <= 1e-3).all() and whole.steps.min() >= 1
    _, state = layer(x[:, :11])
    assert torch.equal(layer.trace(x[:, 11:], state).steps, whole.steps[:, 11:])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"forget_cap": 1.5}, "1.5"),
        ({"regularizer_floor": -0.1}, "-0.1"),
        ({"regularizer_init": 0.25}, "0.25"),
        ({"solver": {"name": "conjugate"}}, "conjugate"),
        ({"solver": {**LAYER["solver"], "max_steps": -1}}, "-1"),
        ({"solver": {**LAYER["solver"], "tolerance": 1.0}}, "1.0"),
        ({"solver": {**LAYER["solver"], "stop": "never"}}, "never"),
    ],
)
def test_a_wrong_value_is_named(changes: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        build_layer(**changes)


def test_a_solver_takes_its_own_settings() -> None:
    assert build_solver({**LAYER["solver"], "name": "cholesky"}) == Cholesky()
    assert build_solver(LAYER["solver"]) == cg(5)
