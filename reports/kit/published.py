"""The numbers printed in a paper: reports/published/NAME.csv, see the README there."""

from __future__ import annotations

import functools
from pathlib import Path

import pandas as pd
import yaml

from conf.groups import find, options

FOLDER = Path(__file__).parents[1] / "published"
FIGURE_5 = "arXiv:2506.05233v2 Figure 5"


@functools.cache
def _table(name: str) -> pd.DataFrame:
    return pd.read_csv(FOLDER / f"{name}.csv", dtype={"model": str, "dataset": str, "size": str, "train_tokens": str})


def published(name: str) -> pd.DataFrame:
    """The rows of a paper, to be changed at will. name: of the file."""
    return _table(name).copy()


@functools.cache
def model_label(model: str) -> str:
    """What a model of the suite is called in its YAML; any other stands as it is."""
    if model not in options("model"):
        return model
    return str(yaml.safe_load(find("model", model).read_text(encoding="utf-8")).get("label", model))


def printed_accuracy(*, steps: int) -> pd.DataFrame:
    """Figure 5 of MesaNet: dataset, max_steps, tolerance, value and `difference` to `steps` fixed steps, in points of 100."""
    table = published("mesanet")
    table = table[table["source"] == FIGURE_5].reset_index(drop=True)
    settings = table["model"].str.extract("CG=(?P<max_steps>.+)|eps=(?P<tolerance>.+)").astype(float)
    table = table.join(settings.fillna({"max_steps": 30.0, "tolerance": 0.0}))
    table["dataset"] = table["dataset"].str.removesuffix(" average")
    reference = table[(table["tolerance"] == 0) & (table["max_steps"] == steps)].set_index("dataset")["value"]
    table["difference"] = table["value"] - table["dataset"].map(reference)
    return table[["dataset", "max_steps", "tolerance", "value", "difference"]]
