"""Loss by position less that of the transformer, a panel a size and length of training (Figs. 3 and 10 to 12 of MesaNet)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from reports.kit.arguments import Model, Split
from reports.kit.claims import Missing, claim, majority
from reports.kit.lines import banded_lines, enlarged_range, lines_of
from reports.kit.narrow import Cell, cells_of, having, of_runs, one_arm_a_model, task_setting, validation_losses
from reports.kit.panels import row_of_panels, ticks_at, with_legend, zero_line
from reports.kit.parts import Drawing, Frames, NoData
from reports.kit.rows import BAND, bands_note, measured, position_differences
from reports.kit.style import plain
from suite.metrics import METRICS, axis_label

EARLY, LATE = 64, 512
"""The positions of the paper's claim: up to the one most RNNs are ahead, and beyond the other Mesa still is."""
MOST = 6
"""Cells that are compared at the most: the paper has as many."""
KEEPS_ON = ("mesanet", "hawk_mesa")
"""The models that the paper finds ahead beyond LATE, at its largest size and number of tokens."""


def nll_difference(
    frames: Frames,
    *,
    split: Split,
    baseline: Model,
    models: Sequence[Model],
    windows: Sequence[Model],
    so_far: bool,
    scales: Sequence[Literal["linear", "log"]],
    most: int,
    missing: Missing,
) -> Drawing:
    """NLL of the models less the baseline's by position, on each of the scales, of the `most` largest cells of the store.

    A model has one line a cell: the settings that validation prefers. windows: models that see no further back, which do not
    decide the frame. most: up to MOST. so_far: the mean over a position and all before it.
    """
    with missing.told(frames):
        data, cells, notes = cell_differences(frames, split, baseline, tuple(models), so_far)
    # A row of panels a number of tokens, as far as they fill it.
    cells = sorted(cells[:most], key=lambda cell: cell.place, reverse=True)
    data = data[data["cell"].isin([cell.title for cell in cells])]
    panels = [(cell, scale) for cell in cells for scale in scales]
    columns = 3 if len(panels) > 4 or len(panels) == 3 else 2
    figure, drawn = row_of_panels(len(panels), columns=columns, width=3.2, beside=1.6, height=2.9)
    metric = "nll_so_far" if so_far else "nll"
    for i, (axes, (cell, scale)) in enumerate(zip(drawn, panels, strict=True)):
        own = data[data["cell"] == cell.title]
        zero_line(axes)
        # On the linear axis the first positions stand so near to one another that their markers would hide everything.
        banded_lines(axes, (line[1:] for line in lines_of(own, "position", marker=0.6 if scale == "log" else 0.0)))
        _position_ticks(axes, scale, own["position_high"].max())
        near = own[~own["model"].isin(windows)]
        axes.set_ylim(enlarged_range(near if len(near) else own))
        axes.set_title(plain(cell.title))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if i + columns < len(panels):
            axes.set_xlabel("")
        if i % columns == 0:
            axes.set_ylabel(f"{axis_label(metric)}, difference to {baseline}")
    said = [told for cell in cells for told in findings(data[data["cell"] == cell.title], windows, cell.title)]
    return with_legend(
        data, figure, *said, f"Below zero: better than {baseline}. {bands_note(data)}", *notes, better=METRICS["nll"].better
    )


def _position_ticks(axes: Axes, scale: str, last: float) -> None:
    """Few ticks on the axis of positions: 1, 8, 64 and so on, or quarters of the length."""
    values = 8.0 ** np.arange(0, np.log2(last) / 3 + 0.01) if scale == "log" else last * np.arange(5) / 4
    if scale == "linear":
        axes.set_xscale(scale)
    ticks_at(axes, values, "{:,.0f}")


@functools.lru_cache(maxsize=2)
def cell_differences(
    frames: Frames, split: str, baseline: str, models: tuple[str, ...], so_far: bool
) -> tuple[pd.DataFrame, list[Cell], list[str]]:
    """`position_differences` by arm and `cell`, the MOST largest cells with the baseline, and notes on what is left out.

    Several figures show the same.
    """
    rows, kept, notes = _rows(frames, split, baseline, models)
    if so_far:
        rows = means_so_far(rows)
    parts = []
    for cell, run_ids in kept.items():
        own = rows[rows["run_id"].isin(run_ids)]
        done = f"the baseline {baseline}, by position"
        part = position_differences(own, own["model"] == baseline, ["arm", "model"], on=[], done=done)
        parts.append(part.assign(cell=cell.title))
    data = pd.concat(parts, ignore_index=True)
    if so_far:
        data["position"] = data["position_high"]
    return data, list(kept), notes


@functools.lru_cache(maxsize=1)
def _rows(
    frames: Frames, split: str, baseline: str, models: tuple[str, ...]
) -> tuple[pd.DataFrame, dict[Cell, list[str]], list[str]]:
    """The loss of every window by range of positions, the runs of every cell that is drawn, and notes."""
    runs = having(frames, stage="position", task="language", metric="nll", models=[*models, baseline])
    found = list(cells_of(runs))
    of_baseline = set(runs.loc[runs["model"] == baseline, "run_id"])
    comparable = [cell for cell in found if 0 < len(of_baseline & set(cell.run_ids)) < len(cell.run_ids)]
    if not comparable:
        titles = "; ".join(cell.title for cell in found[:MOST])
        raise NoData(f"no size and number of tokens has both {baseline} and another model, with the loss by position: {titles}")
    notes, kept, losses = list[str](), dict[Cell, list[str]](), validation_losses(frames, "nll")
    for cell in comparable[:MOST]:
        ids, told = one_arm_a_model(runs[runs["run_id"].isin(cell.run_ids)], losses, by="NLL on validation")
        own = runs[runs["run_id"].isin(ids)]
        ways = task_setting(own)
        alike = own[ways.isin(ways[own["model"] == baseline])]
        kept |= {cell: list(alike["run_id"])} if alike["model"].nunique() > 1 else {}
        others = own.loc[~own.index.isin(alike.index), "model_label"].unique()
        told += [f"Trained on other windows than {baseline}, and so not drawn: {', '.join(others)}."] if len(others) else []
        notes += [f"{cell.title}: {note}" for note in told]
    if not kept:
        raise NoData(f"no model was trained on the same windows as {baseline}: {'; '.join(notes)}")
    without = [cell.title for cell in found if cell not in comparable]
    notes += [f"Without {baseline}, and so not drawn: {', '.join(without)}."] if without else []
    smaller = [cell.title for cell in comparable[MOST:]]
    notes += [f"Smaller, and so not drawn: {', '.join(smaller)}."] if smaller else []
    chosen = of_runs(frames, [run_id for run_ids in kept.values() for run_id in run_ids])
    rows = measured(chosen.examples, stage="position", metric="nll", split=split, whole=False)
    # What tells runs apart is the cell and the model; the other columns, which are many, take time.
    return rows.assign(arm=rows["family"])[["run_id", "arm", "model", "document", "example", *BAND, "value"]], kept, notes


def means_so_far(rows: pd.DataFrame) -> pd.DataFrame:
    """Every window's mean over a range of positions and all before it, from its means of the ranges.

    A range counts by its number of positions; one in which a window has no target counts as if it had none.
    """
    rows = rows.sort_values(["run_id", "example", *BAND], ignore_index=True)
    weight = (rows["position_high"] - rows["position_low"]).where(rows["value"].notna(), 0)
    sums = pd.DataFrame({"nats": (rows["value"] * weight).fillna(0.0), "tokens": weight})
    sums = sums.groupby([rows["run_id"], rows["example"]]).cumsum()
    means = np.divide(sums["nats"], sums["tokens"], out=np.full(len(rows), np.nan), where=sums["tokens"].to_numpy() > 0)
    return rows.assign(value=means, position_low=0)


def findings(data: pd.DataFrame, windows: Sequence[str], where: str) -> list[str]:
    """What the paper says of the RNNs of one cell, early and late in a sequence, and whether it is so here."""
    own = data[~data["model"].isin(windows)]
    if own.empty:
        return []
    early, late = _signs_at(own, EARLY), _signs_at(own, np.inf)
    ahead, behind = majority([-sign for sign in early.values()]), majority(list(late.values()))
    length = int(own["position_high"].max())
    both = None if None in (ahead, behind) and False not in (ahead, behind) else bool(ahead and behind)
    counts = (sum(sign < 0 for sign in early.values()), sum(sign > 0 for sign in late.values()))
    told = f"of {len(early)} models without attention, {counts[0]} are ahead by a whole band at position {_near(own, EARLY)}, "
    said = [f"{where}, ahead at first and behind at the end. {claim(both, f'{told}{counts[1]} behind at {length:,}')}"]
    beyond = {arm: late[arm] for arm, model in zip(own["arm"], own["model"], strict=True) if model in KEEPS_ON}
    if beyond and length > LATE:
        signs = set(beyond.values())
        keeps = True if signs == {-1} else False if 1 in signs else None
        each = ", ".join(f"{arm} {('is level', 'is behind', 'is ahead')[sign]}" for arm, sign in beyond.items())
        said.append(f"{where}, Mesa ahead beyond position {LATE}. {claim(keeps, f'at position {length:,} {each}')}")
    return said


def _near(own: pd.DataFrame, position: float) -> int:
    """The last position of the range of positions that ends at this one or before it."""
    ends = own["position_high"]
    return int(ends[ends <= position].max())


def _signs_at(own: pd.DataFrame, position: float) -> dict[str, int]:
    """By arm -1 where it is better than the baseline by a whole band, 1 where it is worse, else 0."""
    rows = own[own["position_high"] == _near(own, position)]
    return {row.arm: int(row.low > 0) - int(row.high < 0) for row in rows.itertuples()}
