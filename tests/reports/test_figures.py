"""What the figures draw: as many lines as arms, at the right places."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from conf.settings import RequestError
from reports.kit.medians import bytes_axis, bytes_text
from reports.kit.parts import Frames, NoData, load_frames
from reports.kit.style import STYLES, TABLE, plain, style_of
from reports.kit.tables import Column
from reports.pages import benchmarks, figures, tables

DOCUMENTS = 50
POSITION = {"metric": "nll", "split": "validation", "baseline": "transformer", "zoom_without": ["swa4"]}
STATE = {"task": "mqar", "stage": "test", "split": "test", "panels": "num_pairs"}
SCORES = {"metrics": ["accuracy_norm", "accuracy"], "windows": ["swa4", "swa16", "swa64"], "full": "transformer"}


def add_position(store, model: str, offset: float, *, seed: int = 0) -> None:
    """A run whose NLL is the document's own plus offset times the position."""
    own = np.linspace(1, 2, DOCUMENTS)
    rows = [
        store.row("nll", 0.0, "validation", examples=list(own + offset * low), position_low=low, position_high=2 * low)
        for low in (1, 2, 4)
    ]
    store.run(model, "language", seed=seed, stages={"position": rows})


def frames(store) -> Frames:
    store.request()
    return load_frames(store.root, "quick")


def labels(axes) -> set[str]:
    return {line.get_label() for line in axes.lines if not line.get_label().startswith("_")}


def test_position_difference_is_paired_and_averaged_over_seeds(store) -> None:
    for model, offset, seed in (("transformer", 0.0, 0), ("mesanet", 0.1, 0), ("mesanet", 0.3, 1), ("swa4", 1.0, 0)):
        add_position(store, model, offset, seed=seed)
    drawing = figures.nll_difference_by_position(frames(store), **POSITION)
    mesanet = drawing.data[drawing.data["arm"] == "MESANET"]
    assert mesanet["mean"].to_numpy() == pytest.approx([0.2, 0.4, 0.8])
    # Paired: what differs between documents cancels, and with it the width of the band.
    assert mesanet["high"].to_numpy() == pytest.approx(mesanet["low"].to_numpy())
    assert mesanet["position"].to_numpy() == pytest.approx([2.0, 12**0.5, 40**0.5])
    assert [labels(axes) for axes in drawing.figure.axes] == [{"SWA4", "MESANET"}, {"MESANET"}]
    assert drawing.figure.axes[0].get_xscale() == "log"


def test_bands_are_over_documents_where_the_store_knows_them(store) -> None:
    """Ten documents of five windows, whose windows agree: the band is that of ten values, not of fifty."""
    own = np.repeat(np.random.default_rng(0).normal(size=10), 5)
    for grouped, data in ((True, "known"), (False, "unknown")):
        for model, sign in (("transformer", 0), ("mesanet", 1)):
            row = store.row("nll", 0.0, "validation", examples=list(sign * own), position_low=1, position_high=2)
            row |= {"groups": np.repeat(range(10), 5).tolist()} if grouped else {}
            store.run(model, "language", stages={"position": [row]}, size=data)
    made = frames(store)
    widths, notes = {}, {}
    for size in ("known", "unknown"):
        part = replace(made, read_examples=lambda size=size: made.examples[made.examples["size"] == size])
        drawing = figures.nll_difference_by_position(part, **POSITION)
        (row,) = drawing.data.to_dict("records")
        widths[size], notes[size] = row["high"] - row["low"], drawing.notes[0]
        assert row["mean"] == pytest.approx(own.mean())
    assert widths["known"] / widths["unknown"] == pytest.approx(5**0.5 * 1.2, rel=0.15)
    assert "over 10 documents (50 windows), seeds averaged per window" in notes["known"]
    assert "over 50 windows, seeds averaged per window" in notes["unknown"]


def test_the_seeds_of_an_accuracy_are_drawn_and_no_interval(store) -> None:
    for seed, accuracy in enumerate((0.9, 0.8, 0.1)):
        add_recall(store, "mesanet", 4096, {4: accuracy}, seed=seed)
    drawing = figures.accuracy_against_state(frames(store), **STATE)
    (row,) = drawing.data.to_dict("records")
    assert np.isnan(row["low"]) and np.isnan(row["high"]) and row["each"] == (0.9, 0.8, 0.1)
    (axes,) = drawing.figure.axes
    drawn = [list(line.get_ydata()) for line in axes.lines if line.get_marker() == "."]
    assert drawn == [[0.9, 0.8, 0.1]] and not axes.collections


OLD = """
model: {name: transformer, version: 1, pattern: [mixer], mixer: {type: attention.Attention}}
size: {d_model: 8}
task: {seq_len: 4}
train: {autocast: bfloat16}
"""


def test_state_that_was_counted_otherwise_is_named(store) -> None:
    add_recall(store, "mesanet", 4096, {4: 0.5})
    add_recall(store, "transformer", 8192, {4: 0.5})
    folder = store.root / "runs" / store.cells[-1]["run_id"]
    names = json.loads((folder / "run.json").read_text())
    del names["settings"]
    (folder / "run.json").write_text(json.dumps(names))
    (folder / "config.yaml").write_text(OLD)
    made = frames(store)
    said = "Old runs under autocast, whose state is counted as float32, twice what attention holds: TRANSFORMER."
    assert said in figures.accuracy_against_state(made, **STATE).notes
    columns = [Column(metric=metric, task="mqar") for metric in ("state_bytes", "parameters")]
    assert said in tables.comparison(made, columns=columns, floors={}).notes
    assert said not in tables.comparison(made, columns=columns[1:], floors={}).notes


def test_without_windows_there_is_one_panel(store) -> None:
    add_position(store, "transformer", 0.0)
    add_position(store, "mesanet", 0.1)
    assert len(figures.nll_difference_by_position(frames(store), **POSITION).figure.axes) == 1


def test_windows_of_another_length_are_not_paired(store) -> None:
    for model, seq_len in (("transformer", 64), ("mesanet", 64), ("gla", 128)):
        row = store.row("nll", 0.0, "validation", examples=[float(seq_len)] * 40, position_low=0, position_high=1)
        store.run(model, "language", stages={"position": [row]}, varied={"task.seq_len": seq_len})
    drawing = figures.nll_difference_by_position(frames(store), **POSITION)
    assert drawing.data["arm"].tolist() == ["MESANET"] and drawing.data["mean"].tolist() == [0]
    assert "Without a transformer of the same size and documents, and so not drawn: GLA." in drawing.notes


def test_position_difference_needs_its_baseline(store) -> None:
    add_position(store, "mesanet", 0.1)
    with pytest.raises(NoData, match="baseline transformer"):
        figures.nll_difference_by_position(frames(store), **POSITION)


def add_recall(store, model: str, state: int, accuracies: dict[int, float], **cell) -> None:
    rows = [store.row("accuracy", value, "test", num_pairs=pairs) for pairs, value in accuracies.items()]
    rows += [store.row("chance", 1 / pairs, "test", num_pairs=pairs) for pairs in accuracies]
    rows += [store.row("accuracy", float(np.mean(list(accuracies.values()))), "test")]
    curve = [(step, 3.0 - step / 50) for step in range(1, 101)]
    store.run(model, "mqar", stages={"test": rows}, facts={"state_bytes": state}, curve=curve, **cell)


def test_accuracy_stands_at_the_state_with_chance(store) -> None:
    for seed, accuracy in enumerate((0.8, 0.9)):
        add_recall(store, "mesanet", 4096, {4: accuracy}, seed=seed)
    add_recall(store, "gla", 1024, {4: 0.5})
    drawing = figures.accuracy_against_state(frames(store), **STATE)
    data = drawing.data.set_index("arm")
    assert data.loc["MESANET", ["state_bytes", "mean", "seeds"]].tolist() == [4096, pytest.approx(0.85), 2]
    assert np.isnan(data.loc["GLA", "low"])
    (axes,) = drawing.figure.axes
    assert labels(axes) == {"MESANET", "GLA", "chance"}
    (chance,) = [line for line in axes.lines if line.get_label() == "chance"]
    assert chance.get_ydata()[0] == pytest.approx(0.25)


def test_what_a_window_could_answer_is_a_dash(store) -> None:
    rows = [store.row("accuracy", 0.25, "test"), store.row("reachable_accuracy", 0.5, "test")]
    store.run("swa4", "mqar", stages={"test": rows})
    drawing = figures.accuracy_against_state(frames(store), **STATE)
    assert drawing.data["reachable"].tolist() == [0.5]
    assert "best possible in the window" in labels(drawing.figure.axes[0])


def test_a_panel_for_every_number_of_pairs(store) -> None:
    add_recall(store, "mesanet", 4096, {4: 1.0, 8: 0.5})
    drawing = figures.accuracy_against_state(frames(store), **STATE)
    assert [axes.get_title() for axes in drawing.figure.axes] == ["num pairs: 4", "num pairs: 8"]


def test_markers_at_one_place_are_drawn_side_by_side(store) -> None:
    for model in ("mesanet", "gla", "hawk"):
        add_recall(store, model, 4096, {4: 1.0})
    add_recall(store, "mamba2", 4096, {4: 0.2})
    data = figures.accuracy_against_state(frames(store), **STATE).data
    shifts = figures._side_by_side(data)
    assert sorted(shifts[arm] for arm in ("MESANET", "GLA", "HAWK")) == [-7.0, 0.0, 7.0]
    assert shifts["MAMBA2"] == 0


def test_the_head_sizes_of_a_model_are_one_line_in_the_order_of_their_state(store) -> None:
    for head_dim, state, accuracy in ((16, 4096, 0.9), (4, 256, 0.1), (8, 1024, 0.5)):
        for seed in (0, 1):
            add_recall(store, "mesanet", state, {4: accuracy}, seed=seed, varied={"size.head_dim": head_dim})
    add_recall(store, "gla", 256, {4: 0.11}, varied={"size.head_dim": 4})
    drawing = figures.accuracy_against_state(frames(store), **STATE)
    (axes,) = drawing.figure.axes
    assert [text.get_text() for text in drawing.figure.legends[0].get_texts()] == ["MESANET", "GLA", "chance"]
    joined = [line for line in axes.lines if line.get_linestyle() == "-" and len(line.get_xdata()) == 3]
    assert [list(line.get_ydata()) for line in joined] == [pytest.approx([0.1, 0.5, 0.9])]
    assert set(drawing.data["seeds"]) == {1, 2}
    # Where one of its markers would hide another's, the whole line moves.
    assert figures._side_by_side(drawing.data) == {"GLA": -3.5, "MESANET": 3.5}


def test_a_state_that_does_not_depend_on_the_head_size_is_named(store) -> None:
    for head_dim in (4, 8):
        add_recall(store, "hawk", 2560, {4: 0.5}, varied={"size.head_dim": head_dim})
        add_recall(store, "gla", 128 * head_dim, {4: 0.5}, varied={"size.head_dim": head_dim})
    add_recall(store, "mamba2", 1024, {4: 0.5}, varied={"size.head_dim": 4})
    assert figures.accuracy_against_state(frames(store), **STATE).notes[1:] == ("Of one state whatever varies: HAWK.",)


@pytest.mark.parametrize(("size", "text"), [(512, "512"), (1024, "1K"), (16384, "16K"), (3 * 2**20, "3M")])
def test_bytes_text(size: float, text: str) -> None:
    assert bytes_text(size) == text


def test_training_curves_average_seeds_and_smooth(store) -> None:
    add_recall(store, "mesanet", 4096, {4: 1.0}, seed=0)
    add_recall(store, "mesanet", 4096, {4: 1.0}, seed=1)
    add_recall(store, "gla", 4096, {4: 1.0})
    drawing = figures.training_curves(frames(store), tasks=["language", "mqar"], smoothing=0.05)
    (axes,) = drawing.figure.axes
    assert labels(axes) == {"MESANET", "GLA"}
    line = drawing.data[drawing.data["arm"] == "MESANET"]
    assert len(line) == 100
    # The running mean of a straight line is the line, but for the ends.
    assert line["smoothed"].iloc[10:-10].to_numpy() == pytest.approx(line["loss"].iloc[10:-10].to_numpy())
    assert line["smoothed"].iloc[0] == pytest.approx(3.0 - 2 / 50)


def test_norms_of_gradients_are_drawn_in_the_place_of_losses(store) -> None:
    add_recall(store, "mesanet", 4096, {4: 1.0})
    loaded = frames(store)
    found = replace(loaded, read_curves=lambda: loaded.curves.assign(grad_norm=2.0 * loaded.curves["loss"]))
    drawing = figures.training_curves(found, tasks=["mqar"], smoothing=0.0, metric="gradient_norm")
    (axes,) = drawing.figure.axes
    assert axes.get_ylabel() == "norm of the gradient" and "loss" not in drawing.data
    losses = figures.training_curves(loaded, tasks=["mqar"], smoothing=0.0).data["loss"]
    assert drawing.data["grad_norm"].tolist() == pytest.approx((2.0 * losses).tolist())
    with pytest.raises(RequestError, match="^metric=nll is not logged in training, permitted are train_loss, gradient_norm"):
        figures.training_curves(loaded, tasks=["mqar"], smoothing=0.0, metric="nll")


def test_seeds_that_log_at_other_steps_are_interpolated_before_their_mean(store) -> None:
    """Losses of 10 - t and 14 - t: the mean is 12 - t wherever one of them logged, as far as both went."""
    curves = pd.DataFrame({"run_id": list("aaabbbb"), "tokens": [1.0, 4, 9, 2, 3, 6, 12], "loss": [9.0, 6, 1, 12, 11, 8, 2]})
    found = figures.mean_of_runs(curves)
    assert found["tokens"].tolist() == [2, 3, 4, 6, 9]
    assert found["loss"].to_numpy() == pytest.approx(12 - found["tokens"].to_numpy())
    one_diverged = figures.mean_of_runs(curves.assign(loss=curves["loss"].mask(curves["tokens"] >= 6)))
    assert one_diverged["tokens"].tolist() == [2, 3]


def test_states_of_about_one_size_are_the_ticks_of_their_axis(store) -> None:
    for sizes, ticks in (((38_912, 70_400), ["38K", "68.8K"]), ((1024, 16_384), ["1K", "4K", "16K"])):
        axes = Figure().add_subplot()
        axes.plot(sizes, [0, 1])
        bytes_axis(axes, pd.Series(sizes))
        low, high = axes.get_xlim()
        assert set(ticks) <= {bytes_text(tick) for tick in axes.get_xticks() if low <= tick <= high}


def test_no_curves_are_no_data(store) -> None:
    add_position(store, "mesanet", 0.1)
    with pytest.raises(NoData, match="logged"):
        figures.training_curves(frames(store), tasks=["mqar"], smoothing=0.0)


def test_benchmark_scores_prefer_the_first_metric_and_carry_their_error(store) -> None:
    for model in ("mesanet", "transformer"):
        of = {"benchmark": "choose", "shots": 0}
        rows = [
            store.row("accuracy", 0.0, "test", examples=[0.0] * 4, **of),
            store.row("accuracy_norm", 0.5, "test", examples=[0.0, 1.0, 0.0, 1.0], **of),
            store.row("chance", 0.25, "test", **of),
            store.row("perplexity", 9.0, "test", benchmark="odd", shots=0),
            store.row("accuracy", 1.0, "test", examples=[1.0] * 4, benchmark="recall_10shot", shots=10),
            store.row("accuracy", 1.0, "test", examples=[1.0] * 4, benchmark="recall_1shot", shots=1),
            store.row("accuracy", 1.0, "test", examples=[1.0] * 4, benchmark="recall_2shot", shots=2),
        ]
        store.run(model, "language", stages={"lm_eval": rows})
    drawing = benchmarks.scores(frames(store), **SCORES)
    data = drawing.data.set_index(["arm", "benchmark"])
    choose = data.loc[("MESANET", "choose")]
    assert (choose["metric"], choose["mean"], choose["chance"]) == ("accuracy_norm", 0.5, 0.25)
    assert choose["standard_error"] == pytest.approx((1 / 3) ** 0.5 / 2)
    assert set(data["verdict"]) == {"undecided"}
    assert drawing.notes[1] == "Without any of accuracy_norm, accuracy, and so not drawn: odd."
    shown = [axes for axes in drawing.figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == ["choose, 0-shot", "recall, 1-shot", "recall, 2-shot", "recall, 10-shot"]
    assert [label.get_text() for label in shown[0].get_yticklabels()] == ["TRANSFORMER", "MESANET"]


def test_no_benchmarks_are_no_data(store) -> None:
    add_position(store, "mesanet", 0.1)
    with pytest.raises(NoData, match="lm_eval"):
        benchmarks.scores(frames(store), **SCORES)


def test_known_styles_are_told_apart_by_colour_and_by_marker() -> None:
    assert len({style.color for style in STYLES.values()}) == len(STYLES)
    assert len({style.marker for style in STYLES.values()}) == len(STYLES)


def test_a_spare_colour_is_nobodys_own() -> None:
    assert not {style.color for style in STYLES.values()} & set(TABLE["spare"]["colors"])


def test_an_unknown_model_gets_one_style_by_its_name() -> None:
    assert style_of("nobody") == style_of("nobody")
    colors = TABLE["spare"]["colors"]
    assert style_of("nobody").color == colors[hashlib.sha256(b"nobody").digest()[0] % len(colors)]


@pytest.mark.parametrize(("label", "printed"), [("_hidden", " hidden"), ("a$b$c", r"a\$b\$c"), ("x" * 50, "x" * 39 + "…")])
def test_labels_are_printed_as_they_stand(label: str, printed: str) -> None:
    assert plain(label) == printed
