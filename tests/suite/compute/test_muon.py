"""Muon beside AdamW: which parameters it steps, how far, and that a checkpoint holds all of it."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conf.settings import RequestError
from models.backbone import Backbone
from suite.cli import main
from suite.compute.muon import MuonAdamW
from suite.compute.optimization import build_optimizer, set_learning_rate
from suite.plan import Run, plan
from suite.saved import new_model
from suite.store.checkpoint import Progress, load_checkpoint, save_checkpoint, training_state
from suite.store.run_directory import RunDirectory

CPU = torch.device("cpu")


def built(model: str = "hawk_mesa") -> tuple[Run, Backbone, MuonAdamW]:
    (run,) = plan([f"model={model}", "task=mqar", "train.optimizer=muon", "eval=none"])
    made = new_model(run, CPU)
    optimizer = build_optimizer(made, run.config.train)
    assert isinstance(optimizer, MuonAdamW)
    return run, made, optimizer


def step(model: Backbone, optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


def test_matrices_within_blocks_are_muons_and_every_parameter_is_someones():
    _, model, optimizer = built()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    held = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(names.values())
    muon = [names[id(p)] for group in optimizer.parts[0].param_groups for p in group["params"]]
    assert all(name.startswith("blocks.") and name.endswith(".weight") for name in muon)
    assert "blocks.0.mlp.up_projection.weight" in muon and "embedding.weight" not in muon
    # Neither norms nor the block-diagonal gates, whose weights have three axes.
    assert all(parameter.ndim == 2 for group in optimizer.parts[0].param_groups for parameter in group["params"])


def test_a_step_of_muon_is_about_orthogonal_and_as_long_as_one_of_adamw():
    _, model, optimizer = built("gla")
    set_learning_rate(optimizer, 1e-2)
    assert {group["lr"] for part in optimizer.parts for group in part.param_groups} == {1e-2}
    weight = model.blocks[0].mlp.up_projection.weight
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    before = weight.detach().clone()
    step(model, optimizer, 0)
    moved = (before - weight.detach()) / 1e-2
    # Newton and Schulz take every singular value to between 0.5 and 1.5, about; then 0.2 sqrt(longer side).
    values = torch.linalg.svdvals(moved) / (0.2 * math.sqrt(max(weight.shape)))
    assert values.min() > 0.3 and values.max() < 1.6
    assert moved.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.25)


def test_a_checkpoint_holds_the_state_of_both(tmp_path):
    run, model, optimizer = built()
    step(model, optimizer, 0)
    directory = RunDirectory(tmp_path, run.run_id)
    directory.make()
    with directory.lock:
        save_checkpoint(directory, training_state(model, optimizer, None), Progress(step=1))
        step(model, optimizer, 1)
        _, other, restored = built()
        assert load_checkpoint(directory, other, restored, print)[0].step == 1
        step(other, restored, 1)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    kept = {frozenset(state) for state in restored.state.values()}
    assert kept == {frozenset({"momentum_buffer"}), frozenset({"step", "exp_avg", "exp_avg_sq"})}


def test_it_trains(small, tmp_path):
    assert main(["run", *small, "train.optimizer=muon", "compute.jobs=1"]) == 0
    trained = load_file(next(Path(tmp_path / "results").glob("runs/*/checkpoint/model.safetensors")))
    assert all(tensor.isfinite().all() for tensor in trained.values())


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("train.nonfinite=skip", "train.nonfinite=skip is out of range, permitted are stop with train.optimizer=muon"),
        ("compute=fsdp", "compute.parallel=fsdp, permitted with train.optimizer=muon are none and ddp"),
        ("compute.cuda_graph=true", "compute.cuda_graph=true, permitted with train.optimizer=muon are auto and false"),
    ],
)
def test_what_muon_can_not_is_refused(typed, said):
    with pytest.raises(RequestError, match=re.escape(said)):
        plan(["model=gla", "task=mqar", "train.optimizer=muon", typed])


def test_by_its_neutral_value_adamw_renames_no_run():
    ids = {name: plan(["model=gla", "task=mqar", f"train.optimizer={name}"])[0].run_id for name in ("adamw", "muon")}
    assert ids["adamw"] == plan(["model=gla", "task=mqar"])[0].run_id != ids["muon"]
