"""Which runs a benchmark reports, by its protocol, from invented scores."""

from __future__ import annotations

import pandas as pd
import pytest
from benchmark_runs import ask, frames_of

from conf.groups import options
from reports.kit.chosen_runs import chosen_runs, line_labels, over_seeds, setting_labels
from reports.kit.parts import Frames, NoData
from reports.kit.protocol import FEW, read_protocol
from reports.pages.success import scores


def at_two_rates(store, name: str | None) -> Frames:
    """Validation prefers the rate 0.1, at which the test split scores worse."""
    for seed in (0, 1, 2):
        ask(store, "mesanet", 0.6 + 0.1 * seed, validation=0.9, seed=seed, protocol=name, **{"train.lr": 0.1})
        ask(store, "mesanet", 0.95, validation=0.8, seed=seed, protocol=name, **{"train.lr": 0.2})
    return frames_of(store)


@pytest.mark.parametrize("name", options("protocol"))
def test_every_protocol_that_is_configured_can_be_read(name):
    read = read_protocol(name)
    assert read.name == name and read.seeds >= 1
    assert (read.stage, read.select_on) in (("train", "validation"), ("test", "test"))
    assert read.metric in ("accuracy", "accuracy_macro") and all(isinstance(each, str) for each in read.deviations)


def test_a_store_names_no_file_by_its_protocol():
    with pytest.raises(NoData, match="not known here"):
        read_protocol("../experiment/mad")


@pytest.mark.parametrize(
    ("name", "rate", "words"),
    [
        ("clean", 0.1, "that the validation split prefers"),
        (None, 0.1, "Protocol clean (of this suite)"),
        ("zoology_fig2", 0.2, "best on the test split itself, as published, which flatters"),
    ],
)
def test_the_split_that_the_protocol_names_chooses_the_rate_and_the_test_split_reports(store, name, rate, words):
    chosen = chosen_runs(at_two_rates(store, name), ["mqar"])
    assert set(chosen.cells["train.lr"]) == {rate} and len(chosen.cells) == 3 and len(chosen.asked) == 6
    assert chosen.cells["value"].tolist() == pytest.approx([0.6, 0.7, 0.8] if rate == 0.1 else [0.95] * 3)
    (note, counts) = chosen.notes("shown")
    assert words in note and "of 2 learning rates each arm has the one" in note and "n=3 seeds" in note
    assert counts == "6 runs asked for: 6 done."


def test_a_mean_over_targets_is_reported_where_the_protocol_asks_for_it_and_the_task_has_one(store):
    for task, macro in (("mad_compression", 0.4), ("mqar", None)):
        ask(store, "mesanet", 0.7, task=task, macro=macro, protocol="mesanet_mad")
    chosen = chosen_runs(frames_of(store), ["mad_compression", "mqar"])
    assert dict(zip(chosen.cells["task"], chosen.cells["value"], strict=True)) == {"mad_compression": 0.4, "mqar": 0.7}
    assert dict(zip(chosen.cells["task"], chosen.cells["metric"], strict=True))["mad_compression"] == "accuracy_macro"
    assert "accuracy, mean over targets and accuracy, on the test split" in chosen.notes("shown")[0]
    assert "one learning rate each, so that nothing was chosen" in chosen.notes("shown")[0]


def test_a_rate_at_which_a_seed_diverges_counts_it_as_0(store):
    for seed in (0, 1):
        ask(store, "mesanet", 0.7, validation=0.7, seed=seed, **{"train.lr": 0.1})
        status = "diverged" if seed else "done"
        ask(store, "mesanet", 0.9, validation=0.9, seed=seed, status=status, **{"train.lr": 0.2})
    chosen = chosen_runs(frames_of(store), ["mqar"])
    assert set(chosen.cells["train.lr"]) == {0.1}
    notes = " ".join(chosen.notes("shown"))
    assert "n=2 seeds (the protocol asks for 3)" in notes and "counts as 0" in notes and "diverged: MESANET" in notes


def test_many_runs_that_are_missing_are_named_by_model_and_task(store):
    ask(store, "mesanet", 0.7)
    for seed in range(1, FEW + 3):
        ask(store, "mesanet", 0.7, seed=seed, status="missing")
    notes = chosen_runs(frames_of(store), ["mqar"]).notes("shown")
    assert notes[-1] == f"missing, by model and task: MESANET on MQAR {FEW + 2}." and len(notes) == 3


def test_nothing_that_is_there_is_said():
    empty = pd.DataFrame({"task": [], "run_id": []})
    with pytest.raises(NoData, match="no run of mqar was asked for"):
        chosen_runs(Frames(empty, empty, empty, {}, lambda: empty, lambda: empty), ["mqar"])


def test_runs_without_a_test_score_are_no_data(store):
    ask(store, "mesanet", 0.7, status="diverged")
    with pytest.raises(NoData, match="no run of MQAR has an accuracy on its test split"):
        chosen_runs(frames_of(store), ["mqar"])


def test_settings_are_called_by_what_differs_from_most_of_them(store):
    for size, length, train in ((16, 64, None), (32, 64, None), (16, 128, None), (16, 64, 800)):
        ask(store, "mesanet", 0.5, **{"task.vocab_size": size, "task.seq_len": length, "task.num_train": train})
    cells = chosen_runs(frames_of(store), ["mqar"]).cells
    assert setting_labels(cells).tolist() == ["baseline", "vocab size 32", "sequence length 128", "training examples 800"]
    assert set(line_labels(cells)) == {"MESANET"}


def test_what_follows_from_the_axis_is_no_part_of_a_label(store):
    for width in (32, 64):
        for floor in (0.1, 0.2):
            settings = {"size.d_model": width, "size.head_dim": width, "model.mixer.floor": floor}
            ask(store, "mesanet", 0.5, **settings)
    cells = chosen_runs(frames_of(store), ["mqar"]).cells
    assert sorted(set(line_labels(cells, "size.d_model"))) == ["MESANET, floor 0.1", "MESANET, floor 0.2"]
    assert len(set(line_labels(cells))) == 4


def test_runs_that_differ_in_their_training_are_other_lines_unless_the_task_says_so(store):
    for size, steps in ((16, 100), (32, 200)):
        ask(store, "mesanet", 0.5, **{"task.vocab_size": size, "train.steps": steps})
    assert set(line_labels(chosen_runs(frames_of(store), ["mqar"]).cells)) == {"MESANET"}
    ask(store, "mesanet", 0.5, **{"task.vocab_size": 32, "train.steps": 100})
    found = set(line_labels(chosen_runs(frames_of(store), ["mqar"]).cells))
    assert found == {"MESANET, steps 100", "MESANET, steps 200"}


def test_quartiles_and_successes_are_over_seeds_and_a_diverged_one_has_failed(store):
    for seed, value in enumerate((0.2, 0.4, 0.995)):
        ask(store, "mesanet", value, seed=seed)
    ask(store, "mesanet", 0.0, seed=3, status="diverged")
    ask(store, "mesanet", 0.0, seed=4, status="missing")
    frames = frames_of(store)
    (row,) = over_seeds(chosen_runs(frames, ["mqar"]).cells, ["model"], 0.99).to_dict("records")
    assert (row["q1"], row["median"], row["q3"]) == pytest.approx((0.3, 0.4, 0.6975))
    assert (row["n"], row["succeeded"], row["counted"], row["share"]) == (3, 1, 4, 0.25)
    assert row["without"] == "1 diverged, 1 missing" and row["each"] == (0.2, 0.4, 0.995)
    assert len(row["runs"].split()) == 5
    table = scores(frames, tasks=["mqar"], across="task", threshold=0.99)
    assert table.rows[0][1].text == "0.400 [0.300, 0.698], 1/4 (1 diverged, 1 missing)"
