"""Mean-so-far perplexity on long documents beside what MesaNet (arXiv 2506.05233v2) shows in Figure 4 and prints of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from reports.kit.arguments import Model, Task
from reports.kit.claims import Missing, claim
from reports.kit.hover import remember
from reports.kit.lines import banded_lines, lines_of
from reports.kit.narrow import cells_of, having, of_runs, one_arm_a_model, validation_losses
from reports.kit.panels import row_of_panels, ticks_at, with_legend
from reports.kit.parts import Drawing, Frames, NoData
from reports.kit.published import model_label, published
from reports.kit.rows import over_runs, seeds_note
from reports.kit.style import plain
from suite.metrics import axis_label

ARM = ["arm", "model"]
PLACE = ["run_id", "seed", *ARM, "text", "context", "position"]
HELD = 1.03
"""A perplexity that is no more than so many times that at the trained length has held: the paper's own for MesaNet is 0.99."""
LEAST = 16
"""The first position that is drawn: means over fewer tokens are those of whatever documents begin with."""


def perplexity_so_far(
    frames: Frames,
    *,
    task: Task,
    models: Sequence[Model],
    ours: Model,
    attention: Model,
    datasets: Sequence[str],
    missing: Missing,
) -> Drawing:
    """Left what the paper prints at three lengths, right ours by position: exp of the mean NLL so far, averaged over texts.

    Ours: the largest size and number of tokens that was evaluated, every model in the settings that validation prefers, read with
    its state carried to the longest context that all have. datasets: the texts over which the printed numbers are averaged.
    """
    printed = printed_perplexity(datasets)
    drawn, said = [printed], []
    try:
        with missing.told(frames):
            own, title, notes = so_far(frames, task=task, models=models)
    except NoData as nothing:
        said.append(f"Ours: {nothing}.")
    else:
        drawn.append(own.assign(panel=f"ours: {title}"))
        said += [_lasts(own, frames, ours, attention), *notes, seeds_note(own, "Bands")]
    figure, panels = row_of_panels(len(drawn), width=4.0, beside=1.8, height=3.4)
    for axes, data in zip(panels, drawn, strict=True):
        _lines(axes, data)
        axes.set_title(plain(data["panel"].iloc[0]))
    panels[0].set_ylabel(f"{axis_label('perplexity')}, mean so far")
    return with_legend(pd.concat(drawn, ignore_index=True), figure, *said, better="lower")


def printed_perplexity(datasets: Sequence[str]) -> pd.DataFrame:
    """By model and length the mean of Tables 10 to 12 over the data sets, of the largest size and number of tokens."""
    table = published("mesanet")
    rows = table[(table["metric"] == "perplexity") & (table["size"] == "1B") & (table["train_tokens"] == "50B")]
    rows = rows[rows["dataset"].isin(datasets)]
    means = rows.groupby(["model", "context"], as_index=False)["value"].mean()
    means = means.rename(columns={"context": "position", "value": "mean"})
    return means.assign(arm=means["model"].map(model_label), low=np.nan, high=np.nan, panel="the paper: 1B, 50B tokens")


def so_far(frames: Frames, *, task: str, models: Sequence[str]) -> tuple[pd.DataFrame, str, list[str]]:
    """`over_runs` of the perplexity so far by arm and position, averaged over texts; the cell's title, and notes."""
    runs = having(frames, stage="perplexity", task=task, metric="nll_so_far", models=models)
    cell = next(cells_of(runs))
    runs = runs[runs["run_id"].isin(cell.run_ids)]
    kept, notes = one_arm_a_model(runs, validation_losses(frames, "nll"), by="NLL on validation")
    rows = of_runs(frames, kept).results
    rows = rows[(rows["stage"] == "perplexity") & (rows["metric"] == "nll_so_far") & (rows["reading"] == "carried")]
    read_at_all = dict.fromkeys(rows["family"])
    if len(rows):
        # A context of 0 is the whole document: the documents become fewer with the position.
        arms = rows.groupby("context")["family"].nunique()
        rows = rows[rows["context"] == arms.index[arms == arms.max()].max()]
        # A result is named after its documents: those of a text that has changed are others.
        same = rows.groupby("text")["evaluation"].agg(lambda names: names.mode().iloc[0])
        rows = rows[rows["evaluation"] == rows["text"].map(same)]
    without = [family for family in read_at_all if family not in set(rows["family"])]
    notes += [f"Read to other lengths alone, or other texts, and so not drawn: {', '.join(without)}."] if without else []
    rows = rows.dropna(subset="value").assign(position=rows.get("position_high"), arm=rows.get("family"))[[*PLACE, "value"]]
    texts = rows.groupby("text")["arm"].nunique()
    texts = sorted(texts.index[texts == rows["arm"].nunique()])
    if not texts:
        raise NoData(f"no text was read with the state carried by every model of {cell.title} (stage perplexity)")
    rows = rows[rows["text"].isin(texts)]
    counts = rows.groupby(["run_id", "position"])["text"].transform("nunique")
    rows = rows[(counts == len(texts)) & (rows["position"] >= LEAST)].assign(value=lambda table: np.exp(table["value"]))
    means = rows.groupby(["run_id", "seed", *ARM, "position"], as_index=False)["value"].mean()
    read = f"read to {rows['context'].max():,.0f} tokens" if rows["context"].max() else "read whole"
    told = [f"Texts of ours, {read}: {', '.join(texts)}.", *notes]
    return over_runs(means, [*ARM, "position"], metric="perplexity"), cell.title, told


def _lines(axes: Axes, data: pd.DataFrame) -> None:
    if data["low"].notna().any() or data["position"].nunique() > 3:
        banded_lines(axes, (line[1:] for line in lines_of(data, "position", marker=0.6)))
    else:
        for _, look, line in lines_of(data, "position", marker=0.9):
            (drawn,) = axes.plot(line["position"], line["mean"], **look)
            remember(drawn, line)
        axes.set_xscale("log", base=2)
        axes.set_xlabel("position [tokens]")
    last = data["position"].max()
    ticks_at(axes, last / 4.0 ** np.arange(0, np.log2(last / data["position"].min()) / 2 + 0.01), "{:,.0f}")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.9g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _lasts(own: pd.DataFrame, frames: Frames, ours: str, attention: str) -> str:
    """Whether our perplexity at the last position is no more than at the trained length, and attention's is more."""
    trained = frames.runs.loc[frames.runs["run_id"].isin(" ".join(own["runs"]).split()), "seq_len"].max()
    ends = {}
    for arm, rows in own.groupby("model"):
        rows = rows.set_index("position").sort_index()
        at, last = rows[rows.index <= trained], rows.iloc[-1]
        if len(at) and last.name > trained:
            ends[arm] = (at.iloc[-1], last)
    if ours not in ends:
        return claim(None, f"no run of {ours} was read beyond its trained length of {trained:,.0f} tokens")
    position = ends[ours][1].name
    each = ", ".join(f"{at['arm']} {at['mean']:.2f} to {last['mean']:.2f}" for at, last in ends.values())
    because = f"from {trained:,.0f} tokens, as trained, to {position:,.0f}: {each} (held up to {HELD:g} times)"
    holds = {model: bool(last["mean"] <= HELD * at["mean"]) for model, (at, last) in ends.items()}
    if attention not in holds:
        return claim(None if holds[ours] else False, because)
    return claim(holds[ours] and not holds[attention], because)
