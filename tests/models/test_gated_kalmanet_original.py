"""Gated KalmaNet with the authors' gates and convolutions: the layer of its YAML against one written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from conf.settings import Settings
from models.gated_kalmanet import GatedKalmaNet
from tests.models import built
from tests.models.test_laws import config
from tests.models.tolerances import assert_near

B, D, H, K, RATIO, STEPS = 2, 12, 2, 8, 0.02, 30


def build(**changes: object) -> GatedKalmaNet:
    """The YAML's layer at another size, none of whose parameters is at a neutral value."""
    given = config("gated_kalmanet_original")["model"]["mixer"]
    sizes = {"d_model": D, "backend": "torch", "num_heads": H, "key_dim": K, "value_dim": K, "chunk_size": 4}
    layer = built.mixer(GatedKalmaNet, {**given, **sizes, **changes})
    generator = torch.Generator().manual_seed(0)
    layer.reset_parameters(generator)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return layer.double()


def authors_iteration(A: Tensor, q: Tensor, norm: Tensor, penalty: Tensor) -> Tensor:
    """Section 4.2: x from 2 q / (L + mu), weights omega from 2, STEPS times."""
    pace, ratio = 2.0 / (norm + 2.0 * penalty), norm / (norm + 2.0 * penalty)
    before, x, omega = torch.zeros_like(q), pace * q, 2.0
    for _ in range(STEPS):
        omega = 4.0 / (4.0 - ratio**2 * omega)
        before, x = x, omega * (x - pace * (A @ x - q)) + (1.0 - omega) * before
    return x


def written_out(layer: GatedKalmaNet, x: Tensor) -> Tensor:
    """One sequence [T, D], head by head: beta scales k and v themselves."""
    p = dict(layer.named_parameters())
    maps = torch.cat([p["query_key_projection.weight"], p["value_projection.weight"]])
    kernel = p["convolution.weight"].flip(1).unsqueeze(1)
    q, k, v = F.silu(F.conv1d(F.pad(maps @ x.T, (3, 0)), kernel, groups=len(maps)).T).view(-1, 3, H, K).unbind(1)
    q, k = q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True)
    step_size = F.softplus(x @ p["decay.projection.weight"].T + p["decay.step_size_bias"])
    gamma = torch.exp(-p["decay.log_rate"].exp() * step_size)
    beta, alpha = (
        torch.sigmoid(x @ p[f"{name}.projection.weight"].T + p[f"{name}.projection.bias"])
        for name in ("input_gate", "alpha_gate")
    )
    gate, outputs = F.silu(x @ p["output_gate.projection.weight"].T + p["output_gate.projection.bias"]), []
    U, H_t = x.new_zeros(H, K, K), x.new_zeros(H, K, K)
    for t in range(len(x)):
        read = []
        for h in range(H):
            k_t, v_t = beta[t, h] * k[t, h], beta[t, h] * v[t, h]
            U[h], H_t[h] = gamma[t, h] * U[h] + torch.outer(v_t, k_t), gamma[t, h] * H_t[h] + torch.outer(k_t, k_t)
            norm = torch.linalg.matrix_norm(H_t[h])
            penalty = RATIO * norm + 1e-6
            solved = authors_iteration(H_t[h] + penalty * torch.eye(K).double(), q[t, h], norm, penalty)
            mixed = q[t, h] + alpha[t, h] * (solved - q[t, h])
            read.append(F.rms_norm(U[h] @ mixed, (K,), eps=1e-6) * p["norm.weight"][h])
        outputs.append(torch.cat(read) * gate[t])
    return torch.stack(outputs) @ p["output_projection.weight"].T


@torch.no_grad()
def test_the_layer_is_the_authors() -> None:
    layer, x = build(), torch.randn(B, 9, D, generator=torch.Generator().manual_seed(1)).double()
    assert_near(layer(x)[0], torch.stack([written_out(layer, row) for row in x]), "float64")


@torch.no_grad()
def test_scaling_keys_and_values_weighs_their_products_twice() -> None:
    """Gates of 1/2 then write a quarter, of the values and of the keys' products alike."""
    x, states = torch.randn(B, 1, D, generator=torch.Generator().manual_seed(1)).double(), []
    for scales in ("products", "keys_and_values"):
        layer = build(input_gate_scales=scales)
        assert layer.input_gate is not None
        layer.input_gate.projection.weight.zero_()
        layer.input_gate.projection.bias.zero_()
        states.append(layer(x)[1])
    for name in ("G", "H"):
        assert_near(2.0 * states[1][name], states[0][name], "float64")


def test_what_weighs_once_is_read_into_old_configurations_and_stays_out_of_their_names() -> None:
    """Runs of gated_kalmanet from before the setting keep their names."""
    settings: Settings = build(input_gate_scales="products").settings
    assert "input_gate_scales" not in settings.named(neutral=False)
    assert build().settings.named(neutral=False)["input_gate_scales"] == "keys_and_values"


def test_a_wrong_value_is_named() -> None:
    with pytest.raises(ValueError, match="input_gate_scales=keys is unknown, permitted are products, keys_and_values"):
        build(input_gate_scales="keys")
