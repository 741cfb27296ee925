"""What a trained model makes of another solver (MesaNet, arXiv 2506.05233, Fig. 5): scores, steps and time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from conf import settings
from conf.settings import Refusal
from models.mesa.layers import mesa_replaced
from models.mesa.mixer import Mesa
from models.ops.solvers import SolverSettings
from suite.evaluation.settings import Asked
from suite.evaluation.studies.layers import score_and_observe, traced
from suite.evaluation.studies.rows import mean_of_layers, mean_row, placed, score_rows
from suite.evaluation.studies.subject import Sample, Subject
from suite.evaluation.studies.timing import TIMED_TOKENS, compared_rows
from tasks.task import Measurement

SolverChange = settings.partial("SolverChange", SolverSettings, __name__)


class Settings(settings.Settings, kw_only=True):
    """solvers: settings laid over the model's own solver, a stage an entry; an empty one is the model's own."""

    solvers: tuple[SolverChange, ...]


def planned(asked: Asked) -> list[dict[str, Any]]:
    """One stage an entry of eval.solvers: the model's own solver with the entry laid over it. Raises RequestError."""
    mixer = asked.config.model.first(Mesa.Settings)
    solvers = [] if mixer is None else [mixer.solver.replace(entry.plain()) for entry in asked.own.solvers]
    if mixer is not None and mixer.solver.name != "richardson" and any(each.name == "richardson" for each in solvers):
        raise Refusal("eval.solvers", "richardson", "other solvers for a model that has learned no step of it")
    return [{"solver": each.plain()} for each in solvers]


@torch.no_grad()
def measure(subject: Subject, asked: Mapping[str, Any]) -> list[Measurement]:
    """The task's scores with this solver in every Mesa layer, and what it spends.

    solver_steps, solver_chunk_steps (each token counts the most of its chunk) and solver_residual: means over tokens,
    heads and layers. relative_time: of a forward pass, to one with the model's own solver.
    """
    solver, sample = asked["solver"], subject.sample(asked["tokens"])
    with mesa_replaced(subject.model, {"solver": solver}):
        scored, layers = score_and_observe(subject, sample, traced)
    rows = score_rows(sample, scored)
    rows += [
        mean_row(metric, mean_of_layers(layers, name), sample.split, {})
        for metric, name in (("solver_steps", "steps"), ("solver_chunk_steps", "chunk_steps"), ("solver_residual", "residual"))
    ]
    rows += _times(subject, sample, solver)
    place = {"solver": solver["name"], **{key: solver[key] for key in ("initial", "max_steps", "tolerance")}}
    return placed(rows, place, sample.task)


def _times(subject: Subject, sample: Sample, solver: Mapping[str, Any]) -> list[Measurement]:
    count = min(sample.count, max(1, TIMED_TOKENS // sample.task.seq_len))
    batch = subject.on_device(sample.task.batch(sample.split, range(count)))

    def own() -> None:
        subject.model.features(batch.tokens, starts=batch.starts)

    def replaced() -> None:
        with mesa_replaced(subject.model, {"solver": solver}):
            own()

    return compared_rows(replaced, own, subject.device, split=sample.split, tokens=count * sample.task.seq_len)
