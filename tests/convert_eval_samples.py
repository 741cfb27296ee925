"""Samples of public evaluation sets, a file a set, as the folder that eval.data_root reads.

python -m tests.convert_eval_samples SAMPLES FOLDER

Sets whose samples are prompts with choices get back the fields of which lm-eval's tasks make the same prompt. Where a field of
the public set is not in the samples and decides the prompt, what stands in its place is said in `LOST`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]

LOST = {
    "squad_dev_v1.1": "the question rewritten as the beginning of a sentence: the question itself stands behind the passage",
    "nq-open-oracle": "the question rewritten as the beginning of a sentence: the question itself stands behind the passage",
    "drop": "the question rewritten as the beginning of a sentence (based_drop); the kind of an answer: all are spans (drop)",
    "hellaswag_val": "where the first part of a context ends: all of it is the first",
}


def _question(row: Row) -> str:
    return row["query"].removeprefix("Question: ").removesuffix("\nAnswer:")


def _letters(row: Row) -> Row:
    letters = [chr(ord("A") + i) for i in range(len(row["choices"]))]
    return {"id": row.get("id", ""), "choices": {"text": row["choices"], "label": letters}, "answerKey": letters[row["gold"]]}


def arc(row: Row) -> Row:
    return {"question": _question(row), **_letters(row)}


def openbookqa(row: Row) -> Row:
    return {"question_stem": _question(row), **_letters(row)}


def boolq(row: Row) -> Row:
    passage, question = row["query"].rsplit("\nQuestion: ", 1)
    label = int(row["choices"][row["gold"]] == "yes")
    return {"passage": passage, "question": question.removesuffix("?\nAnswer:"), "label": label}


def hellaswag(row: Row) -> Row:
    activity, context = row["query"].split(": ", 1)
    parts = {"activity_label": activity, "ctx_a": context, "ctx_b": ""}
    return {**parts, "endings": row["choices"], "label": str(row["gold"])}


def squad(row: Row) -> Row:
    return {"text": f"{row['context'].strip().strip('.')}. {row['question'].strip()}", "value": row["answers"][0]}


def nq_based(row: Row) -> Row:
    return {"context": row["ctxs"][0]["text"], "question": row["question"], "answers": row["answers"]}


def nq_open(row: Row) -> Row:
    return {"question": row["question"], "answer": row["answers"]}


def drop_based(row: Row) -> Row:
    return {"context": row["passage"], "question": row["question"], "answers": [", ".join(each) for each in row["answers"]]}


def drop(row: Row) -> Row:
    undated = {"day": "", "month": "", "year": ""}
    first, *others = row["answers"]
    validated = {"number": ["" for _ in others], "date": [undated for _ in others], "spans": others}
    answer = {"number": "", "date": undated, "spans": first}
    asked = {key: row[key] for key in ("query_id", "passage", "question")}
    return {**asked, "answer": answer, "validated_answers": validated}


def kept(*fields: str) -> Callable[[Row], Row]:
    return lambda row: {field: row[field] for field in fields}


PLACES: Mapping[str, Mapping[str, Callable[[Row], Row]]] = {
    "arc_challenge_val": {"allenai/ai2_arc/ARC-Challenge/test": arc},
    "arc_easy_val": {"allenai/ai2_arc/ARC-Easy/test": arc},
    "boolq": {"aps/super_glue/boolq/validation": boolq},
    "cycle_letters_in_word": {"EleutherAI/unscramble/cycle_letters_in_word/validation": kept("context", "completion")},
    "drop": {"EleutherAI/drop/validation": drop, "hazyresearch/based_drop/validation": drop_based},
    "fda_kv": {"hazyresearch/based-fda/default/validation": kept("key", "value", "text")},
    "hellaswag_val": {"Rowan/hellaswag/validation": hellaswag},
    "lambada_test": {"EleutherAI/lambada_openai/default/test": kept("text")},
    "mid_word_2_anagrams": {"EleutherAI/unscramble/mid_word_2_anagrams/validation": kept("context", "completion")},
    "nq-open-oracle": {
        "google-research-datasets/nq_open/validation": nq_open,
        "hazyresearch/based_nq_2048/validation": nq_based,
    },
    "openbookqa_val": {"allenai/openbookqa/main/test": openbookqa},
    "piqa": {"baber/piqa/validation": kept("goal", "sol1", "sol2", "label")},
    "social_iqa": {"lighteval/siqa/validation": kept("context", "question", "answerA", "answerB", "answerC", "label")},
    "squad_dev_v1.1": {"hazyresearch/based-squad/default/validation": squad},
    "swde_kv": {"hazyresearch/based-swde-v2/default/validation": kept("key", "value", "text")},
    "winogrande": {"allenai/winogrande/winogrande_xl/validation": kept("sentence", "option1", "option2", "answer")},
}
"""By the name of a file of samples, the splits that are made of it in the folder, and how."""


def convert(samples: Path, folder: Path) -> dict[str, int]:
    """Writes the folder; returns how many rows every split has that was made. A file that is not there is left out.

    So is a row that is not whole, of which a line is printed.
    """
    written = {}
    for name, places in PLACES.items():
        source = samples / f"{name}.jsonl"
        if not source.is_file():
            continue
        rows = list(whole_rows(source))
        for place, made in places.items():
            target = folder / f"{place}.jsonl"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text("".join(json.dumps(made(row)) + "\n" for row in rows))
            written[place] = len(rows)
    return written


def whole_rows(source: Path) -> Iterator[Row]:
    for number, line in enumerate(source.read_bytes().decode().split("\n"), 1):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                print(f"left out: line {number} of {source.name}, which is not whole ({error.msg})")


if __name__ == "__main__":
    for place, count in convert(Path(sys.argv[1]), Path(sys.argv[2])).items():
        print(f"{place}: {count} rows")
    for name, what in LOST.items():
        print(f"lost in {name}: {what}")
