"""Damaged, hostile and full stores: what is not whole is made again or named, and nothing outside the store is touched."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from suite.cli import main
from suite.compute.optimization import build_optimizer
from suite.compute.parallel import alone
from suite.plan import plan
from suite.results import load_curves, load_results, load_runs
from suite.running.execute import Command, execute_all
from suite.saved import new_model
from suite.store.checkpoint import FINAL, Progress, load_checkpoint, save_checkpoint, training_state
from suite.store.run_directory import Damaged, RunDirectory, as_json
from tasks.files import machine
from tests.suite.conftest import ROOT, SMALL
from tests.suite.running.test_train import numbers, weights
from tests.suite.store.old_store import unsealed

QUICK = ["compute.log_seconds=0", "compute.checkpoint_seconds=0", "compute.jobs=1", "compute.threads=1"]


def request(store: Path) -> list[str]:
    return [*SMALL, *QUICK, f"paths.results={store}"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A store with one finished run."""
    store = tmp_path_factory.mktemp("finished") / "results"
    assert main(["run", *request(store)]) == 0
    return store


@pytest.fixture
def store(finished, tmp_path) -> Path:
    """A copy of it that a test may damage."""
    return Path(shutil.copytree(finished, tmp_path / "results"))


def folder(store: Path) -> Path:
    (found,) = (store / "runs").iterdir()
    return found


def zeroed(path: Path) -> None:
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(64)
    path.write_bytes(data)


def changed(path: Path) -> None:
    """One digit of a number, so that the file still reads as what it was."""
    text = path.read_text()
    found = re.search(r'"(?:value|count|parameters|step)": (\d+)', text)
    path.write_text(text[: found.start(1)] + str(int(found[1]) + 1) + text[found.end(1) :])


DAMAGES: dict[str, Callable[[Path], None]] = {
    "is gone": Path.unlink,
    "is empty": lambda path: path.write_bytes(b""),
    "is cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "has zeroes": zeroed,
    "is not UTF-8": lambda path: path.write_bytes(b"\xff\xfe" + path.read_bytes()),
    "is another file": lambda path: shutil.copy(path.parent.parent / path.parent.name / "environment.json", path)
    if (path.parent / "environment.json").exists()
    else path.write_text("{}"),
    "is a folder": lambda path: (path.unlink(), path.mkdir()),
}  # fmt: skip
MADE_OF = ["train.json", "eval/test-*.json", "run.json", "config.yaml"]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *itertools.product(MADE_OF, DAMAGES),
        *itertools.product(("status.json", "metrics.jsonl"), ("is cut", "is not UTF-8", "is a folder")),
    ],
)
def test_a_run_with_a_damaged_file_comes_out_as_it_was(name, damage, store, finished, capsys):
    (path,) = folder(store).glob(name)
    DAMAGES[damage](path)
    assert main(["run", *request(store)]) == 0
    assert numbers(store) == numbers(finished)
    again = capsys.readouterr().err
    assert main(["run", *request(store)]) == 0 and "1 of them done already" in capsys.readouterr().err, again
    assert list(load_runs(store)["status"]) == ["done"]


@pytest.mark.parametrize("name", ["train.json", "eval/test-*.json", "run.json"])
def test_one_changed_digit_of_a_number_is_found(name, store, finished, capsys):
    (path,) = folder(store).glob(name)
    changed(path)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            rows = load_results(store)
        except ValueError:
            rows = None
    assert any("not what was written" in str(each.message) for each in told)
    stage = {"train.json": "train", "eval/test-*.json": "test"}.get(name)
    assert rows is None or stage not in set(rows["stage"])
    assert main(["run", *request(store)]) == 0 and numbers(store) == numbers(finished)


def test_a_result_that_is_damaged_after_it_was_read_is_found(store):
    (run,) = plan(request(store))
    directory, (stage,) = RunDirectory(store, run.run_id), [stage for stage in run.stages if stage.name == "test"]
    assert directory.read_stage(stage)
    zeroed(directory.stage_file(stage))
    with pytest.raises(Damaged, match="eval/test-.* is not whole"):
        directory.read_stage(stage)


@pytest.mark.parametrize("damage", ["is gone", "is empty", "is cut", "has zeroes"])
def test_weights_that_are_not_whole_are_trained_again_by_run_and_refused_by_evaluate(damage, store, finished, capsys):
    DAMAGES[damage](folder(store) / "checkpoint" / FINAL)
    (cost,) = folder(store).glob("eval/cost-*.json")
    cost.unlink()
    assert main(["evaluate", "run=all", "eval=cost", f"paths.results={store}"]) == 1
    told = capsys.readouterr().err
    assert "model.safetensors is not whole" in told and "python -m suite run" in told and not cost.exists()
    assert main(["run", *request(store)]) == 0
    assert "the run is trained again" in capsys.readouterr().err
    assert numbers(store) == numbers(finished)
    ours, theirs = weights(store), weights(finished)
    assert all((ours[name] == theirs[name]).all() for name in theirs)


def test_an_old_store_without_digests_is_done_and_read_as_it_stands(store, finished, capsys):
    unsealed(folder(store))
    assert main(["run", *request(store)]) == 0 and "1 of them done already" in capsys.readouterr().err
    assert len(load_results(store)) == len(load_results(finished))


def test_the_files_of_another_run_are_not_taken_for_ones_own(store, capsys):
    assert main(["run", *request(store), "seed=1"]) == 0
    first, second = sorted((store / "runs").iterdir())
    before = numbers(store)
    for name in ("train.json", "checkpoint/model.safetensors"):
        shutil.copy(first / name, second / name)
    assert main(["run", *request(store), "seed=0,1"]) == 0
    assert numbers(store) == before
    assert "it belongs to run" in capsys.readouterr().err


def test_bad_lines_of_the_log_are_dropped_and_said(store, capsys):
    log = folder(store) / "metrics.jsonl"
    first, second, third, *rest = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join([first, b"\xff\n", second.replace(b'"loss": ', b'"loss": 1'), third[:20] + b"\n", *rest]))
    with pytest.warns(UserWarning, match="line"):
        steps = set(load_curves(store)["step"])
    assert 1 in steps and 2 not in steps and 3 not in steps
    (folder(store) / "train.json").unlink()
    (folder(store) / "checkpoint" / FINAL).unlink()
    assert main(["run", *request(store)]) == 0
    assert "3 lines of metrics.jsonl are not whole" in capsys.readouterr().err
    assert list(load_curves(store)["step"]) == list(range(1, 13))


def test_the_last_update_is_watched_too(tmp_path, capsys):
    reckless = [*(each for each in request(tmp_path / "results") if not each.startswith("train."))]
    assert main(["run", *reckless, "train.steps=1", "train.warmup_steps=0", "train.lr=1e38"]) == 1
    (run,) = (tmp_path / "results" / "runs").iterdir()
    assert json.loads((run / "status.json").read_text())["status"] == "diverged" and not (run / "train.json").exists()
    assert "is not finite after the last update" in capsys.readouterr().err


OUTSIDE = ["lock.guard", "lock", "status.json", "metrics.jsonl", "run.json", "config.yaml", "train.json", "eval", "checkpoint",
           "environment.json", "tracebacks.log", "eval/old", "checkpoint/model.safetensors"]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "verb"),
    [
        *((name, "run") for name in [*OUTSIDE, "."]),
        *((name, "evaluate") for name in ("lock.guard", "eval", "metrics.jsonl", ".")),
    ],
)
def test_nothing_outside_the_store_is_written_truncated_or_removed_through_a_link(name, verb, store, tmp_path, capsys):
    outside = tmp_path / "outside"
    path = folder(store) / name if name != "." else folder(store)
    for each in folder(store).glob("eval/*.json"):
        each.unlink()
    if path.is_dir():
        path.rename(outside)
    else:
        outside.write_text("precious")
        path.unlink(missing_ok=True)
    path.symlink_to(outside)
    kept = sorted(outside.rglob("*")) if outside.is_dir() else outside.read_bytes()
    contents = {each: each.read_bytes() for each in kept if each.is_file()} if outside.is_dir() else {}
    arguments = (
        ["run", *request(store)]
        if verb == "run"
        else ["evaluate", "run=all", "eval=test", "force=true", f"paths.results={store}"]
    )
    status = main(arguments)
    assert status in (0, 1, 2) and "Traceback" not in capsys.readouterr().err
    assert (sorted(outside.rglob("*")) if outside.is_dir() else outside.read_bytes()) == kept
    assert all(each.read_bytes() == content for each, content in contents.items())


@pytest.mark.parametrize(
    "name", ["status.json", "run.json", "config.yaml", "train.json", "metrics.jsonl", "environment.json", "lock"]
)
def test_a_pipe_in_a_run_folder_stops_nothing(name, store, finished, capsys):
    path = folder(store) / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(["list", "runs", f"paths.results={store}"]) == 0
        for load in (load_runs, load_results, load_curves):
            try:
                load(store)
            except ValueError:
                assert name == "run.json"
    if name != "lock":
        assert main(["run", *request(store)]) == 0 and numbers(store) == numbers(finished)


def test_a_linked_run_folder_loses_and_gains_nothing_outside(store, tmp_path, capsys):
    outside, run = tmp_path / "outside", folder(store)
    outside.mkdir()
    for name in ("lock", "lock.db", "lockfile.txt", "lock.claim-" + 32 * "0"):
        (outside / name).write_text("mine")
        os.utime(outside / name, (0, 0))
    shutil.rmtree(run)
    run.symlink_to(outside)
    kept = sorted(path.name for path in outside.iterdir())
    temporary = outside / f".mine.json.{machine()}-{32 * '0'}.tmp"
    temporary.touch()
    kept.append(temporary.name)
    assert main(["run", *request(store)]) == 1 and "it is a link" in capsys.readouterr().err
    assert sorted(path.name for path in outside.iterdir()) == sorted(kept)


def test_a_users_own_files_beside_the_lock_stay(store):
    note = folder(store) / "lock-notes.txt"
    note.write_text("mine")
    os.utime(note, (0, 0))
    assert main(["evaluate", "run=all", "eval=test", "force=true", f"paths.results={store}"]) == 0 and note.exists()


@pytest.mark.parametrize("kind", ["file", "pipe"])
@pytest.mark.parametrize("name", ["eval", "checkpoint"])
def test_what_stands_in_the_place_of_a_folder_is_set_aside(name, kind, store, finished):
    path = folder(store) / name
    shutil.rmtree(path)
    path.touch() if kind == "file" else os.mkfifo(path)
    (folder(store) / "train.json").unlink()
    assert main(["run", *request(store)]) == 0 and numbers(store) == numbers(finished)


@pytest.mark.parametrize("code", [5, [1], None, {"states": 5}, "today"])
def test_a_record_of_the_code_that_is_none_is_unknown(code, store, finished):
    path = folder(store) / "run.json"
    whole = json.loads(path.read_text())
    del whole["digest"]
    path.write_text(json.dumps(whole | {"code": code}))
    (folder(store) / "train.json").unlink()
    assert load_runs(store)["code"].tolist() == ["unknown"]
    assert main(["run", *request(store)]) == 0 and numbers(store) == numbers(finished)


def test_a_run_that_was_trained_and_is_described_anew_was_made_by_unknown_code(store):
    (folder(store) / "run.json").unlink()
    (folder(store) / "environment.json").unlink()
    assert main(["run", *request(store)]) == 0
    (run,) = load_runs(store).itertuples()
    assert run.code == "unknown" and not (folder(store) / "environment.json").exists()


def test_nesting_in_a_status_ends_no_sweep(store, finished):
    deep = "[" * 900 + "]" * 900
    (folder(store) / "status.json").write_text(f'{{"status": "error", "failures": {{"zz": {{"a": {deep}}}}}}}')
    (folder(store) / "train.json").unlink()
    assert main(["run", *request(store)]) == 0 and numbers(store) == numbers(finished)


@pytest.mark.parametrize("name", ["status.json", "environment.json"])
def test_the_status_and_the_machine_of_another_run_are_not_shown_as_this_ones(name, store):
    path = folder(store) / name
    content = json.loads(path.read_text()) | {"run_id": "0" * 12, "status": "diverged", "platform": "elsewhere"}
    path.write_bytes(as_json({key: value for key, value in content.items() if key != "digest"}))
    with pytest.warns(UserWarning, match="it belongs to run"):
        (run,) = load_runs(store).itertuples()
    assert run.status != "diverged" and run.platform != "elsewhere"


@pytest.mark.parametrize("lines", [0, 5])
def test_lines_that_are_gone_from_the_log_are_named(lines, store):
    log = folder(store) / "metrics.jsonl"
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:lines]))
    with pytest.warns(UserWarning, match=f"{12 - lines} of its lines are missing"):
        assert len(load_curves(store)) == lines


def test_a_header_that_lost_its_own_name_is_no_old_checkpoint(store, finished, capsys):
    run = plan(request(store))[0]
    (folder(store) / "train.json").unlink()
    directory, told = RunDirectory(store, run.run_id), []
    model = new_model(run, torch.device("cpu"))
    optimizer = build_optimizer(model, run.config.train)
    save_checkpoint(directory, training_state(model, optimizer, None), Progress(5, 1.0, 1.0, 3.0, (3.0,)))
    (path,) = directory.checkpoints.glob("step-*")
    path.write_bytes(path.read_bytes().replace(b'"about"', b'"abouu"'))
    assert load_checkpoint(directory, model, optimizer, told.append)[0] == Progress()
    assert told and "header" in told[0]


def test_an_old_checkpoint_whose_progress_is_nested_too_deeply_is_passed_over(store, finished):
    run = plan(request(store))[0]
    directory, told = RunDirectory(store, run.run_id), []
    model = new_model(run, torch.device("cpu"))
    optimizer = build_optimizer(model, run.config.train)
    directory.checkpoints.mkdir(exist_ok=True)
    deep = 10**5 * "["
    save_file({"x": torch.zeros(1)}, directory.checkpoints / "step-000000005.safetensors", {"progress": deep})
    assert load_checkpoint(directory, model, optimizer, told.append)[0] == Progress()
    assert told and "it is nested too deeply" in told[0]


def test_a_reader_of_the_progress_that_has_gone_ends_nothing(store, tmp_path):
    there = tmp_path / "again"
    command = f'{sys.executable} -m suite run {" ".join(request(there))} 2>&1 >/dev/null | true; exit "${{PIPESTATUS[0]}}"'
    assert subprocess.run(["bash", "-c", command], cwd=ROOT, timeout=120).returncode == 0
    assert list(there.glob("runs/*/train.json"))


BOMBS = {
    "aliases": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{n}: &{n} [{','.join(['*' + p] * 9)}]\n" for p, n in itertools.pairwise("abcdefghi")),
    "depth": "a: " + "[" * 5000 + "]" * 5000,
    "a word": "task: hello\n",
    "a list": "- a\n",
    "a tag": "a: !!python/object/apply:os.system ['touch /tmp/owned']\n",
    "a resolver": "a: ${oc.env:HOME}\n",
    "a huge number": "a: " + "9" * 100_000 + "\n",
    "not finite": "a: .inf\n",
    "a date": "a: 2001-01-01\n",
    "an empty whole number": 'a: !!int ""\n',
    "a sign alone": 'a: !!int "-"\n',
    "sexagesimal without end": "a: 1" + ":59" * 400 + ".5\n",
    "no character": 'a: "\\UFFFFFFFF"\n',
    "half a character": 'a: "\\ud800"\n',
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_configuration_that_is_a_bomb_is_named(bomb, store, capsys):
    run = folder(store)
    whole = json.loads((run / "run.json").read_text())
    # As a stranger's old run: there is no digest that would tell.
    del whole["digest"], whole["config"]
    (run / "run.json").write_text(json.dumps(whole))
    (run / "config.yaml").write_text(BOMBS[bomb])
    assert main(["evaluate", f"run={run.name}", "eval=cost", f"paths.results={store}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and run.name in error and "IndexError" not in error


@pytest.mark.parametrize("number", ["1e999", "Infinity", "NaN", "1" + "0" * 400, "9" * 5000])
def test_a_number_that_no_float_holds_is_named(number, store):
    path = folder(store) / "train.json"
    content = json.loads(path.read_text())
    del content["digest"]
    path.write_text(re.sub(r'"count": \d+', f'"count": {number}', json.dumps(content), count=1))
    with pytest.warns(UserWarning, match="train.json: .*number"):
        assert "train" not in set(load_results(store)["stage"])


@pytest.mark.parametrize("text", ["\x1b]0;x\x07\x1b[2J", "a\nb", "\u202eevil", "\x9b31m", "=1+1"])
def test_what_a_stranger_calls_his_run_reaches_the_terminal_inert(text, store, capsys):
    path = folder(store) / "run.json"
    whole = json.loads(path.read_text())
    del whole["digest"]
    whole["facts"]["model"] = text
    path.write_text(json.dumps(whole))
    assert main(["list", "runs", f"paths.results={store}"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("\n") == 1 and folder(store).name in shown
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", shown)


@pytest.mark.parametrize("when", ["begin", "status", "metrics", "checkpoint", "weights", "result"])
def test_a_disk_without_room_ends_in_one_line_and_other_runs_go_on(when, tmp_path, monkeypatch, capsys):
    """The first run finds no room; the second one does, and so does the first when it is asked for again."""
    store = tmp_path / "results"
    runs = plan([*request(store), "seed=0,1"])
    write = RunDirectory.write
    names = {"begin": "run.json", "status": "status.json", "metrics": "metrics.jsonl", "checkpoint": "step-", "weights": FINAL}

    def full(self, path, content, *, replace=True):
        if self.run_id == runs[0].run_id and path.name.startswith(names.get(when, "train.json")):
            raise OSError(28, "No space left on device", str(path))
        write(self, path, content, replace=replace)

    monkeypatch.setattr(RunDirectory, "write", full)
    told = []
    execute_all(runs, store, told.append, command=Command("a", trains=True, force=False), world=alone(torch.device("cpu")))
    ends = {event.run_id: event.kind for event in told if event.kind in ("done", "failed")}
    ends_well = when in ("status", "metrics", "checkpoint")
    assert ends == {runs[0].run_id: "done" if ends_well else "failed", runs[1].run_id: "done"}
    assert ends_well or any("No space left on device" in event.text for event in told)
    monkeypatch.undo()
    execute_all(runs, store, told.append, command=Command("b", trains=True, force=False), world=alone(torch.device("cpu")))
    assert all((store / "runs" / run.run_id / "train.json").exists() for run in runs)


def test_an_evaluation_that_is_forced_is_made_again_and_the_old_one_stays_findable(store, capsys):
    (path,) = folder(store).glob("eval/test-*.json")
    before = path.read_bytes()
    assert main(["evaluate", "run=all", "eval=test", f"paths.results={store}"]) == 0 and path.read_bytes() == before
    assert main(["evaluate", "run=all", "eval=test", "force=true", f"paths.results={store}"]) == 0
    (old,) = folder(store).glob("eval/old/test-*.json")
    assert old.read_bytes() == before and path.read_bytes() != before
    assert json.loads(before)["rows"] == json.loads(path.read_bytes())["rows"]
    assert len(load_results(store)) == len(load_results(store).drop_duplicates(["stage", "metric", "split", "slice"]))
