"""What is done with a run, each stage with a result file of its own: its training, and every evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from suite.canonical import canonical_json, digest


@dataclass(frozen=True)
class Stage:
    """`name` says what is done, `settings` (canonical JSON) everything that decides its numbers.

    options (canonical JSON): what changes speed or place alone.
    """

    name: str
    settings: str
    options: str

    @classmethod
    def of(cls, name: str, settings: Mapping[str, Any], options: Mapping[str, Any]) -> Stage:
        return cls(name, canonical_json(settings), canonical_json(options))

    @property
    def stem(self) -> str:
        """The name of the result file, without its folder and suffix."""
        return self.name if self == TRAINING else f"{self.name}-{digest(self.settings, 8)}"

    @property
    def file_name(self) -> str:
        """The result file, in the run's folder."""
        return f"{self.stem}.json" if self == TRAINING else f"eval/{self.stem}.json"

    @property
    def title(self) -> str:
        """What the stage is called for people: a stage of benchmarks with the name of its task."""
        return " ".join([self.name, *([tasks] if (tasks := json.loads(self.settings).get("tasks")) else [])])


TRAINING = Stage.of("train", {}, {})
