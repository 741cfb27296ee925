"""The store is read as it was written, and a store from a stranger is read without trusting it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from suite.results import load_curves, load_examples, load_request, load_results, load_runs
from suite.store.run_directory import _row
from tasks.task import Measurement

ROWS = [
    {"metric": "nll", "value": 1.5, "split": "validation", "slice": {}, "count": 64},
    {"metric": "nll", "value": None, "split": "validation", "slice": {"position": 3}, "count": 8, "examples": [1.0, None]},
]
CELL = {
    "run_id": "aaa",
    "group_id": "g",
    "model": "gla",
    "model_label": "GLA",
    "size": "tiny",
    "task": "language",
    "data": "stdlib",
    "seed": 0,
}


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def add_run(root: Path, run_id: str, *, rows: list | None = None, lines: str = "", status: str = "done") -> Path:
    folder = root / "runs" / run_id
    facts = {"model": "gla", "size": "tiny", "task": "language", "data": "stdlib", "seed": 0, "backend": "torch", "lr": 0.1}
    write(folder / "run.json", {"schema": 1, "run_id": run_id, "group_id": "g", "facts": facts, "settings": {"train.lr": 0.1}})
    write(folder / "status.json", {"status": status, "reason": "", "stage": "train", "step": None})
    write(folder / "train.json", {"schema": 1, "stage": "train", "settings": {}, "rows": ROWS if rows is None else rows})
    write(folder / "metrics.jsonl", lines)
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    add_run(tmp_path, "aaa")
    return tmp_path


def test_rows_are_tidy(root: Path) -> None:
    table = load_results(root)
    assert table[["run_id", "group_id", "model", "seed", "backend", "lr"]].drop_duplicates().to_numpy().tolist() == [
        ["aaa", "g", "gla", 0, "torch", 0.1]
    ]
    assert table["slice"].tolist() == ["", "position=3"]
    assert table["position"].tolist()[1] == 3 and math.isnan(table["position"].tolist()[0])
    assert table["value"].tolist()[0] == 1.5 and math.isnan(table["value"].tolist()[1])
    assert "examples" not in table


def test_examples_keep_their_place(root: Path) -> None:
    table = load_examples(root)
    assert table["example"].tolist() == [0, 1]
    assert table["value"].tolist()[0] == 1.0 and math.isnan(table["value"].tolist()[1])
    assert table["position"].tolist() == [3, 3]


def test_examples_know_their_documents_where_the_store_does(root: Path) -> None:
    assert load_examples(root)["document"].isna().all()
    add_run(root, "bbb", rows=[ROWS[1] | {"groups": [4, 7]}])
    table = load_examples(root, ["bbb"])
    assert table["document"].tolist() == [4.0, 7.0] and "groups" not in load_results(root)
    add_run(root, "ccc", rows=[ROWS[1] | {"groups": [4]}])
    with pytest.warns(UserWarning, match="1 groups of 2 examples"):
        assert set(load_examples(root)["run_id"]) == {"aaa", "bbb"}


def test_a_row_is_read_as_it_was_written(root: Path) -> None:
    measured = Measurement("nll", 1.5, "validation", {}, 2, (1.0, 2.0), (0, 3))
    add_run(root, "bbb", rows=[_row(measured), _row(replace(measured, groups=None))])
    table = load_examples(root, ["bbb"])
    assert table["document"].tolist()[:2] == [0.0, 3.0] and table["document"].isna().sum() == 2
    assert table["value"].tolist() == [1.0, 2.0, 1.0, 2.0]


def without_settings(root: Path, name: str, autocast: str, **facts: object) -> None:
    """Adds a run of a version that wrote its settings into config.yaml alone."""
    folder = add_run(root, name)
    run = json.loads((folder / "run.json").read_text())
    write(folder / "run.json", {key: value for key, value in run.items() if key != "settings"} | {"facts": run["facts"] | facts})
    mixer = "{type: gla.GLA, chunk_size: 64}"
    model = f"model: {{name: gla, version: 1, label: GLA, pattern: [mixer], mixer: {mixer}, lr: {{language: {{tiny: 0.1}}}}}}"
    rest = f"size: {{d_model: 8}}\ntask: {{seq_len: 4}}\ntrain: {{betas: [0.9, 0.95], autocast: {autocast}}}"
    write(folder / "config.yaml", f"{model}\n{rest}\ncompute: {{threads: 1}}\n")


def test_a_run_under_autocast_that_does_not_say_how_its_state_is_counted_is_told(root: Path) -> None:
    for name, autocast in (("bbb", "bfloat16"), ("ccc", "none")):
        without_settings(root, name, autocast)
    without_settings(root, "ddd", "bfloat16", state_counted="as held")
    counted = load_runs(root).set_index("run_id")["state_counted"]
    assert counted.to_dict() == {"aaa": "as held", "bbb": "as float32", "ccc": "as held", "ddd": "as held"}


def test_settings_are_columns_by_their_dotted_keys(root: Path) -> None:
    without_settings(root, "bbb", "none")
    runs = load_runs(root).set_index("run_id")
    assert runs["train.lr"].tolist()[0] == 0.1 and math.isnan(runs["train.lr"].tolist()[1])
    expected = {"model.mixer.chunk_size": 64, "model.pattern": "[mixer]", "size.d_model": 8, "train.betas": "[0.9,0.95]"}
    assert runs.loc["bbb", list(expected)].to_dict() == expected
    assert not {"model.label", "model.lr.language.tiny", "compute.threads"} & set(runs)


def test_a_run_whose_settings_are_nowhere_is_named_and_read(root: Path) -> None:
    without_settings(root, "bbb", "none")
    (root / "runs" / "bbb" / "config.yaml").write_text("train: 3")
    with pytest.warns(UserWarning, match="skipped .*bbb/config.yaml"):
        assert len(load_runs(root)) == 2


def test_runs_say_what_became_of_them(root: Path) -> None:
    add_run(root, "bbb", status="diverged")
    (root / "runs" / "aaa" / "status.json").unlink()
    assert load_runs(root).set_index("run_id")["status"].to_dict() == {"aaa": "pending", "bbb": "diverged"}
    assert load_runs(root, {"bbb"})["run_id"].tolist() == ["bbb"]


@pytest.mark.parametrize("load", [load_runs, load_results, load_examples, load_curves])
def test_a_store_is_named_by_a_path_or_a_string(root: Path, load) -> None:
    pd.testing.assert_frame_equal(load(str(root)), load(root))


@pytest.mark.parametrize("load", [load_runs, load_results, load_examples, load_curves])
def test_an_empty_store_is_an_error_that_names_it(tmp_path: Path, load) -> None:
    with pytest.raises(ValueError, match=f"no results under {tmp_path}"):
        load(tmp_path)


def test_runs_without_results_give_empty_frames(tmp_path: Path) -> None:
    add_run(tmp_path, "aaa", rows=[])
    for load in (load_results, load_examples, load_curves):
        table = load(tmp_path)
        assert len(table) == 0 and {"run_id", "model", "task"} <= set(table.columns)


def test_a_torn_last_line_is_no_line_and_a_repeated_step_counts_once(root: Path, recwarn: pytest.WarningsRecorder) -> None:
    lines = [json.dumps({"step": step, "tokens": step * 64, "loss": loss}) for step, loss in ((1, 3.0), (2, 9.0), (2, 2.0))]
    add_run(root, "bbb", lines="\n".join(lines) + '\n{"step": 3, "lo')
    table = load_curves(root, {"bbb"})
    assert table[["step", "tokens", "loss"]].to_numpy().tolist() == [[1, 64, 3.0], [2, 128, 2.0]]
    assert not recwarn.list


def test_a_bad_line_in_the_middle_is_named(root: Path) -> None:
    add_run(root, "bbb", lines='{"step": 1, "loss": 3.0}\nnoise\n{"step": 2, "loss": 2.0}\n')
    with pytest.warns(UserWarning, match="bbb/metrics.jsonl: line 2"):
        assert load_curves(root, {"bbb"})["step"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("train.json", '{"schema": 1, "rows": [', "Expecting value"),
        ("train.json", "[" * 100_000, "nested too deeply"),
        ("train.json", {"schema": 2, "stage": "train", "rows": []}, "schema is 2"),
        ("train.json", {"schema": 1, "stage": "train", "rows": [{"metric": "nll"}]}, "malformed"),
        ("train.json", {"schema": 1, "stage": "train", "rows": [ROWS[0] | {"slice": {"model": "other"}}]}, "malformed"),
        ("train.json", {"schema": 1, "stage": "train", "rows": [ROWS[0] | {"value": "much"}]}, "malformed"),
        ("run.json", {"schema": 1, "run_id": "other", "group_id": "g", "facts": {}}, "not the run bbb"),
        ("run.json", ["no", "object"], "not a JSON object"),
        ("status.json", "\x00\x01", "Expecting value"),
    ],
)
def test_a_foreign_or_corrupt_file_is_skipped_and_named(root: Path, name: str, content: object, complaint: str) -> None:
    folder = add_run(root, "bbb")
    write(folder / name, content)
    with pytest.warns(UserWarning, match=rf"skipped .*bbb/{name}.*{complaint}"):
        table = load_results(root)
    assert set(table["run_id"]) == ({"aaa", "bbb"} if name == "status.json" else {"aaa"})


def test_nothing_outside_the_store_is_read(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = add_run(tmp_path_factory.mktemp("elsewhere"), "bbb")
    (root / "runs" / "bbb").symlink_to(elsewhere)
    with pytest.warns(UserWarning, match="out of the store"):
        assert load_runs(root)["run_id"].tolist() == ["aaa"]


def request(created: str, *, experiment: str = "quick", cells: list | None = None) -> dict:
    return {
        "schema": 1,
        "experiment": experiment,
        "created": created,
        "overrides": [],
        "cells": [CELL] if cells is None else cells,
    }


def test_the_latest_request_of_the_experiment_counts(tmp_path: Path) -> None:
    folder = tmp_path / "experiments"
    write(folder / "quick-00000000.json", request("2026-11-22T12:00:00+00:00"))
    # Later, though its text sorts before the other one's.
    write(folder / "quick-11111111.json", request("2026-11-22T11:30:00-01:00"))
    write(folder / "quick-more-22222222.json", request("2027-01-01T00:00:00+00:00", experiment="quick-more"))
    assert load_request(tmp_path, "quick")["created"] == "2026-11-22T11:30:00-01:00"
    assert load_request(tmp_path, "small") is None


@pytest.mark.parametrize(
    "broken",
    [request("yesterday"), request("2026-11-22T12:00:00", cells=[{"run_id": "aaa"}]), {"schema": 1, "experiment": "quick"}],
)
def test_a_broken_request_is_skipped_and_named(tmp_path: Path, broken: dict) -> None:
    write(tmp_path / "experiments" / "quick-00000000.json", broken)
    with pytest.warns(UserWarning, match="skipped .*quick-00000000.json"):
        assert load_request(tmp_path, "quick") is None


@pytest.mark.parametrize("name", ["../quick", "quick/*", ""])
def test_an_experiments_name_cannot_leave_its_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="is not a name"):
        load_request(tmp_path, name)
