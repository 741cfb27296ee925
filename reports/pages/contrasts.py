"""Arms beside a reference over the same seeds: differences, interactions of a model with a setting, and what they decide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from conf.settings import RequestError, text
from reports.kit.arguments import Model
from reports.kit.chosen import at_preferred, validated
from reports.kit.chosen_runs import line_labels
from reports.kit.parts import Entry, Frames, NoData, Table
from reports.kit.rows import ids_of, seed_summary
from reports.kit.tables import Column, mean_entry, notes_on, rows_of, scored_cells
from reports.kit.verdicts import HOW, verdict
from suite.metrics import METRICS, axis_label
from suite.naming import fact_text, natural, task_label, varying


def against(frames: Frames, *, columns: Sequence[Column], reference: Mapping[str, str], across: str = "") -> Table:
    """One row an arm: its score, and the difference to the reference's over the same seeds, at every value of `across`.

    reference: what tells its runs, such as {model: mesanet}, one arm at each value. across: a setting, such as
    "task.num_pairs"; empty for none. Tasks that are set otherwise besides have values of their own. An arm is at those TUNED
    settings that validation prefers. Below stands a sentence a comparison, but for scores that a seed has learnt or not.
    """
    parts = [_differences(frames, column, reference, across) for column in columns]
    data = pd.concat(parts, ignore_index=True)
    titles = list(dict.fromkeys(data["title"]))
    header = [name for title in titles for name in (title, f"{title}, less the reference")]
    sentences = [_sentence(row) for row in data.to_dict("records") if _is_judged(row)]
    return Table(data, ("model", *header), _rows(data, ["arm"]), (*sentences, HOW, *_chosen(data), *_asked(frames, columns)))


def _differences(frames: Frames, column: Column, reference: Mapping[str, str], across: str) -> pd.DataFrame:
    """One row an arm and value of `across`: the `seed_summary` of its score, and as difference_mean and so on that of the
    difference to the reference's, by seed.
    """
    cells = scored_cells(frames, column)
    places = _places(cells, across)
    cells = cells.assign(line=line_labels(cells, across), place=places)
    cells = at_preferred(cells, ["place", "line"], validated(frames, column)).assign(arm=lambda kept: kept["line"])
    if cells["value"].isna().all():
        raise NoData(f"no run of {task_label(column.task)} has {axis_label(column.metric)} (stage {column.stage})")
    rows = []
    for place, at in sorted(cells.groupby("place"), key=lambda group: natural(group[0])):
        theirs = at[_holds(at, reference)]
        if theirs["arm"].nunique() > 1:
            raise RequestError(f"reference={text(reference)} fits {', '.join(theirs['arm'].unique())}, permitted is one arm")
        base = theirs.set_index("seed")["value"]
        for arm, own in at.groupby("arm", sort=False):
            rows.append(
                {
                    "arm": arm,
                    "place": ", ".join(filter(None, (column.place, str(place)))),
                    "title": ", ".join(filter(None, (column.title, column.place, str(place)))),
                    "task": column.task,
                    "metric": column.metric,
                    "reference": ", ".join(theirs["arm"].unique()),
                    **seed_summary(own["value"].dropna().to_numpy(), column.metric),
                    **_of_difference((own.set_index("seed")["value"] - base).dropna().to_numpy(), column.metric),
                    "chosen": own["chosen"].iloc[0],
                    "runs": ids_of(own),
                }
            )
    return pd.DataFrame(rows)


def _places(cells: pd.DataFrame, across: str) -> pd.Series:
    """Where each cell stands: the value of `across` in words, and what else tells its task apart from that of others there."""
    if across and across not in cells:
        raise RequestError(f"across={across} is no setting of these runs, permitted are {', '.join(map(str, cells))}")
    facts = [across] if across else []
    for fact in varying(cells):
        there = cells.groupby(facts, dropna=False)[fact].nunique(dropna=False).max() if facts else 2
        facts += [fact] if fact.startswith("task.") and fact not in facts and there > 1 else []
    words = [cells[fact].astype(object).where(cells[fact].notna(), None).map(_place(fact)) for fact in facts]
    return pd.Series(list(map(", ".join, zip(*words, strict=True))) if words else "", index=cells.index)


def _chosen(data: pd.DataFrame) -> list[str]:
    """What was chosen on validation."""
    rows = data[data["chosen"] != ""].to_dict("records")
    told = [", ".join(filter(None, (row["arm"], row.get("setting"), row["place"]))) + f": {row['chosen']}" for row in rows]
    return [f"Chosen on validation: {'; '.join(dict.fromkeys(told))}."] if told else []


def interaction(
    frames: Frames, *, columns: Sequence[Column], across: Sequence[str], base: Sequence[str], reference: Model
) -> Table:
    """One row a model and setting: its score, and how much more it gains by the setting, over the base, than the reference does.

    across: the settings that are crossed with the models; base: the values of these, as they are typed, from which a gain is
    counted. A seed's gain is of runs on the same data. Where rules differ by a constant the last column is 0 throughout.
    """
    parts = [_interactions(frames, column, across, base, reference) for column in columns]
    data = pd.concat(parts, ignore_index=True)
    titles = list(dict.fromkeys(data["title"]))
    header = [name for title in titles for name in (title, f"{title}, gained beyond {data['reference'].iloc[0]}")]
    sentences = [_sentence(row) for row in data.to_dict("records") if _is_judged(row)]
    return Table(
        data,
        ("model", "setting", *header),
        _rows(data, ["arm", "setting"]),
        (*sentences, HOW, *_chosen(data), *_asked(frames, columns)),
    )


def _interactions(frames: Frames, column: Column, across: Sequence[str], base: Sequence[str], reference: str) -> pd.DataFrame:
    cells = scored_cells(frames, column)
    if len(across) != len(base):
        raise RequestError(f"base=[{', '.join(base)}] has {len(base)} values, permitted is one for each of {', '.join(across)}")
    is_base = _holds(cells, dict(zip(across, base, strict=True)))
    cells = cells.assign(setting=[_setting(across, row) for row in cells[list(across)].to_dict("records")])
    if cells["value"].isna().all() or not is_base.any():
        raise NoData(f"no run of {task_label(column.task)} has {axis_label(column.metric)} at {', '.join(base)}")
    if reference not in set(cells["model"]):
        raise NoData(f"no run of {reference}, which the others are compared with")
    keys = ["model", "family", "setting"]
    cells = at_preferred(cells, keys[1:], validated(frames, column))
    values = {key: own.set_index("seed")["value"] for key, own in cells.groupby(keys, sort=False)}
    start, label = cells.loc[is_base, "setting"].iloc[0], cells.loc[cells["model"] == reference, "family"].iloc[0]
    rows = []
    for (model, family, setting), own in values.items():
        gain, theirs = (
            values.get((name, told, setting), np.nan) - values.get((name, told, start), np.nan)
            for name, told in ((model, family), (reference, label))
        )
        own_cells = (cells["model"] == model) & (cells["setting"] == setting)
        beyond = np.empty(0) if setting == start else pd.Series(gain - theirs, dtype=float).dropna().to_numpy()
        rows.append(
            {
                "arm": family,
                "setting": setting,
                "place": column.place,
                "title": ", ".join(filter(None, (column.title, column.place))),
                "task": column.task,
                "metric": column.metric,
                "reference": label,
                "base": start,
                **seed_summary(own.dropna().to_numpy(), column.metric),
                **_of_difference(beyond, column.metric),
                "chosen": cells.loc[own_cells, "chosen"].iloc[0],
                "runs": ids_of(cells[own_cells]),
            }
        )
    return pd.DataFrame(rows)


def _rows(data: pd.DataFrame, keys: list[str]) -> tuple[tuple[Entry, ...], ...]:
    """A row a value of the keys: for every title the score, and behind it the difference."""
    rows = []
    for key, own in data.groupby(keys, sort=False):
        found = own.set_index("title").to_dict("index")
        entries = [_entries(found.get(title)) for title in data["title"].unique()]
        rows.append((*map(Entry, key), *(entry for pair in entries for entry in pair)))
    return tuple(rows)


def _entries(row: Mapping[str, Any] | None) -> tuple[Entry, Entry]:
    if row is None or not row["n"]:
        return Entry("–"), Entry("–")
    return mean_entry(row, row["metric"]), _difference(row)


def _of_difference(differences: np.ndarray, metric: str) -> dict[str, Any]:
    return {f"difference_{name}": value for name, value in seed_summary(differences, metric, difference=True).items()}


def _holds(cells: pd.DataFrame, conditions: Mapping[str, str]) -> pd.Series:
    """Which cells have these values, as they are typed."""
    held = pd.Series(True, index=cells.index)
    for name, value in conditions.items():
        if name not in cells:
            raise RequestError(f"{name}={value} is no setting of these runs, permitted are {', '.join(map(str, cells))}")
        held &= cells[name].map(_typed) == value
    return held


def _typed(value: Any) -> str:
    """A value as it is typed: 4 for 4.0, null for what is not there."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "null"
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else text(value)


def _place(name: str) -> Any:
    return lambda value: fact_text(name, value)


def _setting(across: Sequence[str], row: Mapping[str, Any]) -> str:
    known = {name: row[name] for name in across if _typed(row[name]) != "null"}
    return ", ".join(fact_text(name, value) for name, value in known.items())


def _difference(row: Mapping[str, Any]) -> Entry:
    if not row["difference_n"] or row.get("arm") == row["reference"]:
        return Entry("")
    own = {name.removeprefix("difference_"): value for name, value in row.items() if name.startswith("difference_")}
    return mean_entry({**own, "runs": row["runs"]}, row["metric"], difference=True, digits=METRICS[row["metric"]].digits + 1)


def _is_judged(row: Mapping[str, Any]) -> bool:
    return bool(row["difference_n"]) and row["arm"] != row["reference"] and not METRICS[row["metric"]].learnt_or_not


def _sentence(row: Mapping[str, Any]) -> str:
    if "setting" in row:
        what = f"what {row['arm']} gains by {row['setting']} over {row['base']} beyond what {row['reference']} gains"
    else:
        what = f"{row['arm']} against {row['reference']}"
    said = ", ".join(filter(None, (what, row["place"], task_label(row["task"]))))
    return verdict(said, row["difference_each"], row["metric"])


def _asked(frames: Frames, columns: Sequence[Column]) -> list[str]:
    return notes_on(pd.concat([rows_of(frames.cells, column) for column in columns]).drop_duplicates("run_id"))
