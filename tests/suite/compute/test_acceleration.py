"""Compiled, checkpointed and captured training: the same numbers, faster."""

from __future__ import annotations

import copy
import gc
import json
import logging
import weakref
from dataclasses import replace
from functools import partial
from types import MethodType

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import suite.compute.scoring
import suite.compute.step
from conf.settings import RequestError
from models.backbone import Block
from suite.cli import main
from suite.compute.acceleration import accelerate, training_step
from suite.compute.optimization import build_optimizer, set_learning_rate
from suite.compute.parallel import alone
from suite.compute.scoring import PLACES_MULTIPLE, loss, training_inputs
from suite.compute.settings import Compute
from suite.compute.step import CapturedStep, EagerStep
from suite.plan import Run, plan, task_of
from suite.request.compose import compose_one
from suite.running import pool
from suite.running.batches import batches
from suite.running.health import MOST_UNREAD, Diverged, Health, Readings
from suite.saved import new_model
from suite.store.checkpoint import Progress, load_checkpoint, save_checkpoint, training_state
from suite.store.run_directory import RunDirectory
from tasks.task import IGNORE, Batch

CPU, GPU = torch.device("cpu"), torch.device("cuda")
PLAIN = compose_one([]).compute.replace(
    {"compile": False, "activation_checkpointing": "none", "cuda_graph": False, "prefetch": 0}
)


def make_run(model: str, *overrides: str) -> Run:
    (run,) = plan([f"model={model}", "task=mqar", "train.steps=20", "train.warmup_steps=1", "backend=torch", *overrides])
    return run


def trained(run: Run, device: torch.device, compute: Compute, steps: int, *, flops: float = 0.0) -> tuple[list, list]:
    """Loss and norm of some steps, and the weights after them."""
    model = new_model(run, device)
    optimizer = build_optimizer(model, run.config.train)
    accelerate(model, compute)
    step = training_step(model, optimizer, run.config.train, compute, flops=flops)
    numbers = []
    for (inputs,) in batches(replace(run, compute=compute), task_of(run.config), range(steps), world=alone(device)):
        set_learning_rate(optimizer, 1e-3)
        numbers.append(step(inputs).clone())
    return torch.stack(numbers).tolist(), [x.detach().cpu() for x in model.parameters()]


def test_what_draws_for_every_batch_is_not_compiled(monkeypatch) -> None:
    """Every number of steps would be another compilation, until torch gives up."""
    monkeypatch.setattr(torch, "compile", lambda form, **settings: ("compiled", form))
    for overrides, is_compiled in (((), True), (("model.mixer.random_steps=5",), False)):
        model = new_model(make_run("mesanet", *overrides), CPU)
        accelerate(model, PLAIN.replace({"compile": True}))
        forms = model.training_forms
        assert forms.enter[0] == forms.leave[0] == "compiled"
        assert {output == ("compiled", Block.output) for output in forms.outputs} == {is_compiled}


@pytest.mark.parametrize(
    ("name", "checkpointing"),
    [("transformer", "none"), ("transformer", "blocks"), ("gated_deltanet", "none"), ("mlstm", "none")],
)
@pytest.mark.parametrize("narrow", [False, True], ids=["float32", "bfloat16"])
def test_blocks_of_one_shape_share_one_compilation_without_a_break(name, checkpointing, narrow, monkeypatch) -> None:
    """And their gradients are those without a compiler: nothing is added up in bfloat16 on the way back alone."""
    run = make_run(name, "size.num_blocks=3")
    model = new_model(run, CPU)
    names, plain = list(model.state_dict()), copy.deepcopy(model)
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter, fullgraph=True))
    accelerate(model, PLAIN.replace({"compile": True, "activation_checkpointing": checkpointing}))
    assert list(model.state_dict()) == names
    inputs = training_inputs(task_of(run.config).batch("train", range(4)))
    pairs = []
    for each in (model, plain):
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            each_loss = loss(each, inputs)
        pairs.append((each_loss, *torch.autograd.grad(each_loss, list(each.parameters()))))
    # The embedding, a block and the last norm.
    assert counter.frame_count == 3
    for ours, theirs in zip(*pairs, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_what_training_computes_is_what_the_model_computes() -> None:
    model = new_model(make_run("mesanet"), CPU)
    batch = task_of(make_run("mesanet").config).batch("train", range(3))
    starts = batch.tokens % 7 == 0
    expected, _ = model.features(batch.tokens, starts=starts)
    assert torch.equal(model.training_features(batch.tokens, starts=starts), expected)


def test_a_block_that_trains_as_its_forward_takes_no_state_for_a_term() -> None:
    """As FSDP2 has blocks: both forms take two tensors, and return a pair."""
    model = new_model(make_run("transformer"), CPU)
    for block in model.blocks:
        vars(block)["forward"] = MethodType(Block.output, block)
    with pytest.raises(TypeError, match="positional"):
        model.features(torch.zeros(1, 4, dtype=torch.long))


def test_checkpointing_recomputes_and_changes_no_number() -> None:
    run = make_run("gated_deltanet", "size.num_blocks=2")
    plain, checkpointed = (trained(run, CPU, PLAIN.replace({"activation_checkpointing": kind}), 2) for kind in ("none", "blocks"))
    assert plain[0] == checkpointed[0] and all(map(torch.equal, plain[1], checkpointed[1]))
    calls = []
    model = new_model(run, CPU)
    model.blocks[0].mixer.register_forward_hook(lambda *_: calls.append(1))
    accelerate(model, PLAIN.replace({"activation_checkpointing": "blocks"}))
    loss(model, training_inputs(task_of(run.config).batch("train", range(2)))).backward()
    assert len(calls) == 2


def test_a_graph_that_cannot_be_is_refused() -> None:
    for overrides, message in ((("random_steps=3",), "random_steps"), ((), "permitted on a CPU are auto and false")):
        run = make_run("mesanet", *(f"model.mixer.{each}" for each in overrides))
        model = new_model(run, CPU)
        optimizer = build_optimizer(model, run.config.train)
        step = partial(training_step, model, optimizer, run.config.train, flops=0.0)
        with pytest.raises(ValueError, match=message):
            step(PLAIN.replace({"cuda_graph": True}))
        assert isinstance(step(PLAIN.replace({"cuda_graph": "auto"})), EagerStep)


@pytest.mark.parametrize(
    ("model", "more", "message"),
    [
        ("gated_deltanet", (), "permitted on a CPU are auto and false"),
        ("mesanet", ("model.mixer.random_steps=3",), "permitted with random_steps are auto and false"),
        ("mesanet", ("model.mixer.solve_from=3",), "permitted with solve_from are auto and false"),
    ],
)
def test_a_graph_that_cannot_be_is_one_line_and_leaves_no_run(model, more, message, small, tmp_path, capsys) -> None:
    request = [f"model={model}", *small[1:], "compute.device=cpu", "compute.cuda_graph=true", *more]
    assert main(["run", *request]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "compute.cuda_graph=true" in error and message in error
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("accelerated", [{"compile": True}, {"activation_checkpointing": "blocks"}])
def test_an_accelerated_model_goes_with_its_last_name(accelerated, monkeypatch) -> None:
    """Without waiting for the collector of cycles: what is measured next would find the memory taken."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    run = make_run("gated_deltanet", "size.num_blocks=2")
    inputs = training_inputs(task_of(run.config).batch("train", range(2)))
    gc.disable()
    try:
        model = new_model(run, CPU)
        accelerate(model, PLAIN.replace(accelerated))
        loss(model, inputs).backward()
        held = weakref.ref(model.blocks[0])
        del model
        assert held() is None
    finally:
        gc.enable()


def test_only_efficiency_goes_without_training() -> None:
    with pytest.raises(RequestError, match="train.steps=0 is out of range.* from 1"):
        plan(["model=transformer", "task=mqar", "train.steps=0", "train.warmup_steps=0"])


def test_prefetching_and_a_compiled_block_leave_a_run_as_it_is(small, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    found = []
    for name, extra in (("plain", []), ("fast", ["compute.prefetch=2", "compute.compile=true"])):
        assert main(["run", *small, "compute.jobs=1", "eval=none", *extra]) == 0
        (path,) = (tmp_path / "results").glob("runs/*/metrics.jsonl")
        found.append([json.loads(line)["loss"] for line in path.read_text().splitlines()])
        (tmp_path / "results").rename(tmp_path / name)
    assert len(found[0]) == 12 and found[0] == found[1]


def test_what_is_asked_is_chosen_before_the_head() -> None:
    targets = torch.full((2, 512), IGNORE)
    targets[0, 5], targets[1, 7] = 3, 4
    few = training_inputs(Batch(torch.zeros(2, 512, dtype=torch.int64), targets))
    assert few.places.tolist()[:2] == [5, 519] and few.targets.tolist()[:2] == [3, 4]
    assert len(few.places) == len(few.targets) == PLACES_MULTIPLE and (few.targets[2:] == IGNORE).all()
    most = training_inputs(Batch(torch.zeros(2, 512, dtype=torch.int64), torch.where(targets == IGNORE, 1, IGNORE)))
    assert most.places is None and most.targets.shape == (1024,)
    vectors = training_inputs(Batch(torch.zeros(2, 512, 3), torch.zeros(2, 512, 4)))
    assert vectors.places is None and vectors.targets.shape == (1024, 4)


def test_health_names_the_step_that_broke() -> None:
    health = Health(Progress(), guessing_loss=1.0, nonfinite="stop", examples=lambda step: [step], on_note=print)
    health.check(0, 2.0, 1.0)
    for step in range(1, 19):
        health.check(step, 9.0, 1.0)
    with pytest.raises(Diverged, match="diverged at step 19: mean loss"):
        health.check(19, 9.0, 1.0)
    with pytest.raises(Diverged, match="diverged at step 20: loss nan"):
        health.check(20, float("nan"), 1.0)


@pytest.mark.parametrize(
    "override",
    ["compute.compile=1", "compute.cuda_graph=on_demand", "compute.activation_checkpointing=all", "compute.prefetch=-1"],
)
def test_a_value_that_is_not_permitted_is_named(override: str) -> None:
    with pytest.raises(RequestError, match=f"{override}.* permitted are"):
        make_run("transformer", override)


@pytest.mark.parametrize(("visible", "expected"), [(None, ["0", "1"]), ("3,5", ["3", "5"]), ("", [""])])
def test_workers_share_the_devices_that_there_are(visible, expected, monkeypatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pool._visible_devices() == expected


@pytest.mark.gpu
def test_auto_captures_small_steps_that_are_all_alike() -> None:
    def kind(run: Run, flops: float) -> type:
        model = new_model(run, GPU)
        compute = PLAIN.replace({"cuda_graph": "auto"})
        return type(training_step(model, build_optimizer(model, run.config.train), run.config.train, compute, flops=flops))

    assert kind(make_run("mesanet"), 1e9) is CapturedStep
    assert kind(make_run("mesanet"), 1e15) is kind(make_run("mesanet", "model.mixer.random_steps=3"), 1e9) is EagerStep


@pytest.mark.gpu
def test_readings_come_in_order_and_late() -> None:
    readings, seen = Readings(GPU), []
    for step in range(3 * MOST_UNREAD):
        torch.cuda._sleep(1_000_000)
        readings.add(step, torch.full((2,), float(step), device=GPU))
        assert len(readings._unread) <= MOST_UNREAD
        seen += readings.read()
    assert len(seen) < 3 * MOST_UNREAD
    seen += readings.read(leave=0)
    assert seen == [(step, float(step), float(step)) for step in range(3 * MOST_UNREAD)]


@pytest.mark.gpu
@pytest.mark.parametrize("autocast", ["none", "bfloat16"])
@pytest.mark.parametrize("num_pairs", ["[4]", "[2,8]"])
def test_captured_steps_are_the_eager_ones(num_pairs: str, autocast: str, monkeypatch) -> None:
    """To what the order of atomic sums leaves open; under bfloat16 that moves a rounding now and then.

    With 2 or 8 pairs in turn the number of places is 322 or 328, each of which gets its own graph.
    """
    monkeypatch.setattr(suite.compute.scoring, "PLACES_MULTIPLE", 2)
    run = make_run("transformer", f"task.num_pairs={num_pairs}", f"train.autocast={autocast}", "train.batch_size=65")
    eager, captured = (trained(run, GPU, PLAIN.replace({"cuda_graph": graph, "prefetch": 2}), 20) for graph in (False, True))
    near = {"rtol": 1e-4, "atol": 1e-5} if autocast == "none" else {"rtol": 2e-2, "atol": 2e-3}
    torch.testing.assert_close(torch.tensor(captured[0]), torch.tensor(eager[0]), **near)
    for ours, theirs in zip(captured[1], eager[1], strict=True):
        torch.testing.assert_close(ours, theirs, **near)


@pytest.mark.gpu
def test_a_step_that_waits_for_the_device_stays_eager_and_says_so(monkeypatch, caplog) -> None:
    def waits(model, inputs):
        found = loss(model, inputs)
        found.item()
        return found

    monkeypatch.setattr(suite.compute.step, "loss", waits)
    run = make_run("transformer")
    with caplog.at_level(logging.WARNING):
        numbers, _ = trained(run, GPU, PLAIN.replace({"cuda_graph": "auto"}), 6)
    assert len(numbers) == 6 and "the training step is not captured" in caplog.text
    with pytest.raises(ValueError, match="compute.cuda_graph=true"):
        trained(run, GPU, PLAIN.replace({"cuda_graph": True}), 6)


@pytest.mark.gpu
def test_a_run_on_a_gpu_goes_on_from_its_checkpoint(small, tmp_path) -> None:
    """The optimiser's state comes back to where the fused update looks for it."""
    (run,) = plan([*small, "compute.device=cuda"])
    model = new_model(run, GPU)
    optimizer = build_optimizer(model, run.config.train)
    step = EagerStep(model, optimizer, run.config.train)
    (first,), (second,), (third,) = batches(run, task_of(run.config), range(3), world=alone(GPU))
    step(first), step(second)
    directory = RunDirectory(tmp_path, run.run_id)
    save_checkpoint(directory, training_state(model, optimizer, None), Progress(2, 1.0, 1.0, 3.0, (3.0,)))
    expected = step(third).tolist()
    again = new_model(run, GPU)
    optimizer = build_optimizer(again, run.config.train)
    assert load_checkpoint(directory, again, optimizer, print)[0].step == 2
    assert EagerStep(again, optimizer, run.config.train)(third).tolist() == pytest.approx(expected, rel=1e-5)
    for ours, theirs in zip(again.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.gpu
@pytest.mark.parametrize("overrides", [("compute.compile=true",), ("train.autocast=bfloat16", "compute.cuda_graph=true")])
def test_a_run_trains_on_a_gpu(overrides, tmp_path) -> None:
    settings = ["train.steps=150", "train.batch_size=64", "compute.jobs=1", "compute.device=cuda", "eval=none"]
    request = ["model=transformer", "task=mqar", *settings, f"paths.results={tmp_path / 'results'}"]
    assert main(["run", *request, *overrides]) == 0
    (path,) = (tmp_path / "results").glob("runs/*/metrics.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows[-1]["step"] == 150 and rows[-1]["loss"] < rows[0]["loss"] - 0.1
