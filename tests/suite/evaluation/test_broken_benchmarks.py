"""Whatever a benchmark's files, code or numbers do, its failure is one line that names it, and its counts are documents."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from conf.settings import with_neutral
from suite.evaluation.lm_eval import check_shots, evaluate_benchmarks
from suite.evaluation.settings import Benchmarks
from tasks.language.tokenizer import ByteTokenizer

ROWS = [{"q": "A", "c": ["x", "y"], "a": 0}, {"q": "B", "c": ["x", "y", "z"], "a": 2}, {"q": "C", "c": ["x", "y"], "a": 1}]
CHOICE = "output_type: multiple_choice\ndoc_to_text: q\ndoc_to_choice: c\ndoc_to_target: a\n"
GENERATE = "output_type: generate_until\ndoc_to_text: q\ndoc_to_target: q\ngeneration_kwargs: {until: [], max_gen_toks: 2}\n"
MINE = (
    GENERATE + "process_results: !function code.score\nmetric_list: [{metric: mine, aggregation: mean, higher_is_better: true}]\n"
)
AGGREGATED = MINE.replace("aggregation: mean", "aggregation: !function code.total")


class Constant(torch.nn.Module):
    """Stands for a model: every token is as likely as any other, and "n" is said."""

    ends: frozenset[int] = frozenset()
    goes_on, mixes_lengths, longest = False, True, None

    def features(self, tokens):
        return torch.zeros(*tokens.shape, 1), []

    def gathered(self, rows):
        return []

    def reserve(self, state, num_tokens):
        return state

    def head(self, features):
        return torch.nn.functional.one_hot(torch.full(features.shape[:-1], ord("n")), 257) * 1e-6

    def head_parts(self, features):
        return [self.head(features)]

    def step_(self, tokens, state):
        return self.head(tokens.unsqueeze(-1))


def write(folder: Path, tasks: dict[str, str], code: str = "") -> None:
    (folder / "d.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (folder / "code.py").write_text(code)
    data = f'dataset_path: json\ndataset_kwargs: {{data_files: {{test: "{folder}/d.jsonl"}}}}\ntest_split: test\n'
    for name, text in tasks.items():
        head = "" if text.startswith("group") else f"task: {name}\n{data}"
        (folder / f"{name}.yaml").write_text(head + text)


def rows_of(folder: Path, name: str, **changes) -> list:
    settings = {"num_fewshot": None, "limit": None, "max_length": None, "fewshot_seed": 1, "batch_size": 4} | changes
    given = {"tasks": name, "include_path": str(folder), "data_root": None, **settings}
    asked = Benchmarks.read(with_neutral(Benchmarks, given))
    return evaluate_benchmarks(Constant(), ByteTokenizer(), asked, device="cpu")


FAILURES = {
    "choices of several numbers": (
        CHOICE + "metric_list: [{metric: acc}, {metric: brier_score}]\n",
        "",
        "scored .*inhomogeneous",
    ),
    "an unknown metric": (CHOICE + "metric_list: [{metric: accc}]\n", "", "loaded"),
    "an unknown filter": (CHOICE + "filter_list: [{name: a, filter: [{function: nope}]}]\n", "", "loaded"),
    "an unknown output type": (CHOICE.replace("multiple_choice", "essay"), "", "loaded"),
    "a template": (
        CHOICE.replace("doc_to_text: q", "doc_to_text: '{{q | nope}}'"),
        "",
        "(loaded|scored) .TemplateAssertionError",
    ),
    "no function": (MINE, "", "loaded .AttributeError"),
    "a syntax error": (MINE, "def score(:", "loaded .SyntaxError"),
    "an error of its own": (MINE, "class Odd(Exception): pass\ndef score(doc, results): raise Odd('a\\nb')", "scored .Odd: a b"),
    "an error without a word": (MINE, "def score(doc, results): assert False", "scored .AssertionError.$"),
    "an exit": (MINE, "import sys\ndef score(doc, results): sys.exit(3)", "scored .SystemExit: 3"),
    "an exit at import": (MINE, "raise SystemExit", "loaded .SystemExit"),
    "no number": (MINE, "def score(doc, results): return {'mine': float('nan')}", "scored .its metric 'mine,none' is nan"),
    "none": (
        AGGREGATED,
        "def score(doc, results): return {'mine': 1}\ndef total(x): return None",
        "scored .*'mine,none' is None",
    ),
    "a search": (GENERATE.replace("until: []", "num_beams: 4"), "", "scored .it asks for num_beams=4, permitted are until"),
    "heat": (GENERATE.replace("until: []", "temperature: -1"), "", "scored .it asks for temperature=-1.0, permitted are numbers"),
    "a picture": (GENERATE + "doc_to_image: q\n", "", "(loaded|scored)"),
    "too many shots": (CHOICE + "num_fewshot: 50\nfewshot_split: test\n", "", "loaded .num_fewshot=50 asks for more than its 3"),
    "no documents": (CHOICE + "process_docs: !function code.none\n", "def none(d): return d.select([])", "loaded .IndexError"),
    "no split": (CHOICE.replace("output_type", "validation_split: dev\noutput_type"), "", "(loaded|scored)"),
}


# To look for a metric of that name lm-eval imports for seconds what no other test needs.
IMPORTING = "an unknown metric"


@pytest.mark.parametrize("kind", [pytest.param(k, marks=pytest.mark.slow) if k == IMPORTING else k for k in FAILURES])
def test_a_failure_is_one_line_that_names_the_task(tmp_path, kind):
    text, code, said = FAILURES[kind]
    if kind == "no split":
        text = "fewshot_split: dev\nnum_fewshot: 1\n" + CHOICE
    write(tmp_path, {"toy": text}, code)
    with pytest.raises(ValueError, match=f"^lm-eval task 'toy' cannot be {said}") as caught:
        rows_of(tmp_path, "toy")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("doc_to_target: '{{a - 1}}'", "document 0 .its target -1 is none of its 2 choices"),
        ("doc_to_target: '{{a + 1}}'", "document 1 .its target 3 is none of its 3 choices"),
        ("doc_to_target: q", "document 0 .its target A is none of its 2 choices"),
        ('doc_to_target: \'{{["A", "C"].index(q)}}\'', "document 1 .'B' is not in list"),
        ("doc_to_target: 0\ndoc_to_choice: '{{[q, none] if a else c}}'", "document 1 .its choices .B,null. are not all text"),
    ],
)
def test_a_document_without_a_right_choice_is_named_and_not_counted_as_wrong(tmp_path, line, said):
    others = [each for each in CHOICE.splitlines() if not any(each.startswith(key.split(":")[0]) for key in line.split("\n"))]
    write(tmp_path, {"toy": "\n".join([*others, line, ""])})
    with pytest.raises(ValueError, match=f"^lm-eval task 'toy' cannot be scored: {said}"):
        rows_of(tmp_path, "toy")


def test_documents_beyond_the_limit_need_no_right_choice(tmp_path):
    write(tmp_path, {"toy": CHOICE.replace("target: a", "target: '{{a + 1}}'")})
    assert {row.metric for row in rows_of(tmp_path, "toy", limit=1)} >= {"accuracy"}


@pytest.mark.parametrize("kind", ["an exit", "an exit at import", "too many shots"])
def test_the_failing_member_of_a_group_is_named(tmp_path, kind):
    text, code, _ = FAILURES[kind]
    write(tmp_path, {"all": "group: all\ntask: [good, bad]\n", "good": CHOICE, "bad": text}, code)
    with pytest.raises(ValueError, match="^lm-eval task 'bad' cannot be "):
        rows_of(tmp_path, "all")


@pytest.mark.parametrize("error", ["KeyboardInterrupt", "MemoryError"])
def test_an_interruption_and_full_memory_are_no_failure_of_the_task(tmp_path, error):
    write(tmp_path, {"toy": MINE}, f"def score(doc, results): raise {error}")
    with pytest.raises(KeyboardInterrupt if error == "KeyboardInterrupt" else MemoryError):
        rows_of(tmp_path, "toy")


def test_documents_count_once_however_many_filters_read_them(tmp_path):
    filters = "filter_list:\n" + "".join(f"- name: {name}\n  filter: [{{function: take_first}}]\n" for name in ("one", "two"))
    write(tmp_path, {"toy": CHOICE + filters})
    rows = rows_of(tmp_path, "toy")
    (chance,) = [row for row in rows if row.metric == "chance"]
    assert chance.count == 3 and chance.value == pytest.approx((1 / 2 + 1 / 3 + 1 / 2) / 3)
    assert [(row.slice["metric_filter"], row.count) for row in rows if row.metric == "accuracy"] == [("one", 3), ("two", 3)]


def test_a_request_that_is_repeated_is_cut_once(tmp_path):
    write(tmp_path, {"toy": GENERATE.replace("doc_to_text: q", "doc_to_text: '{{q}} and more'") + "repeats: 3\n"})
    rows = {row.metric: row for row in rows_of(tmp_path, "toy", max_length=4)}
    assert (rows["truncated"].value, rows["truncated"].count) == (1.0, 3)
    assert rows["exact_match"].count == 3


def test_a_score_of_all_documents_together_counts_them(tmp_path):
    code = "def score(doc, results): return {'mine': (1, 2)}\ndef total(pairs): return float(len(pairs))"
    write(tmp_path, {"toy": AGGREGATED}, code)
    (row,) = rows_of(tmp_path, "toy")
    assert (row.value, row.count, row.examples) == (3.0, 3, None)


@pytest.mark.parametrize(("shots", "own"), [(None, 50), (50, 1)])
def test_too_many_shots_for_data_that_lie_here_are_found_before_anything_is_loaded(tmp_path, shots, own):
    (tmp_path / "d.jsonl").write_text("".join(json.dumps({"q": "a", "c": ["x", "y"], "a": 0}) + "\n" for _ in range(3)))
    files = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path / 'd.jsonl'}}}}}\ntest_split: test\n"
    kind = "output_type: multiple_choice\ndoc_to_text: q\ndoc_to_choice: c\ndoc_to_target: a\nfewshot_split: test\n"
    (tmp_path / "t.yaml").write_text(f"task: toy\n{files}{kind}num_fewshot: {own}\n")
    with pytest.raises(ValueError, match="lm-eval task 'toy' cannot be loaded .num_fewshot=50 asks for more than its 3"):
        check_shots("toy", f"any {shots}", str(tmp_path), shots, 1)
