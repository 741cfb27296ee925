from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.components import BlockDiagonalLinear
from models.ops.rglru import chunked, input_scale, recurrent
from models.rglru import RGLRU
from tests.models import built
from tests.models.tolerances import assert_near

MIXER = {
    "d_model": 16,
    "backend": "torch",
    "num_heads": 2,
    "width_multiplier": 1.25,
    "conv_width": 4,
    "decay_power": 8.0,
    "decay_min": 0.9,
    "decay_max": 0.999,
    "chunk_size": 4,
}


def inputs(length: int) -> dict[str, Tensor]:
    """Decays from none to total, resets among them, and a state that is not zero."""
    generator = torch.Generator().manual_seed(0)
    log_decay = -20.0 * torch.rand(2, length, 5, generator=generator, dtype=torch.float64) ** 4
    log_decay[0, length // 2] = float("-inf")
    log_decay[1, 0] = 0.0
    u = torch.randn(2, length, 5, generator=generator, dtype=torch.float64)
    state = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    return {name: x.requires_grad_() for name, x in (("log_decay", log_decay), ("u", u), ("state", state))}


def test_recurrent_is_the_recurrence() -> None:
    log_decay = torch.tensor([[[0.5], [0.25], [0.0]]]).log()
    h, last = recurrent(log_decay=log_decay, u=torch.tensor([[[1.0], [2.0], [3.0]]]), state=torch.tensor([[8.0]]))
    assert h.flatten().tolist() == [5.0, 3.25, 3.0]
    assert last.tolist() == [[3.0]]


@pytest.mark.parametrize("length", [1, 2, 63, 65])
@pytest.mark.parametrize("chunk_size", [1, 3, 8, 64, 100])
def test_chunked_is_recurrent(length: int, chunk_size: int) -> None:
    tensors = inputs(length)
    weight = torch.randn(2, length, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    results = []
    for h, last in (recurrent(**tensors), chunked(**tensors, chunk_size=chunk_size)):
        gradients = torch.autograd.grad((h * weight).sum() + 2.0 * last.sum(), list(tensors.values()))
        results.append((h, last, *gradients))
    for expected, actual in zip(*results, strict=True):
        assert actual.isfinite().all()
        assert_near(actual, expected, "float64")


def test_chunked_passes_finite_differences() -> None:
    tensors = inputs(7)
    log_decay = (tensors["log_decay"].detach().clamp(min=-3.0) - 0.1).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda log_decay, u, state: chunked(log_decay=log_decay, u=u, state=state, chunk_size=3),
        (log_decay, tensors["u"], tensors["state"]),
    )


@pytest.mark.parametrize("log_decay", [0.0, -1e-30, -1e-9, -1e-3, -1.0, -1e4])
def test_input_scale_is_exact_near_one_and_its_gradient_finite(log_decay: float) -> None:
    x = torch.tensor(log_decay, requires_grad=True)
    scale = input_scale(x)
    scale.backward()
    exact = torch.tensor(log_decay, dtype=torch.float64).mul(2.0).expm1().neg().sqrt()
    assert torch.isclose(scale.double(), exact, rtol=1e-6, atol=1e-6)
    assert x.grad.isfinite()


def test_the_state_keeps_the_variance_of_the_input() -> None:
    """What sqrt(1 - a^2) is for: white noise of variance 1 gives a state of variance 1."""
    log_decay = torch.full((1, 20_000, 4), 0.9).log()
    noise = torch.randn(log_decay.shape, generator=torch.Generator().manual_seed(0))
    h, _ = chunked(log_decay=log_decay, u=input_scale(log_decay) * noise, state=torch.zeros(1, 4), chunk_size=64)
    assert h[:, 100:].var().item() == pytest.approx(1.0, abs=0.05)


def test_blocks_are_those_of_a_block_diagonal_matrix() -> None:
    linear = BlockDiagonalLinear(num_blocks=2, d_in=3, d_out=2)
    linear.reset_parameters(torch.Generator().manual_seed(0))
    torch.nn.init.ones_(linear.bias)
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    assert_near(linear(x).flatten(-2), x @ torch.block_diag(*linear.weight) + 1.0, "float32")


def test_decays_start_in_their_range() -> None:
    mixer = built.mixer(RGLRU, MIXER | {"d_model": 800})
    mixer.reset_parameters(torch.Generator().manual_seed(0))
    decays = torch.exp(-8.0 * torch.nn.functional.softplus(mixer.decay_parameter))
    assert decays.min().item() == pytest.approx(0.9, abs=0.002)
    assert decays.max().item() == pytest.approx(0.999, abs=0.002)
    assert decays.mean().item() == pytest.approx(0.9495, abs=0.005)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 3}, "num_heads=3 is out of range, permitted are divisors of the width 20"),
        ({"num_heads": 0}, "num_heads=0"),
        ({"decay_min": 0.0}, "decay_min=0 is"),
        ({"decay_max": 1.0}, "decay_max=1 is"),
        ({"decay_min": 0.9995}, "decay_min=0.9995.*below decay_max"),
        ({"conv_width": 0}, "conv_width=0"),
        ({"chunk_size": 0}, "chunk_size=0"),
        ({"decay_power": 0.0}, "decay_power=0 is"),
    ],
)
def test_values_out_of_range_are_named(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        built.mixer(RGLRU, MIXER | changes)
