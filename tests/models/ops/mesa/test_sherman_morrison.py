"""The inverse kept up by rank-one updates: where it is Mesa, what forgetting does to it, and that it stays finite."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.ops.mesa import Inputs, sherman_morrison
from models.ops.mesa.sherman_morrison import InverseState, invert
from tests.models.tolerances import assert_near

B, H, K, V, LENGTH = 2, 3, 6, 5, 40
OVER_TIME = ("q", "k", "v", "log_decay", "beta")

Tensors = dict[str, Tensor]


def draw(length: int = LENGTH, *, log_decay: float | None = None, dtype: torch.dtype = torch.float64) -> Tensors:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    inputs = {
        "q": F.normalize(normal(B, length, H, K), dim=-1),
        "k": F.normalize(normal(B, length, H, K), dim=-1),
        "v": normal(B, length, H, V),
        "log_decay": F.logsigmoid(normal(B, length, H) + 3.0),
        "beta": normal(B, length, H).sigmoid(),
        "regularizer": 0.25 + normal(H, K).abs(),
    }
    if log_decay is not None:
        inputs["log_decay"].fill_(log_decay)
    return {name: x.to(dtype) for name, x in inputs.items()}


def decoded(inputs: Tensors, refresh: int | None = None) -> tuple[Tensor, list[InverseState]]:
    """Token by token from nothing; the read-outs, and the state after every token."""
    dtype, regularizer = inputs["q"].dtype, inputs["regularizer"]
    G, H_0 = torch.zeros(B, H, V, K, dtype=dtype), torch.zeros(B, H, K, K, dtype=dtype)
    states, outputs = [InverseState(G, H_0, invert(H_0, regularizer))], []
    for t in range(inputs["q"].shape[1]):
        token = {name: inputs[name][:, t : t + 1] for name in OVER_TIME}
        due = torch.full((B,), refresh is not None and (t + 1) % refresh == 0)
        o, state = sherman_morrison.decode(Inputs(**token, regularizer=regularizer), state=states[-1], due=due)
        states.append(state)
        outputs.append(o)
    return torch.cat(outputs, dim=1), states[1:]


def exact(inputs: Tensors, states: list[InverseState]) -> Tensor:
    """The read-outs of Mesa itself, from the same G and H."""
    outputs = []
    for t, (G, H_t, _) in enumerate(states):
        A = H_t + torch.diag_embed(inputs["regularizer"])
        outputs.append(G @ torch.linalg.solve(A, inputs["q"][:, t].unsqueeze(-1)))
    return torch.stack(outputs, dim=1).squeeze(-1)


def relative_error(actual: Tensor, expected: Tensor) -> Tensor:
    """[B, T, H]."""
    return (actual - expected).norm(dim=-1) / expected.norm(dim=-1)


def test_without_forgetting_it_is_the_exact_solution() -> None:
    inputs = draw(log_decay=0.0)
    outputs, states = decoded(inputs)
    assert_near(outputs, exact(inputs, states), "float64")
    assert_near(states[-1].R, invert(states[-1].H, inputs["regularizer"]), "float64")


def test_forgetting_fades_the_regularizer_by_the_product_of_the_gates() -> None:
    inputs = draw()
    _, states = decoded(inputs)
    for t in (0, 9, LENGTH - 1):
        left = inputs["log_decay"][:, : t + 1].sum(1).exp()
        faded = states[t].H + left[..., None, None] * torch.diag_embed(inputs["regularizer"])
        assert_near(states[t].R @ faded, torch.eye(K, dtype=torch.float64).expand(B, H, K, K), "float64")


def test_an_inversion_every_few_tokens_bounds_what_forgetting_does() -> None:
    """The error against Mesa itself, with all gates at 0.98: every token inverted, every 4, every 16, and none."""
    inputs = draw(120, log_decay=-0.02)
    outputs = {refresh: decoded(inputs, refresh) for refresh in (1, 4, 16, None)}
    expected = exact(inputs, outputs[None][1])
    errors = {refresh: relative_error(o, expected) for refresh, (o, _) in outputs.items()}
    mean = {refresh: error.mean().item() for refresh, error in errors.items()}
    assert errors[1].max() < 1e-12
    assert 1e-4 < mean[4] < mean[16] / 2 < mean[None] / 4
    # At a token that is due nothing is left of the error.
    assert errors[16][:, 15::16].max() < 1e-12 < errors[16][:, 14].min()


def test_directions_that_no_key_visits_grow_until_the_head_inverts_by_itself() -> None:
    """One key for ever: R grows by 1 / gamma a token elsewhere, up to the limit, and starts again."""
    inputs = draw(1000, log_decay=-0.02, dtype=torch.float32)
    inputs["k"][:] = inputs["k"][:, :1]
    outputs, states = decoded(inputs)
    grown = torch.stack([(R.diagonal(dim1=-2, dim2=-1) * inputs["regularizer"]).amax(-1) for _, _, R in states], dim=1)
    limit = torch.finfo(torch.float32).eps ** -0.5
    assert outputs.isfinite().all() and 0.9 * limit < grown.max() <= limit
    # log(limit) / 0.02 = 399 tokens from one inversion to the next.
    falls = (grown[:, 1:] < 0.5 * grown[:, :-1]).sum(1)
    assert ((falls >= 2) & (falls <= 3)).all()


EXTREMES = {"resets": float("-inf"), "strong decay": -200.0, "half": -0.7, "none": 0.0}


@pytest.mark.parametrize("extreme", EXTREMES)
@pytest.mark.parametrize("everywhere", [True, False])
def test_extremes_are_finite_and_a_reset_starts_from_the_regularizer(extreme: str, everywhere: bool) -> None:
    inputs = draw(dtype=torch.float32)
    inputs["log_decay"][:, slice(None) if everywhere else slice(10, 15)] = EXTREMES[extreme]
    inputs["beta"][:, 12] = 0.0
    inputs["k"][:, 13] = 0.0
    leaves = {name: x.requires_grad_() for name, x in inputs.items()}
    outputs, states = decoded(leaves)
    assert outputs.isfinite().all() and all(state.R.isfinite().all() for state in states)
    gradients = torch.autograd.grad(outputs.sum(), list(leaves.values()))
    assert all(gradient.isfinite().all() for gradient in gradients)
    if extreme == "resets":
        torch.testing.assert_close(states[11].R, invert(states[11].H, inputs["regularizer"]))
        written = inputs["beta"][:, 11, :, None, None] * inputs["k"][:, 11, :, :, None] * inputs["k"][:, 11, :, None, :]
        torch.testing.assert_close(states[11].H, written)


def test_rounding_adds_up_over_a_badly_conditioned_state() -> None:
    """One repeated key in float32, without forgetting: an eigenvalue of 2000 over one of 0.25."""
    inputs = draw(2000, log_decay=0.0)
    inputs["k"][:] = inputs["k"][:, :1]
    inputs["regularizer"].fill_(0.25)
    inputs["beta"].fill_(1.0)
    outputs, states = decoded({name: x.float() for name, x in inputs.items()})
    expected = exact(inputs, [InverseState(*(x.double() for x in state)) for state in states])
    solved = exact({name: x.float() for name, x in inputs.items()}, states)
    ours, theirs = (((o - expected)[:, -50:].norm() / expected[:, -50:].norm()).item() for o in (outputs, solved))
    assert theirs < 1e-3 and 20 * theirs < ours < 0.2


def test_only_the_sequences_that_are_due_invert() -> None:
    inputs = draw(1)
    state = InverseState(
        torch.zeros(B, H, V, K).double(), torch.zeros(B, H, K, K).double(), 2.0 * torch.eye(K).expand(B, H, K, K).double()
    )
    token = {name: inputs[name] for name in OVER_TIME}
    read = Inputs(**token, regularizer=inputs["regularizer"])
    _, after = sherman_morrison.decode(read, state=state, due=torch.tensor([True, False]))
    expected = invert(after.H, inputs["regularizer"])
    assert_near(after.R[0], expected[0], "float64")
    assert not torch.isclose(after.R[1], expected[1]).all()
