"""In-context regression: the error of every answer in a sequence, beside the best that can be answered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import StrMethodFormatter

from reports.kit.arguments import Metric, Task
from reports.kit.chosen import at_preferred, validated
from reports.kit.lines import banded_lines, lines_of
from reports.kit.marks import marks, marks_notes
from reports.kit.narrow import task_setting
from reports.kit.panels import row_of_panels, with_legend
from reports.kit.parts import Drawing, Entry, Frames, NoData, Table
from reports.kit.render import counted
from reports.kit.rows import over_runs
from reports.kit.style import arms_in_order
from reports.kit.tables import Column, entries_by, notes_on, scored_cells, spread
from suite.metrics import METRICS, axis_label

VARIANT = ["task.noise", "task.drift", "task.segment_len", "task.restarts_told"]
LINE = [*VARIANT, "metric", "family", "model"]
# Wide and pale, below everything: black is the transformer's.
EXACT = {"color": "#b8b8b8", "zorder": 1.5, "solid_capstyle": "butt"}
OP = {"color": "black", "markerfacecolor": "none", "linestyle": "none"}
REFERENCES = {
    "ridge_error": EXACT | {"linewidth": 4.0, "label": "ridge regression, exact"},
    "bayes_error": EXACT | {"linewidth": 2.5, "linestyle": (0, (2, 1)), "label": "best answer (Kalman)"},
    "operator_error": OP | {"marker": "o", "markersize": 5, "label": "Mesa op itself, told where W is redrawn"},
    "forgetting_error": OP | {"marker": "x", "markersize": 4.5, "label": "Mesa op itself, told nothing"},
    "floored_error": OP | {"marker": "+", "markersize": 6, "label": "Mesa op itself, at the layer's Lambda floor"},
}
DECAYS = {"operator_decay": "told", "forgetting_decay": "told nothing", "floored_decay": "at the floor"}
MARKED_POSITIONS = 12
"""Marks of the op along a curve: enough to see that it follows, few enough to see the curve."""


def error_by_position(frames: Frames, *, task: Task) -> Drawing:
    """Squared error by position, a panel a variant: models with 95 % t bands over seeds, ridge regression, and the op."""
    chosen, told = _chosen(frames, task)
    data = errors(chosen, task=task)
    variants = variants_of(data)
    figure, panels = row_of_panels(len(variants), width=3.3, beside=2.4, height=3.9, sharey=True)
    for axes, (title, shown) in zip(panels, variants.items(), strict=True):
        models = lines_of(shown[shown["metric"] == "squared_error"], "position", "family")
        thin = ((look | {"linewidth": 0.8 * look["linewidth"]}, line) for _, look, line in models)
        banded_lines(axes, thin)
        _reference_lines(axes, shown)
        axes.set(title=title, xlabel="pairs seen", xscale="linear", yscale="log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))
        axes.margins(x=0.01)
    panels[0].set_ylabel(axis_label("squared_error"))
    lines = f"n={counted(data['seeds'].max(), 'seed')}: lines are means, bands 95 % t intervals."
    notes = f"{lines} The op is not trained: its keys are the inputs.", *_decays(chosen, task), *told
    return with_legend(data, figure, *notes, better=METRICS["squared_error"].better)


def _chosen(frames: Frames, task: str) -> tuple[pd.DataFrame, list[str]]:
    """The results of every model at those TUNED settings that validation prefers, and what was chosen of several.

    Raises NoData where runs of a model differ in anything else but the variant, and models in how their task is set.
    """
    column = Column(metric="squared_error", task=task, stage="test", split="test")
    cells = scored_cells(frames, column).dropna(subset="value")
    cells = cells.reindex(columns=[*cells, *(name for name in VARIANT if name not in cells)])
    numbers = {name: pd.to_numeric(cells[name], errors="coerce") for name in VARIANT[:-1]}
    cells = cells.assign(**numbers, **{VARIANT[-1]: cells[VARIANT[-1]].eq(True)})
    if cells.empty:
        return frames.results, []
    kept = at_preferred(cells, [*VARIANT, "family"], validated(frames, column))
    ways = task_setting(kept).groupby([kept[name] for name in VARIANT], dropna=False).nunique()
    if (ways > 1).any():
        title = variant_title(*ways.index[ways > 1][0])
        raise NoData(f"models are compared on tasks that are set otherwise, {title}: which of them is asked for?")
    said = [f"{row['family']}, {variant_title(*(row[name] for name in VARIANT))}: {row['chosen']}" for row in _told(kept)]
    notes = [f"Chosen on validation: {'; '.join(dict.fromkeys(said))}."] if said else []
    others = frames.results["task"] != task
    return frames.results[others | frames.results["run_id"].isin(kept["run_id"])], notes


def _told(kept: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in kept[kept["chosen"] != ""].to_dict("records")]


def errors(results: pd.DataFrame, *, task: str) -> pd.DataFrame:
    """One row a variant, position and line, a model's or a reference's (REFERENCES): mean, low, high, seeds."""
    rows = _test_rows(results, task)
    table = _over_seeds(rows[rows["position"].notna()], [*LINE, "position"])
    return table[[*LINE, "position", "mean", "low", "high", "seeds", "runs"]]


def _over_seeds(rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """`over_runs` of the models' errors and of the references', whose family is their metric; n is `seeds` too."""
    own = rows["metric"] == "squared_error"
    rows = rows.assign(family=rows["family"].where(own, rows["metric"]), model=rows["model"].where(own, ""))
    # A reference is the same whichever model's run it stands beside.
    rows = rows[own | rows["metric"].isin(REFERENCES)].drop_duplicates([*VARIANT, "family", "seed", "position"])
    table = over_runs(rows, keys, metric="squared_error").sort_values(keys, ignore_index=True)
    return table.assign(seeds=table["n"])


def _test_rows(results: pd.DataFrame, task: str) -> pd.DataFrame:
    rows = results[(results["task"] == task) & results["stage"].isin(("test", "least_squares"))]
    if rows.empty or "position" not in rows:
        raise NoData(f"no run has the squared error of {task} by position (stage test)")
    # A setting that is null in all of the store's runs may have no column, and neither has one that is younger than they are.
    rows = rows.reindex(columns=[*rows.columns.union(VARIANT, sort=False)])
    return rows.assign(**{"task.restarts_told": rows["task.restarts_told"].eq(True)})


def variants_of(data: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of every variant under its title: what stays first, then what drifts, then what is redrawn."""
    groups = {key: group for key, group in data.groupby(VARIANT, dropna=False)}
    ordered = sorted(groups, key=lambda key: (not np.isnan(key[2]), key[1], key[0], key[3]))
    return {variant_title(*key): groups[key] for key in ordered}


def variant_title(noise: float, drift: float, segment_len: float, restarts_told: bool) -> str:
    """The targets in words: "constant W, noise 0.5"."""
    what = "constant W" if np.isnan(segment_len) else f"W redrawn every {segment_len:g}{' and told' if restarts_told else ''}"
    if drift > 0:
        what = f"W drifts by {drift:g}" if np.isnan(segment_len) else f"{what}, drifting by {drift:g}"
    return f"{what}, noise {noise:g}"


def _reference_lines(axes: Axes, data: pd.DataFrame) -> None:
    drawn: dict[bool, list[pd.Series]] = {True: [], False: []}
    for metric, look in REFERENCES.items():
        line, alike = data[data["metric"] == metric].sort_values("position"), drawn["marker" in look]
        # Where nothing is redrawn there is nothing to be told, and two of them are one.
        if line.empty or any(np.allclose(line["mean"], other, rtol=1e-6) for other in alike):
            continue
        alike.append(line["mean"])
        shown = line.iloc[:: max(1, len(line) // MARKED_POSITIONS)] if "marker" in look else line
        axes.plot(shown["position"], shown["mean"], **look)


def _decays(results: pd.DataFrame, task: str) -> list[str]:
    """The gammas of the op, by variant."""
    rows = _test_rows(results, task)
    rows = rows[rows["metric"].isin(DECAYS)].drop_duplicates([*VARIANT, "metric", "seed"])
    notes = []
    for title, group in variants_of(rows).items():
        values = {what: sorted(group[group["metric"] == metric]["value"].unique()) for metric, what in DECAYS.items()}
        gammas = "; ".join(f"{what} {', '.join(f'{gamma:g}' for gamma in each)}" for what, each in values.items())
        notes.append(f"{title}: gamma of the op, chosen on validation: {gammas}.")
    return notes


def error_over_ridge(frames: Frames, *, task: Task, reference: Metric) -> Table:
    """Model x variant: the squared error over the last quarter of a sequence, as a multiple of the reference's.

    reference: the metric whose error is 1, `ridge_error` or `bayes_error`. Mean over seeds, best and second best marked.
    """
    chosen, told = _chosen(frames, task)
    data = ratios(chosen, task=task, reference=reference)
    named = data.assign(title=[variant_title(*key) for key in data[VARIANT].itertuples(index=False)])
    models = named[named["metric"] == "squared_error"]
    compared = models.assign(arm=models["family"] + models["title"])
    marked = marks(compared, "squared_error", within="title")

    def entry(row: Mapping[str, object], title: str) -> Entry:
        """The mean, its interval when there is one, and the seeds where others have more."""
        seeds = f" (n={row['seeds']})" if row["seeds"] < data["seeds"].max() else ""
        mark = marked.get(row["family"] + title, "")
        return Entry(f"{row['mean']:.3f}{spread(row, digits=3)}{seeds}", row["mean"], mark)

    variants = list(variants_of(data))
    found = dict(entries_by(named, "family", "title", variants, entry, "not measured"))
    lines = {family: family for family, _ in arms_in_order(models, "family")}
    lines |= {metric: METRICS[metric].label for metric in REFERENCES if metric in found and metric != reference}
    rows = tuple((Entry(label), *found[family]) for family, label in lines.items())
    notes = (f"1 is the {METRICS[reference].label}.", *notes_on(frames.cells[frames.cells["task"] == task]))
    notes += tuple(marks_notes([(METRICS["squared_error"].label, compared, "squared_error")], within="title"))
    return Table(data, ("model", *variants), rows, (*notes, *told))


def ratios(results: pd.DataFrame, *, task: str, reference: str) -> pd.DataFrame:
    """One row a variant and line: the `seed_summary` and seeds of the last quarter's error over the reference's."""
    rows = _test_rows(results, task)
    last = rows["position_high"] == rows["seq_len"]
    rows = rows[last & (rows["position_low"] == rows["seq_len"] - rows["seq_len"] // 4)]
    known = rows[rows["metric"] == reference].drop_duplicates([*VARIANT, "seed"])[[*VARIANT, "seed", "value"]]
    rows = rows.merge(known, on=[*VARIANT, "seed"], suffixes=("", "_known"))
    return _over_seeds(rows.assign(value=rows["value"] / rows["value_known"]), LINE).drop(columns="worst")
