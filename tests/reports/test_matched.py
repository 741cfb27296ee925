"""What was matched, and what is left unequal, stands beside a comparison."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from reports.kit.parts import Frames, NoData, Table, load_frames
from reports.pages.matched import _costs, costs
from reports.standard import standard_page
from suite.compute.interface import unfilled_backbone
from suite.plan import plan

BY_PARAMETERS = {"matched_by": "parameters", "match_reference": "transformer", "match_tolerance": 0.02}


def ask(
    store, model: str, *, task: str = "mqar", seed: int = 0, taken: int | None = None, begun: bool = True, **facts: Any
) -> None:
    """A run with these facts, and with those of them that have __ as settings that name it."""
    varied = {key.replace("__", "."): facts.pop(key) for key in list(facts) if "__" in key}
    names = {"label": model.capitalize(), "seed": seed, "varied": {"size.d_model": 10, **varied}}
    if not begun:
        store.ask(model, task, **names)
        return
    known = {"parameters": 1000, "state_bytes": 4000, "flops_per_token": 5000, "vocab_size": 20, "lr": 0.001, "train_steps": 10}
    rows = [] if taken is None else [store.row("steps_taken", taken, "train")]
    store.run(model, task, stages={"train": rows}, facts={**known, "train_tokens": 640, **facts}, **names)


def frames(store) -> Frames:
    store.request()
    return load_frames(store.root, "quick")


def told(table: Table) -> dict[str, list[str]]:
    """The texts of every row by those of its first entry."""
    return {row[0].text: [entry.text for entry in row[1:]] for row in table.rows}


def test_every_cost_stands_beside_its_ratio_to_the_reference(store) -> None:
    ask(store, "transformer", **BY_PARAMETERS)
    ask(store, "gla", **BY_PARAMETERS, parameters=1010, state_bytes=2000, lr=0.002)
    table = costs(frames(store))
    assert told(table) == {
        "Transformer": ["800", "1,000", "4,000", "5,000", "640", "0.001"],
        "Gla": ["810 (×1.012)", "1,010 (×1.010)", "2,000 (×0.500)", "5,000 (×1.000)", "640 (×1.000)", "0.002 (×2.000)"],
    }
    assert table.notes == (
        "Matched to transformer by parameters, within 2 % "
        "(match.by=parameters, match.reference=transformer, match.tolerance=0.02).",
        "Ratios are to Transformer on the same task, to the run whose size and training are set most alike.",
        "Left unequal by more than 2 %: state bytes (Gla), learning rate (Gla).",
    )


def test_seeds_and_rates_share_a_row_and_sizes_have_their_own(store) -> None:
    for model, factor in (("transformer", 1), ("gla", 2)):
        for head_dim in (8, 16):
            for seed, rate in ((0, 0.001), (1, 0.001), (0, 0.003)):
                own = {"size__head_dim": head_dim, "train__lr": rate, "lr": rate, "seed": seed}
                ask(store, model, **BY_PARAMETERS, **own, state_bytes=factor * head_dim)
    rows = told(costs(frames(store)))
    assert list(rows) == ["Transformer, head size 8", "Transformer, head size 16", "Gla, head size 8", "Gla, head size 16"]
    # Beside the reference of the same head size and rate.
    assert [rows[f"Gla, head size {dim}"][2] for dim in (8, 16)] == ["16 (×2.000)", "32 (×2.000)"]
    assert rows["Gla, head size 8"][5] == "0.001 to 0.003 (×1.000)" and rows["Transformer, head size 8"][2] == "8"


def test_no_ratio_is_taken_over_two_settings_of_a_task(store) -> None:
    for length in (64, 128):
        ask(store, "gla", task__seq_len=length)
    ask(store, "transformer", **BY_PARAMETERS, task__seq_len=64, state_bytes=2000)
    rows = told(costs(frames(store)))
    assert rows["Gla"][2] == "4,000 (×2.000)"
    both = _costs(load_frames(store.root, "quick")).set_index(["model", "task.seq_len"])["state_bytes_ratio"]
    assert both["gla", 64] == 2 and both.isna()["gla", 128]


def test_a_run_that_ended_early_saw_fewer_tokens(store) -> None:
    ask(store, "gla", taken=5)
    assert told(costs(frames(store)))["Gla"][4] == "320"


def test_what_nothing_or_nobody_knows_to_be_matched_is_said(store) -> None:
    ask(store, "mesanet", matched_by="none", match_reference="transformer", match_tolerance=0.02)
    ask(store, "gla", matched_by="none", match_reference="transformer", match_tolerance=0.02)
    ask(store, "hawk", parameters=1500)
    notes = costs(frames(store)).notes
    assert notes[:3] == (
        "Nothing was matched (match.by=none): Gla.",
        "Runs of an older version do not say what they were matched by: Hawk.",
        # The reference is not among the runs: the first model is.
        "Ratios are to Mesanet on the same task, to the run whose size and training are set most alike.",
    )
    assert notes[3] == "Left unequal by more than 2 %: parameters without embedding (Hawk), parameters (Hawk)."


def test_a_tolerance_is_each_arms_own(store) -> None:
    ask(store, "transformer", **BY_PARAMETERS)
    ask(store, "gla", **BY_PARAMETERS, state_bytes=4120)
    ask(store, "hawk", **{**BY_PARAMETERS, "match_tolerance": 0.05}, state_bytes=4120)
    assert costs(frames(store)).notes[-1] == "Left unequal by more than 2 % or 5 %: state bytes (Gla)."


def test_arms_that_are_equal_are_said_to_be(store) -> None:
    for model in ("transformer", "gla"):
        ask(store, model, **BY_PARAMETERS)
    assert costs(frames(store)).notes[-1] == "Nothing is left unequal by more than 2 %."


def test_an_arm_that_was_not_begun_keeps_its_row(store) -> None:
    ask(store, "transformer", **BY_PARAMETERS)
    ask(store, "gla", **BY_PARAMETERS)
    ask(store, "hawk", begun=False)
    table = costs(frames(store))
    assert told(table)["Hawk"] == ["–"] * 6 and table.notes[-1] == "– stands for runs that were not begun."


def test_one_arm_has_no_ratios(store) -> None:
    ask(store, "gla")
    ask(store, "mesanet", begun=False)
    table = costs(frames(store))
    assert table.notes[0] == "No ratios: one arm alone has runs, or the reference has none." and "×" not in str(table.rows)


def test_several_tasks_have_a_column(store) -> None:
    for task in ("mqar", "parity"):
        ask(store, "gla", task=task)
    table = costs(frames(store))
    assert table.header[0] == "task" and [row[0].text for row in table.rows] == ["MQAR", "parity"]
    assert len(table.short) == len(table.header) == len(table.rows[0])


def test_without_runs_there_is_no_data(store) -> None:
    ask(store, "gla")
    asked = frames(store)
    with pytest.raises(NoData):
        costs(Frames(asked.results, asked.runs.iloc[:0], asked.cells, {}, asked.read_examples, asked.read_curves))


@pytest.mark.parametrize(
    ("arms", "is_there"),
    [
        ([{"model": "gla"}, {"model": "hawk"}], True),
        ([{"model": "gla", "size__head_dim": 8}, {"model": "gla", "size__head_dim": 16}], True),
        ([{"model": "gla", "train__lr": 0.001}, {"model": "gla", "train__lr": 0.002}], False),
        ([{"model": "gla"}], False),
    ],
)
def test_the_standard_page_has_it_where_there_is_something_to_match(store, arms: list[dict[str, Any]], is_there: bool) -> None:
    for arm in arms:
        ask(store, **arm)
    assert any(part.name == "matched" for part in standard_page(frames(store)).parts) == is_there


@pytest.mark.parametrize("task", ["mqar", "in_context_regression", "mad_compression"])
def test_the_embedding_that_is_left_out_is_that_of_the_model(store, task: str) -> None:
    (run,) = plan(["model=gla", f"task={task}", "eval=none"])
    facts = {key: run.facts.get(key) for key in ("parameters", "vocab_size", "input_dim")}
    ask(store, "gla", task=task, **facts, size__d_model=run.config.size.d_model)
    model = unfilled_backbone(run.interface, run.config.model, run.config.size, backend="torch", device=torch.device("meta"))
    left = sum(weight.numel() for weight in model.parameters()) - model.embedding.weight.numel()
    assert told(costs(frames(store)))["Gla"][0] == f"{left:,}"
