"""Who is ahead of whom, by a fact that both vary."""

from __future__ import annotations

import pytest

from reports.kit.parts import Frames, NoData, load_frames
from reports.kit.tables import Column
from reports.pages.sweep import curves, difference, ranking

COLUMN = Column(metric="nll", task="language", stage="train", split="validation")
ARGUMENTS = {"column": COLUMN, "fact": "model.mixer.forget_gate_init", "models": ["mesanet", "gated_deltanet"]}


def frames(store, mesanet: dict[float, float], other: dict[float, float]) -> Frames:
    """Two seeds that differ by a tenth in both models, and by a thousandth in their difference."""
    for model, losses in (("mesanet", mesanet), ("gated_deltanet", other)):
        for gamma, loss in losses.items():
            for seed in (0, 1):
                nll = loss + 0.1 * seed + (0.001 * seed if model == "mesanet" else 0)
                stages = {"train": [store.row("nll", nll, "validation")]}
                store.run(model, "language", seed=seed, stages=stages, varied={"model.mixer.forget_gate_init": gamma})
    store.request()
    return load_frames(store.root, "quick")


def test_the_ranking_that_the_fact_decides_is_said(store) -> None:
    made = ranking(frames(store, {0.5: 1.6, 0.98: 1.4}, {0.5: 1.5, 0.98: 1.5}), **ARGUMENTS)
    assert [row[4].text for row in made.rows] == ["GATED_DELTANET", "MESANET"]
    # 0.1005 and 12.706205 * 0.0005: the tenth between the seeds is in both models.
    assert made.rows[0][3].text == "+0.1005 [+0.0941, +0.1069]"
    assert made.notes[0] == "Does initial gamma decide who is ahead? Yes: GATED_DELTANET at 0.5, MESANET at 0.98."


def test_one_order_everywhere_is_a_no(store) -> None:
    made = ranking(frames(store, {0.5: 1.4, 0.98: 1.4}, {0.5: 1.5, 0.98: 1.5}), **ARGUMENTS)
    assert made.notes[0].startswith("Does initial gamma decide who is ahead? No: MESANET at 0.5")


def test_a_difference_within_the_noise_is_undecided(store) -> None:
    made = ranking(frames(store, {0.5: 1.499, 0.98: 1.5}, {0.5: 1.5, 0.98: 1.5}), **ARGUMENTS)
    assert [row[4].text for row in made.rows] == ["undecided", "undecided"]
    assert "Not by the intervals, but the means change sign" in made.notes[0]


def test_no_is_not_said_where_an_interval_is_open(store) -> None:
    made = ranking(frames(store, {0.5: 1.4, 0.98: 1.497}, {0.5: 1.5, 0.98: 1.5}), **ARGUMENTS)
    assert [row[4].text for row in made.rows] == ["MESANET", "undecided"]
    assert "Not by the means, and not every interval is decided" in made.notes[0]


def test_the_axis_is_logarithmic_in_the_tokens_remembered(store) -> None:
    found = frames(store, {0.5: 1.6, 0.98: 1.4}, {0.5: 1.5, 0.98: 1.5})
    for drawing in (difference(found, **ARGUMENTS), curves(found, columns=[COLUMN], fact="model.mixer.forget_gate_init")):
        axes = drawing.figure.axes[0]
        assert [text.get_text() for text in axes.get_xticklabels()] == ["0.5", "0.98"]
        transform = axes.xaxis.get_transform()
        # ln 2 and ln 50.
        assert transform.transform([0.5, 0.98]) == pytest.approx([0.693147, 3.912023])
        assert transform.inverted().transform([0.693147]) == pytest.approx([0.5])


def test_values_that_only_one_model_has_are_no_comparison(store) -> None:
    with pytest.raises(NoData, match="no value of initial gamma has runs of mesanet and gated_deltanet"):
        ranking(frames(store, {0.5: 1.4}, {0.98: 1.5}), **ARGUMENTS)


def test_models_are_compared_at_the_rates_that_validation_prefers(store) -> None:
    for seed in (0, 1):
        worse = {"train": [store.row("nll", 9.0 + seed, "validation")]}
        varied = {"model.mixer.forget_gate_init": 0.5, "train.lr": 0.5}
        store.run("mesanet", "language", seed=seed, stages=worse, varied=varied)
    made = ranking(frames(store, {0.5: 1.6}, {0.5: 1.5}), **ARGUMENTS)
    assert made.rows[0][3].text == "+0.1005 [+0.0941, +0.1069]"
