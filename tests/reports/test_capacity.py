"""How many pairs a state holds, from invented scores."""

from __future__ import annotations

import math

import pytest

from reports.kit.parts import Frames, load_frames
from reports.pages.capacity import Half, curve, half_point, half_points

PAIRS = (4, 8, 16)


def fill(store, *, lost=(), without=()) -> Frames:
    """Two models of three seeds and two head sizes; Mesa holds as much as the other at twice the head size.

    lost: runs that are asked for and missing. without: models and sizes that nobody asks for.
    """
    curves = {("mesanet", 4): (1.0, 0.75, 0.25), ("mesanet", 8): (1.0, 1.0, 0.75)}
    curves |= {("gated_deltanet", 4): (0.75, 0.25, 0.0), ("gated_deltanet", 8): (1.0, 0.75, 0.25)}
    for (model, size), values in ((key, values) for key, values in curves.items() if key not in without):
        for seed in (0, 1, 2):
            for pairs, value in zip(PAIRS, values, strict=True):
                value += 0.05 * (seed - 1) if pairs > 4 else 0.0
                rows = [store.row("accuracy", value, "test"), store.row("accuracy", value, "test", num_pairs=pairs)]
                varied = {"task.num_pairs": f"[{pairs}]", "task.seq_len": 4 * pairs, "size.head_dim": size}
                asked = {"seed": seed, "varied": varied}
                if (model, size, seed, pairs) in lost:
                    store.ask(model, "mqar", **asked)
                else:
                    state = size**2 * (2 if model == "mesanet" else 1)
                    stages = {"train": [store.row("accuracy", 0.5, "validation")], "test": rows}
                    store.run(model, "mqar", stages=stages, facts={"state_bytes": state}, **asked)
    store.request("quick")
    return load_frames(store.root, "quick")


@pytest.mark.parametrize(
    ("accuracy", "half", "text"),
    [
        ((1.0, 0.75, 0.25), Half(2**3.5), "11.31"),
        ((1.0, 0.5, 0.25), Half(8.0), "8"),
        ((1.0, 0.9, 0.8), Half(16.0, ">"), "> 16"),
        ((0.4, 0.3, 0.9), Half(4.0, "<"), "< 4"),
        ((1.0, 0.0, 1.0), Half(2**2.5), "5.657"),
        ((1.0, math.nan, 0.0), Half(8.0), "8"),
    ],
)
def test_the_half_point_is_where_a_curve_first_falls_below_a_half(accuracy, half, text):
    found = half_point(PAIRS, accuracy)
    assert found.pairs == pytest.approx(half.pairs) and found.beyond == half.beyond and found.text == text


def test_of_a_curve_without_points_nothing_is_known():
    assert math.isnan(half_point(PAIRS, (math.nan,) * 3).pairs) and half_point(PAIRS, (math.nan,) * 3).text == "–"


@pytest.mark.parametrize(
    ("first", "second", "text"),
    [
        (Half(8.0), Half(4.0), "2"),
        (Half(8.0, ">"), Half(4.0), "> 2"),
        (Half(8.0), Half(4.0, ">"), "< 2"),
        (Half(8.0, ">"), Half(4.0, "<"), "> 2"),
        (Half(8.0, "<"), Half(4.0, ">"), "< 2"),
        (Half(8.0, ">"), Half(4.0, ">"), "–"),
        (Half(8.0), Half(math.nan), "–"),
    ],
)
def test_a_ratio_says_no_more_than_is_known(first, second, text):
    assert first.over(second).text == text


def test_half_points_stand_beside_the_bytes_and_the_reference_at_one_and_two_times_the_head(store):
    table = half_points(fill(store), task="mqar", model="mesanet", reference="gated_deltanet")
    rows = {row[0].text: [entry.text for entry in row[1:]] for row in table.rows}
    assert rows["GATED_DELTANET, head size 4"][0] == "5.657" and rows["GATED_DELTANET, head size 4"][2:] == ["16", "", ""]
    own = rows["MESANET, head size 4"]
    assert own[0] == "11.31" and own[2] == "32"
    # As many pairs as the other with a head of twice the size, whose matrix has twice the bytes of both of Mesa's.
    assert own[3:] == ["2.00 (2.00 of its bytes)", "1.00 (0.50 of its bytes)"]
    assert rows["MESANET, head size 8"][0] == "> 16" and rows["MESANET, head size 8"][3] == "> 1.41 (2.00 of its bytes)"
    assert rows["MESANET, head size 8"][4] == "not asked"
    low, middle, high = (float(text) for text in own[1].split("; "))
    assert (low, high) == pytest.approx((2 ** (3 + 0.2 / 0.5), 2 ** (3 + 0.3 / 0.5)), rel=1e-3) and middle == 11.31
    assert any("n=3 seeds" in note and "Protocol clean" in note for note in table.notes)


def test_the_size_of_a_head_is_named_where_a_model_has_but_one(store):
    frames = fill(store, without=[("mesanet", 8)])
    assert set(curve(frames, task="mqar").data["arm"]) == {
        "MESANET, head size 4",
        "GATED_DELTANET, head size 4",
        "GATED_DELTANET, head size 8",
    }


def test_a_seed_that_lacks_a_number_of_pairs_has_no_half_point(store):
    frames = fill(store, lost=[("mesanet", 4, 0, 4)])
    table = half_points(frames, task="mqar", model="mesanet", reference="gated_deltanet")
    rows = {row[0].text: row[2].text for row in table.rows}
    assert len(rows["MESANET, head size 4"].split("; ")) == 2 and len(rows["GATED_DELTANET, head size 4"].split("; ")) == 3
    assert any("missing: MESANET" in note for note in table.notes)


def test_the_curves_are_drawn_with_a_ring_at_every_half_that_was_crossed(store):
    drawing = curve(fill(store), task="mqar")
    (axes,) = drawing.figure.axes
    rings = sorted(line.get_xdata()[0] for line in axes.lines if line.get_markersize() == 9)
    assert rings == pytest.approx([2**2.5, 2**3.5, 2**3.5])
    assert len(axes.get_legend_handles_labels()[1]) == 4 and axes.get_xlabel() == "number of pairs"
    assert set(drawing.data["half"]) == {"5.657", "11.31", "> 16"}
    assert any(note.startswith("Protocol clean") for note in drawing.notes)
