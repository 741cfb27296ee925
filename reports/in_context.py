"""In-context regression: the error of every answer in a sequence, beside the best that can be answered."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import StrMethodFormatter

from reports.parts import Cell, Drawing, Frames, NoData, Table
from reports.statistics import seed_interval
from reports.study import seed_summary, spread
from reports.style import families_in_order, line_style, new_figure, plain, shared_legend, style_of
from reports.tables import notes_on
from suite.metrics import METRICS, axis_label

VARIANT = ["noise", "drift", "segment_len"]
REFERENCES = ("ridge_error", "bayes_error", "operator_error", "forgetting_error", "floored_error")
OP_MARKS = {
    "operator_error": {"marker": "o", "markersize": 5, "label": "Mesa op itself, told where W is redrawn"},
    "forgetting_error": {"marker": "x", "markersize": 4.5, "label": "Mesa op itself, told nothing"},
    "floored_error": {"marker": "+", "markersize": 6, "label": "Mesa op itself, at the layer's Lambda floor"},
}
DECAYS = {"operator_decay": "told", "forgetting_decay": "told nothing", "floored_decay": "at the floor"}
MARKED_POSITIONS = 12
"""Marks of the op along a curve: enough to see that it follows, few enough to see the curve."""


def error_by_position(frames: Frames, *, task: str) -> Drawing:
    """Squared error by position, a panel a variant: models with 95 % t bands over seeds, ridge regression, and the op."""
    data = errors(frames.results, task=task)
    variants = variants_of(data)
    figure = new_figure(2.4 + 3.3 * len(variants), 3.9)
    panels = figure.subplots(1, len(variants), sharey=True, squeeze=False)[0]
    for axes, (title, shown) in zip(panels, variants.items(), strict=True):
        _model_lines(axes, shown)
        _reference_lines(axes, shown)
        axes.set(title=title, xlabel="pairs seen", yscale="log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))
        axes.margins(x=0.01)
    figure.axes[0].set_ylabel(axis_label("squared_error"))
    shared_legend(figure)
    notes = [
        f"n={data['seeds'].max()} seeds: lines are means, bands 95 % t intervals. The op is not trained: its keys are the inputs."
    ]
    return Drawing(data, figure, (*notes, *_decays(frames.results, task)))


def errors(results: pd.DataFrame, *, task: str) -> pd.DataFrame:
    """One row a variant, position and line, a model's or a reference's (REFERENCES): mean, low, high, seeds."""
    rows = _test_rows(results, task)
    rows = rows[rows["position"].notna() & rows["metric"].isin(("squared_error", *REFERENCES))]
    rows = rows.assign(family=rows["family"].where(rows["metric"] == "squared_error", rows["metric"]))
    rows["model"] = rows["model"].where(rows["metric"] == "squared_error", "")
    # A reference is the same whichever model's run it stands beside.
    rows = rows.drop_duplicates([*VARIANT, "family", "seed", "position"])
    grouped = rows.groupby([*VARIANT, "metric", "family", "model", "position"], dropna=False)["value"]
    table = grouped.apply(lambda values: pd.Series(seed_interval(values.to_numpy(), "squared_error")._asdict())).unstack()
    return table.reset_index().merge(
        grouped.size().rename("seeds").reset_index(), on=[*VARIANT, "metric", "family", "model", "position"]
    )


def _test_rows(results: pd.DataFrame, task: str) -> pd.DataFrame:
    rows = results[(results["task"] == task) & results["stage"].isin(("test", "least_squares"))]
    if rows.empty or "position" not in rows:
        raise NoData(f"no run has the squared error of {task} by position (stage test)")
    return rows


def variants_of(data: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of every variant under its title: what stays first, then what drifts, then what is redrawn."""
    groups = {key: group for key, group in data.groupby(VARIANT, dropna=False)}
    ordered = sorted(groups, key=lambda key: (not np.isnan(key[2]), key[1], key[0]))
    return {variant_title(*key): groups[key] for key in ordered}


def variant_title(noise: float, drift: float, segment_len: float) -> str:
    """The targets in words: "constant W, noise 0.5"."""
    what = f"W redrawn every {segment_len:g}" if not np.isnan(segment_len) else "constant W"
    if drift > 0:
        what = f"W drifts by {drift:g}" if np.isnan(segment_len) else f"{what}, drifting by {drift:g}"
    return f"{what}, noise {noise:g}"


def _model_lines(axes: Axes, data: pd.DataFrame) -> None:
    models = data[data["metric"] == "squared_error"]
    for family, model in families_in_order(models):
        line = models[models["family"] == family].sort_values("position")
        style = line_style(model) | {"linewidth": 0.8 * style_of(model).width}
        axes.plot(line["position"], line["mean"], label=plain(family), **style)
        axes.fill_between(line["position"], line["low"], line["high"], color=style_of(model).color, alpha=0.12, linewidth=0)


def _reference_lines(axes: Axes, data: pd.DataFrame) -> None:
    lines = {metric: data[data["metric"] == metric].sort_values("position") for metric in REFERENCES}
    ridge, bayes = lines["ridge_error"], lines["bayes_error"]
    # Wide and pale, below everything: black is the transformer's.
    look = {"color": "#b8b8b8", "linewidth": 4.0, "zorder": 1.5, "solid_capstyle": "butt"}
    axes.plot(ridge["position"], ridge["mean"], label="ridge regression, exact", **look)
    if not np.allclose(ridge["mean"], bayes["mean"], rtol=1e-6):
        look |= {"linewidth": 2.5, "linestyle": (0, (2, 1))}
        axes.plot(bayes["position"], bayes["mean"], label="best answer (Kalman)", **look)
    drawn: list[np.ndarray] = []
    for metric, look in OP_MARKS.items():
        line = lines[metric]
        # Where nothing is redrawn there is nothing to be told, and two of them are one.
        if line.empty or any(np.allclose(line["mean"], other, rtol=1e-6) for other in drawn):
            continue
        drawn.append(line["mean"].to_numpy())
        marked = line.iloc[:: max(1, len(line) // MARKED_POSITIONS)]
        axes.plot(marked["position"], marked["mean"], linestyle="none", color="black", markerfacecolor="none", **look)


def _decays(results: pd.DataFrame, task: str) -> list[str]:
    """The gammas of the op, by variant."""
    rows = _test_rows(results, task)
    rows = rows[rows["metric"].isin(DECAYS)].drop_duplicates([*VARIANT, "metric", "seed"])
    notes = []
    for title, group in variants_of(rows).items():
        gammas = [
            f"{what} {', '.join(f'{gamma:g}' for gamma in sorted(group[group['metric'] == metric]['value'].unique()))}"
            for metric, what in DECAYS.items()
        ]
        notes.append(f"{title}: gamma of the op, chosen on validation: {'; '.join(gammas)}.")
    return notes


def error_over_ridge(frames: Frames, *, task: str, reference: str) -> Table:
    """Model x variant: the squared error over the last quarter of a sequence, as a multiple of the reference's.

    reference: the metric whose error is 1, `ridge_error` or `bayes_error`. Mean over seeds, best and second best marked.
    """
    data = ratios(frames.results, task=task, reference=reference)
    variants = variants_of(data)
    marked = {title: _marks(group[group["metric"] == "squared_error"]) for title, group in variants.items()}
    lines = [(family, model, "squared_error") for family, model in families_in_order(data[data["metric"] == "squared_error"])]
    lines += [(metric, "", metric) for metric in REFERENCES if metric in set(data["metric"]) and metric != reference]
    rows = []
    for family, _, metric in lines:
        label = family if metric == "squared_error" else METRICS[metric].label
        cells = [
            _ratio_cell(group[group["family"] == family], marked[title].get(family, ""), data["seeds"].max())
            for title, group in variants.items()
        ]
        rows.append((Cell(label), *cells))
    notes = [f"1 is the {METRICS[reference].label}.", *notes_on(frames.cells[frames.cells["task"] == task])]
    return Table(data, ("model", *variants), tuple(rows), tuple(notes))


def ratios(results: pd.DataFrame, *, task: str, reference: str) -> pd.DataFrame:
    """One row a variant and line: the `seed_summary` and seeds of the last quarter's error over the reference's."""
    rows = _test_rows(results, task)
    last = rows["position_high"] == rows["seq_len"]
    rows = rows[last & (rows["position_low"] == rows["seq_len"] - rows["seq_len"] // 4)]
    known = rows[rows["metric"] == reference].drop_duplicates([*VARIANT, "seed"])[[*VARIANT, "seed", "value"]]
    rows = rows[rows["metric"].isin(("squared_error", *REFERENCES))].merge(known, on=[*VARIANT, "seed"], suffixes=("", "_known"))
    rows["family"] = rows["family"].where(rows["metric"] == "squared_error", rows["metric"])
    rows["model"] = rows["model"].where(rows["metric"] == "squared_error", "")
    rows = rows.drop_duplicates([*VARIANT, "family", "seed"])
    rows["ratio"] = rows["value"] / rows["value_known"]
    found = []
    for key, group in rows.groupby([*VARIANT, "metric", "family", "model"], dropna=False):
        names = dict(zip([*VARIANT, "metric", "family", "model"], key, strict=True))
        found.append(names | seed_summary(group["ratio"].to_numpy(), "squared_error") | {"seeds": len(group)})
    return pd.DataFrame(found)


def _marks(group: pd.DataFrame) -> Mapping[str, str]:
    """The families with the smallest and second smallest ratio, compared as printed."""
    means = group.set_index("family")["mean"].round(3)
    ranked = np.sort(means.unique())[:2]
    return {family: "best" if mean == ranked[0] else "second" for family, mean in means.items() if mean in ranked}


def _ratio_cell(rows: pd.DataFrame, mark: str, most: int) -> Cell:
    """The mean, its interval when there is one, and the seeds where others have more, `most`."""
    if rows.empty:
        return Cell("not measured")
    row = rows.iloc[0]
    seeds = f" (n={row['seeds']})" if row["seeds"] < most else ""
    return Cell(f"{row['mean']:.3f}{spread(row, digits=3)}{seeds}", row["mean"], mark)
