"""Parity with gates of either sign, and RegBench, beside what MesaNet (arXiv 2506.05233v2) shows in Figures 8 and 9."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from reports.kit.arguments import Model, Task
from reports.kit.chosen_runs import SUCCESS, chosen_runs
from reports.kit.claims import Drawn, Missing, claim
from reports.kit.intervals import t_interval
from reports.kit.narrow import having, of_one_setting, of_runs, one_arm_a_model, validation_losses
from reports.kit.parts import Drawing, Frames
from reports.kit.render import counted, signed, signed_interval

FLOOR = "model.mixer.regularizer_floor"


def parity(
    frames: Frames,
    *,
    task: Task,
    models: Sequence[Model],
    signed_gates: Model,
    positive_gates: Model,
    draws: Drawn,
    missing: Missing,
) -> Drawing:
    """Accuracy by length of every model, and whether gates of either sign learn what gates above 0 do not.

    A model has one line: the settings that validation prefers, of each floor of Lambda. A seed has learnt the task where SUCCESS
    of its answers beyond the trained length are right.
    """
    with missing.told(frames):
        runs = of_one_setting(having(frames, stage="test", task=task, metric="accuracy", models=models))
        losses = validation_losses(frames, "accuracy")
        kept, notes = one_arm_a_model(runs, losses, by="accuracy on validation", apart=[FLOOR])
        drawing = draws.of(of_runs(frames, kept, facts=["seq_len"]))
    trained = runs["seq_len"].max()
    said = _learnt(drawing.data[drawing.data["length"] > trained], signed_gates, positive_gates)
    return replace(drawing, notes=(said, *drawing.notes, *notes))


def _learnt(beyond: pd.DataFrame, signed_gates: str, positive_gates: str) -> str:
    """Whether every seed with gates of either sign has learnt parity, and none with gates above 0."""
    lengths = f"{beyond['length'].min():,.0f} to {beyond['length'].max():,.0f}"
    per_seed = beyond.groupby(["model", "arm"], sort=False)[[name for name in beyond if name.startswith("seed ")]].mean()
    learnt = (per_seed >= SUCCESS).sum(axis=1)
    told = pd.DataFrame({"learnt": learnt, "seeds": per_seed.notna().sum(axis=1)}).reset_index()
    each = ", ".join(f"{row.arm} {row.learnt} of {row.seeds}" for row in told.itertuples())
    because = f"seeds with {100 * SUCCESS:g} % of answers right at lengths {lengths}: {each}"
    either, above = (told[told["model"] == model] for model in (signed_gates, positive_gates))
    if either.empty or above.empty:
        absent = signed_gates if either.empty else positive_gates
        return claim(None, f"no run of {absent}; {because}")
    # The floor of Lambda at which the most seeds have learnt is the one that the paper would report.
    best = either.loc[either["learnt"].idxmax()]
    return claim(bool(best["learnt"] == best["seeds"] and not above["learnt"].any()), because)


def regbench(
    frames: Frames,
    *,
    task: Task,
    fact: str,
    models: Sequence[Model],
    ours: Model,
    attention: Model,
    draws: Drawn,
    missing: Missing,
) -> Drawing:
    """Accuracy against the number of training problems, and whether MesaNet is ahead of the RNNs and level with attention.

    The way to set the task and the size that the most models share is drawn.
    """
    with missing.told(frames):
        runs = of_one_setting(having(frames, stage="test", task=task, metric="accuracy", models=models), without=[fact])
        own = of_runs(frames, runs["run_id"])
        drawing = draws.of(own)
    cells = chosen_runs(own, [task]).cells
    largest = cells[cells[fact] == cells[fact].max()]
    said = _ahead(largest, ours, attention, f"at {largest[fact].max():,g} problems")
    return replace(drawing, notes=(said, *drawing.notes))


def _ahead(cells: pd.DataFrame, ours: str, attention: str, where: str) -> str:
    """Whether our accuracy is above that of every other RNN and not below attention's, by paired 95 % t intervals over seeds."""
    ways = cells.groupby("family", sort=False)["arm_number"].nunique()
    if several := list(ways.index[ways > 1]):
        return claim(None, f"which of the settings of {', '.join(several)} is compared {where} is not known")
    values = cells.pivot_table(index="seed", columns="model", values="value")
    if ours not in values or values.shape[1] < 2:
        return claim(None, f"{ours} has no other model beside it {where}")
    found = {model: t_interval((values[ours] - values[model]).dropna().to_numpy()) for model in values if model != ours}
    names = dict(zip(cells["model"], cells["family"], strict=True))
    each = [f"{names[model]} {signed(gap.mean, 3)}{signed_interval(gap.low, gap.high, 3)}" for model, gap in found.items()]
    because = f"accuracy of {names[ours]} {where} less that of {', '.join(each)}, over {counted(len(values), 'seed')}"
    rivals = [gap.sign for model, gap in found.items() if model != attention]
    behind = [sign < 0 for sign in [*rivals, *([found[attention].sign] if attention in found else [])]]
    ahead = bool(rivals) and attention in found and all(sign > 0 for sign in rivals)
    return claim(False if any(behind) else True if ahead else None, because)
