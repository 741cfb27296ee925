"""What the MesaNet paper prints of the steps of its solver, to be drawn beside what was measured here."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

PUBLISHED = Path(__file__).with_name("published")
FIGURE_5 = "arXiv:2506.05233v2 Figure 5"
MAPPING = (
    "Hollow: printed in MesaNet (arXiv 2506.05233v2, Fig. 5), 1B parameters, averages of its global, local and recall "
    "benchmarks; which bar is which setting is inferred, and the tasks are other ones."
)


def printed_accuracy(*, steps: int) -> pd.DataFrame:
    """Figure 5 of MesaNet: dataset, max_steps, tolerance, value and `difference` to `steps` fixed steps, in points of 100."""
    table = pd.read_csv(PUBLISHED / "mesanet.csv")
    table = table[table["source"] == FIGURE_5].copy()
    table[["kind", "setting"]] = table["model"].str.removeprefix("Mesa ").str.split("=", expand=True)
    fixed, setting = table["kind"] == "CG", table["setting"]
    table["max_steps"] = setting.where(fixed, "30").astype(float)
    table["tolerance"] = setting.where(~fixed, "0").astype(float)
    table["dataset"] = table["dataset"].str.removesuffix(" average")
    reference = table[fixed & (table["max_steps"] == steps)].set_index("dataset")["value"]
    table["difference"] = table["value"] - table["dataset"].map(reference)
    return table[["dataset", "max_steps", "tolerance", "value", "difference"]].reset_index(drop=True)
