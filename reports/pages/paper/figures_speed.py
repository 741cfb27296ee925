"""How fast models train and generate by length and batch, beside what MesaNet (arXiv 2506.05233v2) claims in Figures 2 and 6."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from reports.kit.arguments import Model
from reports.kit.claims import Drawn, Missing, claim
from reports.kit.narrow import having, of_runs, one_arm_a_model, size_title
from reports.kit.parts import Drawing, Frames
from reports.kit.published import model_label

STEPS = "model.mixer.solver.max_steps"


def training(
    frames: Frames, *, work: str, models: Sequence[Model], ours: Model, attention: Model, draws: Drawn, missing: Missing
) -> Drawing:
    """Time and throughput of training by length, and whether attention slows with the length where MesaNet does not.

    work: the piece of work whose throughput decides, and by which the fastest backend of a model is chosen. The device and size
    at which the most models were timed are drawn.
    """
    drawing, notes = _drawn(frames, work, models, draws, missing)
    own = drawing.data[(drawing.data["work"] == work) & (drawing.data["along"] == "length")]
    said = [_slows(own, ours, attention, work)]
    return replace(drawing, notes=(*said, *notes, *drawing.notes))


def generation(
    frames: Frames,
    *,
    work: str,
    models: Sequence[Model],
    ours: Model,
    rival: Model,
    fastest: Model,
    attention: Model,
    draws: Drawn,
    missing: Missing,
) -> Drawing:
    """Throughput of generation by prompt and batch: whether `fastest` leads, attention slows, and MesaNet is near its rival.

    work: see `training`.
    """
    drawing, notes = _drawn(frames, work, models, draws, missing)
    own = drawing.data[drawing.data["work"] == work]
    by_length = own[own["along"] == "length"]
    said = [_slows(by_length, ours, attention, work), _leads(by_length, ours, rival, fastest)]
    return replace(drawing, notes=(*said, *notes, *drawing.notes))


def _drawn(frames: Frames, work: str, models: Sequence[str], draws: Drawn, missing: Missing) -> tuple[Drawing, list[str]]:
    """The figure of the device and size with the most models, each by its fastest backend, and notes on what was chosen."""
    with missing.told(frames):
        runs = having(frames, stage="efficiency", metric="latency_ms", models=models)
        rows = frames.results
        rows = rows[(rows["stage"] == "efficiency") & rows["run_id"].isin(runs["run_id"])]
        device, size = _most_models(rows[rows["metric"] == "latency_ms"], runs)
        rows = rows[(rows["device"] == device) & (rows["size"] == size)]
        times = rows[(rows["metric"] == "latency_ms") & (rows["work"] == work)]
        spent = times.assign(per_token=times["value"] / times["batch"]).groupby("run_id")["per_token"].sum()
        runs = runs[runs["run_id"].isin(rows["run_id"])]
        kept, notes = one_arm_a_model(runs, spent, by=f"time of {work}", apart=[STEPS])
        own = of_runs(frames, kept)
        drawing = draws.of(replace(own, results=own.results[own.results["device"] == device]))
    return drawing, [f"Size {size_title(size)}, on {device}.", *notes]


def _most_models(rows: pd.DataFrame, runs: pd.DataFrame) -> tuple[str, str]:
    """The device and size at which the most models were timed, a GPU before a CPU, then the larger size."""
    rows = rows.assign(parameters=rows["run_id"].map(runs.set_index("run_id")["parameters"]))
    found = rows.groupby(["device", "size"], as_index=False).agg(models=("model", "nunique"), parameters=("parameters", "max"))
    found = found.assign(gpu=~found["device"].str.startswith("CPU"))
    best = found.sort_values(["gpu", "models", "parameters"], ascending=False, kind="stable").iloc[0]
    return best["device"], best["size"]


def _ends(rows: pd.DataFrame, model: str) -> pd.DataFrame:
    """The rows of a model at the shortest and the longest length, of its fastest way."""
    own = rows[(rows["model"] == model) & rows["throughput"].notna()].sort_values(["length", "throughput"])
    return own.drop_duplicates("length", keep="last").iloc[[0, -1]] if len(own) else own


def _slows(rows: pd.DataFrame, ours: str, attention: str, work: str) -> str:
    """Whether attention keeps less of its throughput from the shortest to the longest length than ours, beyond the quartiles."""
    what = f"Attention slows with length where {model_label(ours)} does not, in {work}."
    ends = {model: _ends(rows, model) for model in (ours, attention)}
    if any(len(own) < 2 or own["length"].nunique() < 2 for own in ends.values()):
        return f"{what} {claim(None, 'not both were timed at two lengths')}"
    kept = {}
    for model, own in ends.items():
        first, last = (row for _, row in own.iterrows())
        fast, slow = (row["throughput"] * row["latency_ms"] / row[["latency_ms_low", "latency_ms_high"]] for row in (last, first))
        # From the slowest last over the fastest first to the other way round.
        kept[model] = (fast.iloc[1] / slow.iloc[0], last["throughput"] / first["throughput"], fast.iloc[0] / slow.iloc[1])
    mine, other = kept[ours], kept[attention]
    holds = True if other[2] < mine[0] else False if other[0] > mine[2] else None
    length = f"{ends[ours]['length'].min():,.0f} to {ends[ours]['length'].max():,.0f} tokens"
    names = {model: own["arm"].iloc[0] for model, own in ends.items()}
    each = ", ".join(f"{names[model]} keeps {100 * values[1]:.0f} %" for model, values in kept.items())
    return f"{what} {claim(holds, f'of the throughput from {length} {each}')}"


def _leads(rows: pd.DataFrame, ours: str, rival: str, fastest: str) -> str:
    """Whether one model generates faster than all others at the longest prompt, and how fast ours is beside its rival."""
    last = {model: _ends(rows, model).iloc[-1] for model in rows["model"].unique() if len(_ends(rows, model))}
    what = f"{model_label(fastest)} generates faster than all others."
    if fastest not in last or len(last) < 2:
        return f"{what} {claim(None, 'it was not timed beside others')}"
    best = max((row for model, row in last.items() if model != fastest), key=lambda row: row["throughput"])
    mine = last[fastest]
    apart = mine["latency_ms_high"] < best["latency_ms_low"], mine["latency_ms_low"] > best["latency_ms_high"]
    holds = True if apart[0] else False if apart[1] else None
    told = ", ".join(f"{row['arm']} {row['throughput']:,.0f} tokens/s" for row in (mine, best))
    where = f"prompts of {mine['length']:,.0f} tokens"
    said = f"{what} {claim(holds, f'at {where} {told}')}"
    if ours in last and rival in last:
        said += (
            f" {last[ours]['arm']} generates at {last[ours]['throughput'] / last[rival]['throughput']:.2f} times the speed of "
        )
        said += f"{last[rival]['arm']}, with which the paper calls it competitive."
    return said
