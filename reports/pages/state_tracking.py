"""State tracking (MesaNet, arXiv 2506.05233, App. I and Fig. 8): accuracy by length, and what a signed gate costs the solver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from reports.kit.arguments import Split, Task
from reports.kit.hover import remember
from reports.kit.lines import lines_of
from reports.kit.panels import row_of_panels, with_legend
from reports.kit.parts import Drawing, Entry, Frames, NoData, Table
from reports.kit.render import counted
from reports.kit.rows import BAND, of_stage, seed_summary
from reports.kit.style import arms_in_order
from reports.kit.tables import entries_by, notes_on, number, spread
from suite.metrics import METRICS, axis_label

ARM = ["arm", "model"]
DASHES = ("-", "--", "-.", ":")
"""The arms of one model, which share its colour, in their order."""


def accuracy_by_length(frames: Frames, *, task: Task, split: Split, window: int) -> Drawing:
    """Accuracy at a position by the number of tokens so far, mean over seeds and every seed, trained length marked.

    window: tokens over which a position's accuracy is averaged.
    """
    data, trained = length_scores(frames, task=task, split=split, window=window)
    figure, (axes,) = row_of_panels(1, width=7.4, height=3.6)
    drawn: list[str] = []
    for _, look, line in lines_of(data, "length"):
        (mean,) = axes.plot(
            line["length"], line["mean"], **look | {"linestyle": DASHES[drawn.count(look["color"]) % len(DASHES)]}
        )
        remember(mean, line)
        axes.plot(line["length"], line.filter(like="seed "), color=look["color"], linewidth=0.5, alpha=0.6)
        drawn.append(look["color"])
    axes.axhline(_chance(frames, task), color="#666666", linestyle=":", linewidth=1.2, label="chance")
    axes.axvline(trained, color="black", linewidth=1.0, linestyle="--", label=f"trained to {trained}")
    axes.set(xlabel="length [tokens]", ylabel=axis_label("accuracy"), ylim=(0.4, 1.03))
    axes.margins(x=0.01)
    seeds = f"n={counted(data['seeds'].max(), 'seed')}: thin lines each, thick lines their mean. "
    notes = f"{seeds}Every point is the mean over {window} lengths."
    return with_legend(data, figure, notes, better=METRICS["accuracy"].better)


def length_scores(frames: Frames, *, task: str, split: str, window: int) -> tuple[pd.DataFrame, int]:
    """One row an arm and window: length (its middle), mean, seeds, each seed's own; and the trained length."""
    rows = of_stage(frames.results, stage="test", task=task, metric="accuracy", split=split)
    if "position" not in rows or rows["position"].isna().all():
        raise NoData(f"no run has the accuracy of {task} by position (stage test)")
    rows = rows[rows["position"].notna()]
    middles = window * (rows["position"] // window) + (window + 1) / 2
    per_run = rows.assign(length=middles).groupby([*ARM, "length", "seed"])["value"].mean().reset_index()
    seeds = per_run.pivot(index=[*ARM, "length"], columns="seed", values="value").add_prefix("seed ")
    table = seeds.assign(seeds=seeds.notna().sum(axis=1), mean=seeds.mean(axis=1)).reset_index().rename_axis(columns=None)
    return table[[*ARM, "length", "seeds", "mean", *seeds]], int(rows["seq_len"].iloc[0])


def _chance(frames: Frames, task: str) -> float:
    return frames.results[(frames.results["task"] == task) & (frames.results["metric"] == "chance")]["value"].mean()


def accuracy_in_ranges(frames: Frames, *, task: Task, split: Split, edges: Sequence[int]) -> Table:
    """Model x range of lengths: the accuracy, mean over seeds, best and second best of a range not marked, as ties abound.

    edges: the last lengths of consecutive ranges, e.g. [40, 64, 128, 256].
    """
    rows, trained = length_scores(frames, task=task, split=split, window=1)
    ranges = [(low + 1, high) for low, high in zip([0, *edges], edges, strict=False)]
    tidy, table, chance = [], [], _chance(frames, task)
    for arm, model in arms_in_order(rows):
        own, entries = rows[rows["arm"] == arm], []
        for low, high in ranges:
            seeds = own[own["length"].between(low, high)].filter(like="seed ").mean()
            found = seed_summary(seeds.dropna().to_numpy(), "accuracy")
            tidy.append({"arm": arm, "model": model, **found, "low": low, "high": high, "worst": seeds.min()})
            text = number(found["mean"], "accuracy") + spread(found, digits=METRICS["accuracy"].digits, chance=chance)
            entries.append(Entry(f"{text}, worst {number(seeds.min(), 'accuracy')}", found["mean"]))
        table.append((Entry(arm), *entries))
    header = ("model", *(f"length {low} to {high}" for low, high in ranges))
    notes = [f"Trained to length {trained}.", *notes_on(frames.cells[frames.cells["task"] == task])]
    return Table(pd.DataFrame(tidy), header, tuple(table), tuple(notes))


def definiteness(frames: Frames, *, task: Task) -> Table:
    """Model x range of lengths: the smallest eigenvalue of H + Lambda at any token, and the share of tokens where it is <= 0.

    The values are over all examples, layers, heads and seeds of the stage `internals`.
    """
    rows = of_stage(frames.results, stage="internals", task=task)
    if not set(rows["metric"]) & {"smallest_eigenvalue", "indefinite"}:
        raise NoData(f"no run of {task} has the eigenvalues of H + Lambda (stage internals)")
    data = definite_by_range(rows[rows["position_low"].notna() & rows["head"].notna()])
    ranges = sorted(set(zip(data["position_low"], data["position_high"], strict=True)))

    def entry(row: Mapping[str, float], _range: tuple[float, float]) -> Entry:
        share = f"; {100 * row['indefinite']:.2g} % of tokens" if row["indefinite"] > 0 else ""
        return Entry(f"{number(row['smallest'], 'smallest_eigenvalue')}{share}", row["smallest"])

    entries, arms = dict(entries_by(data, "arm", BAND, ranges, entry)), [arm for arm, _ in arms_in_order(data)]
    titles = [f"tokens {low + 1:.0f} to {high:.0f}" if high > low + 1 else f"token {high:.0f}" for low, high in ranges]
    rows = tuple((Entry(arm), *entries[arm]) for arm in arms)
    return Table(data, ("model", *titles), rows, tuple(_verdict(data, arm) for arm in arms))


def definite_by_range(rows: pd.DataFrame) -> pd.DataFrame:
    """One row an arm and range of positions: smallest (over everything), indefinite (mean share), heads and seeds with any."""
    keys = [*ARM, *BAND]
    share = rows[rows["metric"] == "indefinite"].groupby(keys)
    some = rows[(rows["metric"] == "indefinite") & (rows["value"] > 0)].groupby(keys)
    counts = {"indefinite": share["value"].mean(), "seeds": share["seed"].nunique(), "heads": share.size()}
    counts |= {"seeds_with_any": some["seed"].nunique(), "heads_with_any": some.size()}
    smallest = rows[rows["metric"] == "smallest_eigenvalue"].groupby(keys)["value"].min().rename("smallest")
    table = smallest.to_frame().assign(**counts)
    whole = [name for name in counts if name != "indefinite"]
    return table.assign(**table[whole].fillna(0).astype(int)).reset_index()


def _verdict(data: pd.DataFrame, arm: str) -> str:
    """One sentence: whether, where and in how many heads H + Lambda is not positive definite."""
    own = data[data["arm"] == arm].sort_values("position_low")
    lost = own[own["indefinite"] > 0]
    if lost.empty:
        return f"{arm}: H + Lambda is positive definite at every token that was looked at."
    worst = lost.loc[lost["heads_with_any"].idxmax()]
    return (
        f"{arm}: H + Lambda loses its definiteness from token {lost['position_low'].iloc[0] + 1:.0f} on or later, at most in "
        f"{worst['heads_with_any']} of {worst['heads']} heads (all layers and {worst['seeds']} seeds), in "
        f"{worst['seeds_with_any']} of {worst['seeds']} seeds; there the layer's equation has no minimum."
    )
