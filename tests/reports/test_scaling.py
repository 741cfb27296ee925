"""Power laws through known points, and the page that draws them."""

from __future__ import annotations

import numpy as np
import pytest

from reports.kit import power_law
from reports.kit.parts import Frames, NoData, load_frames
from reports.kit.power_law import LEAST, WITH_OFFSET, fit
from reports.kit.tables import Column
from reports.pages.scaling import curves, fits

LOSS = Column(metric="nll", task="language", stage="train", split="validation")
AXES = ("train_tokens", "train_flops", "parameters", "state_bytes")
SIZES = (1e5, 2e5, 4e5, 8e5, 1.6e6)
TOKENS = (1e6, 2e6, 4e6, 8e6, 1.6e7, 3.2e7)


def test_a_law_is_found_again():
    x = np.geomspace(1e5, 1e8, 8)
    law = fit(x, [np.array([30.0 * (each / 1e6) ** -0.35 + 2.0]) for each in x])
    assert law is not None and not law.at_edge
    assert (law.b, law.c) == (pytest.approx(0.35, rel=0.02), pytest.approx(2.0, abs=0.05))
    assert law.at(x) == pytest.approx(30.0 * (x / 1e6) ** -0.35 + 2.0, rel=0.01)
    # Points without noise leave nothing to be unsure of.
    assert law.b_ends == (pytest.approx(law.b, rel=0.05), pytest.approx(law.b, rel=0.05)) and law.resampled == "points"


@pytest.mark.parametrize("exponent", [0.05, 0.3, 0.353, 1.0])
@pytest.mark.parametrize("points", [WITH_OFFSET - 1, WITH_OFFSET + 3])
def test_a_law_between_two_exponents_of_the_grid_is_found(exponent, points):
    x, offset = np.geomspace(1e5, 1e8, points), 1.7 * (points >= WITH_OFFSET)
    law = fit(x, [np.array([2.5 * (each / 1e6) ** -exponent + offset]) for each in x])
    assert law is not None and law.b == pytest.approx(exponent, rel=5e-4) and law.c == pytest.approx(offset, abs=2e-3)
    assert law.b_ends == (pytest.approx(exponent, rel=1e-3), pytest.approx(exponent, rel=1e-3))


def test_through_few_points_there_is_no_offset_and_through_two_no_law():
    x = np.geomspace(1e5, 1e8, WITH_OFFSET - 1)
    law = fit(x, [np.array([3.0 * each**-0.1]) for each in x])
    assert law is not None and (law.has_offset, law.c) == (False, 0.0) and law.b == pytest.approx(0.1, rel=0.02)
    assert fit(x[: LEAST - 1], [np.ones(1)] * (LEAST - 1)) is None


def test_an_interval_over_seeds_holds_the_truth_and_is_wider_with_more_noise():
    x, widths = np.geomspace(1e5, 1e8, 6), []
    for noise in (0.002, 0.02):
        generator = np.random.default_rng(1)
        law = fit(x, [5.0 * (each / 1e6) ** -0.2 + generator.normal(0, noise, 4) for each in x])
        assert law is not None and law.resampled == "seeds" and law.b_ends[0] <= law.b <= law.b_ends[1]
        widths.append(law.b_ends[1] - law.b_ends[0])
    assert widths[1] > 3 * widths[0]


def test_an_interval_over_two_seeds_covers_about_as_often_as_it_says(monkeypatch):
    monkeypatch.setattr(power_law, "RESAMPLES", 300)
    x, generator = np.geomspace(1e6, 1e8, 4), np.random.default_rng(0)
    laws = [fit(x, [3.0 * (each / 1e7) ** -0.3 + generator.normal(0, 0.02, 2) for each in x]) for _ in range(80)]
    assert np.mean([law is not None and law.b_ends[0] <= 0.3 <= law.b_ends[1] for law in laws]) > 0.85


def test_losses_that_rise_are_no_power_law():
    x = np.geomspace(1e5, 1e8, 6)
    law = fit(x, [np.array([1.0 + 0.1 * i]) for i in range(len(x))])
    assert law is not None and law.at_edge


def sweep(store, *, models: dict[str, float], seeds: int = 1, tokens=TOKENS) -> Frames:
    """Every model at every size and number of tokens, whose loss is a known law of both."""
    for model, exponent in models.items():
        for parameters in SIZES:
            for each in tokens:
                loss = 3.0 * (each / 1e6) ** -exponent + 2.0 * (parameters / 1e5) ** -0.3
                facts = {"train_tokens": each, "parameters": parameters, "state_bytes": parameters / 10}
                facts |= {"flops_per_token": 2.0 * parameters}
                for seed in range(seeds):
                    rows = [store.row("nll", loss + 0.001 * seed, "validation")]
                    varied = {"size.d_model": parameters, "train.steps": each}
                    store.run(model, "language", stages={"train": rows}, facts=facts, varied=varied, seed=seed)
    store.request()
    return load_frames(store.root, "quick")


def test_every_axis_has_the_law_of_the_best_runs(store):
    frames = sweep(store, models={"mesanet": 0.2, "gla": 0.1})
    table = fits(frames, column=LOSS, axes=AXES)
    data = table.data.set_index(["family", "axis"])
    assert dict(data["points"].loc["MESANET"]) == {"train_tokens": 6, "train_flops": 10, "parameters": 5, "state_bytes": 5}
    # Over tokens the best are the largest models, whose law has an offset of its own.
    offset = 2.0 * (SIZES[-1] / 1e5) ** -0.3
    for model, exponent in (("MESANET", 0.2), ("GLA", 0.1)):
        found = data.loc[model, "train_tokens"]
        assert found["b"] == pytest.approx(exponent, abs=0.02) and found["c"] == pytest.approx(offset, abs=0.3)
    assert data.loc["MESANET", "parameters"]["b"] == pytest.approx(0.3, abs=0.02)
    assert "whole points drawn again where a point has one seed" in table.notes[0]


def test_points_and_laws_are_drawn_and_written(store):
    drawing = curves(sweep(store, models={"mesanet": 0.2}, tokens=TOKENS[:2]), column=LOSS, axes=AXES)
    data = drawing.data
    assert set(data["axis"]) == set(AXES) and len(data) == 4 * len(SIZES) * 2
    of_tokens = data[(data["axis"] == "train_tokens") & data["chosen"]]
    assert list(of_tokens["x"]) == [1e6, 2e6] and of_tokens["fitted"].isna().all()
    assert any(note == "Too few points for a law: MESANET over training tokens." for note in drawing.notes)
    of_parameters = data[(data["axis"] == "parameters") & data["chosen"]]
    assert of_parameters["fitted"].to_numpy() == pytest.approx(of_parameters["mean"].to_numpy(), rel=0.01)
    # Points, and pale dots and a law where there are any, for one model.
    assert [len(axes.lines) for axes in drawing.figure.axes] == [2, 3, 3, 3]


def test_a_line_that_shows_no_power_law_is_said_and_not_drawn(store):
    for parameters in SIZES:
        rows = [store.row("nll", 2.0 + parameters / 1e6, "validation")]
        facts = {"train_tokens": 1e6, "parameters": parameters, "state_bytes": 1000, "flops_per_token": 10.0}
        store.run("gla", "language", stages={"train": rows}, facts=facts, varied={"size.d_model": parameters})
    store.request()
    frames = load_frames(store.root, "quick")
    drawing = curves(frames, column=LOSS, axes=("parameters",))
    assert "No power law: GLA over parameters." in drawing.notes and drawing.data["fitted"].isna().all()
    assert fits(frames, column=LOSS, axes=("parameters",)).rows[0][3].text == "no power law"


def test_seeds_are_drawn_again_where_every_point_has_several(store):
    table = fits(sweep(store, models={"mesanet": 0.2}, seeds=2), column=LOSS, axes=("parameters",))
    assert table.data["resampled"].tolist() == ["seeds"] and "seeds drawn again within each point" in table.notes[0]


def test_without_scores_or_of_what_rises_there_is_nothing(store):
    store.run("mesanet", "language", stages={})
    store.request()
    frames = load_frames(store.root, "quick")
    with pytest.raises(NoData, match="no run of language has NLL"):
        curves(frames, column=LOSS, axes=AXES)
    with pytest.raises(NoData, match="is no loss"):
        fits(frames, column=LOSS.replace({"metric": "accuracy"}), axes=AXES)


def test_every_text_has_a_line_of_its_own(store) -> None:
    for digest, easier in (("a1", 0.0), ("b2", 1.0)):
        for tokens in TOKENS[:3]:
            facts = {"train_tokens": tokens, "parameters": 1e5, "state_bytes": 1e4, "flops_per_token": 2e5}
            rows = [store.row("nll", 3.0 * (tokens / 1e6) ** -0.3 + 2.0 - easier, "validation")]
            varied = {"train.steps": tokens}
            known = facts | {"data_fingerprint": 32 * digest}
            store.run("gla", "language", stages={"train": rows}, facts=known, varied=varied, group=digest)
    store.request()
    table = fits(load_frames(store.root, "quick"), column=LOSS, axes=["train_tokens"])
    assert {(row[0].text, row[2].text) for row in table.rows} == {("GLA, stdlib a1a1a1", "3"), ("GLA, stdlib b2b2b2", "3")}
