"""What losses that are not finite, and losses that jump, do to a training."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import suite.compute.step
from suite.cli import main
from suite.compute.optimization import build_optimizer
from suite.compute.order import example_indices
from suite.compute.scoring import TrainingInputs
from suite.compute.step import CapturedStep, EagerStep
from suite.plan import plan
from suite.running.health import DIVERGED_STEPS, Diverged, Health
from suite.saved import new_model
from suite.store.checkpoint import Progress


def health(nonfinite: str = "stop", progress: Progress | None = None, on_note: Callable[[str], None] = print) -> Health:
    kept = progress or Progress()
    return Health(kept, 1.0, nonfinite=nonfinite, examples=lambda step: list(range(step, step + 20)), on_note=on_note)


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)])
def test_what_is_not_finite_ends_training_and_names_the_batch(loss, norm):
    with pytest.raises(Diverged, match=f"diverged at step 3: loss {loss}, gradient norm {norm}; its batch has") as raised:
        health().check(3, loss, norm)
    assert str(raised.value).endswith("the examples " + ", ".join(map(str, range(3, 19))) + " and 4 more")
    assert raised.value.step == 3 and raised.value.examples == tuple(range(3, 23))


def test_a_step_that_is_left_out_is_counted_and_is_no_loss():
    kept = health("skip")
    for step, loss in enumerate([math.nan, 2.0, math.nan, 1.0]):
        kept.check(step, loss, 1.0)
    assert kept.skipped == 2 and list(kept.losses) == [2.0, 1.0] and kept.first_loss == 2.0
    resumed = health("skip", Progress(step=4, first_loss=2.0, losses=(2.0, 1.0), skipped=2))
    resumed.check(4, math.inf, 1.0)
    assert resumed.skipped == 3 and resumed.first_loss == 2.0


def test_so_many_steps_in_a_row_that_are_left_out_end_training():
    kept = health("skip")
    for step in range(DIVERGED_STEPS - 1):
        kept.check(step, math.nan, 1.0)
    with pytest.raises(Diverged, match=f"{DIVERGED_STEPS} steps in a row were left out, the last with loss nan"):
        kept.check(DIVERGED_STEPS - 1, math.nan, 1.0)


def test_a_loss_that_jumps_is_noted_once_and_logged_every_time():
    notes: list[str] = []
    kept = health(on_note=notes.append)
    for step in range(40):
        kept.check(step, 3.0 + 0.1 * (-1) ** step, 1.0)
    assert kept.spike() == {} and not notes
    # Above the mean by more than five deviations, but not by half a nat; then by that.
    kept.check(40, 3.49, 1.0)
    assert kept.spike() == {}
    kept.check(41, 3.9, 1.0)
    kept.check(42, 4.5, 1.0)
    assert kept.spike() == {"spike_step": 42, "spike_loss": 4.5} and kept.spike() == {}
    said = "the loss of step 41 is 3.90, the mean of the 20 steps before it 3.02"
    assert notes == [f"{said}; later spikes stand in metrics.jsonl alone"]


def test_a_loss_that_is_noisy_anyway_has_no_spike():
    kept = health()
    for step in range(60):
        kept.check(step, 7.0 - (step % 5), 1.0)
    assert kept.spike() == {}


def spoil(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Makes the loss of these steps of the next training no number."""
    plain, taken = suite.compute.step.loss, iter(range(1000))

    def loss(model: torch.nn.Module, inputs: TrainingInputs) -> Tensor:
        made = plain(model, inputs)
        return made * math.nan if next(taken) in steps else made

    monkeypatch.setattr(suite.compute.step, "loss", loss)


def rows(results: Path) -> dict[str, float]:
    (path,) = results.glob("runs/*/train.json")
    return {row["metric"]: row["value"] for row in json.loads(path.read_text())["rows"]}


def weights(results: Path) -> dict[str, Tensor]:
    (path,) = results.glob("runs/*/checkpoint/model.safetensors")
    return load_file(path)


def test_training_stops_with_the_step_and_its_examples(small, tmp_path, monkeypatch, capsys):
    spoil(monkeypatch, 5)
    assert main(["run", *small, "compute.jobs=1"]) == 1
    (run,) = plan(small)
    read = example_indices(5, batch_size=8, num_examples=None, seed=0)
    status = json.loads((tmp_path / "results" / "runs" / run.run_id / "status.json").read_text())
    assert (status["status"], status["step"]) == ("diverged", 5)
    assert status["reason"].endswith(f"its batch has the examples {', '.join(map(str, read))}")
    assert status["reason"] in capsys.readouterr().err


def test_a_step_that_is_left_out_changes_nothing_and_training_goes_on(small, tmp_path, monkeypatch):
    """With a constant rate, so that a shorter training has the same steps."""
    constant = [*small, "train.schedule=constant", "train.nonfinite=skip", "compute.jobs=1"]
    spoil(monkeypatch, 11)
    assert main(["run", *constant]) == 0
    monkeypatch.undo()
    shorter = [each for each in constant if not each.startswith(("train.steps", "paths"))]
    assert main(["run", *shorter, "train.steps=11", f"paths.results={tmp_path / 'shorter'}"]) == 0
    last, before = (weights(tmp_path / name) for name in ("results", "shorter"))
    assert all(torch.equal(last[name], before[name]) for name in before)
    assert rows(tmp_path / "results")["skipped_steps"] == 1.0 and rows(tmp_path / "shorter")["skipped_steps"] == 0.0


def test_leaving_out_what_never_happens_changes_no_number_but_the_name(small, tmp_path):
    for name in ("stop", "skip"):
        arguments = [each for each in small if not each.startswith("paths")]
        assert main(["run", *arguments, f"train.nonfinite={name}", f"paths.results={tmp_path / name}"]) == 0
    one, other = (weights(tmp_path / name) for name in ("stop", "skip"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert "skipped_steps" not in rows(tmp_path / "stop") and "mfu" not in rows(tmp_path / "stop")


def test_speed_is_a_share_of_the_peak_of_a_device_that_is_known(small, tmp_path, monkeypatch):
    monkeypatch.setattr("suite.running.book.device_name", lambda device: "NVIDIA H100 80GB HBM3")
    assert main(["run", *small, "compute.jobs=1"]) == 0
    (run,), found = plan(small), rows(tmp_path / "results")
    assert found["mfu"] == pytest.approx(3 * run.cost.flops_per_token * found["tokens_per_second"] / 67e12)


@pytest.mark.gpu
def test_a_captured_step_leaves_out_what_is_not_finite() -> None:
    (run,) = plan(["model=gla", "task=mqar", "train.nonfinite=skip", "eval=none", "backend=torch"])
    model = new_model(run, torch.device("cuda"))
    step = CapturedStep(EagerStep(model, build_optimizer(model, run.config.train), run.config.train), required=True)
    inputs = TrainingInputs(torch.ones(4, 32, dtype=torch.int64), torch.ones(128, dtype=torch.int64), None, None)
    for _ in range(6):
        assert step(inputs).isfinite().all()
    assert step.captured
    kept = model.embedding.weight[0, 0].item()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        model.embedding.weight[0, 0] = math.nan
    assert not step(inputs).isfinite().all()
    with torch.no_grad():
        model.embedding.weight[0, 0] = kept
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert step(inputs).isfinite().all() and not torch.equal(before["embedding.weight"], model.embedding.weight)
