"""The paper's benchmarks that lm-eval does not ship: prompts from public fields, needles made here, groups that are whole."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

from suite.evaluation.lm_eval_blame import quiet
from suite.evaluation.lm_eval_data import Reading
from suite.evaluation.lm_eval_names import PAPER_TASKS, check_data, leaves, longest_request, task_manager, task_versions
from tasks.language.tokenizer import ByteTokenizer
from tasks.paper import data, needles
from tasks.paper.needles import ANSWER_TOKENS, Needles, measured_by

PAIRS = ("wmt14_fr_en", "wmt16_de_en", "wmt16_ro_en")
KINDS = ("word", "number", "uuid")
GROUPS = {
    "paper_global": ["lambada_openai", "hellaswag", "race_middle", "race"],
    "paper_local": ["piqa", "winogrande", "arc_easy", "arc_challenge", "social_iqa", "boolq", "openbookqa", "storycloze"],
    "paper_recall": ["swde", "squad_completion", "fda", "triviaqa_based", "nq_based", "drop_based"],
    "paper_scramble": [f"{task}_{n}shot" for task in ("cycle_letters", "mid_word_2_anagrams") for n in (0, 1, 10, 100)],
    "paper_translation": [f"{pair}_{n}shot" for pair in PAIRS for n in (0, 1, 5, 10, 50)],
    "paper_niah": [
        f"niah_{haystack}_{length}_{key}_{value}"
        for haystack in ("noise", "prose")
        for length, key, value in itertools.product((2048, 4096), KINDS, KINDS)
    ],
    "paper_babilong": ["babilong_qa1", "babilong_qa2", "babilong_qa3"],
}


def table(rows: list[dict[str, Any]]) -> datasets.Dataset:
    return datasets.Dataset.from_list(rows)


def write(folder: Path, place: str, rows: list[dict[str, Any]]) -> None:
    path = folder / f"{place}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def loaded(name: str, root: Path) -> Any:
    with quiet(), Reading(str(root)):
        task = task_manager([name], None).load([name])["tasks"][name]
        task.set_fewshot_seed(seed=1)
    return task


def prompt(task: Any, document: dict[str, Any]) -> str:
    return task.fewshot_context(document, num_fewshot=task.get_config("num_fewshot") or 0)


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_has_the_tasks_of_the_paper(group):
    index = task_manager([group], None).task_index
    found = dict(leaves(group, index))
    assert list(found) == GROUPS[group] and None not in found.values()
    for name, config in found.items():
        if name.endswith("shot"):
            assert config["num_fewshot"] == int(name.removesuffix("shot").rpartition("_")[2])


def test_every_file_has_the_name_of_its_task_and_a_version():
    index = task_manager(["paper_global"], None).task_index
    for path in sorted(PAPER_TASKS.glob("*.yaml")):
        config = index[path.stem].cfg
        assert path.stem in (config.get("group"), config["task"])
        assert config["metadata"]["version"] == 1


def test_eval_paper_asks_for_all_groups():
    folder = Path(__file__).parents[2] / "conf/eval"
    asked = yaml.safe_load((folder / "paper.yaml").read_text())["tasks"]
    assert asked == list(GROUPS) == [*dict.fromkeys(asked)]


@pytest.mark.parametrize("pair", PAIRS)
def test_a_pair_of_languages_is_asked_for_by_its_name(pair):
    assert {name for name, _ in leaves(pair, task_manager([pair], None).task_index)} == {
        name for name in GROUPS["paper_translation"] if name.startswith(pair)
    }


GROUNDED = [
    ({"context": "It is blue.", "question": "The colour is ", "answers": ["blue"]}, "It is blue. The colour is", ["blue"]),
    ({"context": "[TLE] A [PAR] b. ", "question": "Who", "answers": ["x"]}, "A  b. Who", ["x"]),
    ({"context": "It is so. The colour is", "question": "the colour is", "answers": ["x"]}, "It is so. the colour is", ["x"]),
    ({"passage": " Two goals..", "question": "Which?", "answers": [["a", "b"], ["2"]]}, "Two goals. Which?", ["a, b", "2"]),
    ({"ctxs": [{"text": "By E."}, {"text": "No"}], "question": "who", "answers": []}, "By E. who", []),
]


@pytest.mark.parametrize(("row", "text", "accepted"), GROUNDED)
def test_a_passage_and_its_question_are_one_text(row, text, accepted):
    (document,) = data.grounded(table([row]))
    assert (document["prompt"], document["accepted"]) == (text, accepted)
    assert document["target"] == (accepted or [""])[0]


def test_a_passage_that_is_not_there_is_a_missing_field():
    with pytest.raises(KeyError, match="context"):
        data.grounded(table([{"question": "q", "answers": ["a"]}]))


@pytest.mark.parametrize(
    ("accepted", "answer", "score"),
    [(["blue", "red"], "It is RED.", 1.0), (["blue"], "b lue", 0.0), ([], "x", 0.0), ([""], "x", 0.0)],
)
def test_an_answer_counts_that_contains_an_accepted_one(accepted, answer, score):
    assert data.contains_any({"accepted": accepted}, [answer]) == {"contains": score}


def test_race_middle_has_the_prompts_that_lm_eval_makes_of_race(tmp_path):
    """The same questions in both forms: a row an article, and a row a question."""
    problems = [
        {"question": "Who  _  .", "options": ["a", "b", "c", "d"], "answer": "C"},
        {"question": "Where?", "options": ["e", "f", "g", "h"], "answer": "A"},
        {"question": "Why  _  .", "options": ["i", "j", "k", "l"], "answer": "D"},
    ]
    write(tmp_path, "EleutherAI/race/high/test", [{"article": "An article.", "problems": repr(problems)}] * 2)
    questions = [{"article": f"{article} article.", **problem} for article in ("An", "Another") for problem in problems]
    write(tmp_path, "ehovy/race/middle/test", questions)
    high, middle = loaded("race", tmp_path), loaded("race_middle", tmp_path)
    first, second = middle.eval_docs
    asked = high.eval_docs[0]
    assert middle.doc_to_text(first) == high.doc_to_text(asked) != middle.doc_to_text(second)
    assert middle.doc_to_choice(first) == high.doc_to_choice(asked)
    assert middle.doc_to_target(first) == high.doc_to_target(asked)


@pytest.mark.parametrize(
    ("sentence", "ending", "answer"),
    [
        ("InputSentence", "RandomFifthSentenceQuiz", "AnswerRightEnding"),
        ("input_sentence_", "sentence_quiz", "answer_right_ending"),
    ],
)
def test_storycloze_reads_the_fields_of_its_authors_and_of_the_hub(tmp_path, sentence, ending, answer):
    row = {f"{sentence}{i}": text for i, text in enumerate(["A.", "B.", "C.", "D."], 1)} | {answer: 2}
    write(tmp_path, "LSDSem/story_cloze/2016/test", [row | {f"{ending}1": "E.", f"{ending}2": "F."}])
    task = loaded("storycloze", tmp_path)
    (document,) = task.eval_docs
    assert prompt(task, document) == "A. B. C. D."
    assert (task.doc_to_choice(document), task.doc_to_target(document)) == (["E.", "F."], 1)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    rows = [{"context": f"\nscrambled{i} =", "completion": f" word{i}"} for i in range(130)]
    for name in ("cycle_letters_in_word", "mid_word_2_anagrams"):
        write(folder, f"EleutherAI/unscramble/{name}/validation", rows)
    return folder


@pytest.mark.parametrize("name", GROUPS["paper_scramble"])
def test_scrambled_words_are_asked_behind_ten_prefixes_that_all_of_them_share(words, name):
    task, shots = loaded(name, words), int(name.removesuffix("shot").rpartition("_")[2])
    repeats = 10 if shots else 1
    documents = list(itertools.islice(task.eval_docs, 2 * repeats))
    assert len(task.eval_docs) == 130 * repeats
    prompts = [prompt(task, document) for document in documents]
    asked = [f"\nscrambled{i} =" for i in range(2) for _ in range(repeats)]
    assert all(text.endswith(question) for text, question in zip(prompts, asked, strict=True))
    prefixes = [text.removesuffix(question) for text, question in zip(prompts, asked, strict=True)]
    assert all(text.count(" = word") == shots for text in prefixes)
    assert not any(question in text for text, question in zip(prefixes, asked, strict=True))
    if shots:
        assert len(set(prefixes[:repeats])) == repeats
        lines = [set(text.split("\n")) for text in prefixes]
        # But for a prefix that has one of the words itself.
        assert all(len(one ^ other) <= 2 for one, other in zip(lines[:repeats], lines[repeats:], strict=True))
        assert prompts == [prompt(task, document) for document in documents]
        task.set_fewshot_seed(seed=2)
        assert prompts != [prompt(task, document) for document in documents]


def test_a_translation_is_asked_as_gpt3_was(tmp_path):
    pairs = [{"translation": {"fr": f"le {i}", "en": f"the {i}"}} for i in range(60)]
    write(tmp_path, "wmt/wmt14/fr-en/test", [{"translation": {"fr": "la mer", "en": "the sea"}}])
    write(tmp_path, "wmt/wmt14/fr-en/validation", pairs)
    found = {shots: loaded(f"wmt14_fr_en_{shots}shot", tmp_path) for shots in (0, 1, 50)}
    texts = {shots: prompt(task, task.eval_docs[0]) for shots, task in found.items()}
    assert texts[0] == "Q: What is the English translation of la mer A:"
    example, _, asked = texts[1].partition("\n")
    assert asked == "la mer =" and example in {f"le {i} = the {i}" for i in range(60)}
    assert texts[50].count("\n") == 50
    assert found[1].doc_to_target(found[1].eval_docs[0]) == "the sea"


def test_a_translation_without_examples_is_a_gap_where_it_needs_them(tmp_path):
    write(tmp_path, "wmt/wmt14/fr-en/test", [{"translation": {"fr": "la mer", "en": "the sea"}}])
    with pytest.warns(UserWarning) as told:
        check_data("wmt14_fr_en", None, str(tmp_path), None)
    said = sorted(str(each.message) for each in told)
    assert len(said) == 4
    assert (
        "wmt14_fr_en_10shot' cannot be loaded (wmt/wmt14/fr-en/validation.jsonl is not in eval.data_root, and num_fewshot=10"
        in said[0]
    )


def test_babilong_is_read_from_the_folder(tmp_path):
    pytest.importorskip("transformers")
    row = {"input": "A went out.", "question": "Where is A? ", "target": "out"}
    write(tmp_path, "RMT-team/babilong-1k-samples/0k/qa2", [row])
    task = loaded("babilong_qa2", tmp_path)
    assert prompt(task, task.eval_docs[0]).endswith("A went out.\nWhere is A?")


def test_the_requests_of_recall_are_cut():
    index = task_manager(["paper_recall", "paper_local"], None).task_index
    assert (longest_request("paper_recall", index), longest_request("paper_local", index)) == (2000, None)
    assert longest_request("swde", index) is None


class Words(ByteTokenizer):
    """A token a word, and one a line end."""

    def encode(self, text: str) -> list[int]:
        return [0] * len(text.replace("\n", " \n ").split(" "))


@pytest.fixture(params=[ByteTokenizer(), Words()], ids=["bytes", "words"])
def tokenizer(request) -> Iterator[ByteTokenizer]:
    with measured_by(request.param):
        yield request.param


@pytest.mark.parametrize("haystack", ["noise", "prose"])
@pytest.mark.parametrize(("key", "value"), [*itertools.product(KINDS, KINDS)])
def test_a_needle_stands_once_in_a_prompt_of_nearly_the_length(tokenizer, haystack, key, value):
    length = 2048
    made = Needles(haystack=haystack, length=length, key=key, value=value, samples=40)
    unit = max(len(tokenizer.encode(f"{sentence} ")) for sentence in made.sentences)
    found = [made[i] for i in range(8)]
    for document in found:
        tokens = 1 + len(tokenizer.encode(document["prompt"])) + ANSWER_TOKENS
        assert length - 2 * unit <= tokens <= length
        assert document["prompt"].count(document["target"]) == 1 + (
            document["target"] in document["prompt"].rsplit(" for ", 1)[1]
        )
        needle = f"One of the special magic {value}s for "
        assert document["prompt"].count(needle) == 1 and document["prompt"].endswith("mentioned in the provided text is")
        asked = document["prompt"].rsplit(" for ", 1)[1].partition(" mentioned")[0]
        assert f"{needle}{asked} is: {document['target']}." in document["prompt"]
    assert len({document["prompt"] for document in found}) == len(found)
    assert len({document["prompt"].index("One of the special magic") for document in found}) > 2
    again = Needles(haystack=haystack, length=length, key=key, value=value, samples=40)
    assert again[5] == found[5]


def test_needles_are_made_when_they_are_asked_for(monkeypatch, tmp_path):
    """lm-eval's own loading makes one, however many the task has."""
    made = []
    own = Needles.__getitem__
    monkeypatch.setattr(Needles, "__getitem__", lambda self, index: made.append(index) or own(self, index))
    with measured_by(ByteTokenizer()):
        task = loaded("niah_noise_2048_word_number", tmp_path)
    assert len(task.eval_docs) == 1000 and set(made) == {0}


def test_needles_need_a_tokenizer_and_a_length():
    with pytest.raises(ValueError, match="measured in tokens of a model's tokenizer, and there is none"):
        Needles(haystack="noise", length=2048, key="word", value="word", samples=1)
    with measured_by(ByteTokenizer()), pytest.raises(ValueError, match="length=400 leaves no place for a needle"):
        Needles(haystack="noise", length=400, key="word", value="word", samples=1)[0]


def test_the_name_of_a_needle_task_follows_the_prose_only_where_it_is_the_haystack(monkeypatch):
    names = ["niah_noise_2048_word_word", "niah_prose_2048_word_word"]
    first = task_versions(names, None)
    monkeypatch.setattr("suite.evaluation.lm_eval_names._documents", lambda function: f"other {function}")
    second = task_versions(names, None)
    assert [first[name] == second[name] for name in names] == [True, False]


def test_there_are_enough_words_and_prose():
    assert len(set(needles.ADJECTIVES)) == len(needles.ADJECTIVES) and len(set(needles.NOUNS)) == len(needles.NOUNS)
    assert len(needles.ADJECTIVES) * len(needles.NOUNS) > 5000
    assert sum(map(len, needles.prose_sentences())) > 4096 * 4
