"""The figures of the report of MesaNet: what they draw, whether the paper's claims are said to hold, and what fills them."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import paper_runs
import pytest
from paper_runs import PAGE, add_language, drawn, frames_of, perplexity_rows, position_rows, said

from conf.settings import RequestError
from reports.kit.claims import Drawn, Missing, claim, majority
from reports.kit.narrow import amount, cells_of, of_one_setting, of_runs, one_arm_a_model, size_title, validation_losses
from reports.kit.parts import Frames, NoData, no_frames
from reports.kit.rows import BAND
from reports.pages.paper import figures_position

FIGURES = [part.name for part in PAGE.parts if part.name.startswith("figure")]
EMPTY = no_frames({"experiment": None, "created": "", "overrides": []})
PRINTED = ("figure_4", "figures_5_and_7")
"""Figures that show printed numbers, whatever the store has."""


def study(
    store, models=("transformer", "mesanet", "hawk_mesa", "hawk", "gla", "swa64"), cells=(("1b", 50),), seeds=(0,)
) -> Frames:
    for size, billions in cells:
        for model in models:
            for seed in seeds:
                stages = {"position": position_rows(store, model, seed=seed)}
                add_language(store, model, size=size, billions=billions, seed=seed, stages=stages)
    return frames_of(store)


def test_the_report_has_every_figure_of_the_paper_in_its_order() -> None:
    numbers = [int(number) for name in FIGURES for number in re.findall(r"\d+", name)]
    assert sorted(numbers) == list(range(2, 15))
    assert numbers == [2, 3, 4, 5, 7, 6, 8, 9, 10, 11, 12, 13, 14]
    assert all("paper" in part.caption or "As Figure" in part.caption for part in PAGE.parts if part.name in FIGURES)


def test_an_empty_store_says_what_is_missing_and_what_fills_it_at_what_cost() -> None:
    for name in FIGURES:
        try:
            made = drawn(name, EMPTY)
        except NoData as nothing:
            told = str(nothing)
            assert name not in PRINTED
        else:
            (told,) = made.notes
            assert name in PRINTED and len(made.data)
        assert "the store holds no run" in told
        command, cost = re.findall(r"filled by: (python -m suite run .*) \((.*)\)", told)[0]
        assert "trained" in cost or re.search(r"\d+ trainings?, [\de.]+ FLOPs, [\d.,]+ hours of one H100", cost)
        assert "\n" not in command


def test_costs_are_six_flops_a_weight_and_token() -> None:
    trained = {"study": "mesanet", "cells": {"1B": ["50B"]}, "models": ["mesanet", "gla"], "evaluation": ["eval=position"]}
    words = Missing.read({"trained": trained}).words(EMPTY)
    assert "recipe=mesanet_50b size=1b model=mesanet,gla" in words and words.count("eval=position") == 1
    flops = float(re.findall(r"2 trainings, ([\de.]+) FLOPs", words)[0])
    assert flops == pytest.approx(2 * 6 * 936e6 * 50e9, rel=0.03)
    assert "nothing is trained" in Missing(command="x").words(EMPTY)


def test_windows_of_another_length_are_not_paired(store) -> None:
    for model, seq_len in (("transformer", 2048), ("mesanet", 2048), ("gla", 1024)):
        stages = {"position": position_rows(store, model, last=seq_len)}
        add_language(store, model, stages=stages, **{"task.seq_len": seq_len})
    drawing = drawn("figure_3", frames_of(store))
    assert set(drawing.data["model"]) == {"mesanet"}
    said_of_gla = "1B, 50B tokens: Trained on other windows than transformer, and so not drawn: GLA."
    assert said_of_gla in drawing.notes
    frames = frames_of(store)
    alone = of_runs(frames, frames.runs.loc[frames.runs["model"] != "mesanet", "run_id"])
    with pytest.raises(NoData, match=f"no model was trained on the same windows as transformer: {said_of_gla}"):
        drawn("figure_3", alone)


def test_what_was_trained_is_to_be_evaluated_alone(store) -> None:
    add_language(store, "mesanet")
    trained = {"study": "mesanet", "cells": {"1B": ["50B"]}, "models": ["mesanet"], "evaluation": ["eval=position"]}
    words = Missing.read({"trained": trained}).words(frames_of(store))
    assert words.startswith(
        "It is filled by: python -m suite evaluate run=mesanet-1b-language-50000000000-0 eval=position (nothing"
    )
    assert "; python -m suite run " in words


@pytest.mark.parametrize("values", [{}, {"command": "x", "trained": None, "flops": -1.0}, {"command": "a\nb"}])
def test_what_fills_a_figure_is_one_command(values) -> None:
    with pytest.raises(RequestError):
        Missing.read(values)


def test_a_figure_of_another_page_is_checked_when_the_report_is_read() -> None:
    with pytest.raises(RequestError, match="windw"):
        Drawn.read({"type": "state_tracking.accuracy_by_length", "arguments": {"task": "parity", "split": "test", "windw": 8}})


@pytest.mark.parametrize(
    ("votes", "decided"),
    [([1, 1, -1], True), ([1, 0, -1], None), ([1, -1, -1], False), ([1, -1], False), ([], None), ([0], None)],
)
def test_a_majority_is_settled_only_where_the_unsettled_can_not_turn_it(votes, decided) -> None:
    assert majority(votes) is decided
    assert claim(decided, "x").startswith("The paper's claim ")


def test_positions_are_compared_cell_by_cell_with_the_largest_first(store) -> None:
    frames = study(store, cells=[("400m", 15), ("1b", 15), ("400m", 50), ("1b", 50)])
    whole = drawn("figure_10", frames)
    titles = [axes.get_title() for axes in whole.figure.axes if axes.get_visible()]
    assert titles == ["1B, 50B tokens", "400M, 50B tokens", "1B, 15B tokens", "400M, 15B tokens"]
    assert {axes.get_xscale() for axes in whole.figure.axes if axes.get_visible()} == {"linear"}
    one = drawn("figure_3", frames)
    assert set(one.data["cell"]) == {"1B, 50B tokens"} and [axes.get_xscale() for axes in one.figure.axes] == ["linear", "log"]
    late = one.data[one.data["position_high"] == 2048].set_index("model")["mean"]
    for model in ("mesanet", "hawk", "swa64"):
        assert late[model] == pytest.approx(paper_runs.EARLY_LATE[model][1], abs=0.005)
    assert one.figure.axes[1].get_ylim()[1] < 0.15 < late.max() * 1.1


def test_the_mean_so_far_weighs_every_range_by_its_positions() -> None:
    rows = pd.DataFrame({"run_id": "a", "example": 0, BAND[0]: [0, 1, 2], BAND[1]: [1, 2, 4], "value": [np.nan, 3.0, 6.0]})
    found = figures_position.means_so_far(rows.sample(frac=1, random_state=0))
    assert found["value"].tolist() == pytest.approx([np.nan, 3.0, 5.0], nan_ok=True)
    assert (found[BAND[0]] == 0).all() and found[BAND[1]].tolist() == [1, 2, 4]


def test_mesa_ahead_to_the_end_is_what_the_paper_finds(store) -> None:
    drawing = drawn("figure_12", study(store, models=("transformer", "mesanet", "hawk_mesa", "hawk", "gla", "mamba2")))
    assert "holds here" in said(drawing, "1B, 50B tokens, Mesa ahead beyond position 512")
    assert "5 models without attention" in said(drawing, "1B, 50B tokens, ahead at first")
    assert drawing.data["position"].max() == 2048


@pytest.mark.parametrize("late", ["holds", "does not hold"])
def test_most_rnns_early_ahead_and_late_behind(late: str) -> None:
    high = 0.02 if late == "holds" else -0.01
    rows = [
        {"arm": name, "model": name, "position_high": at, "low": mean - 0.001, "high": mean + 0.001}
        for name in ("gla", "hawk", "mlstm")
        for at, mean in ((64, -0.01), (256, high))
    ]
    (note,) = figures_position.findings(pd.DataFrame(rows), ["swa64"], "here")
    assert f"claim {late} here" in note and "at position 64" in note


def test_a_cell_without_the_transformer_is_named_and_not_drawn(store) -> None:
    study(store)
    add_language(store, "gla", size="400m", billions=15, stages={"position": position_rows(store, "gla")})
    notes = drawn("figure_11", frames_of(store)).notes
    assert "Without transformer, and so not drawn: 400M, 15B tokens." in notes


def test_without_a_transformer_anywhere_the_figure_says_so(store) -> None:
    frames = study(store, models=("gla", "mesanet"))
    with pytest.raises(NoData, match="no size and number of tokens has both transformer and another model.*evaluate run="):
        drawn("figure_3", frames)


def test_of_several_settings_the_one_that_validation_prefers_is_drawn_and_said(store) -> None:
    for rate, loss in ((1e-3, 2.5), (2e-3, 2.4), (4e-3, None)):
        for seed in (0, 1):
            loss = loss if loss is None else loss + seed / 100
            add_language(store, "gla", seed=seed, loss=loss, **{"train.lr": rate})
    frames = frames_of(store)
    kept, notes = one_arm_a_model(frames.runs, validation_losses(frames, "nll"), by="NLL")
    assert set(frames.runs.set_index("run_id").loc[kept, "train.lr"]) == {2e-3} and len(kept) == 2
    assert notes == ["Models of several settings are shown at that of the best NLL: GLA (3 settings)."]
    apart, none = one_arm_a_model(frames.runs, validation_losses(frames, "nll"), by="NLL", apart=["train.lr"])
    assert len(apart) == 6 and not none


def test_frames_of_some_runs_name_arms_anew_and_read_these_alone(store) -> None:
    for rate in (1e-3, 2e-3):
        add_language(store, "gla", stages={"position": position_rows(store, "gla")}, **{"train.lr": rate})
    frames = frames_of(store)
    run_id = frames.runs["run_id"].iloc[0]
    asked: list[set[str]] = []
    one = of_runs(replace(frames, read_examples=lambda ids: asked.append(ids) or frames.examples), [run_id], facts=["train.lr"])
    assert set(frames.cells["arm"]) == {"GLA, learning rate 0.001", "GLA, learning rate 0.002"}
    assert set(one.results["arm"]) == set(one.examples["arm"]) == {"GLA"}
    assert set(one.examples["run_id"]) == {run_id} and asked == [{run_id}]
    assert "train.lr" in one.results


def test_sizes_and_tokens_are_written_as_the_paper_does(store) -> None:
    assert [size_title(size) for size in ("400m", "1b", "tiny")] == ["400M", "1B", "tiny"]
    assert [amount(number) for number in (15e9, 999_999_488, 2_457_600, 512, float("nan"))] == [
        "15B",
        "1B",
        "2.46M",
        "512",
        "unknown",
    ]
    study(store, models=("gla",), cells=[("400m", 50), ("1b", 50)])
    assert [cell.title for cell in cells_of(frames_of(store).runs)] == ["1B, 50B tokens", "400M, 50B tokens"]


def test_of_ways_to_set_a_task_the_one_of_the_most_models_is_drawn() -> None:
    rows = [("a", "gla", 4), ("b", "gla", 8), ("c", "mesanet", 8)]
    runs = pd.DataFrame(rows, columns=["run_id", "model", "task.num_letters"]).assign(size="tiny")
    assert of_one_setting(runs)["run_id"].tolist() == ["b", "c"]
    assert len(of_one_setting(runs, without=["task.num_letters"])) == 3


@pytest.mark.parametrize(("models", "verdict"), [(("transformer", "mesanet"), "holds"), (("mesanet",), "is undecided")])
def test_perplexity_so_far_is_beside_the_printed_one(store, models, verdict: str) -> None:
    for model in models:
        for seed in (0, 1):
            add_language(
                store, model, size="400m", billions=15, seed=seed, stages={"perplexity": perplexity_rows(store, model, seed=seed)}
            )
    drawing = drawn("figure_4", frames_of(store))
    assert f"claim {verdict} here: from 2,048 tokens" in said(drawing, "The paper's claim")
    assert [axes.get_title() for axes in drawing.figure.axes] == ["the paper: 1B, 50B tokens", "ours: 400M, 15B tokens"]
    printed = drawing.data[(drawing.data["panel"] != "ours: 400M, 15B tokens") & (drawing.data["model"] == "mesanet")]
    assert printed.set_index("position")["mean"].to_dict() == pytest.approx({2048: 11.47, 4096: 11.26, 32768: 11.40}, abs=0.01)
    ours = drawing.data[(drawing.data["panel"] == "ours: 400M, 15B tokens") & (drawing.data["model"] == "mesanet")]
    assert ours["n"].max() == 2 and ours["position"].max() == 32768
    assert ours["mean"].iloc[-1] == pytest.approx(
        np.mean([np.exp(2.5 + 3 / 16 + each + seed * 0.006) for seed in (0, 1) for each in (0, 0.1)])
    )


def test_models_are_compared_at_the_longest_context_that_all_were_read_to(store) -> None:
    for model in ("transformer", "mesanet", "gla"):
        rows = perplexity_rows(store, model)
        longer = [{**row, "value": 9.0, "slice": {**row["slice"], "context": 65536}} for row in rows]
        if model == "gla":
            for row in rows:
                row["slice"]["context"] = 4096
        add_language(store, model, stages={"perplexity": [*rows, *(longer if model == "mesanet" else [])]})
    drawing = drawn("figure_4", frames_of(store))
    ours = drawing.data[drawing.data["panel"].str.startswith("ours")]
    # MesaNet alone was read to 65,536 tokens.
    assert set(ours["model"]) == {"transformer", "mesanet"} and ours["mean"].max() < np.exp(8.0)
    assert "Read to other lengths alone, or other texts, and so not drawn: GLA." in drawing.notes
