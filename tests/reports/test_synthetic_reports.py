"""The figures of a benchmark against what varies, from invented scores."""

from __future__ import annotations

import dataclasses

import pandas as pd
import pytest
from benchmark_runs import ask, assert_named, frames_of

from conf.settings import RequestError
from reports.kit.chosen_runs import chosen_runs, placed
from reports.kit.parts import Frames, NoData
from reports.kit.protocol import read_protocol
from reports.pages.capacity import curve
from reports.pages.success import heat_map, scores
from reports.pages.synthetic import accuracy_against, accuracy_by_state, protocol
from reports.pages.trained_length import accuracy_by_length, length_scores


def with_pairs(store, *, state=1024) -> Frames:
    """Two models of three seeds, at two widths, with scores by the number of pairs; of one run nothing is there."""
    for model, better in (("mesanet", 0.1), ("gla", 0.0)):
        for width in (32, 64):
            for seed in (0, 1, 2):
                value = 0.4 + better + width / 320 + 0.01 * seed
                slices = [({"num_pairs": 4}, value + 0.2), ({"num_pairs": 8}, value)]
                status = "missing" if (model, width, seed) == ("gla", 64, 2) else "done"
                settings = {"size.d_model": width, "size.head_dim": width}
                ask(store, model, value, seed=seed, slices=slices, status=status, state=state * width, **settings)
    return frames_of(store)


def test_runs_whose_task_is_set_otherwise_are_no_seeds(store):
    for words, seed in ((64, 0), (64, 1), (128, 0)):
        for pairs in (4, 8):
            places = {"task.vocab_size": words, "task.num_pairs": pairs, "size.head_dim": 8}
            ask(store, "gla", 1 / pairs, seed=seed, slices=[({"num_pairs": pairs}, 1 / pairs)], **places)
    frames, said = frames_of(store), "runs of GLA differ in vocab size: which of them are compared?"
    for draw in (accuracy_against, accuracy_by_state):
        with pytest.raises(NoData) as raised:
            draw(frames, task="mqar", panels="num_pairs", **({"fact": "task.num_pairs"} if draw is accuracy_against else {}))
        assert str(raised.value) == said
    with pytest.raises(NoData) as raised:
        curve(frames, task="mqar")
    assert str(raised.value) == said


def test_a_run_without_scores_is_missing_in_every_slice_that_others_have(store):
    frames = with_pairs(store)
    cells = placed(frames, chosen_runs(frames, ["mqar"]).cells, "size.d_model", "num_pairs")
    own = cells[(cells["model"] == "gla") & (cells["size.d_model"] == 64)]
    assert own.groupby("num_pairs")["value"].agg(["size", "count"]).to_numpy().tolist() == [[3, 2], [3, 2]]
    with pytest.raises(RequestError, match="num_pair"):
        placed(frames, cells, "num_pair")


def test_accuracy_against_the_width_has_a_panel_for_every_number_of_pairs(store):
    drawing = accuracy_against(with_pairs(store), task="mqar", fact="size.d_model", panels="num_pairs")
    assert [axes.get_title() for axes in drawing.figure.axes] == ["4 pairs", "8 pairs"]
    row = drawing.data.set_index(["arm", "size.d_model", "num_pairs"]).loc[("MESANET", 32, 4)]
    assert (row["median"], row["q1"], row["q3"]) == pytest.approx((0.81, 0.805, 0.815)) and row["n"] == 3
    labels = drawing.figure.axes[0].get_legend_handles_labels()[1]
    assert labels == ["GLA", "MESANET"] and drawing.figure.axes[0].get_xscale() == "log"
    assert_named(drawing.notes)
    assert "medians" in drawing.notes[0] and any(note.startswith("missing: GLA") for note in drawing.notes)


def test_references_are_lines_that_say_what_is_known_without_training(store):
    for examples in (1000, 4000):
        folder = ask(store, "mesanet", 0.9, task="regbench", **{"task.num_train": examples})
        assert folder.exists()
    path = next((store.root / "runs").glob("*/eval/test-*.json"))
    text = path.read_text().replace(
        '"rows": [', '"rows": [{"metric": "ngram3_accuracy", "value": 0.875, "split": "test", "slice": {}, "count": 9}, '
    )
    path.write_text(text)
    asked = {"task": "regbench", "fact": "task.num_train", "references": ["ngram3_accuracy", "ngram2_accuracy"]}
    drawing = accuracy_against(frames_of(store), **asked, whole_axis=False)
    (axes,) = drawing.figure.axes
    assert axes.get_legend_handles_labels()[1] == ["MESANET", "in-context 3-gram floor"]
    assert axes.get_ylim()[0] > 0.5 and axes.get_xlabel() == "number of training examples"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1,000", "4,000"]
    known = drawing.data[drawing.data["arm"] == ""]
    assert known["metric"].tolist() == ["ngram3_accuracy"] and known["median"].tolist() == [0.875]


def test_what_is_known_by_slice_is_drawn_in_its_panel(store):
    frames = with_pairs(store)
    chance = frames.results.assign(metric="chance", value=1 / frames.results["num_pairs"].fillna(2))
    both = dataclasses.replace(frames, results=pd.concat([frames.results, chance]))
    drawing = accuracy_against(both, task="mqar", fact="size.d_model", panels="num_pairs", references=["chance"])
    lines = [[line for line in axes.lines if line.get_label() == "chance"] for axes in drawing.figure.axes]
    assert [line.get_ydata()[0] for (line,) in lines] == [0.25, 0.125]


def test_accuracy_by_state_joins_the_sizes_of_a_model_and_says_them(store):
    drawing = accuracy_by_state(with_pairs(store), task="mqar", panels="num_pairs")
    assert set(drawing.data["arm"]) == {"MESANET", "GLA"}
    assert set(drawing.data["state_bytes"]) == {32 * 1024, 64 * 1024}
    first = drawing.figure.axes[0]
    assert {text.get_text() for text in first.texts} == {"32", "64"} and first.get_xlabel() == "state [bytes]"
    assert drawing.notes[-1] == "Numbers beside points: d_model, whichever varies."
    assert_named(drawing.notes)


def test_models_without_a_state_are_no_data(store):
    with pytest.raises(NoData, match="carries a state"):
        accuracy_by_state(with_pairs(store, state=0), task="mqar", panels="num_pairs")


def test_success_is_a_square_for_every_arm_and_place(store):
    frames = with_pairs(store)
    drawing = heat_map(frames, tasks=["mqar"], across="size.d_model", panels="num_pairs", threshold=0.805)
    first, second = drawing.figure.axes
    # At 4 pairs GLA has 0.7 to 0.72 and 0.8 to 0.81, MesaNet 0.8 to 0.82 and 0.9 to 0.92; at 8 all have 0.2 less.
    squares = [{text.get_position(): text.get_text() for text in axes.texts} for axes in (first, second)]
    assert squares[0] == {(0, 0): "0/3", (1, 0): "1/2", (0, 1): "2/3", (1, 1): "3/3"}
    assert squares[1] == {(0, 0): "0/3", (1, 0): "0/2", (0, 1): "0/3", (1, 1): "0/3"}
    assert [text.get_text() for text in first.get_yticklabels()] == ["GLA", "MESANET"]
    assert [text.get_text() for text in first.get_xticklabels()] == ["32", "64"]
    assert_named(drawing.notes)
    table = scores(frames, tasks=["mqar"], across="size.d_model", panels="num_pairs", threshold=0.805)
    assert table.header == ("model", *(f"{pairs} pairs: d_model {width}" for pairs in (4, 8) for width in (32, 64)))
    assert table.rows[1][1].text == "0.810 [0.805, 0.815], 2/3" and table.rows[0][2].text.endswith("1/2 (missing)")
    assert_named(table.notes)


def test_what_nobody_asked_for_has_no_square_and_tasks_stand_in_the_order_of_the_report(store):
    ask(store, "gla", 0.5, task="even_pairs")
    ask(store, "mesanet", 0.995, task="parity")
    ask(store, "gla", 0.5, task="parity")
    (axes,) = heat_map(frames_of(store), tasks=["parity", "even_pairs"], across="task", threshold=0.99).figure.axes
    assert axes.collections[0].get_array().mask.reshape(2, 2).tolist() == [[False, False], [False, True]]
    assert {text.get_position() for text in axes.texts} == {(0, 0), (1, 0), (0, 1)}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["parity", "even pairs"]


def test_many_places_stand_below_one_another(store):
    for pairs in range(9):
        ask(store, "mesanet", pairs / 10, **{"task.vocab_size": 2**pairs})
    table = scores(frames_of(store), tasks=["mqar"], across="task.vocab_size", threshold=0.5)
    assert table.header == ("vocab size", "MESANET") and len(table.rows) == 9
    assert [row[1].text for row in table.rows][-1] == "0.800, 1/1"


def test_accuracy_by_length_is_averaged_over_windows_and_marks_the_trained_length(store):
    for seed in (0, 1):
        positions = [({"position": t}, 1.0 if t < 4 else 0.5 + 0.1 * seed + 0.01 * (t % 2)) for t in range(8)]
        ask(store, "mesanet", 0.8, task="parity", seed=seed, slices=positions, **{"task.seq_len": 4})
        bands = [({"length": 5}, 0.9), ({"length": 10}, 0.3)]
        ask(store, "mesanet", 0.6, task="modular_arithmetic", seed=seed, slices=bands, **{"task.seq_len": 5})
    frames = frames_of(store)
    asked = {"tasks": ["parity", "modular_arithmetic", "even_pairs"], "window": 2}
    drawing = accuracy_by_length(frames, **asked)
    own = drawing.data.set_index(["task", "length"])["median"]
    assert own["parity"].to_dict() == pytest.approx({1.5: 1.0, 3.5: 1.0, 5.5: 0.555, 7.5: 0.555})
    assert own["modular_arithmetic"].to_dict() == pytest.approx({5.0: 0.9, 10.0: 0.3})
    assert [axes.get_title() for axes in drawing.figure.axes] == ["parity, trained to 4", "modular arithmetic, trained to 5"]
    dashed = [line for line in drawing.figure.axes[0].lines if line.get_label() == "trained length"]
    assert [line.get_xdata()[0] for line in dashed] == [4]
    assert_named(drawing.notes)
    cells = chosen_runs(frames, ["parity"]).cells
    with pytest.raises(NoData, match="by position or by length"):
        length_scores(frames.results[frames.results["slice"] == ""], cells, window=2)


def test_the_protocol_and_what_it_does_not_take_over_is_a_table(store):
    ask(store, "mesanet", 0.5, protocol="zoology_fig2")
    table = protocol(frames_of(store))
    cells = [(row[0].text, row[1].text) for row in table.rows]
    assert table.header == ("protocol", "zoology_fig2") and ("rates are chosen on", "the test split") in cells
    told = [text for name, text in cells if name == "deviates"]
    assert told == list(read_protocol("zoology_fig2").deviations) and len(told) > 1


@pytest.mark.parametrize("others", [(), (32, 64)])
def test_the_only_point_of_a_model_has_no_size_beside_it(store, others):
    ask(store, "gla", 0.6, state=2048, **{"size.d_model": 32, "size.head_dim": 32})
    for width in others:
        ask(store, "mesanet", width / 100, state=512 * width, **{"size.d_model": width, "size.head_dim": width})
    (axes,) = accuracy_by_state(frames_of(store), task="mqar").figure.axes
    assert [text.get_text() for text in axes.texts] == [str(width) for width in reversed(others)]
