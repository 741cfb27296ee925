"""What the study of decoding says of warm starts and of the recursion."""

from __future__ import annotations

import numpy as np
import pytest
from invented import decode_rows

from reports.kit.parts import Frames, NoData, load_frames
from reports.pages.mesa.decoding import by_position, comparison, decoder_label

STARTS = ["solver, diagonal start", "solver, previous_token start"]
FRESH = "fresh start, eps 1e-4"


@pytest.fixture
def decoded(store) -> Frames:
    for seed in (0, 1):
        store.run("mesanet", "language", seed=seed, stages={"decode": decode_rows(store, seed=seed)})
    store.request()
    return load_frames(store.root, "quick")


def made(frames: Frames, decoders: list[str]):
    return comparison(frames, task="language", baseline=FRESH, decoders=decoders)


@pytest.mark.parametrize(
    ("decoder", "label"),
    [
        (("solver, diagonal start", 0, 30, 1e-4), "fresh start, eps 1e-4"),
        (("solver, previous_token start", 0, 2, 0.0), "warm start, 2 steps"),
        (("sherman_morrison", 0, 30, 1e-4), "Sherman-Morrison, never refreshed"),
        (("sherman_morrison", 64, 30, 1e-4), "Sherman-Morrison, refreshed every 64 tokens"),
    ],
)
def test_a_decoder_in_words(decoder, label: str) -> None:
    assert decoder_label(*decoder) == label


def test_warm_starts_stand_beside_fresh_ones_with_the_steps_they_save(decoded) -> None:
    table = made(decoded, STARTS)
    assert [row[0].text for row in table.rows] == [FRESH, "warm start, eps 1e-4", "fresh start, 2 steps", "warm start, 2 steps"]
    assert table.rows[0][1].text == "+0.00000"
    assert table.notes[0] == (
        "Warm start at eps 1e-4: +2.00 steps saved of 9.00, error 8.2e-3 against 2.1e-3, time 0.80 of the fresh start's."
    )
    assert "+0.00 steps saved of 2.00" in table.notes[1]


def test_the_recursion_has_no_steps_and_its_error_is_said(decoded) -> None:
    table = made(decoded, [FRESH, "sherman_morrison"])
    rows = {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}
    never = rows["Sherman-Morrison, never refreshed"]
    # 1e-3 * 64, and a tenth more in the second seed.
    assert never[1] == "6.7e-2"
    assert never[3] == "none"
    # No other fresh start, though the same runs have one of two steps.
    assert list(rows) == [FRESH, "Sherman-Morrison, refreshed every 16 tokens", "Sherman-Morrison, never refreshed"]
    assert "error 6.7e-2 (worst 6.7e-1), NLL +0.06515 nats to fresh start, eps 1e-4, time 0.40." in table.notes[-2]


def test_lines_by_position_have_a_panel_a_metric(decoded) -> None:
    drawing = by_position(decoded, task="language", metrics=["readout_error", "nll"], decoders=["sherman_morrison"])
    error, nll = drawing.figure.axes
    assert (error.get_yscale(), nll.get_yscale()) == ("log", "linear")
    never = next(line for line in error.lines if line.get_label() == "Sherman-Morrison, never refreshed")
    assert never.get_ydata() == pytest.approx([1.05e-3, 1.68e-2, 6.72e-2])
    assert never.get_xdata() == pytest.approx([1.0, np.sqrt(2 * 16), np.sqrt(17 * 64)])


def test_without_the_baseline_there_is_nothing_to_compare_with(decoded) -> None:
    with pytest.raises(NoData, match="with fresh start, eps 1e-9"):
        comparison(decoded, task="language", baseline="fresh start, eps 1e-9", decoders=STARTS)


def test_a_decoder_that_nobody_ran_is_no_data(decoded) -> None:
    with pytest.raises(NoData, match="decoded with other"):
        made(decoded, ["other"])
