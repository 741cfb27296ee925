"""The writing side of the results store: a file exists if and only if what it holds is whole.

results/runs/<run_id>/ holds run.json (names and facts), config.yaml, environment.json, status.json, metrics.jsonl,
checkpoint/, and one result file a stage: train.json and eval/<evaluation>-<hash>.json. suite/results.py reads it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from suite.environment import environment
from suite.evaluations import Evaluation
from suite.lock import RunLock
from suite.plan import Run
from tasks.task import Measurement

SCHEMA = 1


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file under a temporary name, forces it to disk and renames it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        # Gone already when it was renamed.
        Path(temporary).unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


class RunDirectory:
    """Where one run lands."""

    def __init__(self, results: Path, run_id: str) -> None:
        self.path = results / "runs" / run_id
        self.run_id = run_id

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoint"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def lock(self) -> RunLock:
        return RunLock(self.path / "lock")

    def begin(self, run: Run) -> None:
        """Writes what the run is; the same bytes however often it is begun."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not (self.path / "run.json").exists():
            write_atomically(self.path / "config.yaml", OmegaConf.to_yaml(run.config).encode())
            write_json(self.path / "environment.json", environment())
            whole = {"schema": SCHEMA, "run_id": run.run_id, "group_id": run.group_id, "facts": run.facts}
            write_json(self.path / "run.json", whole)

    def stage_file(self, evaluation: Evaluation | None) -> Path:
        """The result file of an evaluation, or of training."""
        return self.path / "train.json" if evaluation is None else self.path / "eval" / evaluation.file_name

    def write_stage(self, evaluation: Evaluation | None, measurements: Sequence[Measurement]) -> None:
        settings = {} if evaluation is None else json.loads(evaluation.settings)
        stage = "train" if evaluation is None else evaluation.name
        rows = [_row(measurement) for measurement in measurements]
        write_json(self.stage_file(evaluation), {"schema": SCHEMA, "stage": stage, "settings": settings, "rows": rows})

    def write_status(self, status: str, *, reason: str = "", stage: str = "", step: int | None = None) -> None:
        whole = {"status": status, "reason": reason, "stage": stage, "step": step, "time": time.time()}
        write_json(self.path / "status.json", whole)

    def status(self) -> dict[str, Any]:
        try:
            return json.loads((self.path / "status.json").read_text())
        except FileNotFoundError:
            return {"status": "pending", "reason": "", "stage": "", "step": None, "time": 0.0}

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        with open(self.metrics, "a") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")

    def truncate_metrics(self, step: int) -> None:
        """Drops the lines after a step, and a line that a kill has torn: a resumed run writes them again."""
        if not self.metrics.exists():
            return
        kept = []
        for line in self.metrics.read_text().splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if row["step"] <= step:
                kept.append(line)
        write_atomically(self.metrics, "".join(f"{line}\n" for line in kept).encode())


def _row(measurement: Measurement) -> dict[str, Any]:
    row = {key: value for key, value in dataclasses.asdict(measurement).items() if value is not None}
    row["value"] = _number(row["value"])
    if "examples" in row:
        row["examples"] = [_number(value) for value in row["examples"]]
    return row


def _number(value: float) -> float | None:
    """A number that JSON can hold: null for one that is not finite."""
    return float(f"{value:.9g}") if math.isfinite(value) else None
