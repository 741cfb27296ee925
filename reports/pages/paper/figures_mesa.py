"""Mesa layers trained with few solver steps, and what their heads do (Figs. 13 and 14 of MesaNet, arXiv 2506.05233v2)."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from reports.kit.arguments import Model, Task
from reports.kit.claims import Drawn, Missing, claim, majority
from reports.kit.narrow import Cell, cells_of, having, of_runs, one_arm_a_model, validation_losses
from reports.kit.parts import Drawing, Frames, NoData
from reports.kit.render import scientific

STEPS, TOLERANCE = "model.mixer.solver.max_steps", "model.mixer.solver.tolerance"
OUTSTANDING = 10.0
"""A head stands out in its layer where its condition number is so many times that of the layer's median head."""
FEW_HEADS = 2
"""So many heads of a layer stand out at most, by the paper."""


def trained_with_few_steps(
    frames: Frames, *, task: Task, model: Model, steps: int, few: int, draws: Drawn, missing: Missing
) -> Drawing:
    """The loss by the solver's steps in training, and whether `few` alone are clearly worse than `steps`.

    The size and number of tokens with the most numbers of steps is drawn; each number in the settings that validation prefers.
    """
    with missing.told(frames):
        runs = having(frames, stage="train", task=task, metric="nll", models=[model])
        cell, runs = _most_ways(runs, steps)
        losses = validation_losses(frames, "nll")
        kept, notes = one_arm_a_model(runs, losses, by="NLL on validation", apart=[STEPS, TOLERANCE])
        drawing = draws.of(of_runs(frames, kept))
    return replace(drawing, notes=(f"{cell.title}.", _only_few(drawing.data, few), *drawing.notes, *notes))


def _most_ways(runs: pd.DataFrame, steps: int) -> tuple[Cell, pd.DataFrame]:
    """The cell in which models were trained with the most numbers of fixed steps, `steps` among them, and its runs."""
    if STEPS not in runs:
        raise NoData("no run says with how many steps of its solver it was trained")
    if "model.mixer.random_steps" in runs:
        runs = runs[runs["model.mixer.random_steps"].isna()]
    # A tolerance that may take fewer steps is another question.
    runs = runs[(runs[TOLERANCE].astype(float) == 0) | (runs[STEPS] == steps)]
    ways = {}
    for cell in cells_of(runs):
        own = runs[runs["run_id"].isin(cell.run_ids)]
        fixed = set(own.loc[own[TOLERANCE].astype(float) == 0, STEPS].dropna())
        ways[cell] = len(fixed) if steps in fixed else 0
    best = max(ways, key=lambda cell: ways[cell], default=None)
    if best is None or ways[best] < 2:
        raise NoData(f"no size and number of tokens was trained with {steps} fixed solver steps and with fewer")
    return best, runs[runs["run_id"].isin(best.run_ids)]


def _only_few(data: pd.DataFrame, few: int) -> str:
    """Whether `few` steps are worse by a whole interval, and every larger number by less than they are."""
    own = data[(data["evaluated"] == "as trained") & (data["solver_tolerance"] == 0) & (data["solver_max_steps"] >= few)]
    own = own.sort_values("solver_max_steps")
    each = ", ".join(f"{row.solver_max_steps:g} steps {scientific(row.mean)}" for row in own.itertuples())
    because = f"nats more than with the most steps: {each}"
    fewest, more = own[own["solver_max_steps"] == few], own[own["solver_max_steps"] > few]
    if fewest.empty or more.empty or fewest["low"].isna().any():
        return claim(None, because if len(own) and len(fewest) else f"no model was trained with {few} steps")
    row = fewest.iloc[0]
    if row["high"] < 0 or (more["low"] > row["mean"]).any():
        return claim(False, because)
    return claim(True if row["low"] > 0 and (more["high"] < row["mean"]).all() else None, because)


def heads(frames: Frames, *, task: Task, model: Model, draws: Drawn, missing: Missing) -> Drawing:
    """Every head of every layer, and whether one or two of a layer stand out in their condition number, as the paper finds.

    The largest size and number of tokens is drawn, in the settings that validation prefers.
    """
    with missing.told(frames):
        runs = having(frames, stage="internals", task=task, metric="condition", models=[model])
        cell = next(cells_of(runs))
        losses = validation_losses(frames, "nll")
        kept, notes = one_arm_a_model(runs[runs["run_id"].isin(cell.run_ids)], losses, by="NLL on validation")
        drawing = draws.of(of_runs(frames, kept))
    return replace(drawing, notes=(f"{cell.title}.", _outstanding(drawing.data), *drawing.notes, *notes))


def _outstanding(data: pd.DataFrame) -> str:
    """Whether in most layers one or two heads stand out, and these forget less and take more steps than the others."""
    wide = data.pivot_table(index=["layer", "rank"], columns="metric", values="mean")
    condition = wide["condition"]
    out = condition >= OUTSTANDING * condition.groupby("layer").transform("median")
    counts = out.groupby("layer").sum()
    layers = majority([1 if 1 <= count <= FEW_HEADS else -1 for count in counts])
    told = f"heads whose condition number is {OUTSTANDING:g} times their layer's median, by layer: {', '.join(map(str, counts))}"
    both = [metric for metric in ("gamma", "solver_steps") if metric in wide]
    if out.any() and not out.all():
        means = {metric: (wide.loc[out, metric].mean(), wide.loc[~out, metric].mean()) for metric in both}
        told += "".join(f"; their {metric.replace('_', ' ')} is {a:.3g}, the others' {b:.3g}" for metric, (a, b) in means.items())
        layers = layers and all(a > b for a, b in means.values())
    return claim(layers, told)
