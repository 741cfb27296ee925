"""Parity's figure and tables, from invented scores."""

from __future__ import annotations

import pytest

from reports.kit.parts import NoData, load_frames
from reports.pages.state_tracking import accuracy_by_length, accuracy_in_ranges, definiteness, length_scores


def fill(store, *, stages=("test", "internals")) -> None:
    """Two models of two seeds, trained to 4 and tested to 8; `signed` is always right, `plain` only to 4."""
    for model, beyond in (("mesanet_signed", 1.0), ("mesanet", 0.5)):
        for seed in (0, 1):
            # Beyond 4 it falls by 0.02 a token around its mean.
            values = [1.0 if t < 4 else beyond - 0.1 * seed - 0.02 * (t - 5.5) for t in range(8)]
            accuracy = [store.row("accuracy", value, "test", position=t) for t, value in enumerate(values)]
            rows = {"test": [*accuracy, store.row("chance", 0.5, "test")]}
            spectrum = []
            for head in (0, 1):
                for low, high in ((0, 4), (4, 8)):
                    lost = model == "mesanet_signed" and head == 1 and low == 4 and seed == 0
                    place = {"layer": 0, "head": head, "position_low": low, "position_high": high}
                    spectrum.append(store.row("smallest_eigenvalue", -3.0 if lost else 9.0, "test", **place))
                    spectrum.append(store.row("indefinite", 0.25 if lost else 0.0, "test", **place))
            rows["internals"] = spectrum
            asked = {stage: rows[stage] for stage in stages}
            store.run(model, "parity", seed=seed, stages=asked, facts={"seq_len": 4})
    store.request("parity")


def test_accuracy_is_averaged_over_windows_and_seeds(store):
    fill(store)
    data, trained = length_scores(load_frames(store.root, "parity"), task="parity", split="test", window=4)
    assert trained == 4 and sorted(data["length"].unique()) == [2.5, 6.5]
    by = data.set_index(["model", "length"])
    assert by.loc[("mesanet_signed", 6.5), "mean"] == pytest.approx(0.95) and by.loc[("mesanet", 6.5), "mean"] == pytest.approx(
        0.45
    )
    assert by.loc[("mesanet", 6.5), "seed 1"] == pytest.approx(0.4) and (by["seeds"] == 2).all()


def test_the_figure_draws_a_line_a_model_and_the_trained_length(store):
    fill(store)
    drawing = accuracy_by_length(load_frames(store.root, "parity"), task="parity", split="test", window=2)
    (axes,) = drawing.figure.axes
    labels = axes.get_legend_handles_labels()[1]
    assert labels == ["MESANET", "MESANET_SIGNED", "chance", "trained to 4"] and "n=2 seeds" in drawing.notes[0]


def test_ranges_of_lengths_have_a_mean_and_the_worst_seed(store):
    fill(store)
    table = accuracy_in_ranges(load_frames(store.root, "parity"), task="parity", split="test", edges=[4, 8])
    assert table.header == ("model", "length 1 to 4", "length 5 to 8")
    cells = {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}
    assert cells["MESANET"][0] == "1.000, worst 1.000" and cells["MESANET"][1].endswith("worst 0.400")
    assert table.data.set_index(["model", "low"]).loc[("mesanet_signed", 5), "mean"] == pytest.approx(0.95)


def test_a_lost_definiteness_is_said_and_counted(store):
    fill(store)
    table = definiteness(load_frames(store.root, "parity"), task="parity")
    cells = {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}
    assert cells["MESANET"] == ["9.00", "9.00"] and cells["MESANET_SIGNED"] == ["9.00", "-3.00; 6.2 % of tokens"]
    signed, plain = (next(note for note in table.notes if note.startswith(f"{name}:")) for name in ("MESANET_SIGNED", "MESANET"))
    assert "loses its definiteness from token 5 on" in signed and "1 of 4 heads" in signed and "1 of 2 seeds" in signed
    assert "positive definite at every token" in plain


def test_a_store_without_the_stage_says_so(store):
    fill(store, stages=("test",))
    frames = load_frames(store.root, "parity")
    with pytest.raises(NoData, match="stage internals"):
        definiteness(frames, task="parity")
    with pytest.raises(NoData, match="no run of mqar has accuracy"):
        accuracy_by_length(frames, task="mqar", split="test", window=1)
