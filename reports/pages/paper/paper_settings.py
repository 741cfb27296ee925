"""What a published study trained with and what its models cost, beside the configuration and the runs of a store."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
import yaml

from conf.groups import find, options
from reports.kit.parts import Entry, Frames, Table
from reports.kit.published import model_label
from reports.kit.stored import stored
from reports.kit.study import CELL, Study, numbers_of, read_study
from suite.metrics import METRICS

RATES = "Table 8"
COSTS = ("state_bytes", "flops_per_token")


def learning_rates(frames: Frames, *, study: str) -> Table:
    """A row a model, size and number of tokens: the peak learning rate as printed, in the configuration and of our runs."""
    known, numbers = read_study(study), numbers_of(study)
    printed = numbers[numbers["source"] == RATES][[*CELL, "value"]].rename(columns={"value": "published"})
    found = stored(frames, study)
    rates = frames.runs.reindex(columns=["run_id", "train.lr"]).rename(columns={"train.lr": "used"})
    used = found.runs.merge(rates, on="run_id").groupby(CELL, as_index=False)["used"].first()
    tried = found.tried.merge(rates, on="run_id").groupby(CELL, as_index=False).agg(tried=("used", "nunique"))
    data = printed.merge(used, on=CELL, how="outer").merge(tried, on=CELL, how="left")
    data["configured"] = [configured_rate(known, *key) for key in data[CELL].itertuples(index=False)]
    sizes, models = list(known.sizes), list(dict.fromkeys(printed["model"]))
    order = data.assign(
        of_size=[sizes.index(size) if size in sizes else len(sizes) for size in data["size"]],
        of_model=[models.index(model) if model in models else len(models) for model in data["model"]],
    )
    data = order.sort_values(["of_size", "size", "train_tokens", "of_model", "model"]).drop(columns=["of_size", "of_model"])
    rows = []
    for row in data.to_dict("records"):
        rates_of_row = (_rate(row[name]) for name in ("published", "configured", "used"))
        count = Entry("–") if pd.isna(row["tried"]) else Entry(f"{row['tried']:.0f}", row["tried"])
        rows.append((Entry(row["size"]), Entry(row["train_tokens"]), Entry(model_label(row["model"])), *rates_of_row, count))
    differing = data[data["configured"].notna() & data["published"].notna()]
    differing = differing[(differing["configured"] / differing["published"] - 1).abs() > 1e-9]
    alike = "The configuration has every printed rate." if differing.empty else f"{len(differing)} configured rates are others."
    notes = (
        alike,
        "Ours is the rate that validation prefers of those tried. The paper does not tune models with windows: 0.001.",
    )
    return Table(data, ("size", "tokens", "model", "printed", "configured", "ours", "rates tried"), tuple(rows), notes)


def costs(frames: Frames, *, study: str) -> Table:
    """A row a model: what a head keeps and the FLOPs of a token in its recurrence, as formulas, and what our runs count."""
    known = read_study(study)
    runs = stored(frames, study).runs.merge(frames.runs.reindex(columns=["run_id", *COSTS]), on="run_id")
    counted = runs.groupby(["size", "model"], sort=False)[list(COSTS)].first().to_dict("index")
    sizes = list(dict.fromkeys(size for size, _ in counted))
    rows, data = [], []
    base = _value(known.costs["gla"].flops, known.head)
    for model, own in known.costs.items():
        state, flops = (_value(terms, known.head) for terms in (own.state, own.flops))
        measured = [counted.get((size, model), {}) for size in sizes]
        entries = [_counted(each.get(name)) for each in measured for name in COSTS]
        formulas = (
            Entry(_formula(own.state)),
            Entry(f"{state:,.0f}", state),
            Entry(_formula(own.flops)),
            Entry(f"{flops:,.0f}", flops),
        )
        rows.append((Entry(model_label(model)), *formulas, Entry(f"{flops / base:.2g}", flops / base), *entries))
        about = {"model": model, "state": state, "flops": flops, "times_gla": flops / base}
        data.append(
            about | {f"{size} {name}": each.get(name) for size, each in zip(sizes, measured, strict=True) for name in COSTS}
        )
    values = ", ".join(f"{name} = {value:,}" for name, value in known.head.items())
    header = ["model", "state of a head", "numbers", "FLOPs of a token", "FLOPs", "times GLA"]
    header += [f"{size}: {METRICS[name].label}" for size in sizes for name in COSTS]
    notes = (f"Numbers are for {values}; the last columns are what the suite counts of our whole models.", known.says)
    return Table(pd.DataFrame(data), tuple(header), tuple(rows), notes)


def configured_rate(study: Study, size: str, tokens: str, model: str) -> float:
    """The peak rate that the recipe of so many tokens takes for a model; NaN where the configuration has none."""
    if size not in study.sizes or tokens not in study.rates or model not in options("model"):
        return math.nan
    rates = _rates(model).get(study.rates[tokens], {})
    return next((float(rates[name]) for name in study.sizes[size] if name in rates), math.nan)


@functools.cache
def _rates(model: str) -> Mapping[str, Mapping[str, float]]:
    """The table of learning rates of a model, its own or that of the model it is made from."""
    written = yaml.safe_load(find("model", model).read_text(encoding="utf-8"))
    above = [each for each in written.get("defaults", ()) if isinstance(each, str) and each != "_self_"]
    return written.get("lr") or (_rates(above[0]) if above else {})


def _rate(value: float) -> Entry:
    return Entry("–") if pd.isna(value) else Entry(f"{value:g}", float(value))


def _counted(value: Any) -> Entry:
    return Entry("–") if value is None or pd.isna(value) else Entry(f"{value:,.0f}", float(value))


def _value(terms: Mapping[str, float], head: Mapping[str, int]) -> float:
    return sum(factor * math.prod(head[letter] for letter in letters.split()) for letters, factor in terms.items())


def _formula(terms: Mapping[str, float]) -> str:
    """The sum in letters: "6 n² + 2 k n²"."""
    named = {letters.replace("n n", "n²"): factor for letters, factor in terms.items()}
    return " + ".join(letters if factor == 1 else f"{factor:g} {letters}" for letters, factor in named.items())
