"""Runs that stand in a results store, and their trained models. Reads data alone: a stranger's store is safe to open."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from omegaconf import OmegaConf

from models.backbone import LanguageModel
from suite.checkpoint import load_final
from suite.cost import Cost
from suite.plan import Run, task_of
from suite.request import RequestError, unknown
from suite.store import RunDirectory
from suite.train import new_model
from tasks.task import Task


def saved_run(results: Path, run_id: str) -> Run:
    """A run from its folder, with no evaluations. Raises RequestError for one that is not there or not trained."""
    known = trained_ids(results)
    matching = [name for name in known if name.startswith(run_id)]
    if len(matching) != 1 or not re.fullmatch(r"[0-9a-f]{1,12}", run_id):
        raise unknown("run", run_id, known)
    folder = RunDirectory(results, matching[0]).path
    whole = json.loads((folder / "run.json").read_text())
    facts = whole["facts"]
    return Run(
        config=OmegaConf.to_container(OmegaConf.load(folder / "config.yaml")),
        run_id=matching[0],
        group_id=whole["group_id"],
        data_fingerprint=facts["data_fingerprint"],
        vocab_size=facts["vocab_size"],
        cost=Cost(facts["parameters"], facts["state_bytes"], facts["flops_per_token"]),
        evaluations=(),
    )


def saved_runs(results: Path) -> list[Run]:
    """Every trained run of a store. Raises RequestError when there is none."""
    found = [saved_run(results, run_id) for run_id in trained_ids(results)]
    if not found:
        raise RequestError(f"no trained runs under {results}")
    return found


def trained_ids(results: Path) -> list[str]:
    return sorted(path.parent.name for path in (results / "runs").glob("*/train.json"))


def saved_task(run: Run) -> Task:
    """The task that a saved run was trained on. Raises RequestError where its text is not what it was."""
    task = task_of(run.config)
    if task.fingerprint() != run.data_fingerprint:
        raise RequestError(f"run {run.run_id}: its text is not here, or not as it was, so it can't be scored")
    return task


def load_model(run_id: str, results: str | Path = "results", device: str = "cpu") -> LanguageModel:
    """The trained model of a run (or of the beginning of its id), in evaluation mode.

    Raises RequestError, a ValueError, for a run that is not there or not trained.
    """
    run = saved_run(Path(results), run_id)
    model = new_model(run, torch.device(device))
    load_final(RunDirectory(Path(results), run.run_id).checkpoints, model)
    return model.eval()
