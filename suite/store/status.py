"""How far a run is: what its status.json says, which a RunDirectory writes and anybody may read. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from suite.store.foreign import inert, read_json


@dataclass(frozen=True)
class Status:
    """status: pending, running, interrupted, done, diverged, out_of_memory or error. step: where training diverged.

    attempt: the command that failed. failures: of stages after training, by their file's stem, each with a "title",
    "status", "reason" and "attempt".
    """

    status: str = "pending"
    reason: str = ""
    stage: str = ""
    step: int | None = None
    attempt: str = ""
    failures: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def read_status(path: Path, root: Path, run_id: str) -> Status:
    """The status in a file of a store, its texts inert. Raises OSError and ValueError for one that is not this run's."""
    written = read_json(path, root, run_id)
    step, failed = written.get("step"), written.get("failures")
    failures = {
        stem: {key: inert(each.get(key) or "") for key in ("title", "status", "reason", "attempt")}
        for stem, each in (failed.items() if isinstance(failed, dict) else ())
        if isinstance(each, dict)
    }
    reason, stage, attempt = (inert(written.get(key) or "") for key in ("reason", "stage", "attempt"))
    step = step if isinstance(step, int) else None
    return Status(inert(written.get("status") or "pending"), reason, stage, step, attempt, failures)
