"""A store of many runs, made of a few real ones: python -m tests.suite.store.many_runs STORE FROM RUNS, as 10000.

Every run has an id, a seed, a learning rate and values of its own; its files carry right digests.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from pathlib import Path
from typing import Any

from suite.store.foreign import checked_line, sealed

SEEDS = 20


def make_many(store: Path, source: Path, number: int) -> list[str]:
    """Writes so many runs after those of a source, and returns their ids."""
    folders = sorted((source / "runs").iterdir())
    made = []
    for i in range(number):
        folder = folders[i % len(folders)]
        run_id = hashlib.sha256(f"{folder.name} {i}".encode()).hexdigest()[:12]
        _write_run(store / "runs" / run_id, folder, i // len(folders))
        made.append(run_id)
    return made


def _write_run(folder: Path, source: Path, number: int) -> None:
    """The run of the source that has this number among those made of it."""
    draw = random.Random(f"{source.name} {number}")
    group, seed = divmod(number, SEEDS)
    folder.mkdir(parents=True)
    (folder / "eval").mkdir()
    run = _read(source / "run.json")
    lr = run["facts"]["lr"] * 1.01**group
    run["group_id"] = hashlib.sha256(f"{source.name} {group}".encode()).hexdigest()[:12]
    run["facts"] |= {"seed": seed, "lr": lr}
    run["settings"] |= {"seed": seed, "train.lr": lr}
    config = (source / "config.yaml").read_bytes().replace(b"\nseed: 0", f"\nseed: {seed}".encode())
    (folder / "config.yaml").write_bytes(config)
    _write(folder / "run.json", run | {"config": hashlib.sha256(config).hexdigest()})
    for path in [source / "environment.json", source / "status.json"]:
        _write(folder / path.name, _read(path))
    for path in [source / "train.json", *(source / "eval").glob("*.json")]:
        content = _read(path)
        for row in content["rows"]:
            if isinstance(row["value"], float):
                row["value"] *= 1 + 0.01 * draw.random()
        _write(folder / path.relative_to(source), content)
    lines = map(json.loads, (source / "metrics.jsonl").read_text().splitlines())
    rows = ({key: value for key, value in line.items() if key != "check"} for line in lines)
    (folder / "metrics.jsonl").write_text("".join(checked_line(row, folder.name) for row in rows))


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return {key: value for key, value in content.items() if key != "digest"}


def _write(path: Path, content: dict[str, Any]) -> None:
    owner = path.parent if path.parent.name != "eval" else path.parent.parent
    path.write_text(json.dumps(sealed(content | {"run_id": owner.name})))


if __name__ == "__main__":
    make_many(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
