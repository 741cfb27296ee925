"""The Mesa op given an in-context regression as it stands, nothing learnt: what its equation can reach, and the solver does.

Keys are the x, values the y, queries the x asked, input gates 1, and Lambda the best for a W that stays: the op then is
ridge regression (MesaNet, arXiv 2506.05233, eq. 4).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from models.mesa.mixer import Mesa
from models.ops import mesa
from models.ops.solvers import Solver, SolverSettings, build_solver
from suite.evaluation.settings import Asked
from suite.evaluation.studies.subject import Subject
from tasks.in_context_regression import InContextRegression
from tasks.positions import rows_by_position
from tasks.task import Batch, Measurement

# The gammas of which the one with the smallest error on the validation split is taken.
DECAYS = tuple(1.0 - 0.02 * i for i in range(13))


def planned(asked: Asked) -> list[dict[str, Any]]:
    """One stage on in-context regression, for a model with Mesa layers, whose solver, chunks and floor of Lambda it takes.

    None for richardson, whose steps a layer has learned and the op by itself has not.
    """
    own = asked.config.model.first(Mesa.Settings)
    if own is None or own.solver.name == "richardson" or not isinstance(asked.task, InContextRegression):
        return []
    return [{"solver": own.solver.plain(), "chunk_size": own.chunk_size, "floor": own.regularizer_floor}]


@torch.no_grad()
def measure(subject: Subject, settings: Mapping[str, Any]) -> list[Measurement]:
    """On the test split by position, with one gamma for all tokens, the best of DECAYS on the validation split:

    operator_error, the squared error of the op with the best Lambda that is told where W is drawn afresh, by a gate of 0
    there; forgetting_error, of one that is not told; floored_error, of one that is not told and whose Lambda is not below
    what the layer permits. Then the gammas, operator_decay, forgetting_decay and floored_decay.
    """
    task, solver = subject.task, build_solver(SolverSettings.read(settings["solver"]))
    splits = ("validation", "test")
    validation, test = (subject.on_device(task.batch(split, range(task.num_examples(split)))) for split in splits)
    best_lambda = task.regularizer
    # The floor is one for keys of length 1; these have length sqrt(input_dim).
    permitted_lambda = max(best_lambda, settings["floor"] * task.input_dim)
    ops = {"operator": (best_lambda, True), "forgetting": (best_lambda, False), "floored": (permitted_lambda, False)}
    rows = []
    for name, (regularizer, restarts_told) in ops.items():
        op = partial(op_answers, task, regularizer=regularizer, restarts_told=restarts_told, solver=solver)
        op = partial(op, chunk_size=settings["chunk_size"])
        best = best_decay(op, validation)
        rows += rows_by_position(f"{name}_error", "test", errors(op(test, decay=best), test).double().cpu().numpy())
        rows.append(Measurement(f"{name}_decay", best, "validation", {}, len(validation.targets)))
    return rows


def best_decay(op: Callable[..., Tensor], batch: Batch) -> float:
    """The one of DECAYS with which the op's answers to a batch have the smallest error."""
    return min(DECAYS, key=lambda decay: errors(op(batch, decay=decay), batch).mean().item())


def errors(answers: Tensor, batch: Batch) -> Tensor:
    """The squared error of every answer [B, T], the mean over output_dim."""
    return (answers - batch.targets).square().mean(-1)


def op_answers(
    task: InContextRegression,
    batch: Batch,
    *,
    decay: float,
    regularizer: float,
    restarts_told: bool,
    solver: Solver,
    chunk_size: int,
) -> Tensor:
    """What the chunked op, one head, answers to a batch [B, T, output_dim]: G_t (H_t + Lambda)^-1 x_t."""
    problem = task.problem(batch)
    k, v, q = (part.unsqueeze(2) for part in problem[:3])
    log_decay, beta = q.new_full(q.shape[:3], math.log(decay)), q.new_ones(q.shape[:3])
    if restarts_told:
        restarts = problem.restarts.to(q.device)[None, :, None]
        log_decay, beta = log_decay.masked_fill(restarts, -torch.inf), beta.masked_fill(restarts, 0.0)
    G, H = (q.new_zeros(len(q), 1, rows, q.shape[-1]) for rows in (v.shape[-1], k.shape[-1]))
    inputs = mesa.Inputs(q, k, v, log_decay, beta, q.new_full((1, q.shape[-1]), regularizer))
    return mesa.chunked(inputs, state=mesa.MesaState(G, H), solver=solver, chunk_size=chunk_size)[0].squeeze(2)
