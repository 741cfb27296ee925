"""lm-eval's own backend for models of transformers beside the adapter of this suite: the same scores, and how long they take.

    python -m tests.benchmarks.lm_eval_speed [--limit N] [--batch N] [--shots N] [--width N] [--layers N] [--vocab N]
        [--data-root FOLDER [TASK ...]]

It needs `pip install accelerate`, which lm-eval's backend imports. A small GPT-2 with random weights and a tokenizer are made
and saved, and read by both from there; both get the same number of sequences at a time. Without a folder of data, passages of
the standard library's documentation are scored: choices behind short and long contexts, as HellaSwag's and RACE's, choices
behind five examples, as in ARC, and generated answers. Time is what this process computes for the requests, so that other work
on the machine does not count.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from lm_eval import evaluator
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from models.hf.model import HFModel
from suite.evaluation.lm_eval_adapter import BackboneLM
from suite.evaluation.lm_eval_blame import quiet
from suite.evaluation.lm_eval_data import Reading
from tasks.language.corpus import stdlib_documents
from tasks.language.tokenizer import FileTokenizer

BOS = "<|endoftext|>"
CHOICE = "output_type: multiple_choice\ndoc_to_text: question\ndoc_to_choice: choices\ndoc_to_target: label\n"
CHOICE += "metric_list: [{metric: acc, aggregation: mean}, {metric: acc_norm, aggregation: mean}]\n"
ANSWER = "output_type: generate_until\ndoc_to_text: question\ndoc_to_target: '{{choices[label]}}'\n"
ANSWER += "generation_kwargs: {until: ['\\n'], max_gen_toks: 16}\nmetric_list: [{metric: exact_match, aggregation: mean}]\n"
SHOTS = "num_fewshot: 5\nfewshot_split: test\n"
# Words of a context and of a choice.
MADE = {
    "short contexts": (CHOICE, 60, 20),
    "long contexts": (CHOICE, 250, 12),
    "five examples": (CHOICE + SHOTS, 30, 5),
    "answers": (ANSWER, 120, 5),
}
REAL = ("hellaswag", "piqa", "arc_easy", "arc_challenge", "boolq", "lambada_openai", "fda", "swde")
LONGEST = 1024


@functools.cache
def prose() -> list[str]:
    return " ".join(stdlib_documents()).split()


def words(draw: random.Random, count: int) -> str:
    first = draw.randrange(len(prose()) - count)
    return " ".join(prose()[first : first + count])


def save_model(folder: Path, asked: argparse.Namespace) -> None:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=4096, special_tokens=[BOS], initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(stdlib_documents(), trainer)
    # A document begins with BOS here and there.
    backend.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=BOS, eos_token=BOS).save_pretrained(folder)
    config = transformers.GPT2Config(
        vocab_size=asked.vocab or backend.get_vocab_size(),
        n_positions=LONGEST,
        n_embd=asked.width,
        n_layer=asked.layers,
        n_head=asked.width // 64,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config)
    # As a trained model's, its logits differ by more than rounding.
    with torch.no_grad():
        model.transformer.wte.weight.mul_(5)
    model.save_pretrained(folder)


def save_tasks(folder: Path, documents: int) -> list[str]:
    draw = random.Random(1)
    for name, (kind, context, choice) in MADE.items():
        name = name.replace(" ", "_")
        rows = [
            {
                "question": words(draw, draw.randint(context * 3 // 4, context * 5 // 4)),
                "choices": [words(draw, draw.randint(1, 2 * choice)) for _ in range(4)],
                "label": draw.randrange(4),
            }
            for _ in range(documents)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        data = f'dataset_path: json\ndataset_kwargs: {{data_files: {{test: "{folder}/{name}.jsonl"}}}}\ntest_split: test\n'
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{data}{kind}")
    return [name.replace(" ", "_") for name in MADE]


def scored(lm: LM, manager: TaskManager, task: str, asked: argparse.Namespace) -> tuple[dict[str, Any], list[Any], float]:
    """lm-eval's results of one task, every answer, and the seconds in which the requests were answered."""
    given = {"num_fewshot": asked.shots} if asked.shots is not None else {}
    seconds = 0.0

    def timed(answer: Callable[[list[Any]], list[Any]], requests: list[Any]) -> list[Any]:
        nonlocal seconds
        start = time.process_time()
        answers = answer(requests)
        seconds += time.process_time() - start
        return answers

    for name in ("loglikelihood", "generate_until"):
        setattr(lm, name, functools.partial(timed, getattr(type(lm), name).__get__(lm)))
    with quiet(), Reading(asked.data_root):
        made = evaluator.simple_evaluate(lm, tasks=[task], task_manager=manager, limit=asked.limit, bootstrap_iters=0, **given)
    samples = [answer for sample in made["samples"][task] for answer in sample["filtered_resps"]]
    return made["results"][task], samples, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("limit", 40), ("batch", 8), ("shots", None), ("width", 256), ("layers", 4), ("vocab", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--data-root")
    parser.add_argument("tasks", nargs="*")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_model(folder, asked)
        if asked.data_root:
            tasks, manager = asked.tasks or list(REAL), TaskManager()
        else:
            tasks = save_tasks(folder, asked.limit)
            manager = TaskManager(include_path=temporary, include_defaults=False)
        with quiet():
            how = {"device": "cpu", "dtype": "float32", "max_length": LONGEST, "add_bos_token": True}
            theirs = HFLM(pretrained=temporary, batch_size=asked.batch, **how)
        model = HFModel(HFModel.Settings.read({"type": "hf", "path": temporary, "dtype": "float32", "digest": None})).eval()
        model.reset_parameters(0)
        ours = BackboneLM(
            model,
            FileTokenizer(f"{temporary}/tokenizer.json", None),
            batch_size=asked.batch,
            max_length=LONGEST,
            temperature=None,
            sample_seed=0,
            device="cpu",
        )
        for task in tasks:
            compare(task, *(scored(lm, manager, task, asked) for lm in (theirs, ours)))


def compare(task: str, theirs: tuple[dict[str, Any], list[Any], float], ours: tuple[dict[str, Any], list[Any], float]) -> None:
    """Prints a line: whether all metrics are identical, how far log-likelihoods or answers differ, and the times."""
    metrics = [key for key, value in theirs[0].items() if isinstance(value, float) and "stderr" not in key]
    differing = [key for key in metrics if abs(theirs[0][key] - ours[0][key]) > 1e-6 * max(1.0, abs(theirs[0][key]))]
    pairs = list(zip(theirs[1], ours[1], strict=True))
    if pairs and isinstance(pairs[0][0], str):
        apart = f"{sum(one != other for one, other in pairs)} of {len(pairs)} answers differ"
    else:
        apart = f"log-likelihoods within {max(abs(one[0] - other[0]) for one, other in pairs):.1e}"
    scores = ", ".join(f"{key.split(',')[0]} {ours[0][key]:.4f}" for key in metrics)
    same = f"differ: {differing}" if differing else "identical"
    print(
        f"{task}: {scores}, {same}, {apart}; {theirs[2]:.1f} s and {ours[2]:.1f} s, {theirs[2] / ours[2]:.1f} times", flush=True
    )


if __name__ == "__main__":
    main()
