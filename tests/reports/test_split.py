"""Global, local and undecided on benchmarks whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from reports.kit.parts import load_frames
from reports.pages.benchmarks import benchmark_title, classify, primary_scores, verdicts

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
    scores = primary_scores(load_frames(store.root, "quick").examples, ["accuracy"])
    found = classify(scores, windows=WINDOWS, full=FULL)
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
