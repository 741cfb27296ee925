"""Mesa whose solves take their operands in few digits: what is rounded, what it costs, and what stays exact."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from conf.settings import Refusal
from models.mesa.mixer import Mesa
from models.ops import mesa
from models.ops.mesa.operators import TokenOperator
from models.ops.solvers.operator import Rounded, rounded
from tests.models.mesa.mesanet_cases import LAYER, B, H, build_layer, draw_x

SOLVED = {**LAYER["solver"], "max_steps": 60, "tolerance": 1e-6}
BITS = {"tf32": 11, "bfloat16": 8}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_rounding_is_to_the_nearest_of_any_size_and_its_gradient_is_that_of_nothing() -> None:
    x = torch.cat([drawn(2000) * scale for scale in (1e-30, 1e-3, 1.0, 1e30)]).requires_grad_()
    assert torch.equal(rounded(x, 8), x.to(torch.bfloat16).float()) and torch.equal(rounded(x.double(), 24), x.double())
    of_half = x[2000:6000].detach()[x[2000:6000].detach().abs() > 1e-4]
    assert torch.equal(rounded(of_half, 11), of_half.half().float())
    assert torch.equal(torch.autograd.grad(rounded(x, 11).sum(), x)[0], torch.ones_like(x))


@pytest.mark.parametrize("bits", BITS.values())
def test_a_product_is_that_of_rounded_numbers_summed_in_all_digits(bits: int) -> None:
    k, p, penalty = drawn(3, 40, 8), drawn(3, 1, 8, seed=1), drawn(3, 1, 8, seed=2).exp()
    exact = TokenOperator(torch.cat([1e6 * drawn(3, 5, 8), k.mT @ k], dim=1), penalty)
    H, q, diagonal = (rounded(x, bits).double() for x in (k.mT @ k, p, penalty))
    coarse = Rounded(exact, bits)
    torch.testing.assert_close(coarse.product(p), (q @ H + diagonal * q).float(), rtol=2e-6, atol=2e-5)
    assert not torch.allclose(coarse.product(p), exact.product(p), rtol=0.0, atol=1e-3)
    assert torch.equal(coarse.diagonal(), exact.diagonal())


@torch.no_grad()
def test_solutions_lose_digits_and_nothing_else_does() -> None:
    x, errors = draw_x(40).float(), {}
    exact = build_layer(solver={**SOLVED, "name": "cholesky"})
    inputs = exact.recurrence_inputs(x, exact.init_state(B), starts=None).inputs
    expected, after = exact.recurrence(**inputs, state=exact.init_state(B))
    for precision in ("float32", *BITS):
        layer = build_layer(solver=SOLVED, solve_precision=precision)
        o, held = layer.recurrence(**inputs, state=layer.init_state(B))
        errors[precision] = ((o - expected).norm() / expected.norm()).item()
        torch.testing.assert_close(held["G"], after["G"])
        torch.testing.assert_close(held["H"], after["H"])
    assert errors["float32"] < 1e-5
    for precision, bits in BITS.items():
        assert 2.0**-bits / 4 < errors[precision] < 4 * 2.0**-bits, errors


@torch.no_grad()
@pytest.mark.parametrize("name", ["cg", "preconditioned_cg", "chebyshev"])
def test_every_iteration_and_every_single_token_is_solved_so(name: str) -> None:
    x = draw_x(20).float()
    exact, layer = (build_layer(solver={**SOLVED, "name": name}, solve_precision=each) for each in ("float32", "bfloat16"))
    whole, state = layer(x)
    assert 1e-4 < (whole - exact(x)[0]).abs().max() < 0.1
    _, state = layer(x[:, :19])
    last, _ = layer.step(x[:, 19], state)
    # Tokens in a chunk and a single one round other numbers: keys and H before them, or H.
    assert 1e-6 < (last - whole[:, 19]).abs().max() < 0.1


def test_gradients_are_solved_so_as_well() -> None:
    x, pairs = draw_x(24).float(), {}
    for precision in ("float32", *BITS):
        layer = build_layer(solver=SOLVED, solve_precision=precision)
        layer(x)[0].square().sum().backward()
        pairs[precision] = torch.cat([parameter.grad.flatten() for parameter in layer.parameters()])
    size = pairs["float32"].norm()
    away = {precision: ((pairs[precision] - pairs["float32"]).norm() / size).item() for precision in BITS}
    assert 1e-5 < away["tf32"] < away["bfloat16"] < 0.05, away


@torch.no_grad()
def test_one_key_again_and_again_is_what_few_digits_do_not_solve() -> None:
    """H + Lambda then has a condition number near 1 / (1 - gamma), by which every rounding counts."""
    k = torch.nn.functional.normalize(drawn(1, 1, 1, 16), dim=-1).expand(1, 400, 1, 16)
    gate = k.new_full((1, 400, 1), 0.999)
    q = torch.nn.functional.normalize(drawn(1, 400, 1, 16, seed=1), dim=-1)
    inputs = mesa.Inputs(q, k, drawn(1, 400, 1, 8, seed=2), gate.log(), gate, k.new_full((1, 16), 1e-2))
    state = mesa.MesaState(k.new_zeros(1, 1, 8, 16), k.new_zeros(1, 1, 16, 16))
    residuals = {}
    for precision in ("float32", *BITS):
        solver = build_layer(solver=SOLVED, solve_precision=precision).solver_in_use(1)
        trace = mesa.trace(inputs, state=state, solver=solver, chunk_size=50, spectrum=False)
        residuals[precision] = trace.residual[0, -50:].mean().item()
    # A solution of 0 would leave a residual of 1.
    assert residuals["float32"] < 1e-3 and min(residuals[precision] for precision in BITS) > 1.0, residuals


def test_what_has_no_products_or_asks_for_more_digits_is_refused() -> None:
    with pytest.raises(Refusal, match=r"^solve_precision=bfloat16.* permitted are float32 with solver.name=cholesky"):
        build_layer(solver={**SOLVED, "name": "cholesky"}, solve_precision="bfloat16")
    with pytest.raises(Refusal, match=r"^solve_precision=tf32.* permitted are float32 with a tolerance below 2e-07"):
        build_layer(solver={**SOLVED, "tolerance": 1e-10}, solve_precision="tf32")


def test_no_kernel_computes_it() -> None:
    sizes = {"key_dim": 64, "value_dim": 64, "num_heads": H}
    assert "triton" in Mesa.backends(build_layer(**sizes).settings)
    assert Mesa.backends(build_layer(**sizes, solve_precision="tf32").settings) == ("torch",)
