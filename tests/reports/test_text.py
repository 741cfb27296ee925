"""A table on a terminal."""

from __future__ import annotations

import pandas as pd
import pytest

from reports.kit.parts import Entry, Table
from reports.kit.text import display_width, to_text


def table(
    *rows: tuple[Entry, ...], notes: tuple[str, ...] = (), header: tuple[str, ...] = ("model", "accuracy", "speed")
) -> Table:
    return Table(pd.DataFrame(), header, rows, notes)


TWO = (
    (Entry("GLA"), Entry("0.512", 0.512, "best"), Entry("9", 9.0, "second")),
    (Entry("DeltaNet"), Entry("missing"), Entry("10,000", 1e4)),
)


def test_numbers_stand_right_and_the_best_is_marked():
    assert to_text(table(*TWO, notes=("One seed.",)), 80).splitlines() == [
        "model     accuracy    speed",
        "GLA          0.512*       9",
        "DeltaNet   missing   10,000",
        "One seed.",
        "* best",
    ]


def test_what_does_not_fit_stands_below_behind_the_first_column():
    assert to_text(table(*TWO), 20).splitlines() == [
        "model     accuracy",
        "GLA          0.512*",
        "DeltaNet   missing",
        "",
        "model      speed",
        "GLA            9",
        "DeltaNet  10,000",
        "* best",
    ]


def test_where_nothing_fits_beside_the_first_column_rows_are_lists():
    lines = to_text(table(*TWO), 15).splitlines()
    assert lines == ["GLA", "  accuracy: 0.512*", "  speed: 9", "DeltaNet", "  accuracy: missing", "  speed: 10,000", "* best"]


@pytest.mark.parametrize(("text", "width"), [("GLA", 3), ("東京", 4), ("e\u0301a", 2), ("größe", 5), ("a\u200db", 2)])
def test_letters_take_their_width(text, width):
    assert display_width(text) == width


def test_wide_letters_leave_columns_aligned():
    lines = to_text(
        table((Entry("東京"), Entry("1", 1.0)), (Entry("Köln"), Entry("2", 2.0)), header=("town", "n")), 80
    ).splitlines()
    assert lines == ["town  n", "東京  1", "Köln  2"]


@pytest.mark.parametrize("hostile", ["\x1b[2J", "a\nb", "\u202egnp", "\x9b31m", "a\u2028b", "a\rb", "\ud800"])
def test_no_text_has_an_effect_on_the_terminal(hostile):
    said = to_text(table((Entry(hostile), Entry(hostile)), notes=(hostile,), header=(hostile, "n")), 80)
    assert all(letter.isprintable() or letter == "\n" for letter in said) and said.count("\n") == 3
