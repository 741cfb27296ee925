"""What a request that varies the head size or the learning rate is called, tabulated and drawn as."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_hex

from conf.settings import RequestError
from reports.kit.parts import Frames, NoData, Table, load_frames
from reports.kit.style import style_of
from reports.kit.tables import Column
from reports.pages.sweep import curves, scores

FILLED = "The filled point of a line is what validation prefers."
LANGUAGE = Column(metric="bits_per_byte", task="language", size="tiny", stage="train", split="validation")
RECALL = Column(metric="accuracy", task="mqar", stage="test", split="test", slice="num_pairs=8")


def language(store, model: str, lr: float, bits: float | None, *, status: str = "done", **cell) -> None:
    """A run at a learning rate; without a score where bits is None."""
    stages = {} if bits is None else {"train": [store.row("bits_per_byte", bits, "validation")]}
    store.run(model, "language", stages=stages, status=status, varied={"train.lr": lr}, **cell)


def recall(store, model: str, head_dim: int, accuracy: float, **cell) -> None:
    """A run at a head size, twice as good with 2 pairs as with 8."""
    rows = [store.row("accuracy", value, "test", num_pairs=pairs) for pairs, value in ((2, 2 * accuracy), (8, accuracy))]
    store.run(model, "mqar", stages={"test": rows}, varied={"size.head_dim": head_dim}, **cell)


def frames(store) -> Frames:
    store.request()
    return load_frames(store.root, "quick")


def texts(table: Table) -> list[tuple[str, ...]]:
    return [tuple(cell.text for cell in row) for row in table.rows]


def marks(table: Table) -> list[tuple[str, ...]]:
    return [tuple(cell.mark for cell in row[1:]) for row in table.rows]


@pytest.mark.parametrize(
    ("on_language", "on_recall", "arms"),
    [
        ([32], [4, 8], {"MESANET", "MESANET, head size 4", "MESANET, head size 8"}),
        # One head size on both tasks is one arm, so that its scores share a row.
        ([8], [4, 8], {"MESANET, head size 4", "MESANET, head size 8"}),
        ([32], [4], {"MESANET"}),
    ],
)
def test_arms_are_told_apart_by_head_size_where_it_varies(store, on_language, on_recall, arms: set[str]) -> None:
    for task, sizes in (("language", on_language), ("mqar", on_recall)):
        for head_dim in sizes:
            store.run("mesanet", task, stages={}, varied={"size.head_dim": head_dim})
    cells = frames(store).cells
    assert set(cells["arm"]) == arms
    assert set(cells["family"]) == {"MESANET"}


def test_arms_are_told_apart_by_size_and_learning_rate(store) -> None:
    for size, lr in (("tiny", 0.002), ("tiny", 0.004), ("small", 0.004)):
        language(store, "gla", lr, 2.0, size=size)
    assert list(frames(store).cells["arm"]) == ["GLA, tiny, learning rate 0.002", "GLA, tiny, learning rate 0.004", "GLA, small"]


def test_models_of_one_label_are_two_families(store) -> None:
    language(store, "gla", 0.002, 2.0, label="same")
    language(store, "hawk", 0.002, 2.1, label="same")
    assert list(frames(store).cells["family"]) == ["same, gla", "same, hawk"]


def test_the_best_learning_rate_of_every_model(store) -> None:
    for model, row in (("gla", (2.3, 2.1, None)), ("mesanet", (2.0, 2.2, 2.4))):
        for lr, bits in zip((0.004, 0.016, 0.032), row, strict=True):
            language(store, model, lr, bits, status="done" if bits else "diverged")
    language(store, "hawk", 0.016, 1.9)
    language(store, "gla", 0.004, 1.0, size="small")
    table = scores(frames(store), column=LANGUAGE, fact="train.lr", best="fact")
    assert table.header == ("model", "learning rate 0.004", "learning rate 0.016", "learning rate 0.032")
    assert texts(table) == [
        ("GLA", "2.300", "2.100", "diverged"),
        ("HAWK", "not asked", "1.900", "not asked"),
        ("MESANET", "2.000", "2.200", "2.400"),
    ]
    # One seed each: which learning rate is best may be chance.
    assert marks(table) == [("", "", "")] * 3
    # The run of size small is not among them.
    assert table.notes[0] == "7 runs asked for: 6 done, 1 diverged."


def test_the_best_model_at_every_head_size(store) -> None:
    for model, row in (("gla", (0.2, 0.3)), ("mesanet", (0.1, 0.4))):
        for head_dim, accuracy in zip((4, 16), row, strict=True):
            for seed in (0, 1):
                recall(store, model, head_dim, accuracy + 0.02 * seed, seed=seed)
    table = scores(frames(store), column=RECALL, fact="size.head_dim", best="model")
    assert table.header == ("model", "head size 4", "head size 16")
    # A score that is learnt or not, and two seeds: they stand themselves where a t interval would be 0.127 wide.
    assert texts(table) == [
        ("GLA", "0.210 (0.200; 0.220)", "0.310 (0.300; 0.320)"),
        ("MESANET", "0.110 (0.100; 0.120)", "0.410 (0.400; 0.420)"),
    ]
    # Two seeds settle nothing of such a score.
    assert marks(table) == [("", ""), ("", "")]


def test_a_panel_shows_every_models_line_its_best_and_what_diverged(store) -> None:
    for lr, gla, mesanet in ((0.002, 2.3, 2.2), (0.004, 2.1, None), (0.008, 2.2, 2.4)):
        language(store, "gla", lr, gla)
        language(store, "mesanet", lr, mesanet, status="done" if mesanet else "diverged")
    store.run("gla", "mqar", stages={"test": [store.row("accuracy", 0.5, "test", num_pairs=8)]}, varied={"train.lr": 0.002})
    assert curves(frames(store), columns=[RECALL], fact="train.lr").notes == (FILLED,)
    drawing = curves(frames(store), columns=[LANGUAGE, RECALL, LANGUAGE.replace({"size": "small"})], fact="train.lr")
    assert [axes.get_title() for axes in drawing.figure.axes] == ["language, tiny", "MQAR"]
    axes = drawing.figure.axes[0]
    assert axes.get_xscale() == "log"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0.002", "0.004", "0.008"]
    best = {line.get_label(): line.get_xydata().tolist() for line in axes.lines if not line.get_label().startswith("_")}
    assert best == {"GLA": [[0.004, 2.1]], "MESANET": [[0.002, 2.2]]}
    (joined,) = [
        line for line in axes.lines if line.get_linestyle() == "-" and to_hex(line.get_color()) == style_of("mesanet").color
    ]
    assert np.isnan(joined.get_ydata()[1])
    (cross,) = [line for line in axes.lines if line.get_marker() == "x"]
    assert (cross.get_xdata()[0], to_hex(cross.get_color())) == (0.004, style_of("mesanet").color)
    # A high number of bits is the worse edge.
    assert cross.get_ydata()[0] > 0.9
    assert drawing.notes == (FILLED, "A cross at the frame's edge is a run that diverged.")


def test_runs_that_diverged_at_one_value_do_not_hide_one_another(store) -> None:
    for model in ("gla", "mesanet"):
        language(store, model, 0.002, 2.0)
        language(store, model, 0.032, None, status="diverged")
    (axes,) = curves(frames(store), columns=[LANGUAGE], fact="train.lr").figure.axes
    assert len({line.get_ydata()[0] for line in axes.lines if line.get_marker() == "x"}) == 2


def test_two_arms_at_one_value_are_not_merged(store) -> None:
    language(store, "gla", 0.002, 2.0, group="-seq128")
    language(store, "gla", 0.002, 1.0, group="-seq256")
    with pytest.raises(NoData, match="more than one GLA at learning rate 0.002"):
        scores(frames(store), column=LANGUAGE, fact="train.lr", best="fact")


def test_a_fact_that_no_run_has_is_answered_with_the_nearest(store) -> None:
    language(store, "gla", 0.002, 2.0)
    with pytest.raises(RequestError, match=r"unknown fact 'train.rl'; did you mean train.lr\?"):
        scores(frames(store), column=LANGUAGE, fact="train.rl", best="fact")


def test_what_nobody_asked_for_is_no_data(store) -> None:
    language(store, "gla", 0.002, 2.0, size="small")
    found = frames(store)
    with pytest.raises(NoData, match="no run of language, tiny"):
        scores(found, column=LANGUAGE, fact="train.lr", best="fact")
    with pytest.raises(NoData, match="no run of language, tiny"):
        curves(found, columns=[LANGUAGE], fact="train.lr")
