"""The one score by which a run is judged, out of all that it has. Imports no torch."""

from __future__ import annotations

import pandas as pd

from suite.metrics import METRICS

JUDGED_ON = (("test", "test"), ("train", "validation"))
"""Stages and splits in the order in which they judge a run: what nothing was chosen on comes first."""


def main_scores(results: pd.DataFrame) -> pd.DataFrame:
    """One row a run that has a score, by run_id: metric, value, stage and split.

    The score is over a whole split, of the first of JUDGED_ON that the run has; its metric is one that judges (see
    `Metric.judges`) or else the first with a direction that the stage wrote.

    results: the rows of `suite.results.load_results`, or of its columns run_id, stage, split, metric, slice, superseded, value.
    """
    whole = results[(results["slice"] == "") & ~results["superseded"].astype(bool) & results["value"].notna()]
    places = dict(zip(JUDGED_ON, range(len(JUDGED_ON)), strict=True))
    place = pd.Series([places.get(pair) for pair in zip(whole["stage"], whole["split"], strict=True)], whole.index, dtype=float)
    better = whole["metric"].map(lambda name: bool(METRICS[name].better) if name in METRICS else False)
    judges = whole["metric"].map(lambda name: METRICS[name].judges if name in METRICS else False)
    found = whole[place.notna() & better].assign(place=place, other=~judges)
    found = found.sort_values(["place", "other"], kind="stable").drop_duplicates("run_id")
    return found.set_index("run_id")[["metric", "value", "stage", "split"]]
