"""Global, local and undecided on benchmarks whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from reports.kit.parts import NoData, load_frames
from reports.pages.benchmarks import benchmark_title, classify, primary_scores, score_table, scores, verdicts

WINDOWS, FULL = ["swa4", "swa16", "swa64"], "transformer"
EXAMPLES = 200


def answers(score: float, *, noise: int = 0) -> list[float]:
    """Answers of which exactly this share is right: the first ones, or any when noise seeds a shuffle."""
    right = np.arange(EXAMPLES) < score * EXAMPLES
    return list((np.random.default_rng(noise).permutation(right) if noise else right).astype(float))


def add_models(store, scores: dict[str, float], *, noise: bool = False, seed: int = 0) -> None:
    for i, (model, score) in enumerate(scores.items()):
        examples = answers(score, noise=(i + 1) * noise)
        rows = [store.row("accuracy", score, "test", examples=examples, benchmark="recall", shots=1)]
        store.run(model, "language", seed=seed, stages={"lm_eval": rows})


def verdict_of(store) -> tuple[str, str]:
    store.request()
    examples = primary_scores(load_frames(store.root, "quick").examples, ["accuracy"])
    found = classify(examples, windows=WINDOWS, full=FULL)
    assert len(found) == 1
    return found["verdict"].iloc[0], found["reason"].iloc[0]


@pytest.mark.parametrize(
    ("scores", "noise", "verdict", "reason"),
    [
        ((0.1, 0.3, 0.6, 0.9), False, "global", "all 5 comparisons agree"),
        ((0.1, 0.3, 0.6, 0.4), False, "local", "against: transformer − swa64 = −0.200"),
        ((0.6, 0.4, 0.2, 0.9), False, "local", "against: swa16 − swa4 = −0.200"),
        ((0.1, 0.3, 0.3, 0.9), False, "undecided", "unsettled: swa64 = swa16 on every example"),
        ((0.25, 0.27, 0.26, 0.28), True, "undecided", "unsettled: swa16 − swa4"),
        ((0.6, 0.4, 0.4, 0.1), False, "local", "against: swa16 − swa4 = −0.200"),
    ],
)
def test_verdict(store, scores: tuple[float, ...], noise: bool, verdict: str, reason: str) -> None:
    add_models(store, dict(zip([*WINDOWS, FULL], scores, strict=True)), noise=noise)
    found, why = verdict_of(store)
    assert found == verdict
    assert why.startswith(reason)


@pytest.mark.parametrize("windows", [[], ["swa4"], ["transformer"]])
@pytest.mark.parametrize("score", [0.0, 0.5, 1.0])
def test_fewer_than_two_windows_decide_nothing(store, windows: list[str], score: float) -> None:
    add_models(store, {"swa4": score / 2, "transformer": score})
    store.request()
    examples = primary_scores(load_frames(store.root, "quick").examples, ["accuracy"])
    (row,) = classify(examples, windows=windows, full=FULL).to_dict("records")
    assert row["verdict"] == "undecided" and "two windows or more" in row["reason"]


@pytest.mark.parametrize("score", [0.0, 0.3, 1.0])
def test_scores_that_are_all_one_decide_nothing(store, score: float) -> None:
    add_models(store, dict.fromkeys([*WINDOWS, FULL], score))
    assert verdict_of(store)[0] == "undecided"


@pytest.mark.parametrize(
    ("scores", "chance", "verdict"),
    [
        # What rises is not yet learnt where it ends at chance; nor is a window that beats a model at chance local.
        ((0.02, 0.08, 0.15, 0.25), 0.25, "undecided"),
        ((0.02, 0.08, 0.15, 0.25), 0.0, "global"),
        ((0.1, 0.3, 0.6, 0.25), 0.25, "undecided"),
        ((0.3, 0.4, 0.6, 0.9), 0.25, "global"),
        ((0.1, 0.3, 0.6, 0.4), 0.25, "local"),
    ],
)
def test_a_model_at_chance_decides_nothing(store, scores: tuple[float, ...], chance: float, verdict: str) -> None:
    for model, score in zip([*WINDOWS, FULL], scores, strict=True):
        rows = [store.row("accuracy", score, "test", examples=answers(score), benchmark="recall", shots=1)]
        rows.append(store.row("chance", chance, "test", benchmark="recall", shots=1))
        store.run(model, "language", stages={"lm_eval": rows})
    store.request()
    table = verdicts(load_frames(store.root, "quick"), metrics=["accuracy"], windows=WINDOWS, full=FULL)
    assert table.data["verdict"].tolist() == [verdict]
    if verdict == "undecided":
        assert table.data["reason"].iloc[0].startswith("transformer is not above chance, 0.250: 0.250 [")


@pytest.mark.parametrize("missing", [*WINDOWS, FULL])
def test_a_missing_arm_leaves_it_undecided(store, missing: str) -> None:
    scores = {"swa4": 0.1, "swa16": 0.3, "swa64": 0.6, "transformer": 0.9}
    del scores[missing]
    add_models(store, scores)
    assert verdict_of(store) == ("undecided", f"no scores of {missing}")


def test_seeds_are_averaged_per_example(store) -> None:
    # Each seed alone is settled; together the windows 16 and 64 are equal on every example.
    add_models(store, {"swa4": 0.1, "swa16": 0.3, "swa64": 0.6, "transformer": 0.9}, seed=0)
    add_models(store, {"swa4": 0.1, "swa16": 0.6, "swa64": 0.3, "transformer": 0.9}, seed=1)
    found, why = verdict_of(store)
    assert found == "undecided"
    assert why == "unsettled: swa64 = swa16 on every example"


def test_other_models_do_not_enter(store) -> None:
    add_models(store, {"swa4": 0.1, "swa16": 0.3, "swa64": 0.6, "transformer": 0.9})
    fewer = store.row("accuracy", 1.0, "test", examples=[1.0] * 5, benchmark="recall", shots=1)
    store.run("gla", "language", stages={"lm_eval": [fewer]})
    assert verdict_of(store)[0] == "global"


def test_the_table_counts_verdicts(store) -> None:
    add_models(store, {"swa4": 0.1, "swa16": 0.3, "swa64": 0.6, "transformer": 0.9})
    store.request()
    table = verdicts(load_frames(store.root, "quick"), metrics=["accuracy"], windows=WINDOWS, full=FULL)
    assert table.notes == ("1 benchmark: 1 global, 0 local, 0 undecided.",)
    assert table.data["transformer_minus_swa4"].iloc[0] == pytest.approx(0.8)


ARGUMENTS = {"metrics": ["accuracy"], "windows": WINDOWS, "full": FULL}
SCORES = {"swa4": 0.1, "swa16": 0.3, "swa64": 0.6, "transformer": 0.9}


def add_at_rate(store, model: str, score: float, rate: float, *, nll: float | None, **varied) -> None:
    stages = {"lm_eval": [store.row("accuracy", score, "test", examples=answers(score), benchmark="recall", shots=1)]}
    if nll is not None:
        stages["train"] = [store.row("nll", nll, "validation")]
    store.run(model, "language", stages=stages, varied={"train.lr": rate, **varied})


def test_models_are_compared_at_the_rate_that_validation_prefers(store) -> None:
    for model, score in SCORES.items():
        add_at_rate(store, model, score, 1e-3, nll=2.0)
    # The mean over both rates would make the widest window worse than the one before it.
    add_at_rate(store, "swa64", 0.0, 4e-3, nll=3.0)
    store.request()
    frames = load_frames(store.root, "quick")
    table = verdicts(frames, **ARGUMENTS)
    assert table.data["verdict"].tolist() == ["global"] and table.data["mean_swa64"].tolist() == [0.6]
    assert table.notes[1] == "Chosen on validation: SWA64: learning rate 0.001."
    data, notes = score_table(frames, **ARGUMENTS)
    assert set(data["verdict"]) == {"global"} and len(data) == 5 and notes == list(table.notes[1:])


def test_runs_that_differ_in_anything_else_or_have_no_score_to_choose_by_are_not_averaged(store) -> None:
    for model, score in SCORES.items():
        add_at_rate(store, model, score, 1e-3, nll=2.0, **{"model.mixer.width": 1})
    add_at_rate(store, "swa64", 0.5, 1e-3, nll=2.0, **{"model.mixer.width": 2})
    store.request()
    said = "runs of SWA64 differ in width: which of them are compared?"
    with pytest.raises(NoData, match=said[:-1]):
        verdicts(load_frames(store.root, "quick"), **ARGUMENTS)
    drawing = scores(load_frames(store.root, "quick"), **ARGUMENTS)
    assert set(drawing.data["verdict"]) == {"undecided"} and f"Undecided, since {said}." in drawing.notes


def test_rates_of_which_none_was_validated_are_not_averaged(store) -> None:
    for model, score in SCORES.items():
        add_at_rate(store, model, score, 1e-3, nll=None)
    add_at_rate(store, "swa64", 0.0, 4e-3, nll=None)
    store.request()
    with pytest.raises(NoData, match="runs of SWA64 differ in learning rate, and none has a score on validation to choose by"):
        verdicts(load_frames(store.root, "quick"), **ARGUMENTS)


def test_documents_of_another_version_are_not_compared(store) -> None:
    for model, score in SCORES.items():
        examples = answers(score)[::-1] if model == "swa16" else answers(score)
        rows = [store.row("accuracy", score, "test", examples=examples, benchmark="recall", shots=1)]
        folder = store.run(model, "language", stages={"lm_eval": rows})
        if model == "swa16":
            (folder / "eval" / "lm_eval-00000000.json").rename(folder / "eval" / "lm_eval-11111111.json")
    found, why = verdict_of(store)
    other = "another version, data or settings of the benchmark"
    assert (found, why) == ("undecided", f"no scores of swa16; left out, by {other}: swa16 (1 run)")
    _, notes = score_table(load_frames(store.root, "quick"), **ARGUMENTS)
    assert notes == [f"recall, 1-shot: by {other} than most, which can't be compared: SWA16 (200 documents)."]


def test_a_document_without_a_score_does_not_move_those_behind_it(store) -> None:
    for model, score in SCORES.items():
        examples = answers(score)
        if model == "swa16":
            examples[0] = None
        rows = [store.row("accuracy", score, "test", examples=examples, benchmark="recall", shots=1)]
        store.run(model, "language", stages={"lm_eval": rows})
    store.request()
    (row,) = verdicts(load_frames(store.root, "quick"), **ARGUMENTS).data.to_dict("records")
    assert row["examples"] == EXAMPLES - 1 and row["swa64_minus_swa16"] == pytest.approx(60 / 199)


def test_answers_that_are_read_in_two_ways_are_two_benchmarks(store) -> None:
    for model, score in SCORES.items():
        rows = [
            store.row("accuracy", value, "test", examples=answers(value), benchmark="recall", shots=1, metric_filter=name)
            for name, value in (("strict", score), ("flexible", 1 - score))
        ]
        store.run(model, "language", stages={"lm_eval": rows})
    store.request()
    found = verdicts(load_frames(store.root, "quick"), **ARGUMENTS).data.set_index("benchmark")
    assert found["verdict"].to_dict() == {"recall strict": "global", "recall flexible": "local"}
    assert found["mean_swa4"].to_dict() == pytest.approx({"recall strict": 0.1, "recall flexible": 0.9})


def test_a_mean_beyond_the_limits_of_its_metric_is_drawn(store) -> None:
    for model in (*WINDOWS, FULL):
        rows = [store.row("accuracy", 1.5, "test", examples=[1.0, 2.0] * 5, benchmark="recall", shots=1)]
        store.run(model, "language", stages={"lm_eval": rows})
    store.request()
    assert set(scores(load_frames(store.root, "quick"), **ARGUMENTS).data["mean"]) == {1.5}


@pytest.mark.parametrize(
    ("benchmark", "shots", "title"),
    [
        ("offline_reversed_words_10shot", 10.0, "reversed words, 10-shot"),
        ("hellaswag", np.nan, "hellaswag"),
        ("piqa", 0.0, "piqa, 0-shot"),
    ],
)
def test_benchmark_title(benchmark: str, shots: float, title: str) -> None:
    assert benchmark_title(benchmark, shots) == title
