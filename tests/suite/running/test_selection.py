"""Model selection and early stopping by the validation split, and that a kill changes neither."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from suite.cli import main
from suite.compute.parallel import alone
from suite.plan import Run, plan, task_of
from suite.running import book, selection, trainee
from suite.running import train as training
from suite.saved import new_model
from suite.store.checkpoint import load_final
from suite.store.run_directory import RunDirectory
from tests.suite.running.test_train import numbers, weights

CPU = torch.device("cpu")
SELECTS = ("train.validate_steps=3", "train.keep=best")


class Killed(BaseException):
    pass


def value(results: Path, metric: str) -> float:
    (path,) = results.glob("runs/*/train.json")
    return next(row["value"] for row in json.loads(path.read_text())["rows"] if row["metric"] == metric)


def losses_on_validation(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    """Every look at the validation split finds the next of these losses."""
    left = iter(losses)
    monkeypatch.setattr(selection.MeanLoss, "mean", property(lambda self: next(left)))


@pytest.mark.parametrize(("losses", "best"), [([3.0, 1.0, 2.0, 4.0], 6), ([3.0, 3.0, 3.0, 3.0], 3), ([4.0, 3.0, 2.0, 1.0], 12)])
def test_the_weights_of_the_lowest_validation_loss_are_kept(losses, best, small, tmp_path, monkeypatch):
    losses_on_validation(monkeypatch, losses)
    assert main(["run", *small, *SELECTS, "eval=none"]) == 0
    results = tmp_path / "results"
    assert (value(results, "step_kept"), value(results, "steps_taken")) == (best, 12)
    # As many steps of the same training: the schedule is that of twelve.
    (run,) = plan([*small, *SELECTS, "eval=none"])
    kept = new_model(run, CPU)
    load_final(RunDirectory(results, run.run_id), kept)
    assert all(torch.equal(kept.state_dict()[name], each) for name, each in after(run, best, tmp_path / "again").items())


def after(run: Run, steps: int, results: Path) -> dict[str, torch.Tensor]:
    """The weights of a run after some of its steps."""
    found: dict[str, torch.Tensor] = {}
    original = selection.Selection.look

    def look(self, model, task, step, device):
        kept = original(self, model, task, step, device)
        if step == steps:
            found.update({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return kept

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection.MeanLoss, "mean", property(lambda self: 1.0))
        patch.setattr(selection.Selection, "look", look)
        directory = RunDirectory(results, run.run_id)
        directory.make()
        with directory.lock:
            training.train(run, task_of(run.config), directory, world=alone(CPU), on_pulse=lambda pulse: None, on_note=print)
    return found


def test_training_ends_at_the_accuracy_that_is_asked_for(small, tmp_path):
    assert main(["run", *small, "train.validate_steps=5", "train.stop_at=0.0", "eval=none"]) == 0
    assert value(tmp_path / "results", "steps_taken") == 5
    assert main(["run", *small, "train.validate_steps=5", "train.stop_at=1.0", "eval=none"]) == 0
    taken = {path.parent.name: json.loads(path.read_text())["rows"] for path in tmp_path.glob("results/runs/*/train.json")}
    assert sorted(row["value"] for rows in taken.values() for row in rows if row["metric"] == "steps_taken") == [5, 12]


@pytest.mark.parametrize("more", [SELECTS, ("train.validate_steps=4", "train.stop_at=0.0")])
@pytest.mark.parametrize("moment", [2, 4])
def test_killed_and_resumed_is_the_same_selection(more, moment, small, tmp_path, monkeypatch):
    assert main(["run", *small, *more, "eval=none"]) == 0
    whole, killed = tmp_path / "results", tmp_path / "killed"
    saved: list[object] = []

    def save(*arguments, **named):
        keep(*arguments, **named)
        saved.append(arguments)
        if len(saved) == moment:
            raise Killed

    keep = trainee.save_checkpoint
    # A checkpoint after every step, whatever it costs.
    monkeypatch.setattr(book, "CHECKPOINT_SHARE", 1e9)
    monkeypatch.setattr(trainee, "save_checkpoint", save)
    request = [f"paths.results={killed}" if each.startswith("paths.results") else each for each in small]
    with pytest.raises(Killed):
        main(["run", *request, *more, "eval=none"])
    monkeypatch.undo()
    assert main(["run", *request, *more, "eval=none"]) == 0
    assert numbers(killed) == numbers(whole)
    assert all(torch.equal(weights(killed)[name], tensor) for name, tensor in weights(whole).items())


@pytest.mark.parametrize("wrong", ["train.keep=best", "train.stop_at=0.9", "train.warmup_from=1", "train.final_lr=1"])
def test_what_goes_with_nothing_is_refused(wrong, small, capsys):
    assert main(["check", *small, wrong]) == 2
    assert capsys.readouterr().err.count("\n") == 1
