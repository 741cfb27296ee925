"""Figures for a column of a paper: width, sizes of text, fonts, order of legends, and what is in the frame."""

from __future__ import annotations

import re
import zlib
from io import BytesIO
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from fontTools import subset
from fontTools.ttLib import TTFont
from matplotlib.figure import Figure
from matplotlib.text import Text
from test_figures import POSITION, STATE, add_position, add_recall, frames

from conf.settings import RequestError
from reports.kit.finish import finish
from reports.kit.lines import MANY_BANDS, banded_lines
from reports.kit.panels import grid_of_panels, new_figure, row_of_panels, within_limits
from reports.kit.parts import Drawing
from reports.kit.save import LAYOUT_TABLES, save_drawing
from reports.kit.sheet import SCREEN, VENUES, Sheet, current, read_sheet
from reports.pages import figures

PAPER = {"style": "paper", "venue": "icml", "width": "single"}


def paper(**changed: str) -> Sheet:
    return read_sheet({**PAPER, **changed})


def many_arms(store) -> None:
    for i, model in enumerate(("transformer", "mesanet", "gla", "swa4")):
        add_position(store, model, (0.0, -0.01, 0.02, 3.0)[i])
        add_recall(store, model, 1024 * (i + 1), {2: 0.9 - 0.1 * i, 4: 0.7 - 0.1 * i, 8: 0.5 - 0.1 * i})


def drawings(store) -> list[Drawing]:
    made = frames(store)
    return [
        figures.nll_difference_by_position(made, **POSITION),
        figures.accuracy_against_state(made, **STATE),
        figures.training_curves(made, tasks=["mqar"], smoothing=0.05),
    ]


def texts(figure: Figure) -> list[Text]:
    return [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]


@pytest.mark.parametrize(("venue", "width"), [("icml", "single"), ("acl", "double"), ("neurips", "single")])
def test_a_figure_is_as_wide_as_the_column_with_text_of_seven_to_nine_points(store, venue: str, width: str) -> None:
    many_arms(store)
    with paper(venue=venue, width=width).applied():
        for drawing in drawings(store):
            finish(drawing.figure)
            assert drawing.figure.get_figwidth() == VENUES[venue][width == "double"]
            sizes = {text.get_fontsize() for text in texts(drawing.figure)}
            assert min(sizes) >= 7 and max(sizes) <= 9


def test_nothing_sticks_out_of_the_column_and_there_are_no_titles(store) -> None:
    many_arms(store)
    with paper().applied():
        for drawing in drawings(store):
            finish(drawing.figure)
            box = drawing.figure.get_tightbbox()
            assert box.x0 >= -0.01 and box.x1 <= drawing.figure.get_figwidth() + 0.01
            assert not drawing.figure.get_suptitle() and not any(axes.get_title() for axes in drawing.figure.axes)


def test_a_panel_among_several_keeps_its_name_within_the_frame_or_above_it(store) -> None:
    many_arms(store)
    with paper().applied():
        figure = figures.accuracy_against_state(frames(store), **STATE).figure
        finish(figure)
    assert {text.get_text() for axes in figure.axes for text in axes.texts} == {"num pairs: 2", "num pairs: 4", "num pairs: 8"}


@pytest.mark.parametrize("sheet", [SCREEN, paper()], ids=["page", "paper"])
def test_no_pdf_holds_type_3_fonts_and_its_width_is_the_figures(store, tmp_path: Path, sheet: Sheet, monkeypatch) -> None:
    many_arms(store)
    with sheet.applied():
        monkeypatch.setitem(mpl.rcParams, "pdf.compression", 0)
        drawing = figures.accuracy_against_state(frames(store), **STATE)
        save_drawing(drawing, tmp_path / "x.png", tmp_path / "x.pdf", tmp_path / "x.csv")
    written = (tmp_path / "x.pdf").read_bytes()
    assert b"/Type3" not in written and b"/Subtype /Type0" in written
    width = float(re.search(rb"/MediaBox \[ 0 0 ([\d.]+)", written).group(1))
    assert width == pytest.approx(72 * drawing.figure.get_figwidth(), abs=0.1)


def test_panels_too_narrow_for_the_column_stand_in_rows() -> None:
    with paper().applied():
        figure, panels = row_of_panels(5, width=3, height=3)
        assert len(panels) == 5 and figure.axes[0].get_subplotspec().get_gridspec().ncols == 2
        figure, grid = grid_of_panels(2, 5, width=2, beside=0, height=2)
        assert grid.shape == (2, 5)
        rows = [axes.get_subplotspec().rowspan.start for axes in grid[1]]
        assert rows == [1, 1, 3, 3, 5]
        assert grid[0, 4].get_shared_y_axes().joined(grid[0, 0], grid[0, 4])
    with SCREEN.applied():
        assert row_of_panels(5, width=3, height=3)[0].get_figwidth() <= 11.3
        assert new_figure(4, 3).get_figwidth() == 4


def test_auto_takes_two_columns_for_many_panels() -> None:
    sheet = paper(width="auto")
    assert (sheet.inches(2), sheet.inches(3)) == VENUES["icml"]


def test_a_sheet_holds_as_long_as_it_is_applied() -> None:
    with paper().applied():
        assert current() == paper()
    assert current() == SCREEN


@pytest.mark.parametrize(
    ("values", "said"), [({"venue": "icmll"}, "did you mean icml"), ({"style": "papr"}, "paper"), ({"width": "wide"}, "single")]
)
def test_a_wrong_sheet_is_one_line_that_names_what_is_permitted(values: dict[str, str], said: str) -> None:
    with pytest.raises(RequestError, match=said) as refused:
        read_sheet(values)
    assert "\n" not in str(refused.value) and next(iter(values.values())) in str(refused.value)


def test_legends_stand_by_the_values_at_which_lines_end(store) -> None:
    many_arms(store)
    loss, accuracy, _ = ([text.get_text() for text in drawing.figure.legends[0].get_texts()] for drawing in drawings(store))
    assert loss == ["MESANET", "GLA", "SWA4"]
    assert accuracy == ["TRANSFORMER", "MESANET", "GLA", "SWA4", "chance"]


def test_the_enlarged_panel_follows_its_own_lines_and_the_first_marks_it(store) -> None:
    many_arms(store)
    drawing = figures.nll_difference_by_position(frames(store), **POSITION)
    first, second = (axes.get_ylim() for axes in drawing.figure.axes)
    assert np.ptp(second) < 0.1 * np.ptp(first)
    near = drawing.data[drawing.data["model"] != "swa4"]["mean"]
    assert second[0] < near.min() and second[1] > near.max()
    strip = drawing.figure.axes[0].patches[0].get_extents().transformed(drawing.figure.axes[0].transData.inverted())
    assert (strip.y0, strip.y1) == pytest.approx(second)


def test_a_spike_of_the_first_positions_does_not_decide_what_is_enlarged(store) -> None:
    rows = {"position": [1, 2, 4, 8, 16, 32, 64, 128], "mean": [9.0, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]}
    data = pd.DataFrame(rows).assign(low=lambda table: table["mean"] - 0.01, high=lambda table: table["mean"] + 0.01)
    low, high = figures.enlarged_range(data)
    assert -0.1 < low < 0 < 0.11 < high < 0.2


def test_an_axis_ends_at_the_limits_of_its_metric() -> None:
    _, (axes,) = row_of_panels(1, width=3, height=3)
    axes.plot([0, 1], [-0.5, 1.5])
    within_limits(axes, "accuracy")
    assert axes.get_ylim() == pytest.approx((-0.03, 1.03))
    _, (axes,) = row_of_panels(1, width=3, height=3)
    axes.plot([0, 1], [0.4, 0.5])
    within_limits(axes, "accuracy")
    assert axes.get_ylim() == pytest.approx((0.395, 0.505))


def test_bands_pale_as_they_grow_many_and_then_are_edges() -> None:
    line = pd.DataFrame({"position": [1, 2], "mean": [0, 1], "low": [0, 0], "high": [1, 2]})
    alphas = {}
    for count in (2, 6, MANY_BANDS + 1):
        _, (axes,) = row_of_panels(1, width=3, height=3)
        banded_lines(axes, [({"color": f"C{i}", "linewidth": 1.0 + (i == 0)}, line) for i in range(count)])
        filled, *edges = axes.collections
        alphas[count] = filled.get_alpha()
        assert len(filled.get_facecolor()) == (count if count <= MANY_BANDS else 1)
        assert sum(len(each.get_edgecolor()) for each in edges) == (0 if count <= MANY_BANDS else count - 1)
    assert alphas[2] > alphas[6] > alphas[MANY_BANDS + 1]


def test_a_band_has_a_gap_where_an_end_of_it_is_not_known() -> None:
    line = pd.DataFrame({"position": [1, 2, 3, 4, 5, 6], "mean": 0.0, "low": -1.0, "high": [1, 2, np.nan, np.nan, 3, 4]})
    _, (axes,) = row_of_panels(1, width=3, height=3)
    banded_lines(axes, [({"color": "C1", "linewidth": 1.0}, line)])
    (bands,) = axes.collections
    corners = [{(x, y) for x, y in path.vertices} for path in bands.get_paths()]
    assert corners == [{(1, -1), (2, -1), (2, 2), (1, 1)}, {(5, -1), (6, -1), (6, 4), (5, 3)}]
    assert axes.get_ylim()[0] < -1 and axes.get_ylim()[1] > 4


def test_a_title_moves_where_it_would_stand_on_a_power_of_ten() -> None:
    heights = []
    for scale in (1e9, 1.0):
        figure, (axes,) = row_of_panels(1, width=1.2, height=2)
        axes.plot([0, 1], [0, scale])
        axes.set_title("a long title")
        finish(figure)
        heights.append(axes.title.get_position()[1])
        covered = axes.yaxis.get_offset_text().get_window_extent()
        assert not axes.title.get_window_extent().overlaps(covered) or not covered.width
    assert heights[0] > heights[1] == 1


def test_a_pdf_embeds_its_fonts_without_what_lays_text_out(tmp_path: Path) -> None:
    kept = list(subset.Options().drop_tables)
    figure, (axes,) = row_of_panels(1, width=3, height=3)
    axes.set_title("office")
    paths = tmp_path / "x.png", tmp_path / "x.pdf", tmp_path / "x.csv"
    with SCREEN.applied():
        save_drawing(Drawing(pd.DataFrame({"x": [1]}), figure), *paths)
    found = [zlib.decompress(part) for part in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", paths[1].read_bytes(), re.DOTALL)]
    fonts = [TTFont(BytesIO(each)) for each in found if each[:4] == b"\0\1\0\0"]
    assert fonts and all("glyf" in font and not {*LAYOUT_TABLES} & {*font.keys()} for font in fonts)
    assert list(subset.Options().drop_tables) == kept


def test_the_csv_stands_by_arm_and_place(store, tmp_path: Path) -> None:
    for model in ("mesanet", "gla"):
        add_position(store, model, 0.1)
    add_position(store, "transformer", 0.0)
    drawing = figures.nll_difference_by_position(frames(store), **POSITION)
    shuffled = Drawing(drawing.data.sample(frac=1, random_state=0), drawing.figure)
    save_drawing(shuffled, tmp_path / "x.png", tmp_path / "x.pdf", tmp_path / "x.csv")
    lines = (tmp_path / "x.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == ["1", "2", "4"] * 2
    assert ["GLA" in line for line in lines[1:]] == [True] * 3 + [False] * 3
