"""The settings by which runs are told apart, in what is asked for and in what the store gives back; and the bytes of a state."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from conf.groups import options, whole
from conf.settings import fields, flat, text
from suite.cli import main
from suite.compute.interface import build_backbone
from suite.evaluation.studies.subject import Subject
from suite.evaluation.studies.workloads import Workload, state_bytes
from suite.plan import Run, plan, task_of
from suite.results import load_results, load_runs
from tasks.language.settings import DataSettings

# Sections of a configuration whose settings decide the numbers of a run, and their keys that do not.
DECIDING = ("model", "size", "task", "train")
OUTSIDE = (
    "model.label",
    "model.paper",
    "size.name",
    "train.start_from",
    "train.continue_from",
    # All but the share that is held out: the fingerprint of the ids stands for them.
    *(f"task.data.{name}" for name in fields(DataSettings) if name != "validation_fraction"),
)

QUICK = ["task=mqar", "train.steps=1", "train.warmup_steps=0", "task.num_validation=8", "task.num_test=8", "eval=none"]
REQUESTS = [["model=gla,hawk_mesa"], ["model=gla", "model.mixer.key_dim=8", "train.betas=[0.5,0.9]"]]


def expected(run: Run) -> dict[str, object]:
    """Every setting of a run's configuration by its dotted key, as config.yaml holds it."""
    sections = {name: run.written[name] for name in DECIDING}
    found = {key: value for key, value in flat(sections) if key not in OUTSIDE and not key.startswith("model.lr.")}
    return {key: text(value) if isinstance(value, list | tuple) else value for key, value in found.items()}


@pytest.mark.parametrize("model", whole("model"))
def test_every_setting_of_any_model_is_in_its_cell(model: str) -> None:
    (run,) = plan([f"model={model}", "task=mqar"])
    assert {key: value for key, value in run.cell.items() if "." in key} == expected(run)


@pytest.mark.parametrize("task", options("task"))
def test_every_setting_of_any_task_is_in_its_cell(task: str) -> None:
    (run,) = plan(["model=gla", f"task={task}", "eval=none"])
    assert {key: value for key, value in run.cell.items() if "." in key} == expected(run)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("model.mixer.forget_gate_init=0.5", "model.mixer.forget_gate_init", 0.5),
        ("model.mixer.forget_cap=null", "model.mixer.forget_cap", None),
        ("model.mixer.solver.max_steps=5", "model.mixer.solver.max_steps", 5),
        ("model.mixer.solver.gradient=unrolled", "model.mixer.solver.gradient", "unrolled"),
        ("model.mixer.random_steps=10", "model.mixer.random_steps", 10),
        ("size.head_dim=16", "model.mixer.key_dim", 16),
        ("train.lr=1", "train.lr", 1.0),
        ("task.num_pairs=[2,4]", "task.num_pairs", "[2,4]"),
    ],
)
def test_what_is_varied_is_in_the_cell(override: str, key: str, value: object) -> None:
    (run,) = plan(["model=mesanet", "task=mqar", override])
    assert run.cell[key] == value and type(run.cell[key]) is type(value)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs: two models, of which one has two mixers, and one of them with another setting."""
    store = tmp_path_factory.mktemp("facts") / "results"
    for request in REQUESTS:
        assert main(["run", *request, *QUICK, "compute.jobs=1", f"paths.results={store}"]) == 0
    return store


def dotted(table: pd.DataFrame) -> pd.DataFrame:
    return table[sorted(column for column in table if "." in column)]


@pytest.mark.parametrize("load", [load_runs, load_results])
def test_what_the_store_gives_back_is_what_was_asked_for(load, store: Path) -> None:
    asked = [run for request in REQUESTS for run in plan([*request, *QUICK])]
    rows = load(store)
    assert set(rows["run_id"]) == {run.run_id for run in asked}
    for run in asked:
        (_, row), *_ = dotted(rows[rows["run_id"] == run.run_id]).iterrows()
        settings = {key: value for key, value in run.cell.items() if "." in key}
        assert set(settings) <= set(row.index)
        found = {key: None if pd.isna(value) else value for key, value in row.items()}
        assert found == {**dict.fromkeys(row.index), **settings}


@pytest.mark.parametrize("load", [load_runs, load_results])
def test_a_run_of_a_version_that_wrote_no_settings_has_the_same_columns_from_its_configuration(load, store: Path) -> None:
    now, files = dotted(load(store)), list(store.glob("runs/*/run.json"))
    contents = {path: path.read_text() for path in files}
    try:
        for path in files:
            whole = json.loads(contents[path])
            assert "settings" in whole
            path.write_text(json.dumps({key: value for key, value in whole.items() if key not in ("settings", "digest")}))
        pd.testing.assert_frame_equal(dotted(load(store)), now)
    finally:
        for path in files:
            path.write_text(contents[path])


@pytest.mark.parametrize(
    ("model", "wide", "narrow"),
    [
        # tiny, T = 128, two blocks: k and v of 2 heads of 32, and a counter of tokens, of which 4 bytes count.
        ("transformer", 131_080, 65_544),
        ("swa4", 3_080, 1_544),
        # A sum over the sequence stays wide.
        ("gla", 19_456, 19_456),
    ],
)
def test_state_is_counted_as_it_is_held(model: str, wide: int, narrow: int) -> None:
    for autocast, expected in (("none", wide), ("bfloat16", narrow)):
        (run,) = plan([f"model={model}", "task=language", "compute.device=cpu", f"train.autocast={autocast}", "eval=none"])
        assert (run.facts["state_bytes"], run.facts["state_counted"]) == (expected, "as held")


@pytest.mark.slow
def test_a_match_by_state_is_by_the_bytes_held() -> None:
    request = ["model=gla", "task=mqar", "match.by=state", "match.reference=swa16", "match.tolerance=0.2", "eval=none"]
    wide, narrow = (plan([*request, f"train.autocast={autocast}"])[0] for autocast in ("none", "bfloat16"))
    # 15 tokens of k and v in two heads of 32 are half as many bytes in bfloat16, and a linear RNN's heads smaller.
    assert wide.cost.state_bytes == pytest.approx(15_368, rel=0.2)
    assert narrow.cost.state_bytes == pytest.approx(7_688, rel=0.2)


def test_the_roofline_moves_the_bytes_held() -> None:
    (run,) = plan(["model=transformer", "task=efficiency", "train.autocast=bfloat16", "train.steps=0", "eval=none"])
    model = build_backbone(run.interface, run.config.model, run.config.size, backend="torch")
    cell = Workload(Subject(model, task_of(run.config), run.config, run.compute, torch.device("cpu")), 2, 64)
    assert state_bytes([cell.model], cell) == 2 * model.state_bytes(64, torch.bfloat16) == 2 * 2 * (2 * 2 * 64 * 64 + 4)
