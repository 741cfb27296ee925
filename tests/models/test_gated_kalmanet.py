"""Gated KalmaNet: its penalty and condition number, the authors' iteration, and the gradient through both."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.gated_kalmanet import GatedKalmaNet
from tests.models import built
from tests.models.tolerances import assert_near

B, H, K, V, LENGTH, RATIO = 2, 2, 16, 8, 19, 0.02

LAYER = {
    "d_model": 24,
    "backend": "torch",
    "num_heads": H,
    "key_dim": K,
    "value_dim": V,
    "conv_width": 4,
    "feature_map": "silu_l2",
    "forget_gate_init": 0.98,
    "input_gate_init": 0.5,
    "alpha_init": 0.5,
    "regularizer_ratio": RATIO,
    "solver": {
        "name": "chebyshev",
        "max_steps": 31,
        "tolerance": 0.0,
        "stop": "right_hand_side",
        "initial": "zero",
        "gradient": "implicit",
    },
    "norm_eps": 1e-6,
    "chunk_size": 8,
}

Tensors = dict[str, Tensor]


def build_layer(**changes: object) -> GatedKalmaNet:
    layer = built.mixer(GatedKalmaNet, {**LAYER, **changes})
    layer.reset_parameters(torch.Generator().manual_seed(0))
    return layer.double()


def draw(length: int = LENGTH) -> Tensors:
    """Inputs of the recurrence in the middle of a sequence, G and H among them."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    root = normal(B, H, K, K)
    return {
        "q": F.normalize(normal(B, length, H, K), dim=-1),
        "k": F.normalize(normal(B, length, H, K), dim=-1),
        "v": normal(B, length, H, V),
        "log_decay": F.logsigmoid(normal(B, length, H) + 2.0),
        "beta": normal(B, length, H).sigmoid(),
        "alpha": normal(B, length, H).sigmoid(),
        "G": normal(B, H, V, K),
        "H": root @ root.mT / K,
    }


def run(layer: GatedKalmaNet, inputs: Tensors) -> Tensor:
    over_time = {name: x for name, x in inputs.items() if name not in "GH"}
    return layer.recurrence(**over_time, state={"G": inputs["G"], "H": inputs["H"]})[0]


def states(inputs: Tensors) -> list[tuple[Tensor, Tensor]]:
    """G_t and H_t, [B, H, V, K] and [B, H, K, K], token by token."""
    G, H_t, found = inputs["G"], inputs["H"], []
    for t in range(inputs["k"].shape[1]):
        decay, beta = (x[:, t, :, None, None] for x in (inputs["log_decay"].exp(), inputs["beta"]))
        k, v = inputs["k"][:, t].unsqueeze(-1), inputs["v"][:, t].unsqueeze(-1)
        G, H_t = decay * G + beta * v @ k.mT, decay * H_t + beta * k @ k.mT
        found.append((G, H_t))
    return found


def definition(inputs: Tensors) -> Tensor:
    """o_t = G_t ((1 - alpha_t) q_t + alpha_t x_t), solved exactly."""
    outputs = []
    for t, (G, H_t) in enumerate(states(inputs)):
        penalty = RATIO * torch.linalg.matrix_norm(H_t)[..., None, None] * torch.eye(K, dtype=torch.float64)
        q, alpha = inputs["q"][:, t].unsqueeze(-1), inputs["alpha"][:, t, :, None, None]
        outputs.append(G @ ((1.0 - alpha) * q + alpha * torch.linalg.solve(H_t + penalty, q)))
    return torch.stack(outputs, dim=1).squeeze(-1)


def authors_iteration(A: Tensor, q: Tensor, norm: Tensor, penalty: Tensor, steps: int) -> Tensor:
    """The three-term form of section 4.2: x from q 2 / (L + mu), and weights omega from 2."""
    pace, ratio = 2.0 / (norm + 2.0 * penalty), norm / (norm + 2.0 * penalty)
    before, x, omega = torch.zeros_like(q), pace * q, torch.full_like(norm, 2.0)
    for _ in range(steps):
        omega = 4.0 / (4.0 - ratio.square() * omega)
        before, x = x, omega * (x - pace * (A @ x - q)) + (1.0 - omega) * before
    return x


def test_it_is_mesa_with_a_penalty_that_follows_the_keys() -> None:
    inputs = draw()
    expected = definition(inputs)
    exact = build_layer(solver={**LAYER["solver"], "name": "cholesky"})
    torch.testing.assert_close(run(exact, inputs), expected, rtol=1e-4, atol=1e-5)
    # 31 steps leave ((sqrt(51) - 1) / (sqrt(51) + 1))^31 = 1.6e-4 of the error at most.
    iterated = run(build_layer(), inputs)
    assert 1e-9 < (iterated - expected).norm() / expected.norm() < 2e-4


@torch.no_grad()
def test_31_steps_are_the_first_guess_and_30_steps_of_the_authors() -> None:
    inputs = draw(1) | {"alpha": torch.ones(B, 1, H, dtype=torch.float64)}
    ((G, H_t),) = states(inputs)
    norm = torch.linalg.matrix_norm(H_t)[..., None, None]
    penalty = RATIO * norm + 1e-6
    x = authors_iteration(
        H_t + penalty * torch.eye(K, dtype=torch.float64), inputs["q"][:, 0].unsqueeze(-1), norm, penalty, steps=30
    )
    assert_near(run(build_layer(), inputs)[:, 0].unsqueeze(-1), G @ x, "float64")


@pytest.mark.parametrize("keys", ["random", "one"])
@torch.no_grad()
def test_the_condition_number_is_bounded_whatever_the_keys(keys: str) -> None:
    inputs = draw(40)
    if keys == "one":
        inputs["k"][:] = inputs["k"][:, :1]
        inputs["log_decay"].fill_(0.0)
    layer = build_layer()
    over_time = {name: inputs[name] for name in ("k", "log_decay", "beta")}
    penalty = layer.regularizer(**over_time, H=inputs["H"])
    H_all = torch.stack([H_t for _, H_t in states(inputs)], dim=1)
    assert_near(penalty, RATIO * torch.linalg.matrix_norm(H_all) + 1e-6, "float64")
    eigenvalues = torch.linalg.eigvalsh(H_all) + penalty.unsqueeze(-1)
    condition = (eigenvalues[..., -1] / eigenvalues[..., 0]).max()
    assert condition <= (RATIO + 1.0) / RATIO and (keys == "random" or condition > 40.0)


def test_the_gradient_goes_through_the_penalty() -> None:
    """By an exact solver, against finite differences: without the path through lambda it would fail."""
    layer = build_layer(solver={**LAYER["solver"], "name": "cholesky"})
    names = [name for name in draw() if name != "H"]

    def outputs(*xs: Tensor) -> Tensor:
        return run(layer, dict(zip([*names, "H"], [*xs[:-1], xs[-1] @ xs[-1].mT], strict=True)))

    drawn = {name: x[:1] for name, x in draw(9).items()}
    root = torch.linalg.cholesky(drawn["H"] + 0.1 * torch.eye(K, dtype=torch.float64))
    leaves = [x.clone().requires_grad_() for x in (*(drawn[name] for name in names), root)]
    assert torch.autograd.gradcheck(outputs, leaves, fast_mode=True)


def test_the_iterated_gradient_is_near_the_exact_one() -> None:
    gradients = []
    for layer in (build_layer(), build_layer(solver={**LAYER["solver"], "name": "cholesky"})):
        leaves = {name: x.requires_grad_() for name, x in draw().items()}
        gradients.append(torch.autograd.grad(run(layer, leaves).square().sum(), list(leaves.values())))
    for iterated, exact in zip(*gradients, strict=True):
        assert (iterated - exact).norm() < 1e-3 * exact.norm()


@pytest.mark.parametrize("name", ["chebyshev", "cholesky"])
def test_nothing_written_is_nothing_read_and_finite(name: str) -> None:
    """A state of zeros, zero keys and closed gates, resets among them, in float32."""
    layer = build_layer(solver={**LAYER["solver"], "name": name}).float()
    inputs = {key: x.float() for key, x in draw().items()}
    inputs["G"].zero_()
    inputs["H"].zero_()
    inputs["k"][:, :5] = 0.0
    inputs["beta"][:, 5:7] = 0.0
    inputs["log_decay"][:, 12] = float("-inf")
    inputs["beta"][:, 12] = 0.0
    leaves = {key: x.requires_grad_() for key, x in inputs.items()}
    o = run(layer, leaves)
    assert o.isfinite().all() and (o[:, :7] == 0.0).all()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(o.sum(), list(leaves.values())))


def test_alpha_starts_where_it_is_told() -> None:
    layer = build_layer(alpha_init=0.3)
    alpha = layer.gates(torch.zeros(1, 1, 24, dtype=torch.float64))["alpha"]
    torch.testing.assert_close(alpha, torch.full_like(alpha, 0.3), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"regularizer_ratio": 0.0}, "regularizer_ratio=0 "),
        ({"alpha_init": 1.0}, "alpha_init=1 "),
        ({"solver": {**LAYER["solver"], "initial": "previous_token"}}, "previous_token"),
        (
            {"solver": {**LAYER["solver"], "name": "richardson", "gradient": "unrolled"}},
            "solver.name=richardson .* cholesky with",
        ),
    ],
)
def test_a_wrong_value_is_named(changes: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        build_layer(**changes)
