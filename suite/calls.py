"""The verbs as functions: what a notebook calls in place of a command line."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from conf.settings import RequestError
from models.backbone import Backbone
from suite.generate import UNSAID, Generate, as_decoded, continue_text, tokenizer_of
from suite.plan import Run
from suite.request.compose import compose_one
from suite.request.schema import Config
from suite.results import load_results, load_runs
from suite.running.requests import make_runs
from suite.saved import model_of, saved_run
from suite.scores import main_scores
from tasks.task import Tokenizer


class TrainedModel:
    """The trained model of a run, in evaluation mode, with what its use takes.

    run_id: its name. config: every setting that it was made with, typed. tokenizer: with which its text is read; None for a
    task without text. backbone: the torch module, which stands behind every other attribute: model(tokens) gives logits,
    model.parameters() its weights.
    """

    def __init__(self, run: Run, backbone: Backbone, tokenizer: Tokenizer | None) -> None:
        self._run, self.backbone, self.tokenizer = run, backbone, tokenizer

    @property
    def run_id(self) -> str:
        return self._run.run_id

    @property
    def config(self) -> Config:
        return self._run.config

    def generate(
        self,
        prompt: str = UNSAID["prompt"],
        *,
        tokens: int = UNSAID["tokens"],
        temperature: float = UNSAID["temperature"],
        top_k: int | None = UNSAID["top_k"],
        solver_steps: int | None = UNSAID["solver_steps"],
        seed: int = 0,
    ) -> str:
        """The prompt and what follows it, up to the end of the document, as `generate` makes it on the command line.

        Raises ValueError for values out of range and for a run that has read no text.
        """
        tokenizer = tokenizer_of(self._run) if self.tokenizer is None else self.tokenizer
        typed = {"tokens": tokens, "temperature": temperature, "top_k": top_k, "solver_steps": solver_steps}
        wanted = Generate.read({"run": self.run_id, "prompt": prompt, **typed})
        return continue_text(self._run, self._decoder, tokenizer, wanted, seed=seed)

    @functools.cached_property
    def _decoder(self) -> Backbone:
        # The weights that callers see stay as training left them.
        narrows = self.config.train.autocast == "bfloat16"
        return as_decoded(self._run, copy.deepcopy(self.backbone)) if narrows else self.backbone

    def __call__(self, *inputs: Any, **keywords: Any) -> Any:
        return self.backbone(*inputs, **keywords)

    def __getattr__(self, name: str) -> Any:
        # Only what is not found otherwise comes here.
        if name in ("_run", "backbone", "tokenizer"):
            raise AttributeError(name)
        return getattr(self.backbone, name)

    def __repr__(self) -> str:
        return f"TrainedModel({self.run_id}, {self.config.title}, on {next(self.backbone.parameters()).device})"


def load_model(
    beginning: str,
    results: str | Path = "results",
    device: str = "cpu",
    backend: str = "auto",
    step: int | None = None,
) -> TrainedModel:
    """The trained model of a run, or of the beginning of its id.

    backend: what computes it here, "auto" the fastest that can, whatever it was trained with: the weights are the same.
    step: after how many steps of the training, where that checkpoint stays (compute.keep_every); None for the trained weights.
    Raises RequestError, a ValueError, for a run that is not there or not trained; ValueError for a backend that can't run.
    """
    run = saved_run(Path(results), beginning, compose_one([]))
    backbone = model_of(run, Path(results), torch.device(device), backend, step)
    try:
        tokenizer = tokenizer_of(run)
    except RequestError:
        # A task without text, or a tokenizer that is not here: `generate` says which.
        tokenizer = None
    return TrainedModel(run, backbone, tokenizer)


def run(*overrides: str) -> pd.DataFrame:
    """Makes every run of a request that is not done, as `python -m suite run` does, and returns one row a run.

    overrides: "model=mesanet,gla", "task=mqar", "train.lr=1e-3,4e-3", as they are typed. The columns are those of `load_runs`,
    and metric, value, stage and split of its main score, None for a run without one: `status` and `reason` say why.
    Raises RequestError, a ValueError, for a wrong request.
    """
    made, results, _ = make_runs(_checked(overrides))
    run_ids = [each.run_id for each in made]
    runs, scores = load_runs(results, run_ids), main_scores(load_results(results, run_ids))
    order = {run_id: i for i, run_id in enumerate(run_ids)}
    return runs.join(scores, on="run_id").sort_values("run_id", key=lambda ids: ids.map(order), ignore_index=True)


def report(*arguments: str) -> Path:
    """Draws a page, as `python -m suite report` does, and returns the path of its index.html.

    arguments: the name of a report, or the overrides of a `run`, or "where=...". Raises RequestError, a ValueError.
    """
    from suite.reporting import draw

    return draw(_checked(arguments))[0]


def _checked(arguments: Sequence[str]) -> Sequence[str]:
    if not all(isinstance(each, str) for each in arguments):
        raise RequestError(f"{arguments!r} are not all text, permitted is 'key=value' as it is typed on a command line")
    return arguments
