"""The mLSTM against the definition without a stabiliser, and the stabiliser against its recursion."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from models.mlstm import MLSTM
from models.ops import mlstm
from tests.models import built
from tests.models.tolerances import assert_near

B, T, H, K, V = 2, 19, 3, 5, 4

FORMS = pytest.mark.parametrize("form", [mlstm.recurrent, partial(mlstm.chunked, chunk_size=8)], ids=["recurrent", "chunked"])


def draw() -> dict[str, Tensor]:
    """Input gates from exp(-8) to exp(8), so that the normaliser is at its floor for some tokens and above for others."""
    normal = partial(torch.randn, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shapes = {"q": (B, T, H, K), "k": (B, T, H, K), "v": (B, T, H, V), "log_decay": (B, T, H), "log_beta": (B, T, H)}
    drawn = {name: normal(shape) for name, shape in shapes.items()}
    log_decay = -drawn["log_decay"].square()
    log_decay[:, 11] = float("-inf")
    return {**drawn, "log_decay": log_decay, "log_beta": 4.0 * drawn["log_beta"]}


def fresh() -> mlstm.MLSTMState:
    zeros = partial(torch.zeros, dtype=torch.float64)
    return mlstm.MLSTMState(zeros(B, H, V, K), zeros(B, H, K), zeros(B, H))


def unstabilised(*, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, log_beta: Tensor) -> Tensor:
    """o_t = G_t q_t / max(1, |z_t^T q_t|), read off the weight of every earlier token."""
    outputs = []
    for t in range(T):
        weights = torch.stack([log_decay[:, s + 1 : t + 1].sum(1) + log_beta[:, s] for s in range(t + 1)], dim=1).exp()
        scores = weights * (k[:, : t + 1] * q[:, t : t + 1]).sum(-1)
        outputs.append((scores.unsqueeze(-1) * v[:, : t + 1]).sum(1) / scores.sum(1).abs().clamp(min=1.0).unsqueeze(-1))
    return torch.stack(outputs, dim=1)


@FORMS
def test_both_forms_are_the_unstabilised_definition(form) -> None:
    inputs = draw()
    assert_near(form(**inputs, state=fresh())[0], unstabilised(**inputs), "float64")


@FORMS
def test_a_factor_of_all_input_gates_cancels_where_its_exponential_overflows(form) -> None:
    inputs = draw()
    loud, louder = (form(**{**inputs, "log_beta": inputs["log_beta"] + shift}, state=fresh())[0] for shift in (50.0, 800.0))
    assert_near(louder, loud, "float64")


@FORMS
def test_the_stabiliser_follows_its_recursion(form) -> None:
    inputs, expected = draw(), 2.0 * torch.ones(B, H, dtype=torch.float64)
    state = fresh()._replace(m=expected)
    for t in range(T):
        expected = torch.maximum(expected + inputs["log_decay"][:, t], inputs["log_beta"][:, t]).clamp(min=0.0)
        until_t = {name: x[:, : t + 1] for name, x in inputs.items()}
        assert_near(form(**until_t, state=state)[1].m, expected, "float64")


@pytest.mark.parametrize("length", [1, T])
def test_the_mixer_divides_its_queries_by_the_root_of_the_key_size(length: int) -> None:
    mixer = built.mixer(
        MLSTM,
        {
            "d_model": 8,
            "backend": "torch",
            "num_heads": H,
            "key_dim": K,
            "value_dim": V,
            "conv_width": 4,
            "feature_map": "identity",
            "forget_gate_init": 0.98,
            "input_gate_init": 0.5,
            "norm_eps": 1e-6,
            "chunk_size": 8,
        },
    )
    inputs = {name: x[:, :length] for name, x in draw().items()}
    expected, _ = mlstm.recurrent(**{**inputs, "q": inputs["q"] / math.sqrt(K)}, state=fresh())
    beta = inputs.pop("log_beta")
    assert_near(mixer.recurrence(**inputs, beta=beta, state=fresh()._asdict())[0], expected, "float64")
