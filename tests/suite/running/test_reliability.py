"""What a store survives, at length: run on purpose with -m slow. docs/reliability.md says what is promised."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from suite.cli import main
from suite.results import load_curves, load_results, load_runs
from tests.suite.conftest import ROOT
from tests.suite.running.test_train import numbers

pytestmark = pytest.mark.slow

TINY = [
    "size.d_model=16",
    "size.num_blocks=1",
    "size.head_dim=8",
    "size.mlp_dim=32",
    "train.warmup_steps=3",
    "train.batch_size=4",
]
QUICK = ["compute.checkpoint_seconds=0", "compute.log_seconds=0", "compute.jobs=1"]
RECALL = ["task=mqar", "model=swa4,gla", "task.seq_len=32", "task.num_validation=16", "task.num_test=16", "train.steps=12"]
SETTLED = ("train.json", "run.json", "config.yaml", "status.json", "metrics.jsonl", "environment.json")


def recall(store: Path) -> list[str]:
    return [*RECALL, *TINY, *QUICK, f"paths.results={store}"]


def language(store: Path, text: Path, cache: Path) -> list[str]:
    data = [
        "task=language",
        "data=text",
        f"data.path={text}",
        "data.validation_fraction=0.2",
        "task.seq_len=32",
        f"paths.cache={cache}",
    ]
    return [*data, "model=gla", "eval.stages=[cost,position]", "train.steps=12", *TINY, *QUICK, f"paths.results={store}"]


def weights(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in sorted(store.glob("runs/*/checkpoint/model.safetensors"))}


def temporaries(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in folder.rglob("*") if path.name.startswith(".") or path.name.endswith(".tmp")]


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    words = random.Random(0)
    sentences = (" ".join(words.choices(["a", "small", "text", "of", "few", "words", "again"], k=12)) for _ in range(3000))
    path.write_text(
        "".join(f"{sentence}.\n{'<|endoftext|>' + chr(10) if i % 40 == 39 else ''}" for i, sentence in enumerate(sentences))
    )
    return path


@pytest.mark.parametrize("kind", ["recall", "language"])
def test_killed_at_fifty_random_moments_nothing_is_lost_doubled_or_different(kind, text, tmp_path):
    """Each time the same command ends what the kill left, over training, evaluations, writing and tokenising."""
    whole, cache = tmp_path / "whole", tmp_path / "cache"
    asked = (lambda store: recall(store)) if kind == "recall" else (lambda store: language(store, text, cache))
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "suite", "run", *asked(whole)], cwd=ROOT, check=True, capture_output=True)
    took = time.monotonic() - began
    moments = random.Random(1)
    for i in range(50):
        store = tmp_path / f"killed-{i}"
        if kind == "language" and i % 2:
            shutil.rmtree(cache, ignore_errors=True)
        process = subprocess.Popen([sys.executable, "-m", "suite", "run", *asked(store)], cwd=ROOT, stderr=subprocess.DEVNULL)
        time.sleep(moments.uniform(0.3, 1.05) * took)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert main(["run", *asked(store)]) == 0
        assert numbers(store) == numbers(whole) and weights(store) == weights(whole), i
        for run in (store / "runs").iterdir():
            steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
            assert steps == list(range(1, 13)), (i, run)
        assert not temporaries(store, cache), i


def mutated(path: Path, chance: random.Random) -> str:
    """One damage of a file, and its name."""
    data = bytearray(path.read_bytes())
    place, length = chance.randrange(max(1, len(data))), chance.choice([1, 8, 512])
    kind = chance.choice(["bit", "zeroes", "cut", "doubled", "dropped", "empty", "gone", "link", "pipe", "folder", "garbage"])
    if kind == "bit" and data:
        data[place] ^= 1 << chance.randrange(8)
    elif kind == "zeroes":
        data[place : place + length] = bytes(len(data[place : place + length]))
    elif kind == "cut":
        del data[place:]
    elif kind == "doubled":
        data[place:place] = data[place : place + length]
    elif kind == "dropped":
        del data[place : place + length]
    elif kind == "empty":
        data.clear()
    elif kind == "garbage":
        data[place : place + length] = chance.randbytes(length)
    path.unlink()
    if kind == "link":
        path.symlink_to(path.parent)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind != "gone":
        path.write_bytes(data)
    return f"{kind} at {place} of {path.name}"


def test_five_hundred_random_damages_are_made_again_or_named(tmp_path, capsys):
    whole, seed = tmp_path / "whole", itertools.count()
    assert main(["run", *recall(whole)]) == 0
    # The second run is one that is not finished.
    unfinished = sorted((whole / "runs").iterdir())[1]
    expected = numbers(whole)
    (unfinished / "train.json").unlink()
    for i in range(500):
        chance, store = random.Random(next(seed)), tmp_path / "store"
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(whole, store)
        files = [path for path in sorted(store.rglob("*")) if path.is_file() and path.name != "lock.guard"]
        done = mutated(chance.choice(files), chance)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with contextlib.suppress(ValueError):
                rows, _, _ = load_results(store), load_runs(store), load_curves(store)
                told = {(row.run_id, row.stage, row.metric, row.slice, row.split): row.value for row in rows.itertuples()}
                whole_rows = load_results(whole)
                known = {(row.run_id, row.stage, row.metric, row.slice, row.split): row.value for row in whole_rows.itertuples()}
                assert all(known.get(key) == value or value != value for key, value in told.items()), (i, done)
            assert main(["evaluate", "run=all", "eval=cost", f"paths.results={store}"]) in (0, 1, 2), (i, done)
        assert main(["run", *recall(store)]) == 0, (i, done, capsys.readouterr().err)
        assert numbers(store) == expected, (i, done)
        capsys.readouterr()


NO_FLOCK = "import errno, fcntl\ndef flock(*_):\n    {}\nfcntl.flock = flock\n"


@pytest.mark.parametrize("flock", ["return None", "raise OSError(errno.ENOSYS, 'Function not implemented')"])
def test_sixteen_processes_make_every_run_once_where_there_is_no_flock(flock, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(NO_FLOCK.format(flock))
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    store = tmp_path / "results"
    request = [*recall(store), "seed=0,1,2"]
    command = [sys.executable, "-m", "suite", "run", *request]
    crowd = [subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(16)]
    told = [process.communicate(timeout=900)[1] for process in crowd]
    assert [process.returncode for process in crowd] == [0] * 16, told
    assert sum(each.count("done in") for each in told) == 6
    for run in (store / "runs").iterdir():
        steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert steps == list(range(1, 13))


@pytest.mark.parametrize("options", ["size=250k", "size=50m,nr_inodes=30"])
def test_a_disk_that_fills_up_costs_a_line_a_run_and_all_goes_on_afterwards(options, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        request = [sys.executable, "-m", "suite", "run", *recall(disk / "results"), "seed=0,1,2,3,4"]
        full = subprocess.run(request, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert full.returncode == 1 and "No space left on device" in full.stderr and "Traceback" not in full.stderr
        subprocess.run(["mount", "-o", "remount,size=200m,nr_inodes=0", str(disk)], check=True)
        again = subprocess.run(request, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert again.returncode == 0 and not temporaries(disk), again.stderr
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        fixed = subprocess.run([*request, "eval.stages=[solver]"], cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert "Traceback" not in fixed.stderr
    finally:
        subprocess.run(["umount", str(disk)], check=True)
