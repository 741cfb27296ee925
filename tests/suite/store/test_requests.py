"""What the report of an experiment is about: all that was asked for it, in whatever portions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from suite.store.requests import load_request


def ask(root: Path, overrides: list[str], cells: list[tuple[str, int, str]], *, hour: int, experiment: str = "quick") -> None:
    """A request for cells (model, seed, version)."""
    folder = root / "experiments"
    folder.mkdir(parents=True, exist_ok=True)
    written = [
        {"run_id": f"{model}-{seed}-{version}-{''.join(overrides[2:])}", "group_id": model, "model": model, "model_label": model}
        | {"size": "tiny", "task": "mqar", "data": "synthetic", "seed": seed, "model.version": version}
        for model, seed, version in cells
    ]
    content = {"schema": 1, "experiment": experiment, "created": f"2026-11-29T{hour:02}:00:00+00:00", "overrides": overrides}
    (folder / f"{experiment}-{hour}.json").write_text(json.dumps(content | {"cells": written}))


def asked(root: Path) -> list[str]:
    return [cell["run_id"] for cell in load_request(root, "quick")["cells"]]


WIDE = [("gla", 0, "1"), ("hawk", 0, "1")]
QUICK = ["experiment=quick", "compute.jobs=2"]


@pytest.mark.parametrize("narrow", [["model=gla"], ["seed=0"], ["model=gla", "eval=none"]], ids=" ".join)
def test_a_request_for_some_of_an_experiments_runs_hides_none_of_the_others(tmp_path, narrow) -> None:
    ask(tmp_path, QUICK, WIDE, hour=1)
    ask(tmp_path, ["experiment=quick", *narrow], WIDE[:1], hour=2)
    request = load_request(tmp_path, "quick")
    assert [cell["model"] for cell in request["cells"]] == ["gla", "hawk"]
    assert request["requests"] == [QUICK]


def test_further_seeds_of_a_model_join_the_others_and_both_lines_are_told(tmp_path) -> None:
    ask(tmp_path, QUICK, WIDE, hour=1)
    more = ["experiment=quick", "seed=7", "model=gla"]
    ask(tmp_path, more, [("gla", 7, "1")], hour=2)
    request = load_request(tmp_path, "quick")
    assert [(cell["model"], cell["seed"]) for cell in request["cells"]] == [("gla", 0), ("hawk", 0), ("gla", 7)]
    assert request["requests"] == [QUICK, more]


def test_models_that_another_backend_computes_join_the_others(tmp_path) -> None:
    ask(tmp_path, ["experiment=quick", "model=gla", "backend=torch"], WIDE[:1], hour=1)
    ask(tmp_path, ["experiment=quick", "model=hawk"], WIDE[1:], hour=2)
    assert [cell["model"] for cell in load_request(tmp_path, "quick")["cells"]] == ["gla", "hawk"]


def test_a_request_with_other_values_is_another_one(tmp_path) -> None:
    ask(tmp_path, QUICK, WIDE, hour=1)
    ask(tmp_path, ["experiment=quick", "model=gla", "train.steps=20"], WIDE[:1], hour=2)
    assert asked(tmp_path) == ["gla-0-1-train.steps=20"]
    ask(tmp_path, QUICK, WIDE, hour=3)
    assert asked(tmp_path) == ["gla-0-1-", "hawk-0-1-"]


def test_a_run_is_the_one_that_the_latest_request_names(tmp_path) -> None:
    ask(tmp_path, QUICK, WIDE, hour=1)
    ask(tmp_path, ["experiment=quick", "model=gla"], [("gla", 0, "2")], hour=2)
    assert asked(tmp_path) == ["gla-0-2-", "hawk-0-1-"]


def test_cells_that_say_too_little_of_themselves_are_all_kept(tmp_path) -> None:
    ask(tmp_path, QUICK, WIDE, hour=1)
    path = tmp_path / "experiments" / "quick-1.json"
    content = json.loads(path.read_text())
    for i, cell in enumerate(content["cells"]):
        del cell["model.version"]
        cell |= {"run_id": f"run-{i}", "model": "gla", "model_label": "GLA"}
    path.write_text(json.dumps(content))
    assert asked(tmp_path) == ["run-0", "run-1"]
