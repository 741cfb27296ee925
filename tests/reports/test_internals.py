"""What the heads of a model are drawn as: their order is that of their gates, whatever a seed calls them."""

from __future__ import annotations

import pytest
from invented import internals_rows

from reports.kit.parts import Frames, NoData, load_frames
from reports.pages.mesa.internals import by_head, by_layer, by_position, head_rows

METRICS = ["beta", "gamma", "condition", "solver_steps", "readout_cosine"]


@pytest.fixture
def observed(store) -> Frames:
    for seed in (0, 1):
        store.run("mesanet", "language", seed=seed, stages={"internals": internals_rows(store, seed=seed)})
    store.request()
    return load_frames(store.root, "quick")


def test_heads_of_two_seeds_meet_by_their_gates(observed) -> None:
    rows = head_rows(observed, task="language", metrics=["solver_steps"], whole=True)["solver_steps"]
    assert rows.groupby("rank")["value"].agg(["min", "max", "size"]).to_numpy().tolist() == [[4, 4, 4], [7, 7, 4], [10, 10, 4]]
    # The second seed numbers its heads otherwise.
    assert rows[rows["rank"] == 1].groupby("seed")["head"].first().to_dict() == {0: 0, 1: 1}


def test_a_panel_a_metric_and_a_point_a_head(observed) -> None:
    drawing = by_layer(observed, task="language", metrics=METRICS, columns=3)
    shown = [axes for axes in drawing.figure.axes if axes.get_visible()]
    # The place that five panels leave over in two rows of three stays empty.
    assert len(shown) == len(METRICS)
    assert [axes.get_title() for axes in shown][:2] == ["input gate beta", "forget gate gamma"]
    assert shown[2].get_yscale() == "log"
    assert len(shown[0].containers) == 3
    labels = [text.get_text() for text in drawing.figure.legends[0].get_texts()]
    assert labels == ["head 1, least gamma", "head 2", "head 3, most gamma"]
    steps = drawing.data[drawing.data["metric"] == "solver_steps"]
    assert steps[["layer", "rank", "mean", "n"]].to_numpy().tolist() == [
        [i, h + 1, 4 + 3 * h, 2] for i in (0, 1) for h in range(3)
    ]


def test_a_column_a_layer_and_a_line_a_head(observed) -> None:
    drawing = by_position(observed, task="language", metrics=["gamma", "condition"])
    assert len(drawing.figure.axes) == 4
    line = drawing.figure.axes[2].lines[2]
    # Head 3 of the first layer: a hundred, and more with the position.
    assert line.get_ydata() == pytest.approx([100 * (1 + high / 64) for high in (1, 16, 64)])


def test_the_table_says_what_goes_with_the_conditioning(observed) -> None:
    table = by_head(observed, task="language", metrics=METRICS)
    assert [[cell.text for cell in row[:2]] for row in table.rows][:3] == [["1", "1"], ["1", "2"], ["1", "3"]]
    assert "over 12 heads" in table.notes[0]
    assert "solver steps +1.00" in table.notes[0] and "cosine of solved and unsolved read-out −1.00" in table.notes[0]
    # All heads have the same beta: it goes with nothing.
    assert "beta" not in table.notes[0]
    assert table.notes[1].startswith("Of the heads, 0 %")


def test_a_model_without_such_layers_is_no_data(store) -> None:
    store.run("gla", "language", stages={"train": [store.row("nll", 1.0, "validation")]})
    store.request()
    with pytest.raises(NoData, match="stage internals"):
        by_layer(load_frames(store.root, "quick"), task="language", metrics=METRICS, columns=3)
