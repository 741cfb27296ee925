"""Few-shot prefixes that documents share, so that a score is a mean over prefixes and a model reads each of them once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from lm_eval.api.samplers import ContextSampler


class Prefixes(ContextSampler):  # type: ignore[misc]
    """Draws the examples by the number of a document's `prefix`; its own word among them gives its place to another."""

    def set_rnd(self, rnd: int | None) -> Prefixes:
        self.seed = rnd
        return self

    def sample(
        self, n: int, eval_doc: Mapping[str, Any] | None = None, df: Sequence[dict[str, Any]] | None = None, **options: object
    ) -> list[dict[str, Any]]:
        asked = eval_doc or {"prefix": 0, "context": None}
        # One more than is needed, as long as there is one.
        places = Random(f"{self.seed} {asked['prefix']}").sample(range(len(self.df)), min(n + 1, len(self.df)))
        return [self.df[place] for place in places if self.df[place]["context"] != asked["context"]][:n]
