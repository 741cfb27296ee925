"""Documents and scores of the paper's tasks that lm-eval does not ship, out of the fields that their public data have.

lm-eval finds the functions by name. Prompts are columns, as in `tasks.offline.data`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

from tasks.paper.needles import Needles

Document = dict[str, Any]

PREFIXES = 10
"""Random few-shot prefixes over which the scrambled words are averaged."""
MARKS = re.compile(r"\[(?:PAR|DOC|TLE)\]")
"""The marks of paragraphs, documents and titles in TriviaQA's pages."""


def noise(*, length: int, key: str, value: str, samples: int, **metadata: object) -> dict[str, Needles]:
    return {"test": Needles(haystack="noise", length=length, key=key, value=value, samples=samples)}


def prose(*, length: int, key: str, value: str, samples: int, **metadata: object) -> dict[str, Needles]:
    return {"test": Needles(haystack="prose", length=length, key=key, value=value, samples=samples)}


def grounded(dataset: Any) -> Any:
    """A passage and what is asked of it as one text (Arora et al. 2024, arXiv 2407.05483), with the answers that count.

    The passage is a `context`, DROP's `passage`, or the first of the retrieved `ctxs`; an answer of several spans is one text.
    """

    def of(document: Document) -> Document:
        passage = document["passage"] if "passage" in document else document["ctxs"][0]["text"] if "ctxs" in document else None
        passage = MARKS.sub("", document["context"] if passage is None else passage).strip()
        question = document["question"].strip()
        while question and passage.lower().endswith(question.lower()):
            passage = passage[: -len(question)].strip()
        answers = [answer if isinstance(answer, str) else ", ".join(answer) for answer in document["answers"]]
        return {"prompt": f"{passage.strip('.')}. {question}", "accepted": answers, "target": next(iter(answers), "")}

    return dataset.map(of, remove_columns=dataset.column_names)


def contains_any(document: Document, results: Sequence[str]) -> dict[str, float]:
    """Whether the answer has one of the accepted ones in it, whatever the case."""
    return {"contains": float(any(answer and answer.lower() in results[0].lower() for answer in document["accepted"]))}


def contains(document: Document, results: Sequence[str]) -> dict[str, float]:
    """Whether the answer has the target in it, whatever the case."""
    return {"contains": float(document["target"].lower() in results[0].lower())}


def examination(dataset: Any) -> Any:
    """RACE a row a question, as a document an article: the last question, behind the others with their answers.

    As lm-eval 0.4.13 has RACE-H, whose data set has the questions of an article in one row.
    """
    documents = []
    for article, rows in itertools.groupby(dataset, key=lambda row: row["article"]):
        *known, asked = list(rows)
        text = f"Article: {article}\n\n"
        for row in known:
            answer, blank = row["options"]["ABCD".index(row["answer"])], "  _  ."
            question = row["question"]
            if question.endswith(blank):
                text += f"{question[: -len(blank) + 1]}{answer}\n"
            else:
                text += f"Question: {question}\nAnswer: {answer}\n"
        label = "ABCD".index(asked["answer"])
        documents.append({"prompt": text + asked["question"], "choices": list(asked["options"]), "label": label})
    return type(dataset).from_list(documents)


def story(dataset: Any) -> Any:
    """StoryCloze: four sentences, and two endings, in the fields of the authors' tables or of the hub's."""

    def of(document: Document) -> Document:
        own = "InputSentence1" in document
        sentences = [document[f"InputSentence{i}" if own else f"input_sentence_{i}"] for i in range(1, 5)]
        endings = [document[f"RandomFifthSentenceQuiz{i}" if own else f"sentence_quiz{i}"] for i in (1, 2)]
        right = int(document["AnswerRightEnding" if own else "answer_right_ending"])
        return {"prompt": " ".join(sentences), "choices": endings, "label": right - 1}

    return dataset.map(of, remove_columns=dataset.column_names)


def scrambled(dataset: Any) -> Any:
    """A scrambled word in GPT-3's format, and the word."""
    return dataset.map(lambda row: {"prompt": row["context"], "target": row["completion"].strip(), "prefix": 0})


def scrambled_behind_prefixes(dataset: Any) -> Any:
    """Every scrambled word PREFIXES times, once for each prefix."""
    rows = [{**row, "prefix": prefix} for row in scrambled(dataset) for prefix in range(PREFIXES)]
    return type(dataset).from_list(rows)
