"""What `report` draws: a name, a repeated `run` line, whatever fits; and what it says where it can't."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from suite.cli import main

SHORT = ["train.steps=4", "train.warmup_steps=1", "eval=none", "task.num_validation=8"]
LINE = ["model=gla", "task=mqar", "train.lr=1e-3,4e-3", *SHORT]
WRONG = [
    ["where=model=hawk"],
    ["where=modle=gla"],
    ["quickk"],
    ["small", "quick"],
    ["where=lr=1", "model=gla"],
    ["quickk", "where=model=gla"],
    ["quick", "style=papr"],
]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> list[str]:
    """The paths of a store that holds the runs of LINE, made once."""
    folder = tmp_path_factory.mktemp("store")
    paths = [f"paths.results={folder / 'results'}", f"paths.reports={folder / 'reports'}"]
    assert main(["run", *LINE, *paths, "compute.jobs=1"]) == 0
    return paths


def said(capsys, *arguments: str) -> tuple[int, str, str]:
    status = main(["report", *arguments])
    out, err = capsys.readouterr()
    return status, out.strip(), err.strip()


def page(out: str) -> str:
    return Path(out.partition("  (")[0]).read_text()


def test_a_line_that_was_run_is_drawn_under_the_same_names(store, capsys) -> None:
    status, out, _ = said(capsys, *LINE, *store)
    assert status == 0 and out.endswith("(2 runs)")
    html = page(out)
    assert "GLA on MQAR, by learning rate" in html and "GLA, learning rate 0.004" in html
    assert "python -m suite run model=gla task=mqar" in html


def test_runs_of_the_line_that_are_not_there_are_named_with_the_command_that_makes_them(store, capsys) -> None:
    line = [each.replace("1e-3,4e-3", "1e-3,2e-3") for each in LINE]
    status, out, _ = said(capsys, *line, *store)
    assert status == 0
    assert "(2 runs, 1 of them not done: python -m suite run model=gla task=mqar train.lr=1e-3,2e-3" in out
    assert "missing: GLA, learning rate 0.002, mqar, seed 0." in page(out)


def test_a_line_none_of_whose_runs_is_there_is_refused_with_the_command(store, capsys) -> None:
    status, out, err = said(capsys, "model=hawk", *LINE[1:], *store)
    assert (status, out) == (2, "")
    assert err.count("\n") == 0 and "they are made by: python -m suite run model=hawk task=mqar" in err


def test_whatever_the_store_holds_that_fits_is_drawn(store, capsys) -> None:
    status, out, _ = said(capsys, "where=model=gla,train.lr>=1e-3", *store)
    assert status == 0 and out.endswith("(2 runs)")
    status, out, _ = said(capsys, "where=lr=4e-3", *store)
    assert status == 0 and out.endswith("(1 run)")
    html = page(out)
    assert "GLA on MQAR" in html and "python -m suite report where=lr=4e-3" in html


def test_what_fits_is_drawn_as_the_report_that_is_named(store, capsys) -> None:
    status, out, _ = said(capsys, "mqar_capacity", "where=model=gla", *store)
    assert status == 0 and out.endswith("(2 runs)") and Path(out.partition("  (")[0]).parent.name.startswith("mqar_capacity-")
    html = page(out)
    assert "How many pairs" in html and "python -m suite report mqar_capacity where=model=gla" in html


@pytest.mark.parametrize("arguments", WRONG, ids=" ".join)
def test_what_can_not_be_drawn_is_told_in_one_line(store, capsys, arguments) -> None:
    status, out, err = said(capsys, *arguments, *store)
    assert (status, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 0


def test_an_experiment_without_a_report_of_its_own_gets_the_page_of_what_varies(store, capsys, monkeypatch, tmp_path) -> None:
    from suite import reporting

    results = Path(store[0].partition("=")[2])
    runs = [json.loads(path.read_text()) for path in results.glob("runs/*/run.json")]
    cells = [{"run_id": run["run_id"], "group_id": run["group_id"], **run["facts"], **run["settings"]} for run in runs]
    (results / "experiments").mkdir()
    request = {"schema": 1, "experiment": "quick", "created": "2026-11-29T12:00:00+00:00", "overrides": [], "cells": cells}
    (results / "experiments" / "quick-1.json").write_text(json.dumps(request))
    monkeypatch.setattr(reporting, "page_of", lambda name: None)
    status, out, _ = said(capsys, "quick", *store)
    assert status == 0 and "GLA on MQAR, by learning rate" in page(out)


def test_alone_it_draws_the_index_of_the_store(store, capsys) -> None:
    status, out, _ = said(capsys, *store)
    assert status == 0 and Path(out).name == "index.html"
    html = Path(out).read_text()
    assert '"gla"' in html and "0.004" in html


def test_on_paper_it_draws_beside_the_page(store, capsys) -> None:
    status, out, _ = said(capsys, "where=model=gla", "style=paper", "venue=icml", "width=single", *store)
    index = Path(out.partition("  (")[0])
    assert status == 0 and index.parent.name == "paper" and (index.parent / "by_lr.pdf").read_bytes().startswith(b"%PDF")
