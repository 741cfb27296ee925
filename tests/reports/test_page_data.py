"""What a page carries for its scripts: points where they are drawn, runs column by column, and text that ends no element."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from reports.kit.details import encoded
from reports.kit.document import document, inert_json
from reports.kit.hover import MOST_POINTS, points_of, remember
from reports.kit.index import about_page, reports_list
from reports.kit.lines import seed_points
from reports.kit.panels import new_figure

NUMBERS = {"first": 0, "second": 1}


def told(figure) -> list[dict]:
    figure.savefig(io.BytesIO(), format="svg")
    return points_of(figure, lambda label: [], NUMBERS.get)["lines"]


def test_a_point_lies_where_the_picture_has_it() -> None:
    figure = new_figure(5, 3)
    axes = figure.subplots()
    axes.set_xscale("log")
    rows = pd.DataFrame(
        {"x": [1, 10, 100], "mean": [1.0, 3.0, 2.0], "low": 0.5, "high": 3.5, "half_width": 1.0, "n": 3, "each": ""}
    )
    seed_points(axes, rows.assign(runs="first second"), "x", look={"color": "#112233", "marker": "o", "label": "GLA"})
    picture = io.BytesIO()
    figure.savefig(picture, format="svg")
    (line,) = points_of(figure, lambda label: [], NUMBERS.get)["lines"]
    marks = re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)" style="fill: #112233', picture.getvalue().decode())
    drawn = [[float(x), float(y)] for x, y in marks]
    assert [point[:2] for point in line["points"]] == pytest.approx(np.array(drawn[:3]), abs=0.1)
    assert [point[2:] for point in line["points"]] == [[x, y, 0.5, 3.5, 3, [0, 1]] for x, y in ((1, 1), (10, 3), (100, 2))]
    assert (line["label"], line["color"]) == ("GLA", "#112233")


def test_a_seed_that_stands_alone_leads_to_its_own_run() -> None:
    axes = new_figure(4, 3).subplots()
    rows = pd.DataFrame(
        {"x": [1], "mean": [1.5], "low": np.nan, "high": np.nan, "half_width": np.nan, "n": 2, "each": [(1.0, 2.0)]}
    )
    seed_points(axes, rows.assign(runs="first second"), "x", look={"color": "red", "label": "GLA"})
    points = [point for line in told(axes.figure) for point in line["points"]]
    assert [(point[3], point[7]) for point in points] == [(1.5, [0, 1]), (1, [0]), (2, [1])]


def test_a_line_that_nobody_remembered_is_told_by_its_label_and_a_point_once() -> None:
    axes = new_figure(4, 3).subplots()
    axes.plot([1, 2], [3, 4], label=r"\$a")
    axes.plot([1, 2], [3, 4], "o", label="again")
    axes.plot([1, 2], [4, 3])
    axes.axhline(3.5, label="chance")
    assert [(line["label"], len(line["points"])) for line in told(axes.figure)] == [("$a", 2)]


def test_what_is_out_of_sight_is_no_point_and_a_long_line_has_few() -> None:
    axes = new_figure(4, 3).subplots()
    (line,) = axes.plot(np.arange(1000), np.arange(1000))
    remember(line, pd.DataFrame({"arm": "GLA", "mean": np.arange(1000)}))
    axes.set_ylim(0, 499)
    (found,) = told(axes.figure)
    assert len(found["points"]) == pytest.approx(MOST_POINTS / 2, abs=3)
    assert max(point[3] for point in found["points"]) < 505


@pytest.mark.parametrize(
    ("values", "written"),
    [
        ([1.0, 1.0], {"all": 1}),
        ([], {"all": None}),
        ([None, np.nan, None], {"all": None}),
        (["a", "b", "a", None, "a"], {"each": ["a", "b", "a", None, "a"]}),
        (["a", "b"] * 3, {"of": ["a", "b"], "at": [0, 1] * 3}),
        ([True, None] * 3, {"of": [True, None], "at": [0, 1] * 3}),
        ([np.inf, 1e-5], {"each": [None, 1e-5]}),
    ],
)
def test_a_column_is_written_as_short_as_it_can_be(values: list, written: dict) -> None:
    assert encoded(pd.Series(values, dtype=None if values else object)) == written


def test_data_end_no_element_and_come_back_as_they_were() -> None:
    data = {"</script><!--": ["<script>", "&lt;", "\u2028\u2029", "]]>", 'ä"\\']}
    text = inert_json(data)
    assert not set("<>&\u2028\u2029") & set(text) and json.loads(text) == data
    assert json.loads(inert_json({"half": "\ud800"})) == {"half": "\ud800"}


def test_a_page_says_what_it_is_to_an_index_and_a_stranger_is_named_only(tmp_path: Path) -> None:
    about = {"title": 'A "<b>title</b>"', "runs": 3}
    for name, text in {
        "mine": document("page.html", (), {}, about, title="", asked="", contents="", sections="", command="", made=""),
        "other": "<title>mine</title>",
        "wrong": '<meta name="linear-rnn-suite" content="[1]">',
        "torn": '<meta name="linear-rnn-suite" content="{">',
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "index.html").write_text(text)
    (tmp_path / "linked").symlink_to(tmp_path / "mine")
    assert about_page(tmp_path / "mine" / "index.html") == about
    listed = reports_list(tmp_path)
    assert re.findall(r'href="([^"]*)"', listed) == ["mine/index.html"]
    assert listed.count("not a report of this suite") == 3 and "<b>" not in listed and "linked" not in listed
