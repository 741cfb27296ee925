"""What a run is called: a digest of everything that decides its numbers, and of nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conf.settings import flat, text
from suite.canonical import digest
from suite.request.schema import Config

SCHEMA = 1


def identity(config: Config, *, data_fingerprint: str, neutral: bool = False) -> dict[str, Any]:
    """Everything that decides the numbers of a run with this settled configuration.

    Labels, learning-rate tables, paths, logging, workers and the evaluations asked for stay outside; and, unless `neutral`,
    keys that were added after runs existed and stand at the value that changes nothing, so that old runs keep their names.
    """
    model = config.model
    return {
        "schema": SCHEMA,
        "model": {
            "name": model.name,
            "version": model.version,
            "pattern": list(model.pattern),
            "mixers": {name: mixer.named(neutral=neutral) for name, mixer in model.by_name()},
        },
        "size": config.size.named(neutral=neutral),
        "task": config.task.named(neutral=neutral),
        "data_fingerprint": data_fingerprint,
        "train": config.train.named(neutral=neutral),
        "backend": config.backend,
        "seed": config.seed,
    }


def flat_settings(config: Config) -> dict[str, Any]:
    """Every setting that decides the numbers of a run, by its dotted key as it is typed; lists as text."""
    whole = identity(config, data_fingerprint="", neutral=True)
    model = {**whole["model"], **whole["model"]["mixers"]}
    named = {key: value for key, value in whole.items() if key not in ("schema", "data_fingerprint")}
    named["model"] = {key: value for key, value in model.items() if key != "mixers"}
    return {key: text(value) if isinstance(value, list | tuple) else value for key, value in flat(named)}


def run_id(whole: Mapping[str, Any]) -> str:
    """12 hexadecimal digits that name a run."""
    return digest(whole, 12)


def group_id(whole: Mapping[str, Any]) -> str:
    """The same digest without the seed: the name that runs share which differ in their seed alone."""
    return digest({key: value for key, value in whole.items() if key != "seed"}, 12)
