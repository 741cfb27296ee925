"""The studies of the Mesa layer on small trained models: the rows they promise, and that they change nothing."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.mesa.layers import mesa_layers
from suite.cli import main
from suite.evaluation.settings import Asked
from suite.evaluation.stages import planned_stages, read_eval, studies_by_name
from suite.evaluation.studies import decode
from suite.evaluation.studies.length import _cut
from suite.evaluation.studies.repeats import _with_run, commonest_space
from suite.evaluation.studies.rows import nll_row
from suite.evaluation.studies.subject import Subject
from suite.plan import plan, task_of
from suite.request.compose import compose_one
from suite.saved import model_of, saved_run, saved_task
from tasks.positions import position_bands
from tasks.task import IGNORE, Measurement

CPU = torch.device("cpu")
SEQ_LEN = 24
TINY = ("size.d_model=16", "size.num_blocks=2", "size.num_heads=2", "size.head_dim=8", "size.mlp_dim=16", "eval=none")
STEPS = ("train.steps=3", "train.warmup_steps=1", "train.batch_size=4", "compute.jobs=1")
STAGES = "eval.stages=[solver,internals,length,decode,repeats]"
ASKED = (
    STAGES,
    "eval.study_tokens=480",
    "eval.solvers=[{},{max_steps: 2, tolerance: 0},{max_steps: 2, tolerance: 0.0}]",
    "eval.decoders=[{initial: previous_token},{decode: sherman_morrison, refresh: 4}]",
    "eval.length_factors=[1,3]",
    "eval.run_lengths=[0,40]",
)
POSITIONS = ("position_low", "position_high")
EVAL = compose_one([]).evaluation


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mesa model on text and on recall, and one without a Mesa layer on text, all evaluated."""
    folder = tmp_path_factory.mktemp("studies")
    words = ("the", "mesa", "solves", "a", "small", "system", "at", "every", "token", "of", "text")
    text = "\n<|endoftext|>\n".join(" ".join(words[(i * i + j) % 11] for i in range(20)) for j in range(200))
    (folder / "text.txt").write_text(text)
    data = ["data=text", f"data.path={folder / 'text.txt'}", "data.validation_fraction=0.3", f"task.seq_len={SEQ_LEN}"]
    paths = [f"paths.results={folder / 'results'}", f"paths.cache={folder / 'cache'}"]
    assert main(["run", "model=mesanet,gated_deltanet", *data, *TINY, *STEPS, *paths]) == 0
    recall = ["task=mqar", "model=mesanet", "task.num_validation=32", "task.num_test=32"]
    assert main(["run", *recall, *TINY, *STEPS, *paths]) == 0
    assert main(["evaluate", "run=all", *ASKED, "compute.jobs=1", *paths]) == 0
    return folder


def named(store: Path, model: str, task: str) -> Path:
    """The folder of one of the three runs."""
    for path in (store / "results" / "runs").iterdir():
        facts = json.loads((path / "run.json").read_text())["facts"]
        if (facts["model"], facts["task"]) == (model, task):
            return path
    raise AssertionError(f"no run of {model} on {task}")


def rows(run: Path, stage: str) -> list[dict]:
    return [row for path in sorted(run.glob(f"eval/{stage}-*.json")) for row in json.loads(path.read_text())["rows"]]


def slices(run: Path, stage: str, metric: str, *keys: str) -> set[tuple]:
    """The values of these slices over the rows of a metric that have no others."""
    found = [row["slice"] for row in rows(run, stage) if row["metric"] == metric and set(row["slice"]) == set(keys)]
    return {tuple(place[key] for key in keys) for place in found}


def subject_of(store: Path, model: str = "mesanet", task: str = "language") -> Subject:
    run = saved_run(store / "results", named(store, model, task).name, compose_one([]))
    return Subject(model_of(run, store / "results", CPU, "auto"), saved_task(run), run.config, run.compute, CPU)


def measured(subject: Subject, stage: str, tokens: int = 480, **asked: Sequence) -> list[list[Measurement]]:
    """The rows of every stage that these lists ask for."""
    study = studies_by_name()[stage]
    _, own = read_eval({**EVAL, "stages": [stage], "study_tokens": tokens, **asked})
    stages = study.planned(Asked(subject.config, subject.compute, subject.task, tokens, own[stage]))
    return [study.measure(subject, {**settings, "tokens": tokens}) for settings in stages]


def value(found: Sequence[Measurement], metric: str) -> float:
    """The one without a range of positions."""
    (row,) = [row for row in found if row.metric == metric and not set(POSITIONS) & set(row.slice)]
    return row.value


SOLVER = ("solver", "initial", "max_steps", "tolerance")
WHOLE = {("cg", "diagonal", 30, 1e-4), ("cg", "diagonal", 2, 0.0)}


@pytest.mark.parametrize("task", ["language", "mqar"])
def test_solver_has_scores_steps_and_time_for_every_setting(store, task):
    run = named(store, "mesanet", task)
    assert len(list(run.glob("eval/solver-*.json"))) == 2  # 0 and 0.0 are one tolerance
    score = "perplexity" if task == "language" else "accuracy"
    spent = ("solver_steps", "solver_chunk_steps", "solver_residual", "relative_time", "microseconds_per_token")
    for metric in ("nll", score, *spent):
        assert slices(run, "solver", metric, *SOLVER) == WHOLE, metric
    bands = slices(run, "solver", "nll", *SOLVER, *POSITIONS)
    assert len(bands) == (2 * len(position_bands(SEQ_LEN)) if task == "language" else 0)
    written = [row for stage in ("solver", "decode", "length", "repeats") for row in rows(run, stage) if "examples" in row]
    assert written and all(("groups" in row) == (task == "language") for row in written)
    assert {row["split"] for row in rows(run, "solver")} == {"validation" if task == "language" else "test"}
    assert all(
        len(row["examples"]) == (20 if task == "language" else 15)
        for row in rows(run, "solver")
        if row["metric"] == "nll" and set(row["slice"]) == set(SOLVER)
    )


def test_internals_have_every_layer_head_and_range_of_positions(store):
    run = named(store, "mesanet", "language")
    for metric in ("beta", "gamma", "regularizer", "solver_steps", "readout_cosine", "condition", "indefinite"):
        assert slices(run, "internals", metric, "layer", "head") == set(itertools.product(range(2), range(2))), metric
        bands = {(*place, *band) for place in itertools.product(range(2), range(2)) for band in position_bands(SEQ_LEN)}
        assert slices(run, "internals", metric, "layer", "head", *POSITIONS) == bands, metric


def test_length_scores_the_same_tokens_at_every_factor(store):
    run = named(store, "mesanet", "language")
    for metric in ("nll", "perplexity", "solver_steps", "condition"):
        assert slices(run, "length", metric, "length_factor", "length") == {(1, SEQ_LEN), (3, 3 * SEQ_LEN)}, metric
        bands = {(f, f * SEQ_LEN, *band) for f in (1, 3) for band in position_bands(f * SEQ_LEN)}
        assert slices(run, "length", metric, "length_factor", "length", *POSITIONS) == bands, metric
    scores = [row for row in rows(run, "length") if row["metric"] == "nll" and len(row["slice"]) == 2]
    assert len({row["count"] for row in scores}) == 1 and {len(row["examples"]) for row in scores} == {480 // (3 * SEQ_LEN)}


def test_decode_has_error_steps_and_time_for_every_decoder(store):
    run = named(store, "mesanet", "language")
    decoders = {("solver, previous_token start", 0, 30, 1e-4), ("sherman_morrison", 4, 30, 1e-4)}
    keys = ("decode", "refresh", "max_steps", "tolerance")
    for metric in ("nll", "readout_error", "readout_error_worst", "solver_steps", "relative_time", "microseconds_per_token"):
        assert slices(run, "decode", metric, *keys) == decoders, metric
    for metric in ("nll", "readout_error", "readout_error_worst", "solver_steps"):
        assert len(slices(run, "decode", metric, *keys, *POSITIONS)) == 2 * len(position_bands(SEQ_LEN)), metric


def test_another_solver_than_the_models_own_is_another_decoder(store):
    subject = subject_of(store, "mesanet", "language")
    own = decode.Settings.read({"decoders": [{}, {"name": "chebyshev"}]}, "eval")
    stages = decode.planned(Asked(subject.config, subject.compute, subject.task, 48, own))
    names = [{row.slice["decode"] for row in decode.measure(subject, {**stage, "tokens": 48})} for stage in stages]
    assert names == [{"solver, diagonal start"}, {"chebyshev, diagonal start"}]


def test_repeats_have_a_row_for_every_run_length(store):
    run = named(store, "mesanet", "language")
    metrics = {"nll", "nll_without_run", "readout_error", "readout_error_worst", "condition", "largest_readout"}
    metrics |= {"solver_steps", "finite"}
    assert {row["metric"] for row in rows(run, "repeats")} == metrics
    for metric in metrics:
        assert slices(run, "repeats", metric, "run_length") == {(0,), (40,)}, metric
    assert all(math.isfinite(row["value"]) for row in rows(run, "repeats"))


def test_a_model_without_a_mesa_layer_has_its_loss_by_length_alone(store):
    run = named(store, "gated_deltanet", "language")
    assert {path.name.partition("-")[0] for path in run.glob("eval/*.json")} == {"length"}
    assert {row["metric"] for row in rows(run, "length")} == {"nll", "perplexity"}


def test_a_second_call_does_nothing(store, capsys):
    before = {path: path.stat().st_mtime_ns for path in (store / "results").rglob("*.json")}
    again = ["evaluate", "run=all", *ASKED, f"paths.results={store / 'results'}", f"paths.cache={store / 'cache'}"]
    assert main(again) == 0 and "3 of them done already" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("eval.stages=[solvers]", ("'solvers'; did you mean solver?", "permitted: cost")),
        ("eval.solvers=[{max_stepz: 3}]", ("max_stepz", "did you mean eval.solvers[0].max_steps?")),
        ("eval.solvers=[{max_steps: -1}]", ("max_steps", "-1")),
        ("eval.solvers=[{max_steps: many}]", ("eval.solvers[0].max_steps=many", "whole number")),
        ("eval.solvers=[{tolerance: 2}]", ("eval.solvers[0].tolerance=2", "from 0 to below 1")),
        ("eval.solvers=[{tolerance: small}]", ("eval.solvers[0].tolerance=small", "numbers")),
        ("eval.solvers=[{name: gauss}]", ("gauss", "cholesky")),
        ("eval.solvers=[{name: richardson, gradient: unrolled}]", ("eval.solvers=richardson", "has learned no step of it")),
        ("eval.solvers=[{initial: random}]", ("random", "diagonal")),
        ("eval.solvers=[5]", ("eval.solvers[0]=5", "{name, max_steps")),
        ("eval.solvers={max_steps: 5}", ("eval.solvers={max_steps:5}", "permitted are lists of {name, max_steps")),
        ("eval.decoders=null", ("eval.decoders=null", "lists of {name, max_steps")),
        ("eval.decoders=[{decode: guess}]", ("guess", "sherman_morrison")),
        ("eval.decoders=[{refresh: 4}]", ("eval.decoders.refresh=4", "null with decode=solver")),
        ("eval.length_factors=[0]", ("eval.length_factors[0]=0", "from 1")),
        ("eval.length_factors=[5000]", ("task.seq_len=120000", "more than")),
        ("eval.run_lengths=[-1]", ("eval.run_lengths[0]=-1", "from 0")),
        ("eval.run_lengths=[90000]", ("task.seq_len=", "more than")),
        ("eval.study_tokens=0", ("eval.study_tokens=0", "from 1")),
    ],
)
def test_a_wrong_value_is_answered_by_one_line(store, argument, said, capsys):
    files = set((store / "results").rglob("*"))
    paths = [f"paths.results={store / 'results'}", f"paths.cache={store / 'cache'}"]
    stages = [] if argument.startswith("eval.stages") else [STAGES]
    run = named(store, "mesanet", "language").name
    assert main(["evaluate", f"run={run}", *stages, argument, *paths]) == 2
    error = capsys.readouterr().err
    assert all(part in error for part in said) and len(error.splitlines()) == 1, error
    assert files == set((store / "results").rglob("*"))


def test_the_model_is_as_it_was_after_every_study(store):
    subject = subject_of(store)
    tokens = subject.task.batch("validation", range(4)).tokens
    own = [(mixer.solver, mixer.settings, mixer.backend) for _, mixer in mesa_layers(subject.model)]
    with torch.no_grad():
        before, _ = subject.model(tokens)
        measured(subject, "solver", solvers=[{"name": "cholesky"}, {"initial": "previous_token", "max_steps": 1}])
        measured(subject, "decode", decoders=[{"decode": "sherman_morrison", "initial": "query"}])
        for stage, asked in (("internals", {}), ("length", {"length_factors": [1]}), ("repeats", {"run_lengths": [4]})):
            measured(subject, stage, **asked)
        after, _ = subject.model(tokens)
    assert own == [(mixer.solver, mixer.settings, mixer.backend) for _, mixer in mesa_layers(subject.model)]
    assert not any(mixer._forward_pre_hooks for _, mixer in mesa_layers(subject.model))
    assert torch.equal(before, after)


def test_the_models_own_solver_gives_its_own_scores_and_takes_its_own_time(store):
    subject = subject_of(store)
    (found,) = measured(subject, "solver", tokens=10**6, solvers=[{}])
    trained = json.loads((named(store, "mesanet", "language") / "train.json").read_text())["rows"]
    (expected,) = [row["value"] for row in trained if row["metric"] == "nll"]
    assert value(found, "nll") == pytest.approx(expected, abs=1e-6)
    assert 1 / 3 < value(found, "relative_time") < 3


def test_no_steps_from_zero_solve_nothing(store):
    subject, nothing = subject_of(store), {"max_steps": 0, "tolerance": 0.0, "initial": "zero"}
    (found,) = measured(subject, "solver", solvers=[nothing])
    assert value(found, "solver_steps") == 0 and value(found, "solver_residual") == 1
    (found,) = measured(subject, "decode", decoders=[nothing])
    assert value(found, "readout_error") == value(found, "readout_error_worst") == 1


@pytest.mark.parametrize("reset_at_bos", [False, True])
def test_decoding_is_the_same_function_and_the_exact_solver_exact(store, reset_at_bos):
    subject = subject_of(store)
    config = replace(subject.config, task=subject.config.task.replace({"reset_at_bos": reset_at_bos}))
    subject = replace(subject, task=task_of(config).resized(seq_len=SEQ_LEN, examples=20), config=config)
    starts = subject.task.batch("validation", range(20)).starts
    assert starts is not None and starts[:, 1:].any() if reset_at_bos else starts is None
    exact = {"name": "cholesky"}
    (whole,), (stepped,) = measured(subject, "solver", solvers=[exact]), measured(subject, "decode", decoders=[exact])
    assert value(stepped, "nll") == pytest.approx(value(whole, "nll"), abs=1e-5)
    assert value(stepped, "readout_error") < 1e-5 and value(stepped, "readout_error_worst") < 1e-3
    (loose,) = measured(subject, "decode", decoders=[{"max_steps": 1, "tolerance": 0.0}])
    assert value(loose, "readout_error") > 10 * value(stepped, "readout_error")


def test_text_cut_into_shorter_sequences_stays_the_same_text(store):
    subject = subject_of(store)
    long = subject.task.resized(seq_len=4 * SEQ_LEN, examples=3)
    batch, bos = long.batch("validation", range(3)), long.tokenizer.bos
    cut = _cut(long, batch, SEQ_LEN)
    assert cut.targets.shape == (12, SEQ_LEN) and torch.equal(cut.targets.flatten(), batch.targets.flatten())
    assert (cut.tokens[:, 0] == bos).all()
    assert torch.equal(cut.tokens[:, 1:], cut.targets[:, :-1].masked_fill(cut.targets[:, :-1] == IGNORE, bos))
    # The first of every four is the long sequence's beginning.
    assert torch.equal(cut.tokens[::4], batch.tokens[:, :SEQ_LEN])


def test_a_run_takes_the_place_of_text_in_tokens_and_targets(store):
    task = subject_of(store).task
    batch = task.batch("validation", range(5))
    space = commonest_space(task, [batch])
    assert space == ord(" ")
    repeated = _with_run(task, batch, space, 8, 6)
    assert (repeated.targets[:, 8:14] == space).all() and (repeated.tokens[:, 9:15] == space).all()
    for now, before, first, last in ((repeated.targets, batch.targets, 8, 14), (repeated.tokens, batch.tokens, 9, 15)):
        assert torch.equal(now[:, :first], before[:, :first]) and torch.equal(now[:, last:], before[:, last:])


def test_no_run_changes_nothing_and_a_long_one_is_harder_to_solve(store):
    subject = subject_of(store)
    none, long = measured(subject, "repeats", run_lengths=[0, 100])
    assert value(none, "nll") == value(none, "nll_without_run") and value(none, "finite") == 1
    assert value(long, "nll") != value(long, "nll_without_run")
    assert value(long, "condition") > value(none, "condition")


def test_a_model_that_has_broken_is_reported_and_does_not_stop_the_study(store):
    subject = subject_of(store)
    with torch.no_grad():
        subject.model.blocks[0].mlp.output_projection.weight.fill_(math.nan)
    (found,) = measured(subject, "repeats", run_lengths=[4])
    assert value(found, "finite") == 0 and math.isnan(value(found, "nll")) and math.isnan(value(found, "condition"))
    (found,) = measured(subject, "internals")
    assert {math.isnan(row.value) for row in found if row.metric == "condition" and row.slice["layer"] == 1} == {True}


def test_stages_are_planned_once_and_old_ones_keep_their_names(store):
    run = saved_run(store / "results", named(store, "mesanet", "language").name, compose_one([]))
    asked = {**EVAL, "stages": ["cost", "solver"], "study_tokens": 480, "solvers": [{}, {}]}
    stages = planned_stages(run.config, run.compute, asked, saved_task(run))
    assert [stage.name for stage in stages] == ["cost", "solver"]
    assert stages[0].file_name == "eval/cost-f1571690.json"


def test_an_unasked_position_counts_for_nothing():
    losses, asked = torch.tensor([[1.0, 9.0, 3.0], [5.0, 9.0, 9.0]]), torch.tensor([[True, False, True], [True, False, False]])
    found = nll_row("nll", losses, asked, "validation", {})
    assert (found.value, found.count, found.examples) == (3.0, 3, (2.0, 5.0))
    # At the first position of a range of one, where the second example has BOS, its loss is not known, and is not 0.
    found = nll_row("nll", losses[:, 2:], asked[:, 2:], "validation", {})
    assert (found.value, found.count, found.examples[0]) == (3.0, 1, 3.0) and math.isnan(found.examples[1])


def test_signed_gates_have_no_sherman_morrison_decoder() -> None:
    decoders = "eval.decoders=[{initial: diagonal},{decode: sherman_morrison, refresh: 4}]"
    (signed,) = plan(["model=mesanet_signed", "task=mqar", "eval.stages=[decode]", decoders])
    (positive,) = plan(["model=mesanet", "task=mqar", "eval.stages=[decode]", decoders])
    assert (len(signed.stages), len(positive.stages)) == (1, 2)


def test_learned_steps_are_not_asked_of_the_op_by_itself():
    task, richardson = (
        "task=in_context_regression",
        ["model.mixer.solver.name=richardson", "model.mixer.solver.gradient=unrolled"],
    )
    for changes, stages in (([], ["least_squares"]), (richardson, [])):
        (run,) = plan(["model=mesanet", task, "eval.stages=[cost,least_squares]", *changes])
        assert [stage.name for stage in run.stages if stage.name != "cost"] == stages
