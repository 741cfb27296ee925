"""Benchmarks of lm-eval, whose YAML is parsed once."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session", autouse=True)
def ours_parsed_once() -> Iterator[None]:
    """Has lm-eval parse each YAML of our own benchmarks once: they are indexed again beside the folder of every test."""
    from lm_eval.tasks import _index

    from suite.evaluation.lm_eval_names import OURS

    load = _index.load_yaml
    kept = functools.cache(load)

    def loaded(path: Path, **options: Any) -> dict[str, Any]:
        # No test changes these files. What is loaded is changed by whoever asks for it.
        return copy.deepcopy(kept(path, **options)) if {*path.parents} & {*OURS} else load(path, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_index, "load_yaml", loaded)
        yield
