"""What the arms of a comparison cost beside each other: what was matched, and what is left unequal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from reports.kit.parts import Entry, Frames, NoData, Table
from reports.kit.style import arms_in_order
from suite.naming import labels, task_label, varying

COSTS = {
    "block_parameters": "parameters without embedding",
    "parameters": "parameters",
    "state_bytes": "state bytes",
    "flops_per_token": "forward FLOPs per token",
    "train_tokens": "tokens seen",
    "lr": "learning rate",
}
SHORT = ("task", "model", "params w/o emb.", "params", "state [B]", "FLOPs/token", "tokens", "lr")
MATCHED = {
    "parameters": "parameters",
    "flops": "forward FLOPs per token",
    "state": "state bytes",
    "state_and_parameters": "state bytes and parameters",
}
"""The values of match.by in words."""
FACTS = ("match_reference", "matched_by", "match_tolerance", "vocab_size", "input_dim", "train_steps", "size.d_model", *COSTS)
APART = 0.02
"""From which difference on runs are told apart that do not say their tolerance."""
FEW = 4
"""So many arms are named; of more it is said how many they are."""


def costs(frames: Frames) -> Table:
    """What every model costs at its trained length, with the ratio to the reference of the comparison in brackets."""
    if frames.runs.empty:
        raise NoData("no run of this request is in the store")
    cells = _costs(frames)
    rows, tidy = [], []
    for task in dict.fromkeys(cells["task"]):
        of_task = cells[cells["task"] == task]
        for arm, _ in arms_in_order(of_task):
            own = of_task[of_task["arm"] == arm]
            rows.append((Entry(task_label(task)), Entry(arm), *(_entry(own, cost) for cost in COSTS)))
            tidy += [{"task": task, "arm": arm, "cost": cost, **_ends(own, cost)} for cost in COSTS]
    header = ("task", "model", *COSTS.values())
    first = 0 if cells["task"].nunique() > 1 else 1
    return Table(pd.DataFrame(tidy), header[first:], tuple(row[first:] for row in rows), tuple(_notes(cells)), SHORT[first:])


def _costs(frames: Frames) -> pd.DataFrame:
    """A row a cell: `arm`, which its model and size decide alone; its COSTS and their ratios; the arm that they are `beside`."""
    cells = frames.cells.reindex(columns=list(dict.fromkeys([*frames.cells, *FACTS])))
    told = [name for name in varying(cells) if name.startswith(("size.", "model."))]
    numbers = cells[[*COSTS, "vocab_size", "input_dim", "size.d_model", "train_steps", "match_tolerance"]]
    numbers = numbers.apply(pd.to_numeric, errors="coerce")
    # A run that ended early saw fewer tokens than were planned.
    taken = frames.results[frames.results["metric"] == "steps_taken"].set_index("run_id")["value"]
    share = (cells["run_id"].map(taken) / numbers["train_steps"]).fillna(1.0)
    embedding = numbers["vocab_size"].fillna(numbers["input_dim"]) * numbers["size.d_model"]
    made = {"block_parameters": numbers["parameters"] - embedding, "train_tokens": numbers["train_tokens"] * share}
    cells = cells.assign(**{cost: made.get(cost, numbers[cost]) for cost in COSTS}, match_tolerance=numbers["match_tolerance"])
    cells["arm"] = labels(cells, ("model", "size", *told))
    reference = _references(cells)
    known = (reference >= 0) & cells["parameters"].notna()
    for cost in COSTS:
        cells[f"{cost}_ratio"] = (cells[cost] / cells[cost].to_numpy()[reference]).where(known)
    return cells.assign(beside=pd.Series(cells["arm"].to_numpy()[reference], cells.index).where(known))


def _references(cells: pd.DataFrame) -> np.ndarray:
    """By cell the row of the reference's run that is set most alike, -1 where none has its task set as it is.

    The reference is the model of match.reference or, where that is not known or is not among the runs, the first model.
    """
    # Where no run says one, the column is one of numbers.
    named = cells["match_reference"].astype(object).where(cells["match_reference"].isin(set(cells["model"])))
    wanted = named.fillna(next(iter(named.dropna()), cells["model"].iloc[0]))
    alike = [name for name in cells if name == "data" or name.startswith("task.")]
    others = [name for name in cells if name in ("size", "seed") or name.startswith(("size.", "train."))]
    skipped = ("version", "mlp_dim")
    alike, others = (
        [name for name in names if not name.endswith(skipped) and cells[name].nunique(dropna=False) > 1]
        for names in (alike, others)
    )
    codes = {name: pd.factorize(cells[name])[0] for name in (*alike, *others)}
    found = np.full(len(cells), -1)
    for (task, model), own in cells.groupby(["task", wanted], sort=False).indices.items():
        there = np.flatnonzero((cells["task"] == task) & (cells["model"] == model) & cells["parameters"].notna())
        if len(there):
            agree = {name: code[own][:, None] == code[there] for name, code in codes.items()}
            fits = np.logical_and.reduce([agree[name] for name in alike] or [np.ones((len(own), len(there)), bool)])
            score = np.where(fits, 1 + sum(agree[name].astype(np.int16) for name in others), 0)
            found[own] = np.where(fits.any(1), there[score.argmax(1)], -1)
    return found


def _ends(own: pd.DataFrame, cost: str) -> dict[str, object]:
    """The least and the greatest value and ratio of an arm's runs, and what they are beside."""
    values, ratios = own[cost], own[f"{cost}_ratio"]
    ends = {"low": values.min(), "high": values.max(), "ratio_low": ratios.min(), "ratio_high": ratios.max()}
    said = {name: ", ".join(sorted(own[name].dropna().unique())) for name in ("beside", "matched_by")}
    return {**ends, **said, "match_tolerance": own["match_tolerance"].max()}


def _entry(own: pd.DataFrame, cost: str) -> Entry:
    values, ratios = own[cost].dropna(), own[f"{cost}_ratio"].dropna()
    if values.empty:
        return Entry("–")
    text = _range(f"{end:,.4g}" if cost == "lr" else f"{end:,.0f}" for end in (values.min(), values.max()))
    # The reference itself has nothing to be compared with.
    if len(ratios) and (own["beside"] != own["arm"]).any():
        text += f" (×{_range(_ratio(end) for end in (ratios.min(), ratios.max()))})"
    return Entry(text, float(values.mean()), runs=tuple(own.loc[values.index, "run_id"]))


def _range(ends: Iterator[str]) -> str:
    return " to ".join(dict.fromkeys(ends))


def _ratio(ratio: float) -> str:
    return f"{ratio:.3f}" if 0.1 <= ratio < 10 else f"{ratio:.3g}"


def _notes(cells: pd.DataFrame) -> Iterator[str]:
    """What was matched, what the ratios are to, and what is apart by more than the tolerance."""
    others = cells[cells["beside"].notna() & (cells["beside"] != cells["arm"])]
    if others.empty:
        yield "No ratios: one arm alone has runs, or the reference has none."
        return
    every = list(dict.fromkeys(others["arm"]))
    groups = list(others.groupby(["matched_by", "match_reference", "match_tolerance"], dropna=False, sort=False))
    for (by, reference, tolerance), own in groups:
        whose = "" if len(groups) == 1 else f": {_named(own['arm'], every)}"
        if pd.isna(by):
            yield f"Runs of an older version do not say what they were matched by{whose}."
        elif by == "none":
            yield f"Nothing was matched (match.by=none){whose}."
        else:
            keys = f"match.by={by}, match.reference={reference}, match.tolerance={tolerance:g}"
            yield f"Matched to {reference} by {MATCHED.get(by, by)}, within {100 * tolerance:g} % ({keys}){whose}."
    yield f"Ratios are to {_named(others['beside'], [])} on the same task, to the run whose size and training are set most alike."
    tolerance = others["match_tolerance"].fillna(APART)
    apart = {cost: others["arm"][(others[f"{cost}_ratio"] - 1).abs() > tolerance] for cost in COSTS}
    told = [f"{COSTS[cost]} ({_named(arms, every)})" for cost, arms in apart.items() if len(arms)]
    limit = " or ".join(f"{100 * each:g} %" for each in sorted(tolerance.unique()))
    yield f"Left unequal by more than {limit}: {', '.join(told)}." if told else f"Nothing is left unequal by more than {limit}."
    if cells["parameters"].isna().any():
        yield "– stands for runs that were not begun."


def _named(arms: pd.Series, every: Sequence[str]) -> str:
    """The arms by name; of many how many they are."""
    names = list(dict.fromkeys(arms))
    if len(names) == len(every) > 1:
        return "all"
    return "; ".join(names) if len(names) <= FEW else f"{len(names)} arms"
