"""The `offline` benchmarks: well posed, deterministic, and of a size that small models can read."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import tasks.language.corpus
from tasks.language.corpus import split_documents, stdlib_documents
from tasks.offline import data

FOLDER = Path(data.__file__).parent
BENCHMARKS = [data.last_word, data.continuation, data.key_value, data.reversed_words, data.cycled_letters]


@pytest.fixture(scope="module")
def prose() -> str:
    """The held-out documents, a space between any two words."""
    return " ".join(word for document in tasks.language.corpus.heldout_stdlib_documents() for word in document.split())


def documents(benchmark: Callable) -> list[dict]:
    # lm-eval passes the task's metadata and the model's arguments.
    return list(benchmark(version=1, config_source="a.yaml", pretrained="gpt2")["test"])


def test_there_are_enough_documents_none_twice_and_always_the_same():
    """Those of all benchmarks, before and after what they share is forgotten: the prose takes long to read."""
    found = [documents(benchmark) for benchmark in BENCHMARKS]
    for each in found:
        assert 50 <= len(each) <= 200
        assert len({str(document) for document in each}) == len(each)
    for kept in (data._prose, data._sample):
        kept.cache_clear()
    assert [documents(benchmark) for benchmark in BENCHMARKS] == found


def test_passages_are_drawn_once_for_all_runs_of_a_request(monkeypatch):
    found = documents(data.last_word)
    monkeypatch.delattr(data, "_passages")
    assert documents(data.last_word) == found


@pytest.mark.parametrize("benchmark", BENCHMARKS[:3])
def test_prompts_are_short_and_of_few_lengths(benchmark):
    lengths = {len(document["prompt"].encode()) for document in documents(benchmark)}
    assert max(lengths) < 200
    assert len(lengths) < 40


def test_last_words_occur_in_their_passage(prose):
    for document in documents(data.last_word):
        word = document["target"].removeprefix(" ")
        assert word in document["prompt"].split()
        assert document["prompt"] + document["target"] in prose


def test_continuations_hold_the_true_one_among_four_at_every_place(prose):
    found = documents(data.continuation)
    for document in found:
        true = [choice for choice in document["choices"] if f"{document['prompt']} {choice}" in prose]
        assert true == [document["choices"][document["label"]]]
        assert len(set(document["choices"])) == 4
    # Chance: an answer that always takes the same place, or the longest choice, is right about once in four.
    places = [document["label"] for document in found]
    assert all(0.1 < places.count(place) / len(found) < 0.4 for place in range(4))
    longest = [max(document["choices"], key=len) == document["choices"][document["label"]] for document in found]
    assert 0.1 < sum(longest) / len(found) < 0.4


def test_values_are_answered_by_the_passage_alone(prose):
    for document in documents(data.key_value):
        passage, key = document["prompt"].split("\n")
        assert re.findall(rf"(?<!\S){re.escape(key)} (\S+)", passage) == [document["target"]]
        assert document["target"] not in key
        assert passage in prose


@pytest.mark.parametrize("answer, score", [(" the Value.", 1.0), ("valu e", 0.0), ("", 0.0)])
def test_contains_ignores_case_and_what_stands_around(answer, score):
    assert data.contains({"target": "value"}, [answer]) == {"contains": score}


@pytest.mark.parametrize("benchmark", [data.reversed_words, data.cycled_letters])
def test_scrambled_words_have_the_letters_of_their_target(benchmark):
    splits = benchmark()
    for document in itertools.chain(*splits.values()):
        scrambled, word = document["prompt"].removesuffix("="), document["target"]
        assert scrambled != word
        rotations = [word[i:] + word[:i] for i in range(1, len(word))]
        assert scrambled == word[::-1] if benchmark is data.reversed_words else scrambled in rotations
    assert not {d["target"] for d in splits["test"]} & {d["target"] for d in splits["examples"]}
    assert len(splits["examples"]) >= 10


def test_every_request_fits_the_length_that_quick_models_are_trained_at():
    for documents_of in (data.last_word, data.continuation, data.key_value):
        for document in documents(documents_of):
            answers = document.get("choices") or [document["target"]]
            assert len(("\n" + document["prompt"] + " " + max(answers, key=len)).encode()) <= 128
    for benchmark in (data.reversed_words, data.cycled_letters):
        shots = sorted((f"{d['prompt']} {d['target']}\n" for d in benchmark()["examples"]), key=len)[-10:]
        assert len("\n" + "".join(shots)) + max(len(d["prompt"]) for d in documents(benchmark)) + 8 <= 128


def test_no_passage_stands_in_the_training_text():
    training = " ".join(" ".join(split_documents(stdlib_documents(), 0.1)["train"]).split())
    for document in documents(data.last_word):
        assert document["prompt"] + document["target"] not in training
    for document in documents(data.key_value):
        assert document["prompt"].split("\n")[0] not in training


def test_the_group_lists_every_task_and_each_has_a_version():
    class Loader(yaml.SafeLoader):
        """Reads `!function` as its text."""

    Loader.add_constructor("!function", lambda loader, node: node.value)
    included = yaml.safe_load((FOLDER / "_scrambled_word_yaml").read_text())
    found = [yaml.load(path.read_text(), Loader) for path in sorted(FOLDER.glob("*.yaml"))]
    tasks_found = [included | task if "include" in task else task for task in found if "task" in task and "group" not in task]
    (group,) = [task for task in found if "group" in task]
    assert sorted(group["task"]) == sorted(task["task"] for task in tasks_found)
    assert all(task["metadata"] == {"version": 1} for task in tasks_found)
    shots = {task["task"]: task["num_fewshot"] for task in tasks_found}
    assert all(name.endswith(f"_{n}shot") for name, n in shots.items() if "shot" in name)
    assert {n for name, n in shots.items() if "shot" in name} == {0, 1, 10}
