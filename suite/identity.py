"""What a run is called: a digest of everything that decides its numbers, and of nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

SCHEMA = 1

# Keys that were added after runs existed, each with the value that changes nothing. At that value a key is left out of
# the digest, so that old runs keep their names. Those of a Mesa mixer, which a pattern names `mixer` or `mesa`:
MESA_TYPE, MESA_PATTERN_NAMES = "mesanet.Mesa", ("mixer", "mesa")
MESA_NEUTRAL: dict[str, Any] = {
    "solver.initial": "diagonal",
    "solver.gradient": "implicit",
    "random_steps": None,
    "signed_decay": False,
    "decode": "solver",
    "refresh": None,
}
NEUTRAL: dict[str, Any] = {
    f"model.mixers.{name}.{key}": value for name in MESA_PATTERN_NAMES for key, value in MESA_NEUTRAL.items()
}

# The same of a task, by its type.
TASK_NEUTRAL: dict[str, dict[str, Any]] = {"mqar.MQAR": {"num_train": None}}
NEUTRAL |= {f"task.{key}": value for keys in TASK_NEUTRAL.values() for key, value in keys.items()}

# Values of a task's `data` that say where the text lies; what it says is in the fingerprint.
PLACES = ("path", "cache", "name", "tokenizer")


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no white space; the same for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any, length: int) -> str:
    """The first hexadecimal digits of the SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:length]


def identity(config: Mapping[str, Any], *, data_fingerprint: str) -> dict[str, Any]:
    """Everything that decides the numbers of a run with this settled configuration.

    Labels, learning-rate tables, paths, logging, workers and the evaluations asked for stay outside.
    """
    model, task = config["model"], config["task"]
    mixers = {name: model[name] for name in model["pattern"]}
    task_values = {key: value for key, value in task.items() if key != "data"}
    if "data" in task:
        task_values["data"] = {key: value for key, value in task["data"].items() if key not in PLACES}
    whole = {
        "schema": SCHEMA,
        "model": {"name": model["name"], "version": model["version"], "pattern": model["pattern"], "mixers": mixers},
        "size": {key: value for key, value in config["size"].items() if key != "name"},
        "task": task_values,
        "data_fingerprint": data_fingerprint,
        "train": config["train"],
        "backend": config["backend"],
        "seed": config["seed"],
    }
    return without_neutral(whole, NEUTRAL)


def without_neutral(whole: Mapping[str, Any], neutral: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping without the keys (dotted) that stand at their neutral value."""
    kept = {}
    for key, value in whole.items():
        name = f"{prefix}{key}"
        if name in neutral and value == neutral[name]:
            continue
        kept[key] = without_neutral(value, neutral, f"{name}.") if isinstance(value, Mapping) else value
    return kept


def with_neutral(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of an old run with the keys that were added since, each at its neutral value; its name stays."""
    model = dict(config["model"])
    for name in model["pattern"]:
        mixer = dict(model[name])
        if mixer["type"] == MESA_TYPE:
            for key, value in MESA_NEUTRAL.items():
                *outer, last = key.split(".")
                inner = mixer
                for part in outer:
                    inner[part] = dict(inner[part])
                    inner = inner[part]
                inner.setdefault(last, value)
        model[name] = mixer
    task = TASK_NEUTRAL.get(config["task"].get("type"), {}) | config["task"]
    return {**config, "model": model, "task": task}


def run_id(whole: Mapping[str, Any]) -> str:
    """12 hexadecimal digits that name a run."""
    return digest(whole, 12)


def group_id(whole: Mapping[str, Any]) -> str:
    """The same without the seed: it names the runs that differ in their seed alone."""
    return digest({key: value for key, value in whole.items() if key != "seed"}, 12)
