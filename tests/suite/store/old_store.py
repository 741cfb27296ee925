"""A store as versions wrote it that knew no digests."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file, save_file


def unsealed(folder: Path) -> None:
    """Makes a run's folder one that a version without digests wrote, under the name that the folder has now."""
    for path in folder.rglob("*.json"):
        content = json.loads(path.read_text())
        kept = {key: value for key, value in content.items() if key not in ("digest", "config", "made", "attempt", "run_id")}
        path.write_text(json.dumps(kept | ({"run_id": folder.name} if path.name == "run.json" else {})))
    for path in folder.rglob("*.safetensors"):
        save_file(load_file(path), path)
