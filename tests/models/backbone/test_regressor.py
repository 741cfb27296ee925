"""The backbone with vectors in and out: what holds for token models holds here."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from models.backbone.language_model import LanguageModel
from models.backbone.regressor import Regressor
from models.build import build_regressor
from tests.models import built

SIZE = {"d_model": 16, "num_blocks": 2, "mlp_dim": 24, "norm_eps": 1e-6}
MIXER = {
    "type": "deltanet.DeltaNet",
    "num_heads": 2,
    "key_dim": 4,
    "value_dim": 4,
    "conv_width": 3,
    "feature_map": "silu_l2",
    "forget_gate_init": 0.9,
    "input_gate_init": 0.5,
    "norm_eps": 1e-6,
    "chunk_size": 4,
}


def model() -> Regressor:
    """With a readout that is not zero, so that something can be seen."""
    made = build_regressor(*built.uniform(MIXER, SIZE), input_dim=5, output_dim=3, backend="torch").double()
    made.reset_parameters(0)
    torch.nn.init.normal_(made.readout.weight, generator=torch.Generator().manual_seed(1))
    return made


def inputs(length: int = 11) -> torch.Tensor:
    return torch.randn(2, length, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def test_a_fresh_regressor_answers_zero():
    made = build_regressor(*built.uniform(MIXER, SIZE), input_dim=5, output_dim=3, backend="torch")
    made.reset_parameters(0)
    answers, _ = made(inputs().float())
    assert answers.shape == (2, 11, 3) and (answers == 0).all()


@torch.no_grad()
def test_a_later_vector_changes_nothing_before_it():
    made, x = model(), inputs()
    changed = x.clone()
    changed[:, 7:] += 1.0
    before, after = made(x)[0], made(changed)[0]
    assert torch.equal(before[:, :7], after[:, :7]) and not torch.allclose(before[:, 7:], after[:, 7:])


@torch.no_grad()
@pytest.mark.parametrize("cut", [1, 4, 10])
def test_a_sequence_cut_anywhere_and_steps_equal_the_whole(cut):
    made, x = model(), inputs()
    whole, state = made(x)
    first, carried = made(x[:, :cut])
    second, end = made(x[:, cut:], carried)
    assert torch.allclose(torch.cat([first, second], dim=1), whole, rtol=0, atol=1e-12)
    stepped = made.init_state(2)
    for t in range(x.shape[1]):
        answer, stepped = made.step(x[:, t], stepped)
        assert answer.shape == (2, 3) and torch.allclose(answer, whole[:, t], rtol=0, atol=1e-12)
    for ours, theirs in zip(end, state, strict=True):
        assert all(torch.allclose(ours[key], theirs[key], rtol=0, atol=1e-12) for key in theirs)


@torch.no_grad()
def test_starts_reset_the_state():
    made, x = model(), inputs()
    starts = torch.zeros(2, 11, dtype=torch.bool)
    starts[:, 5] = True
    assert torch.allclose(made(x, starts=starts)[0][:, 5:], made(x[:, 5:])[0], rtol=0, atol=1e-12)


def test_loss_is_the_mean_square_and_its_gradient_reaches_every_parameter():
    made, x = model(), inputs()
    targets = torch.randn(2, 11, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    features, _ = made.features(x)
    asked = torch.ones(2, 11, dtype=torch.bool)
    loss = made.mean_loss(features[asked], targets[asked])
    assert loss.item() == pytest.approx((made(x)[0] - targets).square().mean().item())
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in made.parameters())
    losses, answers = made.score(features[asked], targets[asked])
    assert losses.shape == (22,) and answers.shape == (22, 3) and not losses.requires_grad
    assert losses.mean().item() == pytest.approx(loss.item())


def test_where_nothing_is_asked_loss_and_gradients_are_zero():
    made, x = model(), inputs()
    features, _ = made.features(x)
    loss = made.mean_loss(features[:0].flatten(0, 1), torch.zeros(0, 3, dtype=torch.float64))
    loss.backward()
    assert loss.item() == 0 and all(p.grad is not None and p.grad.abs().max() == 0 for p in made.parameters())


def test_declared_flops_of_embedding_and_head_are_the_counted():
    made, x = model(), inputs()
    with FlopCounterMode(display=False) as counter:
        made.head(made.embed(x))
    assert counter.get_total_flops() == 22 * made.head_flops_per_token() == 22 * 2 * (5 * 16 + 16 * 3)
    blocks = sum(b.mixer.forward_flops_per_token(11) + b.mlp.forward_flops_per_token() for b in made.blocks)
    assert made.forward_flops_per_token(11) == blocks + made.head_flops_per_token()
    assert math.isclose(made.measured_flops_per_token(x), made.forward_flops_per_token(11))


def test_both_faces_share_the_blocks_and_a_language_model_keeps_its_parameters():
    """The order decides the last bit of the gradient's norm, and the names what a checkpoint can be read into."""
    made = model()
    tokens = LanguageModel(built.size(d_model=16, mlp_dim=24), [b.mixer for b in made.blocks], vocab_size=7)
    names = [name for name, _ in tokens.named_parameters()]
    assert names[0] == "embedding.weight" and names[-1] == "final_norm.weight" and len(names) == len(set(names))
    assert set(names) | {"readout.weight"} == {name for name, _ in made.named_parameters()}
    torch.nn.init.normal_(tokens.embedding.weight)
    features = torch.randn(4, 16)
    loss = tokens.mean_loss(features, torch.tensor([1, 2, 3, 6]))
    assert loss.item() == pytest.approx(F.cross_entropy(tokens.head(features), torch.tensor([1, 2, 3, 6])).item(), rel=1e-5)
