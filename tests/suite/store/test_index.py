"""Many runs come out of the index as out of their files: the same frames, the same warnings, whatever happened in between."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from suite.results import Reader, load_curves, load_examples, load_results, load_runs
from suite.running.requests import make_runs
from suite.store import index, throwaway
from suite.store.foreign import sealed
from tests.suite.store.many_runs import make_many

LOADS = (load_runs, load_results, load_examples, load_curves)
READS = (Reader.runs, Reader.results, Reader.examples, Reader.curves)
NUMBER = 6


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of many runs of two kinds, and one of a version that wrote its settings into config.yaml alone."""
    folder = tmp_path_factory.mktemp("many")
    short = ["train.steps=2", "train.warmup_steps=1", "size.d_model=16", "task.num_validation=16", "task.num_test=16"]
    request = ["task=mqar", *short, "model=gla,deltanet", "compute.log_seconds=0", "compute.jobs=1", "compute.threads=1"]
    make_runs([*request, f"paths.results={folder / 'few'}"])
    first, *_ = make_many(folder / "many", folder / "few", NUMBER)
    path = folder / "many" / "runs" / first / "run.json"
    rewrite(path, lambda content: content.pop("settings"))
    return folder / "many"


@pytest.fixture
def store(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, of which the index lies below `cache`, may hold what was written just now, and needs no more runs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index, "RACE_NANOSECONDS", 0)
    monkeypatch.setattr(index, "MANY", 3)
    return Path(shutil.copytree(made, tmp_path / "results"))


def rewrite(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text())
    del content["digest"]
    change(content)
    path.write_text(json.dumps(sealed(content)))


def kept(store: Path) -> list[Path]:
    return sorted((store.parent / "cache").rglob("*.r*")) + sorted((store.parent / "cache").rglob("*.machine"))


def said(store: Path, reads=READS[:2], run_ids: list[str] | None = None) -> tuple[list[pd.DataFrame], list[str]]:
    """Frames of a store, at first those that an index may hold, and the warnings about it."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        reader = Reader(store, run_ids)
        frames = [read(reader) for read in reads]
    return frames, [str(each.message) for each in told]


def from_files(store: Path, monkeypatch: pytest.MonkeyPatch, reads=READS[:2], run_ids: list[str] | None = None):
    """The same where no index can be kept."""
    with monkeypatch.context() as without:
        without.setenv("XDG_CACHE_HOME", "/dev/null/none")
        return said(store, reads, run_ids)


def assert_same(one, other) -> None:
    for ours, theirs in zip(one[0], other[0], strict=True):
        pd.testing.assert_frame_equal(ours, theirs, check_exact=True)
    assert one[1] == other[1]


def test_frames_from_the_index_equal_those_from_the_files_and_nothing_is_read_again(store, monkeypatch):
    expected = from_files(store, monkeypatch, READS)
    assert not kept(store) and len(expected[0][0]) == NUMBER and not expected[1]
    assert_same(said(store, READS), expected)
    assert len(kept(store)) == 3
    assert_same(said(store, READS), expected)
    monkeypatch.setattr(index, "READERS", {})
    for load, frame in zip(LOADS[:2], expected[0][:2], strict=True):
        pd.testing.assert_frame_equal(load(store), frame, check_exact=True)


def folder(store: Path) -> Path:
    return sorted((store / "runs").iterdir())[3]


def linked(store: Path) -> None:
    """A run's folder that lies elsewhere, with the very files that it had."""
    run = folder(store)
    run.rename(store.parent / "elsewhere")
    run.symlink_to(store.parent / "elsewhere")


def changed_alike(path: Path) -> None:
    """Another digit, and the time of writing that it had."""
    known = path.stat()
    text = path.read_text()
    at = text.index('"value": ') + len('"value": ')
    path.write_text(text[:at] + ("1" if text[at] != "1" else "2") + text[at + 1 :])
    os.utime(path, ns=(known.st_atime_ns, known.st_mtime_ns))


def another_version(store: Path) -> None:
    (path,) = folder(store).glob("eval/test-*.json")
    rewrite(path, lambda content: content["rows"][0].update(value=0.25, metric="elegance"))


def edited(name: str, **changes: object) -> Callable[[Path], None]:
    """Sets keys of a file, those of settings and facts within them."""

    def edit(content: dict) -> None:
        for key, value in changes.items():
            content[key] = content[key] | value if isinstance(value, dict) else value

    return lambda store: rewrite(folder(store) / name, edit)


CHANGES: dict[str, Callable[[Path], object]] = {
    "a new status": edited("status.json", status="diverged"),
    "no status": lambda store: (folder(store) / "status.json").unlink(),
    "a torn run.json": lambda store: (folder(store) / "run.json").write_text("{"),
    "no run.json": lambda store: (folder(store) / "run.json").unlink(),
    "text for a number": edited("run.json", settings={"train.lr": "x"}),
    "another setting": edited("run.json", settings={"a.new": True}),
    "another code": edited("run.json", code=[1]),
    "a fact named as a slice": edited("run.json", facts={"num_pairs": "n"}),
    "facts named as examples": edited("run.json", facts={"examples": 3, "groups": "x", "python": 2}),
    "no machine": lambda store: (folder(store) / "environment.json").unlink(),
    "a machine of another": edited("environment.json", run_id="0" * 12),
    "no results": lambda store: (folder(store) / "train.json").unlink(),
    "a digit": lambda store: changed_alike(folder(store) / "train.json"),
    "another result": another_version,
    "a result more": lambda store: (folder(store) / "eval" / "own-00000000.json").write_text('{"schema": 1, "stage": 3}'),
    "a folder of results less": lambda store: shutil.rmtree(folder(store) / "eval"),
    "a run less": lambda store: shutil.rmtree(folder(store)),
    "a run more": lambda store: shutil.copytree(folder(store), store / "runs" / ("0" * 12)),
    "a link": linked,
    "a pipe": lambda store: ((folder(store) / "status.json").unlink(), os.mkfifo(folder(store) / "status.json")),
    "an old config.yaml": lambda store: [path.write_text("train: 3") for path in store.glob("runs/*/config.yaml")],
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_store_that_changed_is_read_as_if_there_were_no_index(change, store, monkeypatch):
    before = said(store)
    CHANGES[change](store)
    expected = from_files(store, monkeypatch)
    assert expected[1] != before[1] or any(not one.equals(other) for one, other in zip(expected[0], before[0], strict=True))
    # At first a run that changed is read each time, and then it is indexed again.
    for share in (1.0, 0.0, 0.0):
        monkeypatch.setattr(index, "CHANGED_SHARE", share)
        assert_same(said(store), expected)


def test_what_another_state_of_the_reading_code_indexed_is_not_read(store, monkeypatch):
    said(store)
    before = kept(store)
    monkeypatch.setattr(index, "READ_BY", "another")
    said(store)
    assert before and len(kept(store)) == 2 * len(before)


@pytest.mark.parametrize("part", ["run", "rows"])
def test_runs_that_changed_are_indexed_once_they_are_many(part, store, monkeypatch):
    said(store)
    path = "status.json" if part == "run" else "train.json"
    for run in sorted((store / "runs").iterdir())[:2]:
        rewrite(run / path, lambda content: content.update(more=1))
    expected = said(store)
    monkeypatch.setattr(index, "READERS", {})
    for load, frame in zip(LOADS[:2], expected[0], strict=False):
        pd.testing.assert_frame_equal(load(store), frame, check_exact=True)


def test_some_of_the_runs_are_read_by_their_names_and_leave_the_others_in_the_index(store, monkeypatch):
    run_ids = [path.name for path in sorted((store / "runs").iterdir())][2:]
    said(store)
    expected = from_files(store, monkeypatch, run_ids=run_ids)
    assert_same(said(store, run_ids=run_ids), expected)
    for run_id in run_ids[:2]:
        rewrite(store / "runs" / run_id / "status.json", lambda content: content.update(reason="changed"))
    assert (said(store, run_ids=run_ids)[0][0]["reason"] == "changed").sum() == 2
    monkeypatch.setattr(index, "READERS", {})
    assert len(load_runs(store)) == NUMBER


@pytest.mark.parametrize("name", ["../other/runs/{}", "../../other/runs/{}", "./{}", "..", ".", "", "\0", "{}/", "\ud800"])
def test_a_name_that_leads_elsewhere_is_no_run(name, store, tmp_path):
    (run_id, *_) = os.listdir(store / "runs")
    shutil.copytree(store / "runs" / run_id, tmp_path / "other" / "runs" / run_id)
    with pytest.raises(ValueError, match="no results"):
        load_runs(store, [name.format(run_id)])
    assert load_runs(store, [name.format(run_id), run_id])["run_id"].tolist() == [run_id]


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "flipped": flipped,
    "foreign": lambda path: path.write_bytes(b"\x80\x04N."),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a link": lambda path: (path.rename(path.with_name("real")), path.symlink_to(path.with_name("real"))),
    "everybody's": lambda path: path.parent.chmod(0o777),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_index_that_is_not_as_it_was_written_is_ignored(damage, store):
    expected = said(store)
    for path in kept(store):
        DAMAGES[damage](path)
    assert throwaway.load(kept(store)[0].name.partition("-")[2], index.Index) is None
    assert_same(said(store), expected)


def test_versions_that_are_used_in_turn_leave_each_other_their_index_until_it_is_unused(store, monkeypatch):
    expected, own = said(store), kept(store)
    old = [path.read_bytes() for path in own]
    with monkeypatch.context() as other:
        other.setattr(throwaway, "_version", lambda: b"another version of this many...32")
        assert_same(said(store), expected)
        assert len(kept(store)) == 6 and [path.read_bytes() for path in own] == old
    month = throwaway.UNUSED_DAYS * 24 * 3600
    for path in kept(store):
        os.utime(path, times=(0, path.stat().st_mtime - 1.01 * month))
    with monkeypatch.context() as index_alone:
        # What is read is in use.
        index_alone.setattr(index, "READERS", {})
        said(store)
    throwaway.keep("anything", 1)
    assert kept(store) == own


def test_a_store_that_moved_brings_no_index_and_gets_one_of_its_own(store):
    said(store)
    moved = store.rename(store.with_name("moved"))
    assert not list(moved.rglob("*.rows"))
    rewrite(folder(moved) / "status.json", lambda content: content.update(status="error"))
    assert "error" in set(load_runs(moved)["status"])


def test_what_was_written_just_now_is_not_indexed(store, monkeypatch):
    monkeypatch.setattr(index, "RACE_NANOSECONDS", 3600 * 10**9)
    said(store)
    assert not kept(store)


def test_few_runs_leave_nothing_behind(store):
    run_ids = os.listdir(store / "runs")[: index.MANY - 1]
    said(store, run_ids=run_ids)
    assert not kept(store)


def test_processes_at_once_say_the_same(store, tmp_path):
    """Forks of this process, which has imported pandas."""
    fork = multiprocessing.get_context("fork")
    files = [tmp_path / f"{i}.json" for i in range(2)]
    running = [fork.Process(target=tell, args=(store, file)) for file in files]
    for process in running:
        process.start()
    for process in running:
        process.join(120)
    assert [process.exitcode for process in running] == [0, 0] and kept(store)
    assert [json.loads(file.read_text()) for file in files] == [{"results": load_results(store).to_csv(), "warnings": []}] * 2


def tell(store: Path, file: Path) -> None:
    """Writes down the results of a store, and what is warned of."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        results = load_results(store).to_csv()
    file.write_text(json.dumps({"results": results, "warnings": [str(each.message) for each in told]}))


def test_the_runs_are_read_once_for_all_frames(store, monkeypatch):
    run_ids, read = os.listdir(store / "runs")[:3], []
    monkeypatch.setitem(index.READERS, "run", lambda files, run=index.READERS["run"]: (read.append(files.run_id), run(files))[1])
    reader = Reader(store, run_ids)
    frames = [read(reader) for read in READS]
    assert sorted(read) == sorted(run_ids)
    for frame, load in zip(frames, LOADS, strict=True):
        pd.testing.assert_frame_equal(frame, load(store, run_ids), check_exact=True)


def test_what_was_read_of_all_runs_is_not_read_again_for_some_of_them(store, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/none")
    reader, run_ids = Reader(store), sorted(os.listdir(store / "runs"))[1:4]
    reader.runs()
    expected = load_runs(store, run_ids)
    some = reader.of(run_ids)
    monkeypatch.setattr(index, "READERS", {})
    pd.testing.assert_frame_equal(some.runs(), expected, check_exact=True)
