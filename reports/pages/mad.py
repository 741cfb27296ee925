"""MAD (Poli et al. 2024) beside Table 9 of MesaNet (arXiv 2506.05233), and what the whole table would cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from conf.groups import options
from conf.settings import unknown
from reports.kit.chosen_runs import SETTING, Chosen, chosen_runs, line_labels, setting_labels
from reports.kit.commands import suite_command
from reports.kit.fills import FLOPS_PER_WEIGHT, hours_of
from reports.kit.grid import SHARED_BY, hours, hours_of_runs, measured_settings, model_label, settings_of, whole_grid
from reports.kit.parts import Entry, Frames, NoData, Table
from reports.kit.protocol import TUNED
from reports.kit.render import counted, scientific, signed
from reports.kit.rows import ids_of
from reports.kit.style import arms_in_order
from reports.kit.tables import opened

PUBLISHED = Path(__file__).parents[1] / "published" / "mesanet.csv"
TABLE_9 = "arXiv:2506.05233v2 Table 9 (MAD)"
COLUMNS = {
    "in-context & noisy recall": ("mad_in_context_recall", "mad_noisy_recall"),
    "fuzzy recall": ("mad_fuzzy_recall",),
    "memorization": ("mad_memorization",),
    "selective copying": ("mad_selective_copying",),
    "compression": ("mad_compression",),
}
"""The columns of Table 9, each with the tasks of which it is the mean."""
AVERAGE = "average"
PERCENT = 100
WEIGHTS = 2 * (4 + 3 * 3) * 128**2
"""Those of the matrices of a model there: two blocks of width 128, four of a mixer and three of an MLP three times as wide."""


def beside_published(frames: Frames, *, whole: str) -> Table:
    """Per model three rows, in percent: ours, the paper's Table 9, and ours less the paper's.

    Ours is the mean over the settings of a task that are there, at the rates of the protocol; without a run of them only the
    paper's rows are there. whole: the experiment that holds the whole table.
    """
    tasks, printed = [task for tasks in COLUMNS.values() for task in tasks], published()
    if not frames.cells["task"].isin(tasks).any():
        return Table(*_printed_alone(printed, whole))
    chosen = chosen_runs(frames, tasks)
    data = scores(chosen)
    data["published"] = [printed.get(key, np.nan) for key in zip(data["model"], data["column"], strict=True)]
    data["difference"] = data["mean"] - data["published"]
    titles = [*COLUMNS, AVERAGE]
    rows = []
    for arm, model in arms_in_order(data):
        own = data[data["arm"] == arm].set_index("column").to_dict("index")
        rows.append((Entry(arm), Entry("ours"), *(_ours(own.get(title)) for title in titles)))
        rows.append((Entry(arm), Entry("paper"), *_theirs(printed, model)))
        rows.append((Entry(arm), Entry("difference"), *(_difference(own.get(title)) for title in titles)))
    notes = (*_notes(frames, whole), *chosen.notes("ours are means, in brackets the least and the greatest seed"))
    return Table(data, ("model", "", *titles), tuple(rows), notes)


def _printed_alone(
    printed: Mapping[tuple[str, str], float], experiment: str
) -> tuple[pd.DataFrame, tuple[str, ...], tuple[tuple[Entry, ...], ...], tuple[str, ...]]:
    """The data, header, rows and notes of Table 9 as it is printed, with how much would have to be trained to fill it."""
    whole = _whole(experiment)
    data = pd.DataFrame([{"model": model, "column": column, "published": value} for (model, column), value in printed.items()])
    data = data.assign(arm=data["model"].map(model_label), mean=np.nan, difference=np.nan)
    rows = tuple((Entry(arm), Entry("paper"), *_theirs(printed, model)) for arm, model in arms_in_order(data))
    flops = FLOPS_PER_WEIGHT * WEIGHTS * float(whole["tokens"].sum())
    cost = f"{counted(len(whole), 'training')}, {scientific(flops)} FLOPs of {WEIGHTS:,} weights"
    command = suite_command("run", [f"experiment={experiment}"])
    least = f"{hours_of(flops):,.0f} hours of one H100 at 40 %, which models so small stay far below"
    notes = (f"Nothing of it is here. It is filled by: {command} ({cost}; at least {least}).",)
    return data, ("model", "", *COLUMNS, AVERAGE), rows, notes


def _theirs(printed: Mapping[tuple[str, str], float], model: str) -> list[Entry]:
    """The paper's row of a model."""
    theirs = (printed.get((model, title)) for title in (*COLUMNS, AVERAGE))
    return [Entry("–") if value is None else Entry(f"{value:.1f}", value) for value in theirs]


def scores(chosen: Chosen) -> pd.DataFrame:
    """One row an arm and column of Table 9, and its average, in percent: mean, each, least and greatest, settings, of.

    mean: over the tasks of a column the mean over settings of the mean over seeds. each: the same of every seed that has all
    the `settings` that any has, of so many that were asked for. The average is that of the columns, for arms that have all.
    """
    cells = chosen.cells.assign(arm=line_labels(chosen.cells), **{SETTING: setting_labels(chosen.cells)})
    cells = cells[["arm", "model", "task", SETTING, "seed", "metric", "value", "run_id"]]
    rows = []
    for (arm, model), own in cells.groupby(["arm", "model"], sort=False):
        means, seeds = {}, {}
        for column, tasks in COLUMNS.items():
            asked = own[own["task"].isin(tasks)]
            known = asked.dropna(subset="value")
            of_setting = known.groupby(["task", SETTING])["value"].mean()
            counts = known.groupby("seed")["value"].transform("size")
            of_seed = known[counts == len(of_setting)].groupby(["seed", "task"])["value"].mean().groupby("seed").mean()
            seeds[column], means[column] = of_seed * PERCENT, of_setting.groupby("task").mean().mean() * PERCENT
            about = {"settings": len(of_setting), "of": len(asked.drop_duplicates(["task", SETTING])), "runs": ids_of(known)}
            if len(asked):
                rows.append({"arm": arm, "model": model, "column": column, **_row(means[column], seeds[column]), **about})
        average = _row(float(np.mean(list(means.values()))), pd.DataFrame(seeds).dropna().mean(axis=1))
        about = {"settings": len(COLUMNS), "of": len(COLUMNS), "runs": ""}
        rows.append({"arm": arm, "model": model, "column": AVERAGE, **average, **about})
    return pd.DataFrame(rows).assign(metric=cells["metric"].iloc[0])


def _row(mean: float, of_seed: pd.Series) -> dict[str, Any]:
    each = tuple(of_seed)
    return {"mean": mean, "each": each, "least": min(each, default=np.nan), "greatest": max(each, default=np.nan)}


def published() -> dict[tuple[str, str], float]:
    """Table 9 by model and column, in percent."""
    table = pd.read_csv(PUBLISHED)
    table = table[table["source"] == TABLE_9]
    return {(row.model, row.dataset): float(row.value) for row in table.itertuples()}


def _ours(row: Mapping[str, Any] | None) -> Entry:
    if row is None or np.isnan(row["mean"]):
        return Entry("–")
    text = f"{row['mean']:.1f}"
    if len(row["each"]) > 1:
        text += f" ({row['least']:.1f} to {row['greatest']:.1f})"
    if row["settings"] < row["of"]:
        text += f", {row['settings']} of {row['of']} settings"
    return Entry(text, row["mean"], runs=opened(row))


def _difference(row: Mapping[str, Any] | None) -> Entry:
    if row is None or np.isnan(row["difference"]):
        return Entry("–")
    return Entry(signed(row["difference"], 1), row["difference"])


def _notes(frames: Frames, experiment: str) -> list[str]:
    """What Table 9 averages, how much of it is here, what the whole would take, and that nothing is judged."""
    whole = _whole(experiment)
    here, settings = measured_settings(frames, whole), settings_of(whole)
    num_settings, num_rates = len(whole[settings].drop_duplicates()), len(whole[list(TUNED)].drop_duplicates())
    of_arm = here.groupby(["model", *settings], dropna=False).size()
    most = int(of_arm.max()) if len(of_arm) else 0
    found = len(here[settings].drop_duplicates())
    here_of = f"here are {found} of the settings, with at most {most} of the pairs"
    here_of = here_of if found else "here is none of them: what is shown are other settings of the same tasks"
    needed = hours(frames, whole)["hours"].sum(min_count=1)
    took = "an unknown time" if np.isnan(needed) else f"{needed:,.{0 if needed >= 100 else 1}f} hours of a device like theirs"
    return [
        f"Table 9 averages all {num_settings} settings of the tasks and takes the best of {num_rates} pairs of learning rate and "
        f"weight decay; {here_of}.",
        f"By the times of these runs the whole table of {counted(whole['model'].nunique(), 'model')} would take {took}, one seed "
        "each.",
        "In-context and noisy recall are one column there: here it is the mean of the two tasks. Differences are not judged.",
    ]


def _whole(experiment: str) -> pd.DataFrame:
    if experiment not in options("experiment"):
        raise unknown("experiment", experiment, options("experiment"))
    return whole_grid(experiment)


def cost(frames: Frames, *, whole: str) -> Table:
    """How long the runs that are there took, and how long the whole table would, by model."""
    estimated = hours(frames, _whole(whole))
    if estimated["hours"].isna().all():
        raise NoData("no run has the time of its training")
    spent = hours_of_runs(frames).rename("spent").to_frame().join(frames.runs.set_index("run_id")["model"])
    spent = spent.groupby("model")["spent"].agg(here="size", spent="sum")
    by_model = estimated.groupby("model", sort=False).agg(
        runs=("hours", "size"), known=("is_known", "sum"), hours=("hours", "sum")
    )
    data = by_model.join(spent, how="outer").reset_index(names="model")
    data = data.assign(family=data["model"].map(model_label)).fillna({"here": 0, "spent": 0.0, "runs": 0, "known": 0})
    order = [family for family, _ in arms_in_order(data, "family")]
    data = data.set_index("family").loc[order].reset_index()
    total = data[["here", "spent", "runs", "known", "hours"]].sum().to_dict() | {"family": "all"}
    rows = [_cost_row(row) for row in [*data.to_dict("records"), total]]
    header = ("model", "runs here", "hours here", "runs of the whole table", "of them measured", "hours of the whole table")
    return Table(data, header, tuple(rows), (*_machines(frames), *HOW))


HOW = (
    "Hours are those of the training itself (train_seconds).",
    "A run of the whole table is as long as the mean of such a setting of this model here, whatever its rate and seed; where "
    "there is none, its tokens (steps, batch and length) times the time a token of the same model on the same task, else of the "
    "same model, else of all: that a token costs more at another length or width is not regarded.",
)


def _cost_row(row: Mapping[str, Any]) -> tuple[Entry, ...]:
    numbers = [Entry(f"{row[key]:,.0f}", float(row[key])) for key in ("here", "runs", "known")]
    spent, whole = (Entry("–") if np.isnan(row[key]) else Entry(f"{row[key]:,.2f}", row[key]) for key in ("spent", "hours"))
    return Entry(row["family"]), numbers[0], spent, *numbers[1:], whole


def _machines(frames: Frames) -> list[str]:
    """On what the runs were made, as far as the store says."""
    told = []
    for column in ("device", "backend", "torch", "platform"):
        if column in frames.runs and len(values := sorted(map(str, frames.runs[column].dropna().unique()))):
            told.append(f"{column} {', '.join(values)}")
    models = counted(frames.runs["model"].nunique(), "model")
    is_known = SHARED_BY in frames.runs and bool(frames.runs[SHARED_BY].notna().all())
    shared = {
        True: "Of a device that several runs shared at the same time each has its part.",
        False: "Several runs that shared a device at the same time are all counted in full: they took less of it.",
    }
    return [f"Measured on runs of {models} with {'; '.join(told)}.", shared[is_known]]
