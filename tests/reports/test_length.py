"""What the study of longer sequences draws and says."""

from __future__ import annotations

import numpy as np
import pytest
from invented import length_rows

from reports.kit.parts import Frames, NoData, load_frames
from reports.pages.length import by_length, by_position, table

METRICS = ["nll", "solver_steps", "condition"]


@pytest.fixture
def longer(store) -> Frames:
    for seed in (0, 1):
        # The longest first: their order says nothing.
        store.run("mesanet", "language", seed=seed, stages={"length": length_rows(store, seed=seed)[::-1]})
    store.request()
    return load_frames(store.root, "quick")


def test_the_loss_is_less_that_of_the_training_length(longer) -> None:
    drawing = by_length(longer, task="language", metrics=METRICS)
    loss, steps, condition = (axes.containers[0][0] for axes in drawing.figure.axes)
    assert loss.get_ydata() == pytest.approx([0, 0.0105, 0.021])
    assert steps.get_ydata().tolist() == [8, 9, 10]
    assert condition.get_ydata().tolist() == [10, 20, 40]
    assert [text.get_text() for text in drawing.figure.axes[0].get_xticklabels()] == ["1×", "2×", "4×"]


def test_lengths_of_other_windows_are_not_compared(store) -> None:
    rows = length_rows(store, seed=0)
    others = [{**row, "count": 5} for row in rows if row["slice"]["length_factor"] == 4]
    kept = [row for row in rows if row["slice"]["length_factor"] < 4]
    store.run("mesanet", "language", stages={"length": [*kept, *others]})
    store.request()
    found = table(load_frames(store.root, "quick"), task="language", metrics=METRICS).data
    assert found.loc[found["metric"] == "nll_difference", "length_factor"].tolist() == [1, 2]
    assert found.loc[found["metric"] == "nll", "length_factor"].tolist() == [1, 2, 4]


def test_one_line_a_length_and_the_training_length_marked(longer) -> None:
    drawing = by_position(longer, task="language", metrics=["nll"], model="mesanet")
    (axes,) = drawing.figure.axes
    labels = [line.get_label() for line in axes.lines if not line.get_label().startswith("_")]
    assert labels == ["1× training length", "2× training length", "4× training length"]
    assert axes.lines[-1].get_xdata()[0] == 64
    assert axes.lines[0].get_xdata() == pytest.approx([1.0, np.sqrt(2 * 16), np.sqrt(17 * 64)])


def test_the_table_says_what_the_longest_changes(longer) -> None:
    made = table(longer, task="language", metrics=["nll", "perplexity", "solver_steps", "condition"])
    assert made.header == (
        *("model", "length", "NLL [nats/token]", "NLL, less 1×", "perplexity", "solver steps", "condition number"),
    )
    assert [row[1].text for row in made.rows] == ["64", "128", "256"]
    assert made.rows[0][3].text == "+0.0000"
    # 0.021 and the 12.7 standard errors of two seeds, 0.001 apart from it each.
    assert made.notes[0] == (
        "MESANET, from the training length to 4 times of it: the NLL changes by +0.0210 nats [+0.0083, +0.0337], "
        "solver steps from 8.0 to 10.0, the median condition number from 10.0 to 40.0."
    )


def test_without_the_training_length_nothing_is_compared(store) -> None:
    rows = [row for row in length_rows(store, seed=0) if row["slice"]["length_factor"] > 1]
    store.run("mesanet", "language", stages={"length": rows})
    store.request()
    frames = load_frames(store.root, "quick")
    assert "not evaluated at the training length" in table(frames, task="language", metrics=METRICS).notes[0]
    with pytest.raises(NoData, match="training length"):
        by_length(frames, task="language", metrics=METRICS)


def test_a_model_without_solver_has_its_loss_alone(store) -> None:
    rows = [row for row in length_rows(store, seed=0) if row["metric"] in ("nll", "perplexity")]
    store.run("gla", "language", stages={"length": rows})
    store.run("mesanet", "language", stages={"length": length_rows(store, seed=0)})
    store.request()
    made = table(load_frames(store.root, "quick"), task="language", metrics=METRICS)
    assert {row[0].text: row[-1].text for row in made.rows} == {"GLA": "–", "MESANET": "40.0"}
    assert made.notes[0].endswith("the NLL changes by +0.0200 nats.")


def test_without_the_stage_there_is_nothing_to_show(store) -> None:
    store.run("gla", "language", stages={"train": [store.row("nll", 1.0, "validation")]})
    store.request()
    with pytest.raises(NoData, match="stage length"):
        by_length(load_frames(store.root, "quick"), task="language", metrics=METRICS)
