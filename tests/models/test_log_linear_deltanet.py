"""Log-linear Gated DeltaNet: its weights, what it is where they are equal, and what it holds."""

from __future__ import annotations

import pytest
import torch

from models.deltanet import DeltaNet
from models.log_linear_deltanet import LogLinearDeltaNet
from tests.models import built, by_hand
from tests.models.by_hand import D_MODEL, FRAME, HEADS, KEYS, VALUES, B
from tests.models.tolerances import assert_near

LEVELS = 5
MIXER = FRAME | {"max_length": 16}


def stirred(**changes: object) -> LogLinearDeltaNet:
    return by_hand.stirred(LogLinearDeltaNet, MIXER | changes)


@torch.no_grad()
def test_the_weights_of_levels_are_those_of_the_paper() -> None:
    layer, x = stirred(), by_hand.normal(B, 7, D_MODEL, seed=0)
    weights = layer.gates(x)["weights"]
    assert weights.shape == (B, 7, HEADS, LEVELS)
    for h in range(HEADS):
        for level in range(LEVELS):
            logit = layer.level_scale[h, level] * (x[1, 3] @ layer.level_projection.weight[h * LEVELS + level])
            assert weights[1, 3, h, level].item() == pytest.approx(torch.log1p(logit.exp()).item())
    layer.reset_parameters(torch.Generator().manual_seed(0))
    assert layer.level_scale.eq(1.0).all()


@torch.no_grad()
def test_with_equal_weights_it_is_gated_deltanet() -> None:
    """All weights are then softplus(0), which the norm of a head takes out but for its eps."""
    layer = stirred(norm_eps=1e-16)
    layer.level_projection.weight.zero_()
    deltanet = built.mixer(DeltaNet, FRAME | {"norm_eps": 1e-16}).double()
    deltanet.load_state_dict({name: x for name, x in layer.state_dict().items() if not name.startswith("level_")})
    x, starts = by_hand.normal(B, 23, D_MODEL, seed=1), torch.zeros(B, 23, dtype=torch.bool)
    starts[0, [4, 11]] = True
    y, state = layer(x, starts=starts)
    expected, held = deltanet(x, starts=starts)
    assert_near(y, expected, "float64")
    assert_near(state["S"].sum(2), held["G"], "float64")
    assert state["age"].tolist() == [12, 23] and torch.equal(state["conv"], held["conv"])


@torch.no_grad()
def test_another_weight_of_what_is_long_ago_changes_later_answers_alone() -> None:
    layer, x = stirred(), by_hand.normal(B, 23, D_MODEL, seed=2)
    before = layer(x)[0]
    layer.level_projection.weight[[3, LEVELS + 3]] += 1.0
    # Tokens 4 to 7, counted from 0, are the first that have a block of four behind them.
    after = layer(x)[0]
    assert_near(after[:, :4], before[:, :4], "float64")
    assert (after[:, 4:8] - before[:, 4:8]).abs().amax(-1).min() > 1e-6
    assert_near(after[:, 8:12], before[:, 8:12], "float64")


def test_it_holds_a_matrix_a_level() -> None:
    layer = stirred()
    deltanet = built.mixer(DeltaNet, FRAME)
    assert layer.state_elements(9) - deltanet.state_elements(9) == (LEVELS - 1) * HEADS * VALUES * KEYS + 1
