"""Runs of one repeated token, where every key is the same one and H grows in one direction alone.

MesaNet (arXiv 2506.05233, App. E) saw them in code, whose runs of white space made it cap the forget gate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from conf import settings
from models.mesa.mixer import Mesa
from models.mixer import State
from suite.compute.scoring import score, score_features
from suite.evaluation.settings import Asked
from suite.evaluation.studies.exact import read_out, readout_error
from suite.evaluation.studies.layers import joined, observed, traced_with_spectrum
from suite.evaluation.studies.rows import mean_row, nll_row, placed, row
from suite.evaluation.studies.subject import Sample, Subject
from tasks.task import Batch, Measurement, Task


class Settings(settings.Settings, kw_only=True):
    """run_lengths: one token repeated so often, a stage a length."""

    run_lengths: tuple[settings.Natural, ...]


def planned(asked: Asked) -> list[dict[str, Any]]:
    """One stage an entry of eval.run_lengths, for a task of text. Raises ValueError where the text has no sequence for a run."""
    if asked.config.model.first(Mesa.Settings) is None or asked.task.tokenizer is None:
        return []
    for length in asked.own.run_lengths:
        asked.task.resized(seq_len=_seq_len(asked.task, length), examples=1)
    return [{"run_length": length} for length in asked.own.run_lengths]


@torch.no_grad()
def measure(subject: Subject, asked: Mapping[str, Any]) -> list[Measurement]:
    """What becomes of held-out text in which one token takes the place of `run_length` others.

    The run begins at a third of the training length. A run after which less than another third is left makes the
    sequence as many times the training length as it needs. nll: of the text after the run; nll_without_run: of the same
    positions where nothing was replaced. From the run on: readout_error, its mean and readout_error_worst, the largest;
    the largest condition number and read-out; the mean of solver_steps; finite, the share of the logits that are.
    """
    run_length, start = asked["run_length"], subject.task.seq_len // 3
    seq_len = _seq_len(subject.task, run_length)
    task = subject.task.resized(seq_len=seq_len, examples=max(1, asked["tokens"] // seq_len))
    sample = Sample(task, "validation", task.num_examples("validation"))
    # The token is chosen from the run's own examples, so that every run length repeats one token.
    every = Sample(subject.task, "validation", subject.task.num_examples("validation"))
    token = commonest_space(task, every.batches())
    parts = [_seen(subject, batch, _with_run(task, batch, token, start, run_length), start) for batch in sample.batches()]
    seen = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    after = slice(run_length, None)
    rows = [
        nll_row("nll", seen["loss"][:, after], seen["asked"][:, after], "validation", {}),
        nll_row("nll_without_run", seen["loss_without_run"][:, after], seen["asked"][:, after], "validation", {}),
        mean_row("readout_error", seen["error"], "validation", {}),
        row("readout_error_worst", seen["error"], torch.max, "validation", {}),
        row("condition", seen["condition"], torch.max, "validation", {}),
        row("largest_readout", seen["readout"], torch.max, "validation", {}),
        mean_row("solver_steps", seen["steps"], "validation", {}),
        row("finite", seen["finite"], torch.mean, "validation", {}),
    ]
    return placed(rows, {"run_length": run_length}, task)


def _seen(subject: Subject, plain: Batch, batch: Batch, start: int) -> dict[str, Tensor]:
    """From `start` on, of every example and position [B, T - start, ...] with heads and layers behind."""
    there, model = subject.on_device(batch), subject.model
    with observed(model, _observe) as calls:
        features, _ = model.features(there.tokens, starts=there.starts)
    layers = joined(calls, 0).values()
    of_layers = {
        name: torch.stack([seen[name] for seen in layers], dim=-1) for name in ("steps", "condition", "error", "readout")
    }
    # An example at a time: of a large vocabulary the logits of all are too many.
    finite = torch.stack([model.head(example).isfinite().float().mean(-1).cpu() for example in features])
    of_tokens = {
        "loss": score_features(model, features, batch).loss,
        "loss_without_run": score(model, plain, subject.device).loss,
        "asked": batch.asked & plain.asked,
        "finite": finite,
    }
    return {name: values[:, start:] for name, values in {**of_tokens, **of_layers}.items()}


def _observe(mixer: Mesa, x: Tensor, state: State | None, starts: Tensor | None) -> dict[str, Tensor]:
    seen, inputs = traced_with_spectrum(mixer, x, state, starts), read_out(mixer, x, state, starts)
    readout = inputs["o"].abs().amax(-1)
    return {"steps": seen["steps"], "condition": seen["condition"], "error": readout_error(inputs), "readout": readout}


def _seq_len(task: Task, run_length: int) -> int:
    """The fewest times the training length in which the run has a third of the training length before and after it."""
    needed = run_length + 2 * (task.seq_len // 3)
    return task.seq_len * math.ceil(needed / task.seq_len)


def _with_run(task: Task, batch: Batch, token: int, start: int, run_length: int) -> Batch:
    """The batch with `token` at the run's positions of the text, which is what targets say and inputs repeat one later."""
    tokens, targets = batch.tokens.clone(), batch.targets.clone()
    targets[:, start : start + run_length] = token
    tokens[:, start + 1 : start + run_length + 1] = token
    return Batch(tokens, targets, None if batch.starts is None else tokens == task.tokenizer.bos)


def commonest_space(task: Task, batches: Iterable[Batch]) -> int:
    """The id that occurs most often in these batches among those whose text is white space; of all, if none is.

    For bytes it is the blank.
    """
    counts = sum(torch.bincount(batch.tokens.flatten(), minlength=task.vocab_size) for batch in batches)
    ids = counts.argsort(descending=True, stable=True).tolist()
    return next((i for i in ids if counts[i] and task.tokenizer.decode([i]).isspace()), ids[0])
