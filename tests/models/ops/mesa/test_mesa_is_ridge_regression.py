"""With inputs as keys, targets as values and gates of 1 the Mesa op is ridge regression on all pairs so far (MesaNet eq. 4)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.ops import mesa
from tests.models import built

SETTINGS = {"tolerance": 1e-12, "stop": "right_hand_side", "initial": "diagonal", "gradient": "implicit"}
LENGTH, INPUT_DIM, OUTPUT_DIM, HEADS = 45, 6, 4, 2


def pairs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, y = W x + noise and questions, [B, T, H, dim]."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, LENGTH, HEADS, INPUT_DIM))
    W = rng.standard_normal((2, 1, HEADS, OUTPUT_DIM, INPUT_DIM))
    y = (W @ x[..., None])[..., 0] + 0.3 * rng.standard_normal((2, LENGTH, HEADS, OUTPUT_DIM))
    return x, y, rng.standard_normal((2, LENGTH, HEADS, INPUT_DIM))


def ridge(x: np.ndarray, y: np.ndarray, asked: np.ndarray, penalty: np.ndarray) -> np.ndarray:
    """The normal equations, by numpy, of the pairs up to every position: (X^T X + Lambda) w = X^T y."""
    answers = np.zeros(y.shape)
    for b, t, h in np.ndindex(y.shape[:3]):
        X, Y = x[b, : t + 1, h], y[b, : t + 1, h]
        answers[b, t, h] = asked[b, t, h] @ np.linalg.solve(X.T @ X + np.diag(penalty[h]), X.T @ Y)
    return answers


def op_inputs(penalty: np.ndarray, dtype: torch.dtype) -> tuple[mesa.Inputs, mesa.MesaState]:
    x, y, asked = (torch.from_numpy(part).to(dtype) for part in pairs())
    log_decay, beta = torch.zeros(x.shape[:3], dtype=dtype), torch.ones(x.shape[:3], dtype=dtype)
    G, H = (torch.zeros(2, HEADS, rows, INPUT_DIM, dtype=dtype) for rows in (OUTPUT_DIM, INPUT_DIM))
    regularizer = torch.from_numpy(penalty).to(dtype)
    return mesa.Inputs(asked, x, y, log_decay, beta, regularizer), mesa.MesaState(G, H)


@pytest.mark.parametrize("penalty", [0.01, 0.25, 50.0])
@pytest.mark.parametrize("name", ["recurrent", "cg", "preconditioned_cg", "chebyshev", "cholesky"])
def test_every_form_of_the_op_is_ridge_regression_at_every_step(name, penalty):
    penalties = penalty * np.linspace(0.5, 1.5, HEADS * INPUT_DIM).reshape(HEADS, INPUT_DIM)
    expected = ridge(*pairs(), penalties)
    inputs, state = op_inputs(penalties, torch.float64)
    if name == "recurrent":
        answers = mesa.recurrent(inputs, state=state)[0]
    else:
        # Chebyshev's rate is that of its bounds, far behind CG's in so small a dimension.
        solver = built.solver({"name": name, "max_steps": 3000 if name == "chebyshev" else 30, **SETTINGS})
        answers = mesa.chunked(inputs, state=state, solver=solver, chunk_size=16)[0]
    assert np.abs(answers.numpy() - expected).max() < 1e-6


def test_stepped_it_is_the_same():
    penalties = np.full((HEADS, INPUT_DIM), 0.25)
    expected, (inputs, state) = ridge(*pairs(), penalties), op_inputs(penalties, torch.float64)
    solver = built.solver({"name": "cg", "max_steps": 30, **SETTINGS})
    for t in range(LENGTH):
        now = mesa.Inputs(*(part[:, t : t + 1] for part in inputs[:5]), inputs.regularizer)
        o, state = mesa.decode(now, state=state, solver=solver)
        assert np.abs(o[:, 0].numpy() - expected[:, t]).max() < 1e-6
