"""Arms beside a reference, and interactions of models with settings: from invented runs whose differences are known."""

from __future__ import annotations

import itertools

import pytest

from conf.settings import RequestError
from reports.kit.parts import Frames, NoData, load_frames
from reports.kit.tables import Column
from reports.pages.contrasts import against, interaction

NLL, ACCURACY = (Column(metric=metric, task="mqar", stage="test", split="test") for metric in ("nll", "accuracy"))
CONV, WIDTH = "model.mixer.convolution", "model.mixer.conv_width"


def run(store, model: str, loss: float, *, seed: int, **varied) -> None:
    """Seeds differ by far more than models do."""
    rows = [store.row("nll", 2.0 + 10.0 * seed + loss, "test"), store.row("accuracy", 0.5, "test")]
    store.run(model, "mqar", seed=seed, stages={"test": rows}, varied=varied)


def frames_of(store) -> Frames:
    store.request()
    return load_frames(store.root, "quick")


def entries(table) -> dict[tuple[str, ...], list[str]]:
    named = 2 if table.header[1] == "setting" else 1
    return {tuple(entry.text for entry in row[:named]): [entry.text for entry in row[named:]] for row in table.rows}


def test_differences_to_the_reference_are_paired_by_seed_at_every_place(store) -> None:
    for seed in range(3):
        for pairs, gap in ((16, 0.5), (8, 0.1)):
            run(store, "mesanet", 0.0, seed=seed, **{"task.num_pairs": pairs})
            run(store, "gla", gap + 0.01 * (seed - 1), seed=seed, **{"task.num_pairs": pairs})
            run(
                store,
                "gla",
                0.0 if pairs == 8 else 0.02 * (seed - 1),
                seed=seed,
                **{"task.num_pairs": pairs, "size.head_dim": 32},
            )
    table = against(frames_of(store), columns=[NLL, ACCURACY], reference={"model": "mesanet"}, across="task.num_pairs")
    rows = entries(table)
    assert list(rows) == [("MESANET",), ("GLA, no head size",), ("GLA, head size 32",)]
    assert [title.rpartition(", ")[2] for title in table.header[1:5:2]] == ["num pairs 8", "num pairs 16"]
    at = table.header.index("MQAR NLL [nats/token], num pairs 16, less the reference") - 1
    assert rows["GLA, no head size",][at].startswith("+0.5000 ±") and rows["MESANET",][at] == ""
    told = [note for note in table.notes if "against" in note]
    assert len(told) == 4 and "GLA, no head size against MESANET, num pairs 16, MQAR" in told[2] and "decided, worse" in told[2]
    assert any("alike in all of 3 seeds" in note for note in told) and any("undecided" in note for note in told)
    assert not any("accuracy" in note for note in told)


def test_a_part_of_the_split_is_told_by_its_place(store) -> None:
    low, high = {"position_low": 16, "position_high": 32}, {"num_pairs": 8}
    for seed, (model, loss) in itertools.product(range(3), (("mesanet", 0.0), ("gla", 1.0))):
        gap = loss + 0.01 * seed * loss
        rows = [store.row("nll", 2.0 + scale * gap, "test", **place) for scale, place in ((1.0, low), (-1.0, high))]
        store.run(model, "mqar", seed=seed, stages={"test": rows}, varied={CONV: "none"})
        store.run(model, "mqar", seed=seed, stages={"test": rows}, varied={CONV: "input"})
    columns = [NLL.replace({"slice": text}) for text in ("position_high=32, position_low=16", "num_pairs=8")]
    frames = frames_of(store)
    tables = (
        against(frames, columns=columns, reference={"model": "mesanet", CONV: "none"}),
        interaction(frames, columns=columns, across=[CONV], base=["none"], reference="mesanet"),
    )
    for table in tables:
        assert sum("positions 17 to 32" in title for title in table.header) == 2
        assert sum("num pairs 8" in title for title in table.header) == 2
    told = [note for note in tables[0].notes if "GLA, no convolution against" in note]
    assert "positions 17 to 32, MQAR, NLL: decided, worse by +1.0" in told[0]
    assert "num pairs 8, MQAR, NLL: decided, better by" in told[1]
    assert sum("GLA gains by input convolution" in note and "positions 17 to 32, MQAR" in note for note in tables[1].notes) == 1


def test_an_arm_without_a_value_has_none(store) -> None:
    for seed in range(3):
        run(store, "mesanet", 0.0, seed=seed)
        store.ask("gla", "mqar", seed=seed)
    rows = entries(against(frames_of(store), columns=[NLL], reference={"model": "mesanet"}))
    assert rows["GLA",] == ["–", "–"] and rows["MESANET",][0].startswith("12.000 ±")


def test_the_reference_is_one_arm(store) -> None:
    for steps in (5, 9):
        run(store, "mesanet", 0.1 * steps, seed=0, **{"model.mixer.solver.max_steps": steps})
    frames = frames_of(store)
    with pytest.raises(RequestError, match="fits MESANET, solver steps 5, MESANET, solver steps 9, permitted is one arm"):
        against(frames, columns=[NLL], reference={"model": "mesanet"})
    table = against(frames, columns=[NLL], reference={"model.mixer.solver.max_steps": "9"})
    assert entries(table)["MESANET, solver steps 5",] == ["2.500", "-0.4000".replace("-", "−")]
    assert any("1 seed in common" in note for note in table.notes)
    with pytest.raises(RequestError, match="^model.mixer.steps=9 is no setting of these runs"):
        against(frames, columns=[NLL], reference={"model.mixer.steps": "9"})


def crossed(store, gains: dict[str, float]) -> Frames:
    """Every model without a convolution and with one, by which it gains so much."""
    for seed in range(3):
        for level, (model, gain) in enumerate(gains.items()):
            run(store, model, level, seed=seed, **{CONV: "none", WIDTH: 4})
            run(store, model, level - gain + 0.01 * (seed - 1) * level, seed=seed, **{CONV: "query_key", WIDTH: 4})
    return frames_of(store)


def test_an_interaction_is_what_a_model_gains_beyond_the_reference(store) -> None:
    frames = crossed(store, {"gla": 0.5, "mesanet": 0.2, "hawk": 0.5})
    table = interaction(frames, columns=[NLL], across=[CONV, WIDTH], base=["none", "4"], reference="gla")
    rows = entries(table)
    assert table.header[:2] == ("model", "setting") and table.header[3].endswith("gained beyond GLA")
    assert rows["MESANET", "query_key convolution, conv width 4"][1].startswith("+0.3000 ±")
    # Models that differ by a constant do not interact, and neither the base nor the reference is compared.
    assert rows["HAWK", "query_key convolution, conv width 4"][1].startswith("+0.0000 ±")
    assert [rows[key][1] for key in rows if key[1].startswith("no ") or key[0] == "GLA"] == [""] * 4
    told = [note for note in table.notes if "gains by" in note]
    assert len(told) == 2 and "decided, worse by +0.3" in told[0] and "undecided" in told[1]


def test_what_can_not_be_crossed_is_said(store) -> None:
    frames = crossed(store, {"gla": 0.5})
    with pytest.raises(RequestError, match=r"^base=\[none\] has 1 values, permitted is one for each of model.mixer.conv"):
        interaction(frames, columns=[NLL], across=[CONV, WIDTH], base=["none"], reference="gla")
    with pytest.raises(NoData, match="at input, 4"):
        interaction(frames, columns=[NLL], across=[CONV, WIDTH], base=["input", "4"], reference="gla")
    with pytest.raises(NoData, match="no run of hawk"):
        interaction(frames, columns=[NLL], across=[CONV, WIDTH], base=["none", "4"], reference="hawk")


RATE, VOCABULARY = "train.lr", "task.vocab_size"


def tuned(store, model: str, losses: dict[float, float], **varied) -> None:
    """Two seeds at every rate, of which validation prefers the one of the least loss; on the test split all are 1 lower."""
    for rate, loss in losses.items():
        for seed in range(2):
            values = {"train": [store.row("nll", loss, "validation")], "test": [store.row("nll", loss - 1.0 + seed, "test")]}
            store.run(model, "mqar", seed=seed, stages=values, varied={**varied, RATE: rate})


def test_an_arm_is_at_the_rate_that_validation_prefers_and_two_rates_are_no_two_seeds(store) -> None:
    tuned(store, "mesanet", {0.001: 3.0, 0.004: 2.0})
    tuned(store, "gla", {0.001: 2.5, 0.004: 4.0})
    table = against(frames_of(store), columns=[NLL], reference={"model": "mesanet"})
    assert entries(table) == {("MESANET",): ["1.500 (1.000; 2.000)", ""], ("GLA",): ["2.000 (1.500; 2.500)", "+0.5000"]}
    assert "Chosen on validation: MESANET: learning rate 0.004; GLA: learning rate 0.001." in table.notes
    assert sum("over 2 seeds" in note for note in table.notes) == 1


def test_tasks_that_are_set_otherwise_are_compared_apart(store) -> None:
    for vocabulary, gap in ((64, 0.5), (128, 0.25)):
        tuned(store, "mesanet", {0.001: 3.0}, **{VOCABULARY: vocabulary})
        tuned(store, "gla", {0.001: 3.0 + gap}, **{VOCABULARY: vocabulary})
    table = against(frames_of(store), columns=[NLL], reference={"model": "mesanet"})
    assert [title.rpartition(", ")[2] for title in table.header[1::2]] == ["vocab size 64", "vocab size 128"]
    assert entries(table)["GLA",][1::2] == ["+0.5000", "+0.2500"]


def test_a_gain_is_of_the_rates_that_validation_prefers(store) -> None:
    for model, gain in (("gla", 0.5), ("mesanet", 0.25)):
        tuned(store, model, {0.001: 3.0, 0.004: 2.0}, **{CONV: "none"})
        tuned(store, model, {0.001: 2.0 - gain, 0.004: 2.5}, **{CONV: "input"})
    arguments = {"columns": [NLL], "across": [CONV], "base": ["none"], "reference": "gla"}
    table = interaction(frames_of(store), **arguments)
    assert entries(table)["MESANET", "input convolution"] == ["1.250 (0.750; 1.750)", "+0.2500"]
    assert any("MESANET, input convolution: learning rate 0.001" in note for note in table.notes)
    tuned(store, "gla", {0.001: 3.0}, **{CONV: "none", VOCABULARY: 64})
    with pytest.raises(NoData, match="runs of GLA differ in vocab size: which of them are compared"):
        interaction(frames_of(store), **arguments)
