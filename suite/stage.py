"""What is done with a run, each stage with a result file of its own: its training, and every evaluation."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from suite.canonical import canonical_json, digest

AFTER = "@"


@dataclass(frozen=True)
class Stage:
    """`name` says what is done, `settings` (canonical JSON) everything that decides its numbers.

    options (canonical JSON): what changes speed or place alone. What is measured on the checkpoint after 500 steps, not on the
    trained weights, is named test@500.
    """

    name: str
    settings: str
    options: str

    @classmethod
    def of(cls, name: str, settings: Mapping[str, Any], options: Mapping[str, Any]) -> Stage:
        return cls(name, canonical_json(settings), canonical_json(options))

    def after(self, step: int) -> Stage:
        """The same, measured on the checkpoint after so many steps."""
        return dataclasses.replace(self, name=f"{self.name}{AFTER}{step}")

    @property
    def evaluation(self) -> str:
        """The name of what is measured, on whatever weights."""
        return self.name.partition(AFTER)[0]

    @property
    def step(self) -> int | None:
        """After how many steps the weights were that are measured; None for the trained ones."""
        step = self.name.partition(AFTER)[2]
        return int(step) if step else None

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
        """What the stage is called for people: with its benchmark, or with its text and how that is read."""
        settings = json.loads(self.settings)
        return " ".join([self.name, *(str(settings[key]) for key in ("tasks", "text", "reading", "context") if key in settings)])


TRAINING = Stage.of("train", {}, {})
