"""The Mesa kernels in Triton on a GPU; `test_interpreted` has them on a CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models.mesa.layers import mesa_layers, mesa_replaced
from models.mesa.mixer import Mesa
from models.ops import mesa
from tests.models import built
from tests.models.mesa.mesanet_cases import LAYER, build_layer, build_model
from tests.models.ops.solvers.solver_cases import CASES, draw_case

pytest.importorskip("triton")
ROOT = Path(__file__).parents[3]
BF16, F32 = torch.bfloat16, torch.float32
CG = {
    "name": "cg",
    "max_steps": 30,
    "tolerance": 1e-4,
    "stop": "right_hand_side",
    "initial": "diagonal",
    "gradient": "implicit",
}
SETTINGS = LAYER | {"solver": CG, "key_dim": 64, "value_dim": 64}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("triton", "torch")),
        ({"solver": CG | {"initial": "zero", "tolerance": 0.0}}, ("triton", "fla", "torch")),
        ({"solver": CG | {"initial": "zero", "tolerance": 0.0}, "random_steps": 5}, ("triton", "torch")),
        ({"solver": CG | {"initial": "zero", "tolerance": 0.0}, "value_dim": 32}, ("triton", "torch")),
        ({"solver": CG | {"initial": "zero", "tolerance": 0.0}, "key_dim": 32, "value_dim": 32}, ("triton", "torch")),
        ({"solver": CG | {"tolerance": 0.0, "stop": "initial_residual"}}, ("triton", "torch")),
        ({"solver": CG | {"stop": "initial_residual"}}, ("torch",)),
        ({"solver": CG | {"initial": "previous_token"}}, ("torch",)),
        ({"solver": CG | {"gradient": "unrolled"}}, ("torch",)),
        ({"solver": CG | {"tolerance": 1e-10}}, ("torch",)),
        ({"solver": CG | {"name": "cholesky"}}, ("torch",)),
        ({"signed_decay": True}, ("torch",)),
        ({"decode": "sherman_morrison"}, ("torch",)),
        ({"key_dim": 129}, ("torch",)),
        ({"feature_map": "identity"}, ("torch",)),
        ({"regularizer_floor": 0.0}, ("torch",)),
        ({"regularizer_init": 1e5}, ("torch",)),
    ],
)
def test_a_backend_is_named_for_what_it_computes(changes, expected):
    assert Mesa.backends(build_layer(**SETTINGS | changes).settings) == expected


def test_other_solvers_are_left_to_torch_for_a_while():
    model = build_model(backend="triton", solver=CG)

    def backends():
        return {mixer.backend for _, mixer in mesa_layers(model)}

    with mesa_replaced(model, {"solver": {"max_steps": 3}, "decode": "solver", "refresh": None}):
        assert backends() == {"triton"}
    with mesa_replaced(model, {"solver": {"initial": "previous_token"}}):
        assert backends() == {"torch"}
    with mesa_replaced(model, {"decode": "sherman_morrison", "refresh": None}):
        assert backends() == {"torch"}
    assert backends() == {"triton"}


@pytest.mark.slow
def test_compiles_for_a_hopper_gpu():
    command = [sys.executable, "-m", "tests.models.backends.mesa_on_hopper"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "compiled for sm_90" in done.stdout, done.stdout + done.stderr


gpu = pytest.mark.gpu
LENGTHS = (1, 63, 64, 65, 500, 1000)


@pytest.fixture(params=["hopper", "portable"])
def kernels(request, monkeypatch):
    """Heads of 64 and 128 in bfloat16 have a kernel of their own on a Hopper GPU."""
    from models.backends.triton import mesa_launches

    if request.param == "portable":
        monkeypatch.setattr(mesa_launches, "HOPPER_SOLVE", {})
    elif torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("no Hopper GPU")


@gpu
@pytest.mark.parametrize(
    ("key_dim", "value_dim", "dtype"),
    [
        (128, 128, BF16),
        (128, 128, F32),
        (64, 64, BF16),
        (64, 64, F32),
        (32, 32, BF16),
        (16, 32, F32),
        (64, 128, BF16),
        (48, 20, BF16),
    ],
)
@pytest.mark.usefixtures("kernels")
def test_equals_recurrent_form(key_dim, value_dim, dtype):
    from tests.models.backends import mesa_kernel_cases as cases

    for length in LENGTHS:
        cases.assert_equals_recurrent(
            cases.draw(length=length, key_dim=key_dim, value_dim=value_dim, dtype=dtype, device="cuda", batch_size=2)
        )


@gpu
@pytest.mark.parametrize("dtype", [BF16, torch.float16, F32])
@pytest.mark.parametrize(("key_dim", "value_dim"), [(128, 128), (64, 64), (128, 32)])
@pytest.mark.usefixtures("kernels")
def test_gradients_of_what_is_read_from_no_state(key_dim, value_dim, dtype):
    from tests.models.backends import mesa_kernel_cases as cases

    # What a kernel reads and has not written is NaN.
    left_behind = torch.full((4096, 4096), float("nan"), dtype=BF16, device="cuda")
    inputs = cases.draw(length=1000, key_dim=key_dim, value_dim=value_dim, dtype=dtype, device="cuda", batch_size=2)
    states = [torch.zeros_like(inputs.pop(name)).double() for name in ("G", "H")]
    names, cotangents = (
        (*cases.OVER_TIME, "regularizer"),
        cases.draw_cotangents(inputs | dict(zip("GH", states, strict=True)))[:1],
    )

    def from_nothing(tensors):
        return cases.kernel(tensors | {"G": None, "H": None}, tolerance=cases.SOLVE_TOLERANCE[dtype], max_steps=60)

    def exact(tensors):
        return cases.recurrent(tensors | dict(zip("GH", states, strict=True)))

    expected = cases.results(exact, {name: x.double() for name, x in inputs.items()}, cotangents, names)
    for _ in range(3):
        left_behind @ left_behind
        found = cases.errors(cases.results(from_nothing, inputs, cotangents, names), expected)
        assert max(found.values()) < cases.TOLERANCE[dtype], found


def _all_cases(length: int, dim: int) -> dict[str, torch.Tensor]:
    """Every case as one sequence of a batch, as bfloat16 holds it; the state before is none."""
    drawn = [draw_case(case, length=length, dim=dim) for case in CASES]
    over_time = {name: torch.cat([x[name] for x in drawn]) for name in ("q", "k", "v", "log_decay", "beta")}
    inputs = {name: x.to(BF16 if name in "qkv" else F32) for name, x in over_time.items()}
    return {name: x.cuda() for name, x in (inputs | {"regularizer": drawn[0]["regularizer"].float()}).items()}


@gpu
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.usefixtures("kernels")
def test_any_condition_is_solved_to_bfloat16(dim):
    from tests.models.backends import mesa_kernel_cases as cases

    inputs = _all_cases(length=320, dim=dim)
    cotangent = torch.randn(inputs["v"].shape, generator=torch.Generator().manual_seed(1)).bfloat16().cuda()
    zeros = torch.zeros(len(CASES), 1, dim, dim, device="cuda")

    def from_nothing(tensors):
        return cases.kernel(tensors | {"G": None, "H": None}, tolerance=1e-4, max_steps=60)

    def exact(tensors):
        return cases.recurrent(tensors | {"G": zeros.double(), "H": zeros.double()})

    names = cases.OVER_TIME
    found = cases.results(from_nothing, inputs, [cotangent], names)
    expected = cases.results(exact, {name: x.double() for name, x in inputs.items()}, [cotangent], names)
    error = ((found["o"].double() - expected["o"]).norm(dim=-1) / expected["o"].norm(dim=-1)).flatten(1)
    # The worst are tokens that read 1e-2 of what others read: what a solve leaves of q weighs a hundred times as much there.
    assert error.max() < 5e-2 and error.mean(1).max() < 4e-3, dict(zip(map(str, CASES), error.amax(1).tolist(), strict=True))
    for name in (f"d_{x}" for x in names):
        error = (found[name].double() - expected[name]).flatten(1).norm(dim=1) / expected[name].flatten(1).norm(dim=1)
        # Two roundings to bfloat16 more than o has; a decay's is a difference of what comes before it and after.
        assert error.max() < (2e-2 if name == "d_log_decay" else 1e-2), (name, error.tolist())


@gpu
@pytest.mark.parametrize(
    ("key_size", "query_size", "initial"),
    [
        (31.0, 1.0, "zero"),
        # q is a guess with a thousand times its own residual there
        (31.0, 1.0, "diagonal"),
        (1e-3, 1e4, "query"),
        (1.0, 1e-20, "diagonal"),
    ],
)
@pytest.mark.usefixtures("kernels")
def test_any_size_of_keys_and_queries(key_size, query_size, initial):
    from tests.models.backends import mesa_kernel_cases as cases

    inputs = cases.draw(length=200, key_dim=64, value_dim=64, dtype=BF16, device="cuda")
    # the largest entry of a key, and all of a query
    inputs["k"] = inputs["k"] * (key_size / inputs["k"].abs().amax())
    inputs["q"] = inputs["q"] * query_size
    exact = cases.recurrent({name: x.double() for name, x in inputs.items()})[0]
    o = cases.kernel(inputs, tolerance=1e-4, max_steps=100, initial=initial)[0].double()
    assert (o - exact).norm() / exact.norm() < cases.TOLERANCE[BF16]


@gpu
@pytest.mark.parametrize("keys", ["random", "one"])
@pytest.mark.usefixtures("kernels")
def test_finite_with_gates_at_one_and_large_values(keys):
    from tests.models.backends import mesa_kernel_cases as cases

    inputs = cases.draw(length=2048, key_dim=128, value_dim=128, dtype=BF16, device="cuda")
    inputs |= {"log_decay": torch.zeros_like(inputs["beta"]), "beta": torch.ones_like(inputs["beta"]), "v": 1e3 * inputs["v"]}
    if keys == "one":
        inputs["k"] = inputs["k"][:, :1].expand_as(inputs["k"])
    found = cases.results(lambda x: cases.kernel(x, tolerance=1e-4, max_steps=40), inputs, [torch.ones_like(inputs["v"])])
    assert all(x.isfinite().all() for x in found.values()), [name for name, x in found.items() if not x.isfinite().all()]


@gpu
@pytest.mark.parametrize(("key_dim", "value_dim"), [(128, 128), (64, 64), (32, 32), (48, 100)])
def test_decode_follows_the_op_over_many_tokens(key_dim, value_dim):
    from models.backends.triton.mesa_decode import mesa_decode_
    from tests.models.backends import mesa_kernel_cases as cases

    for solver in (
        built.solver(CG | {"tolerance": 1e-6, "max_steps": 60}),
        built.solver(CG | {"tolerance": 0.0, "max_steps": 3}),
    ):
        inputs = cases.draw(length=64, key_dim=key_dim, value_dim=value_dim, dtype=F32, device="cuda", batch_size=3)
        held = {name: inputs.pop(name) for name in ("G", "H")}
        state = mesa.MesaState(held["G"].double(), held["H"].double())
        stopping = {"tolerance": solver.tolerance, "max_steps": solver.max_steps, "initial": solver.initial}
        for t in range(64):
            token = {name: x if x.ndim == 2 else x[:, t : t + 1] for name, x in inputs.items()}
            o, state = mesa.decode(mesa.Inputs(**{name: x.double() for name, x in token.items()}), state=state, solver=solver)
            found = mesa_decode_(**token, **held, **stopping)
            # float32 throughout, ended at 1e-6 under conditions of about 10; the state's sums take 64 roundings.
            assert (found - o).norm() < 1e-5 * o.norm()
        assert max(cases.errors(held, {"G": state.G, "H": state.H}).values()) < 2e-6


@gpu
def test_decode_is_captured_in_a_graph():
    from models.backends.triton.mesa_decode import mesa_decode_
    from tests.models.backends import mesa_kernel_cases as cases

    stopping = {"tolerance": 1e-4, "max_steps": 30, "initial": "diagonal"}
    inputs = cases.draw(length=1, key_dim=64, value_dim=64, dtype=BF16, device="cuda", batch_size=4)
    before = {name: inputs[name].clone() for name in ("G", "H")}
    eager = mesa_decode_(**(inputs | {name: x.clone() for name, x in before.items()}), **stopping)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        o = mesa_decode_(**inputs, **stopping)
    for name, x in before.items():
        inputs[name].copy_(x)
    graph.replay()
    torch.testing.assert_close(o, eager, rtol=0.0, atol=0.0)
    assert not torch.equal(inputs["H"], before["H"])


def _trained(layer, x, starts):
    with torch.autocast("cuda", dtype=BF16):
        y, state = layer(x, starts=starts)
    gradients = torch.autograd.grad(y.float().square().sum(), list(layer.parameters()))
    return [y.detach(), state["G"].detach(), state["H"].detach(), *gradients]


@gpu
def test_layer_equals_its_torch_backend_and_compiles_without_a_break():
    solver = CG | {"tolerance": 1e-5, "max_steps": 60}
    sizes = {"key_dim": 64, "value_dim": 64, "solver": solver, "chunk_size": 32}
    layers = {backend: build_layer(backend=backend, **sizes).cuda() for backend in ("triton", "torch")}
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 200, LAYER["d_model"], generator=generator).cuda()
    starts = (torch.rand(2, 200, generator=generator) < 0.02).cuda()
    expected, eager = (_trained(layers[backend], x, starts) for backend in ("torch", "triton"))
    compiled = _trained(torch.compile(layers["triton"], fullgraph=True), x, starts)
    for found in (eager, compiled):
        for a, b in zip(found, expected, strict=True):
            # Both round q, k, v and the projections to bfloat16; the kernel its output, too. Gates' gradients are small
            # differences of such numbers.
            assert (a - b).norm() < 5e-2 * b.norm()


@gpu
def test_layer_goes_on_from_a_state_token_by_token():
    layer = build_layer(backend="triton", key_dim=64, value_dim=64, solver=CG | {"tolerance": 1e-6, "max_steps": 60}).cuda()
    x = torch.randn(2, 80, LAYER["d_model"], generator=torch.Generator().manual_seed(0)).cuda()
    with torch.no_grad():
        whole, after = layer(x)
        _, state = layer(x[:, :70])
        for t in range(70, 80):
            y_t = layer.step_(x[:, t], state)
            torch.testing.assert_close(y_t, whole[:, t], rtol=1e-3, atol=1e-4)
    for name in ("G", "H"):
        torch.testing.assert_close(state[name], after[name], rtol=1e-4, atol=1e-4)


@gpu
def test_operators_are_registered_whole():
    from models.backends.triton import mesa as operators
    from models.backends.triton import mesa_decode
    from tests.models.backends import mesa_kernel_cases as cases

    inputs = cases.draw(length=65, key_dim=64, value_dim=64, dtype=BF16, device="cuda")
    leaves = [x.clone().requires_grad_() for x in inputs.values()]
    torch.library.opcheck(operators._forward, (*leaves, 1e-4, 30, "diagonal"))
    token = [x[:, :1] if name in cases.OVER_TIME else x for name, x in inputs.items()]
    torch.library.opcheck(mesa_decode._decode, (*token, 1e-4, 30, "diagonal"))
