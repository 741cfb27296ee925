"""The backbone that answers every position from the last one's features, and blocks without an MLP."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models.backbone import Backbone
from models.backbone.autoencoder import AutoEncoder, positions
from suite.compute.interface import build_backbone, interface_of
from suite.plan import plan
from suite.saved import new_model
from tasks.task import Encoded, Tokens

SMALL = ("size.d_model=16", "size.num_blocks=2", "size.num_heads=2", "size.head_dim=8", "eval=none")


def built(*request: str) -> Backbone:
    (run,) = plan([*SMALL, *request])
    return new_model(run, torch.device("cpu"))


def test_every_answer_follows_from_the_last_features_and_its_position():
    model = built("model=gated_deltanet", "task=mad_compression", "size.mlp_dim=16")
    assert isinstance(model, AutoEncoder)
    tokens = torch.randint(16, (2, 9), generator=torch.Generator().manual_seed(0))
    answers = model(tokens)[0]
    x = model.embed(tokens)
    for block in model.blocks:
        x, _ = block(x, None, starts=None)
    x[:, :-1] = 0.0
    assert torch.equal(model.head(model.finish(x)), answers)
    assert not torch.allclose(answers[:, 0], answers[:, 1])
    # What stands first reaches all answers, the first among them, through what follows it.
    other = tokens.clone()
    other[:, 0] = (other[:, 0] + 1) % 16
    assert (model(other)[0] != answers).any(-1).all()


def test_positions_are_sines_and_cosines():
    found = positions(5, 6, torch.zeros(1))
    assert found.shape == (5, 6) and torch.equal(found[0], torch.tensor([0.0, 1.0] * 3))
    assert found[3, 2] == pytest.approx(torch.sin(torch.tensor(3 * 10_000 ** (-2 / 6))).item(), rel=1e-6)


def test_contractions_and_parameters_of_the_decoder_are_counted():
    model = built("model=linear_attention", "task=mad_compression", "size.mlp_dim=0", "model.mixer.conv_width=1")
    plain = built("model=linear_attention", "task=mad_in_context_recall", "size.mlp_dim=0", "model.mixer.conv_width=1")
    assert model.head_flops_per_token() - plain.head_flops_per_token() == 2 * 2 * 16 * 16
    assert sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in plain.parameters()) == 2 * (16 * 16 + 16)
    features = torch.randn(1, 7, 16)
    with FlopCounterMode(display=False) as counted:
        model.head(model.finish(features))
    assert counted.get_total_flops() == 7 * model.head_flops_per_token()


def test_the_blocks_of_a_model_are_those_without_a_decoder():
    model, plain = (built("model=gla", f"task={task}", "size.mlp_dim=8") for task in ("mad_compression", "mad_in_context_recall"))
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in plain.state_dict().items())


@pytest.mark.parametrize("task", ["mad_compression", "mqar"])
def test_a_block_without_an_mlp_is_its_mixer_alone(task):
    model = built("model=gla", f"task={task}", "size.mlp_dim=0")
    assert not [name for name in model.state_dict() if "mlp" in name]
    x = torch.randn(2, 5, 16)
    block = model.blocks[0]
    mixed, state = block.mixer(block.mixer_norm(x), None, starts=None)
    assert torch.equal(block(x, None, starts=None)[0], x + mixed)
    assert torch.allclose(block.step_(x[:, 0], block.mixer.init_state(2)), (x + mixed)[:, 0], atol=1e-5)
    loss = model.mean_loss(model.training_features(torch.randint(8, (2, 5)), starts=None).flatten(0, 1), torch.zeros(10).long())
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_facts_of_a_run_tell_an_autoencoder():
    (run,) = plan([*SMALL, "model=gla", "task=mad_compression", "size.mlp_dim=8"])
    assert interface_of(run.facts) == Encoded(16, decoder_layers=2) == run.interface
    assert isinstance(interface_of({"vocab_size": 16}), Tokens) and not isinstance(interface_of({"vocab_size": 16}), Encoded)
    with torch.device("meta"):
        made = build_backbone(run.interface, run.config.model, run.config.size, backend="torch")
    assert isinstance(made, AutoEncoder)
