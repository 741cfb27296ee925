"""What is drawn and said of perplexity on long documents."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from invented_perplexity import BYTES_A_TOKEN, LENGTHS, perplexity_rows

from reports.kit.parts import Frames, NoData, load_frames
from reports.pages.positions import crossings, difference_by_position, mean_of_documents, perplexities, so_far

STATE = 300 * BYTES_A_TOKEN
WHOLE = {"baseline": "transformer", "reading": "carried", "context": 0}
# By which a model is worse beyond 512 tokens, and the bytes that it holds.
MODELS = {"transformer": (0.0, None), "mesanet": (-0.2, STATE), "gla": (0.3, 100 * BYTES_A_TOKEN)}


def frames_of(store, **asked) -> Frames:
    for model, (offset, state) in MODELS.items():
        for seed in (0, 1):
            rows = perplexity_rows(store, seed=seed, offset=offset, state=state, **asked)
            store.run(model, "language", seed=seed, stages={"perplexity": rows}, facts={"seq_len": 1024})
    store.request()
    return load_frames(store.root, "quick")


def test_the_difference_is_of_the_same_documents_and_its_lines_stand_where_the_cache_is_larger(store) -> None:
    drawing = difference_by_position(frames_of(store), **WHOLE)
    late = drawing.data[drawing.data["position_low"] == 512].set_index("model")
    # Four of the six documents go beyond 512 tokens, and one ends at 600.
    assert late["mean"].to_dict() == pytest.approx({"mesanet": -0.2, "gla": 0.3}) and set(late["documents"]) == {5}
    assert (drawing.data[drawing.data["position_low"] < 512]["mean"].abs() < 1e-9).all()
    (axes,) = drawing.figure.axes
    dotted = [line for line in axes.lines if line.get_linestyle() == ":" and len(line.get_xdata())]
    marks = {line.get_xdata()[0]: line.get_color() for line in dotted}
    assert sorted(marks) == pytest.approx([100, 300]) and len(set(marks.values())) == 2
    said = "books: dotted is where the cache of transformer outgrows a state, 100 tokens (GLA), 300 tokens (MESANET)."
    assert said in drawing.notes
    (trained,) = [line.get_xdata()[0] for line in axes.lines if line.get_label() == "trained length"]
    assert axes.get_title() == "books" and trained == 1024


def test_an_axis_holds_what_rests_on_many_tokens(store) -> None:
    for model, (offset, state) in MODELS.items():
        rows = perplexity_rows(store, seed=0, offset=offset, state=state, at_first=3.0 * (model == "gla"))
        store.run(model, "language", stages={"perplexity": rows}, facts={"seq_len": 1024})
    store.request()
    drawing = difference_by_position(load_frames(store.root, "quick"), **WHOLE)
    assert drawing.data["mean"].max() == pytest.approx(3.0)
    low, high = drawing.figure.axes[0].get_ylim()
    assert -0.5 < low < -0.2 and 0.3 < high < 0.6
    assert (
        "The axis holds what rests on 100 tokens and more; lines and bands of the first positions go beyond it." in drawing.notes
    )


def test_the_difference_of_the_mean_so_far_stands_at_the_end_of_a_range(store) -> None:
    drawing = difference_by_position(frames_of(store), **WHOLE, metric="nll_so_far")
    mesa = drawing.data[drawing.data["model"] == "mesanet"].set_index("position")["mean"]
    assert mesa.index.tolist() == [1, 64, 512, 2048, 4096]
    # Documents of at least 4,096 tokens: 3,584 of these lie beyond 512.
    assert mesa[4096] == pytest.approx(-0.2 * 3584 / 4096)


def test_a_mean_so_far_of_other_documents_is_named(store) -> None:
    frames_of(store)
    for path in store.root.glob("runs/gla-*/eval/perplexity-*.json"):
        path.rename(path.with_name("perplexity-11111111.json"))
    notes = so_far(load_frames(store.root, "quick"), **WHOLE).notes
    assert "books: not of the same documents as the others, which can't be compared: GLA." in notes


def test_the_mean_so_far_has_a_line_a_model(store) -> None:
    drawing = so_far(frames_of(store), **WHOLE)
    (axes,) = drawing.figure.axes
    labels = [line.get_label() for line in axes.lines if not line.get_label().startswith("_")]
    assert sorted(labels) == ["GLA", "MESANET", "TRANSFORMER", "cache of transformer > state", "trained length"]
    assert axes.lines[0].get_xdata().tolist() == [1, 64, 512, 2048, 4096]
    assert any("dotted" in note for note in drawing.notes)


def test_a_state_that_grows_is_outgrown_where_both_hold_as_much() -> None:
    held = {"transformer": [10.0, 20.0, 40.0, 80.0], "swa": [10.0, 20.0, 20.0, 20.0], "hybrid": [25.0, 30.0, 40.0, 60.0]}
    rows = [
        {"arm": arm, "model": arm, "position_high": high, "value": value}
        for arm, values in held.items()
        for high, value in zip((1, 2, 4, 8), values, strict=True)
    ]
    found = {each.arm: each.position for each in crossings(pd.DataFrame(rows), "transformer")}
    assert found == {"swa": 2.0, "hybrid": 4.0}
    assert not list(crossings(pd.DataFrame(rows), "mamba2"))


def test_the_table_has_every_text_and_length_with_intervals_over_documents(store) -> None:
    for model, (offset, state) in MODELS.items():
        rows = perplexity_rows(store, seed=0, offset=offset, state=state)
        rows += perplexity_rows(store, seed=0, offset=offset, state=state, context=1024)
        rows += perplexity_rows(store, seed=0, offset=offset, state=state, context=256, reading="reset")
        stages = {"perplexity": rows} if model != "gla" else {"perplexity": rows[:1] + rows[2:4]}
        reason = "perplexity lost carried 0 failed: eval.texts=lost.txt: there is no such file" if model == "gla" else ""
        store.run(model, "language", stages=stages, reason=reason)
    store.request()
    made = perplexities(load_frames(store.root, "quick"))
    assert made.header == ("model", "books, 1,024 tokens, carried", "books, whole documents", "books, 256 tokens, reset")
    texts = {row[0].text: [entry.text for entry in row[1:]] for row in made.rows}
    assert set(texts) == {"TRANSFORMER", "MESANET", "GLA"}
    assert texts["GLA"][::2] == ["–", "–"] and "[" in texts["MESANET"][0]
    difficulty = np.random.default_rng(7).uniform(1, 2, len(LENGTHS))
    assert texts["TRANSFORMER"][1].startswith(f"{math.exp(np.average(difficulty, weights=LENGTHS)):.2f} [")
    assert texts["TRANSFORMER"][0].startswith(f"{math.exp(difficulty[:4].mean()):.2f} [")
    notes = " ".join(made.notes)
    assert "6 documents of books, whole documents" in notes
    assert "books, 1,024 tokens, carried: 2 of 10 documents left out, for having fewer tokens." in notes
    assert "GLA, seed 0: perplexity lost carried 0 failed: eval.texts=lost.txt: there is no such file." in notes


def test_the_interval_over_documents_covers_as_often_as_it_says() -> None:
    draw = np.random.default_rng(0)
    found = [mean_of_documents(draw.normal(2.0, 0.5, 20), draw.integers(500, 5000, 20).astype(float)) for _ in range(2000)]
    assert 0.92 < np.mean([each.low < 2.0 < each.high for each in found]) < 0.97
    alone = mean_of_documents(np.array([2.0]), np.array([10.0]))
    assert alone.mean == 2.0 and math.isnan(alone.low)


@pytest.mark.parametrize("part", [lambda frames: perplexities(frames), lambda frames: so_far(frames, **WHOLE)])
def test_without_the_stage_the_command_that_measures_it_is_said(store, part) -> None:
    store.run("gla", "language", stages={"train": [store.row("nll", 1.0, "validation")]})
    store.request()
    with pytest.raises(NoData, match=r"stage perplexity.*python -m suite evaluate run=all eval=perplexity"):
        part(load_frames(store.root, "quick"))


def test_what_was_read_otherwise_and_a_missing_baseline_are_said(store) -> None:
    frames = frames_of(store)
    said = r"no run has nll of 2,048 tokens, reset .*eval.contexts=\[2048\]' 'eval.readings=\[reset\]"
    with pytest.raises(NoData, match=said):
        difference_by_position(frames, baseline="transformer", reading="reset", context=2048)
    with pytest.raises(NoData, match="the baseline mamba2"):
        difference_by_position(frames, baseline="mamba2", reading="carried", context=0)


def read_by(store, model: str, *, seed: int, evaluation: str, text: str = "books", digest: str = "a" * 64, **asked) -> None:
    """A run whose texts were read in the evaluation of this name: results are named after their documents."""
    rows = perplexity_rows(store, seed=seed, offset=MODELS[model][0], state=MODELS[model][1], text=text, **asked)
    facts = {"seq_len": 1024, "data_fingerprint": digest}
    folder = store.run(model, "language", seed=seed, stages={"perplexity": rows}, facts=facts, group=digest[:2])
    (folder / "eval" / "perplexity-00000000.json").rename(folder / "eval" / f"perplexity-{evaluation}.json")


def loaded(store) -> Frames:
    store.request()
    return load_frames(store.root, "quick")


def test_windows_that_slide_stand_beside_readings_without_a_stride(store) -> None:
    for model in ("mesanet", "gla"):
        rows = []
        for reading, stride in (("reset", {}), ("sliding", {"stride": 128})):
            made = perplexity_rows(store, seed=0, offset=MODELS[model][0], state=STATE, reading=reading, context=256)
            rows += [{**row, "slice": row["slice"] | stride} for row in made]
        store.run(model, "language", stages={"perplexity": rows}, facts={"seq_len": 1024})
    made = perplexities(loaded(store))
    assert made.header == ("model", "books, 256 tokens, reset", "books, 256 tokens, sliding by 128")
    assert all("[" in entry.text for row in made.rows for entry in row[1:])


def test_documents_of_a_text_that_changed_are_not_compared_in_pairs(store) -> None:
    for seed, model, evaluation in ((0, "transformer", "0"), (1, "transformer", "0"), (0, "gla", "0"), (0, "mesanet", "1")):
        read_by(store, model, seed=seed, evaluation=8 * evaluation)
    read_by(store, "transformer", seed=2, evaluation="11111111", lengths=LENGTHS[:4])
    frames = loaded(store)
    assert set(difference_by_position(frames, **WHOLE).data["model"]) == {"gla", "mesanet"}
    store.cells = [cell for cell in store.cells if cell["seed"] != 2]
    store.request()
    made, drawn = (
        part(load_frames(store.root, "quick")) for part in (perplexities, lambda each: difference_by_position(each, **WHOLE))
    )
    assert set(drawn.data["model"]) == {"gla"}
    assert any(
        "not of the same documents as the others, which can't be compared: MESANET (6 documents)" in each for each in made.notes
    )
    left = [each for each in perplexities(frames).notes if "without transformer-tiny-languageaa-2" in each]
    assert len(left) == 1


def test_texts_of_one_name_are_told_apart_by_their_digest(store) -> None:
    for model, digest in (("transformer", "a1"), ("mesanet", "a1"), ("gla", "b2")):
        read_by(store, model, seed=0, evaluation="00000000", digest=32 * digest)
    frames = loaded(store)
    for frame in (frames.cells, frames.runs, frames.results, frames.examples):
        assert dict(zip(frame["model"], frame["data"], strict=True)) == {
            "transformer": "stdlib a1a1a1",
            "mesanet": "stdlib a1a1a1",
            "gla": "stdlib b2b2b2",
        }
    # Another text has no baseline.
    assert set(difference_by_position(frames, **WHOLE).data["model"]) == {"mesanet"}
