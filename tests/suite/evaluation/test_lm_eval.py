"""lm-eval through the adapter against lm-eval on a plain forward pass."""

from __future__ import annotations

import json
import math
from pathlib import Path

import lm_eval
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from torch import Tensor, nn

from conf.settings import with_neutral
from models.backbone.language_model import LanguageModel
from models.mixer import SequenceMixer, State
from suite.evaluation.continuation import Prompt, continue_prompts
from suite.evaluation.lm_eval import evaluate_benchmarks
from suite.evaluation.lm_eval_adapter import BackboneLM, encode_pair
from suite.evaluation.lm_eval_names import OFFLINE_TASKS, benchmark_names, task_versions
from suite.evaluation.settings import Benchmarks
from tasks.language.tokenizer import ByteTokenizer
from tests.models import built

TOKENIZER = ByteTokenizer()
SENTENCES = ["the cat sat on the mat", "the dog ran to the sea", "rain and rain", "a much longer sentence, about the dog"]

TASKS = {
    "toy_last_word": """
output_type: loglikelihood
doc_to_text: "{{text.split(' ')[:-1] | join(' ')}}"
doc_to_target: "{{' ' + text.split(' ')[-1]}}"
num_fewshot: 1
fewshot_split: test
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true},
              {metric: perplexity, aggregation: perplexity, higher_is_better: false}]
""",
    "toy_choice": """
output_type: multiple_choice
doc_to_text: text
doc_to_choice: choices
doc_to_target: label
num_fewshot: 1
fewshot_split: test
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true},
              {metric: acc_norm, aggregation: mean, higher_is_better: true}]
""",
    "toy_rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: text
metric_list: [{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}]
""",
    "toy_generation": """
output_type: generate_until
doc_to_text: text
doc_to_target: answer
generation_kwargs: {until: ["\\n"], max_gen_toks: 5}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
}


class DecayedSum(SequenceMixer):
    """y_t = W sum_s 0.9^(t-s) x_s."""

    def __init__(self, d_model: int) -> None:
        super().__init__(self.Settings(type="decayed_sum"), d_model=d_model, backend="torch")
        self.output_projection = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, state: State | None = None, *, starts: Tensor | None = None) -> tuple[Tensor, State]:
        total = (state or self.init_state(len(x)))["S"]
        sums = []
        for x_t in x.unbind(1):
            total = 0.9 * total + x_t
            sums.append(total)
        return self.output_projection(torch.stack(sums, 1)), {"S": total}

    def init_state(self, batch_size: int) -> State:
        return {"S": torch.zeros(batch_size, self.output_projection.in_features)}

    def forward_flops_per_token(self, seq_len: int) -> float:
        return 2.0 * self.output_projection.weight.numel()

    def reset_parameters(self, generator: torch.Generator) -> None:
        weight = self.output_projection.weight
        with torch.no_grad():
            weight.copy_(torch.randn(weight.shape, generator=generator) / math.sqrt(len(weight)))


class PlainLM(LM):
    """One forward pass over the whole text for every request and every generated token: no state, no batch."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    @torch.no_grad()
    def log_probabilities(self, tokens: list[int]) -> Tensor:
        return self.model(torch.tensor([tokens]))[0][0].log_softmax(-1)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        scores = []
        for context, continuation in (request.args for request in requests):
            first, tokens = len(context.encode()), list((context + continuation).encode())
            predicted = self.log_probabilities([256, *tokens[:-1]])[first:]
            total = sum(row[token].item() for row, token in zip(predicted, tokens[first:], strict=True))
            scores.append((total, predicted.argmax(-1).tolist() == tokens[first:]))
        return scores

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        pairs = [Instance("loglikelihood", request.doc, ("", request.args[0]), 0) for request in requests]
        return [total for total, _ in self.loglikelihood(pairs)]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        texts = []
        for context, settings in (request.args for request in requests):
            tokens, answer = [256, *context.encode()], []
            for _ in range(settings["max_gen_toks"]):
                token = int(self.log_probabilities(tokens + answer)[-1].argmax())
                answer += [token]
            text = bytes(token for token in answer if token < 256).decode(errors="replace")
            texts.append(text.split(settings["until"][0])[0])
        return texts


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    mixers = [DecayedSum(16), DecayedSum(16)]
    model = LanguageModel(built.size(d_model=16, mlp_dim=32), mixers, vocab_size=257)
    model.reset_parameters(0)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model: LanguageModel) -> str:
    """A user's folder of tasks over a JSON file; the answer to the first sentence is what the model generates."""
    folder = tmp_path_factory.mktemp("benchmarks")
    settings = {"until": ["\n"], "max_gen_toks": 5}
    first = PlainLM(model).generate_until([Instance("generate_until", {}, (SENTENCES[0], settings), 0)])[0]
    rows = [
        {"text": text, "choices": [" ran", " flew away", " slept"], "label": i % 3, "answer": first if i == 0 else "no"}
        for i, text in enumerate(SENTENCES)
    ]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = f'{{data_files: {{test: "{folder}/data.jsonl"}}, cache_dir: "{folder}/cache"}}'
    for name, text in TASKS.items():
        head = f"task: {name}\ndataset_path: json\ndataset_kwargs: {data}\ntest_split: test\nmetadata: {{version: 1}}\n"
        (folder / f"{name}.yaml").write_text(head + text)
    return str(folder)


def evaluated(model: LanguageModel, tasks: str | list[str], folder: str | None = None, batch_size: int = 8, **changes) -> list:
    settings = {"num_fewshot": None, "limit": None, "max_length": None, "fewshot_seed": 1234, "batch_size": batch_size} | changes
    places = {"include_path": folder, "data_root": None}
    asked = Benchmarks.read(with_neutral(Benchmarks, {"tasks": tasks, **places, **settings}))
    return evaluate_benchmarks(model, TOKENIZER, asked, device="cpu")


def requests_of(*arguments: tuple) -> list[Instance]:
    return [Instance("loglikelihood", {}, given, 0, metadata=("toy", i, 1)) for i, given in enumerate(arguments)]


def adapter(
    model: LanguageModel, batch_size: int = 8, max_length: int | None = None, temperature: float | None = None
) -> BackboneLM:
    return BackboneLM(
        model, TOKENIZER, batch_size=batch_size, max_length=max_length, temperature=temperature, sample_seed=0, device="cpu"
    )


@pytest.mark.parametrize("limit, names", [(None, sorted(TASKS)), (3, ["offline"])])
def test_scores_are_those_of_lm_eval_on_a_plain_forward_pass(model, folder, limit, names):
    manager = lm_eval.tasks.TaskManager(include_path=[OFFLINE_TASKS, folder], include_defaults=False)
    expected = lm_eval.simple_evaluate(PlainLM(model), tasks=names, task_manager=manager, limit=limit, bootstrap_iters=0)
    rows = evaluated(model, names, folder, limit=limit)
    beside = ("chance", "accuracy_per_token")
    found = {(row.slice["benchmark"], row.metric): row for row in rows if row.metric not in beside}
    theirs = {"accuracy": "acc", "accuracy_norm": "acc_norm"}
    checked = 0
    for (name, metric), row in found.items():
        key = theirs.get(metric, metric)
        assert row.value == pytest.approx(expected["results"][name][f"{key},none"], rel=1e-5), (name, metric)
        assert row.slice["shots"] == expected["n-shot"][name]
        if row.examples:
            assert row.examples == tuple(float(sample[key]) for sample in expected["samples"][name])
            assert row.count == len(row.examples)
            checked += 1
    assert {name for name, _ in found} == {name for name in expected["results"] if name != "offline"}
    assert checked >= len(names)


def test_generation_that_matches_scores_one(model, folder):
    (row,) = evaluated(model, "toy_generation", folder)
    assert row.examples == (1.0, 0.0, 0.0, 0.0)


def test_loglikelihoods_do_not_depend_on_the_batch(model):
    texts = [("", "cat"), *[("the cat", f" {text}") for text in SENTENCES], *[(text, " on") for text in SENTENCES]]
    alone, together = (adapter(model, batch_size).loglikelihood(requests_of(*texts)) for batch_size in (1, 8))
    plain = PlainLM(model).loglikelihood(requests_of(*texts))
    for a, b, expected in zip(alone, together, plain, strict=True):
        assert a == (pytest.approx(expected[0], abs=1e-4), expected[1])
        assert b == (pytest.approx(a[0], abs=1e-5), a[1])


def test_trailing_spaces_of_the_context_belong_to_the_continuation():
    assert encode_pair(TOKENIZER, "ab ", "c") == ([256, 97, 98], [32, 99])
    assert encode_pair(TOKENIZER, "", "c") == ([256], [99])


@pytest.mark.parametrize("max_length", [4, 7, 100])
def test_rolling_predicts_every_token_once_in_windows(model, max_length):
    text = SENTENCES[0]
    tokens, plain = list(text.encode()), PlainLM(model)
    total = plain.log_probabilities([256, *tokens[: max_length - 1]])[range(len(tokens[:max_length])), tokens[:max_length]].sum()
    for start in range(max_length, len(tokens), max_length):
        end = min(start + max_length, len(tokens))
        # Every later window is as long as it may be; only its new tokens count.
        window = plain.log_probabilities(tokens[end - 1 - max_length : end - 1])[start - end :]
        total += window[range(end - start), tokens[start:end]].sum()
    found = adapter(model, max_length=max_length).loglikelihood_rolling(requests_of((text,)))
    assert found == [pytest.approx(total.item(), abs=1e-4)]


def generated(model: LanguageModel, batch_size: int, **settings) -> list[str]:
    return adapter(model, batch_size).generate_until(requests_of(*[(text, settings) for text in SENTENCES]))


@pytest.mark.parametrize("batch_size", [1, 8])
def test_generation_ends_at_its_limit_or_before_a_stop(model, batch_size):
    expected = PlainLM(model).generate_until(
        requests_of(*[(text, {"until": ["\0\0"], "max_gen_toks": 12}) for text in SENTENCES])
    )
    assert generated(model, batch_size, until=[], max_gen_toks=12) == expected
    stops = [text[3:5] for text in expected]
    assert all(stop.strip() for stop in stops)
    ended = generated(model, batch_size, until=stops, max_gen_toks=12)
    assert ended == [min((text.split(stop)[0] for stop in stops), key=len) for text in expected]


def test_generation_ends_at_bos(model):
    prompt = Prompt([256, *SENTENCES[0].encode()], until=[], max_tokens=12)
    free = continue_prompts(model, TOKENIZER, [prompt], batch_size=1, device=torch.device("cpu"))[0]
    ending = ByteTokenizer()
    # Untrained, the model never generates BOS; so the third byte that it does generate stands for it.
    ending.bos = free.encode()[2]
    ended = continue_prompts(model, ending, [prompt], batch_size=1, device=torch.device("cpu"))[0]
    assert ended == free.split(chr(ending.bos))[0]
    assert len(ended) <= 2


def test_truncation_leaves_out_the_earliest_tokens_and_is_counted(model, folder):
    lm = adapter(model, max_length=6)
    short, long = lm.loglikelihood(requests_of((SENTENCES[0], " dog"), ("once upon" + SENTENCES[0], " dog")))
    assert short == long
    assert {cut[0] for cut in lm.truncated} == {"toy"} and len(lm.truncated) == 2
    with pytest.raises(ValueError, match="max_length=6 is below the 12 tokens"):
        lm.loglikelihood(requests_of(("a", " dog and cat")))
    rows = {row.metric: row for row in evaluated(model, "toy_generation", folder, max_length=23)}
    assert (rows["truncated"].value, rows["truncated"].count) == (0.25, 4)


def test_chance_is_the_inverse_of_the_number_of_choices(model, folder):
    (row,) = [row for row in evaluated(model, "toy_choice", folder) if row.metric == "chance"]
    assert row.value == pytest.approx(1 / 3)


def test_shots_can_be_set_unless_a_task_fixes_none(model, folder):
    rows = evaluated(model, "toy_choice,offline_last_word", folder, num_fewshot=2, limit=2)
    assert {row.slice["benchmark"]: row.slice["shots"] for row in rows} == {"toy_choice": 2, "offline_last_word": 0}


@pytest.mark.parametrize("tasks", ["a, b", ["a", "b"], ("a ", " b")])
def test_names_come_as_a_comma_list_or_a_sequence(tasks):
    assert benchmark_names(tasks) == ["a", "b"]


@pytest.mark.parametrize(
    "tasks, include_path, said",
    [
        ("", None, "names no benchmark"),
        ("offline", "/nowhere", "'/nowhere' is not a folder"),
        ("offlin", None, "unknown lm-eval task 'offlin'; nearest: offline"),
    ],
)
def test_a_wrong_request_is_one_line(monkeypatch, tasks, include_path, said):
    # The suggestion is the same without lm-eval's own 14,000 names, which take 10 s to read.
    monkeypatch.setattr("suite.evaluation.lm_eval_names.SHIPPED_TASKS", ())
    with pytest.raises(ValueError, match=said) as caught:
        task_versions(tasks, include_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("line, said", [("", "FileNotFoundError: .*none.jsonl"), ("outputtype: x", "TypeError: .*outputtype")])
def test_a_task_that_cannot_be_loaded_is_one_line(model, tmp_path, line, said):
    data = f'dataset_path: json\ndataset_kwargs: {{data_files: {{test: "{tmp_path}/none.jsonl"}}}}'
    (tmp_path / "toy.yaml").write_text(f"task: toy\n{data}\ntest_split: test\n{line}\n")
    with pytest.raises(ValueError, match=f"'toy' cannot be loaded .{said}") as caught:
        evaluated(model, "toy", str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_group_may_override_a_task_that_lm_eval_ships(model, folder, tmp_path, monkeypatch):
    # Stands for lm-eval's own folder, which takes 10 s to read.
    shipped = Path(lm_eval.tasks.__file__).parent / "hellaswag"
    monkeypatch.setattr("suite.evaluation.lm_eval_names.SHIPPED_TASKS", (str(shipped),))
    data = f'{{data_files: {{validation: "{folder}/data.jsonl"}}, cache_dir: "{folder}/cache"}}'
    changes = f"dataset_path: json, dataset_name: null, dataset_kwargs: {data}"
    changes += ", training_split: null, process_docs: null, doc_to_text: text"
    (tmp_path / "group.yaml").write_text(f"group: mine\ntask: [{{task: hellaswag, {changes}}}]\n")
    rows = evaluated(model, "mine", str(tmp_path))
    assert {row.metric for row in rows} == {"accuracy", "accuracy_norm", "accuracy_per_token", "chance"}
    assert {row.slice["benchmark"] for row in rows} == {"hellaswag"}


def test_versions_follow_the_yaml_and_not_its_place(tmp_path):
    found = []
    for place, version in (("one", 1), ("two", 1), ("three", 2)):
        (tmp_path / place).mkdir()
        task = f"task: toy\ncustom_dataset: !function data.rows\nmetadata: {{version: {version}}}\n"
        (tmp_path / place / "toy.yaml").write_text(task)
        (tmp_path / place / "group.yaml").write_text("group: toys\ntask: [{task: toy, num_fewshot: 3}]\n")
        found.append(task_versions(["toy", "toys"], str(tmp_path / place)))
    assert found[0] == found[1]
    assert all(found[0][name] != found[2][name] for name in ("toy", "toys"))
    assert found[0]["toy"] != found[0]["toys"]
