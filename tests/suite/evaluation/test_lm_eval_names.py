"""A benchmark's result is named after all that decides its scores, and after nothing else."""

from __future__ import annotations

import builtins
import importlib.metadata
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from suite.evaluation import lm_eval_names
from suite.evaluation.lm_eval_names import _documents, task_versions
from suite.evaluation.stages import evaluate
from suite.evaluation.studies.subject import Subject
from suite.stage import Stage
from suite.store.versions import superseded
from tasks.language.corpus import Corpus

ROWS = [{"q": f"A {i}", "c": [" yes", " no"], "a": i % 2} for i in range(4)]
CHOICE = "test_split: test\noutput_type: multiple_choice\ndoc_to_text: q\ndoc_to_choice: c\ndoc_to_target: a\n"
JSON_FILES = "task: toy\ndataset_path: json\ndataset_kwargs: {{data_files: {}}}\n" + CHOICE
OWN = "task: toy\ncustom_dataset: !function code.rows\n" + CHOICE
CODE = "def rows(**metadata):\n    return {'test': [1]}\n"


def lines(rows: list[dict]) -> str:
    return "\n".join(map(json.dumps, rows)) + "\n"


DATA = lines(ROWS)
EDITED = lines([{**row, "a": 1 - row["a"]} for row in ROWS])
"""Its size is the same, as after an edit of a label."""

# What lies in a folder, the file of it that is edited, and what it says then. {here} is the folder.
LOCAL = {
    "a file": ({"t.yaml": JSON_FILES.format("'{here}/d.jsonl'"), "d.jsonl": DATA}, "d.jsonl", EDITED),
    "a file of a split": ({"t.yaml": JSON_FILES.format("{{test: '{here}/d.jsonl'}}"), "d.jsonl": DATA}, "d.jsonl", EDITED),
    "a list": (
        {"t.yaml": JSON_FILES.format("{{test: ['{here}/e.jsonl', '{here}/d.jsonl']}}"), "d.jsonl": DATA, "e.jsonl": DATA},
        "d.jsonl",
        EDITED,
    ),
    "splits and paths": (
        {"t.yaml": JSON_FILES.format("[{{split: test, path: '{here}/d.jsonl'}}]"), "d.jsonl": DATA},
        "d.jsonl",
        EDITED,
    ),
    "a glob": ({"t.yaml": JSON_FILES.format("{{test: '{here}/*.jsonl'}}"), "d.jsonl": DATA}, "d.jsonl", EDITED),
    "one more file of a glob": ({"t.yaml": JSON_FILES.format("{{test: '{here}/*.jsonl'}}"), "d.jsonl": DATA}, "e.jsonl", DATA),
    "data_dir": (
        {"t.yaml": JSON_FILES.format("{{test: d.jsonl}}, data_dir: '{here}/data'"), "data/d.jsonl": DATA},
        "data/d.jsonl",
        EDITED,
    ),
    "a folder": (
        {"t.yaml": "task: toy\ndataset_path: '{here}/data'\n" + CHOICE, "data/test.jsonl": DATA},
        "data/test.jsonl",
        EDITED,
    ),
    "a function": ({"t.yaml": OWN, "code.py": CODE}, "code.py", CODE.replace("1", "2")),
    "a function in a folder": ({"t.yaml": OWN.replace("code.", "a.b.code."), "a/b/code.py": CODE}, "a/b/code.py", CODE + "#"),
    "a class": ({"t.yaml": "task: toy\nclass: !function code.Toy\n", "code.py": CODE}, "code.py", CODE + "X = 1\n"),
    "a metric": (
        {
            "t.yaml": JSON_FILES.format("'{here}/d.jsonl'") + "metric_list: [{{metric: !function code.f}}]\n",
            "d.jsonl": DATA,
            "code.py": "def f(x): return 1",
        },
        "code.py",
        "def f(x): return 2",
    ),
    "a module of the function's": ({"t.yaml": OWN, "code.py": "import more\n" + CODE, "more.py": "X = 1"}, "more.py", "X = 2"),
    "a module of that": (
        {
            "t.yaml": OWN,
            "code.py": "def rows():\n    from more import X\n",
            "more.py": "import pack.deep",
            "pack/__init__.py": "",
            "pack/deep.py": "X = 1",
        },
        "pack/deep.py",
        "X = 2",
    ),
    "a relative import": (
        {"t.yaml": OWN.replace("code.", "a.code."), "a/code.py": "from . import more\n" + CODE, "a/more.py": ""},
        "a/more.py",
        "X = 2",
    ),
    "a file that the function reads": (
        {"t.yaml": OWN, "code.py": "from pathlib import Path\nF = Path(__file__).parent / 'd.txt'\n" + CODE, "d.txt": "one"},
        "d.txt",
        "two",
    ),
    "a folder that it reads": (
        {"t.yaml": OWN, "code.py": "F = HERE / 'data' / f'{{split}}.txt'\n" + CODE, "data/x.txt": "one"},
        "data/x.txt",
        "two",
    ),
    "an included YAML": (
        {"t.yaml": "include: more\ntask: toy\ndataset_path: a/b\n", "more": "num_fewshot: 1"},
        "more",
        "num_fewshot: 2",
    ),
    "what a group says of its tasks": (
        {"t.yaml": "group: toy\ntask: [one]\nnum_fewshot: 1", "u.yaml": "task: one\ndataset_path: a/b"},
        "t.yaml",
        "group: toy\ntask: [one]\nnum_fewshot: 2",
    ),
    "a task defined in a group": (
        {
            "t.yaml": "group: toy\ntask:\n- task: x\n  dataset_path: json\n  dataset_kwargs: {{data_files: '{here}/d.jsonl'}}",
            "d.jsonl": DATA,
        },
        "d.jsonl",
        EDITED,
    ),
    "words that begin with a slash": (
        {"t.yaml": "task: toy\ndataset_path: a/b\ndoc_to_text: '/no/ q'\n"},
        "t.yaml",
        "task: toy\ndataset_path: a/b\ndoc_to_text: '/yes, the other/ q'\n",
    ),
    "an address of this machine": (
        {"t.yaml": JSON_FILES.format("{{test: 'file://{here}/d.jsonl'}}"), "d.jsonl": DATA},
        "d.jsonl",
        EDITED,
    ),
    "an archive": (
        {"t.yaml": JSON_FILES.format("{{test: 'zip://d.jsonl::{here}/d.zip'}}"), "d.zip": DATA},
        "d.zip",
        EDITED,
    ),
    "a file whose name is put together": (
        {"t.yaml": OWN, "code.py": "F = open(f'{{HERE}}/w{{n}}.json')\n" + CODE, "w1.json": "0.25"},
        "w1.json",
        "0.75",
    ),
    "a module that is imported by a name": (
        {"t.yaml": OWN, "code.py": "M = importlib.import_module('mo' + 're')\n" + CODE, "more.py": "X = 1"},
        "more.py",
        "X = 2",
    ),
    "a member of a tag": (
        {"t.yaml": JSON_FILES.format("'{here}/d.jsonl'").replace("task: toy", "task: one\ntag: toy"), "d.jsonl": DATA},
        "d.jsonl",
        EDITED,
    ),
}


@pytest.fixture(autouse=True)
def no_compiled_modules(monkeypatch) -> None:
    """Python takes a module that was changed within a second, and has its size still, for the one that it compiled."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)


@pytest.fixture(autouse=True)
def without_what_lm_eval_ships(monkeypatch) -> None:
    """It takes 10 s to read."""
    monkeypatch.setattr("suite.evaluation.lm_eval_names.SHIPPED_TASKS", ())


def laid(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text.replace("{here}", str(folder)).replace("{{", "{").replace("}}", "}"))
    return folder


def version(folder: Path, name: str = "toy") -> str:
    return task_versions(name, str(folder))[name]


@pytest.mark.parametrize("kind", LOCAL)
def test_a_name_follows_what_decides_the_scores_and_not_its_place(tmp_path, kind):
    files, edited, text = LOCAL[kind]
    first = version(laid(tmp_path / "one", files))
    assert version(laid(tmp_path / "two.dots" / "place", files)) == first
    assert version(tmp_path / "one") == first
    file = tmp_path / "one" / edited
    before = file.stat() if file.exists() else None
    laid(tmp_path / "one", {edited: text})
    if before:
        # An edit within the resolution of a clock, or one that an archiver gave its old time.
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    changed = version(tmp_path / "one")
    assert changed != first
    assert version(laid(tmp_path / "three", {**files, edited: text})) == changed


# What the names were before they covered anything local: results under them count as done.
KEPT = {
    "t.yaml": (
        "task: toy\ndataset_path: super/glue\ndataset_name: boolq\ndoc_to_text: '/{{{{a}}}}'\nmetadata: {{version: 2}}",
        "2aa201bf",
    ),
    "u.yaml": (
        "task: toy\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: 'https://example.org/a.jsonl'}}}}",
        "51002544",
    ),
    "v.yaml": ("group: toy\ntask: [{{task: one, num_fewshot: 3, dataset_path: a/b}}]", "110878dd"),
}


@pytest.mark.parametrize("file", KEPT)
def test_a_name_stays_where_nothing_local_decides(tmp_path, file):
    text, digest = KEPT[file]
    (tmp_path / "cwd").mkdir()
    assert version(laid(tmp_path, {file: text})) == f"{importlib.metadata.version('lm_eval')}-{digest}"


@pytest.fixture
def told_again() -> Iterator[None]:
    """What is known of the documents of `offline` is forgotten afterwards."""
    yield
    _documents.cache_clear()


def test_the_names_of_offline_follow_its_documents(monkeypatch, tmp_path, told_again):
    first = task_versions("offline,offline_last_word,offline_continuation", None)
    _documents.cache_clear()
    # Kept in another folder.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    import tasks.offline.data as data

    def fewer(**metadata: object) -> dict:
        return {"test": own()["test"].select(range(3))}

    own = data.last_word
    monkeypatch.setattr(data, "last_word", fewer)
    second = task_versions("offline,offline_last_word,offline_continuation", None)
    assert [first[name] == second[name] for name in first] == [False, False, True]


def test_the_documents_of_offline_are_made_once_until_a_source_changes(monkeypatch, tmp_path, told_again):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    import tasks.offline.data as data

    made, own = [], data.cycled_letters
    monkeypatch.setattr(data, "cycled_letters", lambda: made.append(own()) or made[-1])
    found = []
    for decided_by in ("one", "one", "another"):
        monkeypatch.setattr(lm_eval_names, "_decided_by", lambda decided_by=decided_by: decided_by)
        _documents.cache_clear()
        found.append(_documents("cycled_letters"))
    assert len(made) == 2 and len(set(found)) == 1


def test_what_decides_the_documents_of_offline_changes_with_the_sources_of_tasks_and_the_standard_library(monkeypatch, tmp_path):
    (tmp_path / "offline").mkdir()
    (tmp_path / "language.py").write_text("a = 1\n")
    monkeypatch.setattr(lm_eval_names, "OFFLINE_TASKS", tmp_path / "offline")
    found = [lm_eval_names._decided_by(), lm_eval_names._decided_by()]
    (tmp_path / "language.py").write_text("a = 22\n")
    found.append(lm_eval_names._decided_by())
    monkeypatch.setattr(lm_eval_names, "open_corpus", lambda paths: Corpus("another", list))
    found.append(lm_eval_names._decided_by())
    assert found[0] == found[1] and len(set(found)) == 3


def test_naming_many_cells_reads_a_file_once(tmp_path, monkeypatch):
    laid(tmp_path, LOCAL["a file"][0])
    opened = []
    own = builtins.open
    monkeypatch.setattr(builtins, "open", lambda path, *rest, **more: opened.append(str(path)) or own(path, *rest, **more))
    began = time.process_time()
    names = {version(tmp_path) for _ in range(500)}
    assert len(names) == 1
    assert sum(path.endswith("d.jsonl") for path in opened) == 1
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    "files, said",
    [
        (JSON_FILES.format("'{here}/none.jsonl'"), "'toy' cannot be loaded .its data file '.*none.jsonl' does not exist"),
        (JSON_FILES.format("'{here}/*.jsonl'"), "'toy' cannot be loaded .its data file '.*jsonl' does not exist"),
        (JSON_FILES.format("'{here}/empty'"), "'toy' cannot be loaded .its data file '.*empty' is empty"),
        (JSON_FILES.format("'{here}/pipe'"), "'toy' cannot be loaded .*pipe' is not a file"),
        (JSON_FILES.format("5"), "'toy' cannot be loaded .TypeError"),
        ("task: toy\ndataset_path: json\n", "'toy' cannot be loaded .dataset_path='json' needs data_files"),
        ("group: toy\ntask: [{{task: one, dataset_path: json}}]", "'one' cannot be loaded .dataset_path='json' needs"),
    ],
)
def test_data_that_is_not_there_is_one_line_before_anything_is_loaded(tmp_path, files, said):
    (tmp_path / "empty").write_text("")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=f"lm-eval task {said}") as caught:
        version(laid(tmp_path, {"t.yaml": files}))
    assert "\n" not in str(caught.value)


class Agreeing(torch.nn.Module):
    """Stands for a model: "n" is always likelier than "y", so that it answers " no"."""

    goes_on, longest = False, None

    def features(self, tokens):
        return torch.zeros(*tokens.shape, 1), []

    def head(self, features):
        return torch.nn.functional.one_hot(torch.full(features.shape[:-1], ord("n")), 257).float()

    def head_parts(self, features):
        return [self.head(features)]


class Bytes:
    from tasks.language.tokenizer import ByteTokenizer

    tokenizer = ByteTokenizer()


def planned(folder: Path, name: str = "toy") -> Stage:
    settings = {"tasks": name, "version": version(folder, name), "num_fewshot": None, "fewshot_seed": 1, "limit": None}
    options = {"include_path": str(folder), "batch_size": 4}
    return Stage.of("lm_eval", {**settings, "max_length": None}, options)


def accuracy(stage: Stage) -> float:
    rows = evaluate(stage, Subject(Agreeing(), Bytes(), None, None, torch.device("cpu")))
    return next(row.value for row in rows if row.metric == "accuracy")


@pytest.mark.parametrize("kind", ["a file of a split", "a folder", "a glob"])
def test_scores_are_those_of_the_data_that_is_named(tmp_path, kind):
    files, edited, _ = LOCAL[kind]
    all_no = lines([{**row, "a": 1} for row in ROWS])
    laid(tmp_path, {**files, edited: all_no})
    first = planned(tmp_path)
    assert accuracy(first) == 1.0
    before = (tmp_path / edited).stat()
    (tmp_path / edited).write_text(all_no.replace('"a": 1', '"a": 0'))
    os.utime(tmp_path / edited, ns=(before.st_atime_ns, before.st_mtime_ns))
    second = planned(tmp_path)
    assert second.file_name != first.file_name
    assert accuracy(second) == 0.0


def test_a_function_that_changed_is_not_answered_from_what_datasets_kept(tmp_path):
    code = "def label(doc):\n    return {{**doc, 'a': 1}}\n\n\ndef prepare(dataset):\n    return dataset.map(label)\n"
    yaml = JSON_FILES.format("'{here}/d.jsonl'").replace("test_split: test", "test_split: train")
    laid(tmp_path, {"t.yaml": yaml + "process_docs: !function code.prepare\n", "code.py": code, "d.jsonl": DATA})
    assert accuracy(planned(tmp_path)) == 1.0
    laid(tmp_path, {"code.py": code.replace("'a': 1", "'a': 0")})
    assert accuracy(planned(tmp_path)) == 0.0


def test_data_that_changes_after_it_was_named_is_refused(tmp_path):
    laid(tmp_path, LOCAL["a file of a split"][0])
    evaluation = planned(tmp_path)
    (tmp_path / "d.jsonl").write_text(EDITED)
    with pytest.raises(ValueError, match="lm-eval task 'toy' changed since this command began"):
        accuracy(evaluation)


def test_another_folder_with_a_task_of_the_same_name_has_another_name(tmp_path):
    files, edited, text = LOCAL["a function"]
    one, two = laid(tmp_path / "one", files), laid(tmp_path / "two", {**files, edited: text})
    assert planned(one).file_name != planned(two).file_name
    shutil.copytree(one, tmp_path / "copy")
    assert planned(tmp_path / "copy").file_name == planned(one).file_name


def stage(version: str, made: str | None, **settings) -> dict:
    settings = {"tasks": "toy", "version": version, "limit": None} | settings
    return {"stage": "lm_eval", "settings": settings} | ({"made": made} if made else {})


def test_of_results_that_differ_in_their_version_alone_the_newest_counts():
    old, new, newer = stage("1", None), stage("2", "2026-11-29T10:00:00"), stage("3", "2026-11-29T11:00:00")
    other, study = stage("1", None, limit=3), {"stage": "solver", "settings": {}}
    assert superseded([old, new, newer, other, study]) == [True, True, False, False, False]
    assert superseded([newer, old, new]) == [False, True, True]
    assert superseded([old, stage("2", None)]) == [True, False]
