"""The writing side of the results store: a file exists if and only if what it holds is whole.

results/runs/<run_id>/ holds run.json (names and facts), config.yaml, environment.json, status.json, metrics.jsonl,
checkpoint/, and one result file a stage: train.json and eval/<evaluation>-<hash>.json. suite/results.py reads it.
What a number is made of carries a digest that is checked when it is read. Nothing is written by a worker that has lost
the run's lock, nor through a link.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import json
import math
import os
import shlex
import stat
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from suite.machine.environment import environment
from suite.request.identity import identity, run_id
from suite.request.schema import saved_config
from suite.stage import TRAINING, Stage
from suite.store.foreign import (
    MOST_YAML,
    check_no_link,
    checked_line,
    inert,
    parse_line,
    parse_yaml,
    read_json,
    read_lines,
    reason_of,
    sealed,
)
from suite.store.lock import RunLock
from suite.store.status import Status, read_status
from suite.store.versions import measured, superseded
from tasks.files import read_regular, remove_temporaries, write_atomically
from tasks.task import Measurement

SCHEMA = 1
READING = (OSError, ValueError, KeyError, TypeError, AttributeError)


class Damaged(Exception):
    """A file of a run is missing or not what was written; the message names it and says why."""


def as_json(value: Mapping[str, Any]) -> bytes:
    """A file of the store: a JSON object that carries its digest."""
    return (json.dumps(sealed(value), indent=1, allow_nan=False) + "\n").encode()


class RunDirectory:
    """Where one run lands. results: the store, which may be reached by a link; inside it there is none."""

    def __init__(self, results: Path, run_id: str) -> None:
        self.root = results.resolve()
        self.path = self.root / "runs" / run_id
        self.run_id = run_id
        self.lock = RunLock(self.path, self.root)
        self._contents: dict[tuple[Path, int, int, int], dict[str, Any]] = {}

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoint"

    @property
    def kept(self) -> Path:
        """Where the checkpoints lie that stay after the run's end."""
        return self.checkpoints / "kept"

    def make(self) -> None:
        """Makes the folder. Raises OSError where it can't be made, or it or one of its own is a link."""
        for folder in (self.path, self.checkpoints, self.kept, self.path / "eval"):
            check_no_link(folder, self.root)
        self.path.mkdir(parents=True, exist_ok=True)

    def write(self, path: Path, content: bytes | Iterable[bytes | memoryview], *, replace: bool = True) -> None:
        """A whole file of the run. Raises Superseded, FileExistsError where it must not replace another, and OSError."""
        self.lock.check()
        check_no_link(path.parent, self.root)
        if path.is_dir() and not path.is_symlink():
            self.set_aside(path)
        write_atomically(path, content, replace=replace)

    def tidy(self) -> None:
        """Removes what killed writers left."""
        for folder in (self.path, self.checkpoints, self.kept, self.path / "eval"):
            with contextlib.suppress(OSError):
                check_no_link(folder, self.root)
                remove_temporaries(folder)

    def begin(self, names: Mapping[str, Any], config: bytes, code: Mapping[str, Any], place: Mapping[str, Any]) -> None:
        """Writes what the run is where that is missing or damaged, and removes what killed writers left.

        names: run_id, group_id, facts and settings. config: what config.yaml holds. code: the state of the code that trains it.
        place: what environment.json holds beside `environment`.
        """
        self.tidy()
        for folder in (self.checkpoints, self.path / "eval"):
            if os.path.lexists(folder) and not folder.is_dir():
                self.set_aside(folder)
        # Where a run was trained, and by which code, is only known before it is.
        is_trained = os.path.lexists(self.stage_file(TRAINING))
        environment_file = self.path / "environment.json"
        try:
            read_json(environment_file, self.root, self.run_id)
        except (OSError, ValueError):
            self.set_aside(environment_file)
            if not is_trained:
                self.write(environment_file, as_json({**environment(), **place, "run_id": self.run_id}))
        with contextlib.suppress(Damaged):
            whole, _ = self.read()
            known = whole["code"] if isinstance(whole.get("code"), dict) else {}
            states = known["states"] if isinstance(known.get("states"), list) else ["unknown"]
            if code["states"][0] not in states and not is_trained:
                # What was begun by one state of the code and is ended by another is of both.
                whole["code"] = {**code, "states": [*states, *code["states"]]}
                self.write(self.path / "run.json", as_json(whole))
            return
        self.write(self.path / "config.yaml", config)
        whole = {"schema": SCHEMA, **names, "config": hashlib.sha256(config).hexdigest()}
        self.write(self.path / "run.json", as_json(whole if is_trained else {**whole, "code": code}))

    def read(self) -> tuple[dict[str, Any], bytes]:
        """What run.json and config.yaml say of the run. Raises Damaged where they are not those of the run."""
        try:
            whole = dict(self._content(self.path / "run.json"))
            config = read_regular(self.path / "config.yaml", limit=MOST_YAML)
            if "config" in whole:
                fits = whole["config"] == hashlib.sha256(config).hexdigest()
            else:
                # Written before there were digests: a configuration that gives another name is another run's.
                settled = saved_config(parse_yaml(config))
                fits = run_id(identity(settled, data_fingerprint=whole["facts"]["data_fingerprint"])) == self.run_id
            if not fits:
                raise ValueError("its configuration belongs to a run of another name")
        except READING as error:
            raise Damaged(f"run {self.run_id} can't be read: {reason_of(error)}") from error
        return whole, config

    def command(self) -> str:
        """What was typed to make the run, for people."""
        with contextlib.suppress(*READING):
            typed = [str(each) for each in read_json(self.path / "environment.json", self.root)["command"]]
            if typed[1:2] == ["run"]:
                return inert(shlex.join(["python", "-m", "suite", *typed[1:]]))
        return "python -m suite run, with the keys of its config.yaml"

    def stage_file(self, stage: Stage) -> Path:
        return self.path / stage.file_name

    def read_stage(self, stage: Stage) -> dict[str, Any] | None:
        """What a finished stage left; None where there is nothing, or a newer result by another version of its benchmark.

        Raises Damaged for what is not whole.
        """
        path = self.stage_file(stage)
        if not os.path.lexists(path):
            return None
        try:
            content = self._content(path)
            if (content["stage"], content["settings"]) != (stage.name, json.loads(stage.settings)) or not isinstance(
                content["rows"], list
            ):
                raise ValueError("it belongs to another stage")
        except READING as error:
            raise Damaged(f"{path.relative_to(self.path)} is not whole ({reason_of(error)})") from error
        is_old = "version" in content["settings"] and superseded([*self.other_versions(content), content])[-1]
        return None if is_old else content

    def _content(self, path: Path) -> dict[str, Any]:
        """The JSON of a file of the run, read once as long as it is the same file of the same size and time."""
        known = os.stat(path, follow_symlinks=False)
        key = (path, known.st_size, known.st_mtime_ns, known.st_ino)
        if key not in self._contents:
            self._contents[key] = read_json(path, self.root, self.run_id)
        return self._contents[key]

    def other_versions(self, content: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The results that measured the same by another version of its benchmark."""
        found = []
        for path in sorted((self.path / "eval").glob(f"{content['stage']}-*.json")):
            with contextlib.suppress(*READING):
                other = self._content(path)
                if measured(other) == measured(content) and other["settings"] != content["settings"]:
                    found.append(other)
        return found

    def write_stage(self, stage: Stage, measurements: Sequence[Measurement], *, attempt: str) -> None:
        """What a stage measured. Where another worker was first, its numbers stay. Raises Superseded and OSError."""
        made = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        named = {"stage": stage.name, "settings": json.loads(stage.settings)}
        whole = {"schema": SCHEMA, "run_id": self.run_id, **named, "made": made, "attempt": attempt}
        if stage == TRAINING:
            with contextlib.suppress(OSError, ValueError):
                whole["log_lines"] = len(read_lines(self.path / "metrics.jsonl", self.root)) - 1
        content = as_json({**whole, "rows": [_row(measurement) for measurement in measurements]})
        try:
            self.write(self.stage_file(stage), content, replace=False)
        except FileExistsError:
            if not os.path.lexists(self.stage_file(stage)):
                raise

    def write_samples(self, stage: Stage, samples: Sequence[Mapping[str, Any]]) -> None:
        """What was answered in a stage, a line each beside its result, for people: no number is made of it."""
        lines = "".join(checked_line(sample, self.run_id) for sample in samples)
        self.write(self.stage_file(stage).with_suffix(".jsonl"), lines.encode(errors="backslashreplace"))

    def set_aside(self, path: Path) -> None:
        """Makes room for a file that is made again. What was there stays, in a folder `old` beside it."""
        self.lock.check()
        old = path.parent / "old"
        check_no_link(old, self.root)
        if os.path.lexists(path):
            old.mkdir(exist_ok=True)
            os.replace(path, old / f"{path.stem}-{time.time_ns()}{path.suffix}")

    def write_status(self, status: Status) -> None:
        """What became of the run; a status that can't be written ends nothing."""
        with contextlib.suppress(OSError):
            written = {**dataclasses.asdict(status), "time": time.time(), "run_id": self.run_id}
            self.write(self.path / "status.json", as_json(written))

    def status(self) -> Status:
        """How far the run is; pending where nothing that can be read says so."""
        with contextlib.suppress(OSError, ValueError):
            return read_status(self.path / "status.json", self.root, self.run_id)
        return Status()

    def append(self, name: str, text: str) -> None:
        """Adds to a log of the run, from the start of a line on: all of it or nothing. Raises Superseded and OSError."""
        self.lock.check()
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with os.fdopen(os.open(self.path / name, flags, 0o644), "rb+", buffering=0) as file:
            known = os.fstat(file.fileno())
            if not stat.S_ISREG(known.st_mode) or known.st_nlink > 1:
                raise OSError(f"{name} is a link or no regular file")
            torn = known.st_size and os.pread(file.fileno(), 1, known.st_size - 1) != b"\n"
            data = (b"\n" if torn else b"") + text.encode(errors="backslashreplace")
            try:
                if os.write(file.fileno(), data) != len(data):
                    raise OSError(f"{name} has no room for another line")
            except OSError:
                os.ftruncate(file.fileno(), known.st_size)
                raise

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """A line of the log of training; one that can't be written is left out, and ends nothing."""
        with contextlib.suppress(OSError):
            self.append("metrics.jsonl", checked_line(row, self.run_id))

    def truncate_metrics(self, step: int) -> int:
        """Drops the lines after a step, which a resumed run writes again, and says how many others were not whole.

        A last line that a kill has torn is not counted.
        """
        path = self.path / "metrics.jsonl"
        try:
            *lines, _ = read_lines(path, self.root) or [b""]
        except (OSError, ValueError):
            with contextlib.suppress(OSError):
                self.set_aside(path)
            return 1
        kept = []
        for line in lines:
            with contextlib.suppress(ValueError):
                kept.append((parse_line(line, self.run_id)["step"], line + b"\n"))
        if os.path.lexists(path):
            with contextlib.suppress(OSError):
                self.write(path, b"".join(line for logged, line in kept if logged <= step))
        return len(lines) - len(kept)


def _row(measurement: Measurement) -> dict[str, Any]:
    row = {key: value for key, value in dataclasses.asdict(measurement).items() if value is not None}
    row["value"] = _number(row["value"])
    if "examples" in row:
        row["examples"] = [_number(value) for value in row["examples"]]
    return row


def _number(value: float) -> float | None:
    """A number that JSON can hold: null for one that is not finite."""
    return float(f"{value:.9g}") if math.isfinite(value) else None
