"""Longhorn: the closed form of its objective, and the delta rule that it is."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from models.longhorn import Longhorn, step_size
from models.ops import delta_rule
from tests.models import built
from tests.models.tolerances import assert_near

B, H, K, V, LENGTH = 2, 2, 6, 5, 19


def build_layer() -> Longhorn:
    layer = built.mixer(
        Longhorn,
        {
            "d_model": 24,
            "backend": "torch",
            "num_heads": H,
            "key_dim": K,
            "value_dim": V,
            "conv_width": 4,
            "feature_map": "silu",
            "forget_gate_init": None,
            "input_gate_init": 0.5,
            "norm_eps": 1e-6,
            "chunk_size": 8,
        },
    )
    layer.reset_parameters(torch.Generator().manual_seed(0))
    return layer.double()


def draw(key_scale: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return {
        "q": normal(B, LENGTH, H, K),
        "k": key_scale * normal(B, LENGTH, H, K),
        "v": normal(B, LENGTH, H, V),
        "log_decay": F.logsigmoid(normal(B, LENGTH, H) + 2.0),
        "beta": normal(B, LENGTH, H).sigmoid(),
    }


def recurrence(inputs: dict[str, Tensor], G: Tensor) -> tuple[Tensor, Tensor]:
    beta = step_size(inputs["k"], inputs["beta"])
    o, state = build_layer().recurrence(**inputs | {"beta": beta}, state={"G": G})
    return o, state["G"]


def run(inputs: dict[str, Tensor]) -> Tensor:
    return recurrence(inputs, torch.zeros(B, H, V, K, dtype=torch.float64))[0]


def test_a_state_minimises_its_objective() -> None:
    """At a token's state the gradient of |G - gamma G_before|^2 + beta |G k - v|^2 vanishes."""
    inputs = {name: x[:, :1] for name, x in draw().items()}
    before = torch.randn(B, H, V, K, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    G = recurrence(inputs, before)[1].requires_grad_()
    decay, beta = inputs["log_decay"][:, 0].exp(), inputs["beta"][:, 0]
    missed = (G @ inputs["k"][:, 0].unsqueeze(-1)).squeeze(-1) - inputs["v"][:, 0]
    objective = (G - decay[..., None, None] * before).square().sum() + (beta * missed.square().sum(-1)).sum()
    (gradient,) = torch.autograd.grad(objective, G)
    assert_near(gradient, torch.zeros_like(gradient), "float64")


def test_it_is_the_delta_rule_of_unit_keys_with_another_gate() -> None:
    inputs = draw()
    length = inputs["k"].norm(dim=-1, keepdim=True)
    weight = inputs["beta"] * length.squeeze(-1).square()
    same = {**inputs, "k": inputs["k"] / length, "v": inputs["v"] / length, "beta": weight / (1.0 + weight)}
    expected, _ = delta_rule.recurrent(**same, state=torch.zeros(B, H, V, K, dtype=torch.float64))
    assert_near(run(inputs), expected, "float64")


def test_no_key_is_too_long() -> None:
    """The delta rule itself diverges with keys longer than sqrt(2 / beta)."""
    inputs = draw(key_scale=100.0)
    plain, _ = delta_rule.recurrent(**inputs, state=torch.zeros(B, H, V, K, dtype=torch.float64))
    assert run(inputs).abs().max() < 10.0 < 1e10 < plain.abs().max()


def test_a_key_of_zero_writes_nothing() -> None:
    inputs = draw()
    inputs["k"][:, 3:9] = 0.0
    longer = run(inputs)
    kept = {name: torch.cat([x[:, :3], x[:, 9:]], dim=1) for name, x in inputs.items()}
    kept["log_decay"][:, 3] += inputs["log_decay"][:, 3:9].sum(1)
    assert_near(longer[:, 9:], run(kept)[:, 3:], "float64")
