"""What the solver study draws and says, on invented models whose loss at every setting is known."""

from __future__ import annotations

import itertools

import pytest
from invented import BANDS, FIXED, TOLERANCES, settings, solver_rows

from reports.kit.parts import Frames, NoData, load_frames
from reports.kit.rows import over_runs
from reports.kit.solver import less_fixed, setting_label, setting_scores
from reports.pages.mesa import solver, solver_cost

NLL = {"task": "language", "metric": "nll", "steps": 30, "bound": 1e-3, "printed": False}


@pytest.fixture
def studied(store) -> Frames:
    """Two seeds on language and on recall."""
    for seed, (task, metric) in itertools.product((0, 1), (("language", "nll"), ("mqar", "accuracy"))):
        store.run("mesanet", task, seed=seed, stages={"solver": solver_rows(store, seed=seed, metric=metric)})
    store.request()
    return load_frames(store.root, "quick")


@pytest.fixture
def unstudied(store) -> Frames:
    store.run("mesanet", "language", stages={"train": [store.row("nll", 1.0, "validation")]})
    store.request()
    return load_frames(store.root, "quick")


def test_a_difference_is_to_the_same_run_at_the_reference_steps(studied) -> None:
    table = less_fixed(setting_scores(studied, task="language", metric="nll"), steps=30)
    table = table[table["solver"] == "cg"]
    found = table.set_index(["seed", "initial", "max_steps", "tolerance"])["difference"]
    # 0.5 ** 5, and a tenth more for the second seed.
    assert found[0, "diagonal", 5, 0.0] == pytest.approx(0.5**5)
    assert found[1, "diagonal", 5, 0.0] == pytest.approx(1.1 * 0.5**5)
    assert found[0, "query", 0, 0.0] == pytest.approx(1.0)
    assert (found.xs((30, 0.0), level=["max_steps", "tolerance"]) == 0).all()


def test_the_mean_over_runs_has_its_interval_and_its_worst(studied) -> None:
    table = less_fixed(setting_scores(studied, task="language", metric="nll"), steps=30)
    row = over_runs(table[table["tolerance"] == 1e-2], ["tolerance"]).iloc[0]
    # 12.706205 * 0.05 * 0.5**3, for seeds at 0.5**3 and 1.1 * 0.5**3
    assert (row["mean"], row["n"], row["worst"]) == (pytest.approx(1.05 / 8), 2, pytest.approx(1.1 / 8))
    assert row["half_width"] == pytest.approx(12.706205 * 0.05 / 8, rel=1e-5)


def test_a_slice_of_recall_does_not_count_as_the_whole(studied) -> None:
    table = setting_scores(studied, task="mqar", metric="accuracy")
    assert len(table) == 2 * len(settings())
    assert table["value"].max() == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("setting", "label"),
    [
        (("cg", "diagonal", 1, 0.0), "1 step"),
        (("cg", "query", 0, 0.0), "0 steps, query start"),
        (("cg", "diagonal", 30, 1e-4), "eps 1e-4"),
        (("preconditioned_cg", "previous_token", 4, 0.0), "4 steps, previous token start, preconditioned cg"),
        (("cholesky", "diagonal", 0, 0.0), "exact (Cholesky)"),
    ],
)
def test_a_setting_in_words(setting, label: str) -> None:
    assert setting_label(*setting) == label


def test_steps_on_the_left_tolerances_on_the_right_other_starts_hollow(studied) -> None:
    drawing = solver.by_setting(studied, **NLL)
    left, right = drawing.figure.axes
    lines = {line.get_label(): line for line in left.lines}
    assert lines["start at the query"].get_xydata().tolist() == [[0.0, pytest.approx(1.05)]]
    assert lines["start at the query"].get_markerfacecolor() == "white"
    assert [text.get_text() for text in left.get_xticklabels()] == [str(steps) for steps in FIXED]
    assert right.xaxis_inverted() and right.get_xscale() == "log"
    (errorbar,) = right.containers
    assert errorbar[0].get_xdata().tolist() == sorted(TOLERANCES)
    assert drawing.notes[0] == "Bars: 95 % t interval over 2 seeds."


def test_accuracy_stands_beside_what_the_paper_prints(studied) -> None:
    drawing = solver.by_setting(studied, task="mqar", metric="accuracy", steps=30, bound=1, printed=True)
    left, right = drawing.figure.axes
    printed = {line.get_label(): line for line in left.lines if line.get_label().startswith("paper")}
    assert set(printed) == {"paper, global", "paper, local", "paper, recall"}
    assert printed["paper, global"].get_markerfacecolor() == "none"
    assert printed["paper, global"].get_ydata()[0] == pytest.approx(21.37 - 45.03)
    (measured,) = left.containers
    # Points of 100: half of the excess loss, as the rows were made.
    assert measured[0].get_ydata()[3] == pytest.approx(-100 * 0.5 * 1.05 * 0.5**5, rel=1e-6)
    assert set(drawing.data["source"]) == {"measured", "printed"}


def test_the_paper_prints_ten_settings_less_two_of_recall() -> None:
    table = solver.printed_accuracy(steps=30)
    assert table.groupby("dataset").size().to_dict() == {"global": 10, "local": 10, "recall": 8}
    at = table.set_index(["dataset", "max_steps", "tolerance"])["difference"]
    assert (at["recall", 5, 0.0], at["local", 30, 1e-2]) == (pytest.approx(-8.33), pytest.approx(-0.58))


def test_position_lines_are_paired_by_document_and_seed(studied) -> None:
    drawing = solver.nll_by_position(studied, task="language", steps=30, bound=1e-3)
    data = drawing.data[drawing.data["solver"] == "cg"]
    line = data[(data["max_steps"] == 2) & (data["initial"] == "diagonal")]
    # The reference itself still loses 0.5 ** 30.
    assert line["mean"].to_numpy() == pytest.approx([1.05 * 0.25 * high / 64 for _, high in BANDS], rel=1e-6)
    assert line["high"].to_numpy() == pytest.approx(line["low"].to_numpy())
    assert not ((data["max_steps"] == 30) & (data["tolerance"] == 0)).any()
    fixed, stopped = ([line.get_label() for line in axes.lines if line.get_label()[0] != "_"] for axes in drawing.figure.axes)
    assert fixed == ["0 steps", "1 step", "2 steps", "5 steps", "10 steps"]
    assert stopped == ["eps 1e-2", "eps 1e-4"]


def test_every_setting_has_its_row_and_its_costs(studied) -> None:
    table = made(studied)
    rows = {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}
    fixed = ["0 steps, zero start", "0 steps, query start", "0 steps", "1 step", "2 steps", "5 steps", "10 steps", "30 steps"]
    others = ["30 steps, chebyshev", "eps 1e-4, chebyshev"]
    assert sorted(rows) == sorted([*fixed, "eps 1e-2", "eps 1e-4", *others])
    assert table.header[:3] == ("setting", "language NLL [nats/token], less 30 steps", "MQAR accuracy, less 30 steps")
    assert rows["30 steps"][0] == "+0.00000"
    assert rows["eps 1e-4"][2:5] == ["9.00", "13.50", "1e-9"]


def test_what_is_not_measured_yet_has_no_column(store) -> None:
    rows = [row for row in solver_rows(store, seed=0, metric="accuracy") if row["slice"]["max_steps"] < 30]
    store.run("mesanet", "mqar", stages={"solver": rows})
    store.run("mesanet", "language", stages={"solver": solver_rows(store, seed=0, metric="nll")})
    store.request()
    header = made(load_frames(store.root, "quick")).header
    assert header[:3] == ("setting", "language NLL [nats/token], less 30 steps", "solver steps")


def made(frames: Frames):
    scores = [solver_cost.Score(task="language", metric="nll"), solver_cost.Score(task="mqar", metric="accuracy")]
    return solver_cost.by_setting(frames, scores=scores, steps=30, tolerance=1e-4, bound=1e-2)


@pytest.mark.parametrize(
    ("tolerance", "bound", "answer"),
    [
        # 0.5 ** 9 = 2.0e-3, and 2.1e-3 in the second seed.
        (1e-4, 2.2e-3, "Yes: the NLL differs by 2.1e-3 nats (in the worst of 2 seeds by 2.1e-3) at 9.0 steps of 30."),
        (1e-4, 2.1e-3, "No: "),
        (1e-2, 1.0, "Yes: "),
        (1e-3, 1.0, "No run was evaluated with eps 1e-3."),
    ],
)
def test_the_verdict_is_computed(studied, tolerance: float, bound: float, answer: str) -> None:
    assert answer in solver_cost.verdict(studied, task="language", steps=30, tolerance=tolerance, bound=bound)


def test_a_run_that_lacks_the_reference_does_not_count(store) -> None:
    rows = [row for row in solver_rows(store, seed=0, metric="nll") if row["slice"]["tolerance"] > 0]
    store.run("mesanet", "language", seed=0, stages={"solver": rows})
    store.run("mesanet", "language", seed=1, stages={"solver": solver_rows(store, seed=1, metric="nll")})
    store.request()
    found = load_frames(store.root, "quick")
    assert "2.1e-3 nats (in the worst of 1 seed" in solver_cost.verdict(
        found, task="language", steps=30, tolerance=1e-4, bound=1.0
    )


def test_too_many_steps_are_no_success(studied) -> None:
    # Nine steps are more than half of ten.
    assert "No: " in solver_cost.verdict(studied, task="language", steps=10, tolerance=1e-4, bound=1.0)


def test_steps_by_tolerance_and_time_by_steps(studied) -> None:
    drawing = solver_cost.steps_and_time(studied, task="language", steps=30)
    left, right = drawing.figure.axes
    chunk, mean = (container[0] for container in left.containers)
    assert chunk.get_ydata().tolist() == [13.5, 4.5]
    assert mean.get_ydata().tolist() == [9.0, 3.0]
    fixed, stopped = (container[0] for container in right.containers)
    assert fixed.get_xdata().tolist() == list(FIXED)
    assert stopped.get_ydata().tolist() == pytest.approx([0.5, 1.1])


@pytest.mark.parametrize(
    "draw",
    [
        lambda frames: solver.by_setting(frames, **NLL),
        lambda frames: solver.nll_by_position(frames, task="language", steps=30, bound=1e-3),
        lambda frames: solver_cost.steps_and_time(frames, task="language", steps=30),
        made,
    ],
)
def test_without_the_stage_there_is_nothing_to_show(unstudied, draw) -> None:
    with pytest.raises(NoData, match="stage solver"):
        draw(unstudied)


def test_without_the_reference_there_is_nothing_to_compare_with(studied) -> None:
    with pytest.raises(NoData, match="at 25 fixed steps"):
        solver.by_setting(studied, **NLL | {"steps": 25})
