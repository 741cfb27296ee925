"""What a command prints of its runs, on stores whose numbers are known."""

from __future__ import annotations

import pytest

from reports.kit.parts import load_frames
from reports.terminal import MOST_ROWS, benchmark_table, score_tables, stage_table, stage_tables


def texts(table) -> list[list[str]]:
    return [[entry.text for entry in row] for row in table.rows]


def train_rows(store, validation: float, speed: float = 100.0) -> list[dict]:
    return [store.row("accuracy", validation, "validation"), store.row("tokens_per_second", speed, "train")]


def frames(store):
    store.request()
    return load_frames(store.root, "quick")


def test_scores_are_of_the_split_that_nothing_was_chosen_on_and_of_validation(store):
    for model, test in (("gla", 0.5), ("mesanet", 0.75)):
        stages = {"train": train_rows(store, test + 0.1), "test": [store.row("accuracy", test, "test")]}
        store.run(model, "mqar", stages=stages)
    ((title, table),) = score_tables(frames(store))
    assert title == "MQAR" and table.header == (
        "model", "test accuracy", "validation accuracy", "parameters", "state bytes", "tokens/s"
    )  # fmt: skip
    assert sorted(texts(table)) == [
        ["GLA", "0.500", "0.600", "1,000", "4,096", "100"],
        ["MESANET", "0.750", "0.850", *texts(table)[0][3:]],
    ]


def test_seeds_are_averaged_and_a_run_without_a_score_is_named_with_its_status(store):
    for seed in range(3):
        store.run("gla", "language", seed=seed, stages={"train": [store.row("bits_per_byte", 2.0 + seed, "validation")]})
    store.run("mesanet", "language", status="diverged", reason="NaN at step 3", stages={})
    store.ask("hawk", "language")
    ((_, table),) = score_tables(frames(store))
    of_model = {row[0]: row for row in texts(table)}
    assert of_model["GLA"][1].startswith("3.000 ") and of_model["GLA"][-1] == "n=3"
    assert of_model["MESANET"][1] == "diverged" and of_model["HAWK"][1] == "missing"
    assert any("diverged: MESANET" in note and "NaN at step 3" in note for note in table.notes)
    assert any("missing: HAWK" in note for note in table.notes)


def test_two_tasks_have_a_table_each(store):
    store.run("gla", "mqar", stages={"train": train_rows(store, 0.5)})
    store.run("gla", "language", stages={"train": [store.row("bits_per_byte", 2.0, "validation")]})
    assert [title for title, _ in score_tables(frames(store))] == ["MQAR", "language"]


def test_a_long_table_has_the_best_and_says_where_the_others_are(store):
    for i in range(MOST_ROWS + 2):
        store.run("gla", "mqar", varied={"train.lr": 10.0 + i}, stages={"train": train_rows(store, i / 100)})
    ((_, table),) = score_tables(frames(store))
    assert len(table.rows) == MOST_ROWS and texts(table)[0][1] == f"{(MOST_ROWS + 1) / 100:.3f}"
    assert table.notes[-1] == f"The best {MOST_ROWS} of {MOST_ROWS + 2}; `list runs sort=accuracy` has all of them."


def test_a_stage_has_its_metrics_of_the_whole_split_or_else_of_its_slices(store):
    whole = [store.row("nll", 1.0, "test"), store.row("accuracy", 0.5, "test"), store.row("accuracy", 0.1, "test", num_pairs=8)]
    bands = [store.row("nll", float(low), "validation", position_low=low, position_high=low + 1) for low in (0, 1)]
    store.run("gla", "mqar", stages={"test": whole, "position": [*bands, store.row("nll", 9.0, "validation", position=0)]})
    found = frames(store)
    table = stage_table(found, "test")
    assert table.header == ("model", "NLL [nats/token]", "accuracy") and texts(table) == [["GLA", "1.000", "0.500"]]
    assert texts(stage_table(found, "position")) == [["GLA, positions 0 to 1", "0.000"], ["GLA, positions 1 to 2", "1.000"]]
    assert [stage for stage, _ in stage_tables(found, ["test", "solver", "position"])] == ["test", "position"]


@pytest.mark.parametrize("with_windows", [True, False])
def test_benchmarks_have_standard_errors_chance_and_the_split_that_windows_decide(store, with_windows):
    models = {"swa4": (4, 0.1), "swa16": (16, 0.3), "swa64": (64, 0.6), "transformer": (None, 0.9)}
    for model, (window, score) in models.items() if with_windows else [("transformer", (None, 0.9))]:
        examples = [float(i < score * 200) for i in range(200)]
        rows = [store.row("accuracy", score, "test", examples=examples, benchmark="recall", shots=1)]
        rows.append(store.row("chance", 0.05, "test", benchmark="recall", shots=1))
        settings = {"model.mixer.type": "attention.Attention", "model.mixer.window": window}
        store.run(model, "language", stages={"lm_eval": rows}, facts={"seq_len": 128}, settings=settings)
    table = benchmark_table(frames(store))
    (row,) = [dict(zip(table.header, row, strict=True)) for row in texts(table)]
    assert row["benchmark"] == "recall, 1-shot" and row["chance"] == "0.050" and row["TRANSFORMER"] == "0.900 ± 0.021"
    assert row.get("split") == ("global" if with_windows else None)
    assert any("takes runs of two models with windows" in note for note in table.notes) != with_windows
