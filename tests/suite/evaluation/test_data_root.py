"""eval.data_root stands for the hub: shipped tasks read it unchanged; what is missing is a line, and the rest goes on."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
import torch

from conf.settings import with_neutral
from models.build import build_model
from suite.cli import main
from suite.evaluation import lm_eval_data, lm_eval_names
from suite.evaluation.lm_eval import check_shots, evaluate_benchmarks
from suite.evaluation.lm_eval_blame import quiet
from suite.evaluation.lm_eval_data import MissingData, Reading
from suite.evaluation.lm_eval_names import check_data, task_manager, task_versions
from suite.evaluation.settings import Benchmarks
from suite.request.compose import compose_one
from tasks.language.tokenizer import ByteTokenizer
from tests.convert_eval_samples import convert

CHOICES = {"choices": ["red", "blue", "green"], "gold": 1}
SAMPLES = {
    "hellaswag_val": {"query": "Swimming: A man dives. He: then", **CHOICES},
    "arc_easy_val": {"id": "1", "query": "Question: What colour?\nAnswer:", **CHOICES},
    "arc_challenge_val": {"id": "2", "query": "Question: What colour is it?\nAnswer:", **CHOICES},
    "openbookqa_val": {"id": "3", "query": "Question: The sky is\nAnswer:", **CHOICES},
    "boolq": {"query": "Sky -- It is blue.\nQuestion: is it blue?\nAnswer:", "choices": ["yes", "no"], "gold": 0},
    "piqa": {"goal": "To swim,", "sol1": "dive.", "sol2": "fly.", "label": 0},
    "social_iqa": {"context": "A b.", "question": "Why?", "answerA": "x", "answerB": "y", "answerC": "z", "label": "3"},
    "winogrande": {"sentence": "It saw it, and the _ ran.", "option1": "cat", "option2": "dog", "answer": "2"},
    "lambada_test": {"text": "The dog ran to the sea"},
    "swde_kv": {"text": "Title: Emma. Author: Austen. Author:", "key": "author", "value": "Austen"},
    "fda_kv": {"text": "A. Number: K7. number:", "key": "number", "value": "K7"},
    "squad_dev_v1.1": {"context": "It is blue.", "question": "What colour?", "answers": ["blue", "it is blue"]},
    "nq-open-oracle": {"question": "who", "answers": ["Emma"], "ctxs": [{"text": "By Emma."}]},
    "drop": {"query_id": "a", "passage": " Two goals.", "question": "How many?", "answers": [["two", "goals"], ["2"]]},
    "cycle_letters_in_word": {"context": "\nssimmon =", "completion": " simmons"},
    "mid_word_2_anagrams": {"context": "\ndeiitvaon =", "completion": " deviation"},
}
# Each task that lm-eval ships: where its one document lies, the prompt, and the choices or the answer.
SHIPPED = {
    "lambada_openai": ("EleutherAI/lambada_openai/default/test", "The dog ran to the", " sea"),
    "hellaswag": ("Rowan/hellaswag/validation", "Swimming: A man dives. He: then", CHOICES["choices"]),
    "piqa": ("baber/piqa/validation", "Question: To swim,\nAnswer:", ["dive.", "fly."]),
    "winogrande": (
        "allenai/winogrande/winogrande_xl/validation",
        1,
        ["It saw it, and the cat", "It saw it, and the dog"],
    ),
    "arc_easy": ("allenai/ai2_arc/ARC-Easy/test", "Question: What colour?\nAnswer:", CHOICES["choices"]),
    "arc_challenge": ("allenai/ai2_arc/ARC-Challenge/test", "Question: What colour is it?\nAnswer:", CHOICES["choices"]),
    "social_iqa": ("lighteval/siqa/validation", "Q: A b. Why?\nA:", ["x", "y", "z"]),
    "boolq": ("aps/super_glue/boolq/validation", "Sky -- It is blue.\nQuestion: is it blue?\nAnswer:", ["no", "yes"]),
    "openbookqa": ("allenai/openbookqa/main/test", "The sky is", CHOICES["choices"]),
    "swde": ("hazyresearch/based-swde-v2/default/validation", "Title: Emma. Author: Austen. Author:", "Austen"),
    "fda": ("hazyresearch/based-fda/default/validation", "A. Number: K7. number:", "K7"),
    "squad_completion": ("hazyresearch/based-squad/default/validation", "It is blue. What colour?", "blue"),
    "drop": ("EleutherAI/drop/validation", " Two goals. How many?", None),
    "nq_open": ("google-research-datasets/nq_open/validation", "Q: who?\nA:", None),
}
OWN = """dataset_path: some/letters
test_split: test
output_type: multiple_choice
doc_to_text: q
doc_to_choice: c
doc_to_target: a
"""
ROWS = [{"q": f"A {i}", "c": [" yes", " no"], "a": i % 2} for i in range(4)]


def lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def laid(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the converter makes of one sample each."""
    folder = tmp_path_factory.mktemp("converted")
    samples = laid(folder / "samples", {f"{name}.jsonl": lines([row]) for name, row in SAMPLES.items()})
    convert(samples, folder / "tree")
    return folder / "tree"


@pytest.fixture
def only_some_of_what_lm_eval_ships(monkeypatch) -> None:
    """All of it takes 10 s to index; these tests ask for nothing that is not near."""
    indexed = lm_eval_names._indexed

    def refused(folders: tuple[str, ...], state: tuple) -> object:
        assert folders != lm_eval_names.SHIPPED_TASKS, "all of lm-eval's tasks are indexed"
        return indexed(folders, state)

    monkeypatch.setattr(lm_eval_names, "_indexed", refused)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    config = compose_one(["model=gla", "size=tiny", "task=language"]).config
    model = build_model(config.model, config.size, vocab_size=257, backend="torch")
    model.reset_parameters(0)
    return model


def asked(tasks: str, root: Path, **changes) -> Benchmarks:
    settings = {"num_fewshot": None, "limit": None, "max_length": None, "fewshot_seed": 1}
    settings |= {"batch_size": 4, "include_path": None}
    return Benchmarks.read(with_neutral(Benchmarks, {"tasks": tasks, "data_root": str(root), **settings, **changes}))


def gap_of(tasks: str, root: Path, include: Path | None = None, shots: int | None = None) -> str:
    with pytest.raises(ValueError) as caught:
        check_data(tasks, include and str(include), str(root), shots)
    assert "\n" not in str(caught.value) and str(root) not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_task_reads_the_folder_unchanged(tree, only_some_of_what_lm_eval_ships, name):
    place, prompt, answers = SHIPPED[name]
    assert (tree / f"{place}.jsonl").is_file()
    with quiet(), Reading(str(tree)):
        task = task_manager([name], None).load([name])["tasks"][name]
    (document,) = task.eval_docs
    assert task.doc_to_text(document) == prompt
    if isinstance(answers, list):
        assert task.doc_to_choice(document) == answers
    elif answers is not None:
        assert task.doc_to_target(document) == answers


def test_the_converter_says_what_is_not_whole_and_goes_on(tmp_path, capsys):
    text = lines([SAMPLES["piqa"]] * 2)
    laid(tmp_path, {"s/piqa.jsonl": text[:-20] + "\n" + text, "s/fda_kv.jsonl": lines([SAMPLES["fda_kv"]])})
    written = convert(tmp_path / "s", tmp_path / "tree")
    assert written == {"hazyresearch/based-fda/default/validation": 1, "baber/piqa/validation": 3}
    assert "line 2 of piqa.jsonl, which is not whole" in capsys.readouterr().out


def test_every_kind_of_task_is_scored(tree, model):
    """One of each: a likelihood, choices behind process_docs, inputs as choices, and a class of its own."""
    rows = evaluate_benchmarks(model, ByteTokenizer(), asked("lambada_openai,hellaswag,winogrande,swde", tree), device="cpu")
    scores = {(row.slice["benchmark"], row.metric) for row in rows}
    assert {
        ("lambada_openai", "accuracy"),
        ("hellaswag", "accuracy_norm"),
        ("winogrande", "accuracy"),
        ("swde", "contains"),
    } <= scores
    assert not any(row.metric == "missing_data" for row in rows)


FULL = lines([{"goal": "g", "sol1": "a", "sol2": "b", "label": 0}] * 3)
PIQA = "baber/piqa/validation.jsonl"
# What lies in the folder, what is asked for, and what is said of it.
FAULTS: dict[str, tuple[dict[str, str], str, int | None, str]] = {
    "no file": ({}, "piqa", None, f"{PIQA} is not in eval.data_root"),
    "another split": ({"baber/piqa/test.jsonl": FULL}, "piqa", None, f"{PIQA} is not in eval.data_root"),
    "another configuration": (
        {"allenai/ai2_arc/ARC-Easy/test.jsonl": FULL},
        "arc_challenge",
        None,
        "allenai/ai2_arc/ARC-Challenge/test.jsonl is not in eval.data_root",
    ),
    "an empty file": ({PIQA: ""}, "piqa", None, f"{PIQA} is empty"),
    "blank lines": ({PIQA: "\n \n"}, "piqa", None, f"{PIQA} is empty"),
    "a truncated file": ({PIQA: FULL[:-9]}, "piqa", None, f"{PIQA} has no whole row in line 3: "),
    "no rows of fields": ({PIQA: FULL + "[1]\n"}, "piqa", None, f"{PIQA} has no row of fields in line 4"),
    "no field": ({PIQA: FULL.replace("sol2", "sol3")}, "piqa", None, f"{PIQA} has no field 'sol2'; it has goal"),
    "no field that is a prompt": (
        {"allenai/openbookqa/main/test.jsonl": lines([{"choices": {"text": ["a"], "label": ["A"]}, "answerKey": "A"}])},
        "openbookqa",
        None,
        "allenai/openbookqa/main/test.jsonl has no field 'question_stem'; it has choices, answerKey",
    ),
    "no field in one row": ({PIQA: FULL + '{"goal": "g"}\n'}, "piqa", None, f"{PIQA} has no field 'sol1' in line 4, which"),
    "no field of a function": (
        {"Rowan/hellaswag/validation.jsonl": FULL},
        "hellaswag",
        None,
        "has no field 'ctx_a'; it has goal, sol1",
    ),
    "no field of a class": (
        {"hazyresearch/based-fda/default/validation.jsonl": FULL},
        "fda",
        None,
        "has no field 'text'; it has goal",
    ),
    "mixed values": ({PIQA: FULL + FULL.replace('"a"', "[1]")}, "piqa", None, f"{PIQA} cannot be read: "),
    "a row that is nested too deeply": ({PIQA: FULL + 10**5 * "["}, "piqa", None, f"{PIQA} cannot be read: maximum recursion"),
    "no UTF-8": ({PIQA: FULL.replace("g", "\udcff")}, "piqa", None, f"{PIQA} cannot be read: 'utf-8' codec"),
    "no examples": ({PIQA: FULL}, "piqa", 2, "baber/piqa/train.jsonl is not in eval.data_root, and num_fewshot=2"),
    "too few examples": (
        {PIQA: FULL, "baber/piqa/train.jsonl": FULL},
        "piqa",
        5,
        "num_fewshot=5 asks for more than the 3 examples of baber/piqa/train.jsonl",
    ),
    "examples without a field": (
        {PIQA: FULL, "baber/piqa/train.jsonl": FULL.replace("goal", "aim")},
        "piqa",
        1,
        "baber/piqa/train.jsonl has no field 'goal'; it has aim",
    ),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_what_is_missing_is_one_line_with_task_file_and_field(tmp_path, only_some_of_what_lm_eval_ships, kind):
    files, name, shots, said = FAULTS[kind]
    for place, text in files.items():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(text.encode(errors="surrogateescape"))
    line = gap_of(name, tmp_path, shots=shots)
    assert line.startswith(f"lm-eval task {name!r} cannot be loaded (") and said in line
    assert len(line) < 500


def test_nothing_is_missing_that_no_prompt_shows(tmp_path):
    laid(tmp_path, {PIQA: FULL, "baber/piqa/test.jsonl": "{"})
    check_data("piqa", None, str(tmp_path), None)


def test_a_folder_that_is_none_is_said():
    with pytest.raises(ValueError, match="^eval.data_root='/nowhere' is not a folder$"):
        check_data("piqa", None, "/nowhere", None)


def test_what_is_missing_is_named_before_a_model_is_made_and_the_status_is_2(tmp_path, capsys):
    arguments = ["run", "model=gla", "size=tiny", "task=language", "eval=lm_eval", "eval.tasks=piqa"]
    assert main([*arguments, f"eval.data_root={tmp_path}", f"paths.results={tmp_path}/results"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f"error: lm-eval task 'piqa' cannot be loaded ({PIQA} is not in eval.data_root)"


@pytest.fixture
def letters(tmp_path) -> Path:
    """A group of two tasks of the user's over data sets of the hub, one of which is in the folder."""
    laid(tmp_path / "tasks", {"one.yaml": "task: one\n" + OWN, "two.yaml": "task: two\n" + OWN.replace("letters", "numbers")})
    laid(tmp_path / "tasks", {"both.yaml": "group: both\ntask: [one, two]\naggregate_metric_list: [{metric: acc}]\n"})
    laid(tmp_path / "root", {"some/letters/test.jsonl": lines(ROWS)})
    return tmp_path


def test_the_rest_of_a_group_goes_on_and_a_row_says_what_is_missing(letters, model):
    include, root = str(letters / "tasks"), letters / "root"
    with pytest.warns(
        UserWarning, match="^lm-eval task 'two' cannot be loaded .some/numbers/test.jsonl is not in eval.data_root.$"
    ):
        check_data("both,offline_last_word", include, str(root), None)
    rows = evaluate_benchmarks(model, ByteTokenizer(), asked("both", root, include_path=include), device="cpu")
    assert {row.slice["benchmark"] for row in rows if row.metric == "accuracy"} == {"one"}
    (gap,) = [row for row in rows if row.metric == "missing_data"]
    assert gap.slice["benchmark"] == "two" and "some/numbers/test.jsonl is not in eval.data_root" in gap.slice["missing"]
    laid(root, {"some/numbers/test.jsonl": lines(ROWS)})
    rows = evaluate_benchmarks(model, ByteTokenizer(), asked("both", root, include_path=include), device="cpu")
    assert {row.slice["benchmark"] for row in rows if row.metric == "accuracy"} == {"one", "two", "both"}


def test_a_document_without_a_right_choice_is_named_with_its_file(letters, model):
    include, root = str(letters / "tasks"), letters / "root"
    laid(root, {"some/letters/test.jsonl": lines([*ROWS, ROWS[0] | {"a": -1}])})
    said = "some/letters/test.jsonl: lm-eval task 'one' cannot be scored: document 4 (its target -1 is none of its 2 choices)"
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        evaluate_benchmarks(model, ByteTokenizer(), asked("one", root, include_path=include), device="cpu")


def test_a_group_that_changes_its_tasks_is_not_scored_in_parts(letters, model):
    laid(letters / "tasks", {"both.yaml": "group: both\ntask: [one, two]\ndoc_to_text: '{{q}}?'\n"})
    settings = asked("both", letters / "root", include_path=str(letters / "tasks"))
    with pytest.raises(ValueError, match="'two' cannot be loaded .*, and the group 'both' has its own 'one'"):
        evaluate_benchmarks(model, ByteTokenizer(), settings, device="cpu")


def test_too_many_shots_are_found_before_anything_is_loaded(letters):
    files = {"few.yaml": "task: few\nfewshot_split: test\nnum_fewshot: 1\n" + OWN}
    include = str(laid(letters / "tasks", files))
    line = gap_of("few", letters / "root", letters / "tasks", shots=9)
    assert "num_fewshot=9 asks for more than the 4 examples of some/letters/test.jsonl" in line
    # A task that is missing is no fault of the request's shots.
    check_shots("few", "any", include, 9, 1, str(letters / "root"))


def version(letters: Path, tasks: str = "one", root: str | None = "root") -> str:
    return task_versions(tasks, str(letters / "tasks"), root and str(letters / root))[tasks]


def test_a_name_follows_the_files_and_not_their_place(letters):
    hub, first = version(letters, root=None), version(letters)
    shutil.copytree(letters / "root", letters / "elsewhere")
    assert first != hub and version(letters, root="elsewhere") == first
    laid(letters / "root", {"some/letters/test.jsonl": lines([{**row, "a": 1 - row["a"]} for row in ROWS])})
    assert version(letters) not in (hub, first)
    missing = version(letters, "both")
    laid(letters / "root", {"some/numbers/test.jsonl": lines(ROWS)})
    assert version(letters, "both") != missing


def test_a_name_follows_the_examples_where_they_are_shown(tmp_path):
    laid(tmp_path, {PIQA: FULL})
    first = task_versions("piqa", None, str(tmp_path))
    shown = task_versions("piqa", None, str(tmp_path), 1)
    laid(tmp_path, {"baber/piqa/train.jsonl": FULL})
    assert task_versions("piqa", None, str(tmp_path)) == first
    assert task_versions("piqa", None, str(tmp_path), 1) not in (first, shown)


@pytest.mark.parametrize("name", ["offline_last_word", "offline_key_value", "niah_noise_2048_word_word"])
def test_tasks_that_are_made_here_need_nothing_of_the_folder(tmp_path, name):
    check_data(name, None, str(tmp_path), None)
    assert task_versions(name, None, str(tmp_path)) == task_versions(name, None)


def test_naming_many_cells_reads_a_file_once(letters, monkeypatch):
    loaded = []
    own = lm_eval_data._check
    monkeypatch.setattr(lm_eval_data, "_check", lambda task, *given: loaded.append(task) or own(task, *given))
    assert len({version(letters) for _ in range(50)}) == 1
    assert len(loaded) == 1


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("test.json", lambda path: path.write_text(json.dumps(ROWS))),
        ("test.json", lambda path: path.write_text(lines(ROWS))),
        ("test.parquet", lambda path: datasets.Dataset.from_list(ROWS).to_parquet(str(path))),
    ],
)
def test_other_kinds_of_files_hold_the_same(letters, name, write: Callable[[Path], object]):
    (letters / "root/some/letters/test.jsonl").unlink()
    write(letters / "root/some/letters" / name)
    with Reading(str(letters / "root")):
        assert datasets.load_dataset("some/letters")["test"].to_list() == ROWS


def test_a_text_with_odd_line_ends_is_one_row(letters):
    row = {"q": "a\u2028b\x85c", "c": ["x"], "a": 0}
    text = json.dumps(row, ensure_ascii=False) + "\r\n"
    laid(letters / "root", {"some/letters/test.jsonl": text})
    with Reading(str(letters / "root")):
        assert datasets.load_dataset("some/letters", split="test").to_list() == [row]


def test_one_folder_is_not_two_configurations(letters):
    with Reading(str(letters / "root")) as root:
        assert list(root.load("some/letters", "big", "test"))
        with pytest.raises(MissingData, match="some/letters cannot be both 'big' and 'small': give each a folder"):
            root.load("some/letters", "small", "test")


def test_in_the_block_alone_is_the_hub_replaced(letters, monkeypatch):
    """Also for a module that took the function within an earlier block; a file that is named by its path is read as ever."""
    hub, wanted = datasets.load_dataset, []
    monkeypatch.setattr(lm_eval_data, "_load_from_hub", lambda *given, **options: wanted.append(given))
    with Reading(str(letters / "root")):
        taken = datasets.load_dataset
        assert len(taken("some/letters", split="test")) == 4
        taken("json", data_files="x.jsonl")
        with Reading(None):
            taken("some/letters")
    taken("some/letters")
    assert [given[0] for given in wanted] == ["json", "some/letters", "some/letters"]
    with Reading(str(letters / "root")):
        assert len(taken("some/letters", split="test")) == 4
    monkeypatch.undo()
    with pytest.raises(MissingData), Reading(str(letters / "root")) as root:
        root.load("some/letters", None, "test")
        raise KeyError("q0")
    assert datasets.load_dataset is hub


def test_an_error_of_the_machine_is_no_missing_data(letters):
    with pytest.raises(MemoryError), Reading(str(letters / "root")) as root:
        root.load("some/letters", None, "test")
        raise MemoryError


def test_the_folder_is_no_part_of_a_stages_name(letters):
    from suite.evaluation.stages import _benchmarks, read_eval

    shutil.copytree(letters / "root", letters / "elsewhere")
    found = []
    for root in ("root", "elsewhere"):
        places = [f"eval.include_path={letters}/tasks", f"eval.data_root={letters}/{root}"]
        shared, _ = read_eval(compose_one(["task=language", "eval=lm_eval", "eval.tasks=one", *places]).evaluation)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found += list(_benchmarks(shared))
    (first, options), (second, elsewhere) = found
    assert first == second and "data_root" not in first
    assert (options["data_root"], elsewhere["data_root"]) == (f"{letters}/root", f"{letters}/elsewhere")
