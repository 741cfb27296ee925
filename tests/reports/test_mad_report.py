"""MAD beside the table that the paper prints, and what the whole table would cost, from invented runs."""

from __future__ import annotations

import json

import numpy as np
import pytest
from omegaconf import OmegaConf

from conf.groups import find
from conf.settings import RequestError
from reports.kit.grid import hours, settings_of, whole_grid
from reports.kit.parts import Frames, NoData, load_frames, no_frames
from reports.pages.mad import COLUMNS, beside_published, cost, published
from suite.request.compose import Composer

TASKS = [task for tasks in COLUMNS.values() for task in tasks]
HOUR = 3600.0


def ask(store, task, value, *, model="mesanet", seed=0, seconds=HOUR, status="done", stages=None, facts=None, **settings):
    """A run at the baseline of its task in experiment=mad, but for the settings."""
    whole = whole_grid("mad")
    first = whole[whole["task"] == task].iloc[0]
    varied = {key: first[key] for key in [*settings_of(whole)[1:], "train.lr", "train.weight_decay"] if first.notna()[key]}
    varied = {key: value.item() if isinstance(value, np.generic) else value for key, value in varied.items()}
    rows = {"train": [store.row("train_seconds", seconds, "train")], "test": [store.row("accuracy_macro", value, "test")]}
    own = {"varied": varied | settings | {"protocol": "mesanet_mad"}, "facts": facts, "status": status}
    store.run(model, task, seed=seed, stages=(rows if status == "done" else {}) if stages is None else stages, **own)


def frames_of(store) -> Frames:
    store.request("quick")
    return load_frames(store.root, "quick")


def rows_of(table) -> dict[tuple[str, str], list[str]]:
    return {(row[0].text, row[1].text): [entry.text for entry in row[2:]] for row in table.rows}


def test_the_grid_has_the_settings_that_are_composed():
    whole = whole_grid("mad")
    assert len(whole) == 9 * 66 * 8 and len(whole[settings_of(whole)].drop_duplicates()) == 66
    picked = whole.drop_duplicates(settings_of(whole)).sample(6, random_state=0)
    assert picked["task"].nunique() > 2
    for row in picked.to_dict("records"):
        # The settings of a task follow the choice of it.
        keys = [key for key in settings_of(whole)[1:] if not (isinstance(row[key], float) and np.isnan(row[key]))]
        cell = ["experiment=mad", f"task={row['task']}", f"model={row['model']}"]
        cell += [f"{key}={row[key]:g}" for key in keys if key not in ("train.batch_size",)]
        composed = Composer([cell]).compose(cell).written
        for key in keys:
            group, name = key.split(".")
            assert composed[group][name] == row[key], key
        assert row["tokens"] == composed["train"]["steps"] * composed["train"]["batch_size"] * composed["task"]["seq_len"]


def test_what_an_experiment_sets_goes_before_its_protocol():
    assert read_protocol_warmup("mesanet_regbench") == 25000
    assert set(whole_grid("regbench")["train.warmup_steps"]) == {1000}


def read_protocol_warmup(name: str) -> int:
    return OmegaConf.load(find("protocol", name)).train.warmup_steps


def test_ours_the_papers_and_the_difference_stand_below_one_another(store):
    for i, task in enumerate(TASKS):
        for seed in (0, 1):
            ask(store, task, 0.9 - 0.1 * i + 0.02 * seed, seed=seed)
    table = beside_published(frames_of(store), whole="mad")
    assert table.header == ("model", "", *COLUMNS, "average")
    rows = rows_of(table)
    # The two recalls are one column: 90 and 80, and 2 more of the other seed.
    assert rows["MESANET", "ours"][:2] == ["86.0 (85.0 to 87.0)", "71.0 (70.0 to 72.0)"]
    assert rows["MESANET", "ours"][-1] == f"{(86 + 71 + 61 + 51 + 41) / 5:.1f} (61.0 to 63.0)"
    assert rows["MESANET", "paper"] == ["100.0", "58.5", "77.2", "99.2", "45.4", "76.1"]
    assert rows["MESANET", "difference"][:2] == ["−14.0", "+12.5"]
    assert not any(entry.mark for row in table.rows for entry in row)
    notes = " ".join(table.notes)
    assert "all 66 settings" in notes and "here are 6 of the settings, with at most 1 of the pairs" in notes
    assert "not judged" in notes and "Protocol mesanet_mad" in notes and "n=2 seeds" in notes


def test_every_model_of_the_papers_table_is_one_of_ours():
    printed = published()
    assert len({model for model, _ in printed}) == 9 and {column for _, column in printed} == {*COLUMNS, "average"}
    assert {model for model, _ in printed} == set(whole_grid("mad")["model"])


def test_a_column_that_is_not_there_is_a_dash_and_leaves_no_average(store):
    ask(store, "mad_fuzzy_recall", 0.5)
    ask(store, "mad_fuzzy_recall", 0.5, status="diverged", **{"task.vocab_size": 32})
    rows = rows_of(beside_published(frames_of(store), whole="mad"))
    assert rows["MESANET", "ours"] == ["–", "50.0, 1 of 2 settings", "–", "–", "–", "–"]
    assert rows["MESANET", "difference"] == ["–", "−8.5", "–", "–", "–", "–"]


def test_a_seed_counts_by_itself_where_it_has_every_setting(store):
    for size, seed, value in ((16, 0, 0.2), (16, 1, 0.4), (16, 2, 0.9), (32, 0, 1.0), (32, 1, 0.8)):
        ask(store, "mad_compression", value, seed=seed, **{"task.vocab_size": size})
    rows = rows_of(beside_published(frames_of(store), whole="mad"))
    # Means of settings 50 and 90; of the two seeds that have both 60 each.
    assert rows["MESANET", "ours"][4] == "70.0 (60.0 to 60.0)"


def test_the_best_rate_of_every_setting_is_averaged_over_settings(store):
    for size, values in ((16, (0.4, 0.6)), (32, (1.0, 0.2))):
        for lr, value in zip((1e-3, 5e-4), values, strict=True):
            ask(store, "mad_compression", value, **{"train.lr": lr, "task.vocab_size": size})
    table = beside_published(frames_of(store), whole="mad")
    assert rows_of(table)["MESANET", "ours"][4] == "80.0"
    assert "with at most 2 of the pairs" in table.notes[0] and "of 2 learning rates each arm has the one" in " ".join(table.notes)


def test_the_hours_of_the_whole_are_those_measured_and_for_the_rest_by_tokens(store):
    ask(store, "mad_compression", 0.5, seconds=2 * HOUR)
    ask(store, "mad_compression", 0.5, seconds=4 * HOUR, seed=1)
    frames = frames_of(store)
    whole = whole_grid("mad")
    found = hours(frames, whole)
    known = found[found["is_known"]]
    assert len(known) == 8 and (known["hours"] == 3.0).all() and set(known["task"]) == {"mad_compression"}
    # Everything else is as many times as long as it has tokens.
    baseline = known["tokens"].iloc[0]
    assert found["hours"].to_numpy() == pytest.approx(3.0 * found["tokens"] / baseline)
    table = cost(frames, whole="mad")
    rows = {row[0].text: [entry.text for entry in row[1:]] for row in table.rows}
    assert rows["MesaNet"][:4] == ["2", "6.00", "528", "8"] and rows["GLA"][:4] == ["0", "0.00", "528", "0"]
    assert rows["all"][4] == f"{found['hours'].sum():,.2f}" and "counted in full" in " ".join(table.notes)
    note = beside_published(frames, whole="mad").notes[1]
    assert f"of 9 models would take {found['hours'].sum():,.0f} hours" in note


def test_runs_that_shared_a_device_have_their_part_of_its_time(store):
    ask(store, "mad_compression", 0.5, seconds=8 * HOUR)
    for path in store.root.glob("runs/*/environment.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"device": "NVIDIA H200", "runs_per_device": 4}))
    frames = frames_of(store)
    assert hours(frames, whole_grid("mad")).query("is_known")["hours"].unique().tolist() == [2.0]
    notes = " ".join(cost(frames, whole="mad").notes)
    assert "each has its part" in notes and "device NVIDIA H200" in notes


def test_other_settings_than_those_of_the_table_are_said_to_be_others(store):
    ask(store, "mad_compression", 0.5, **{"task.seq_len": 16})
    assert "here is none of them" in beside_published(frames_of(store), whole="mad").notes[0]


def test_without_times_nothing_is_said_to_cost_anything(store):
    ask(store, "mad_compression", 0.5, stages={"test": [store.row("accuracy_macro", 0.5, "test")]})
    frames = frames_of(store)
    with pytest.raises(NoData, match="time of its training"):
        cost(frames, whole="mad")
    assert "an unknown time" in beside_published(frames, whole="mad").notes[1]
    with pytest.raises(RequestError, match="madd"):
        cost(frames, whole="madd")


def test_without_a_run_the_printed_rows_stand_with_the_command_that_fills_the_table(store):
    made = no_frames({"experiment": None, "created": "", "overrides": [], "where": "task=language", "page": "paper"})
    table = beside_published(made, whole="mad")
    assert rows_of(table)["MesaNet", "paper"] == ["100.0", "58.5", "77.2", "99.2", "45.4", "76.1"]
    assert {row[1].text for row in table.rows} == {"paper"} and "python -m suite run experiment=mad (" in table.notes[0]
