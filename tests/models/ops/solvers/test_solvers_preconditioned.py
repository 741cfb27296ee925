"""The preconditioner of a chunk: how few corrections it leaves, and that it is what its derivation says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.ops import mesa
from models.ops.mesa.operators import ChunkOperator
from models.ops.mesa.preconditioners import ANCHORS
from models.ops.solvers import Cholesky
from tests.models.ops.mesa.mesa_forms import VARIANTS, Tensors, built, draw
from tests.models.ops.solvers.solver_cases import CASES, Case, draw_case


def chunk_operator(inputs: Tensors, chunk_size: int) -> tuple[Tensor, ChunkOperator]:
    inputs = {"sign": None, **inputs}
    rest = mesa.Inputs(*(inputs[name] for name in mesa.Inputs._fields))
    chunks = mesa._split(rest, mesa.MesaState(inputs["G"], inputs["H"]), chunk_size)
    return chunks.q, mesa._scan(chunks)[0]


def corrections(name: str, q: Tensor, operator: ChunkOperator, x: Tensor) -> Tensor:
    """The least steps of every token [M, C] with |x_n - x| <= 1e-4 |x|."""
    needed = torch.full(q.shape[:-1], -1)
    for steps in range(40):
        error = (built(name, steps).solve(operator, q).x - x).norm(dim=-1) / x.norm(dim=-1)
        needed = torch.where((needed < 0) & (error <= 1e-4), steps, needed)
        if (needed >= 0).all():
            return needed
    raise AssertionError("more than 40 steps")


def assert_few_corrections(case: Case, *, length: int, dim: int, chunk_size: int) -> None:
    q, operator = chunk_operator(draw_case(case, length=length, dim=dim), chunk_size)
    x = Cholesky().solve(operator, q).x
    needed, plain = (corrections(name, q, operator, x) for name in ("preconditioned_cg", "cg"))
    decay = operator.from_start[:, -1, 0]
    assert (needed[decay >= 0.2] <= 4).all()
    assert (needed[decay >= 0.8] <= 2).all()
    assert (needed <= plain).all()
    # And as many steps until the residual says so.
    needed, plain = (built(name, 40, 1e-4).solve(operator, q).steps for name in ("preconditioned_cg", "cg"))
    assert (needed[decay >= 0.2] <= 4).all()
    assert (needed[decay >= 0.8] <= 2).all()
    assert (needed <= plain).all()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_few_corrections_are_needed(case: Case) -> None:
    assert_few_corrections(case, length=256, dim=32, chunk_size=32)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_few_corrections_are_needed_by_long_and_wide_ones(case: Case) -> None:
    assert_few_corrections(case, length=1024, dim=128, chunk_size=64)


def test_it_inverts_the_matrices_of_its_derivation() -> None:
    """M_t = A_t + (a_t / c - 1) Lambda where a_t allows, and the identity elsewhere."""
    _, operator = chunk_operator(draw(24), 8)
    decay = operator.from_start
    anchor = torch.where(decay >= 0.6, ANCHORS[0.6], ANCHORS[0.2])
    penalty = (decay / anchor - 1.0) * operator.regularizer
    M = torch.where((decay >= 0.2).unsqueeze(-1), operator.dense() + torch.diag_embed(penalty), torch.eye(6).double())
    r = torch.randn(decay.shape[:-1] + (6,), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(operator.preconditioner().inverse((M @ r.unsqueeze(-1)).squeeze(-1)), r)
    assert torch.equal(operator.preconditioner().where, decay >= 0.2)
    assert 0 < (decay >= 0.6).sum() < (decay >= 0.2).sum() < decay.numel()


@pytest.mark.parametrize("variant", VARIANTS)
def test_its_eigenvalues_are_near_one_another(variant: str) -> None:
    """Those of M^-1 A lie between 1 and c / a_t, and as near where Lambda changes little over a chunk."""
    inputs = VARIANTS[variant](draw(24))
    if variant == "regularizer_per_token":
        inputs["regularizer"] = 1.0 + 0.1 * inputs["regularizer"]
    _, operator = chunk_operator(inputs, 8)
    preconditioner, dense = operator.preconditioner(), operator.dense()
    columns = [preconditioner.inverse(dense[..., i]) for i in range(6)]
    eigenvalues = torch.linalg.eigvals(torch.stack(columns, dim=-1)).real
    condition = eigenvalues.amax(-1) / eigenvalues.amin(-1)
    assert preconditioner.where.any() and condition[preconditioner.where.squeeze(-1)].max() < 1.9


def test_a_token_that_is_solved_exactly_needs_no_correction() -> None:
    inputs = draw(1)
    rest = mesa.Inputs(**{name: x for name, x in inputs.items() if name not in ("G", "H")})
    state = mesa.MesaState(inputs["G"], inputs["H"])
    o, _ = mesa.decode(rest, state=state, solver=built("preconditioned_cg", 0))
    torch.testing.assert_close(o, mesa.recurrent(rest, state=state)[0])


def test_a_first_guess_is_a_solve_whether_or_not_steps_follow() -> None:
    """Beside the factorisation: a solve for M^-1 b, and with every product with A another one."""
    factorisation = 6**3 / 3
    for initial, max_steps, contractions in (
        ("zero", 0, 0),
        ("query", 0, 0),
        ("diagonal", 0, 1),
        ("zero", 3, 6),
        ("diagonal", 3, 8),
    ):
        solver = built("preconditioned_cg", max_steps, initial=initial)
        assert solver.flops(6) == pytest.approx(factorisation + 2.0 * 6**2 * contractions)
