"""Where Lambda's floor breaks a layer, with the cap and without: what is drawn, and what diverged is shown."""

from __future__ import annotations

import itertools

import pytest
from invented import repeats_rows

from reports.kit.parts import Frames, NoData, load_frames
from reports.kit.tables import Column
from reports.pages.mesa.regularization import by_floor, by_floor_table, by_run_length

COLUMN = Column(metric="nll", task="language", stage="train", split="validation")
AFTER = ["nll_change", "readout_error", "condition", "finite"]


@pytest.fixture
def regularized(store) -> Frames:
    """Best at a floor of 0.25; the lowest floor without the cap diverges in the second seed."""
    for floor, cap, seed in itertools.product((0.001, 0.25, 50.0), (0.9975, None), (0, 1)):
        varied = {"model.mixer.forget_cap": cap, "model.mixer.regularizer_floor": floor}
        if (floor, cap, seed) == (0.001, None, 1):
            store.run("mesanet", "language", seed=seed, stages={}, status="diverged", varied=varied)
            continue
        nll = {0.001: 1.7, 0.25: 1.5, 50.0: 1.6}[floor] + 0.01 * seed
        stages = {
            "train": [store.row("nll", nll, "validation")],
            "repeats": repeats_rows(store, floor=floor, capped=cap is not None),
        }
        store.run("mesanet", "language", seed=seed, stages=stages, varied=varied)
    store.request()
    return load_frames(store.root, "quick")


def test_arms_are_told_apart_by_floor_and_by_cap_or_its_lack(regularized) -> None:
    assert "MESANET, forget cap 0.9975, Lambda floor 0.25" in set(regularized.cells["arm"])
    assert "MESANET, no forget cap, Lambda floor 0.25" in set(regularized.cells["arm"])
    assert regularized.cells["arm"].nunique() == 6


def test_a_line_with_the_cap_and_one_without(regularized) -> None:
    drawing = by_floor(regularized, column=COLUMN, after=AFTER[:3], columns=2)
    text, change, error, condition = drawing.figure.axes
    with_cap, without = (container[0] for container in text.containers)
    assert with_cap.get_ydata() == pytest.approx([1.705, 1.505, 1.605])
    assert [container.get_label() for container in text.containers] == ["forget cap 0.9975", "no forget cap"]
    capped, uncapped = (container[0] for container in condition.containers)
    assert capped.get_ydata() == pytest.approx([20001, 81, 1.4])
    assert uncapped.get_ydata() == pytest.approx([128001, 513, 3.56])
    assert change.containers[0][0].get_ydata() == pytest.approx([2.0001, 0.0081, 0.00014])
    assert change.get_title() == "128 repeated tokens"
    assert error.get_yscale() == condition.get_yscale() == "log"


def test_what_diverged_is_a_cross_and_counted(regularized) -> None:
    drawing = by_floor(regularized, column=COLUMN, after=["finite"], columns=2)
    crosses = [line for line in drawing.figure.axes[0].lines if line.get_marker() == "x"]
    assert [line.get_xdata()[0] for line in crosses] == [0.001]
    assert drawing.notes[-1] == "A cross at the frame's edge: runs that diverged."
    assert drawing.data.loc[drawing.data["without"] != "", "n"].tolist() == [1, 1]


def test_the_table_says_where_it_breaks(regularized) -> None:
    table = by_floor_table(regularized, column=COLUMN, after=AFTER)
    rows = {(row[0].text, row[1].text): [cell.text for cell in row[2:]] for row in table.rows}
    assert rows["no forget cap", "0.001"][0] == "1.700 (n=1; diverged)"
    assert rows["forget cap 0.9975", "50"][2] == "1.4e-6"
    assert table.notes[0] == (
        "Forget cap 0.9975: best mean on text at a floor of 0.25; no run diverged; read-out wrong by more than 1 % after the "
        "run at 0.001; not finite after the run nowhere."
    )
    assert "diverged at 0.001" in table.notes[1]
    assert "diverged: MESANET, no forget cap, Lambda floor 0.001, language, seed 1." in table.notes


def test_what_is_not_finite_is_wrong_and_not_unmeasured(store) -> None:
    for seed in (0, 1):
        rows = repeats_rows(store, floor=0.25, capped=True)
        for row in rows if seed else ():
            row["value"] = None if row["metric"] in ("readout_error", "condition") else row["value"]
        stages = {"train": [store.row("nll", 1.5, "validation")], "repeats": rows}
        varied = {"model.mixer.forget_cap": 0.9975, "model.mixer.regularizer_floor": 0.25}
        store.run("mesanet", "language", seed=seed, stages=stages, varied=varied)
    store.request()
    frames = load_frames(store.root, "quick")
    table = by_floor_table(frames, column=COLUMN, after=AFTER)
    assert [cell.text for cell in table.rows[0]].count("not finite") == 2
    assert "read-out wrong by more than 1 % after the run at 0.25" in table.notes[0]
    by_floor(frames, column=COLUMN, after=AFTER, columns=3).figure.canvas.draw()


def test_one_panel_a_cap_and_one_line_a_floor_by_run_length(regularized) -> None:
    drawing = by_run_length(regularized, column=COLUMN, metric="condition")
    capped, uncapped = drawing.figure.axes
    assert (capped.get_title(), uncapped.get_title()) == ("forget cap 0.9975", "no forget cap")
    assert uncapped.lines[1].get_ydata() == pytest.approx([1, 65, 513])
    assert [line.get_label() for line in capped.lines] == ["Lambda floor 0.001", "Lambda floor 0.25", "Lambda floor 50"]


def test_a_cell_all_of_whose_runs_diverged_is_still_in_the_table(store) -> None:
    varied = {"model.mixer.regularizer_floor": 0.25, "model.mixer.forget_cap": 0.9975}
    rows = {"train": [store.row("nll", 1.0, "validation")], "repeats": repeats_rows(store, floor=0.25, capped=True)}
    store.run("mesanet", "language", stages=rows, varied=varied)
    store.run("mesanet", "language", stages={}, status="diverged", varied=varied | {"model.mixer.forget_cap": None})
    store.request()
    table = by_floor_table(load_frames(store.root, "quick"), column=COLUMN, after=["condition"])
    assert [cell.text for cell in table.rows[1]] == ["no forget cap", "0.25", "diverged", "diverged"]


def test_without_a_floor_there_is_nothing_to_show(store) -> None:
    store.run("gla", "language", stages={"repeats": repeats_rows(store, floor=1.0, capped=True)})
    store.request()
    with pytest.raises(NoData, match="floor of Lambda"):
        by_floor(load_frames(store.root, "quick"), column=COLUMN, after=AFTER, columns=2)
