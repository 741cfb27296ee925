"""Perplexity on long documents: by text and length, by position, and as the mean so far, beside the transformer's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from conf.settings import Natural
from reports.kit.arguments import Metric, Model
from reports.kit.commands import suite_command
from reports.kit.intervals import Interval, student_t
from reports.kit.lines import banded_lines, lines_of
from reports.kit.panels import row_of_panels, with_legend, zero_line
from reports.kit.parts import Drawing, Entry, Frames, NoData, Table
from reports.kit.render import counted
from reports.kit.rows import BAND, bands_note, by_metric, measured, position_differences, seeds_note, unpaired_note
from reports.kit.style import arms_in_order, line_style
from reports.kit.tables import entries_by, number, opened
from suite.metrics import METRICS, axis_label

STAGE = "perplexity"
FEWEST_TOKENS = 100
"""Tokens of all documents together in a range of positions whose band an axis is to hold."""
SO_FAR = "nll_so_far"
PART = ["text", "reading", "context", "stride"]
"""What a stage is of; only sliding windows have a stride."""
Reading = Literal["reset", "sliding", "carried"]


class Crossing(NamedTuple):
    """Where the baseline's cache of keys and values outgrows the state of an arm."""

    arm: str
    model: str
    position: float


def difference_by_position(
    frames: Frames, *, baseline: Model, reading: Reading, context: Natural, metric: Metric = "nll"
) -> Drawing:
    """NLL of every arm less the baseline's on the same documents, by position, with bands over documents; a panel a text.

    metric: nll, of the tokens in a range of positions, or nll_so_far, of all up to its end. A dotted line stands where the
    baseline's cache of keys and values outgrows the state of the model of its colour.
    """
    rows = _rows(frames.examples, metric, reading, context, whole=False)
    is_baseline = rows["model"] == baseline
    # A result is named after its documents: those of a text that has changed are others.
    on = ["size", "data", "text", "evaluation"]
    if rows[is_baseline].groupby(on, dropna=False)["arm"].nunique().max() > 1:
        raise NoData(f"more than one {baseline} of the same size: which is the baseline?")
    done = f"the baseline {baseline}, read so (stage {STAGE})"
    data = _at_end(position_differences(rows, is_baseline, ["text", "arm", "model"], on=on, done=done), metric)
    states = _rows(frames.results, "state_bytes", reading, context, whole=False)
    texts = list(dict.fromkeys(data["text"]))
    figure, panels = row_of_panels(len(texts), width=4.6, beside=1.8, height=3.5)
    notes = [f"Below zero: better than {baseline}. {bands_note(data)}", *unpaired_note(rows, data, baseline)]
    for axes, text in zip(panels, texts, strict=True):
        own, found = data[data["text"] == text], list(crossings(states[states["text"] == text], baseline))
        zero_line(axes)
        banded_lines(axes, (line[1:] for line in lines_of(own, "position", marker=0.75)))
        axes.set(title=text, ylabel=f"{axis_label(metric)}, difference to {baseline}")
        notes += _to_what_is_known(axes, own, metric)
        notes += _crossing_lines(axes, [each for each in found if each.arm in set(own["arm"])], baseline, text)
        _trained_length(axes, frames)
    return with_legend(data, figure, *notes, better=METRICS[metric].better)


def so_far(frames: Frames, *, baseline: Model, reading: Reading, context: Natural) -> Drawing:
    """The mean NLL of all tokens up to a position, one line an arm: the mean over runs, with the interval over seeds.

    Of documents of different lengths a position has those that reach it. A dotted line is as in `difference_by_position`.
    """
    rows = _rows(frames.results, SO_FAR, reading, context, whole=False)
    data = _at_end(by_metric({SO_FAR: rows}, ["text", "arm", "model", *BAND]), SO_FAR)
    states = _rows(frames.results, "state_bytes", reading, context, whole=False)
    texts, notes = list(dict.fromkeys(data["text"])), [seeds_note(data, "Bands"), *_lines_of_other_documents(rows)]
    figure, panels = row_of_panels(len(texts), width=4.6, beside=1.8, height=3.5)
    for axes, text in zip(panels, texts, strict=True):
        banded_lines(axes, (line[1:] for line in lines_of(data[data["text"] == text], "position", marker=0.75)))
        axes.set(title=text, ylabel=axis_label(SO_FAR))
        notes += _crossing_lines(axes, list(crossings(states[states["text"] == text], baseline)), baseline, text)
        _trained_length(axes, frames)
    return with_legend(data, figure, *notes, better=METRICS[SO_FAR].better)


def _rows(frame: pd.DataFrame, metric: str, reading: str, context: int, *, whole: bool) -> pd.DataFrame:
    """The rows of documents that were read so. Raises NoData with the command that measures it."""
    asked = [f"eval={STAGE}", f"eval.contexts=[{context}]", f"eval.readings=[{reading}]"]
    missing = f"it is measured by: {suite_command('evaluate', ['run=all', *asked])}"
    if frame.empty or STAGE not in set(frame["stage"]):
        raise NoData(f"no run has {metric} (stage {STAGE}); {missing}")
    rows = measured(frame, stage=STAGE, metric=metric, whole=whole)
    rows = rows[(rows["reading"] == reading) & (rows["context"] == context)]
    if rows.empty:
        raise NoData(f"no run has {metric} of {_words(reading, context)} (stage {STAGE}); {missing}")
    return rows


def _words(reading: str, context: float) -> str:
    """How documents were read: "2,048 tokens, carried", "whole documents"."""
    return f"{context:,.0f} tokens, {reading}" if context else "whole documents"


def _to_what_is_known(axes: Axes, own: pd.DataFrame, metric: str) -> list[str]:
    """Lets the axis hold the bands of FEWEST_TOKENS and more: those of the first few tokens would flatten all others."""
    low, high = own["position_low"] * (metric != SO_FAR), own["position_high"]
    known = own[own["windows"] * (high - low) >= FEWEST_TOKENS]
    if known.empty or len(known) == len(own):
        return []
    ends = min(0.0, known[["low", "mean"]].min(axis=None)), max(0.0, known[["high", "mean"]].max(axis=None))
    margin = 0.15 * (ends[1] - ends[0])
    axes.set_ylim(ends[0] - margin, ends[1] + margin)
    return [f"The axis holds what rests on {FEWEST_TOKENS} tokens and more; lines and bands of the first positions go beyond it."]


def _at_end(data: pd.DataFrame, metric: str) -> pd.DataFrame:
    """With the end of a range as `position` for what is counted up to there."""
    return data.assign(position=data["position_high"]) if metric == SO_FAR else data


def crossings(states: pd.DataFrame, baseline: str) -> Iterator[Crossing]:
    """The position from which on the baseline holds more bytes than an arm, of every arm for which there is one.

    states: rows of state_bytes at the ends of ranges of positions. Between two of them bytes grow evenly; a state that has
    stopped growing is compared as it is.
    """
    by_arm = states.pivot_table(index="position_high", columns="arm", values="value").sort_index().dropna()
    models = dict(states[["arm", "model"]].drop_duplicates().itertuples(index=False, name=None))
    full = next((arm for arm in by_arm if models[arm] == baseline), None)
    if full is None or len(by_arm) < 2:
        return
    # Before the first token nobody holds anything that grows.
    ends, cache = (np.concatenate([[0.0], each.to_numpy(dtype=float)]) for each in (by_arm.index, by_arm[full]))
    for arm, model in arms_in_order(states):
        if model == baseline or arm not in by_arm:
            continue
        held = np.concatenate([[0.0], by_arm[arm].to_numpy(dtype=float)])
        if not (cache > held).any():
            continue
        if held[-1] == held[-2]:
            yield Crossing(arm, model, float(np.interp(held[-1], cache, ends)))
            continue
        i = int((cache > held).argmax())
        more = cache[i - 1 : i + 1] - held[i - 1 : i + 1]
        yield Crossing(arm, model, float(np.interp(0.0, more, ends[i - 1 : i + 1])))


def _crossing_lines(axes: Axes, found: list[Crossing], baseline: str, text: str) -> list[str]:
    """Draws them; returns the sentence that says where they stand."""
    low, high = axes.get_xlim()
    shown = [each for each in found if low <= each.position <= high]
    for each in shown:
        look = line_style(each.model)
        axes.axvline(each.position, color=look["color"], linestyle=":", linewidth=1.2, zorder=1.2)
    if shown:
        axes.plot([], [], ":", color="#666666", linewidth=1.2, label=f"cache of {baseline} > state")
    places = ", ".join(f"{each.position:,.0f} tokens ({each.arm})" for each in shown)
    return [f"{text}: dotted is where the cache of {baseline} outgrows a state, {places}."] if shown else []


def _trained_length(axes: Axes, frames: Frames) -> None:
    """Marks it where all runs have one and it lies within the frame."""
    lengths = frames.runs["seq_len"].dropna().unique() if "seq_len" in frames.runs else []
    low, high = axes.get_xlim()
    if len(lengths) == 1 and low <= lengths[0] <= high:
        axes.axvline(lengths[0], color="black", linewidth=1.0, linestyle="--", label="trained length", zorder=1.2)


def perplexities(frames: Frames) -> Table:
    """Perplexity by text and length read: one row an arm, in brackets the 95 % interval over documents.

    Seeds are averaged in the NLL of each document; a token counts alike, in whichever document it stands.
    """
    if frames.examples.empty or STAGE not in set(frames.examples["stage"]):
        raise NoData(f"no run has perplexity (stage {STAGE}); it is measured by: {suite_command('evaluate', _ALL)}")
    nll, tokens = (measured(frames.examples, stage=STAGE, metric=each, whole=True) for each in ("nll", "scored_tokens"))
    part = [name for name in PART if name in nll]
    data = pd.DataFrame(_of_documents(nll, tokens, part))
    # Whole documents, whose context is 0, behind what is shorter.
    longest_last = data.drop_duplicates("column").replace({"context": {0: np.inf}}).sort_values(part, kind="stable")
    columns = longest_last["column"].tolist()
    rows = []
    for arm, _ in arms_in_order(data):
        ((_, entries),) = entries_by(data[data["arm"] == arm], "arm", "column", columns, lambda row, _: _entry(row))
        rows.append((Entry(arm), *entries))
    documents = data.groupby("column")["documents"].max()
    counts = "; ".join(f"{counted(documents[column], 'document')} of {column}" for column in columns)
    notes = [f"In brackets the 95 % t interval over documents, seeds averaged: {counts}."]
    notes += [*_other_documents(data), *_short(frames), *_failed(frames)]
    return Table(data, ("model", *columns), tuple(rows), tuple(notes))


_ALL = ["run=all", f"eval={STAGE}"]


def _of_documents(nll: pd.DataFrame, tokens: pd.DataFrame, part: list[str]) -> Iterator[dict[str, Any]]:
    """One row an arm and part: the perplexity and its interval over documents."""
    keys = ["arm", "model", *part]
    # A merge finds the stride of what has none, NaN, which a lookup does not.
    told = nll.merge(tokens[["run_id", *part, "example", "value"]], on=["run_id", *part, "example"], suffixes=("", "_tokens"))
    for key, own in told.groupby(keys, sort=False, dropna=False):
        # A result is named after its documents, and seeds of an arm may have been evaluated before and after the text changed.
        of_runs = own.groupby("evaluation")["run_id"].nunique()
        left_out = ", ".join(own.loc[own["evaluation"] != of_runs.idxmax(), "run_id"].astype(str).unique())
        own = own[own["evaluation"] == of_runs.idxmax()]
        means = own.groupby("example")[["value", "value_tokens"]].mean()
        each = means["value"]
        found = mean_of_documents(each.to_numpy(), means["value_tokens"].to_numpy())
        row = dict(zip(keys, key, strict=True))
        ends = dict(zip(("mean", "low", "high"), np.exp(found), strict=True))
        runs = " ".join(dict.fromkeys(own["run_id"].astype(str)))
        whose = {"evaluation": of_runs.idxmax(), "left_out": left_out, "runs": runs}
        yield row | {"metric": "perplexity", **ends, "documents": len(each), "column": _column(row), **whose}


def mean_of_documents(nll: np.ndarray, tokens: np.ndarray) -> Interval:
    """The mean NLL of all tokens of documents [D], and its 95 % t interval over documents; none (NaN) for a single one.

    The mean is a ratio of sums over documents, whose standard error is that of how far each moves it (linearised).
    """
    mean = float((nll * tokens).sum() / tokens.sum())
    count = len(nll)
    if count < 2:
        return Interval(mean, np.nan, np.nan)
    moves = tokens * (nll - mean) / tokens.mean()
    half = float(student_t(count - 1)) * float(np.sqrt((moves**2).sum() / (count * (count - 1))))
    return Interval(mean, mean - half, mean + half)


def _column(row: Mapping[str, Any]) -> str:
    stride = f" by {row['stride']:,.0f}" if row.get("stride", np.nan) > 0 else ""
    return f"{row['text']}, {_words(row['reading'], row['context'])}{stride}"


def _entry(row: Mapping[str, Any]) -> Entry:
    low, high = (number(row[end], "perplexity") for end in ("low", "high"))
    interval = "" if np.isnan(row["low"]) else f" [{low}, {high}]"
    return Entry(number(row["mean"], "perplexity") + interval, row["mean"], runs=opened(row))


def _lines_of_other_documents(rows: pd.DataFrame) -> Iterator[str]:
    """Which arms have runs that read other documents of a text than most: a result is named after its documents."""
    runs = rows.drop_duplicates(["text", "run_id", "evaluation"])
    for text, own in runs.groupby("text", sort=False):
        others = own.loc[own["evaluation"] != own["evaluation"].mode().iloc[0], "arm"].unique()
        if len(others):
            yield f"{text}: not of the same documents as the others, which can't be compared: {', '.join(others)}."


def _other_documents(data: pd.DataFrame) -> Iterator[str]:
    """Whose values are of other documents than the rest of a column: the text, or eval.study_tokens, was changed in between."""
    for column, own in data.groupby("column", sort=False):
        others = own[own["evaluation"] != own["evaluation"].mode().iloc[0]]
        if len(others):
            told = ", ".join(f"{row.arm} ({counted(row.documents, 'document')})" for row in others.itertuples())
            yield f"{column}: not of the same documents as the others, which can't be compared: {told}."
    for row in data[data["left_out"] != ""].itertuples():
        yield f"{row.arm}, {row.column}: without {row.left_out}, which read other documents than the other seeds."


def _short(frames: Frames) -> Iterator[str]:
    """Which texts have documents that are shorter than was asked for, and are left out."""
    rows = measured(frames.results, stage=STAGE, metric="short_documents", whole=True)
    place = ["text", "reading", "context"]
    for row in rows[rows["value"] > 0].drop_duplicates(place).sort_values(place).to_dict("records"):
        told = f"{row['value']:,.0f} of {counted(row['count'], 'document')} left out, for having fewer tokens"
        yield f"{row['text']}, {_words(row['reading'], row['context'])}: {told}."


def _failed(frames: Frames) -> Iterator[str]:
    """Why a run lacks one of its texts."""
    for cell in frames.cells.drop_duplicates("run_id").to_dict("records"):
        if str(cell.get("reason") or "").startswith(f"{STAGE} "):
            yield f"{cell['arm']}, seed {cell['seed']}: {cell['reason']}."
