"""What stands beside lm-eval's own scores: accuracy per token, groups, shares, sampled answers, and what was left out."""

from __future__ import annotations

import json
import math
from pathlib import Path

import lm_eval
import pytest
import torch

from conf.settings import RequestError, with_neutral
from models.backbone.generation import at_quantiles
from models.backbone.language_model import LanguageModel
from models.build import build_model
from suite.evaluation.lm_eval import check_answers, evaluate_benchmarks
from suite.evaluation.lm_eval_adapter import BackboneLM
from suite.evaluation.settings import Benchmarks
from suite.evaluation.stages import planned_stages
from suite.plan import task_of
from suite.request.compose import compose_one
from suite.stage import Stage
from suite.store.run_directory import RunDirectory
from suite.store.versions import superseded
from tasks.language.tokenizer import ByteTokenizer
from tasks.task import Measurement

# lm-eval puts a space between a question and a choice.
ROWS = [
    {"q": "rain falls on the sea and on the dog", "c": ["ran", "flew away", "s"], "a": 1},
    {"q": "the dog", "c": ["and the cat went away", "at", "sat"], "a": 2},
    {"q": "the cat sat on", "c": ["it", "the mat"], "a": 0},
    {"q": "rain", "c": ["and rain", "or sun or snow"], "a": 1},
]
METRICS = "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
CHOICE = f"output_type: multiple_choice\ndoc_to_text: q\ndoc_to_choice: c\ndoc_to_target: a\n{METRICS}"
LAST = f"output_type: loglikelihood\ndoc_to_text: q\ndoc_to_target: '{{{{c[0]}}}}'\n{METRICS}"
GENERATE = (
    "output_type: generate_until\ndoc_to_text: q\ndoc_to_target: q\n"
    "generation_kwargs: {until: [], max_gen_toks: 6, do_sample: true, temperature: 0.7}\n"
    "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
)
SEVERAL = "filter_list: [{name: all, filter: [{function: majority_vote}, {function: take_first}]}]\n"


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    config = compose_one(["model=gla", "size.d_model=32", "size.num_blocks=1"]).config
    model = build_model(config.model, config.size, vocab_size=257, backend="torch")
    model.reset_parameters(3)
    return model.eval()


def write(folder: Path, tasks: dict[str, str]) -> None:
    (folder / "d.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    data = f'dataset_path: json\ndataset_kwargs: {{data_files: {{test: "{folder}/d.jsonl"}}}}\ntest_split: test\n'
    for name, text in tasks.items():
        (folder / f"{name}.yaml").write_text(text if text.startswith("group") else f"task: {name}\n{data}{text}")


def scored(model: LanguageModel, folder: Path, name: str, **changes) -> tuple[list[Measurement], list[dict]]:
    settings = {"num_fewshot": None, "limit": None, "max_length": None, "fewshot_seed": 1, "batch_size": 4} | changes
    given = {"tasks": name, "include_path": str(folder), "data_root": None, **settings}
    asked, samples = Benchmarks.read(with_neutral(Benchmarks, given)), []
    return evaluate_benchmarks(model, ByteTokenizer(), asked, device="cpu", keep=samples.append), samples


def value_of(rows: list[Measurement], metric: str, benchmark: str = "toy") -> float:
    (row,) = [row for row in rows if row.metric == metric and row.slice["benchmark"] == benchmark]
    return row.value


def test_accuracy_per_token_is_of_the_choice_with_the_least_nll_per_token(model, tmp_path):
    write(tmp_path, {"toy": CHOICE})
    rows, samples = scored(model, tmp_path, "toy")
    per_token, plain = [], []
    for sample, row in zip(samples, ROWS, strict=True):
        totals = [answer["log_likelihood"] for answer in sample["answers"]]
        assert [answer["text"] for answer in sample["answers"]] == [f" {choice}" for choice in row["c"]]
        assert [answer["tokens"] for answer in sample["answers"]] == [len(choice) + 1 for choice in row["c"]]
        divided = [total / (len(choice) + 1) for total, choice in zip(totals, row["c"], strict=True)]
        per_token.append(float(divided.index(max(divided)) == row["a"]))
        plain.append(float(totals.index(max(totals)) == row["a"]))
    (found,) = [row for row in rows if row.metric == "accuracy_per_token"]
    assert found.examples == tuple(per_token) and found.value == sum(per_token) / 4 and found.slice["shots"] == 0
    assert value_of(rows, "accuracy") == sum(plain) / 4
    # Otherwise this would show nothing.
    assert per_token != plain


@pytest.mark.parametrize("by_size", [True, False])
def test_a_group_has_the_scores_that_lm_eval_gives_it(model, tmp_path, by_size):
    few = CHOICE + "process_docs: !function code.two\n"
    aggregate = f"aggregate_metric_list: [{{metric: acc, weight_by_size: {str(by_size).lower()}}}]\n"
    group = f"group: both\ntask: [many, few, {{group: inner, task: [last]}}]\n{aggregate}"
    write(tmp_path, {"both": group, "many": CHOICE, "few": few, "last": LAST})
    (tmp_path / "code.py").write_text("def two(docs): return docs.select([1, 2])")
    rows, _ = scored(model, tmp_path, "both")
    manager = lm_eval.tasks.TaskManager(include_path=str(tmp_path), include_defaults=False)
    expected = lm_eval.simple_evaluate(adapted(model), tasks=["both"], task_manager=manager, bootstrap_iters=0)["results"]["both"]
    assert value_of(rows, "accuracy", "both") == pytest.approx(expected["acc,none"])
    counts = {"many": 4, "few": 2, "last": 4}
    # A task without choices enters with its accuracy.
    parts = {name: value_of(rows, "accuracy" if name == "last" else "accuracy_per_token", name) for name in counts}
    weights = counts if by_size else dict.fromkeys(counts, 1)
    mean = sum(parts[name] * weights[name] for name in counts) / sum(weights.values())
    assert value_of(rows, "accuracy_per_token", "both") == pytest.approx(mean)
    own = [row for row in rows if row.slice["benchmark"] == "both"]
    assert {(row.count, row.slice["shots"]) for row in own} == {(10, 0)}
    assert not any(row.slice["benchmark"] == "inner" for row in rows)


def adapted(model: LanguageModel) -> BackboneLM:
    how = {"batch_size": 1, "max_length": None, "temperature": None, "sample_seed": 0, "device": "cpu"}
    return BackboneLM(model, ByteTokenizer(), **how)


@pytest.mark.parametrize("limit, count", [(3, 3), (0.5, 2), (0.3, 2), (1.0, 1)])
def test_a_limit_is_a_number_of_documents_or_a_share_below_one(model, tmp_path, limit, count):
    write(tmp_path, {"toy": CHOICE})
    rows, samples = scored(model, tmp_path, "toy", limit=limit)
    assert len(samples) == count and {row.count for row in rows} == {count}


@pytest.mark.parametrize("limit", [0, -0.5, 1.5])
def test_another_limit_is_refused(limit):
    values = compose_one(["eval=lm_eval", "eval.tasks=[offline]"]).evaluation
    with pytest.raises(RequestError, match="eval.limit="):
        Benchmarks.read(
            {key: value for key, value in values.items() if key in Benchmarks.__struct_fields__} | {"limit": limit}, "eval"
        )


def texts(samples: list[dict]) -> list[list[str]]:
    return [[answer["text"] for answer in sample["answers"]] for sample in samples]


def test_answers_are_sampled_by_their_own_draws(model, tmp_path):
    """The same seed gives the same answers in every batch and beside any other document; another seed gives others."""
    write(tmp_path, {"toy": GENERATE + "repeats: 3\n" + SEVERAL})
    first = texts(scored(model, tmp_path, "toy", sample_seed=1)[1])
    assert all(len(set(answers)) > 1 for answers in first)
    assert texts(scored(model, tmp_path, "toy", sample_seed=1, batch_size=1)[1]) == first
    assert texts(scored(model, tmp_path, "toy", sample_seed=1, limit=2)[1]) == first[:2]
    assert texts(scored(model, tmp_path, "toy", sample_seed=2)[1]) != first
    more = texts(scored(model, tmp_path, "toy", sample_seed=1, repeats=5)[1])
    assert [answers[:3] for answers in more] == first and {len(answers) for answers in more} == {5}


def test_a_temperature_of_nothing_takes_the_likeliest_token(model, tmp_path):
    write(tmp_path, {"toy": GENERATE, "greedy": GENERATE.replace("do_sample: true", "do_sample: false")})
    assert texts(scored(model, tmp_path, "toy", temperature=0)[1]) == texts(scored(model, tmp_path, "greedy")[1])
    assert texts(scored(model, tmp_path, "toy")[1]) != texts(scored(model, tmp_path, "greedy")[1])
    assert texts(scored(model, tmp_path, "greedy", temperature=0.7)[1]) != texts(scored(model, tmp_path, "greedy")[1])


def test_tokens_are_drawn_as_often_as_is_likely():
    """At evenly spaced quantiles every token comes up as often as its probability says, among those that are permitted."""
    logits = torch.tensor([0.5, 0.1, 0.0, 0.3, 0.1]).log()

    def shares(temperature: float, top_k: int, top_p: float) -> list[float]:
        quantile = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
        settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        told = {name: torch.full((1000,), value, dtype=torch.float64) for name, value in settings.items()}
        drawn = at_quantiles(logits.expand(1000, 5), quantile, **told)
        return (drawn.bincount(minlength=5) / 1000).tolist()

    assert shares(1.0, 5, 1.0) == pytest.approx([0.5, 0.1, 0.0, 0.3, 0.1], abs=2e-3)
    assert shares(1.0, 2, 1.0) == pytest.approx([0.625, 0.0, 0.0, 0.375, 0.0], abs=2e-3)
    assert shares(1.0, 5, 0.75) == pytest.approx([0.625, 0.0, 0.0, 0.375, 0.0], abs=2e-3)
    assert shares(0.5, 5, 1.0) == pytest.approx([0.25 / 0.36, 0.01 / 0.36, 0.0, 0.09 / 0.36, 0.01 / 0.36], abs=2e-3)
    assert shares(3.0, 1, 1.0) == [1.0, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "text, repeats, said",
    [
        (GENERATE.replace("until: []", "until: [], num_beams: 4"), None, "it asks for num_beams=4, permitted are until, .*top_p"),
        (GENERATE.replace("0.7", "-1"), None, "it asks for temperature=-1, permitted are numbers from 0"),
        (GENERATE.replace("0.7", "0.7, top_p: 1.5"), None, "it asks for top_p=1.5, permitted are numbers from 0 to 1"),
        (GENERATE, 4, "eval.repeats=4, but it has no filter and reads the first answer alone; permitted is 1"),
    ],
)
def test_answers_that_there_are_none_of_are_refused_before_anything_is_loaded(tmp_path, text, repeats, said):
    write(tmp_path, {"toy": text})
    (tmp_path / "d.jsonl").unlink()
    with pytest.raises(ValueError, match=f"lm-eval task 'toy' cannot be scored .{said}"):
        check_answers("toy", str(tmp_path), repeats)


class Short(torch.nn.Module):
    """Stands around a model and reads no more than a number of tokens."""

    def __init__(self, model: LanguageModel, longest: int) -> None:
        super().__init__()
        self.model, self.longest, self.ends = model, longest, model.ends
        self.goes_on, self.mixes_lengths = True, True
        self.head, self.head_parts, self.gathered = model.head, model.head_parts, model.gathered
        self.reserve, self.step_ = model.reserve, model.step_

    def features(self, tokens, *state):
        assert tokens.shape[1] <= self.longest
        return self.model.features(tokens, *state)


@pytest.mark.parametrize("kind, longest", [("choice", 24), ("generation", 20)])
def test_documents_that_a_model_cannot_read_are_left_out_and_counted(model, tmp_path, kind, longest):
    write(tmp_path, {"toy": CHOICE if kind == "choice" else GENERATE})
    everything, _ = scored(model, tmp_path, "toy")
    rows, samples = scored(Short(model, longest), tmp_path, "toy")
    left = {row.metric: row for row in rows}["left_out"]
    long = [i for i, row in enumerate(ROWS) if len(row["q"]) + (max(map(len, row["c"])) + 1 if kind == "choice" else 6) > longest]
    assert long and (left.value, left.count) == (len(long) / 4, 4)
    assert f"{len(long)} of 4 documents, the first is number {long[0]}: " in left.slice["missing"]
    assert f"more than the {longest} that the model reads; eval.max_length={longest} cuts" in left.slice["missing"]
    assert [sample["document"] for sample in samples] == [i for i in range(4) if i not in long]
    score = "accuracy" if kind == "choice" else "exact_match"
    (before,), (after,) = ([row for row in each if row.metric == score] for each in (everything, rows))
    # What stands behind a document that is left out keeps its number, by which models are compared.
    assert after.examples == pytest.approx(
        [math.nan if i in long else each for i, each in enumerate(before.examples)], nan_ok=True
    )
    assert after.count == 4 - len(long)
    # Cut to what it reads, all are scored.
    rows, samples = scored(Short(model, longest), tmp_path, "toy", max_length=longest)
    assert len(samples) == 4 and value_of(rows, "truncated") > 0 and "left_out" not in {row.metric for row in rows}


def test_an_answer_longer_than_the_maximum_leaves_its_document_out(model, tmp_path):
    write(tmp_path, {"toy": CHOICE})
    rows, _ = scored(model, tmp_path, "toy", max_length=10)
    left = {row.metric: row for row in rows}["left_out"]
    assert left.slice["missing"] == (
        "2 of 4 documents, the first is number 1: max_length=10 is below the 22 tokens of an answer in 'toy'"
    )
    with pytest.raises(ValueError, match="^lm-eval task 'toy' cannot be scored .max_length=2 is below the"):
        scored(model, tmp_path, "toy", max_length=2)


@pytest.mark.parametrize(
    "version, is_old", [("0.4.9-abc", True), ("0.4.11-abc", True), ("0.4.12-abc", False), ("0.5.0-abc", False)]
)
def test_races_from_before_and_after_its_third_version_stand_in_no_column_together(version, is_old):
    def stage(name: str, benchmark: str) -> dict:
        return {
            "stage": "lm_eval",
            "settings": {"tasks": name, "version": version},
            "rows": [{"slice": {"benchmark": benchmark}}],
        }

    stages = [stage("race", "race"), stage("my_group", "race"), stage("piqa", "piqa")]
    assert superseded(stages) == [is_old, is_old, False]


def test_stages_name_how_answers_are_sampled_where_that_is_asked_for_alone():
    def settings(*more: str) -> dict:
        config = compose_one(["model=gla", "task=language", "size=tiny", "eval=lm_eval", "eval.tasks=[offline_key_value]", *more])
        (stage,) = planned_stages(config.config, config.compute, config.evaluation, task_of(config.config))
        return json.loads(stage.settings)

    plain = settings()
    assert not {"temperature", "repeats", "sample_seed"} & plain.keys()
    assert settings("eval.temperature=0.7", "eval.sample_seed=2") == plain | {"temperature": 0.7, "sample_seed": 2}
    assert settings("eval.limit=0.5") == plain | {"limit": 0.5}


def test_answers_are_kept_beside_their_result_a_line_each(model, tmp_path):
    write(tmp_path, {"toy": CHOICE})
    _, samples = scored(model, tmp_path, "toy")
    directory, stage = RunDirectory(tmp_path / "results", "a" * 12), Stage.of("lm_eval", {"tasks": "toy"}, {})
    directory.make()
    with directory.lock:
        directory.write_samples(stage, samples)
    lines = directory.stage_file(stage).with_suffix(".jsonl").read_text().splitlines()
    assert [{key: value for key, value in json.loads(line).items() if key != "check"} for line in lines] == samples
