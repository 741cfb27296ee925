"""The rows of the stage `solver`: trained models scored again under several settings of their solver."""

from __future__ import annotations

import numpy as np
import pandas as pd

from reports.kit.parts import Frames
from reports.kit.render import counted, scientific
from reports.kit.rows import less, of_stage, over_runs, slice_names

SETTING = ["solver", "initial", "max_steps", "tolerance"]
RUN = ["run_id", "seed", "arm", "family", "model"]
SPENT = "solver_steps"


def setting_scores(frames: Frames, *, task: str, metric: str) -> pd.DataFrame:
    """One row a run and setting: RUN, SETTING and `value`, over the whole split.

    Raises NoData where no run of the task has the metric.
    """
    rows = of_stage(frames.results, stage="solver", task=task, metric=metric)
    whole = rows[rows["slice"].map(slice_names) == set(SETTING)]
    return whole[[*RUN, *SETTING, "value"]].reset_index(drop=True)


def is_fixed(table: pd.DataFrame) -> pd.Series:
    """Which rows ran a fixed number of steps of plain conjugate gradients from the diagonal start."""
    return _is_plain(table) & (table["tolerance"] == 0)


def is_stopped(table: pd.DataFrame) -> pd.Series:
    """Which rows stopped every token at a tolerance, by plain conjugate gradients from the diagonal start."""
    return _is_plain(table) & (table["tolerance"] > 0)


def _is_plain(table: pd.DataFrame) -> pd.Series:
    return (table["initial"] == "diagonal") & (table["solver"] == "cg")


def at_steps(table: pd.DataFrame, steps: int) -> pd.Series:
    """Which rows ran so many fixed steps."""
    return is_fixed(table) & (table["max_steps"] == steps)


def less_fixed(scores: pd.DataFrame, *, steps: int) -> pd.DataFrame:
    """The scores with `difference`: the value less that of the same run at `steps` fixed steps."""
    return less(scores, scores[at_steps(scores, steps)], on=["run_id"], done=f"evaluated at {steps} fixed steps")


def setting_label(solver: str, initial: str, max_steps: float, tolerance: float) -> str:
    """A setting in words: "5 steps", "0 steps, query start", "eps 0.0001"; the solver where it is not cg."""
    steps = f"eps {scientific(tolerance)}" if tolerance > 0 else f"{max_steps:g} step{'s' if max_steps != 1 else ''}"
    start = "" if initial == "diagonal" else f", {initial.replace('_', ' ')} start"
    if solver == "cholesky":
        return "exact (Cholesky)"
    return steps + start + ("" if solver == "cg" else f", {solver.replace('_', ' ')}")


def setting_order(table: pd.DataFrame) -> pd.DataFrame:
    """Fixed steps from few to many, other starts before the diagonal one, then tolerances from loose to tight."""
    keys = table.assign(
        adaptive=table["tolerance"] > 0, loose=-table["tolerance"], other=-(table["initial"] != "diagonal").astype(int)
    )
    order = keys.sort_values(["solver", "adaptive", "loose", "max_steps", "other", "initial"], kind="stable").index
    return table.loc[order].reset_index(drop=True)


def verdict(frames: Frames, *, task: str, steps: int, tolerance: float, bound: float) -> str:
    """One sentence: whether `tolerance` gives the NLL of `steps` steps within `bound` nats at half of the steps or fewer."""
    tables = (
        less_fixed(setting_scores(frames, task=task, metric="nll"), steps=steps),
        setting_scores(frames, task=task, metric=SPENT),
    )
    at = [table[is_stopped(table) & np.isclose(table["tolerance"], tolerance, rtol=1e-6, atol=0)] for table in tables]
    # Where a run was stopped at several numbers of steps too, the tolerance decides most at the largest.
    at = [table.sort_values("max_steps", kind="stable").drop_duplicates("run_id", keep="last") for table in at]
    if any(table.empty for table in at):
        return f"No run was evaluated with eps {scientific(tolerance)}."
    difference, used = (
        over_runs(table, ["solver"], metric=metric).iloc[0] for table, metric in zip(at, ("nll", SPENT), strict=True)
    )
    reached = difference["worst"] <= bound and used["mean"] <= steps / 2
    asked_for = f"Does eps {scientific(tolerance)} reproduce {steps} steps within {bound:g} nats"
    seeds = f"in the worst of {counted(difference['n'], 'seed')} by {scientific(difference['worst'])}"
    return (
        f"{asked_for} at no more than {steps / 2:g} steps on average? {'Yes' if reached else 'No'}: "
        f"the NLL differs by {scientific(difference['mean'])} nats ({seeds}) at {used['mean']:.1f} steps of {steps}."
    )
