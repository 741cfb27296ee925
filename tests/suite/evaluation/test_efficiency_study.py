"""The study of efficiency: what is counted is right, every cell is a stage, and what can't be timed says so."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import suite
from conf.settings import RequestError
from suite.cli import main
from suite.evaluation.stages import evaluate
from suite.evaluation.studies import efficiency, prompts, workloads
from suite.evaluation.studies.roofline import Ceilings, measured_ceilings
from suite.evaluation.studies.subject import Subject
from suite.evaluation.studies.timing import FEWEST_REPEATS, MOST_REPEATS, timed
from suite.evaluation.studies.workloads import (
    Workload,
    layer_backward,
    layer_forward,
    model_backward,
    model_forward,
    whole_training_step,
)
from suite.plan import Run, plan, task_of
from suite.results import load_results
from suite.saved import new_model

CPU = torch.device("cpu")
TINY = (
    "task=efficiency",
    "size.d_model=16",
    "size.num_blocks=2",
    "size.num_heads=2",
    "size.head_dim=8",
    "size.mlp_dim=16",
    "task.seq_len=32",
    "eval=efficiency",
    "eval.study_tokens=64",
    "eval.timed_lengths=[16,32]",
    "eval.prompt_lengths=[8,16]",
    "eval.decode_batch_sizes=[2,3]",
    "compute.jobs=1",
)
TIMED = (
    "latency_ms",
    "latency_ms_low",
    "latency_ms_high",
    "cold_ms",
    "floor_ms",
    "roofline_fraction",
    "work_flops",
    "least_bytes",
)


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("suite.evaluation.studies.timing.TIMED_SECONDS", 0.0)
    monkeypatch.setattr("suite.evaluation.studies.efficiency.measured_ceilings", lambda device, dtype: Ceilings(1e9, 1e9))


def request(*more: str) -> list[str]:
    """TINY with some of it replaced, and more."""
    replaced = {override.partition("=")[0] for override in more}
    return [*(override for override in TINY if override.partition("=")[0] not in replaced), *more]


def run_of(model: str, *more: str) -> Run:
    (run,) = plan(request(f"model={model}", *more))
    return run


def subject_of(run: Run, device: torch.device = CPU) -> Subject:
    return Subject(new_model(run, device).eval(), task_of(run.config), run.config, run.compute, device)


def cell_of(run: Run, *, batch_size: int = 2, length: int = 32) -> Workload:
    return Workload(subject_of(run), batch_size, length)


def test_every_cell_is_a_stage_and_a_finished_one_is_not_measured_again(tmp_path: Path):
    asked = request("model=gla", f"paths.results={tmp_path}")
    assert main(["run", *asked]) == 0
    stages = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/eval/efficiency-*.json")}
    # A layer and the model at two lengths; prompts of two lengths, and as many of another number.
    assert len(stages) == 7
    missing = next(iter(stages))
    missing.unlink()
    assert main(["run", *asked]) == 0
    assert {path for path in stages if path.stat().st_mtime_ns != stages[path]} == {missing}
    rows = load_results(tmp_path)
    rows = rows[rows["stage"] == "efficiency"]
    for metric in TIMED:
        found = rows[rows["metric"] == metric]
        assert set(found[["work", "batch", "length"]].itertuples(index=False, name=None)) == {
            *itertools.product(("layer forward", "layer forward + backward"), (4,), (16,)),
            *itertools.product(("layer forward", "layer forward + backward"), (2,), (32,)),
            *itertools.product(("forward", "forward + backward", "training step"), (4,), (16,)),
            *itertools.product(("forward", "forward + backward", "training step"), (2,), (32,)),
            *itertools.product(("prefill", "decode"), (2,), (8, 16)),
            *itertools.product(("prefill", "decode"), (3,), (8,)),
        }, metric
    wide = rows.pivot_table(index="slice", columns="metric", values="value")
    assert (wide["latency_ms_low"].dropna() <= wide["latency_ms_high"].dropna()).all()
    assert wide["roofline_fraction"].dropna().to_numpy() == pytest.approx((wide["floor_ms"] / wide["latency_ms"]).dropna())
    # There is no such number on a CPU.
    assert "peak_memory_bytes" not in wide and set(rows["device"]) == {"CPU, 1 thread"}


def test_nothing_is_trained_and_the_model_is_the_initial_one(tmp_path: Path):
    assert main(["run", *request("model=gla", "eval=none", f"paths.results={tmp_path}")]) == 0
    run = run_of("gla", "eval=none")
    folder = tmp_path / "runs" / run.run_id
    assert json.loads((folder / "status.json").read_text())["status"] == "done"
    assert not (folder / "checkpoint").exists() or not list((folder / "checkpoint").iterdir())
    loaded, fresh = suite.load_model(run.run_id, tmp_path), new_model(run, CPU)
    assert all(torch.equal(x, y) for x, y in zip(loaded.state_dict().values(), fresh.state_dict().values(), strict=True))


def test_another_task_has_no_such_stage():
    with pytest.raises(RequestError, match="efficiency does not apply to any run"):
        run_of("gla", "task=mqar")


def test_empty_lists_ask_for_nothing():
    run = run_of("gla", "eval.timed_lengths=[16]", "eval.prompt_lengths=[]")
    assert [json.loads(stage.settings)["part"] for stage in run.stages] == ["layer", "model"]


def test_what_has_no_room_is_recorded_and_the_rest_is_timed(monkeypatch: pytest.MonkeyPatch):
    def too_large(cell: Workload) -> None:
        raise torch.OutOfMemoryError("tried to allocate")

    monkeypatch.setitem(efficiency.PARTS["layer"], "layer forward", too_large)
    run = run_of("gla")
    cell = cell_of(run)
    (stage, *_) = run.stages
    rows = evaluate(stage, cell.subject)
    by_work = {work: {row.metric for row in rows if row.slice["work"] == work} for work in efficiency.PARTS["layer"]}
    assert by_work["layer forward"] == {"out_of_memory"} and set(TIMED) <= by_work["layer forward + backward"]


def test_a_step_that_can_not_be_captured_is_recorded(monkeypatch: pytest.MonkeyPatch):
    def not_captured(cell: Workload) -> None:
        raise prompts.NotCaptured("a copy to the host")

    rows = efficiency._work_rows(cell_of(run_of("gla")), not_captured, Ceilings(1.0, 1.0))
    assert [row.metric for row in rows] == ["not_captured"]


def test_what_asks_the_host_is_not_captured(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prompts, "_stepping", lambda cell: pytest.fail("tried"))
    cell = cell_of(run_of("hawk_mesa"))
    assert not cell.model.capturable
    with pytest.raises(prompts.NotCaptured, match="asks the host"):
        prompts.decode(replace(cell, subject=replace(cell.subject, device=torch.device("cuda"))))


def test_every_stage_trains_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """All are of one run, whatever `compute` each of its cells had."""
    trained = []
    monkeypatch.setattr(workloads, "accelerate", lambda model, compute: trained.append(compute.compile))
    asked = request("model=gla", "eval.timed_lengths=[16]", "eval.prompt_lengths=[]", f"paths.results={tmp_path}")
    ways = [*(each for each in asked if each.startswith(("eval", "compute", "paths"))), "compute.compile=true,false"]
    for arguments in (["run", *asked, ways[-1]], ["evaluate", "run=all", *ways]):
        assert main(arguments) == 0
        # Forward and backward, and the step.
        assert Counter(trained) == {True: 2, False: 2}
        rows = load_results(tmp_path)
        assert sorted(rows.loc[(rows["work"] == "training step") & (rows["metric"] == "latency_ms"), "compiled"]) == [0, 1]
        trained.clear()
        for path in tmp_path.glob("runs/*/eval/*.json"):
            path.unlink()


@pytest.mark.parametrize("override", ["compute.threads=1,2", "compute.device=auto,cpu"])
def test_a_request_is_computed_in_one_place(override: str, tmp_path: Path, capsys):
    asked = request("model=gla", "eval=none", f"paths.results={tmp_path}")
    assert main(["run", *asked]) == 0
    capsys.readouterr()
    evaluations = [each for each in asked if each.startswith(("compute", "paths"))]
    for arguments in (["run", *asked], ["evaluate", "run=all", "eval=efficiency", *evaluations]):
        assert main([*arguments, override]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and override.partition("=")[0] in error and "one value" in error


def test_a_length_that_does_not_divide_the_tokens_is_refused(capsys):
    for length in (48, 128):
        assert main(["check", *request("model=gla", f"eval.timed_lengths=[16,{length}]")]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and f"eval.timed_lengths has {length}" in error and "eval.study_tokens=64" in error


def test_the_study_leaves_the_model_as_it_was():
    run = run_of("hawk_mesa", "eval.timed_lengths=[16]", "eval.prompt_lengths=[8]", "eval.decode_batch_sizes=[2]")
    cell = cell_of(run)
    before = {name: x.clone() for name, x in cell.model.state_dict().items()}
    for stage in run.stages:
        evaluate(stage, cell.subject)
    after = cell.model.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is None for p in cell.model.parameters()) and not cell.model.training


def test_a_layers_work_by_hand():
    cell = cell_of(run_of("gla"))
    mixer, x_bytes = cell.model.blocks[0].mixer, 4 * 2 * 32 * 16
    weights, state = 4 * sum(p.numel() for p in mixer.parameters()), 4 * 2 * mixer.state_elements(32)
    forward, both = layer_forward(cell), layer_backward(cell)
    assert forward.flops == pytest.approx(2 * 32 * mixer.forward_flops_per_token(32)) and both.flops == 3 * forward.flops
    assert forward.moved_bytes == pytest.approx(weights + 2 * x_bytes + state)
    assert both.moved_bytes == pytest.approx(3 * weights + 5 * x_bytes + state)


def test_a_pattern_counts_as_the_mean_of_its_mixers():
    cell = cell_of(run_of("hawk_mesa"))
    hawk, mesa = (block.mixer for block in cell.model.blocks)
    work, x = layer_forward(cell), workloads._layer_input(cell)
    measured = (hawk.forward_flops_per_token(32) + mesa.measured_flops_per_token(x[:1])) / 2
    assert work.parts == 2 and work.flops == pytest.approx(2 * 32 * measured)


def test_a_models_work_by_hand():
    cell = cell_of(run_of("gla"))
    weights = 4 * sum(p.numel() for p in cell.model.parameters())
    forward, both, step = (make(cell) for make in (model_forward, model_backward, whole_training_step))
    assert forward.flops == pytest.approx(2 * 32 * cell.model.forward_flops_per_token(32))
    assert both.flops == step.flops == 3 * forward.flops
    # The moments and weights twice each and the gradients once, on top of both passes.
    assert step.moved_bytes - both.moved_bytes == 7 * weights


def test_a_timed_training_step_leaves_the_weights(monkeypatch: pytest.MonkeyPatch):
    cell = cell_of(run_of("gla"))
    monkeypatch.setattr(workloads, "_trained", lambda cell: cell.model.train())
    before = [x.clone() for x in cell.model.parameters()]
    whole_training_step(cell).run()
    assert all(torch.equal(x, y) for x, y in zip(before, cell.model.parameters(), strict=True))


def test_decoding_by_hand_for_a_constant_state_and_for_a_cache():
    for name, writes_all in (("gla", True), ("transformer", False)):
        cell = cell_of(run_of(name))
        model = cell.model
        weights = 4 * sum(p.numel() for p in model.parameters())
        _, state = model.features(cell.inputs().tokens)
        held = sum(x.numel() * x.element_size() for block in state for x in block.values())
        work = prompts.decode(cell)
        written = work.moved_bytes - weights - held
        assert written == pytest.approx(held if writes_all else held / 32, rel=0.05), name
        # The token after 32 sees 33 keys, where the mean over a sequence of 33 is half of that.
        assert work.flops >= 2 * model.forward_flops_per_token(33)


def test_prefill_applies_the_head_once_a_prompt():
    cell = cell_of(run_of("gla"))
    head, whole = cell.model.head_flops_per_token(), cell.model.forward_flops_per_token(32)
    assert prompts.prefill(cell).flops == pytest.approx(2 * 32 * (whole - head) + 2 * head)


def test_bfloat16_decodes_with_weights_of_half_the_size():
    cell = cell_of(run_of("gla", "train.autocast=bfloat16"))
    work = prompts.prefill(cell)
    assert work.aside_bytes == 4 * sum(p.numel() for p in cell.model.parameters())
    assert prompts._decoder(cell).embedding.weight.dtype == torch.bfloat16
    assert cell.model.embedding.weight.dtype == torch.float32


def test_the_floor_is_the_longer_of_both():
    ceilings = Ceilings(flops_per_second=1e12, bytes_per_second=1e9)
    assert ceilings.floor_ms(flops=2e12, moved_bytes=1e9) == pytest.approx(2000)
    assert ceilings.floor_ms(flops=1e9, moved_bytes=3e9) == pytest.approx(3000)


def test_ceilings_are_measured_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("suite.evaluation.studies.roofline.PRODUCT_SIZE", {"cpu": 64})
    monkeypatch.setattr("suite.evaluation.studies.roofline.COPIED_BYTES", {"cpu": 2**16})
    measured_ceilings.cache_clear()
    found = measured_ceilings(CPU, torch.float32)
    assert found.flops_per_second > 1e6 and found.bytes_per_second > 1e6
    assert measured_ceilings(CPU, torch.float32) is found
    measured_ceilings.cache_clear()


def test_the_first_call_is_told_apart_and_repeats_have_bounds():
    calls = []
    times = timed(lambda: calls.append(1), CPU)
    assert times.count == FEWEST_REPEATS and len(calls) == FEWEST_REPEATS + 2
    assert times.low <= times.median <= times.high
    assert MOST_REPEATS >= FEWEST_REPEATS


@pytest.mark.parametrize("key", ["timed_lengths", "prompt_lengths", "decode_batch_sizes"])
def test_a_wrong_list_is_one_line(key: str, capsys):
    assert main(["check", *request("model=gla", f"eval.{key}=[0]")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"eval.{key}" in error and "from 1" in error


@pytest.mark.gpu
def test_a_gpu_has_a_peak_of_memory_and_decodes_by_a_graph():
    run = run_of("gla", "backend=torch", "compute.device=cuda")
    subject = subject_of(run, torch.device("cuda"))
    rows = [row for stage in run.stages for row in evaluate(stage, subject)]
    works = {row.slice["work"] for row in rows if row.metric == "latency_ms"}
    assert works == {work for part in efficiency.PARTS.values() for work in part}
    peaks = [row.value for row in rows if row.metric == "peak_memory_bytes"]
    assert len(peaks) == sum(row.metric == "latency_ms" for row in rows) and min(peaks) > 0
    assert {row.slice["device"] for row in rows} == {torch.cuda.get_device_name()}


@pytest.mark.gpu
def test_a_gpu_without_room_says_so_and_goes_on():
    run = run_of("transformer", "backend=torch", "compute.device=cuda")
    subject = subject_of(run, torch.device("cuda"))
    large, small = Workload(subject, 256, 1024), Workload(subject, 1, 32)
    torch.cuda.empty_cache()
    # Room for 100 MB.
    torch.cuda.set_per_process_memory_fraction(1e8 / torch.cuda.get_device_properties(subject.device).total_memory)
    try:
        found = [efficiency._work_rows(cell, model_backward, Ceilings(1.0, 1.0))[0].metric for cell in (large, small)]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert found == ["out_of_memory", "latency_ms"]
