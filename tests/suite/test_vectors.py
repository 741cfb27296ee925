"""A task of vectors goes the same way as one of ids: planned, matched, trained, resumed, evaluated, loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import suite
from models.backbone.regressor import Regressor
from models.ops.solvers import build_solver
from suite.cli import main
from suite.compute.interface import interface_of
from suite.compute.parallel import alone
from suite.evaluation.studies.least_squares import op_answers
from suite.plan import Run, plan, task_of
from suite.results import load_results
from suite.running.train import train
from suite.store.run_directory import RunDirectory
from tasks.task import Batch, Tokens, Vectors

REQUEST = (
    "task=in_context_regression",
    "size.num_blocks=1",
    "size.d_model=16",
    "size.head_dim=8",
    "task.input_dim=3",
    "task.output_dim=2",
    "task.seq_len=12",
    "task.num_validation=64",
    "task.num_test=64",
    "train.steps=8",
    "train.warmup_steps=2",
    "match.by=parameters",
    "compute.log_seconds=0",
    "compute.checkpoint_seconds=0",
)


def request_of(model: str, folder: Path, *more: str) -> list[str]:
    return [*REQUEST, f"model={model}", f"paths.results={folder}", *more]


def test_the_facts_of_a_run_hold_what_goes_in_and_what_is_asked(tmp_path):
    (run,) = plan(request_of("mesanet", tmp_path))
    (reference,) = plan(request_of("transformer", tmp_path))
    assert run.facts["input_dim"] == 8 and run.facts["output_dim"] == 2 and "vocab_size" not in run.facts
    assert interface_of(run.facts) == run.interface == Vectors(8, 2)
    assert abs(run.cost.parameters / reference.cost.parameters - 1) < 0.02
    assert (run.cell["task.noise"], run.cell["task.drift"], run.cell["task.segment_len"]) == (0.5, 0.0, None)


def test_a_task_of_ids_keeps_its_facts():
    (run,) = plan(["model=transformer", "task=mqar"])
    assert run.facts["vocab_size"] == 32 and not {"input_dim", "output_dim"} & set(run.facts)
    assert interface_of(run.facts) == run.interface == Tokens(32)


def test_it_is_trained_evaluated_and_loaded(tmp_path, capsys):
    request = request_of("mesanet", tmp_path, "eval.stages=[cost,test,least_squares]", "compute.jobs=1")
    assert main(["run", *request]) == 0
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    assert main(["run", *request]) == 0
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    assert main(["check", *request]) == 0
    assert "done" in capsys.readouterr().out
    (run,) = plan(request)
    model = suite.load_model(run.run_id[:6], tmp_path)
    assert isinstance(model.backbone, Regressor)
    rows = load_results(tmp_path)
    rows = rows[(rows["stage"] == "test") & (rows["slice"] == "")].set_index("metric")["value"]
    batch = task_of(run.config).batch("test", range(64))
    error = (model(batch.tokens)[0] - batch.targets).square().mean().item()
    assert rows["squared_error"] == pytest.approx(error, rel=1e-5) and rows["bayes_error"] < error < 2 * rows["zero_error"]
    assert model.measured_flops_per_token(batch.tokens) < model.forward_flops_per_token(12)


class Stopped(Exception):
    pass


def trained(run: Run, folder: Path, *stops: int) -> tuple[list, Path]:
    """The measurements of a run that was stopped at these steps and went on, and where its weights are."""
    directory, task = RunDirectory(folder, run.run_id), task_of(run.config)
    directory.make()
    directory.begin({"run_id": run.run_id, "group_id": run.group_id, "facts": run.facts}, b"{}", {}, {})

    def pulse(seen) -> None:
        if seen.step in stops and not (folder / f"stopped-{seen.step}").exists():
            (folder / f"stopped-{seen.step}").touch()
            raise Stopped

    for _ in stops:
        with pytest.raises(Stopped):
            train(run, task, directory, world=alone(torch.device("cpu")), on_pulse=pulse, on_note=print)
    rows = train(run, task, directory, world=alone(torch.device("cpu")), on_pulse=pulse, on_note=print)
    return [row for row in rows if row.split == "validation"], directory.checkpoints / "model.safetensors"


def test_stopped_and_resumed_equals_uninterrupted(tmp_path):
    (run,) = plan(request_of("gated_deltanet", tmp_path))
    whole, weights = trained(run, tmp_path / "whole")
    again, others = trained(run, tmp_path / "stopped", 3, 6)
    assert whole == again and weights.read_bytes() == others.read_bytes()


def by_position(rows: list[dict], metric: str) -> list[float]:
    found = {
        row["slice"]["position"]: row["value"] for row in rows if row["metric"] == metric and set(row["slice"]) == {"position"}
    }
    return [found[t] for t in sorted(found)]


def stage_rows(folder: Path, stage: str) -> list[dict]:
    (path,) = folder.glob(f"runs/*/eval/{stage}-*.json")
    return json.loads(path.read_text())["rows"]


def test_the_op_itself_is_on_the_ridge_curve_and_has_to_be_told_of_a_new_map(tmp_path):
    request = request_of("mesanet", tmp_path, "eval.stages=[test,least_squares]", "task.segment_len=6", "compute.jobs=1")
    assert main(["run", *request]) == 0
    rows = stage_rows(tmp_path, "least_squares")
    assert by_position(rows, "operator_error") == pytest.approx(
        by_position(stage_rows(tmp_path, "test"), "ridge_error"), rel=1e-3
    )
    told, untold = (by_position(rows, f"{name}_error") for name in ("operator", "forgetting"))
    assert told[:6] == pytest.approx(untold[:6], rel=0.2) and sum(told[7:10]) < sum(untold[7:10])
    decays = {row["metric"]: row["value"] for row in rows if row["metric"].endswith("decay")}
    assert decays["operator_decay"] == 1.0 > decays["forgetting_decay"]
    # The best Lambda for keys of length 1 is noise^2 = 0.25, the layer's floor: it loses nothing by it here.
    assert by_position(rows, "floored_error") == by_position(rows, "forgetting_error")


def test_the_op_equals_ridge_regression_in_float64(tmp_path):
    (run,) = plan(request_of("mesanet", tmp_path, "task.segment_len=5"))
    task = task_of(run.config)
    batch = task.batch("test", range(8))
    double = Batch(batch.tokens.double(), batch.targets.double())
    solver = build_solver(run.config.model.mixers[0].solver.replace({"tolerance": 1e-12}))
    answers = op_answers(task, double, decay=1.0, regularizer=task.regularizer, restarts_told=True, solver=solver, chunk_size=4)
    assert (answers - task.ridge(double)).abs().max() < 1e-6


def test_a_model_without_the_layer_has_no_such_stage(tmp_path):
    (run,) = plan(request_of("gla", tmp_path, "eval.stages=[cost,test,least_squares]"))
    assert [stage.name for stage in run.stages] == ["cost", "test"]
    (run,) = plan(["model=mesanet", "task=mqar", "eval.stages=[test,least_squares]"])
    assert [stage.name for stage in run.stages] == ["test"]


def test_a_wrong_value_is_one_line(tmp_path, capsys):
    assert main(["check", *request_of("mesanet", tmp_path, "task.noise=-1")]) == 2
    assert "task.noise=-1" in capsys.readouterr().err
